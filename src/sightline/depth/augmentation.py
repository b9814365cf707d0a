"""Random changes of training images, each drawn for one image alone.

With one draw for a whole batch, a network with batch normalisation learns to read the draw off the batch's statistics,
and fails on single images. All changes are tensor operations on the device of the images.
"""

from typing import Literal

import torch
from torch import Tensor

from sightline.depth.preprocessing import IMAGE_SIZE

Augment = Literal["none", "shift", "rotate", "full"]
KEEP_ANSWERS: tuple[Augment, ...] = ("none", "shift")  # what is seen is where it was, and turned as it was
CHANCES = 8  # random numbers for each image
SHIFTED, ZOOMED = 0.06, 0.06  # of shift: largest move along rows and columns, and largest zoom in and out, as shares
CROPPED, SMALLEST = 0.5, 64  # share of the images that are cropped, and the least side of a crop, pixels
GAIN, OFFSET = 0.1, 0.1  # the depth is multiplied by 1 +- GAIN and moved by +- OFFSET, in normalised units


def augment_images(
    images: Tensor, valid: Tensor, chances: Tensor, kind: Augment, index: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Change each image by itself.

    ``shift`` moves and zooms a little, and moves the values; what comes in from beyond a border is not valid.
    ``rotate`` turns by a multiple of 90 degrees. ``full`` also mirrors, enlarges a random square part of half of the
    images by taking the nearest pixel (no depth is made up at edges), and scales and moves the values.

    Args:
        images: [N, C, S, S] in [-1, 1]; valid: bool [N, S, S].
        chances: [B, 8], uniform in [0, 1); "none" ignores them.
        index: int64 [B], which images to take; None takes all, in order.

    Returns:
        [B, C, S, S] in channels-last memory and [B, 1, S, S].
    """
    index = torch.arange(len(images), device=images.device) if index is None else index
    if kind == "none":
        return images[index].contiguous(memory_format=torch.channels_last), valid[index][:, None]
    if kind == "shift":
        return _shift(images, valid, chances, index)
    position = torch.arange(IMAGE_SIZE, device=images.device)
    rows = columns = position.expand(len(index), -1)  # (B, S), pixel of the source for each pixel of the result
    turns = (chances[:, 0] * 4).long()
    flip_rows, flip_columns, transpose = (turns == 2) | (turns == 3), (turns == 1) | (turns == 2), turns % 2 == 1
    if kind == "full":
        flip_rows = flip_rows ^ (chances[:, 1] < 0.5)
        side = SMALLEST + (chances[:, 2] * (IMAGE_SIZE - SMALLEST + 1)).long()
        side = torch.where(chances[:, 3] < CROPPED, side, IMAGE_SIZE)
        top, left = ((chances[:, k] * (IMAGE_SIZE - side + 1)).long() for k in (4, 5))
        rows, columns = (start[:, None] + position * side[:, None] // IMAGE_SIZE for start in (top, left))
    rows = torch.where(flip_rows[:, None], rows.flip(1), rows)
    columns = torch.where(flip_columns[:, None], columns.flip(1), columns)
    where = index[:, None, None], rows[:, :, None], columns[:, None, :]
    taken, taken_valid = images.permute(0, 2, 3, 1)[where], valid[where]  # (B, S, S, C), (B, S, S)
    taken = torch.where(transpose[:, None, None, None], taken.transpose(1, 2), taken)
    taken_valid = torch.where(transpose[:, None, None], taken_valid.mT, taken_valid)
    if kind == "full":
        gain, offset = 1 + GAIN * (2 * chances[:, 6] - 1), OFFSET * (2 * chances[:, 7] - 1)
        taken = (taken * gain[:, None, None, None] + offset[:, None, None, None]).clamp(-1, 1)
    return taken.permute(0, 3, 1, 2), taken_valid[:, None]


def _shift(images: Tensor, valid: Tensor, chances: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    position = torch.arange(IMAGE_SIZE, device=images.device) - (IMAGE_SIZE - 1) / 2
    spread = 2 * chances[:, :4] - 1
    zoom, inside, sources = 1 + ZOOMED * spread[:, 0], [], []
    for move in (1, 2):
        source = (position * zoom[:, None] + IMAGE_SIZE * SHIFTED * spread[:, move, None]).add(IMAGE_SIZE / 2).floor()
        inside.append((source >= 0) & (source < IMAGE_SIZE))
        sources.append(source.clamp(0, IMAGE_SIZE - 1).long())  # (B, S): the nearest pixel, at a border the last one
    where = index[:, None, None], sources[0][:, :, None], sources[1][:, None, :]
    taken = (images.permute(0, 2, 3, 1)[where] + OFFSET * spread[:, 3, None, None, None]).clamp(-1, 1)  # (B, S, S, C)
    taken_valid = valid[where] & inside[0][:, :, None] & inside[1][:, None, :]
    return taken.permute(0, 3, 1, 2), taken_valid[:, None]
