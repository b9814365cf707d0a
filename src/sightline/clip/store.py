"""The file of grid features: HDF5, one for each camera or data set, whatever the split.

    grids         float16 or float32 [N, P, C]   P patches in row-major order, C channels
    image_ids     int64 [N]                      ascending
    content_hash  S32 [N]                        BLAKE2b of each image file, hexadecimal
    skipped_ids   int64 [M]                      images that were left out, because they cannot be read
    <image_id>_grids  [P, C]                     optional: the rows of ``grids`` again, as views, for captioning codes

The root attributes say what made the grids: ``model``, ``pretrained``, ``weights_sha256``, ``random_weights``,
``quick_gelu``, ``tokens``, ``pool``, ``grid``, ``model_grid``, ``image_size``, ``preprocessing`` (JSON), ``dtype``,
``precision``, ``device``, ``versions`` (JSON).
"""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from io import FileIO
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from torch import Tensor

from sightline.clip.params import Compression
from sightline.errors import UserError
from sightline.hdf5 import DataFile, create_contiguous, open_hdf5, open_rows, require

GPU_SHARE = 0.5  # of the free memory of a GPU that a store may take


class MissingImageError(UserError, KeyError):
    """A store does not hold an image that was asked for."""

    __str__ = Exception.__str__  # KeyError's puts quotes around the message


