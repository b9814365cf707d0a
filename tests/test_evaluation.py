"""The stage of the evaluation, from end to end."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import depth_folder, write_grids
from PIL import Image

from sightline.core.errors import UserError
from sightline.depth.baselines import Dct
from sightline.depth.evaluation import EvaluateParams, evaluate_autoencoder
from sightline.depth.evaluator import ModelEvaluator
from sightline.depth.network import Autoencoder, NetworkConfig
from sightline.depth.normalize import NormalizeParams, normalize_depth
from sightline.depth.store import DepthStore, open_depth_rows
from sightline.depth.weights import Header, save_weights
from sightline.recording.split import SplitParams

CPU = torch.device("cpu")
PICTURES = ("reconstruction_results.png", "latent_analysis.png", "interpolation.png")


@pytest.fixture(scope="module")
def network() -> Autoencoder:
    torch.manual_seed(0)
    return Autoencoder(NetworkConfig(latent_dim=128, width=16)).eval()


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
    rank = min(128, 4 * figures["train_frames"] - 1)
    assert numbers == {
        "autoencoder": 128, "mean_image": 0, "nearest_train_frame": 1, "pca": rank, "grid": 121, "dct": 128
    }  # fmt: skip
    assert {len(code) for code in figures["codes"].values()} == {16}
    assert all(code["rmse_mm"] > 0 for code in figures["codes"].values())
    known = {"autoencoder", "pca", "grid", "dct"}
    assert set(figures["embedding"]["probe"]["joints"]) == known | {"nearest_train_frame", "random_network"}
    assert set(figures["embedding"]["parts"]["joints"]) == {"patches", "scene"}
    assert set(figures["embedding"]["gain"]["joints"]) == set(figures["embedding"]["probe"]["joints"]) - {
        "pca",
        "grid",
        "dct",
    } | {"patches", "scene"}
    assert figures["embedding"]["probe"]["joints"]["dct"]["r2"] > 0.9  # the joints of this test are linear in it
    assert figures["embedding"]["probe"]["object_position"]["dct"]["targets"] == 2
    assert set(figures["embedding"]["retrieval"]) == known | {"random_network"}
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
    codes = Dct(128, CPU).encode(torch.tensor(store.depth)).numpy().reshape(30, 4, 32)
    grids = write_grids(files / "grids", store.frame_id[order], codes[order], most=7)
    options = {"frames": files / "frames.parquet", "grids": grids}
    results = evaluate_autoencoder(*paths, files / "o", EvaluateParams(baselines=("dct",)), **options)
    for column in ("joints", "object_position"):
        probe = results["embedding"]["probe"][column]
        assert probe["image_grid"]["r2"] == pytest.approx(probe["dct"]["r2"], abs=1e-4)
    assert results["embedding"]["retrieval"]["image_grid"] == results["embedding"]["retrieval"]["dct"]
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
    assert (latents.shape, decoded.shape) == ((3, 128), (3, 1, 128, 128))
    assert not latents.requires_grad
    assert not decoded.requires_grad
    assert not evaluator.network.training
    assert decoded.abs().max() <= 1
    torch.testing.assert_close(evaluator.reconstruct(images), decoded)
    torch.testing.assert_close(decoded, network(images)[0].detach(), rtol=1e-3, atol=1e-4)
    with pytest.raises(ValueError, match=r"expected images \[B, 1, 128, 128\], got \[3, 128, 128\]"):
        evaluator.encode_image(images[:, 0])
    with pytest.raises(ValueError, match=r"expected latents \[B, 128\], got \[3, 10\]"):
        evaluator.decode_latent(latents[:, :10])
