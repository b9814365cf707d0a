"""Evaluation: figures of known errors, baselines that are what they claim, and the stage from end to end."""

import json
import math

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import depth_folder, write_grids
from PIL import Image
from torchmetrics.functional.image import structural_similarity_index_measure

from sightline.core.errors import UserError
from sightline.depth.accuracy import Accuracy, format_table, near_edges, ssim
from sightline.depth.baselines import Dct, Grid, MeanImage, NearestTrainFrame, Pca
from sightline.depth.evaluation import EvaluateParams, evaluate_autoencoder
from sightline.depth.evaluator import ModelEvaluator
from sightline.depth.network import Autoencoder, NetworkConfig
from sightline.depth.normalize import NormalizeParams, normalize_depth
from sightline.depth.preprocessing import Preprocessing
from sightline.depth.store import DepthStore, create_depth_store, open_depth_rows
from sightline.depth.weights import Header, save_weights
from sightline.recording.split import SplitParams
from sightline.training import probing

CPU = torch.device("cpu")
RANGE = Preprocessing(height_range=(500, 2500), unit_mm=0.5)  # one normalised unit is 500 mm, zero is 750 mm
PICTURES = ("reconstruction_results.png", "latent_analysis.png", "interpolation.png")


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
    create_depth_store(path, np.arange(7), np.repeat([0, 1], [4, 3]), split, RANGE)
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
    code = NearestTrainFrame(tiny_store, np.arange(4), CPU)
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


@pytest.fixture(scope="module")
def network() -> Autoencoder:
    torch.manual_seed(0)
    return Autoencoder(NetworkConfig(latent_dim=64)).eval()


@pytest.fixture
def files(tmp_path, network):
    """Weights, data of 30 frames (16 train, 5 val, 9 test; a test frame repeats a training frame), joints."""
    depth_folder(tmp_path / "in", 30)
    params, split = NormalizeParams(height_range=(500, 1500)), SplitParams(guard=0, val=0.15, test=0.3)
    normalize_depth(tmp_path / "in", tmp_path / "depth.hdf5", params, split=split, processes=1)
    store = DepthStore.open(tmp_path / "depth.hdf5")
    depth, valid = open_depth_rows(tmp_path / "depth.hdf5")
    twin = store.rows("test")[-1]
    depth[twin], valid[twin] = depth[store.rows("train")[0]], valid[store.rows("train")[0]]
    header = Header(kind="autoencoder", network=network.config, preprocessing=store.preprocessing)
    save_weights(tmp_path / "autoencoder.safetensors", network, header)
    codes = Dct(3, CPU).encode(torch.tensor(store.depth)).numpy()
    table = {"frame_id": range(30), "episode": 0, "step": range(30), "time_s": np.arange(30) / 10}
    targets = {"joints": list(codes.astype(float)), "object_position": list(codes[:, :2].astype(float))}
    pd.DataFrame(table | targets).to_parquet(tmp_path / "frames.parquet")
    return tmp_path


ARGUMENTS = ("autoencoder.safetensors", "depth.hdf5")


def test_the_stage_writes_figures_and_pictures_of_every_code_with_the_same_bytes_again(files, stage):
    result = stage("evaluate", *ARGUMENTS, "out", "--frames", "frames.parquet")
    assert result.returncode == 0, result.stderr
    written = [*PICTURES, "evaluation_results.json", "metrics.json"]
    assert sorted(path.name for path in (files / "out").iterdir()) == sorted(written)
    figures = json.loads((files / "out/evaluation_results.json").read_text())
    held_out = len(DepthStore.open(files / "depth.hdf5").rows("test"))
    assert (figures["part"], figures["frames"], figures["duplicates_left_out"]) == ("test", held_out - 1, 1)
    assert figures["height_range_mm"] == [500, 1500]
    numbers = {name: code["numbers"] for name, code in figures["codes"].items()}
    rank = min(64, 4 * figures["train_frames"] - 1)
    assert numbers == {
        "autoencoder": 64, "mean_image": 0, "nearest_train_frame": 1, "pca": rank, "grid": 64, "dct": 64
    }  # fmt: skip
    assert {len(code) for code in figures["codes"].values()} == {16}
    assert all(code["rmse_mm"] > 0 for code in figures["codes"].values())
    assert set(figures["embedding"]["probe"]["joints"]) == {"autoencoder", "pca", "grid", "dct"}
    assert figures["embedding"]["probe"]["joints"]["dct"]["r2"] > 0.9  # the joints of this test are linear in it
    assert figures["embedding"]["probe"]["object_position"]["dct"]["targets"] == 2
    assert set(figures["embedding"]["retrieval"]) == {"autoencoder", "pca", "grid", "dct"}
    assert [line.split()[0] for line in result.stdout.splitlines()] == [
        "code", "autoencoder", "mean_image", "nearest_train_frame", "pca", "grid", "dct"
    ]  # fmt: skip
    for name in PICTURES:
        assert min(Image.open(files / "out" / name).size) > 300
    paths = [files / name for name in ARGUMENTS]
    evaluate_autoencoder(*paths, files / "again", EvaluateParams(), frames=files / "frames.parquet")
    headline = json.loads((files / "out/metrics.json").read_text())
    assert headline["rmse_mm"] == figures["codes"]["autoencoder"]["rmse_mm"]
    assert headline["best_baseline_rmse_mm"] == min(
        figures["codes"][name]["rmse_mm"] for name in figures["codes"] if name != "autoencoder"
    )
    for path in (files / "out" / name for name in written):
        assert path.read_bytes() == (files / "again" / path.name).read_bytes(), path.name


