"""Features of frames as inputs of other models: a vector for each frame, a grid, or an image; the file tells which.

depth embeddings   HDF5 with ``embeddings`` float [N, D] and ``frame_id`` [N], as sightline embed writes it
grids              [N, P, C] in a file or a folder of shards, see `sightline.grids.store`
depth images       HDF5 with ``depth`` float [N, H, W] or [N, D, H, W] in [-1, 1], ``valid`` bool [N, H, W] and
                   ``frame_id`` [N], as sightline normalize writes it
"""

import hashlib
import json
from argparse import ArgumentParser
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import AfterValidator

from sightline.core.errors import UserError
from sightline.core.hdf5 import open_hdf5, require
from sightline.grids.store import GridRows, GridStore

KINDS = ("depth embeddings", "grids", "depth images")  # by `Feature.kind`
_OF_GRIDS = ("model", "pretrained", "weights_sha256", "tokens", "pool", "image_size", "preprocessing")


def _has_no_older_name(shapes: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    if "clip" in shapes:
        raise ValueError("an older version wrote it, which called its input of grids clip")
    return shapes


Extras = Annotated[dict[str, tuple[int, ...]], AfterValidator(_has_no_older_name)]  # shapes of a model's further inputs


@dataclass(frozen=True)
class FramesOf:
    """The frames that features are asked for.

    Args:
        frame_id: int64 [N].
        needed: bool [N]: the frames that will be asked for; the others may be missing, and get any numbers.
        source: for messages: what the frames are of.
        recording: what tells their recording from others, see `sightline.recording.frames.recording_key`; "" where
            nothing does.
    """

    frame_id: np.ndarray
    needed: np.ndarray
    source: str
    recording: str = ""

    @property
    def needed_ids(self) -> np.ndarray:
        """Frame ids, int64 [N], with one that is needed in place of those that are not."""
        return np.where(self.needed, self.frame_id, self.frame_id[self.needed][0])


class DepthRows:
    """Normalised depth of some frames as an array float32 [N, D, H, W], read when it is asked for.

    Pixels where nothing was measured are NaN.

    Args:
        path: for messages.
        depth, valid: memory maps of the file.
        rows: in the file, of each frame.
    """

    def __init__(self, path: Path, depth: np.ndarray, valid: np.ndarray, rows: np.ndarray) -> None:
        self._path, self._depth, self._valid, self._rows = path, depth, valid, rows
        channels = depth.shape[1] if depth.ndim == 4 else 1
        self.shape: tuple[int, ...] = (len(rows), channels, *depth.shape[-2:])

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        own = self._rows[rows]
        depth = np.array(self._depth[own], np.float32).reshape(-1, *self.shape[1:])
        if not np.isfinite(depth).all():
            raise UserError(f"{self._path}: depth: holds NaN or infinity; write it again")
        return np.where(self._valid[own][:, None], depth, np.float32(np.nan))


@dataclass(frozen=True)
class Feature:
    """A feature of some frames; its rows are read when they are asked for.

    Args:
        values: [N, D], [N, P, C] or [N, D, H, W].
        maker: hash of what decides the numbers beside the images (weights, settings); "" where the file has none.
        content_hash: of grids: BLAKE2b of each image file, hexadecimal, S32 [N].
    """

    path: Path
    values: np.ndarray | GridRows | DepthRows
    maker: str
    content_hash: np.ndarray | None = None

    @classmethod
    def open(cls, path: Path, frames: FramesOf) -> "Feature":
        """The rows of ``frames``.

        Raises:
            UserError: no such file, one of another kind or another recording, or without some of the frames that are
                needed.
        """
        if not path.exists():
            raise UserError(
                f"{path}: no such file; make it with sightline embed, sightline clip_grids or sightline normalize"
            )
        if path.is_dir():
            return cls._of_store(path, frames)
        with open_hdf5(path) as file:
            if "grids" in file:
                return cls._of_store(path, frames)
            _require_recording(path, str(file.attrs.get("recording", "")), frames)
            names = set(file)
            if {"embeddings", "frame_id"} <= names:
                own, values = file["frame_id"][:], file.rows("embeddings")
                return cls._of_embeddings(path, own, values, str(file.attrs.get("encoder_sha256", "")), frames)
            if not {"depth", "valid", "frame_id"} <= names or "preprocessing" not in file.attrs:
                raise UserError(f"{path}: holds none of {', '.join(KINDS)}; name a file that has one of them")
            own, depth, valid = file["frame_id"][:], file.rows("depth"), file.rows("valid")
            maker = hashlib.sha256(str(file.attrs["preprocessing"]).encode()).hexdigest()
        kinds = {"frame_id": (own, "i", 1), "depth": (depth, "f", depth.ndim), "valid": (valid, "b", 3)}
        require(path, kinds)
        if depth.ndim not in (3, 4) or depth.shape[-2:] != valid.shape[-2:]:
            raise UserError(f"{path}: images of {list(depth.shape[1:])}; write it again with sightline normalize")
        return cls(path, DepthRows(path, depth, valid, _rows_of(path, own, frames)), maker)

    @classmethod
    def _of_embeddings(cls, path: Path, own: np.ndarray, values: np.ndarray, maker: str, frames: FramesOf) -> "Feature":
        require(path, {"frame_id": (own, "i", 1), "embeddings": (values, "f", 2)})
        rows = _rows_of(path, own, frames)
        if len(own) != len(rows) or (rows != np.arange(len(rows))).any():
            values = values[rows]  # a copy; else they stay on disk
        if not np.isfinite(values).all():
            raise UserError(f"{path}: embeddings: holds NaN or infinity; write it again")
        return cls(path, values, maker)

    @classmethod
    def _of_store(cls, path: Path, frames: FramesOf) -> "Feature":
        store, ids = GridStore(path), frames.needed_ids
        _require_recording(path, store.recording, frames)
        _require_frames(path, store.image_ids, frames)
        made = json.dumps([store.attributes.get(name) for name in _OF_GRIDS], default=str)
        hashes = store.content_hash[store.rows(ids)]
        return cls(path, GridRows(store, ids), hashlib.sha256(made.encode()).hexdigest(), hashes)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one frame: (D,), (P, C) or (D, H, W)."""
        return tuple(self.values.shape[1:])

    @property
    def kind(self) -> int:
        """Which of `KINDS` it is."""
        return kind_of(self.shape)

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        return self.values[rows]


def add_features(parser: ArgumentParser) -> None:
    """Add the option that names features; the file tells of which kind one is."""
    parser.add_argument(
        "--feature", type=Path, action="append", default=[], metavar="PATH",
        help="embeddings of sightline embed, grids of sightline clip_grids or, for a fusion model, depth images of "
        "sightline normalize, as a further input; one of each kind",
    )  # fmt: skip


def kind_of(shape: Sequence[int]) -> int:
    """Which of `KINDS` has this shape of one frame."""
    return len(shape) - 1


def open_features(paths: Sequence[Path], frames: FramesOf, names: Sequence[str]) -> dict[str, Feature]:
    """Features by the name that a model has for their kind, sorted.

    Args:
        names: what the model calls the kinds that it takes, in the order of `KINDS`.

    Raises:
        UserError: two of a kind, a kind that the model does not take, and what `Feature.open` raises.
    """
    features: dict[str, Feature] = {}
    for path in paths:
        feature = Feature.open(path, frames)
        if feature.kind >= len(names):
            takes = " and ".join(KINDS[: len(names)])
            raise UserError(f"{path}: {KINDS[feature.kind]}, which this model does not take; it takes {takes}")
        other = features.setdefault(names[feature.kind], feature)
        if other is not feature:
            raise UserError(f"{path}: {KINDS[feature.kind]}, as {other.path}; a model takes one of each kind")
    return dict(sorted(features.items()))


def check_features(
    features: Mapping[str, Feature],
    shapes: Mapping[str, tuple[int, ...]],
    makers: Mapping[str, str],
    model: Path,
) -> None:
    """Raise `UserError` unless these are the features that a model was trained with.

    Args:
        shapes: of one frame, by name, of what ``model`` was trained with.
        makers: see `Feature`; what an older model does not name is not compared.
        model: for messages.
    """
    for name, feature in features.items():
        if name not in shapes:
            raise UserError(f"{feature.path}: {KINDS[feature.kind]}, but {model} was trained without; leave it out")
        if feature.shape != tuple(shapes[name]):
            raise UserError(
                f"{feature.path}: {_shown(feature.shape)} numbers for each frame, but {model} was trained with "
                f"{_shown(shapes[name])}; name the features that it was trained with"
            )
        if feature.maker and (makers.get(name) or feature.maker) != feature.maker:
            raise UserError(
                f"{feature.path}: made by another network, or with other settings, than the features that {model} was "
                "trained with; name those, or train again"
            )
    for name in sorted(set(shapes) - set(features)):
        kind = KINDS[kind_of(shapes[name])]
        raise UserError(f"{model}: was trained with {kind} as a further input; add --feature PATH of them")


def _rows_of(path: Path, own: np.ndarray, frames: FramesOf) -> np.ndarray:
    """Row in the file, whose frame ids are ``own``, of each of the frames."""
    _require_frames(path, own, frames)
    order = np.argsort(own)
    return order[np.searchsorted(own, frames.needed_ids, sorter=order)]


def _require_recording(path: Path, recording: str, frames: FramesOf) -> None:
    if recording and frames.recording and recording != frames.recording:
        raise UserError(
            f"{path}: made from another recording than {frames.source}, or before that one changed; make it from the "
            "same recording"
        )


def _require_frames(path: Path, present: np.ndarray, frames: FramesOf) -> None:
    wanted = np.unique(frames.needed_ids)
    missing = np.setdiff1d(wanted, present)
    if len(missing):
        raise UserError(
            f"{path}: lacks {len(missing)} of {len(wanted)} frames of {frames.source} (first {missing[0]}); make it "
            "from the same recording"
        )


def _shown(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))
