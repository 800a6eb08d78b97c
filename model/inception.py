"""InceptionV3 as FID uses it: the network of 2015, whose pooled features are compared (Heusel et al. 2017).

It is not torchvision's: its average pools leave the padding out, and the last block pools by maximum.  Modules are
named as in the weights that pytorch-fid and torch-fidelity publish, pt_inception-2015-12-05-6726825d.pth.

B batch, C channels, H W pixels.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SIZE, WIDTH = 299, 2048  # pixels of a side that go in, features that come out
Kernel = int | tuple[int, int]


class Conv(nn.Module):
    """Convolution, batch norm with the statistics of training, ReLU.  With stride 1 the size stays."""

    def __init__(self, before: int, width: int, kernel: Kernel, stride: int = 1, padded: bool = True):
        super().__init__()
        sides = (kernel, kernel) if isinstance(kernel, int) else kernel
        padding = tuple(side // 2 for side in sides) if padded and stride == 1 else 0
        self.conv = nn.Conv2d(before, width, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(width, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


class Block(nn.Module):
    """Branches side by side, each convolutions in a row, and a pool."""

    def __init__(self, before: int, branches: dict[str, Sequence[tuple]], pool_width: int = 0):
        """branches: by name, (width, kernel[, stride]) of each convolution; of several, names end in _1, _2, ...

        pool_width: of a convolution after the average of 3x3; without one the pool is the maximum, at stride 2.
        """
        super().__init__()
        self.branches, self.pool_width = {}, pool_width
        for name, layers in branches.items():
            width, self.branches[name] = before, []
            for i, (out, *how) in enumerate(layers, 1):
                each = f"{name}_{i}" if len(layers) > 1 else name
                self.add_module(each, Conv(width, out, *how))
                self.branches[name].append(each)
                width = out
        if pool_width:
            self.branch_pool = Conv(before, pool_width, 1)

    def forward(self, x: Tensor) -> Tensor:
        found = []
        for names in self.branches.values():
            h = x
            for name in names:
                h = getattr(self, name)(h)
            found.append(h)
        return torch.cat([*found, self._pooled(x)], 1)

    def _pooled(self, x: Tensor) -> Tensor:
        if not self.pool_width:
            return F.max_pool2d(x, 3, 2)
        return self.branch_pool(F.avg_pool2d(x, 3, 1, 1, count_include_pad=False))


class Wide(nn.Module):
    """The last blocks, whose 3x3 branches end in a row and a column beside each other.  -> (B, 2048, H, W)"""

    def __init__(self, before: int, average: bool):
        super().__init__()
        self.average = average  # or the maximum
        self.branch1x1 = Conv(before, 320, 1)
        self.branch3x3_1 = Conv(before, 384, 1)
        self.branch3x3_2a, self.branch3x3_2b = Conv(384, 384, (1, 3)), Conv(384, 384, (3, 1))
        self.branch3x3dbl_1, self.branch3x3dbl_2 = Conv(before, 448, 1), Conv(448, 384, 3)
        self.branch3x3dbl_3a, self.branch3x3dbl_3b = Conv(384, 384, (1, 3)), Conv(384, 384, (3, 1))
        self.branch_pool = Conv(before, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        once, twice = self.branch3x3_1(x), self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        average = F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)
        pooled = average if self.average else F.max_pool2d(x, 3, 1, 1)
        found = [self.branch1x1(x), self.branch3x3_2a(once), self.branch3x3_2b(once)]
        found += [self.branch3x3dbl_3a(twice), self.branch3x3dbl_3b(twice), self.branch_pool(pooled)]
        return torch.cat(found, 1)


def _a(before: int, pool_width: int) -> Block:
    """35x35 pixels"""
    branches = {"branch1x1": [(64, 1)], "branch5x5": [(48, 1), (64, 5)], "branch3x3dbl": [(64, 1), (96, 3), (96, 3)]}
    return Block(before, branches, pool_width)


def _c(width: int) -> Block:
    """17x17 pixels; width of the inner convolutions"""
    row, column = (1, 7), (7, 1)
    branches = {
        "branch1x1": [(192, 1)],
        "branch7x7": [(width, 1), (width, row), (192, column)],
        "branch7x7dbl": [(width, 1), (width, column), (width, row), (width, column), (192, row)],
    }
    return Block(768, branches, 192)


class InceptionV3(nn.Module):
    """Images to the features of FID."""

    def __init__(self):
        super().__init__()
        self.Conv2d_1a_3x3 = Conv(3, 32, 3, stride=2)
        self.Conv2d_2a_3x3 = Conv(32, 32, 3, padded=False)
        self.Conv2d_2b_3x3 = Conv(32, 64, 3)
        self.Conv2d_3b_1x1 = Conv(64, 80, 1)
        self.Conv2d_4a_3x3 = Conv(80, 192, 3, padded=False)
        self.Mixed_5b, self.Mixed_5c, self.Mixed_5d = _a(192, 32), _a(256, 64), _a(288, 64)
        branches = {"branch3x3": [(384, 3, 2)], "branch3x3dbl": [(64, 1), (96, 3), (96, 3, 2)]}
        self.Mixed_6a = Block(288, branches)
        self.Mixed_6b, self.Mixed_6c, self.Mixed_6d, self.Mixed_6e = _c(128), _c(160), _c(160), _c(192)
        branches = {
            "branch3x3": [(192, 1), (320, 3, 2)],
            "branch7x7x3": [(192, 1), (192, (1, 7)), (192, (7, 1)), (192, 3, 2)],
        }
        self.Mixed_7a = Block(768, branches)
        self.Mixed_7b, self.Mixed_7c = Wide(1280, average=True), Wide(2048, average=False)
        self.eval().requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, 3, 299, 299) in [-1, 1].  -> (B, 2048)"""
        h = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))  # (B, 64, 147, 147)
        h = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(F.max_pool2d(h, 3, 2)))  # (B, 192, 71, 71)
        h = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(F.max_pool2d(h, 3, 2))))  # (B, 288, 35, 35)
        h = self.Mixed_6e(self.Mixed_6d(self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(h)))))  # (B, 768, 17, 17)
        h = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(h)))  # (B, 2048, 8, 8)
        return h.mean((2, 3))
