"""What of the truth a try-on picture has recovered: the print of the garment and the pose of the arms.

Each picture is compared with what it might show instead, drawn for the same person: the nearest wins,
and of equals the last, which is not the truth.
N pictures, P alternatives, of which the first is the truth; images are (H, W, 3) uint8.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from benchmarks.wardrobe import Known
from model.lpips import LPIPS
from model.metrics import mean_in, ssim_maps

ENLARGED = 4  # times, before LPIPS, whose first layers would see next to nothing of images this small
NEAR = 0.2  # torso lengths within which a joint is recovered (PCK@0.2)
BATCH = 64


def texture(image: np.ndarray, alternatives: np.ndarray, mask: np.ndarray) -> int:
    """Which print it is by its texture: the greatest correlation within the mask, each without its mean colour.

    A picture without any texture is none of them, -1.
    """
    ours, theirs = image[mask].astype(np.float64), alternatives[:, mask].astype(np.float64)  # (M, 3), (P, M, 3)
    ours, theirs = ours - ours.mean(0), theirs - theirs.mean(1, keepdims=True)
    if not ours.any():
        return -1
    alike = (ours * theirs).sum((1, 2)) / np.sqrt((theirs**2).sum((1, 2))).clip(1e-9)
    return len(alike) - 1 - int(np.argmax(alike[::-1]))


def nearest(image: np.ndarray, alternatives: np.ndarray, mask: np.ndarray | None = None) -> int:
    """Which of them has the least squared difference, within the mask if there is one."""
    mask = np.ones(image.shape[:2], bool) if mask is None else mask
    differences = alternatives[:, mask].astype(np.float64) - image[mask]
    unlike = (differences**2).sum((1, 2))
    return len(unlike) - 1 - int(np.argmin(unlike[::-1]))


def arms(image: np.ndarray, known: Known) -> list[bool]:
    """For elbow and wrist of both arms, whether the nearest of the drawn poses has it where the truth has it."""
    found = []
    for alternatives, joints in zip(known.arms, known.joints, strict=True):
        away = np.linalg.norm(joints[nearest(image, alternatives)] - joints[0], axis=-1)
        found += list(away < NEAR)
    return found


def measured(images: Sequence[np.ndarray], known: Sequence[Known], lpips: LPIPS) -> dict[str, float]:
    """Everything about one method's pictures."""
    pairs = list(zip(images, known, strict=True))
    mask = torch.from_numpy(np.stack([k.mask for k in known]))
    ours, truth = (_tensor(each) for each in (images, [k.sample.person for k in known]))
    similar = mean_in(ssim_maps(ours, truth), mask)
    unlike = mean_in(_in_batches(lambda a, b: _lpips_maps(lpips, a, b), ours, truth), mask)
    return {
        "masked_ssim": float(similar.mean()),
        "masked_lpips_alex": float(unlike.mean()),
        "masked_l1": float(
            np.mean([np.abs(x[k.mask] - k.sample.person[k.mask].astype(float)).mean() for x, k in pairs])
        ),
        "retrieval": float(np.mean([texture(x, k.prints, k.mask) == 0 for x, k in pairs])),
        "retrieval_with_colour": float(np.mean([nearest(x, k.prints, k.mask) == 0 for x, k in pairs])),
        "arms": float(np.mean([arms(x, k) for x, k in pairs])),
    }


def _tensor(images: Sequence[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255


@torch.no_grad()
def _in_batches(of: Callable[[Tensor, Tensor], Tensor], a: Tensor, b: Tensor) -> Tensor:
    return torch.cat([of(x, y) for x, y in zip(a.split(BATCH), b.split(BATCH), strict=True)])


def _lpips_maps(lpips: LPIPS, a: Tensor, b: Tensor) -> Tensor:
    """(B, H, W), in [0, 1] -> of the images enlarged, brought back to their size."""
    large = [
        torch.nn.functional.interpolate(x, scale_factor=ENLARGED, mode="bicubic").clamp(0, 1) * 2 - 1 for x in (a, b)
    ]
    return torch.nn.functional.avg_pool2d(lpips.maps(*large)[:, None], ENLARGED)[:, 0]
