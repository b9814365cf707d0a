"""The order of the training data: a pure function of (seed, epoch), so that resuming changes nothing."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from torch.utils.data import Sampler


class Draw(NamedTuple):
    """Which samples make a batch, and what chance decides of each."""

    rows: np.ndarray  # int64 [B]
    chances: np.ndarray  # float32 [B, K], uniform in [0, 1)


class EpochBatches(Sampler[Draw]):
    """Batches of shuffled rows with random numbers for each sample, for one epoch at a time.

    The numbers decide the sample's augmentation, so that it is as reproducible as the order. Under distributed training
    every process takes its share of the same order. The trainer calls `set_epoch`.

    Args:
        rows: int64 [M], rows to draw from.
        batch_size: rows in a batch of one process; a last batch of a single row is left out (batch normalisation
            cannot take it).
        seed: with the epoch, decides everything.
        chances: random numbers for each sample.
        rank, world_size: this process among those that train together.
        only_whole: leave out a last batch that is short, unless it is the only one: a compiled network would be
            compiled again for its size. Its rows wait for another epoch.
    """

    def __init__(
        self,
        rows: np.ndarray,
        batch_size: int,
        seed: int,
        chances: int = 0,
        rank: int = 0,
        world_size: int = 1,
        only_whole: bool = False,
    ) -> None:
        self.rows, self.batch_size, self.seed, self.chances = rows, batch_size, seed, chances
        self.rank, self.world_size, self.only_whole = rank, world_size, only_whole
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration yields."""
        self.epoch = epoch

    def __len__(self) -> int:
        share = len(self.rows) // self.world_size
        whole = share // self.batch_size
        return whole if self.only_whole and whole else whole + (share % self.batch_size > 1)

    def __iter__(self) -> Iterator[Draw]:
        rng = np.random.default_rng([self.seed, self.epoch])
        order, chances = rng.permutation(self.rows), rng.random((len(self.rows), self.chances), np.float32)
        share = len(self.rows) // self.world_size
        mine = slice(self.rank, share * self.world_size, self.world_size)
        order, chances = order[mine], chances[mine]
        for start in range(0, len(self) * self.batch_size, self.batch_size):
            batch = slice(start, start + self.batch_size)
            yield Draw(order[batch], chances[batch])


def in_order(rows: np.ndarray, batch_size: int) -> list[Draw]:
    """Batches of ``rows`` as they come, without chance: for validation."""
    starts = range(0, len(rows), batch_size)
    return [Draw(part, np.empty((len(part), 0), np.float32)) for part in (rows[s : s + batch_size] for s in starts)]


def share_of(rows: np.ndarray, rank: int, world_size: int) -> np.ndarray:
    """What this process validates: every n-th of ``rows``; all, where one of the processes would have none.

    A process without frames would have no loss to give to the mean of all, for which the others wait.
    """
    return rows[rank::world_size] if len(rows) >= world_size else rows
