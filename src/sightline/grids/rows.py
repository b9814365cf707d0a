"""Rows of a data set, read from the file in any order, without HDF5."""

import os
from io import FileIO
from pathlib import Path

import numpy as np

from sightline.core.errors import UserError
from sightline.core.hdf5 import DataFile

_PROBED = 4  # rows of a batch that tell whether it is in memory
_NOWAIT = getattr(os, "RWF_NOWAIT", None)  # Linux only; other systems do not tell what is in memory


class RowReader:
    """Rows of a contiguous data set of an open file, which may be closed, and even replaced, afterwards.

    If rows are not in memory, the system is told about the whole batch before the first read: a disk serves many
    requests at a time, while a loop, and even more a memory map, would wait for each.

    Args:
        file: it holds the data set.
        name: of the data set. Raises `UserError` if it is not contiguous.
    """

    def __init__(self, file: DataFile, name: str) -> None:
        rows = file.rows(name)
        self._path, self._dtype, self._shape = Path(file.filename), rows.dtype, rows.shape
        self._start, self._end, self._size = rows.offset, rows.offset + rows.nbytes, rows[:1].nbytes
        self._raw = FileIO(f"/dev/fd/{file.id.get_vfd_handle()}")
        self._map: np.ndarray | None = None  # made on first use: it takes another descriptor

    def read(self, rows: np.ndarray, out: np.ndarray, places: np.ndarray, mapped: bool) -> None:
        """Put ``rows`` [B] into ``out`` at ``places`` [B], which ascend.

        Args:
            mapped: copy from a memory map, else read row by row. A map is faster for pages that this process has read
                before, slower for others, and its pages count as memory of the process.

        Raises:
            UserError: the file has become shorter.
        """
        descriptor, size = self._raw.fileno(), self._size
        if os.fstat(descriptor).st_size < self._end:  # reading the map would end the process
            raise self._cut_off()
        self._fetch(rows)
        if mapped:
            if self._map is None:
                self._map = np.asarray(np.memmap(self._raw, self._dtype, "r", self._start, self._shape))
            if len(places) == len(out):
                np.take(self._map, rows, axis=0, out=out, mode="clip")  # other modes copy twice
            else:
                out[places] = self._map[rows]
        else:
            content = out.reshape(-1).view(np.uint8).data
            for row, place in zip(rows.tolist(), places.tolist(), strict=True):
                into = content[place * size : (place + 1) * size]
                if os.preadv(descriptor, [into], self._start + row * size) != size:
                    raise self._cut_off()

    def _fetch(self, rows: np.ndarray) -> None:
        """Tell the system that ``rows`` will be read, unless a sample of them is in memory."""
        if self._in_memory(rows[:: max(1, len(rows) // _PROBED)]):
            return
        for row in rows.tolist():
            os.posix_fadvise(self._raw.fileno(), self._start + row * self._size, self._size, os.POSIX_FADV_WILLNEED)

    def _in_memory(self, rows: np.ndarray) -> bool:
        if _NOWAIT is None:
            return True
        byte = bytearray(1)
        try:
            for row in rows.tolist():
                os.preadv(self._raw.fileno(), [byte], self._start + row * self._size + self._size // 2, _NOWAIT)
        except OSError:  # it would have to wait, or the file system cannot tell
            return False
        return True

    def _cut_off(self) -> UserError:
        return UserError(f"{self._path}: ends before its last row; copy it again, or write it again")

    def close(self) -> None:
        """Let go of the file."""
        self._raw.close()
        self._map = None
