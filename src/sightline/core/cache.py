"""A content-addressed cache of per-image results, which survives success and interruption.

One append-only file of fixed-size records (digest, array). Deleting it is always safe.
"""

import fcntl
import hashlib
import os

import numpy as np
from numpy.typing import DTypeLike

from sightline.core.errors import UserError
from sightline.core.files import scratch_folder

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
            fcntl.flock(file, fcntl.LOCK_EX)
            whole = file.seek(0, 2) // self._record.itemsize
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
        return self._records["array"][[self._rows[key] for key in keys]]

    def reload(self) -> None:
        """Read also what was appended since the cache was opened."""
        with open(self.path, "rb") as file:  # on NFS, opening a file fetches what other machines wrote
            count = file.seek(0, os.SEEK_END) // self._record.itemsize
        empty = np.empty(0, self._record)
        self._records = np.memmap(self.path, self._record, "r", shape=(count,)) if count else empty
        self._rows = {key.tobytes(): row for row, key in enumerate(self._records["digest"])}
