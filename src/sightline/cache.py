"""A content-addressed cache of per-image results, which survives success and interruption.

One append-only file of fixed-size records (digest, vector). Deleting it is always safe.
"""

import fcntl
import hashlib

import numpy as np

from sightline.files import scratch_folder

DIGEST_BYTES = 16


def digest(row: np.ndarray) -> bytes:
    """16 bytes that identify the values of an array."""
    return hashlib.blake2b(np.ascontiguousarray(row).data, digest_size=DIGEST_BYTES).digest()


class VectorCache:
    """Maps the digest of an image to a float32 vector [dim].

    Several processes may append at the same time. A record cut short by a kill is overwritten by the next append.

    Args:
        model_fingerprint: whatever decides the vectors besides the image: weights, precision, library version.
        dim: length of a vector.
    """

    def __init__(self, model_fingerprint: str, dim: int) -> None:
        self.path = scratch_folder("cache", model_fingerprint) / "vectors.bin"
        self._record = np.dtype([("digest", f"V{DIGEST_BYTES}"), ("vector", np.float32, (dim,))])
        self.path.touch()
        self._reload()

    def __contains__(self, key: bytes) -> bool:
        return key in self._rows

    def append(self, keys: list[bytes], vectors: np.ndarray) -> None:
        """Add ``vectors`` float32 [len(keys), dim]."""
        records = np.empty(len(keys), self._record)
        records["digest"], records["vector"] = np.array(keys, self._record["digest"]), vectors
        with open(self.path, "r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            whole = file.seek(0, 2) // self._record.itemsize
            file.seek(whole * self._record.itemsize)
            file.write(records.tobytes())

    def get(self, keys: list[bytes]) -> np.ndarray:
        """Vectors float32 [len(keys), dim]. Raises KeyError for one that is not there."""
        if any(key not in self._rows for key in keys):
            self._reload()
        rows = [self._rows[key] for key in keys]
        return self._records["vector"][rows]

    def _reload(self) -> None:
        count = self.path.stat().st_size // self._record.itemsize
        empty = np.empty(0, self._record)
        self._records = np.memmap(self.path, self._record, "r", shape=(count,)) if count else empty
        self._rows = {key.tobytes(): row for row, key in enumerate(self._records["digest"])}