class GridStore:
    """A file of grid features, opened for reading.

    Rows are read one by one where they lie, so that its size does not matter (a memory map is as fast on rows that are
    in memory, and many times as slow on others); a compressed file is read through HDF5. It can be pickled, and used in
    forked and spawned DataLoader workers, each of which opens the file for itself. A plain file is read faster than
    workers can pass it on: use none (``num_workers=0``).

    Args:
        path: the file.
        model, tokens, grid: what the file must hold; None accepts anything.

    Raises:
        UserError: no such file, not a file of grids, or one of another model, token source or grid.
    """

    def __init__(
        self, path: Path | str, *, model: str | None = None, tokens: str | None = None, grid: int | None = None
    ) -> None:
        self.path = Path(path)
        with open_hdf5(self.path) as file:
            if not {"grids", "image_ids", "content_hash"} <= set_of_names(file):
                raise UserError(f"{path}: not a file of grid features; write one with stages/clip_grids.py")
            self.attributes: dict[str, Any] = {name: _plain(value) for name, value in file.attrs.items()}
            self.image_ids: np.ndarray = file["image_ids"][:]
            self.content_hash: np.ndarray = file["content_hash"][:]
            self.skipped_ids: np.ndarray = file["skipped_ids"][:]
            self.shape: tuple[int, int, int] = file["grids"].shape
            self.dtype: np.dtype = file["grids"].dtype
            self.compressed = file["grids"].chunks is not None
            self._rows_at: tuple[FileIO, int] | None = None if self.compressed else _rows_of(file)
            self._identity = _identity(file)
            if not (len(self.shape) == 3 and len(self.image_ids) == len(self.content_hash) == self.shape[0]):
                raise UserError(f"{path}: its data sets have different numbers of rows; write it again")
            if self.dtype not in (np.float16, np.float32) or not (np.diff(self.image_ids) > 0).all():
                raise UserError(f"{path}: its grids or image ids are not what its writer writes; write it again")
        require(self.path, {"image_ids": (self.image_ids, "i", 1), "content_hash": (self.content_hash, "S", 1)})
        self._check_expected({"model": model and model.replace("/", "-"), "tokens": tokens, "grid": grid})
        self._file: tuple[int, h5py.File] | None = None  # with the process that opened it
        self._resident: Tensor | bool | None = None  # False: it does not fit

    def _check_expected(self, expected: Mapping[str, Any]) -> None:
        for name, value in expected.items():
            if value is not None and self.attributes.get(name) != value:
                raise UserError(
                    f"{self.path}: {name} is {self.attributes.get(name)!r}, but {value!r} is expected; "
                    "extract the grids again, or change what expects them"
                )

    def __len__(self) -> int:
        return len(self.image_ids)

    def __contains__(self, image_id: int) -> bool:
        row = int(np.searchsorted(self.image_ids, image_id))
        return row < len(self) and self.image_ids[row] == image_id

    def __getitem__(self, image_id: int) -> np.ndarray:
        """Grid of one image, [P, C]. Raises `MissingImageError`."""
        return self._take(self.rows([image_id]))[0]

    def read(self, image_ids: Sequence[int] | np.ndarray) -> np.ndarray:
        """Grids of ``image_ids`` in their order, [B, P, C]. Raises `MissingImageError`."""
        return self._take(self.rows(image_ids))

    def read_tensor(self, image_ids: Sequence[int] | np.ndarray, device: torch.device | str = "cpu") -> Tensor:
        """`read`, as a tensor on ``device``.

        The first call for a GPU puts the whole store into its memory, where it fits into half of what is free.
        """
        device, rows = torch.device(device), self.rows(image_ids)
        if device.type == "cuda" and self._resident is None:
            free, _ = torch.cuda.mem_get_info(device)
            fits = int(np.prod(self.shape)) * self.dtype.itemsize <= GPU_SHARE * free
            self._resident = self._load(device) if fits else False
        if isinstance(self._resident, Tensor) and self._resident.device.type == device.type:
            return self._resident[torch.from_numpy(rows).to(device)]
        return torch.from_numpy(self._take(rows)).to(device, non_blocking=True)

    def rows(self, image_ids: Sequence[int] | np.ndarray) -> np.ndarray:
        """Row numbers of ``image_ids``, int64 [B]. Raises `MissingImageError`."""
        wanted = np.asarray(image_ids, np.int64)
        rows = np.searchsorted(self.image_ids, wanted)
        found = self.image_ids[np.minimum(rows, len(self) - 1)] == wanted
        if not found.all():
            missing = wanted[~found]
            why = "it could not be read when the file was made" if missing[0] in self.skipped_ids else "extract it"
            raise MissingImageError(
                f"{self.path}: no grid of image {missing[0]} ({len(missing)} of {len(wanted)} are missing); {why}"
            )
        return rows

    def blocks(self, size: int = 1024) -> Iterator[np.ndarray]:
        """All grids in the order of ``image_ids``, ``size`` at a time: [<= size, P, C]."""
        for start in range(0, len(self), size):
            yield self._take(np.arange(start, min(start + size, len(self))))

    def close(self) -> None:
        """Let go of the file; the next use opens it again."""
        if self._file is not None:
            self._file[1].close()
        if self._rows_at is not None:
            self._rows_at[0].close()
        self._rows_at = self._file = self._resident = None

    def __enter__(self) -> "GridStore":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_rows_at": None, "_file": None, "_resident": None}

    def __repr__(self) -> str:
        model, tokens = self.attributes.get("model"), self.attributes.get("tokens")
        return f"GridStore({str(self.path)!r}: {len(self):,} x {self.shape[1:]} {self.dtype}, {model}, {tokens})"

    def _take(self, rows: np.ndarray) -> np.ndarray:
        if not self.compressed:
            return self._read_plain(rows)
        if self._file is None or self._file[0] != os.getpid():
            load_codecs()
            self._file = os.getpid(), self._opened_again()
        grids, out = self._file[1]["grids"], np.empty((len(rows), *self.shape[1:]), self.dtype)
        for i, row in enumerate(rows):  # HDF5's own selection of many rows is forty times slower on chunks
            grids.read_direct(out, np.s_[row], np.s_[i])
        return out

    def _opened_again(self) -> DataFile:
        file = open_hdf5(self.path)
        if _identity(file) != self._identity:  # its rows may be those of other images
            file.close()
            raise UserError(f"{self.path}: has been replaced since it was opened; open it again")
        return file

    def _read_plain(self, rows: np.ndarray) -> np.ndarray:
        if self._rows_at is None:
            with self._opened_again() as file:
                self._rows_at = _rows_of(file)
        raw, start = self._rows_at
        out = np.empty((len(rows), *self.shape[1:]), self.dtype)
        content, size = out.reshape(-1).view(np.uint8).data, out[:1].nbytes
        for i, row in enumerate(rows.tolist()):
            if os.preadv(raw.fileno(), [content[i * size : (i + 1) * size]], start + row * size) != size:
                raise UserError(f"{self.path}: ends before its last grid; copy it again, or extract the grids again")
        return out

    def _load(self, device: torch.device) -> Tensor:
        resident = torch.empty(self.shape, dtype=getattr(torch, self.dtype.name), device=device)
        done = 0
        for block in self.blocks():
            resident[done : done + len(block)] = torch.from_numpy(block)
            done += len(block)
        return resident


