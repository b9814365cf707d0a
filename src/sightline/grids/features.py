"""Precomputed features of frames as inputs of other models: a vector for each frame, or a grid; the file tells which.

depth embeddings   HDF5 with ``embeddings`` float [N, D] and ``frame_id`` [N], as stages/embed.py writes it
grids              [N, P, C] in a file or a folder of shards, see `sightline.grids.store`
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

KINDS = ("depth embeddings", "grids")  # by `Feature.is_grid`
_OF_GRIDS = ("model", "pretrained", "weights_sha256", "tokens", "pool", "image_size", "preprocessing")


def _has_no_older_name(shapes: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    if "clip" in shapes:
        raise ValueError("an older version wrote it, which called its input of grids clip")
    return shapes


Extras = Annotated[dict[str, tuple[int, ...]], AfterValidator(_has_no_older_name)]  # shapes of a model's further inputs


@dataclass(frozen=True)
class Feature:
    """A feature of some frames; its rows are read when they are asked for.

    Args:
        values: [N, D] or [N, P, C].
        maker: hash of what decides the numbers beside the images (weights, settings); "" where the file has none.
        content_hash: of grids: BLAKE2b of each image file, hexadecimal, S32 [N].
    """

    path: Path
    values: np.ndarray | GridRows
    maker: str
    content_hash: np.ndarray | None = None

    @classmethod
    def open(cls, path: Path, frame_id: np.ndarray, needed: np.ndarray, source: str) -> "Feature":
        """The rows of ``frame_id``, int64 [N].

        Args:
            needed: bool [N]: the frames that will be asked for; the others may be missing, and get any numbers.
            source: for messages: what the frames are of.

        Raises:
            UserError: no such file, one of another kind, or without some of the frames that are needed.
        """
        if not path.exists():
            raise UserError(f"{path}: no such file; make it with stages/embed.py or stages/clip_grids.py")
        ids = np.where(needed, frame_id, frame_id[needed][0])
        if path.is_dir():
            return cls._of_store(path, ids, source)
        with open_hdf5(path) as file:
            if "grids" in file:
                return cls._of_store(path, ids, source)
            if not {"embeddings", "frame_id"} <= set(file):
                raise UserError(f"{path}: holds neither {' nor '.join(KINDS)}; name a file that has one of them")
            own, values = file["frame_id"][:], file.rows("embeddings")
            maker = str(file.attrs.get("encoder_sha256", ""))
        require(path, {"frame_id": (own, "i", 1), "embeddings": (values, "f", 2)})
        _require_frames(path, own, ids, source)
        order = np.argsort(own)
        rows = order[np.searchsorted(own, ids, sorter=order)]
        if len(own) != len(rows) or (rows != np.arange(len(rows))).any():
            values = values[rows]  # a copy; else they stay on disk
        if not np.isfinite(values).all():
            raise UserError(f"{path}: embeddings: holds NaN or infinity; write it again")
        return cls(path, values, maker)

    @classmethod
    def _of_store(cls, path: Path, ids: np.ndarray, source: str) -> "Feature":
        store = GridStore(path)
        _require_frames(path, store.image_ids, ids, source)
        made = json.dumps([store.attributes.get(name) for name in _OF_GRIDS], default=str)
        hashes = store.content_hash[store.rows(ids)]
        return cls(path, GridRows(store, ids), hashlib.sha256(made.encode()).hexdigest(), hashes)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one frame: (D,) or (P, C)."""
        return tuple(self.values.shape[1:])

    @property
    def is_grid(self) -> bool:
        """Whether it is a grid for each frame, rather than a vector."""
        return len(self.shape) == 2

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        return self.values[rows]


def add_features(parser: ArgumentParser) -> None:
    """Add the option that names features; the file tells of which kind one is."""
    parser.add_argument(
        "--feature", type=Path, action="append", default=[], metavar="PATH",
        help="embeddings of stages/embed.py or grids of stages/clip_grids.py, as a further input; one of each kind",
    )  # fmt: skip


def open_features(
    paths: Sequence[Path], frame_id: np.ndarray, needed: np.ndarray, source: str, names: tuple[str, str]
) -> dict[str, Feature]:
    """Features by the name that a model has for their kind, sorted.

    Args:
        frame_id, needed, source: see `Feature.open`.
        names: what the model calls vectors and grids.

    Raises:
        UserError: two of a kind, and what `Feature.open` raises.
    """
    features: dict[str, Feature] = {}
    for path in paths:
        feature = Feature.open(path, frame_id, needed, source)
        other = features.setdefault(names[feature.is_grid], feature)
        if other is not feature:
            raise UserError(f"{path}: {KINDS[feature.is_grid]}, as {other.path}; a model takes one of each kind")
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
            raise UserError(f"{feature.path}: {KINDS[feature.is_grid]}, but {model} was trained without; leave it out")
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
        kind = KINDS[len(shapes[name]) == 2]
        raise UserError(f"{model}: was trained with {kind} as a further input; add --feature PATH of them")


def _require_frames(path: Path, present: np.ndarray, wanted: np.ndarray, source: str) -> None:
    wanted = np.unique(wanted)
    missing = np.setdiff1d(wanted, present)
    if len(missing):
        raise UserError(
            f"{path}: lacks {len(missing)} of {len(wanted)} frames of {source} (first {missing[0]}); make it from the "
            "same recording"
        )


def _shown(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))
