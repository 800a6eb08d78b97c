"""Everything that a stage's network is told besides zt and t.

B batch, C channels, H W pixels, K keypoints, A conditioning images, L tokens.
"""

from typing import NamedTuple

import torch
from torch import Tensor

GarmentFeatures = tuple[dict[int, Tensor], dict[int, Tensor]]  # of encoder and decoder: level -> (B, L, C)


class Conditions(NamedTuple):
    """The conditional inputs c_tryon and t_na of Zhu et al. 2023, Eq. 2.

    A NamedTuple, because nn.DataParallel splits one along its batch and would hand a dataclass whole to every GPU.
    A network without try-on conditions (the 1024 stage) is told noise_aug_level and lowres alone.
    """

    clothing_agnostic: Tensor | None  # (B, 3, H, W) in [-1, 1]
    garment: Tensor | None  # (B, 3, H, W) in [-1, 1]
    person_pose: Tensor | None  # (B, K, 3): x, y in [0, 1], visible 0 or 1
    garment_pose: Tensor | None  # (B, K, 3)
    noise_aug_level: Tensor  # (B, A) in [0, 1]: those of agnostic, garment and lowres that are there, in this order
    lowres: Tensor | None = None  # (B, 3, H, W) in [-1, 1], the previous stage's result, upsampled
    keep: Tensor | None = None  # (B,): 0 drops the garment's features; None keeps all
    with_null: bool = False  # evaluate the null state, too: (B, 2, 3, H, W) comes back, its predictions second
    garment_features: GarmentFeatures | None = None  # where they are known already (Network.remember)

    def drop(self, keep: Tensor) -> "Conditions":
        """The same conditions with all try-on inputs of the samples where keep (B,) is 0 set to null, together.

        Guidance evaluates the all-null state, so that state is what training must visit (Ho & Salimans 2022):
        images and the garment's features become 0, every joint becomes invisible, which the network replaces by its
        learned null tokens.
        The low-resolution image stays: guidance shall sharpen the try-on, not the upsampling.
        """
        assert self.garment_features is None, "what is remembered is not dropped: drop first"
        if self.clothing_agnostic is None:
            return self
        image, joint = keep.view(-1, 1, 1, 1), keep.view(-1, 1, 1)
        return self._replace(
            clothing_agnostic=self.clothing_agnostic * image,
            garment=self.garment * image,
            person_pose=self.person_pose * joint,
            garment_pose=self.garment_pose * joint,
            keep=keep,
        )

    def null(self) -> "Conditions":
        """The unconditional state that guidance evaluates."""
        return self.drop(torch.zeros_like(self.noise_aug_level[:, 0]))

    def followed_by_null(self) -> "Conditions":
        """(2B, ...): these conditions of the person, and after them their null state; the garment's are left out."""
        dropped = (self.clothing_agnostic, self.person_pose, self.garment_pose)
        agnostic, person_pose, garment_pose = (torch.cat([x, torch.zeros_like(x)]) for x in dropped)
        level = torch.cat([self.noise_aug_level] * 2)
        lowres = None if self.lowres is None else torch.cat([self.lowres] * 2)
        return Conditions(agnostic, None, person_pose, garment_pose, level, lowres)
