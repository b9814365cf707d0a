"""A content-addressed cache of per-image results, which survives success and interruption.

One append-only file of fixed-size records (digest, array); on a file system without locks, one for each process that
writes. Deleting them is always safe.
"""

import fcntl
import hashlib
import os
import socket
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import DTypeLike

from sightline.core.errors import UserError
from sightline.core.files import NO_LOCKS, scratch_folder

DIGEST_BYTES = 16


def digest(content: np.ndarray | bytes) -> bytes:
    """16-byte hash of the values of an array, or of the bytes of a file."""
    data = content if isinstance(content, bytes) else np.ascontiguousarray(content).data
    return hashlib.blake2b(data, digest_size=DIGEST_BYTES).digest()


class ArrayCache:
    """Maps the digest of an image to an array of a fixed shape and type.

    Several processes may append at the same time. A record cut short by a kill is overwritten by the next append.

    Args:
        model_fingerprint: of all that decides the arrays besides the image: weights, precision, library version.
        shape, dtype: of an array.
    """

    def __init__(self, model_fingerprint: str, shape: tuple[int, ...], dtype: DTypeLike = np.float32) -> None:
        self.path = scratch_folder("cache", model_fingerprint) / "arrays.bin"
        self._record = np.dtype([("digest", f"V{DIGEST_BYTES}"), ("array", dtype, shape)])
        self.path.touch()
        self.reload()

    def __contains__(self, key: bytes) -> bool:
        return key in self._rows

    def append(self, keys: list[bytes], arrays: np.ndarray) -> None:
        """Add ``arrays`` [len(keys), *shape]."""
        records = np.empty(len(keys), self._record)
        records["digest"], records["array"] = np.array(keys, self._record["digest"]), arrays
        with open(self.path, "r+b") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX)
            except OSError as error:  # without locks, two processes would write over each other's records
                if error.errno not in NO_LOCKS:
                    raise
                own = self.path.with_name(f"arrays.{socket.gethostname()}.{os.getpid()}.bin")
                own.touch()
                with open(own, "r+b") as alone:
                    self._write(alone, records)
            else:
                self._write(file, records)

    def _write(self, file: BinaryIO, records: np.ndarray) -> None:
        whole = file.seek(0, os.SEEK_END) // self._record.itemsize
        file.seek(whole * self._record.itemsize)
        file.write(records.view(np.uint8).data)

    def get(self, keys: list[bytes]) -> np.ndarray:
        """Arrays [len(keys), *shape], also those that other processes have appended.

        Raises:
            UserError: one is missing, though a process of this run has computed it.
        """
        if any(key not in self._rows for key in keys):
            self.reload()
        missing = sum(key not in self._rows for key in keys)
        if missing:
            raise UserError(
                f"{self.path}: lacks {missing} of {len(keys)} results of this run; machines that work together need "
                "one .scratch folder on a file system that they share; do not delete it while they run"
            )
        rows = np.array([self._rows[key] for key in keys], np.int64)
        holders = np.searchsorted(self._starts, rows, side="right") - 1
        arrays = np.empty(len(keys), self._record["array"])
        for holder in np.unique(holders).tolist():
            here = holders == holder
            arrays[here] = self._files[holder]["array"][rows[here] - self._starts[holder]]
        return arrays

    def reload(self) -> None:
        """Read also what was appended since the cache was opened."""
        self._files = [self._opened(path) for path in sorted(self.path.parent.glob("arrays*.bin"))]
        self._starts = np.cumsum([0, *map(len, self._files)])  # of each file among the rows of all
        digests = (key for records in self._files for key in records["digest"])
        self._rows = {key.tobytes(): row for row, key in enumerate(digests)}

    def _opened(self, path: Path) -> np.ndarray:
        with open(path, "rb") as file:  # on NFS, opening a file fetches what other machines wrote
            count = file.seek(0, os.SEEK_END) // self._record.itemsize
        return np.memmap(path, self._record, "r", shape=(count,)) if count else np.empty(0, self._record)
