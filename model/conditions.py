"""Everything that the try-on network is told besides zt and t.

B batch, C channels, H W pixels, K keypoints, A conditioning images.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Conditions(NamedTuple):
    """The conditional inputs c_tryon and t_na of Zhu et al. 2023, Eq. 2.

    A NamedTuple, because nn.DataParallel splits one along its batch and would hand a dataclass whole to every GPU.
    """

    clothing_agnostic: Tensor  # (B, 3, H, W) in [-1, 1]
    garment: Tensor  # (B, 3, H, W) in [-1, 1]
    person_pose: Tensor  # (B, K, 3): x, y in [0, 1], visible 0 or 1
    garment_pose: Tensor  # (B, K, 3)
    noise_aug_level: Tensor  # (B, A) in [0, 1]: agnostic, garment and, where there is one, lowres
    lowres: Tensor | None = None  # (B, 3, H, W) in [-1, 1], the previous stage's result, upsampled

    def drop(self, keep: Tensor) -> "Conditions":
        """The same conditions with all try-on inputs of the samples where keep (B,) is 0 set to null, together.

        Guidance evaluates the all-null state, so that state is what training must visit (Ho & Salimans 2022):
        images become 0, every joint becomes invisible, which the network replaces by its learned null tokens.
        The low-resolution image stays: guidance shall sharpen the try-on, not the upsampling.
        """
        image, joint = keep.view(-1, 1, 1, 1), keep.view(-1, 1, 1)
        return self._replace(
            clothing_agnostic=self.clothing_agnostic * image,
            garment=self.garment * image,
            person_pose=self.person_pose * joint,
            garment_pose=self.garment_pose * joint,
        )

    def null(self) -> "Conditions":
        """The unconditional state that guidance evaluates."""
        return self.drop(torch.zeros_like(self.noise_aug_level[:, 0]))
