"""From raw uint16 depth of any size to the 128x128 values in [-1, 1] that the networks see.

The same functions serve the `normalize` stage and an encoder that is handed raw images: what was done to the
training data travels as a `Preprocessing` inside the normalised file and inside every weights file.
"""

import math
import warnings
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field

from sightline.core.errors import UserError
from sightline.core.params import Section
from sightline.recording.depth import Count, Encoding, HeightRange, decode, is_valid, normalize
from sightline.recording.images import read_depth, read_rgb

IMAGE_SIZE = 128  # side of a normalised image, pixels
MAX_COUNT = 65535  # of uint16


class Preprocessing(Section):
    """Everything that decides which numbers a raw depth image becomes."""

    height_range: HeightRange = (0, 65535)  # raw counts that map to -1 and +1; values beyond are clipped
    invalid: tuple[Count, ...] = (0, 65535)  # raw counts that mean "no reading"
    depth_encoding: Encoding = "raw"
    fit: Literal["squash", "crop", "pad"] = "squash"  # how an oblong image becomes square
    resize: Literal["nearest", "area"] = "nearest"
    unit_mm: float = Field(default=1.0, gt=0)  # millimetres per raw count, to report errors in millimetres

    @property
    def mm_per_unit(self) -> float:
        """Millimetres per normalised unit: [-1, 1] spans the height range."""
        return (self.height_range[1] - self.height_range[0]) / 2 * self.unit_mm

    def to_mm(self, depth: Any) -> Any:
        """Millimetres behind normalised values, an array or a tensor."""
        near, far = self.height_range
        return ((depth + 1) / 2 * (far - near) + near) * self.unit_mm

    def range_mm(self) -> dict[str, float]:
        """Both ends of the height range, millimetres."""
        near, far = self.height_range
        return {"near_mm": near * self.unit_mm, "far_mm": far * self.unit_mm}


def resize_depth(raw_HW: np.ndarray, preprocessing: Preprocessing) -> tuple[np.ndarray, np.ndarray]:
    """Decode one raw image, make it square, and resize it to 128x128, never mixing an invalid code into a depth.

    ``squash`` changes the aspect ratio, ``crop`` takes the central square, ``pad`` adds invalid pixels on both sides.

    ``nearest`` takes the pixel whose centre is nearest to the target's centre; ``area`` is the mean over the valid part
    of each target pixel's exact footprint, valid where at least half of the footprint is.

    Args:
        raw_HW: uint16 [H, W], raw counts, any size.

    Returns:
        counts float32 [128, 128] (0 where invalid) and valid bool [128, 128].
    """
    raw_HW = _make_square(decode(raw_HW, preprocessing.depth_encoding), preprocessing.fit)
    height, width = raw_HW.shape
    if preprocessing.resize == "nearest":
        rows, columns = _nearest(height), _nearest(width)
        raw = raw_HW[rows[:, None], columns]
        valid = is_valid(raw, preprocessing.invalid)
        return np.where(valid, raw, 0).astype(np.float32), valid
    valid_HW = is_valid(raw_HW, preprocessing.invalid)
    stacked = np.empty((2, height, width), np.float32)
    np.multiply(raw_HW, valid_HW, out=stacked[0])
    stacked[1] = valid_HW
    weighted, covered = _average_columns(_average_rows(stacked))  # covered: valid share of each footprint
    valid = covered >= 0.5 - 1e-6
    return np.divide(weighted, covered, out=np.zeros_like(weighted), where=valid), valid


def read_raw(path: Path, channels: int) -> np.ndarray:
    """Read an image that the networks' input is made of: depth, uint16 [H, W]; with 3 channels RGB, uint8 [3, H, W].

    Raises:
        UserError: see `sightline.recording.images.read_depth` and `read_rgb`.
    """
    return read_depth(path) if channels == 1 else read_rgb(path).transpose(2, 0, 1)


