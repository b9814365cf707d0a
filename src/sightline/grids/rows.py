"""Rows of a data set, read in any order where they lie in the file."""

import os
from io import FileIO
from pathlib import Path

import numpy as np

from sightline.core.errors import UserError
from sightline.core.hdf5 import DataFile

_PROBED = 4  # rows of a batch that tell whether it is in memory
_NOWAIT = getattr(os, "RWF_NOWAIT", None)  # of Linux; other systems do not tell what is in memory


class RowReader:
    """Rows of a contiguous data set of an open file, which may be closed, and even replaced, afterwards.

    Where rows are not in memory, all of a batch are asked for before the first is read: a disk serves many at a time,
    where a loop, and a memory map even more, would wait for each.

    Args:
        file: what is read.
        name: a contiguous data set of it. Raises `UserError` where it is none.
    """

    def __init__(self, file: DataFile, name: str) -> None:
        rows = file.rows(name)
        self._path, self._dtype, self._shape = Path(file.filename), rows.dtype, rows.shape
        self._start, self._end, self._size = rows.offset, rows.offset + rows.nbytes, rows[:1].nbytes
        self._raw = FileIO(f"/dev/fd/{file.id.get_vfd_handle()}")
        self._map: np.ndarray | None = None  # made when it is needed: it takes another descriptor

    def read(self, rows: np.ndarray, out: np.ndarray, places: np.ndarray, mapped: bool) -> None:
        """Put ``rows`` [B] into ``out`` at ``places`` [B], which ascend.

        Args:
            mapped: copy from a memory map. That is faster where the process has read the pages before and slower where
                it has not, and they count as its memory; else rows are read one by one.

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
        """Ask for all of ``rows`` where some are not in memory."""
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
