"""Metrics of segmentation against slow, direct definitions."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from sightline.segmentation.metrics import (
    BINS,
    confidence_bins,
    count_pixels,
    dice,
    dice_interval,
    dice_per_image,
    expected_calibration_error,
    iou,
    nan_mean,
    pool,
    surface_distances,
)

CLASSES = 3
seeds = st.integers(0, 2**16)


def draw(seed, shape=(4, 9, 7), ignored=0.1):
    """Two pictures of classes in blots, some images without some classes, and ignored pixels in the truth."""
    rng = np.random.default_rng(seed)
    smooth = [ndimage.gaussian_filter(rng.normal(size=shape), (0, *[1.2] * (len(shape) - 1))) for _ in range(2)]
    predicted, truth = (np.digitize(s, [0.05, 0.3]).astype(np.uint8) for s in smooth)
    truth[rng.random(shape) < ignored] = 255
    return predicted, truth


def sets(predicted, truth, class_id):
    """Pixels of a class among those that count, as sets of places."""
    places = [place for place in np.ndindex(truth.shape) if truth[place] != 255]
    return ({p for p in places if values[p] == class_id} for values in (predicted, truth))


@given(seed=seeds, shape=st.sampled_from([(2, 5, 6), (2, 3, 4, 3)]))
@settings(max_examples=30, deadline=None)
def test_overlap_is_that_of_sets(seed, shape):
    predicted, truth = draw(seed, shape)
    counts = count_pixels(predicted, truth, CLASSES)
    for image, class_id in np.ndindex(len(truth), CLASSES):
        a, b = sets(predicted[image], truth[image], class_id)
        expected = (2 * len(a & b) / (len(a) + len(b)), len(a & b) / len(a | b)) if a | b else (np.nan, np.nan)
        overlap = dice(counts)[image, class_id], iou(counts)[image, class_id]
        assert overlap == pytest.approx(expected, nan_ok=True)
    for class_id in range(CLASSES):
        a, b = sets(predicted, truth, class_id)  # pooled over all images
        pooled = 2 * len(a & b) / (len(a) + len(b)) if a | b else np.nan
        assert dice(counts.sum(0))[class_id] == pytest.approx(pooled, nan_ok=True)


def surface(mask):
    """Pixels with a neighbour that is not of the class; beyond the border nothing is."""
    padded = np.pad(mask, 1)
    inside = np.ones_like(mask)
    for axis in range(mask.ndim):
        for way in (-1, 1):
            inside &= np.roll(padded, way, axis)[(slice(1, -1),) * mask.ndim]
    return mask & ~inside


@given(seed=seeds, spacing=st.sampled_from([None, (1.0, 1.0), (0.5, 2.0)]))
@settings(max_examples=30, deadline=None)
def test_surface_distances_are_those_of_distance_transforms(seed, spacing):
    predicted, truth = (values[0] for values in draw(seed, (1, 12, 9), ignored=0.03))
    distances = surface_distances(predicted, truth, CLASSES, spacing)
    for class_id in range(CLASSES):
        a, b = (predicted == class_id) & (truth != 255), truth == class_id
        if not (a.any() and b.any()):
            diagonal = np.hypot(*(np.array([12, 9]) * (spacing or 1)))
            assert distances[class_id] == pytest.approx([diagonal if a.any() or b.any() else np.nan] * 2, nan_ok=True)
            continue
        ways = [
            ndimage.distance_transform_edt(~surface(to), sampling=spacing)[surface(of)] for of, to in ((a, b), (b, a))
        ]
        expected = max(np.percentile(way, 95) for way in ways), np.concatenate(ways).mean()
        assert distances[class_id] == pytest.approx(expected, rel=1e-5)


def test_surface_distances_of_volumes_and_of_a_shift():
    truth = np.zeros((6, 20, 20), np.uint8)
    truth[1:5, 5:15, 5:12] = 1
    moved = np.roll(truth, 3, axis=2)
    assert surface_distances(truth, truth, 2)[1].tolist() == [0, 0]
    near, far = (surface_distances(moved, truth, 2, (1, 1, size))[1] for size in (1.0, 2.0))
    assert (near[0], far[0]) == (3, 6)
    assert near[1] < far[1]


def test_an_empty_prediction_never_scores_well():
    truth = np.zeros((30, 40), np.uint8)
    truth[10, 10] = 1
    nothing, wrong = np.zeros_like(truth), np.zeros_like(truth)
    wrong[-1, -1] = 1
    np.testing.assert_equal(surface_distances(nothing, truth, 3)[1:], [[50, 50], [np.nan, np.nan]])
    assert (surface_distances(nothing, truth, 2)[1] > surface_distances(wrong, truth, 2)[1]).all()
    assert surface_distances(truth, nothing, 2)[1].tolist() == [50, 50]  # invented
    counts = count_pixels(np.stack([nothing, truth]), np.stack([truth, truth]), 3)
    assert dice(counts)[:, 1].tolist() == [0, 1]
    assert dice_per_image(counts)[1:] == pytest.approx([0.5, np.nan], nan_ok=True)


def test_the_mean_over_images_is_over_those_that_have_the_class():
    truth = np.zeros((3, 4, 4), np.uint8)
    truth[0, :2] = 1
    predicted = np.ones_like(truth)
    predicted[2] = 0
    counts = count_pixels(predicted, truth, 2)
    assert dice_per_image(counts)[1] == pytest.approx(2 * 8 / (16 + 8))  # the second has it in the prediction only
    assert dice(counts.sum(0))[1] == pytest.approx(2 * 8 / (32 + 8))  # where it counts


def test_ignored_pixels_change_nothing():
    predicted, truth = draw(3)
    other = np.where(truth == 255, (predicted + 1) % CLASSES, predicted)
    assert (count_pixels(predicted, truth, CLASSES) == count_pixels(other, truth, CLASSES)).all()
    assert count_pixels(predicted, truth, CLASSES)[:, 1].sum() == (truth != 255).sum()
    np.testing.assert_equal(*(surface_distances(p[0], truth[0], CLASSES) for p in (predicted, other)))


@given(seed=seeds)
@settings(max_examples=20, deadline=None)
def test_groups_are_pooled(seed):
    counts = count_pixels(*draw(seed), CLASSES)
    group = np.array(["b", "a", "b", "c"])
    assert (pool(counts, group) == np.stack([counts[group == g].sum(0) for g in "abc"])).all()


def test_the_interval_is_over_groups():
    predicted, truth = draw(1, (12, 20, 20))
    predicted[::2] = np.where(truth[::2] == 255, 0, truth[::2])  # right in every other image
    counts = count_pixels(predicted, truth, CLASSES)
    mean = float(nan_mean(dice(counts.sum(0))[1:]))
    even, alone = (dice_interval(pool(counts, g)[..., 1:], 0) for g in (np.arange(12) // 2, np.zeros(12)))
    apart = dice_interval(pool(counts, np.arange(12) % 2)[..., 1:], 0)  # one group all right, one all wrong
    assert alone == pytest.approx([mean, mean])
    assert even[0] < mean < even[1]
    assert apart[1] - apart[0] > 2 * (even[1] - even[0])
    assert dice_interval(pool(counts, np.arange(12) // 2)[..., 1:], 0) == even
    assert np.isnan(dice_interval(np.zeros((2, 3, CLASSES), np.int64), 0)).all()


@given(seed=seeds, count=st.integers(0, 200))
@settings(max_examples=30, deadline=None)
def test_calibration_is_that_of_a_loop_over_bins(seed, count):
    rng = np.random.default_rng(seed)
    confidence = np.append(rng.random(count), [1.0, 0.0])
    right = rng.random(count + 2) < confidence
    bins, error = confidence_bins(confidence, right), 0.0
    for b in range(BINS):
        in_bin = (confidence >= b / BINS) & ((confidence < (b + 1) / BINS) | (b == BINS - 1))
        assert bins[b] == pytest.approx([in_bin.sum(), confidence[in_bin].sum(), right[in_bin].sum()])
        if in_bin.any():
            error += in_bin.mean() * abs(confidence[in_bin].mean() - right[in_bin].mean())
    assert expected_calibration_error(bins) == pytest.approx(error)


def test_a_sure_and_right_model_is_calibrated_and_a_sure_and_wrong_one_is_not():
    sure = np.ones(50)
    assert expected_calibration_error(confidence_bins(sure, sure == 1)) == 0
    assert expected_calibration_error(confidence_bins(sure, sure == 0)) == 1
    assert expected_calibration_error(np.zeros((BINS, 3))) == 0
