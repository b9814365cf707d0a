"""Evaluation of fusion models: it sees what the model looks at, and refuses what cannot be evaluated."""

import json
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import only_error_line, write_grids
from PIL import Image
from test_fusion_training import CAMERAS, EPISODES, SMALL, pack, train, write_recording

from sightline.core.errors import UserError
from sightline.fusion import load_policy
from sightline.fusion.chunks import chunk_rows
from sightline.fusion.evaluation import EvaluateFusionParams, evaluate_fusion
from sightline.fusion.policy import save_policy
from sightline.fusion.views import Views


@pytest.fixture
def data(tmp_path) -> Path:
    return pack(write_recording(tmp_path / "recording"))


@pytest.mark.parametrize("design", ["shared", "images_only", "joints_only"])
def test_every_design_trains_and_is_evaluated(data, tmp_path, design):
    figures = evaluate_fusion(train(data, design=design), data, tmp_path / "e", EvaluateFusionParams())
    assert figures["frames"] == 8
    assert np.isfinite(figures["nmse"])
    assert ("shuffled_views" in figures["use"]) == (design != "joints_only")
    assert ("shuffled_joints" in figures["use"]) == (design != "images_only")


def test_the_evaluation_shows_that_the_model_looks_where_the_cue_is(tmp_path):
    data = pack(write_recording(tmp_path / "recording", cue=True), test=0.3)
    params = SMALL.model_copy(update={"epochs": 25, "jitter": 0.0, "joint_dropout": 0.0, "patience": 25})
    figures = evaluate_fusion(train(data, params=params), data, tmp_path / "e", EvaluateFusionParams())
    blind = evaluate_fusion(
        train(data, "j", "joints_only", params=params), data, tmp_path / "j", EvaluateFusionParams()
    )
    assert figures["nmse"] < 0.5 * figures["baselines"]["mean"]["nmse"]
    assert figures["nmse"] < blind["nmse"]
    assert figures["use"]["blank_left_wrist"] > 10 * abs(figures["use"]["blank_global"])
    assert figures["use"]["shuffled_views"] > abs(figures["use"]["shuffled_joints"])
    assert figures["use"]["swapped_first_two"] > 0.1
    low, high = figures["nmse_interval"]
    assert low <= figures["nmse"] <= high
    assert set(figures["by_episode"]) == {
        str(i) for i in np.unique(Views.open(data).episode[Views.open(data).rows("test")])
    }


def test_figures_are_those_of_the_errors(data, tmp_path):
    weights = train(data, design="joints_only", params=SMALL.model_copy(update={"objective": "cvae"}))
    figures = evaluate_fusion(weights, data, tmp_path / "e", EvaluateFusionParams(batch_size=3))
    views, policy = Views.open(data), load_policy(weights, CAMERAS)
    rows = views.rows("test")
    with torch.inference_mode():
        predicted = policy(torch.from_numpy(views.images[rows]), torch.from_numpy(views.joints[rows])).numpy()
    ahead, inside = chunk_rows(views.episode, 4)
    scale = views.actions[views.split == "train", 0].std()
    error = (predicted - views.actions[ahead[rows]])[..., 0]  # the other action does not move
    squares = np.square(error / scale) * inside[rows]
    assert figures["nmse"] == pytest.approx(squares.sum() / inside[rows].sum(), rel=1e-4)
    assert figures["l1"]["0"] == pytest.approx((np.abs(error) * inside[rows]).sum() / inside[rows].sum(), rel=1e-4)
    hold = np.square((views.joints[rows][:, None, 0] - views.actions[ahead[rows]][..., 0]) / scale) * inside[rows]
    assert figures["baselines"]["hold"]["nmse"] == pytest.approx(hold.sum() / inside[rows].sum(), rel=1e-4)
    assert 0 <= figures["cvae"]["active_units"] <= figures["cvae"]["latent"] == 4
    lines = (tmp_path / "e/error_by_step.csv").read_text().splitlines()
    assert (lines[0], len(lines)) == ("step,model,mean,hold,linear,previous_action", 5)
    assert json.loads((tmp_path / "e/metrics.json").read_text())["nmse"] == pytest.approx(figures["nmse"], rel=1e-5)
    assert min(Image.open(tmp_path / "e/actions.png").size) > 300


def test_averaged_weights_include_statistics(data):
    plain = load_policy(train(data, "a"))
    averaged = load_policy(train(data, "b", params=SMALL.model_copy(update={"ema": 0.99})))
    name = "encoder.image_encoders.0.resnet.1.running_mean"
    assert not torch.equal(plain.state_dict()[name], averaged.state_dict()[name])
    assert averaged.state_dict()[name].abs().sum() > 0


