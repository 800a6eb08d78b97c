"""Features of whole pictures, in whose spaces crowds are compared.

B batch, H W pixels.
"""

from collections.abc import Callable
from functools import lru_cache
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from model.inception import SIZE, InceptionV3
from training.evaluating import exactly
from training.lpips_weights import load_lpips

INCEPTION = "pt_inception-2015-12-05-6726825d.pth"
INCEPTION_SHA256 = "6726825d"  # what its SHA-256 begins with; the publishers' own check compares no more
NO_INCEPTION = (
    f"needs the InceptionV3 of 2015; name its file with --inception-weights ({INCEPTION}, which pytorch-fid publishes)"
)
VGG_SIZE = 128  # pixels of a side; more cost more, and no published number is to be met


class Space(NamedTuple):
    frechet: str  # what the Frechet distance in it is called
    kernel: str
    features: Callable[[list[np.ndarray]], np.ndarray]  # (H, W, 3) uint8 each -> (B, D) float32


@lru_cache(maxsize=2)
def inception_space(weights: Path, resize: str, device: torch.device) -> Space:
    """That of FID and KID.  Raises ValueError for a file that is missing, or another than INCEPTION."""
    net, option = InceptionV3(), f"--inception-weights {weights}"
    try:
        content = weights.read_bytes()
    except OSError as error:
        raise ValueError(f"{option}: cannot be read ({error.strerror}); name {INCEPTION}") from error
    found = sha256(content).hexdigest()
    if not found.startswith(INCEPTION_SHA256):
        raise ValueError(
            f"{option}: its SHA-256 is {found[:16]}..., that of {INCEPTION} begins with "
            f"{INCEPTION_SHA256}; FID with other weights is another measure: name that file"
        )
    try:
        state = torch.load(BytesIO(content), map_location="cpu", weights_only=True)
        wanted = net.state_dict()
        if missing := [name for name in wanted if name not in state and not name.endswith("num_batches_tracked")]:
            raise KeyError(f"no {missing[0]}")
        net.load_state_dict({name: state.get(name, value) for name, value in wanted.items()})
    except Exception as error:  # whatever a file makes torch stumble over
        why = str(error).partition("\n")[0]
        raise ValueError(f"{option}: not the weights of InceptionV3 ({why}); name {INCEPTION}") from error
    net.to(device)

    @torch.no_grad()
    @exactly()
    def features(images: list[np.ndarray]) -> np.ndarray:
        return net(inception_input(images, resize).to(device)).cpu().numpy()

    return Space("fid", "kid", features)


def vgg_space(device: torch.device) -> Space:
    """The means of VGG16's last features, of ImageNet too: no FID, and named so.  Raises ValueError where its weights
    cannot be had."""
    net = load_lpips("vgg", device)

    @torch.no_grad()
    @exactly()
    def features(images: list[np.ndarray]) -> np.ndarray:
        x = clean_resized(images, VGG_SIZE) / 127.5 - 1
        return net.features(x.to(device))[-1].mean((2, 3)).cpu().numpy()

    return Space("frechet_vgg16", "kernel_vgg16", features)


def inception_input(images: list[np.ndarray], resize: str) -> Tensor:
    """(B, 3, SIZE, SIZE): of clean-fid in [-1, 127/128], of pytorch-fid in [-1, 1], as each of them has it."""
    if resize == "clean":
        return (clean_resized(images, SIZE) - 128) / 128
    return bilinear_resized(images, SIZE) / 127.5 - 1


def clean_resized(images: list[np.ndarray], size: int) -> Tensor:
    """As clean-fid resizes: each channel in floats by Pillow's bicubic filter, which does not alias (Parmar et al.
    2022).  -> (B, 3, size, size) in [0, 255]"""

    def channel(values: np.ndarray) -> np.ndarray:
        picture = Image.fromarray(np.ascontiguousarray(values, np.float32))
        return np.asarray(picture.resize((size, size), Image.Resampling.BICUBIC)).clip(0, 255)

    resized = np.stack([[channel(image[..., c]) for c in range(3)] for image in images])
    return torch.from_numpy(resized)


def bilinear_resized(images: list[np.ndarray], size: int) -> Tensor:
    """As pytorch-fid resizes: bilinear, without antialiasing.  -> (B, 3, size, size) in [0, 255]"""
    x = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float()
    return F.interpolate(x, (size, size), mode="bilinear", align_corners=False)
