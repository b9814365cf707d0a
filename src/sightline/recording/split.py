"""Which frames train, validate and test: by whole episodes, or by blocks where there are no episodes.

A recording may say it itself, in the column ``split`` of its table; else the seed decides.

Never by frame: neighbouring frames of one episode are nearly the same picture, and a model that is tested on the
neighbours of its training frames looks better than it is.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import numpy as np
from pydantic import Field, model_validator

from sightline.core.errors import UserError
from sightline.core.params import Section

PARTS = ("train", "val", "test")
GUARD = "guard"  # a frame between two blocks, in no part


class SplitParams(Section):
    """Shares of validation and test, by whole episodes; a column split of frames.parquet wins."""

    seed: int = Field(
        0, ge=0, description="draws the split, unless there is a column split; a bare folder is split in order"
    )
    val: float = Field(
        0.2,
        ge=0,
        lt=1,
        description="share of episodes (or of a bare folder) for validation; a column split wins",
    )
    test: float = Field(
        0.25,
        ge=0,
        lt=1,
        description="share of episodes (or of a bare folder) for testing; a column split wins; 0: none",
    )
    guard: int = Field(10, ge=0, description="frames left out on each side of a border between blocks of a folder")
    folds: int = Field(
        0, ge=0, description="blocks to cut a bare folder into, one of them for testing; 0: split by shares"
    )
    fold: int = Field(0, ge=0, description="the fold for testing, from 0")

    @model_validator(mode="after")
    def _leaves_train(self) -> "SplitParams":
        if self.val + self.test >= 1:
            raise ValueError(f"val + test must be below 1, not {self.val:g} + {self.test:g}: the rest is for training")
        if self.folds == 1 or (self.folds and self.fold >= self.folds):
            raise ValueError(f"folds must be 0 or at least 2, and fold below it, not {self.folds} and {self.fold}")
        return self

    @property
    def parts(self) -> tuple[str, ...]:
        """The parts that get anything: train, and those with a share."""
        return ("train", *(("val",) if self.val else ()), *(("test",) if self.test else ()))


class DataParams(Section):
    """The recording, and which of its frames train, validate and test."""

    root: str = Field("data/demo", description="the recording: recording.json, frames.parquet and folders of images")
    on_error: Literal["fail", "skip"] = Field(
        "fail", description="broken or missing images: fail (list all of them), or skip (leave them out, count them)"
    )
    split: SplitParams = SplitParams()


def split_episodes(
    episodes: Iterable[int] | np.ndarray,
    params: SplitParams,
    *,
    called: str = "episodes",
    names: Sequence[object] | None = None,
) -> dict[int, str]:
    """Map each episode to ``train``, ``val`` or ``test``, sorted by episode.

    A pure function of the set of episode ids and ``params``: neither order nor repetitions matter, and it uses no
    random generator, whose stream might change with a version. Every part with a share gets at least one episode.
    Episodes are ranked by a hash; the first are for testing, the last for validation. So one more episode moves at
    most one other into or out of each of the two.

    Args:
        episodes: episode ids, one per frame or each once.
        called: for messages: what they are.
        names: for messages: their own names, in the order of their ids; None: the ids.

    Raises:
        UserError: fewer episodes than parts.
    """
    unique = sorted({int(episode) for episode in episodes})
    if len(unique) < len(params.parts):
        listed = f" ({', '.join(map(str, names or unique))})" if unique else ""
        raise UserError(
            f"{len(unique)} {called}{listed} cannot be split into {', '.join(params.parts)}; {len(params.parts)} are "
            "needed, or a share of 0, e.g. data.split.test=0"
        )
    n_val, n_test = _counts(len(unique), params)
    ranked = sorted(unique, key=lambda episode: hashlib.sha256(f"{params.seed}:{episode}".encode()).digest())
    test, val = set(ranked[:n_test]), set(ranked[len(ranked) - n_val :])
    return {e: "test" if e in test else "val" if e in val else "train" for e in unique}


def complete_split(named: Mapping[int, str], params: SplitParams) -> dict[int, str]:
    """Map each episode to its part, where the source of the episodes names one, sorted by episode.

    The source's parts stay, with one exception: where it names no test (or no val) episodes and that part has a share,
    they are drawn from its train episodes as `split_episodes` does: a pure function of those, and ``params``.

    Args:
        named: episode -> ``train``, ``val`` or ``test``, as the source says.

    Raises:
        UserError: fewer train episodes than parts to fill from them.
    """
    train = [episode for episode, part in named.items() if part == "train"]
    shares = {part: 0.0 for part in ("val", "test") if part in named.values()}
    drawn = split_episodes(train, params.model_copy(update=shares), called="train episodes of the column split")
    return dict(sorted((dict(named) | drawn).items()))


def split_blocks(n: int, params: SplitParams) -> np.ndarray:
    """Split ``n`` frames in recording order into one block for each part, train before val before test -> str [n].

    At each border ``2 * params.guard`` frames, half of them on each side, belong to no part (``guard``). The shares
    are of the frames that remain, and every part with a share gets at least one.

    With ``params.folds``, block ``params.fold`` of that many equal ones is for testing, whole; of the rest, the end
    of the sequence that is farther from it is for validation, and at each border ``guard`` frames are left out.

    Raises:
        UserError: too few frames for the blocks and the guards.
    """
    if params.folds:
        return _split_fold(n, params)
    remaining = n - 2 * params.guard * (len(params.parts) - 1)
    if remaining < len(params.parts):
        raise UserError(
            f"{n} frames are too few to split into {', '.join(params.parts)} with {params.guard} frames left out on "
            f"each side of a border; {n - remaining + len(params.parts)} are needed, or a smaller data.split.guard"
        )
    n_val, n_test = _counts(remaining, params)
    blocks = [np.full(remaining - n_val - n_test, "train")]
    for part, length in (("val", n_val), ("test", n_test)):
        blocks += [np.full(2 * params.guard, GUARD), np.full(length, part)] if part in params.parts else []
    return np.concatenate(blocks)


def counted(split: np.ndarray) -> str:
    """How many frames are in each part: ``train 11, val 4, test 5, left out between them 40 (data.split.guard)``."""
    counts = {part: int((split == part).sum()) for part in PARTS}
    guarded = int((split == GUARD).sum())
    left_out = f", left out between them {guarded} (data.split.guard)" if guarded else ""
    return ", ".join(f"{part} {count}" for part, count in counts.items()) + left_out


def _split_fold(n: int, params: SplitParams) -> np.ndarray:
    start, end = (n * k // params.folds for k in (params.fold, params.fold + 1))
    n_val = round((n - (end - start)) * params.val)
    parts = np.full(n, "train")
    at_end = n - end >= start  # more frames lie behind the test block than before it
    border = n - n_val if at_end else n_val
    parts[max(0, border - params.guard) : border + params.guard] = GUARD if n_val else "train"
    parts[max(0, start - params.guard) : end + params.guard] = GUARD
    parts[slice(border, n) if at_end else slice(0, border)] = "val"
    parts[start:end] = "test"
    wanted = {"train", "test"} | ({"val"} if params.val else set())
    if n_val > max(start, n - end) - 2 * params.guard or not wanted <= set(parts.tolist()):
        raise UserError(
            f"{n} frames are too few for {params.folds} folds with {params.guard} frames left out on each side of a "
            "border; take fewer data.split.folds or a smaller data.split.guard"
        )
    return parts


def _counts(n: int, params: SplitParams) -> tuple[int, int]:
    """Of ``n`` things, how many go to val and to test: rounded shares, such that each part with a share gets one."""
    n_val, n_test = (max(share > 0, round(n * share)) for share in (params.val, params.test))
    while n_val + n_test > n - 1:
        n_val, n_test = (n_val - 1, n_test) if n_val > n_test else (n_val, n_test - 1)
    return int(n_val), int(n_test)
