"""Faults of depth data that no decoder notices: other encodings, and frames that a sensor repeated."""

import warnings
from collections.abc import Mapping, Sequence

import numpy as np

from sightline.depth.preprocessing import Preprocessing

_ORDER = {"test": 0, "val": 1, "train": 2}  # of frames in several parts, the first part keeps its own


def multiples(raw_HW: np.ndarray, invalid: Sequence[int]) -> tuple[float, float]:
    """Shares of multiples of 8 and of 5 among the valid values of every fourth row and column of a raw image."""
    values = raw_HW[::4, ::4]
    values = values[~np.isin(values, [0, *invalid])]
    return (float((values % 8 == 0).mean()), float((values % 5 == 0).mean())) if values.size else (0.0, 0.0)


def warn_of_encoding(shares: Sequence[tuple[float, float]], preprocessing: Preprocessing) -> None:
    """Warn where the `multiples` of the images show that a count is not a millimetre, though the pictures look normal.

    Rotated bits leave zeros in the last three; a scale of 5000 per metre on data measured in millimetres leaves
    multiples of 5. Real data sets have over 97 % of either, or below 26 %.
    """
    of_8, of_5 = np.mean(shares, axis=0)
    if of_8 > 0.9 and preprocessing.depth_encoding == "raw":
        warnings.warn(
            f"{of_8:.0%} of the depth values are multiples of 8, as where bits are rotated (SUN RGB-D, SUN3D); "
            "if so, set normalize.depth_encoding=rotr3",
            stacklevel=3,
        )
    elif of_5 > 0.9 and preprocessing.unit_mm == 1:
        warnings.warn(
            f"{of_5:.0%} of the depth values are multiples of 5, as where a count is 0.2 mm (TUM RGB-D); "
            "if so, set normalize.unit_mm=0.2",
            stacklevel=3,
        )


def repeated_across_parts(digests: Mapping[int, str], split: np.ndarray) -> np.ndarray:
    """Rows whose image also stands in a part that comes before theirs: test, then val, then train.

    A sensor now and then repeats a frame, pixel for pixel. On both sides of a border of the split it would be a
    training frame that is tested on.

    Args:
        digests: row -> digest of its image.
        split: str [N], the part of each row.

    Returns:
        int64 [K], ascending.
    """
    first: dict[str, int] = {}
    for row, key in digests.items():
        if split[row] in _ORDER:
            first[key] = min(first.get(key, len(_ORDER)), _ORDER[split[row]])
    repeated = (row for row, key in digests.items() if _ORDER.get(split[row], -1) > first.get(key, len(_ORDER)))
    return np.array(sorted(repeated), np.int64)
