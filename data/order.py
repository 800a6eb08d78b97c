"""Which sample stands at which place of the endless training stream.

N samples in all shards; a position counts samples from the start of training and never starts again, so that
epoch = position // N.  The order is a pure function of (seed, position): resuming is arithmetic, not replay.
"""

from bisect import bisect_right
from functools import lru_cache

import numpy as np

from data.randomness import Purpose, keyed_rng


class ShuffledOrder:
    """Every epoch a new permutation, shuffled in blocks of shards.

    The shards are permuted, `block` neighbours are thrown together, and the samples within a block are permuted.  Reads
    therefore stay within `block` open shards at a time, which disks and caches like, while two epochs share nothing.
    Memory is that of one block, not of one epoch.
    """

    def __init__(self, shard_sizes: list[int], seed: int, block: int = 16):
        self.shard_sizes = np.asarray(shard_sizes, dtype=np.int64)
        self.first_id = np.concatenate([[0], np.cumsum(self.shard_sizes)])
        self.seed = seed
        self.block = block
        self.num = int(self.first_id[-1])
        self._epoch = lru_cache(maxsize=2)(self._epoch_layout)
        self._block = lru_cache(maxsize=2)(self._block_ids)

    def __len__(self) -> int:
        return self.num

    def __getstate__(self) -> tuple:
        return self.shard_sizes, self.seed, self.block  # caches do not travel to workers

    def __setstate__(self, state: tuple) -> None:
        self.__init__(*state)

    def sample_id(self, position: int) -> int:
        """The id, in [0, N), of the sample at a position of the stream."""
        epoch, block, index = self._find(position)
        return int(self._block(epoch, block)[index])

    def upcoming(self, position: int) -> list[int]:
        """The shards that are read at this position and in the block of shards after its own."""
        epoch, block, _ = self._find(position)
        blocks = len(self._epoch(epoch)[1])
        following = (epoch, block + 1) if block + 1 < blocks else (epoch + 1, 0)
        return [*self._shards(epoch, block).tolist(), *self._shards(*following).tolist()]

    def _find(self, position: int) -> tuple[int, int, int]:
        """(epoch, block of it, place within the block)"""
        epoch, index = divmod(position, self.num)
        _, ends = self._epoch(epoch)
        block = bisect_right(ends, index)
        return epoch, block, index - (ends[block - 1] if block else 0)

    def _shards(self, epoch: int, block: int) -> np.ndarray:
        return self._epoch(epoch)[0][block * self.block : (block + 1) * self.block]

    def _epoch_layout(self, epoch: int) -> tuple[np.ndarray, list[int]]:
        """The order of the shards in this epoch, and where each block of shards ends."""
        shards = keyed_rng(self.seed, epoch << 32, Purpose.ORDER).permutation(len(self.shard_sizes))
        ends = np.cumsum(self.shard_sizes[shards])
        last_of_block = np.minimum(np.arange(self.block, len(ends) + self.block, self.block), len(ends)) - 1
        return shards, ends[last_of_block].tolist()

    def _block_ids(self, epoch: int, block: int) -> np.ndarray:
        members = self._shards(epoch, block)
        ids = np.concatenate([np.arange(self.first_id[s], self.first_id[s + 1]) for s in members])
        return keyed_rng(self.seed, (epoch << 32) + block + 1, Purpose.ORDER).permutation(ids)


class MixedOrder:
    """Several data sets by weight, each in an order and with epochs of its own.

    Every CYCLE positions hold each set as often as its weight says, in a new random order: shares are exact to 1 in
    CYCLE, and how much of a set stands before a position is arithmetic.
    """

    CYCLE = 1000

    def __init__(self, shard_sizes: list[list[int]], weights: list[float], seed: int, block: int = 16):
        self.arguments = (shard_sizes, weights, seed, block)
        self.seed = seed
        self.quotas = quotas(weights, self.CYCLE)
        # Sets of one seed but different sizes share no order; of equal sizes they would.
        self.orders = [ShuffledOrder(sizes, (seed + (i << 40)) % 2**64, block) for i, sizes in enumerate(shard_sizes)]
        self.first_id = np.cumsum([0, *map(len, self.orders)]).tolist()
        self.first_shard = np.cumsum([0, *map(len, shard_sizes)]).tolist()
        self._cycle = lru_cache(maxsize=2)(self._cycle_layout)

    def __len__(self) -> int:
        return self.first_id[-1]

    def __getstate__(self) -> tuple:
        return self.arguments

    def __setstate__(self, state: tuple) -> None:
        self.__init__(*state)

    def sample_id(self, position: int) -> int:
        """The id of the sample at a position of the stream, where ids run on from set to set."""
        part, inner = self._find(position)
        return self.first_id[part] + self.orders[part].sample_id(inner)

    def upcoming(self, position: int) -> list[int]:
        cycle = position // self.CYCLE
        return [
            self.first_shard[part] + shard
            for part, (order, quota) in enumerate(zip(self.orders, self.quotas, strict=True))
            if quota
            for shard in order.upcoming(cycle * quota)
        ]

    def _find(self, position: int) -> tuple[int, int]:
        """(the set, position within its own stream)"""
        cycle, place = divmod(position, self.CYCLE)
        parts, before = self._cycle(cycle)
        part = int(parts[place])
        return part, cycle * self.quotas[part] + int(before[place])

    def _cycle_layout(self, cycle: int) -> tuple[np.ndarray, np.ndarray]:
        """The set at each place of a cycle, and how many places before it have the same one."""
        parts = keyed_rng(self.seed, cycle, Purpose.MIX).permutation(
            np.repeat(np.arange(len(self.quotas)), self.quotas)
        )
        before = np.empty(self.CYCLE, np.int64)
        for part, quota in enumerate(self.quotas):
            before[parts == part] = np.arange(quota)
        return parts, before


def quotas(weights: list[float], total: int) -> list[int]:
    """Whole numbers that sum to total, as near to the weights' shares as can be (largest remainders)."""
    shares = np.asarray(weights, float) / sum(weights) * total
    whole = np.floor(shares).astype(int)
    for i in np.argsort(whole - shares, kind="stable")[: total - whole.sum()]:
        whole[i] += 1
    return whole.tolist()


class FixedOrder:
    """The first `num` samples over and over: for validation, previews and overfitting one batch."""

    def __init__(self, num: int):
        self.num = num

    def __len__(self) -> int:
        return self.num

    def sample_id(self, position: int) -> int:
        return position % self.num

    def upcoming(self, position: int) -> list[int]:
        return []
