"""The largest connected part of each class, found on the device, is the one that SciPy finds."""

import numpy as np
import pytest
import torch
from scipy import ndimage

from sightline.recording.layout import IGNORE
from sightline.segmentation.methods import largest_parts


def by_scipy(labels: np.ndarray, classes: int) -> np.ndarray:
    largest = np.where(labels == IGNORE, IGNORE, 0)
    for image, ids in enumerate(labels):
        for c in range(1, classes):
            parts, count = ndimage.label(ids == c, np.ones((3, 3)))
            sizes = np.bincount(parts.ravel(), minlength=count + 1)[1:]
            for part in np.flatnonzero(sizes == sizes.max(initial=0)) + 1:
                largest[image][parts == part] = c
    return largest


@pytest.mark.parametrize("grain", [1, 3, 8])
def test_parts_are_those_of_scipy(grain):
    rng = np.random.default_rng(grain)
    coarse = rng.integers(0, 5, (4, 40 // grain + 1, 56 // grain + 1))
    labels = coarse.repeat(grain, 1).repeat(grain, 2)[:, :40, :56].copy()
    labels[labels == 4] = IGNORE
    assert (largest_parts(torch.from_numpy(labels), 4).numpy() == by_scipy(labels, 4)).all()


def test_a_long_and_winding_part_is_one():
    labels = np.zeros((1, 41, 41), np.int64)
    for row in range(0, 41, 4):
        labels[0, row] = 1
        labels[0, row + 1 : row + 4, -1 if row % 8 == 0 else 0] = 1
    labels[0, 2, 5:15] = 1  # alone between two of its windings
    labels[0, 6, 5:15] = 2
    expected = by_scipy(labels, 3)
    assert expected[0, 2, 5] == 0
    assert (largest_parts(torch.from_numpy(labels), 3).numpy() == expected).all()
