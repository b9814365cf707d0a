"""Depth images as channels of the views: brought to their size, with one number where nothing was measured."""

import torch
import torch.nn.functional as F
from torch import Tensor

from sightline.fusion.network import NO_READING

DEPTH_IMAGES = "depth_images"  # what models call them


def resize_depth(images: Tensor, size: int) -> Tensor:
    """Depth [B, D, H, W] in [-1, 1], NaN where nothing was measured -> [B, D, size, size] without NaN.

    Each target pixel is the mean of what was measured in its area; where that is less than half of it, it becomes
    `NO_READING`, outside the range, so that a network can tell a hole from a distance.
    """
    measured = (~images.isnan()).to(images.dtype)
    if images.shape[-2:] != (size, size):
        share = F.interpolate(measured, (size, size), mode="area")
        total = F.interpolate(images.nan_to_num(0.0), (size, size), mode="area")
        images, measured = total / share.clamp(min=1e-6), share
    return torch.where(measured < 0.5, NO_READING, images)
