"""HDF5 files with contiguous data sets that are filled in place, by row, by several processes.

HDF5 allows one writer and does not survive a killed one. Here the file is created whole (layout and attributes, space
allocated) and closed; rows are then written through memory maps at the data sets' offsets. The file is a valid HDF5
file at every moment, an interrupted run can continue, and equal content gives equal bytes.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from sightline.errors import UserError


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
    with h5py.File(path, "w", libver=("earliest", "v110")) as file:
        for name, (shape, dtype) in empty.items():
            kind = h5py.h5t.py_create(np.dtype(dtype), logical=True)
            h5py.h5d.create(file.id, name.encode(), kind, h5py.h5s.create_simple(shape), creation)
        for name, values in filled.items():
            file.create_dataset(name, data=values)
        file.attrs.update(attributes)


def open_rows(path: Path, name: str, mode: str = "r") -> np.memmap:
    """Memory map of a contiguous data set -> array of the data set's shape and dtype; ``mode`` is "r" or "r+".

    Raises:
        UserError: no such file, not an HDF5 file, no such data set, or a data set that is not contiguous.
    """
    with open_hdf5(path) as file:
        if name not in file:
            raise UserError(f"{path}: no data set {name!r} in it; it holds {', '.join(file) or 'nothing'}")
        dataset = file[name]
        offset = dataset.id.get_offset()
        if offset is None:
            raise UserError(f"{path}: data set {name!r} is chunked or empty; write it again without compression")
        return np.memmap(path, dtype=dataset.dtype, mode=mode, offset=offset, shape=dataset.shape)  # type: ignore[call-overload]


def open_hdf5(path: Path) -> h5py.File:
    """Open an HDF5 file for reading. Raises `UserError` where it is missing or is not an HDF5 file."""
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        return h5py.File(path, "r")
    except OSError as error:
        if "unable to lock file" in str(error):
            raise UserError(f"{path}: open for writing in another process; close it there first") from None
        raise UserError(f"{path}: not a readable HDF5 file ({error})") from None
