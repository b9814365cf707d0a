"""What the values of depth images mean: how files hold a count, which counts are no reading, how far the others are."""

from typing import Annotated, Literal

import numpy as np
from pydantic import AfterValidator, Field

Encoding = Literal["raw", "rotr3", "byteswap"]  # how files hold a count, see `decode`
Count = Annotated[int, Field(ge=0, le=65535)]


def check_height_range(height_range: tuple[int, int]) -> tuple[int, int]:
    """Raise ValueError unless near < far."""
    if height_range[0] >= height_range[1]:
        raise ValueError(f"expected [near, far] with near < far, got {list(height_range)}")
    return height_range


HeightRange = Annotated[tuple[Count, Count], AfterValidator(check_height_range)]


def decode(raw: np.ndarray, encoding: Encoding | None) -> np.ndarray:
    """Counts behind the values of a file, uint16 of any shape; None, where nothing names an encoding, is raw.

    ``rotr3`` undoes the rotation of bits of SUN RGB-D and SUN3D (a file's value is the count, rotated left by three),
    ``byteswap`` the byte order of NYU Depth v2's raw frames; both codes 0 and 65535 stay what they are.
    """
    if encoding == "rotr3":
        return (raw >> 3) | (raw << 13)
    return raw.byteswap() if encoding == "byteswap" else raw


def is_valid(counts: np.ndarray, invalid: tuple[int, ...]) -> np.ndarray:
    """Where something was measured, bool: not at the codes ``invalid``, nor below 0."""
    valid = np.ones(counts.shape, bool) if counts.dtype.kind == "u" else counts >= 0
    for code in invalid:
        valid &= counts != code
    return valid


def normalize(counts: np.ndarray, height_range: tuple[int, int]) -> np.ndarray:
    """Counts, uint16 or float32 of any shape -> float32: -1 at near, 1 at far, beyond them where counts are."""
    near, far = height_range
    return (counts - np.float32(near)) * np.float32(2 / (far - near)) - np.float32(1)
