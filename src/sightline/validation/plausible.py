"""Do the values of images go with what ``recording.json`` says of them?"""

import warnings
from pathlib import Path

import numpy as np

from sightline.recording.layout import DepthInfo

_FEW, _HALF = 0.01, 0.5  # of the valid pixels within the height range: with fewer it is refused, or warned about


def check_height_range(place: Path, pixels: np.ndarray, depth: DepthInfo) -> list[str]:
    """Whether ``depth.height_range`` is where the depth is: a line where it is not, and a warning where it hardly is.

    Args:
        place: folder of the images, for messages.
        pixels: of each raw count, in all images, int64 [65536].
    """
    valid = pixels.copy()
    valid[list(depth.invalid)] = 0
    if not valid.any():
        return []
    near, far = depth.height_range
    share = valid[near : far + 1].sum() / valid.sum()
    low, high = np.searchsorted(np.cumsum(valid), np.array([0.05, 0.95]) * valid.sum())
    line = (
        f"{place}: {share:.1%} of the valid pixels lie inside depth.height_range {[near, far]} of recording.json; the "
        f"5th to 95th percentile is {low} to {high} counts; set the range to the nearest and farthest count of interest"
    )
    if share < _FEW:
        return [line]
    if share < _HALF:
        warnings.warn(line, stacklevel=3)
    return []
