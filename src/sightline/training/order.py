"""The order of the training data: a pure function of (seed, epoch), so that resuming changes nothing."""

from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler


class EpochBatches(Sampler[np.ndarray]):
    """Batches of shuffled rows with one random draw per sample, for one epoch at a time.

    Yields int64 [batch, 2] arrays of (row, draw): ``draw`` is uniform in 0..3 and decides the sample's augmentation,
    so that augmentation is as reproducible as the order. Under distributed training every process takes its share of
    the same order. The trainer calls `set_epoch`.

    Args:
        rows: int64 [M], rows to draw from.
        batch_size: rows in a batch of one process; a last batch of a single row is left out (batch normalisation
            cannot take it).
        seed: with the epoch, decides everything.
        rank, world_size: this process among those that train together.
    """

    def __init__(self, rows: np.ndarray, batch_size: int, seed: int, rank: int = 0, world_size: int = 1) -> None:
        self.rows, self.batch_size, self.seed = rows, batch_size, seed
        self.rank, self.world_size = rank, world_size
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration yields."""
        self.epoch = epoch

    def __len__(self) -> int:
        share = len(self.rows) // self.world_size
        return share // self.batch_size + (share % self.batch_size > 1)

    def __iter__(self) -> Iterator[np.ndarray]:
        rng = np.random.default_rng([self.seed, self.epoch])
        pairs = np.stack([rng.permutation(self.rows), rng.integers(0, 4, len(self.rows))], axis=1)
        share = len(self.rows) // self.world_size
        mine = pairs[self.rank : share * self.world_size : self.world_size]
        for start in range(0, len(self) * self.batch_size, self.batch_size):
            yield mine[start : start + self.batch_size]
