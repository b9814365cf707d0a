"""Which frames train, validate and test: by whole episodes, or by blocks where there are no episodes.

Never by frame: neighbouring frames of one episode are nearly the same picture, and a model that is tested on the
neighbours of its training frames looks better than it is.
"""

import hashlib
from collections.abc import Iterable
from typing import Literal

import numpy as np
from pydantic import Field, model_validator

from sightline.errors import UserError
from sightline.params import PartOfSection, Section

PARTS = ("train", "val", "test")
GUARD = "guard"  # a frame between two blocks, in no part


class SplitParams(Section):
    """How much goes to each part; ``train`` is the rest."""

    seed: int = Field(default=0, ge=0, description="which episodes go where; a bare folder is split in order")
    val: float = Field(default=0.15, gt=0, lt=1, description="share of the episodes (or frames of a bare folder)")
    test: float = Field(default=0.15, gt=0, lt=1, description="share of the episodes (or frames of a bare folder)")
    guard: int = Field(default=10, ge=0, description="frames left out on each side of a border between blocks")

    @model_validator(mode="after")
    def _leaves_train(self) -> "SplitParams":
        if self.val + self.test >= 1:
            raise ValueError(f"val + test must be below 1, not {self.val:g} + {self.test:g}: the rest is for training")
        return self


class DataPart(PartOfSection):
    """What the stages that read images take of the section ``data``."""

    on_error: Literal["fail", "skip"] = "fail"
    split: SplitParams = SplitParams()


def split_episodes(episodes: Iterable[int] | np.ndarray, params: SplitParams) -> dict[int, str]:
    """Map each episode to ``train``, ``val`` or ``test``, sorted by episode.

    A pure function of the set of episode ids and ``params``: neither the order nor repetitions matter, and
    no random generator whose stream might change with a version is asked. Every part gets at least one episode.
    Episodes are ranked by a hash; the first are for testing, the last for validation. So a further episode moves at
    most one other into or out of each of the two.

    Args:
        episodes: episode ids, one per frame or each once.

    Raises:
        UserError: fewer than three episodes.
    """
    unique = sorted({int(episode) for episode in episodes})
    if len(unique) < 3:
        names = f" ({', '.join(map(str, unique))})" if unique else ""
        raise UserError(f"{len(unique)} episodes{names}; three are needed, one each to train, validate and test")
    n_val, n_test = _counts(len(unique), params)
    ranked = sorted(unique, key=lambda episode: hashlib.sha256(f"{params.seed}:{episode}".encode()).digest())
    test, val = set(ranked[:n_test]), set(ranked[-n_val:])
    return {e: "test" if e in test else "val" if e in val else "train" for e in unique}


def split_blocks(n: int, params: SplitParams) -> np.ndarray:
    """Split ``n`` frames in recording order into one block each of train, val and test -> str [n].

    At each of the two borders ``2 * params.guard`` frames, half of them on each side, belong to no part (``guard``).
    The shares are of the frames that remain, and every part gets at least one.

    Raises:
        UserError: too few frames for three blocks and the guards.
    """
    kept = n - 4 * params.guard
    if kept < 3:
        raise UserError(
            f"{n} frames are too few to split into three blocks with {params.guard} frames left out on each side of a "
            f"border; {3 + 4 * params.guard} are needed, or a smaller split.guard"
        )
    n_val, n_test = _counts(kept, params)
    lengths = [kept - n_val - n_test, 2 * params.guard, n_val, 2 * params.guard, n_test]
    return np.repeat(["train", GUARD, "val", GUARD, "test"], lengths)


def _counts(n: int, params: SplitParams) -> tuple[int, int]:
    """Of ``n >= 3`` things, how many go to val and to test: rounded shares, such that each part gets at least one."""
    n_val, n_test = max(1, round(n * params.val)), max(1, round(n * params.test))
    while n_val + n_test > n - 1:
        n_val, n_test = (n_val - 1, n_test) if n_val > n_test else (n_val, n_test - 1)
    return n_val, n_test