def resize_image(raw: np.ndarray, preprocessing: Preprocessing) -> tuple[np.ndarray, np.ndarray]:
    """`resize_depth` of one channel [H, W], or of each of several [C, H, W]; valid is what all channels have."""
    if raw.ndim == 2:
        return resize_depth(raw, preprocessing)
    counts, valid = zip(*(resize_depth(raw_HW, preprocessing) for raw_HW in raw), strict=True)
    return np.stack(counts), np.logical_and.reduce(valid)


def normalize_counts(
    counts_N: np.ndarray, valid_N: np.ndarray, preprocessing: Preprocessing
) -> tuple[np.ndarray, np.ndarray]:
    """Map raw counts to [-1, 1] by the height range, clip, and fill holes.

    Args:
        counts_N: float32 [N, 128, 128] or [N, C, 128, 128].
        valid_N: bool [N, 128, 128] with at least one valid pixel an image.

    Returns:
        depth float32 in [-1, 1], of the shape of ``counts_N``, and the number of values at valid pixels that were
        clipped at either end, int64 [N].
    """
    depth = normalize(counts_N, preprocessing.height_range)
    channels = depth.reshape(len(depth), -1, IMAGE_SIZE, IMAGE_SIZE)  # a view
    clipped = ((np.abs(channels) > 1) & valid_N[:, None]).sum(axis=(1, 2, 3))
    np.clip(depth, -1, 1, out=depth)
    filled = [fill_holes(channel, valid_N) for channel in channels.swapaxes(0, 1)]
    return np.stack(filled, axis=1).reshape(depth.shape), clipped


def fill_holes(depth_N: np.ndarray, valid_N: np.ndarray) -> np.ndarray:
    """Give each invalid pixel the mean of the valid pixels in the smallest aligned 2^k block around it that has any.

    The pull-push scheme of Gortler et al., "The Lumigraph" (1996), with box kernels. Left as they are, holes would
    read as the nearest possible depth and double the error of a linear code on the valid pixels.

    Args:
        depth_N: float32 [N, S, S], valid_N: bool [N, S, S]; S a power of two. An image without valid pixels becomes 0.
    """
    if valid_N.all():
        return depth_N
    size = depth_N.shape[-1]
    if size == 1:
        return np.where(valid_N, depth_N, np.float32(0))
    counts, sums = _block_sums(valid_N.astype(np.float32)), _block_sums(np.where(valid_N, depth_N, np.float32(0)))
    coarse = fill_holes(sums / np.maximum(counts, 1), counts > 0)
    filled = depth_N.copy()
    np.copyto(filled, coarse.repeat(2, axis=1).repeat(2, axis=2), where=~valid_N)
    return filled


def preprocess(raw_N: np.ndarray, preprocessing: Preprocessing) -> tuple[np.ndarray, np.ndarray]:
    """Raw images to network input: `resize_image` of each, then `normalize_counts`.

    Args:
        raw_N: uint16 [N, H, W] or [N, C, H, W], raw counts.

    Returns:
        depth float32 [N, 128, 128] or [N, C, 128, 128] in [-1, 1] with holes filled, valid bool [N, 128, 128].

    Raises:
        UserError: an image without a single valid pixel.
    """
    resized = [resize_image(raw, preprocessing) for raw in raw_N]
    counts, valid = np.stack([c for c, _ in resized]), np.stack([v for _, v in resized])
    empty = np.flatnonzero(~valid.any(axis=(1, 2)))
    if len(empty):
        raise UserError(f"depth image {empty[0]}: no valid pixel (all {list(preprocessing.invalid)})")
    return normalize_counts(counts, valid, preprocessing)[0], valid