def test_further_inputs_are_learnt_from(data, tmp_path):
    views = Views.open(data)
    with h5py.File(tmp_path / "d.hdf5", "w") as file:
        file["embeddings"], file["frame_id"] = (
            np.random.default_rng(0).normal(size=(48, 8)).astype("f4"),
            views.frame_id,
        )
    grids = np.random.default_rng(1).normal(size=(50, 4, 6)).astype("f2")
    depth, clip = tmp_path / "d.hdf5", write_grids(tmp_path / "c", np.arange(8, 58), grids, most=20)
    weights = train(data, design="joints_only", features=[depth, clip])
    assert load_policy(weights).config.extras == {"grid": (4, 6), "depth": (8,)}
    one_file = write_grids(tmp_path / "c.hdf5", np.arange(8, 58), grids)
    assert train(data, "f", "joints_only", features=[one_file, depth]).read_bytes() == weights.read_bytes()
    figures = evaluate_fusion(weights, data, tmp_path / "e", EvaluateFusionParams(), [clip, depth])
    assert set(figures["use"]) == {"shuffled_joints", "shuffled_grid", "shuffled_depth"}
    with pytest.raises(UserError, match=r"was trained with depth embeddings as a further input; add --feature PATH"):
        evaluate_fusion(weights, data, tmp_path / "x", EvaluateFusionParams(), [clip])
    assert not (tmp_path / "x").exists()
    with h5py.File(tmp_path / "d.hdf5", "w") as file:
        file["embeddings"], file["frame_id"] = np.ones((47, 8), "f4"), views.frame_id[1:]
    with pytest.raises(UserError, match=r"d.hdf5: lacks 1 of 48 frames of .*views.hdf5 \(first 10\); make it from"):
        train(data, features=[depth])


def test_what_a_further_input_is_worth_is_measured(tmp_path):
    """Where it alone tells the actions, other frames' values cost much; where it is noise, little."""
    data = pack(write_recording(tmp_path / "recording"))
    views, worth = Views.open(data), {}
    params = SMALL.model_copy(update={"epochs": 20, "target": "absolute"})
    for name, values in (("told", views.actions), ("noise", np.random.default_rng(0).normal(size=(48, 3)))):
        with h5py.File(tmp_path / f"{name}.hdf5", "w") as file:
            file["embeddings"], file["frame_id"] = values.astype("f4"), views.frame_id
        features = [tmp_path / f"{name}.hdf5"]
        weights = train(data, name, "joints_only", params=params, features=features)
        figures = evaluate_fusion(weights, data, tmp_path / f"e{name}", EvaluateFusionParams(), features)
        worth[name] = figures["use"]["shuffled_depth"]
    assert worth["told"] > 0.05 > worth["noise"]


def test_constant_rewards_are_no_signal_and_it_is_said(tmp_path):
    root = write_recording(tmp_path / "recording")
    frames = pd.read_parquet(root / "frames.parquet")
    frames["reward"] = 1.0
    frames.to_parquet(root / "frames.parquet")
    data = pack(root)
    with pytest.warns(UserWarning, match=r"the reward is 1 in every training frame: no signal"):
        weighted = train(data, "w", "joints_only", params=SMALL.model_copy(update={"weights": "mc"}))
    assert weighted.read_bytes() == train(data, "n", "joints_only").read_bytes()


def test_what_cannot_be_trained_or_evaluated_is_refused(data, tmp_path, stage):
    with pytest.raises(
        UserError, match=r"fusion.chunk is 9 steps, 1 frames apart, but the longest episode has room for 8"
    ):
        train(data, params=SMALL.model_copy(update={"chunk": 9}))
    weights = train(data, design="joints_only")
    with pytest.raises(
        UserError, match=r"trained on cameras left_wrist, right_wrist, global, in this order, but given"
    ):
        load_policy(weights, ("right_wrist", "left_wrist", "global"))
    with pytest.raises(UserError, match="not a fusion model"):
        evaluate_fusion(data, data, tmp_path / "e", EvaluateFusionParams())
    policy = load_policy(weights)
    config = policy.config.model_copy(update={"train_episodes": tuple(range(EPISODES))})
    policy.config = config
    save_policy(tmp_path / "all.safetensors", policy)
    with pytest.raises(UserError, match=r"all.safetensors: was trained on episode \d of part test"):
        evaluate_fusion(tmp_path / "all.safetensors", data, tmp_path / "e", EvaluateFusionParams())
    arguments = ("views.hdf5", "o.safetensors", "--metrics-dir", "o")
    assert "fusion.lr: " in only_error_line(stage("train_fusion", *arguments, "--set", "fusion.lr=-1"))
    assert not (tmp_path / "o.safetensors").exists()
