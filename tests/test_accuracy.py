"""Figures of known errors, and baselines and probes that are what they claim."""

import math

import numpy as np
import pytest
import torch
from torchmetrics.functional.image import structural_similarity_index_measure

from sightline.depth.accuracy import Accuracy, format_table, near_edges, ssim
from sightline.depth.baselines import Dct, Grid, MeanImage, NearestTrainFrame, Pca
from sightline.depth.preprocessing import Preprocessing
from sightline.depth.store import DepthStore, create_depth_store, open_depth_rows
from sightline.training import probing

CPU = torch.device("cpu")
RANGE = Preprocessing(height_range=(500, 2500), unit_mm=0.5)  # one normalised unit is 500 mm, zero is 750 mm


def constant(*values: float) -> torch.Tensor:
    return torch.tensor(values)[:, None, None].expand(-1, 128, 128).clone()


def smooth_images(count: int, seed: int = 0) -> torch.Tensor:
    """Random images [N, 128, 128] of slow waves in [-1, 1]."""
    rng = np.random.default_rng(seed)
    position = np.arange(128) / 128
    waves = [
        np.outer(np.sin(rng.uniform(1, 9) * position + rng.uniform(0, 6)), np.cos(rng.uniform(1, 9) * position))
        for _ in range(count)
    ]
    return torch.tensor(np.array(waves), dtype=torch.float32)


def figures(predicted, target, valid=None, edges=None):
    accuracy = Accuracy(RANGE)
    valid = torch.ones_like(target, dtype=torch.bool) if valid is None else valid
    accuracy.update(predicted, target, valid, torch.zeros_like(valid) if edges is None else edges)
    return accuracy.figures()


def test_known_errors_have_known_figures():
    found = figures(constant(0.1, -0.3), constant(0.0, 0.0))
    assert found["rmse"] == pytest.approx(math.sqrt(0.05), rel=1e-5)
    assert found["mae"] == pytest.approx(0.2, rel=1e-5)
    assert found["rmse_per_image"] == pytest.approx(0.2, rel=1e-5)
    assert found["mae_per_image_mm"] == pytest.approx(100, rel=1e-5)
    assert found["rmse_mm"] == pytest.approx(500 * math.sqrt(0.05), rel=1e-5)
    assert found["abs_rel"] == pytest.approx((50 + 150) / 2 / 750, rel=1e-5)
    assert found["delta_1_25"] == 0.5  # 800 / 750 is within, 750 / 600 = 1.25 is not below
    assert found["psnr"] == pytest.approx(10 * math.log10(4 / 0.05), rel=1e-5)
    assert (found["edge_rmse_mm"], found["valid_share"]) == (None, 1)


def test_a_perfect_reconstruction():
    found = figures(constant(0.5), constant(0.5))
    assert (found["rmse"], found["abs_rel"], found["delta_1_25"], found["psnr"]) == (0, 0, 1, None)
    assert found["ssim"] == pytest.approx(1, abs=1e-6)


def test_pixels_without_a_reading_do_not_count_and_predictions_are_clipped():
    target, valid = constant(1.0), torch.ones(1, 128, 128, dtype=torch.bool)
    predicted = constant(1.7)
    predicted[:, :64], valid[:, :64] = -1, False
    found = figures(predicted, target, valid)
    assert (found["rmse"], found["mae"], found["valid_share"]) == (0, 0, 0.5)


def test_pooled_figures_weigh_pixels_and_per_image_figures_weigh_images():
    valid = torch.ones(2, 128, 128, dtype=torch.bool)
    valid[1, 1:] = False  # the second image has one row
    found = figures(constant(0.0, 0.4), constant(0.0, 0.0), valid)
    assert found["rmse"] == pytest.approx(0.4 * math.sqrt(1 / 129), rel=1e-5)
    assert found["rmse_per_image"] == pytest.approx(0.2, rel=1e-5)


def test_the_order_of_batches_changes_no_figure():
    target = smooth_images(6)
    predicted = target + 0.1 * smooth_images(6, seed=1)
    valid, edges = target > -0.5, target > 0.2
    whole, parts = Accuracy(RANGE), Accuracy(RANGE)
    whole.update(predicted, target, valid, edges)
    for part in (slice(4, 6), slice(0, 4)):
        parts.update(predicted[part], target[part], valid[part], edges[part])
    assert parts.figures() == pytest.approx(whole.figures(), rel=1e-6)
    assert sorted(parts.rmse_of_images_mm().tolist()) == pytest.approx(sorted(whole.rmse_of_images_mm().tolist()))


def test_a_depth_of_zero_has_no_ratio():
    accuracy, target = Accuracy(Preprocessing(height_range=(0, 1000))), constant(-1.0)
    target[:, 0] = 0
    accuracy.update(target, target, torch.ones_like(target, dtype=torch.bool), torch.zeros_like(target).bool())
    assert accuracy.figures()["abs_rel"] == 0


