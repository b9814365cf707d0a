"""A file of grid features, as `sightline.clip.store` writes it: HDF5, whatever the split.

    grids         float16 or float32 [N, P, C]   P patches in row-major order, C channels
    image_ids     int64 [N]                      ascending
    image_names   UTF-8 [N]                      file name of each image without its suffix, or its text id
    content_hash  S32 [N]                        BLAKE2b of each image file, hexadecimal
    skipped_ids   int64 [M]                      images left out because they cannot be read
    <image_id>_<word> [P, C]                     optional: the rows of ``grids`` again, as views, for captioning codes
                                                 that ask for <image_id>_grids or <image_id>_features

The root attributes say what made the grids: ``model``, ``pretrained``, ``weights_sha256``, ``random_weights``,
``tokens`` (of CLIP: raw, ln_post, projected; map: the last feature map of a network of timm), ``pool``, ``grid``,
``model_grid``, ``image_size``, ``preprocessing`` (JSON), ``dtype``, ``precision``, ``device``, ``versions`` (JSON);
those of CLIP also ``quick_gelu`` and ``positions`` (random, as trained, or interpolated from which grid).
``recording`` stands in a file that is a whole store of a recording's frames.

A whole store is such a file, or a folder of them; `sightline.grids.store` reads both.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from sightline.core.errors import UserError
from sightline.core.hdf5 import DataFile, open_hdf5, require
from sightline.grids.rows import RowReader


class GridFile:
    """One file of grid features, opened for reading.

    Only the rows asked for are read, past HDF5, so that its size does not matter; a compressed file needs HDF5.

    Args:
        path: the file.

    Raises:
        UserError: no such file, or not a file of grids.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with open_hdf5(path) as file:
            if not all(name in file for name in ("grids", "image_ids", "content_hash")):
                raise UserError(f"{path}: not a file of grid features; write one with sightline clip_grids")
            self.attributes: dict[str, Any] = {name: _plain(value) for name, value in file.attrs.items()}
            self.image_ids: np.ndarray = file["image_ids"][:]
            self.content_hash: np.ndarray = file["content_hash"][:]
            self.image_names = _names(file)
            self.skipped_ids: np.ndarray = file["skipped_ids"][:]
            self.shape: tuple[int, int, int] = file["grids"].shape
            self.dtype: np.dtype = file["grids"].dtype
            self.compressed = file["grids"].chunks is not None
            self._rows: RowReader | None = None if self.compressed else RowReader(file, "grids")
            self._identity = _identity(file)
            if not (len(self.shape) == 3 and len(self.image_ids) == len(self.content_hash) == self.shape[0]):
                raise UserError(f"{path}: its data sets have different numbers of rows; write it again")
            if self.image_names is not None and len(self.image_names) != len(self.image_ids):
                raise UserError(f"{path}: image_names: {len(self.image_names)} for {len(self.image_ids)} images")
            if self.dtype not in (np.float16, np.float32) or not (np.diff(self.image_ids) > 0).all():
                raise UserError(f"{path}: its grids or image ids are not what its writer writes; write it again")
        require(path, {"image_ids": (self.image_ids, "i", 1), "content_hash": (self.content_hash, "S", 1)})
        self._file: tuple[int, h5py.File] | None = None  # with the process that opened it

    def read(self, rows: np.ndarray, out: np.ndarray, places: np.ndarray, mapped: bool) -> None:
        """Put the grids of ``rows`` [B] into ``out`` [.., P, C] at ``places`` [B], which ascend.

        Args:
            mapped: whether through a memory map, see `sightline.grids.rows`; a compressed file never is.
        """
        if self.compressed:
            grids = self._through_hdf5()["grids"]
            for row, place in zip(rows.tolist(), places.tolist(), strict=True):
                grids.read_direct(out, np.s_[row], np.s_[place])  # HDF5's own selection of rows is 40 times slower
            return
        if self._rows is None:
            with self._opened_again() as file:
                self._rows = RowReader(file, "grids")
        self._rows.read(rows, out, places, mapped)

    def close(self) -> None:
        """Let go of the file; the next use opens it again."""
        if self._file is not None:
            self._file[1].close()
        if self._rows is not None:
            self._rows.close()
        self._rows = self._file = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_rows": None, "_file": None}

    def _through_hdf5(self) -> h5py.File:
        if self._file is None or self._file[0] != os.getpid():
            load_codecs()
            self._file = os.getpid(), self._opened_again()
        return self._file[1]

    def _opened_again(self) -> DataFile:
        file = open_hdf5(self.path)
        if _identity(file) != self._identity:  # its rows may be those of other images
            file.close()
            raise UserError(f"{self.path}: has been replaced since it was opened; open it again")
        return file


def content_key(image_ids: np.ndarray, content_hash: np.ndarray, skipped_ids: np.ndarray, made: Mapping) -> str:
    """32 hexadecimal digits that differ for files of other images or other settings."""
    key = hashlib.blake2b(json.dumps(dict(made), sort_keys=True).encode(), digest_size=16)
    for values, kind in ((image_ids, np.int64), (content_hash, "S32"), (skipped_ids, np.int64)):
        key.update(np.ascontiguousarray(values, kind).data)
    return key.hexdigest()


def _names(file: DataFile) -> np.ndarray | None:
    """UTF-8 names, bytes [N]; None in files of older versions."""
    if "image_names" not in file:
        return None
    names = np.asarray(file["image_names"][:])
    if names.dtype.kind != "S" or names.ndim != 1:
        raise UserError(f"{file.filename}: image_names: {names.dtype} {list(names.shape)}, expected text")
    return names


def load_codecs() -> None:
    """Register the codecs that HDF5 does not bring. Raises `UserError` if their package is missing."""
    try:
        import hdf5plugin  # noqa: F401  (registers itself)
    except ImportError:
        raise UserError("blosc2 needs the package hdf5plugin, which is not installed; pip install hdf5plugin") from None


def _identity(file: DataFile) -> tuple[int, int, int]:
    """Differs when another file has taken this one's name."""
    about = os.fstat(file.id.get_vfd_handle())
    return about.st_dev, about.st_ino, about.st_mtime_ns


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value
