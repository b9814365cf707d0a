"""Which frames carry labels, and the batches of labelled and unlabelled frames."""

import hashlib
from collections.abc import Callable, Iterator
from typing import Annotated, Any, NamedTuple

import numpy as np
import torch
from pydantic import BeforeValidator
from torch import Tensor
from torch.utils.data import Dataset, Sampler
from tqdm import tqdm

from sightline.core.errors import UserError
from sightline.recording.frames import first_few
from sightline.segmentation.checks import without_masks
from sightline.segmentation.frames import IGNORE, SegmentationFrames
from sightline.training.loading import sent
from sightline.training.order import Draw
from sightline.training.processes import process_device, rank

Batch = dict[str, dict[str, Tensor]]
_BLOCK = 256  # images read before the progress bar moves


def _as_groups(value: Any) -> Any:
    """A list of names as text, whole numbers among them; checks what a union would not say in one line."""
    if isinstance(value, list | tuple):
        if not value or not all(isinstance(name, str) or type(name) is int for name in value):
            raise ValueError("labeled_groups must be a number above 0, a list of names, or labelled")
        return tuple(str(name) for name in value)
    if value is not None and value != "labelled" and (type(value) is not int or value < 1):
        raise ValueError(f"labeled_groups must be a number above 0, a list of names, or labelled, not {value!r}")
    return value


LabeledGroups = Annotated[int | str | tuple[str, ...] | None, BeforeValidator(_as_groups)]


