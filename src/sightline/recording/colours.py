"""Colours that people who are colour-blind can tell apart, and outlines of masks in them."""

import numpy as np

from sightline.recording.layout import IGNORE

# Okabe and Ito, "Color Universal Design" (2008), without black; the best apart come first
OKABE_ITO = ("#e69f00", "#56b4e9", "#009e73", "#d55e00", "#cc79a7", "#0072b2", "#f0e442")
LINE, HAZE = 4, 0.5  # width of an outline in pixels of the picture; how white ignored pixels become


def class_colours(classes: int) -> np.ndarray:
    """Colours uint8 [C, 3] of the classes; 0, the background, is black. After 7 come dark ones, then light ones."""
    plain = np.array([[int(name[i : i + 2], 16) for i in (1, 3, 5)] for name in OKABE_ITO], float)
    shades = np.concatenate([plain, plain * 0.55, 255 - (255 - plain) * 0.45])
    repeated = shades[np.arange(max(classes - 1, 0)) % len(shades)]
    return np.round(np.concatenate([np.zeros((1, 3)), repeated])).astype(np.uint8)


def outlined(image_HWc: np.ndarray, mask_HW: np.ndarray, classes: int, width: int = 320) -> np.ndarray:
    """An image with each class of its mask outlined -> uint8 [h, w, 3], enlarged to at least ``width`` pixels.

    Args:
        image_HWc: uint8, one channel or three.
        mask_HW: class ids; the background is not outlined, ignored pixels (255) are hazy.
    """
    times = max(1, -(-width // mask_HW.shape[1]))
    image, mask = (values.repeat(times, axis=0).repeat(times, axis=1) for values in (image_HWc, mask_HW))
    image = np.broadcast_to(image, (*mask.shape, 3)).astype(float)
    hazy = mask == IGNORE
    image[hazy] += (255 - image[hazy]) * HAZE
    edge = np.zeros(mask.shape, bool)  # the inner side of a class
    padded = np.pad(mask, LINE, mode="edge")
    for down, across in ((LINE, 0), (-LINE, 0), (0, LINE), (0, -LINE)):
        there = padded[LINE + down : LINE + down + mask.shape[0], LINE + across : LINE + across + mask.shape[1]]
        edge |= there != mask
    edge &= (mask != 0) & ~hazy
    image[edge] = class_colours(classes)[mask[edge]]
    return np.round(image).astype(np.uint8)
