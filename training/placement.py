"""Where averages of the weights are kept: beside the weights, in the host's memory, or shared out over the ranks.

N elements of a parameter, R ranks.
"""

from typing import Literal

import torch
from torch import Tensor, nn

from training.distributed import all_gather_flat
from training.engine import SingleDevice

Placement = Literal["device", "cpu", "sharded"]


class OnDevice:
    """As the weights are stored, on their device."""

    collective = False  # whether all ranks must swap together

    def __init__(self, engine: SingleDevice):
        self.engine = engine

    def mine(self, stored: Tensor) -> Tensor:
        """What this rank averages of a parameter, as a view of what it stores."""
        return stored

    def new(self, stored: Tensor) -> Tensor:
        """An average that begins with the weights as they are."""
        return self.mine(stored).clone()

    def update(self, weights: list[Tensor], averages: list[tuple[float, list[Tensor]]]) -> None:
        """average <- average + share (weights - average), for every (share, average)."""
        for share, average in averages:
            torch._foreach_lerp_(average, weights, share)

    def swap(self, stored: Tensor, average: Tensor) -> None:
        """Exchanges both; exact, and its own inverse."""
        mine, copy = self.mine(stored), average.clone()
        average.copy_(mine)
        mine.copy_(copy)

    def whole(self, name: str, average: Tensor, stored: Tensor) -> Tensor:
        """The whole average.  Every rank calls, with the same names in the same order."""
        return self.engine.whole(name, average)

    def load(self, name: str, average: Tensor, whole: Tensor, stored: Tensor) -> None:
        average.copy_(self.engine.part(name, whole))


class OnHost(OnDevice):
    """In the host's memory, which each update copies the weights to, one parameter after the other."""

    def __init__(self, engine: SingleDevice):
        super().__init__(engine)
        self.pinned = engine.device.type == "cuda"
        self.landing = torch.empty(0)

    def new(self, stored: Tensor) -> Tensor:
        return torch.empty_like(stored, device="cpu", pin_memory=self.pinned).copy_(stored)

    def update(self, weights: list[Tensor], averages: list[tuple[float, list[Tensor]]]) -> None:
        if not len(self.landing):
            self.landing = torch.empty(max(map(Tensor.numel, weights)), pin_memory=self.pinned)
        for i, stored in enumerate(weights):
            copy = self.landing.as_strided(stored.shape, stored.stride(), 0).copy_(stored)
            for share, average in averages:
                average[i].lerp_(copy, share)


class Shared(OnDevice):
    """N / R elements of every parameter on each rank, rounded up, for engines whose ranks store whole weights.

    Elements are counted in the order of memory, which is no other rank's other.
    """

    collective = True

    def mine(self, stored: Tensor) -> Tensor:
        size = self._size(stored)
        return _flat(stored)[self.engine.rank * size : (self.engine.rank + 1) * size]

    def _size(self, stored: Tensor) -> int:
        return -(-stored.numel() // self.engine.num_ranks)

    def _gather(self, mine: Tensor, stored: Tensor) -> Tensor:
        """(N,), in the order of memory, of what each rank has of it."""
        return all_gather_flat(nn.functional.pad(mine, (0, self._size(stored) - len(mine))))[: stored.numel()]

    def swap(self, stored: Tensor, average: Tensor) -> None:
        """Exchanges this rank's part and gathers the others': no memory beyond one parameter's."""
        super().swap(stored, average)
        _flat(stored).copy_(self._gather(self.mine(stored), stored))

    def whole(self, name: str, average: Tensor, stored: Tensor) -> Tensor:
        whole = torch.empty_like(stored)
        _flat(whole).copy_(self._gather(average, stored))
        return whole

    def load(self, name: str, average: Tensor, whole: Tensor, stored: Tensor) -> None:
        average.copy_(self.mine(torch.empty_like(stored).copy_(whole)))


def _flat(tensor: Tensor) -> Tensor:
    """(N,): its elements as they lie in memory, without gaps; a view."""
    assert tensor.is_contiguous() or tensor.is_contiguous(memory_format=torch.channels_last)
    return tensor.as_strided((tensor.numel(),), (1,))


def place(engine: SingleDevice, placement: Placement) -> OnDevice:
    """The placement of that name.  Ranks that store parts of the weights share the averages anyway."""
    if placement == "cpu":
        return OnHost(engine)
    return Shared(engine) if placement == "sharded" and not engine.sharded else OnDevice(engine)
