"""HDF5 files with contiguous data sets that are filled in place, by row, by several processes.

HDF5 allows one writer, and a killed writer breaks the file. So we create the whole file first (layout, attributes,
allocated space) and close it; rows are then written through memory maps at the data sets' offsets. The file is valid
HDF5 at every moment, an interrupted run can continue, and equal content gives equal bytes.
"""

import errno
import itertools
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

import h5py
import numpy as np

from sightline.core.errors import UserError
from sightline.core.files import require_file

_SMALL = 2**26  # bytes that a data set may declare in any file
_DEFLATE = 1100  # gzip makes data smaller by at most 1032 times
_HELD = (errno.EAGAIN, errno.EACCES)  # another process has the lock; other errors: there are no locks
_UNEXPECTED = (OSError, RuntimeError, LookupError, TypeError, ValueError, AttributeError)


class DataFile(h5py.File):
    """An HDF5 file that we do not trust, for reading.

    Links to other files are refused, and so are data sets whose values lie in other files, or that declare far more
    than the file holds: a few bytes could ask for terabytes of memory. Whatever fails while the file is open becomes a
    `UserError`, so that a reader need not check each thing that it reads.
    """

    def __contains__(self, name: Any) -> bool:
        self._check_links(name)
        return super().__contains__(name)

    def __getitem__(self, name: Any) -> Any:
        self._check_links(name)
        item = super().__getitem__(name)
        if isinstance(item, h5py.Dataset):
            _check_dataset(Path(self.filename), item)
        return item

    def get(self, name: Any, default: Any = None, **options: Any) -> Any:  # h5py's goes past __getitem__
        if options:
            return super().get(name, default, **options)
        if name not in self:
            return default
        return self[name]

    def _check_links(self, name: str) -> None:
        """Raise `UserError` where a link on the way to ``name`` leaves the file; it is not followed."""
        for place in itertools.accumulate(filter(None, name.split("/")), "{}/{}".format):
            if not self.id.links.exists(place.encode()):
                return
            if self.id.links.get_info(place.encode()).type == h5py.h5l.TYPE_EXTERNAL:
                raise UserError(f"{self.filename}: {place}: a link to another file; copy the data into this one")

    def rows(self, name: str) -> np.memmap:
        """Memory map of a contiguous data set of the open file, even if another file has taken its name since.

        Raises:
            UserError: no such data set, or one that is not contiguous.
        """
        offset, dataset = _placed(self, name)
        with open(f"/dev/fd/{self.id.get_vfd_handle()}", "rb") as plain:  # anew: a duplicate would keep HDF5's lock
            return np.memmap(plain, dataset.dtype, "r", offset, dataset.shape)

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        path = self.filename if self.id else ""
        super().__exit__(kind, error, trace)
        if isinstance(error, _UNEXPECTED) and not isinstance(error, UserError) and path:
            raise UserError(f"{path}: not as it was written ({' '.join(str(error).split())}); write it again") from None


def require(path: Path, kinds: Mapping[str, tuple[np.ndarray, str, int]]) -> None:
    """Raise `UserError` naming the first data set of ``kinds`` that is not what its reader expects.

    Args:
        kinds: name -> (values, their kind as numpy's ``dtype.kind`` (several letters: any), number of dimensions);
            all have as many rows as the first. NaN and infinity are refused, too, except in memory maps.
    """
    rows = None
    for name, (values, kind, dimensions) in kinds.items():
        if values.dtype.kind not in kind or values.ndim != dimensions or len(values) != (rows or len(values)):
            raise UserError(f"{path}: {name}: {values.dtype} {list(values.shape)} is not what its writer writes there")
        if "f" in kind and not isinstance(values, np.memmap) and not np.isfinite(values).all():
            raise UserError(f"{path}: {name}: holds NaN or infinity; write it again")
        rows = rows or len(values)
    if not rows:
        raise UserError(f"{path}: holds no rows; write it again")


def _check_dataset(path: Path, dataset: h5py.Dataset) -> None:
    elsewhere = [source.file_name for source in dataset.virtual_sources()] if dataset.is_virtual else []
    elsewhere = [name for name in elsewhere if name != "."] + [name for name, *_ in dataset.external or ()]
    if elsewhere:
        raise UserError(
            f"{path}: {dataset.name}: its values lie in another file, {elsewhere[0]}; copy them into this one"
        )
    declared, held = math.prod(dataset.shape or (0,)) * dataset.dtype.itemsize, path.stat().st_size
    if declared > _SMALL and declared > _DEFLATE * held:
        raise UserError(
            f"{path}: {dataset.name}: declares {declared:,} bytes, but the file has {held:,}; write it again"
        )


