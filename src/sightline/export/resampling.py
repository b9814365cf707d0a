"""Resizing as Pillow does it, in operations that programs can hold, for images of any size.

Pillow shrinks and enlarges 8-bit images in two passes, along rows and along columns, and rounds after each. From
version 13 on, the columns are first where the height shrinks by much more than the width (`is_tall`). Its weights are
whole numbers of 22 bits (Resample.c, `precompute_coeffs`), so that here the result is the same to the bit: products of
pixels with the upper and the lower 11 bits of the weights are exact in float32.

Symbols: an axis of H (or W) pixels becomes S pixels. ``side`` is how many pixels of the source make up the target; they
begin at pixel ``first``, which is negative where the image is padded. Both are tensors, because sizes are known late.
"""

from collections.abc import Callable
from typing import Literal

import PIL
import torch
from torch import Tensor

Filter = Literal["box", "bilinear", "bicubic"]
SUPPORT = {"box": 0.5, "bilinear": 1.0, "bicubic": 2.0}  # pixels on each side of a target's centre
HALF = 2048.0  # 11 of the 22 bits of a weight
DOUBLE = torch.float64
COLUMNS_FIRST = int(PIL.__version__.partition(".")[0]) >= 13


def length(pixels: Tensor) -> Tensor:
    """How many there are of ``pixels`` = arange(H), as a tensor."""
    return pixels[-1] + 1


def span(
    height: Tensor, width: Tensor, fit: str, whole: Callable[[Tensor], Tensor]
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """``first`` and ``side`` of the rows and of the columns that become the square target; see `fit` of the models.

    ``whole`` says on which side an odd pixel is: torch.floor or torch.trunc.
    """
    if fit == "squash":
        return (torch.zeros_like(height), height), (torch.zeros_like(width), width)
    side = torch.maximum(height, width) if fit == "pad" else torch.minimum(height, width)
    return tuple((whole((size - side) / 2), side) for size in (height, width))  # type: ignore[return-value]


def weights(many: Tensor, side: Tensor, targets: int, kind: Filter) -> Tensor:
    """Whole numbers float64 [2, S, M]: upper and lower halves of the weights of source pixels 0, 1, ... M - 1 >= side.

    A runtime that has float32 alone (OpenVINO) gives the same, except ``bicubic`` where pictures are enlarged, and
    ``box`` where the border of a target falls into the middle of a pixel and Pillow's own rounding decides (97 to 48).
    """
    scale = side / targets
    stretch = scale.clamp(min=1.0)
    support = SUPPORT[kind] * stretch
    place = torch.arange(targets, dtype=DOUBLE)[:, None]
    centre = (place + 0.5) * scale
    low = torch.floor((centre - support + 0.5).clamp(min=0.0))
    high = torch.minimum(torch.floor(centre + support + 0.5), side)
    apart = (many - centre + 0.5) * (1.0 / stretch)
    if kind == "box":
        raw = ((apart > -0.5) & (apart <= 0.5)).to(DOUBLE)
    elif kind == "bilinear":  # in whole numbers
        apart = (2 * many + 1) * targets - (2 * place + 1) * side
        raw = (2 * side.clamp(min=targets) - apart.abs()).clamp(min=0.0)
    else:
        raw = _cubic(apart.abs())
    raw = torch.where((many >= low) & (many < high), raw, torch.zeros_like(raw))
    total = raw.sum(dim=1, keepdim=True)
    upper = torch.floor(raw * HALF / total)
    rest = raw * HALF - upper * total
    upper, rest = upper - (rest < 0).to(DOUBLE), torch.where(rest < 0, rest + total, rest)
    return torch.stack([upper, torch.floor(rest * HALF / total + 0.5)])


def _cubic(x: Tensor) -> Tensor:
    a = -0.5
    near = ((a + 2.0) * x - (a + 3.0)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    return torch.where(x < 1, near, torch.where(x < 2, far, torch.zeros_like(x)))


def placed(of_source: Tensor, pixels: Tensor, first: Tensor, side: Tensor) -> Tensor:
    """Weights [2, S, M] of the source's pixels -> [2, S, H] of the image's: 0 for those that are cut off."""
    index = pixels - first
    inside = (index >= 0) & (index < side)
    return of_source[:, :, index.clamp(min=0).minimum(side - 1).long()] * inside


def is_tall(height: Tensor, width: Tensor, size: tuple[int, int]) -> Tensor:
    """Whether Pillow resizes an image of this height and width to ``size`` by its columns first, bool []."""
    if not COLUMNS_FIRST:
        return torch.zeros_like(height, dtype=torch.bool)
    return (height > size[0]) & (height - size[0] > 2 * (width - size[1]))


def resize(images: Tensor, rows: Tensor, columns: Tensor, tall: Tensor) -> Tensor:
    """Images float32 [..., H, W] of whole numbers 0..255 -> [..., S, S'] by weights [2, S, H] and [2, S', W].

    ``tall`` is `is_tall`. Both orders are computed, as OpenVINO is wrong about a branch at first (2026.4).
    """
    return torch.where(tall, _along(_down(images, rows), columns), _down(_along(images, columns), rows))


def _along(images: Tensor, columns: Tensor) -> Tensor:
    return _rounded(*(torch.matmul(images, half.T) for half in columns.float().unbind(0)))


def _down(images: Tensor, rows: Tensor) -> Tensor:
    return _rounded(*(torch.matmul(half, images) for half in rows.float().unbind(0)))


def _rounded(upper: Tensor, lower: Tensor) -> Tensor:
    """(upper * 2^11 + lower) / 2^22, rounded, within 0..255."""
    return torch.floor((upper + torch.floor(lower / HALF) + HALF / 2) / HALF).clamp(0, 255)


def nearest(pixels: Tensor, targets: Tensor) -> Tensor:
    """Index of the source pixel of each of ``targets`` = arange(S), as Pillow's NEAREST takes it, int64 [S]."""
    return torch.floor((2 * targets + 1) * length(pixels) / (2 * length(targets))).long()