def _identity(file: DataFile) -> tuple[int, int, int]:
    """Tells one file from another that takes its name."""
    about = os.fstat(file.id.get_vfd_handle())
    return about.st_dev, about.st_ino, about.st_mtime_ns


def _rows_of(file: DataFile) -> tuple[FileIO, int]:
    """The very file that HDF5 has open, to be read row by row, and where its grids begin."""
    return FileIO(f"/dev/fd/{file.id.get_vfd_handle()}"), file.rows("grids").offset


def set_of_names(file: h5py.File) -> set[str]:
    """Which of the store's own names are in ``file``, without listing a key for each image."""
    return {name for name in ("grids", "image_ids", "content_hash", "skipped_ids") if name in file}


def load_codecs() -> None:
    """Make HDF5 know the codecs that it does not bring. Raises `UserError` where the package is missing."""
    try:
        import hdf5plugin  # noqa: F401  (registers itself)
    except ImportError:
        raise UserError("hdf5plugin is not installed, which reads and writes blosc2; pip install hdf5plugin") from None


def write_store(
    path: Path,
    image_ids: np.ndarray,
    content_hash: Sequence[bytes],
    skipped_ids: Sequence[int],
    blocks: Iterable[np.ndarray],
    shape: tuple[int, int],
    attributes: Mapping[str, Any],
    keyed: bool,
    compression: Compression,
) -> None:
    """Write a store to ``path``.

    Args:
        image_ids: int64 [N], ascending; content_hash: N hashes of 32 hexadecimal digits; blocks: the grids in that
            order, in pieces [n, P, C] of any length; shape: (P, C).
        attributes: see the top of this module; ``dtype`` is that of the grids.
    """
    whole, dtype = (len(image_ids), *shape), np.dtype(attributes["dtype"])
    filled = {
        "image_ids": image_ids.astype(np.int64),
        "content_hash": np.array(content_hash, "S32"),
        "skipped_ids": np.array(skipped_ids, np.int64),
    }
    plain = compression == "none"
    create_contiguous(path, {"grids": (whole, dtype)} if plain else {}, filled, attributes)
    with h5py.File(path, "r+", libver=("earliest", "v110")) as file:
        if not plain:
            grids = file.create_dataset("grids", whole, dtype, chunks=(1, *shape), **_filter(compression))
            for start, block in _placed(blocks):
                for i, one in enumerate(block, start):
                    grids.write_direct(np.ascontiguousarray(one), dest_sel=np.s_[i])
        if keyed:
            _add_keys(file, image_ids, shape)
    if plain:
        rows = open_rows(path, "grids", "r+")
        for start, block in _placed(blocks):
            rows[start : start + len(block)] = block
        rows.flush()


def _placed(blocks: Iterable[np.ndarray]) -> Iterator[tuple[int, np.ndarray]]:
    start = 0
    for block in blocks:
        yield start, block
        start += len(block)


def _filter(compression: Compression) -> dict[str, Any]:
    if compression == "gzip":
        return {"compression": "gzip", "compression_opts": 4, "shuffle": True}  # a higher level saves nothing more
    load_codecs()
    import hdf5plugin

    return dict(hdf5plugin.Blosc2(cname="zstd", clevel=5, filters=hdf5plugin.Blosc2.SHUFFLE))


def _add_keys(file: h5py.File, image_ids: np.ndarray, shape: tuple[int, int]) -> None:
    """A virtual data set for each image, which is a row of ``grids``: the data are not there twice."""
    grids = file["grids"].id
    kind, one, rows = grids.get_type(), h5py.h5s.create_simple(shape), grids.get_space()
    for row, image_id in enumerate(image_ids.tolist()):
        rows.select_hyperslab((row, 0, 0), (1, *shape))
        creation = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        creation.set_obj_track_times(False)  # equal content, equal bytes
        creation.set_virtual(one, b".", b"grids", rows)
        h5py.h5d.create(file.id, f"{image_id}_grids".encode(), kind, one, creation)


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value