def test_edges_are_steps_between_valid_neighbours_and_two_pixels_around():
    depth, valid = constant(0.0), torch.ones(1, 128, 128, dtype=torch.bool)
    depth[:, :, 60:] = 0.3
    edges = near_edges(depth, valid, 0.2)
    assert torch.nonzero(edges[0, 5])[:, 0].tolist() == [57, 58, 59, 60, 61, 62]  # 59 and 60, and two around
    assert not near_edges(depth, valid, 0.31).any()
    valid[:, :, 60] = False
    assert not near_edges(depth, valid, 0.2).any()
    rows = near_edges(depth.mT, torch.ones_like(valid), 0.2)
    assert torch.nonzero(rows[0, :, 5])[:, 0].tolist() == [57, 58, 59, 60, 61, 62]
    predicted = depth.clone()
    predicted[:, :, 59] += 0.2
    found = figures(predicted, depth, edges=edges)
    assert found["edge_rmse_mm"] == pytest.approx(500 * 0.2 * math.sqrt(1 / 6), rel=1e-5)
    assert found["edge_share"] == 6 / 128


def test_ssim_is_that_of_wang_et_al():
    a = smooth_images(3)
    b = (a + 0.3 * torch.randn(a.shape, generator=torch.Generator().manual_seed(0))).clamp(-1, 1)
    padded = structural_similarity_index_measure(
        a[:, None], b[:, None], data_range=2.0, reduction="none", return_full_image=True
    )[1]
    expected = padded[:, 0, 5:-5, 5:-5].mean(dim=(1, 2))  # without the windows that reach beyond the image
    torch.testing.assert_close(ssim(a, b), expected, rtol=1e-4, atol=1e-5)


def test_the_table_marks_the_best_of_each_column():
    codes = {
        "autoencoder": {"numbers": 768, **figures(constant(0.1), constant(0.0))},
        "copy": {"numbers": 1, **figures(constant(0.0), constant(0.0))},
    }
    header, first, second = format_table(codes).splitlines()
    assert header.split()[:4] == ["code", "numbers", "rmse_mm", "mae_mm"]
    assert first.split()[:4] == ["autoencoder", "768", "50", "50"]
    assert second.split()[:4] == ["copy", "1", "0*", "0*"]
    assert len({line.index(cell) + len(cell) for line, cell in ((header, "rmse_mm"), (first, "50"))}) == 1


def rmse(code, images):
    return float((code.decode(code.encode(images)) - images).square().mean().sqrt())


def test_dct_is_exact_within_its_span_and_better_with_more_coefficients():
    code = Dct(64, CPU)
    within = code.decode(torch.randn(3, 64, generator=torch.Generator().manual_seed(0)))
    assert rmse(code, within) < 1e-5
    images = smooth_images(4)
    errors = [rmse(Dct(numbers, CPU), images) for numbers in (1, 3, 36, 64, 256, 768)]
    assert errors == sorted(errors, reverse=True)
    assert rmse(Dct(16384, CPU), images) < 1e-5
    assert rmse(Dct(1, CPU), constant(0.3)) < 1e-5  # the first coefficient is the mean


def test_a_dct_coefficient_is_the_amplitude_of_its_wave():
    position = (2 * torch.arange(128) + 1) * torch.pi / 256
    zigzag = [(0, 0), (0, 1), (1, 0), (0, 2), (1, 1), (2, 0)]
    waves = torch.stack([torch.outer(torch.cos(u * position), torch.cos(v * position)) for u, v in zigzag])
    waves /= waves.flatten(1).norm(dim=1)[:, None, None]
    torch.testing.assert_close(Dct(6, CPU).encode(waves), torch.eye(6), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("numbers", "cells"), [(768, 28 * 27), (64, 64), (2, 2), (20000, 128 * 128)])
def test_the_grid_is_near_a_square_and_keeps_flat_images(numbers, cells):
    code = Grid(numbers, CPU)
    assert code.numbers == cells == code.encode(constant(0.3)).shape[1]
    assert rmse(code, constant(0.3, -0.9)) < 1e-5


def test_the_grid_is_better_with_more_cells():
    images = smooth_images(4)
    errors = [rmse(Grid(numbers, CPU), images) for numbers in (4, 16, 64, 256, 784)]
    assert errors == sorted(errors, reverse=True)


def test_pca_is_exact_on_what_it_was_fitted_on_and_better_with_more_components():
    images = smooth_images(6)
    assert Pca(images.numpy(), 64, False, CPU).numbers == 5  # six images span five directions about their mean
    assert rmse(Pca(images.numpy(), 64, False, CPU), images) < 1e-4
    errors = [rmse(Pca(images.numpy(), numbers, False, CPU), images) for numbers in (1, 2, 3, 4, 5)]
    assert errors == sorted(errors, reverse=True)