def check_values(array: np.ndarray, preprocessing: Preprocessing | None) -> None:
    """Raise `UserError` for values that are not raw counts, and warn where they hardly can be; None: not raw counts."""
    if array.size == 0:
        return
    low, high = array.min(), array.max()  # NaN where there is one
    if array.dtype.kind == "f" and not np.isfinite([low, high]).all():
        index = int(np.argwhere(~np.isfinite(array))[0, 0])
        value = "NaN" if np.isnan(array[index]).any() else "infinite values"
        raise UserError(f"images[{index}]: holds {value}; give pixels without a reading an invalid code, such as 0")
    if preprocessing is None:
        return
    if array.dtype.kind == "f" and max(-low, high) <= 1:
        warnings.warn(
            f"the images lie within [{low:g}, {high:g}], as if normalised already, and are normalised once more as raw "
            "counts; use normalize=False",
            UserWarning,
            stacklevel=3,
        )
    elif low < 0 or high > MAX_COUNT:
        raise UserError(f"expected raw counts 0..{MAX_COUNT}, got values from {low:g} to {high:g}")
    elif preprocessing.depth_encoding == "raw" and high < preprocessing.height_range[0]:
        warnings.warn(
            f"all values lie below height_range {list(preprocessing.height_range)}, the largest is {high:g}; "
            f"counts of {preprocessing.unit_mm:g} mm are expected, not metres",
            UserWarning,
            stacklevel=3,
        )


def as_counts(raw: np.ndarray) -> np.ndarray:
    """uint16 where the values are whole, as they are in a file; else float32."""
    if raw.dtype.kind != "f":
        return raw.astype(np.uint16)
    whole = (raw == np.rint(raw)).all() and raw.min() >= 0
    return raw.astype(np.uint16 if whole else np.float32)


def _make_square(raw_HW: np.ndarray, fit: str) -> np.ndarray:
    height, width = raw_HW.shape
    if fit == "squash" or height == width:
        return raw_HW
    if fit == "crop":
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        return raw_HW[top : top + side, left : left + side]
    rows, columns = max(0, width - height), max(0, height - width)  # to add
    around = ((rows // 2, rows - rows // 2), (columns // 2, columns - columns // 2))
    return np.pad(raw_HW.astype(np.int32), around, constant_values=-1)  # no count is negative


def _block_sums(x_NSS: np.ndarray) -> np.ndarray:
    rows = x_NSS[:, ::2] + x_NSS[:, 1::2]
    return rows[:, :, ::2] + rows[:, :, 1::2]


@lru_cache
def _nearest(size: int) -> np.ndarray:
    """Source index nearest to the centre of each of the 128 target pixels, int64 [128]."""
    return ((2 * np.arange(IMAGE_SIZE) + 1) * size) // (2 * IMAGE_SIZE)


@lru_cache
def footprints(targets: int, sources: int) -> np.ndarray:
    """Share of each source pixel in the footprint of each target pixel, float32 [targets, sources]; rows sum to 1."""
    edges, pixel = np.arange(targets + 1) * sources / targets, np.arange(sources)
    overlap = np.minimum(edges[1:, None], pixel + 1) - np.maximum(edges[:-1, None], pixel)
    return (np.clip(overlap, 0, None) / (sources / targets)).astype(np.float32)


def _period(size: int) -> np.ndarray:
    """The footprints of 128 target pixels over ``size`` sources, whose pattern repeats gcd(size, 128) times."""
    times = math.gcd(size, IMAGE_SIZE)
    return footprints(IMAGE_SIZE // times, size // times)


def _average_rows(x_CHW: np.ndarray) -> np.ndarray:
    channels, height, width = x_CHW.shape
    weights = _period(height)
    blocks = x_CHW.reshape(channels, -1, weights.shape[1], width)
    return (weights @ blocks).reshape(channels, IMAGE_SIZE, width)


def _average_columns(x_CHW: np.ndarray) -> np.ndarray:
    channels, height, width = x_CHW.shape
    weights = _period(width)
    blocks = x_CHW.reshape(channels, height, -1, weights.shape[1])
    return (blocks @ weights.T).reshape(channels, height, IMAGE_SIZE)
