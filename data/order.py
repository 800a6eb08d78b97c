"""Which sample stands at which place of the endless training stream.

N samples in all shards; a position counts samples from the start of training and never starts again, so that
epoch = position // N.  The order is a pure function of (seed, position): resuming is arithmetic, not replay.
"""

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
        self._epoch = lru_cache(maxsize=2)(self._epoch_layout)
        self._block = lru_cache(maxsize=2)(self._block_ids)

    def __len__(self) -> int:
        return int(self.first_id[-1])

    def __getstate__(self) -> tuple:
        return self.shard_sizes, self.seed, self.block  # caches do not travel to workers

    def __setstate__(self, state: tuple) -> None:
        self.__init__(*state)

    def sample_id(self, position: int) -> int:
        """The id, in [0, N), of the sample at a position of the stream."""
        epoch, index = divmod(position, len(self))
        _, block_ends = self._epoch(epoch)
        block = int(np.searchsorted(block_ends, index, side="right"))
        start = int(block_ends[block - 1]) if block else 0
        return int(self._block(epoch, block)[index - start])

    def _epoch_layout(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The order of the shards in this epoch, and where each block of shards ends."""
        shards = keyed_rng(self.seed, epoch << 32, Purpose.ORDER).permutation(len(self.shard_sizes))
        ends = np.cumsum(self.shard_sizes[shards])
        last_of_block = np.minimum(np.arange(self.block, len(ends) + self.block, self.block), len(ends)) - 1
        return shards, ends[last_of_block]

    def _block_ids(self, epoch: int, block: int) -> np.ndarray:
        shards, _ = self._epoch(epoch)
        members = shards[block * self.block : (block + 1) * self.block]
        ids = np.concatenate([np.arange(self.first_id[s], self.first_id[s + 1]) for s in members])
        return keyed_rng(self.seed, (epoch << 32) + block + 1, Purpose.ORDER).permutation(ids)


class FixedOrder:
    """The first `num` samples over and over: for validation, previews and overfitting one batch."""

    def __init__(self, num: int):
        self.num = num

    def __len__(self) -> int:
        return self.num

    def sample_id(self, position: int) -> int:
        return position % self.num