def create_contiguous(
    path: Path,
    empty: Mapping[str, tuple[tuple[int, ...], Any]],
    filled: Mapping[str, np.ndarray],
    attributes: Mapping[str, Any],
) -> None:
    """Create an HDF5 file.

    Args:
        path: the file; replaced where it exists.
        empty: name -> (shape, dtype) of data sets to be filled through `open_rows`.
        filled: name -> values of data sets written now.
        attributes: attributes of the root group.
    """
    creation = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    creation.set_layout(h5py.h5d.CONTIGUOUS)
    creation.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    creation.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    creation.set_obj_track_times(False)  # equal content, equal bytes
    with open_for_writing(path, "w") as file:
        for name, (shape, dtype) in empty.items():
            kind = h5py.h5t.py_create(np.dtype(dtype), logical=True)
            h5py.h5d.create(file.id, name.encode(), kind, h5py.h5s.create_simple(shape), creation)
        for name, values in filled.items():
            file.create_dataset(name, data=values)
        file.attrs.update(attributes)
    if hasattr(os, "posix_fallocate"):  # else writing to a map on a full disk would kill the process
        with open(path, "r+b") as plain:
            os.posix_fallocate(plain.fileno(), 0, os.fstat(plain.fileno()).st_size)


def open_rows(path: Path, name: str, mode: str = "r") -> np.memmap:
    """Memory map of a contiguous data set -> array of the data set's shape and dtype; ``mode`` is "r" or "r+".

    Raises:
        UserError: no such file, not an HDF5 file, no such data set, or a data set that is not contiguous.
    """
    with open_hdf5(path) as file:
        if mode == "r":
            return file.rows(name)
        offset, dataset = _placed(file, name)
        return np.memmap(path, dtype=dataset.dtype, mode=mode, offset=offset, shape=dataset.shape)  # type: ignore[call-overload]


def _placed(file: DataFile, name: str) -> tuple[int, h5py.Dataset]:
    """Offset of a contiguous data set in its file, and the data set."""
    path = Path(file.filename)
    if not isinstance(file.get(name), h5py.Dataset):
        raise UserError(f"{path}: no data set {name!r} in it; it holds {', '.join(file) or 'nothing'}")
    dataset = file[name]
    offset = dataset.id.get_offset()
    if offset is None:
        raise UserError(f"{path}: data set {name!r} is chunked or empty; write it again without compression")
    if offset + dataset.nbytes > os.fstat(file.id.get_vfd_handle()).st_size:
        raise UserError(f"{path}: data set {name!r} goes on beyond the end of the file; write it again")
    return offset, dataset


def open_hdf5(path: Path, needed: str = "an HDF5 file") -> DataFile:
    """Open an HDF5 file for reading, without a lock where the file system has none; ``needed``: see `require_file`.

    Raises:
        UserError: it is missing, a folder, open for writing in another process, or not an HDF5 file.
    """
    require_file(path, needed)
    try:
        return _opened(DataFile, path, "r")
    except UserError:
        raise
    except (OSError, RuntimeError) as error:
        if "unable to lock file" in str(error):
            raise UserError(f"{path}: open for writing in another process; close it there first") from None
        raise UserError(f"{path}: not a readable HDF5 file ({error})") from None


def open_for_writing(path: Path, mode: Literal["w", "r+"]) -> h5py.File:
    """Create or open an HDF5 file that no other process knows: under a temporary name, or in a claimed folder.

    So it needs no lock, and is written without one where the file system has none.

    Raises:
        UserError: locks are asked for where there are none.
    """
    return _opened(h5py.File, path, mode, libver=("earliest", "v110"))


File = TypeVar("File", bound=h5py.File)


def _opened(kind: type[File], path: Path, mode: str, **options: Any) -> File:
    try:
        return kind(path, mode, **options)
    except OSError as error:
        if not _has_no_locks(error) and "locking flag values don't match" not in str(error):  # open here without a lock
            raise
    try:
        return kind(path, mode, locking=False, **options)
    except OSError as error:
        if _has_no_locks(error):  # the variable wins over what a program asks for
            raise UserError(f"{path}: its file system has no locks; set HDF5_USE_FILE_LOCKING=FALSE") from None
        raise


def _has_no_locks(error: OSError) -> bool:
    return "unable to lock file" in str(error) and error.errno not in _HELD