def choose_labelled(
    frames: SegmentationFrames, groups: LabeledGroups, fraction: float | None, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the training frames whose masks are used, and of those that count as unlabelled: int64 each, ascending.

    Whole groups (episodes, patients) are labelled. Of a number or share, they are ranked by a hash of ``seed`` and
    their name, so that the groups of a smaller number are among those of a larger one.

    Args:
        groups: how many groups are labelled, their names, or ``labelled``: all that have masks; None: as ``fraction``
            says.
        fraction: share of the groups, of which at least one is labelled; None: all.

    Raises:
        UserError: no training frame has a mask, fewer groups with masks than asked for, groups that are not there or
            have no masks.
    """
    train = frames.rows("train")
    masked = train[frames.has_mask[train]]
    if not len(masked):
        raise UserError(f"{frames.name}: none of its {len(train)} training frames has a mask: no labelled data")
    if isinstance(groups, tuple):
        labelled = masked[np.isin(frames.group[masked].astype(str), _named(frames, groups))]
    elif groups == "labelled":
        labelled = masked
    else:
        names = np.unique(frames.group[masked]).tolist()
        share = 1.0 if fraction is None else fraction
        wanted = max(1, round(share * len(names))) if groups is None else int(groups)
        if wanted > len(names):
            raise UserError(
                f"{frames.name}: segmentation.labeled_groups is {wanted}, but {len(names)} training groups have masks"
            )
        ranked = sorted(names, key=lambda name: hashlib.sha256(f"{seed}:{name}".encode()).digest())
        labelled = masked[np.isin(frames.group[masked], ranked[:wanted])]
    return labelled, np.setdiff1d(train, labelled)


def _named(frames: SegmentationFrames, names: tuple[str, ...]) -> list[str]:
    """The names of groups, checked: each has training frames with masks."""
    groups, train = frames.group.astype(str), frames.split == "train"
    for name in names:
        parts = np.unique(frames.split[groups == name]).tolist()
        if not parts:
            shown = first_few(np.unique(groups[train]).tolist())
            raise UserError(f"{frames.name}: segmentation.labeled_groups: no group {name}; training groups are {shown}")
        if "train" not in parts:
            raise UserError(
                f"{frames.name}: segmentation.labeled_groups: {name} is of part {parts[0]}, not of train; name another"
            )
    masked = set(groups[train & frames.has_mask].tolist())
    if lacking := [name for name in names if name not in masked]:
        raise UserError(without_masks(frames, lacking))
    return list(names)


class StepDraw(NamedTuple):
    """What a step learns from."""

    labelled: Draw
    unlabelled: Draw | None

    @property
    def rows(self) -> np.ndarray:
        """Rows of both, labelled first."""
        return np.concatenate([draw.rows for draw in (self.labelled, self.unlabelled) if draw])


class StepBatches(Sampler[StepDraw]):
    """The steps of an epoch, each a batch of labelled rows and, with ``unlabelled``, one of unlabelled rows.

    Rows come in shuffled rounds, each whole round before the next begins. All is a pure function of (seed, epoch), and
    the labelled batches are the same with and without unlabelled ones. Under distributed training each process takes
    its share of every batch. The trainer calls `set_epoch`.

    Args:
        labelled, unlabelled: int64, rows to draw from; None gives no unlabelled batches.
        sizes: rows in a batch of one process, of each kind.
        chances: random numbers of each sample, of each kind.
        weights: probability of each labelled row; None shuffles in rounds.
    """

    def __init__(
        self,
        labelled: np.ndarray,
        unlabelled: np.ndarray | None,
        *,
        steps: int,
        sizes: tuple[int, int],
        chances: tuple[int, int],
        seed: int,
        weights: np.ndarray | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.labelled, self.unlabelled, self.steps, self.weights = labelled, unlabelled, steps, weights
        self.sizes, self.chances, self.seed, self.rank, self.world_size = sizes, chances, seed, rank, world_size
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration yields."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[StepDraw]:
        labelled = self._draws(0, self.labelled, self.weights)
        unlabelled = None if self.unlabelled is None else self._draws(1, self.unlabelled, None)
        for step in range(self.steps):
            yield StepDraw(labelled[step], unlabelled[step] if unlabelled else None)

    def _draws(self, kind: int, rows: np.ndarray, weights: np.ndarray | None) -> list[Draw]:
        rng, size = np.random.default_rng([self.seed, self.epoch, kind]), self.sizes[kind]
        count = self.steps * size * self.world_size
        if weights is None:
            rounds = [rng.permutation(rows) for _ in range(-(-count // len(rows)))]
            order = np.concatenate(rounds)[:count]
        else:
            order = rng.choice(rows, count, p=weights)
        chances = rng.random((count, self.chances[kind]), np.float32)
        mine = slice(self.rank, None, self.world_size)
        order, chances = order[mine].reshape(self.steps, size), chances[mine].reshape(self.steps, size, -1)
        return [Draw(*pair) for pair in zip(order, chances, strict=True)]


class FrameBatches(Dataset[Batch]):
    """Batches of frames that were read before: `StepDraw` or `Draw` -> tensors.

        labelled    image uint8 [B, channels, H, W], mask uint8 [B, H, W], chances float32 [B, K], and what
                    ``extras`` holds, by name
        unlabelled  the same without mask; where the draw has some

    Args:
        images: uint8 [N, channels, H, W], on whatever device.
        masks: uint8 [M, H, W] of the rows ``masked``, int64 [M], ascending.
        extras: further inputs [N, ...], by name.
        rows: int64 [N], ascending: what rows the images are of.
    """

    def __init__(
        self, images: Tensor, masks: Tensor, extras: dict[str, Tensor], rows: np.ndarray, masked: np.ndarray
    ) -> None:
        self.images, self.masks, self.extras, self.rows, self.masked = images, masks, extras, rows, masked

    @classmethod
    def read(
        cls, frames: SegmentationFrames, labelled: np.ndarray, unlabelled: np.ndarray, val: np.ndarray
    ) -> "FrameBatches":
        """All that a training looks at, read once; on a GPU where it takes less than half of its free memory."""
        rows, masked = np.unique(np.concatenate([labelled, unlabelled, val])), np.union1d(labelled, val)
        images, masks = _read(frames.images, rows, "images"), _read(frames.masks, masked, "masks")
        extras, device = frames.extras(rows), process_device()
        size = sum(array.nbytes for array in (images, masks, *extras.values()))
        if device.type == "cuda" and 2 * size > torch.cuda.mem_get_info(device)[0]:
            device = torch.device("cpu")
        further = {name: torch.from_numpy(values).to(device) for name, values in extras.items()}
        return cls(torch.from_numpy(images).to(device), torch.from_numpy(masks).to(device), further, rows, masked)

    def hashes(self) -> list[str]:
        """SHA-256 of images, masks and each of the further inputs."""
        arrays = [self.images, self.masks, *(self.extras[name] for name in sorted(self.extras))]
        return [_sha256(array) for array in arrays]

    def pixels(self, classes: int) -> np.ndarray:
        """Pixels of each class in each mask, int64 [M, C]."""
        counts = [torch.bincount(mask.flatten().int(), minlength=IGNORE + 1) for mask in self.masks]
        return torch.stack(counts).cpu().numpy()[:, :classes]

    def __getitem__(self, draw: StepDraw | Draw) -> Batch:
        if isinstance(draw, Draw):
            return {"labelled": self._frames(draw, True)}
        batch = {"labelled": self._frames(draw.labelled, True)}
        return batch if draw.unlabelled is None else batch | {"unlabelled": self._frames(draw.unlabelled, False)}

    def _frames(self, draw: Draw, labelled: bool) -> dict[str, Tensor]:
        places = sent(torch.from_numpy(np.searchsorted(self.rows, draw.rows)), self.images.device)
        batch = {"image": self.images[places], "chances": torch.from_numpy(draw.chances)}
        batch |= {name: values[places] for name, values in self.extras.items()}
        if labelled:
            places = sent(torch.from_numpy(np.searchsorted(self.masked, draw.rows)), self.masks.device)
            batch["mask"] = self.masks[places]
        return batch


def _read(read: Callable[[np.ndarray], np.ndarray], rows: np.ndarray, title: str) -> np.ndarray:
    """``read(rows)``, with a progress bar where there is a terminal."""
    none = read(rows[:0])
    values = np.empty((len(rows), *none.shape[1:]), none.dtype)
    with tqdm(
        desc=f"read {title}", total=len(rows), unit="img", mininterval=0.5, disable=True if rank() else None
    ) as bar:
        for start in range(0, len(rows), _BLOCK):
            some = rows[start : start + _BLOCK]
            values[start : start + _BLOCK] = read(some)
            bar.update(len(some))
    return values


def _sha256(array: Tensor) -> str:
    """Of the numbers of [N, ...], of which a block at a time is copied to the host."""
    digest = hashlib.sha256()
    for part in array.split(256):
        digest.update(np.ascontiguousarray(part.cpu().numpy()).data)
    return digest.hexdigest()


def class_weights(pixels_NC: np.ndarray) -> Tensor:
    """Factors of the classes, inverse roots of their shares, with a mean of 1 over those that are there; else 1."""
    share_C = pixels_NC.sum(axis=0) / pixels_NC.sum()
    there_C = share_C > 0
    weights_C = 1 / np.sqrt(np.where(there_C, share_C, 1))
    return torch.from_numpy(np.where(there_C, weights_C / weights_C[there_C].mean(), 1)).float()


def rarity(pixels_NC: np.ndarray) -> np.ndarray:
    """Probability of each frame: by its rarest class, as the inverse root of the share of frames that have it."""
    there_NC = pixels_NC > 0
    rarity_C = 1 / np.sqrt(there_NC.mean(axis=0).clip(min=1e-9))
    rarity_N = np.where(there_NC, rarity_C, 1).max(axis=1)
    return rarity_N / rarity_N.sum()