def test_pca_in_all_orientations_is_pca_of_the_turned_images():
    images = smooth_images(5)
    turned = torch.cat([torch.rot90(images, k, (1, 2)) for k in range(4)])
    code, expected = Pca(images.numpy(), 8, True, CPU), Pca(turned.numpy(), 8, False, CPU)
    assert rmse(code, turned) == pytest.approx(rmse(expected, turned), rel=1e-4)
    full = Pca(images.numpy(), 64, True, CPU)
    assert rmse(full, turned) < 1e-4
    basis = full.decode(torch.eye(full.numbers)) - full.decode(torch.zeros(1, full.numbers))
    torch.testing.assert_close(basis.flatten(1) @ basis.flatten(1).T, torch.eye(full.numbers), atol=1e-4, rtol=0)


@pytest.fixture
def tiny_store(tmp_path) -> DepthStore:
    path, split = tmp_path / "tiny.hdf5", np.array(["train"] * 4 + ["test"] * 3)
    columns = {"frame_id": np.arange(7), "episode": np.repeat([0, 1], [4, 3]), "split": split.astype("S5")}
    create_depth_store(path, columns, RANGE)
    depth, valid = open_depth_rows(path)
    depth[:], valid[:] = smooth_images(7), True
    valid[0, :64] = False
    return DepthStore.open(path)


def test_the_mean_image_is_over_valid_pixels(tiny_store):
    mean = MeanImage(tiny_store, np.arange(4), CPU).decode(torch.zeros(2, 0))
    assert mean.shape == (2, 128, 128)
    np.testing.assert_allclose(mean[0, :64], tiny_store.depth[1:4, :64].mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(mean[0, 64:], tiny_store.depth[:4, 64:].mean(axis=0), atol=1e-6)


def test_the_nearest_training_frame_is_copied(tiny_store, monkeypatch):
    monkeypatch.setattr("sightline.depth.baselines.BLOCK", 2)
    code = NearestTrainFrame(tiny_store, np.array([0, 2, 3]), CPU)
    asked = torch.from_numpy(tiny_store.depth[[3, 0]]) * 0.99
    assert code.encode(asked)[:, 0].tolist() == [3, 0]
    np.testing.assert_array_equal(code.decode(code.encode(asked)), tiny_store.depth[[3, 0]])


def test_retrieval_counts_neighbours_in_time():
    episode, step = np.repeat([0, 1], 20), np.tile(np.arange(20), 2)
    angle = step * 0.05 + 3 * episode  # neighbours in time are neighbours on a circle
    on_a_circle = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    found = probing.retrieval(on_a_circle + 100, np.full(2, 100.0), episode, step)
    assert (found["queries"], found["recall_at_1"], found["same_episode"]) == (40, 1, 1)
    noise = np.random.default_rng(0).normal(size=(40, 8))
    assert probing.retrieval(noise, np.zeros(8), episode, step)["recall_at_1"] < 0.5
    far_apart = probing.retrieval(noise[:3], np.zeros(8), np.zeros(3, int), np.array([0, 1, 10]))
    assert far_apart == {"queries": 0}


def test_retrieval_leaves_adjacent_frames_out():
    codes = np.eye(4)[[0, 0, 1, 2]]  # frame 1 repeats frame 0, and that does not count
    found = probing.retrieval(codes, np.zeros(4), np.zeros(4, int), np.array([0, 1, 2, 20]))
    assert found["queries"] == 2
    assert found["chance"] == 0.5


def test_the_linear_probe_finds_linear_joints_and_is_honest_about_noise():
    rng = np.random.default_rng(0)
    codes, linear = rng.normal(size=(300, 10)), rng.normal(size=(10, 3))
    parts = [(codes[a:b], codes[a:b] @ linear + [1, 2, 3]) for a, b in ((0, 200), (200, 250), (250, 300))]
    assert probing.linear_probe(*parts)["r2"] > 0.999
    noise = [(x, rng.normal(size=(len(x), 4)) * [1, 1, 1, 0]) for x, _ in parts]
    found = probing.linear_probe(*noise)
    assert found["r2"] < 0.2
    assert found["targets"] == 3  # one does not move


@pytest.mark.parametrize("features", [8, 90])  # fewer, and more, than samples
def test_ridge_regression_is_the_solution_of_the_normal_equations(features):
    rng = np.random.default_rng(0)
    x, y, new = rng.normal(size=(40, features)) + 3, rng.normal(size=(40, 2)), rng.normal(size=(5, features))
    alpha, centred = 0.1, x - x.mean(0)
    scale = np.sqrt(np.square(centred).mean())
    centred /= scale
    weights = np.linalg.solve(centred.T @ centred / 40 + alpha * np.eye(features), centred.T @ (y - y.mean(0)) / 40)
    expected = (new - x.mean(0)) / scale @ weights + y.mean(0)
    np.testing.assert_allclose(probing.Ridge(x, y).predict(new, alpha), expected, rtol=1e-6, atol=1e-8)


def test_the_effective_rank_counts_directions():
    rng = np.random.default_rng(0)
    codes = np.zeros((2000, 20))
    codes[:, :4] = rng.normal(size=(2000, 4))
    rank, variances = probing.effective_rank(codes + 5)
    assert rank == pytest.approx(4, abs=0.05)
    assert variances.shape == (20,)
    assert probing.effective_rank(np.ones((3, 8)))[0] == 1  # all alike
