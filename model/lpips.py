"""LPIPS: how different two images look, as differences of a trained network's features (Zhang et al. 2018).

The trunks are AlexNet and VGG16 without their classifiers, defined here because torchvision's builds do not fit every
build of torch.  training/lpips_weights.py brings the weights, which are never trained.

B batch, C channels, H W pixels, h w those of a layer.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LpipsNet = Literal["alex", "vgg"]
POOL = 0
# (kernel, stride, padding, channels) of each convolution, grouped by the layer that is compared; POOL before a group.
ALEX = (
    ((11, 4, 2, 64),),
    (POOL, (5, 1, 2, 192)),
    (POOL, (3, 1, 1, 384)),
    ((3, 1, 1, 256),),
    ((3, 1, 1, 256),),
)
VGG = (
    ((3, 1, 1, 64),) * 2,
    (POOL, *((3, 1, 1, 128),) * 2),
    (POOL, *((3, 1, 1, 256),) * 3),
    (POOL, *((3, 1, 1, 512),) * 3),
    (POOL, *((3, 1, 1, 512),) * 3),
)
POOLING = {"alex": (3, 2), "vgg": (2, 2)}  # kernel, stride
SMALLEST = {"alex": 31, "vgg": 16}  # pixels of a side that the last layer still sees
LAYERS = {"alex": ALEX, "vgg": VGG}
# (x - SHIFT) / SCALE for x in [-1, 1]: the mean and deviation of ImageNet, as the authors round them.
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)


class LPIPS(nn.Module):
    """LPIPS version 0.1 with the linear heads ("lin").  Takes images of any size from SMALLEST on."""

    def __init__(self, net: LpipsNet):
        super().__init__()
        self.net = net
        self.register_buffer("shift", torch.tensor(SHIFT).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("scale", torch.tensor(SCALE).view(1, 3, 1, 1), persistent=False)
        groups, heads, before = [], [], 3
        for layer in LAYERS[net]:
            parts: list[nn.Module] = []
            for part in layer:
                if part == POOL:
                    parts.append(nn.MaxPool2d(*POOLING[net]))
                else:
                    kernel, stride, padding, width = part
                    parts += [nn.Conv2d(before, width, kernel, stride, padding), nn.ReLU()]
                    before = width
            groups.append(nn.Sequential(*parts))
            heads.append(nn.Conv2d(before, 1, 1, bias=False))
        self.layers, self.heads = nn.ModuleList(groups), nn.ModuleList(heads)
        self.eval().requires_grad_(False)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """The distance of each pair, 0 for equal images.  a, b (B, 3, H, W) in [-1, 1].  -> (B,) float32

        Differentiable by the images.  Raises ValueError for images smaller than SMALLEST.
        """
        return sum(each.mean((1, 2, 3)) for each in self._differences(a, b))

    def maps(self, a: Tensor, b: Tensor) -> Tensor:
        """Where they differ: each layer's weighted difference, enlarged to the images' size, and summed.  -> (B, H, W)

        The mean over an image is near `forward`'s value, and equal to it where enlarging keeps means.
        """
        size = a.shape[-2:]
        enlarged = (F.interpolate(each, size, mode="bilinear") for each in self._differences(a, b))
        return sum(enlarged).squeeze(1)

    def features(self, x: Tensor) -> list[Tensor]:
        """What each layer sees of images (B, 3, H, W) in [-1, 1].  -> (B, C, h, w), five of them"""
        smallest = SMALLEST[self.net]
        if min(x.shape[-2:]) < smallest:
            raise ValueError(
                f"LPIPS-{self.net}: images of {x.shape[-2]}x{x.shape[-1]} pixels; it needs {smallest} a side"
            )
        found, h = [], (x.float() - self.shift) / self.scale
        for layer in self.layers:
            h = layer(h)
            found.append(h)
        return found

    def _differences(self, a: Tensor, b: Tensor) -> list[Tensor]:
        """(B, 1, h, w) of each layer."""
        with torch.autocast(a.device.type, enabled=False):
            both = zip(self.heads, self.features(a), self.features(b), strict=True)
            return [head((unit(x) - unit(y)) ** 2) for head, x, y in both]


def unit(x: Tensor) -> Tensor:
    """Each pixel's features at length 1; where all are 0 they stay 0, and so does their gradient."""
    return x / ((x**2).sum(1, keepdim=True).clamp(min=1e-20).sqrt() + 1e-10)