def test_grids_of_the_same_frames_are_judged_beside_the_codes(files):
    paths, store = [files / name for name in ARGUMENTS], DepthStore.open(files / "depth.hdf5")
    order = np.random.default_rng(0).permutation(30)
    codes = Dct(64, CPU).encode(torch.tensor(store.depth)).numpy().reshape(30, 4, 16)
    grids = write_grids(files / "grids", store.frame_id[order], codes[order], most=7)
    options = {"frames": files / "frames.parquet", "grids": grids}
    results = evaluate_autoencoder(*paths, files / "o", EvaluateParams(baselines=("dct",)), **options)
    for column in ("joints", "object_position"):
        probe = results["embedding"]["probe"][column]
        assert probe["clip_grid"]["r2"] == pytest.approx(probe["dct"]["r2"], abs=1e-4)
    assert results["embedding"]["retrieval"]["clip_grid"] == results["embedding"]["retrieval"]["dct"]
    assert set(results["codes"]) == {"autoencoder", "dct"}
    options["grids"] = write_grids(files / "grids.hdf5", store.frame_id[1:], codes[1:])
    with pytest.raises(UserError, match=r"grids.hdf5: no grid of image 0 \(1 of 30 are missing\)"):
        evaluate_autoencoder(*paths, files / "o", EvaluateParams(), **options)


def test_the_batch_size_changes_nothing_but_rounding(files):
    paths = [files / name for name in ARGUMENTS]
    one, many = (
        evaluate_autoencoder(*paths, files / "o", EvaluateParams(baselines=("dct",), batch_size=size))
        for size in (3, 64)
    )
    for name in ("autoencoder", "dct"):
        assert one["codes"][name] == pytest.approx(many["codes"][name], rel=1e-4)


def test_without_baselines_or_joints_or_validation_frames_it_still_works(files):
    frames = pd.read_parquet(files / "frames.parquet")
    frames.drop(columns=["joints", "object_position"]).to_parquet(files / "bare.parquet")
    paths = [files / name for name in ARGUMENTS]
    params = EvaluateParams(baselines=(), part="val")
    results = evaluate_autoencoder(*paths, files / "o", params, frames=files / "bare.parquet")
    assert (set(results["codes"]), results["part"]) == ({"autoencoder"}, "val")
    assert "probe" not in results["embedding"]
    params = EvaluateParams(baselines=(), part="val", probe=("joints",))
    results = evaluate_autoencoder(*paths, files / "o", params, frames=files / "frames.parquet")
    assert results["embedding"]["probe"]["joints"]["autoencoder"]["targets"] == 3
    assert "object_position" not in results["embedding"]["probe"]


def test_a_single_held_out_frame_is_enough(files):
    depth_folder(files / "in", 30)
    params = NormalizeParams(height_range=(500, 1500))
    split = SplitParams(guard=0, val=0.1, test=0.01)
    normalize_depth(files / "in", files / "depth.hdf5", params, split=split, processes=1)
    assert len(DepthStore.open(files / "depth.hdf5").rows("test")) == 1
    results = evaluate_autoencoder(*(files / name for name in ARGUMENTS), files / "o", EvaluateParams())
    assert results["frames"] == 1


def test_data_normalised_in_another_way_are_refused(files):
    params = NormalizeParams(height_range=(500, 2500))
    normalize_depth(files / "in", files / "depth.hdf5", params, split=SplitParams(guard=0), processes=1)
    with pytest.raises(UserError, match=r"depth.hdf5: normalised with .*2500.* trained on .*1500"):
        evaluate_autoencoder(*(files / name for name in ARGUMENTS), files / "o", EvaluateParams())
    assert not (files / "o").exists()


def test_a_split_without_held_out_frames_is_refused(files):
    params = NormalizeParams(height_range=(500, 1500))
    split = SplitParams(guard=0, test=0)
    normalize_depth(files / "in", files / "depth.hdf5", params, split=split, processes=1)
    with pytest.raises(UserError, match=r"depth.hdf5: no frames in part test; set evaluate.part"):
        evaluate_autoencoder(*(files / name for name in ARGUMENTS), files / "o", EvaluateParams())


def test_held_out_frames_that_are_all_training_frames_are_refused(files):
    store = DepthStore.open(files / "depth.hdf5")
    open_depth_rows(files / "depth.hdf5")[0][store.rows("test")] = store.depth[store.rows("train")[0]]
    with pytest.raises(UserError, match="every frame of part test is also a training frame"):
        evaluate_autoencoder(*(files / name for name in ARGUMENTS), files / "o", EvaluateParams())


def test_the_evaluator_encodes_decodes_and_reconstructs_without_gradients(files, network):
    evaluator = ModelEvaluator(str(files / "autoencoder.safetensors"), device="cpu")
    images = torch.tensor(DepthStore.open(files / "depth.hdf5").depth[:3])[:, None].requires_grad_()
    latents = evaluator.encode_image(images)
    decoded = evaluator.decode_latent(latents)
    assert (latents.shape, decoded.shape) == ((3, 64), (3, 1, 128, 128))
    assert not latents.requires_grad
    assert not decoded.requires_grad
    assert not evaluator.network.training
    assert decoded.abs().max() <= 1
    torch.testing.assert_close(evaluator.reconstruct(images), decoded)
    torch.testing.assert_close(decoded, network(images)[0].detach(), rtol=1e-3, atol=1e-4)
    with pytest.raises(ValueError, match=r"expected images \[B, 1, 128, 128\], got \[3, 128, 128\]"):
        evaluator.encode_image(images[:, 0])
    with pytest.raises(ValueError, match=r"expected latents \[B, 64\], got \[3, 10\]"):
        evaluator.decode_latent(latents[:, :10])
