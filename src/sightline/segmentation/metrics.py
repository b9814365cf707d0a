"""How well predicted classes agree with the truth: overlap, distance of outlines, calibration.

Classes are whole numbers 0..C-1, 0 the background, 255 in the truth is left out everywhere. Shapes: M images of any
number of axes S, C classes. Overlap is computed from counts, so that pixels can be pooled over a part, a group, or not
at all; what is undefined is nan, and left out of means.
"""

from collections.abc import Sequence

import numpy as np
import torch
from monai.metrics.utils import get_mask_edges, get_surface_distance

from sightline.recording.layout import IGNORE

BINS = 15  # of confidence, as in Guo et al. 2017
_RESAMPLES = 1000


def count_pixels(predicted_MS: np.ndarray, truth_MS: np.ndarray, classes: int) -> np.ndarray:
    """Pixels of each image and class -> int64 [M, 3, C]: rightly predicted, predicted, and in the truth."""
    images = np.broadcast_to(np.arange(len(truth_MS)).reshape(-1, *[1] * (truth_MS.ndim - 1)), truth_MS.shape)
    counted = truth_MS != IGNORE
    image, predicted, truth = images[counted], predicted_MS[counted].astype(np.int64), truth_MS[counted]

    def count(of: np.ndarray, where: np.ndarray | slice = slice(None)) -> np.ndarray:
        places = image[where] * classes + of[where]
        return np.bincount(places, minlength=len(truth_MS) * classes).reshape(-1, classes)

    return np.stack([count(predicted, predicted == truth), count(predicted), count(truth)], axis=1)


def dice(counts: np.ndarray) -> np.ndarray:
    """2 |A and B| / (|A| + |B|) of counts [..., 3, C] -> [..., C], 0..1; nan where a class is in neither."""
    right, predicted, truth = np.moveaxis(counts, -2, 0)
    return _ratio(2 * right, predicted + truth)


def iou(counts: np.ndarray) -> np.ndarray:
    """|A and B| / |A or B| of counts [..., 3, C] -> [..., C], 0..1; nan where a class is in neither."""
    right, predicted, truth = np.moveaxis(counts, -2, 0)
    return _ratio(right, predicted + truth - right)


def dice_per_image(counts_M3C: np.ndarray) -> np.ndarray:
    """Mean Dice of each class over the images that have it in the truth -> [C]; nan where none has."""
    return nan_mean(np.where(counts_M3C[:, 2] > 0, dice(counts_M3C), np.nan))


def pool(counts_M3C: np.ndarray, group_M: np.ndarray) -> np.ndarray:
    """Counts summed over each group, in the order of the sorted groups -> [G, 3, C]."""
    groups, index = np.unique(group_M, return_inverse=True)
    pooled = np.zeros((len(groups), *counts_M3C.shape[1:]), np.int64)
    np.add.at(pooled, index, counts_M3C)
    return pooled


def dice_interval(counts_G3C: np.ndarray, seed: int) -> list[float]:
    """95 % interval of the mean Dice of all pixels over the classes, by drawing groups with replacement (Efron 1979).

    Of one group, the Dice twice: one group cannot tell how others differ.

    Args:
        counts_G3C: from `pool`, of the classes to average over; the images of a group are alike, so that drawing images
            would give too narrow an interval.
    """
    drawn = np.random.default_rng(seed).integers(len(counts_G3C), size=(_RESAMPLES, len(counts_G3C)))
    means = [nan_mean(dice(counts_G3C[rows].sum(axis=0))) for rows in drawn]
    return np.nanquantile(means, [0.025, 0.975]).tolist() if np.isfinite(means).any() else [np.nan] * 2


def surface_distances(
    predicted_S: np.ndarray, truth_S: np.ndarray, classes: int, spacing: Sequence[float] | None = None
) -> np.ndarray:
    """95 % Hausdorff distance and average surface distance of each class in one image -> float64 [C, 2].

    A surface is the pixels of a class with a neighbour (across an edge) that is not of it, or at the image's border.
    The first is the larger of the two 95th percentiles of the distances from each surface to the nearest pixel of the
    other (Huttenlocher et al. 1993, with a percentile); the second is the mean of all distances both ways.

    A class that is predicted and not in the truth, or the other way round, gets the image's diagonal for both: nothing
    is farther apart, so that leaving a class out never pays. nan: neither has it.

    Args:
        spacing: size of a pixel along each axis; None measures in pixels.
    """
    counted = truth_S != IGNORE
    pixel = np.ones(truth_S.ndim) if spacing is None else np.asarray(spacing, np.float64)
    diagonal = float(np.linalg.norm(np.array(truth_S.shape) * pixel))
    distances = np.full((classes, 2), np.nan)
    for class_id in range(classes):
        predicted, truth = (predicted_S == class_id) & counted, truth_S == class_id
        if not (predicted.any() and truth.any()):
            distances[class_id] = diagonal if predicted.any() or truth.any() else np.nan
            continue
        edges = get_mask_edges(torch.from_numpy(predicted), torch.from_numpy(truth), crop=False)
        ways = [np.asarray(get_surface_distance(a, b, spacing=pixel.tolist())) for a, b in (edges, edges[::-1])]
        distances[class_id] = max(np.percentile(way, 95) for way in ways), np.concatenate(ways).mean()
    return distances


def confidence_bins(confidence: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Pixels by the probability of their predicted class -> float64 [BINS, 3]: number, sum of it, number right.

    Args:
        confidence: 0..1, any shape; the bins are equally wide, the last one includes 1.
        right: bool, the same shape.
    """
    index = np.minimum((confidence.ravel() * BINS).astype(np.int64), BINS - 1)
    weights = (np.ones(index.shape), confidence.ravel(), right.ravel())
    return np.stack([np.bincount(index, weight, minlength=BINS) for weight in weights], axis=1)


def expected_calibration_error(bins_B3: np.ndarray) -> float:
    """Mean over the pixels of how far the accuracy of their bin is from its confidence (Naeini et al. 2015): 0..1."""
    return float(np.abs(bins_B3[:, 1] - bins_B3[:, 2]).sum() / max(bins_B3[:, 0].sum(), 1))


def nan_mean(values: np.ndarray) -> np.ndarray:
    """Mean over the first axis of what is not nan; nan where nothing is left."""
    defined = ~np.isnan(values)
    return _ratio(np.where(defined, values, 0).sum(axis=0), defined.sum(axis=0))


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    return np.divide(above, below, out=np.full(np.shape(below), np.nan), where=np.asarray(below) > 0)
