"""Pictures in data sets of HDF5 files, colour and depth: plain arrays, or encoded, a row of bytes for each.

colour          uint8 [T, H, W, 3]
depth           uint16, or floating point, [T, H, W] or [T, H, W, 1]
encoded         uint8 [T, L] filled up with zeros, or rows of their own length (objects, strings): JPEG, PNG, TIFF
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import h5py
import numpy as np

from sightline.core.hdf5 import DataFile, open_hdf5
from sightline.importers.options import DepthUnit
from sightline.importers.pictures import decode_depth, decode_picture, depth_counts, require_data, without_unsure

_BLOCK = 16  # pictures read at a time: chunks of the file may hold several
Kind = Literal["colour", "depth", "encoded", "other"]
_FORMATS = ((b"\xff\xd8", "JPEG"), (b"\x89PNG", "PNG"), (b"II", "TIFF"), (b"MM", "TIFF"))


def kind_of(dataset: object) -> Kind:
    """What a data set holds, by its shape and type."""
    if not isinstance(dataset, h5py.Dataset):
        return "other"
    shape: tuple[int, ...] = dataset.shape or ()
    dtype = dataset.dtype
    is_depth = dtype.kind == "f" or (dtype.kind == "u" and dtype.itemsize == 2)  # of either byte order
    if len(shape) == 4 and shape[3] == 3 and dtype == np.uint8:
        return "colour"
    if (len(shape) == 3 or (len(shape) == 4 and shape[3] == 1)) and is_depth:
        return "depth"
    encoded = (len(shape) == 2 and dtype == np.uint8) or (len(shape) == 1 and dtype.kind in "OSV")
    return "encoded" if encoded else "other"


@dataclass(frozen=True)
class StoredPictures:
    """Colour pictures of a data set.

    Args:
        bgr: their channels are blue, green, red.
        flip: their rows go from the bottom to the top.
    """

    path: Path
    key: str
    bgr: bool
    flip: bool

    def __iter__(self) -> Iterator[np.ndarray]:
        with reading(self.path) as file:
            for where, value in _rows(file, self.key):
                pixels = value if value.ndim == 3 else decode_picture(value.tobytes(), where)
                yield np.ascontiguousarray(pixels[:: -1 if self.flip else 1, :, :: -1 if self.bgr else 1])


@dataclass(frozen=True)
class StoredDepth:
    """Depth images of a data set, as counts of a millimetre.

    Args:
        unit: of floating point, see `depth_counts`.
        flip: their rows go from the bottom to the top.
        confidence: key of the data set with their confidence maps, see `without_unsure`.
    """

    path: Path
    key: str
    unit: DepthUnit | None
    flip: bool
    confidence: str | None

    def __iter__(self) -> Iterator[np.ndarray]:
        with reading(self.path) as file:
            maps = _rows(file, self.confidence) if self.confidence else None
            for where, value in _rows(file, self.key):
                counts = depth_counts(_depth_values(value, where), self.unit, where)
                if maps:
                    where, confidence = next(maps)
                    counts = without_unsure(counts, confidence, where)
                yield np.ascontiguousarray(counts[:: -1 if self.flip else 1])


def is_floating(file: DataFile, key: str) -> bool:
    """Whether the depth images of a data set are in floating point, by the first."""
    return any(_depth_values(value, where).dtype.kind == "f" for where, value in _rows(file, key, 1))


def encoding_of(file: DataFile, key: str) -> str:
    """``JPEG``, ``PNG`` or ``TIFF``, by the first bytes of the first picture; empty: none of them, or not encoded."""
    if kind_of(file[key]) != "encoded":
        return ""
    start = next((value.tobytes()[:4] for _, value in _rows(file, key, 1)), b"")
    return next((name for first, name in _FORMATS if start.startswith(first)), "")


def reading(path: Path) -> DataFile:
    """Open an HDF5 file. Raises `UserError` where it is missing, broken or a git-LFS pointer."""
    return open_hdf5(require_data(path))


def _depth_values(value: np.ndarray, where: str) -> np.ndarray:
    """uint16 or floating point [H, W] or [H, W, 1] of a row, decoded where it is encoded."""
    return value if value.ndim >= 2 else decode_depth(value.tobytes(), where)


def _rows(file: DataFile, key: str, count: int | None = None) -> Iterator[tuple[str, np.ndarray]]:
    """The rows of a data set, all or the first ``count``, each with its place for messages."""
    dataset = file[key]
    rows = len(dataset) if count is None else min(count, len(dataset))
    for start in range(0, rows, _BLOCK):
        for row, value in enumerate(dataset[start : min(start + _BLOCK, rows)], start=start):
            yield f"{file.filename}: {key}, picture {row}", np.asarray(value)
