"""Packing views, and training on them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import ROOT
from PIL import Image

from sightline.core.errors import UserError
from sightline.fusion import FusionPolicy, load_policy
from sightline.fusion import views as views_module
from sightline.fusion.advantage import LapoCritic, chunk_rewards, discounted_returns
from sightline.fusion.chunks import Chunks, chunk_rows
from sightline.fusion.evaluation import EvaluateFusionParams, evaluate_fusion
from sightline.fusion.linear import fit_linear
from sightline.fusion.policy import PolicyConfig
from sightline.fusion.training import FusionParams, train_fusion
from sightline.fusion.views import ViewParams, Views, pack_views
from sightline.recording.layout import RecordingInfo, write_recording_info
from sightline.recording.split import DataParams, SplitParams
from sightline.training.order import Draw
from sightline.validation.validation import validate_recording

CAMERAS = ("left_wrist", "right_wrist", "global")
SMALL = FusionParams(
    chunk=4, epochs=2, batch_size=8, lr=1e-3, trunk_lr=1e-3, gradient_clip=1.0, precision="fp32", shift=2
)
EPISODES, STEPS = 6, 8


def write_recording(root: Path, cue: bool = False) -> Path:
    """Six episodes of eight frames: joints rise, actions follow; with ``cue`` the left view's colour is the action."""
    rng, count = np.random.default_rng(0), EPISODES * STEPS
    shown = rng.uniform(-1, 1, EPISODES).repeat(STEPS)
    step = np.tile(np.arange(STEPS), EPISODES)
    joints = np.stack([step / STEPS, np.full(count, 0.7)], axis=1)  # the second does not move
    actions = np.stack([shown if cue else joints[:, 0] + 0.1, np.full(count, 2.0)], axis=1)
    table = {"frame_id": np.arange(count) + 10, "episode": np.arange(EPISODES).repeat(STEPS), "step": step,
             "time_s": step / 10, "joints": list(joints), "actions": list(actions), "reward": step / STEPS}  # fmt: skip
    root.mkdir(parents=True)
    pd.DataFrame(table).to_parquet(root / "frames.parquet")
    write_recording_info(root / "recording.json", RecordingInfo(fps=10.0, cameras=CAMERAS, joints=("lift", "fixed")))
    for camera in CAMERAS:
        (root / "rgb" / camera).mkdir(parents=True)
        for i in range(count):
            pixels = rng.integers(90, 110, (20, 30, 3))
            if camera == "left_wrist":
                pixels[..., 0] = 127 + 100 * shown[i]
            Image.fromarray(pixels.astype(np.uint8)).save(root / f"rgb/{camera}/{i + 10:06d}.png")
    return root


def pack(root: Path, on_error: str = "fail", test: float = 0.15) -> Path:
    """Validate and pack the recording at ``root`` -> file of views."""
    data = DataParams(on_error=on_error, split=SplitParams(val=0.15, test=test))
    validate_recording(root, root.parent / "index", data, processes=1)
    pack_views(root, root.parent / "index", root.parent / "views.hdf5", ViewParams(image_size=32), processes=1)
    return root.parent / "views.hdf5"


@pytest.fixture
def data(tmp_path) -> Path:
    return pack(write_recording(tmp_path / "recording"))


def train(data: Path, name: str = "m", design="stacked", seed=0, params=SMALL, **options) -> Path:
    weights = data.parent / f"{name}.safetensors"
    train_fusion(data, weights, data.parent / name, params, seed, design=design, **options)
    return weights


def test_the_file_of_views_holds_every_frame_once(data, tmp_path):
    views = Views.open(data)
    assert views.images.shape == (48, 3, 3, 32, 32)
    assert (views.cameras, views.joint_names, views.has_reward) == (CAMERAS, ("lift", "fixed"), True)
    assert views.frame_id.tolist() == list(range(10, 58))
    assert {part: len(views.rows(part)) for part in ("train", "val", "test")} == {"train": 32, "val": 8, "test": 8}
    image = Image.open(tmp_path / "recording/rgb/global/000020.png").resize((32, 32), Image.Resampling.BICUBIC)
    assert (views.images[10, 2].transpose(1, 2, 0) == np.asarray(image)).all()
    before = data.read_bytes()
    pack(tmp_path / "recording")
    assert data.read_bytes() == before


def test_card_and_details_name_the_arithmetic(data, tmp_path, monkeypatch):
    """As where a switch of torch rounds float32."""
    card, details = tmp_path / "m.card.json", tmp_path / "m/details.json"
    train(data, design="joints_only")
    assert [json.loads(path.read_text())["precision"] for path in (card, details)] == ["fp32", "fp32"]
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    torch.set_float32_matmul_precision("medium")
    try:
        train(data, design="joints_only")
    finally:
        torch.set_float32_matmul_precision("highest")
    assert [json.loads(path.read_text())["precision"] for path in (card, details)] == ["bf32", "bf32"]


def test_interrupted_packing_continues(data, tmp_path, monkeypatch):
    expected, decoded = data.read_bytes(), []
    monkeypatch.setattr(views_module, "_BLOCK", 16)
    decode = views_module._decode_block

    def failing(job):
        if len(decoded) == 2:
            raise KeyboardInterrupt
        decoded.append(job[1])
        return decode(job)

    monkeypatch.setattr(views_module, "_decode_block", failing)
    arguments = (tmp_path / "recording", tmp_path / "index", tmp_path / "views.hdf5", ViewParams(image_size=32))
    with pytest.raises(KeyboardInterrupt):
        pack_views(*arguments, processes=1)
    decoded.clear()
    pack_views(*arguments, processes=1)
    assert decoded == [32]
    assert data.read_bytes() == expected


def test_frames_without_an_image_are_not_learnt_from_but_their_actions_are(tmp_path):
    root = write_recording(tmp_path / "recording")
    (root / "rgb/right_wrist/000012.png").unlink()
    with pytest.warns(UserWarning, match=r"1 of 48 .* are broken or missing|1 of 48 frames lack an image .*12"):
        data = pack(root, on_error="skip")
    views = Views.open(data)
    assert (views.sound.sum(), views.images[2].max()) == (47, 0)
    assert 2 not in views.rows(views.split[2])
    batch = Chunks(views, 4, 1, {})[Draw(np.array([1]), np.zeros((1, 0), np.float32))]
    assert (batch["actions"][0].numpy() == views.actions[1:5]).all()


def test_chunks_stay_within_their_episode():
    ahead, inside = chunk_rows(np.array([0, 0, 0, 5, 5]), 3)
    assert ahead.tolist() == [[0, 1, 2], [1, 2, 2], [2, 2, 2], [3, 4, 4], [4, 4, 4]]
    assert inside.sum(1).tolist() == [3, 2, 1, 2, 1]
    ahead, inside = chunk_rows(np.array([0, 0, 0, 0, 5]), 2, stride=2)
    assert (ahead.tolist(), inside.sum(1).tolist()) == ([[0, 2], [1, 3], [2, 3], [3, 3], [4, 4]], [2, 2, 1, 1, 1])


def test_returns_are_discounted_within_the_episode():
    returns = discounted_returns(np.array([1.0, 2, 4, 8, 16]), np.array([0, 0, 1, 1, 1]), 0.5)
    assert returns.tolist() == [2, 2, 12, 16, 16]


def test_normalisation_is_that_of_training_episodes_and_constants_stay_constant():
    config = PolicyConfig(
        design="joints_only", cameras=CAMERAS, image_size=32, joint_names=("a", "b"), actions=2, steps=1
    )
    policy = FusionPolicy(config)
    values = torch.tensor([[0.0, 3.0], [2.0, 3.0]])
    policy.fit_normalisation(values, values * 10)
    assert policy.normalise_joints(torch.tensor([[1.0, 3.0], [3.0, 3.01]])).tolist() == [[0, 0], [2, 0]]
    assert policy.actions_scale.tolist() == [10, 1]
    predicted = policy.eval()(torch.zeros(1, 3, 3, 32, 32), torch.zeros(1, 2))
    assert predicted[0, 0, 1] == 30


def recorded_motion(actions_per_joint: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Joints and actions of 12 episodes of 20 frames, in which joints go to a place that the second one tells."""
    rng, episode = np.random.default_rng(0), np.arange(12).repeat(20)
    place = rng.normal(size=12)[episode]
    first = place * np.tile(np.linspace(0, 1, 20), 12)
    joints = np.stack([first, place], axis=1).astype(np.float32)
    actions = joints[:, :1] + 0.1 * joints[:, 1:] + rng.normal(scale=0.01, size=(240, 1))
    return joints, np.concatenate([actions] * actions_per_joint, axis=1).astype(np.float32), episode


@pytest.mark.parametrize("count", [1, 2])
def test_the_linear_map_is_ridge_regression(count):
    """Written down by hand: the minimum of squares and penalty, and the penalty that is best on other episodes."""
    joints, actions, episode = recorded_motion(count)
    ahead, inside = chunk_rows(episode, 3)
    train, val = np.flatnonzero(episode < 8), np.flatnonzero(episode >= 8)
    model = fit_linear(joints, actions, ahead, inside, train, val, strengths=(0.1,))
    assert (model.holds, model.strength) == (count == 2, 0.1)
    rows = train[inside[train, 2]]
    x = ((joints - joints[train].mean(0)) / joints[train].std(0))[rows].astype(np.float64)
    y = actions[ahead[rows, 2]] - (joints[rows] if count == 2 else 0.0)
    loss = lambda w: np.square((x - x.mean(0)) @ w - (y - y.mean(0))).sum() + 0.1 * len(rows) * np.square(w).sum()  # noqa: E731
    least = loss(model.weight[2])
    for change in np.random.default_rng(1).normal(scale=1e-3, size=(20, 2, count)):
        assert loss(model.weight[2] + change) > least
    assert (model(joints[rows])[:, 2] - y - (joints[rows] if count == 2 else 0.0)).mean(0) == pytest.approx(0, abs=1e-6)
    errors = {}
    for strength in (1e-4, 1.0, 100.0):
        fit = fit_linear(joints, actions, ahead, inside, train, val, strengths=(strength,))
        squares = np.square((fit(joints[val]) - actions[ahead[val]]) / actions[train].std(0)).mean(2)
        errors[strength] = (squares * inside[val]).sum()
    model = fit_linear(joints, actions, ahead, inside, train, val, strengths=tuple(errors))
    assert model.strength == min(errors, key=errors.__getitem__) == 1e-4


def test_a_fusion_model_starts_as_the_linear_map_of_the_joints(data):
    """With a learning rate of nothing it stays there; the error of the absolute target is that of the mean action."""
    still = SMALL.model_copy(update={"lr": 1e-12, "trunk_lr": 1e-12, "epochs": 1})
    views = Views.open(data)
    ahead, inside = chunk_rows(views.episode, 4)
    train_rows, rows = np.flatnonzero(views.split == "train"), views.rows("test")
    linear = fit_linear(views.joints, views.actions, ahead, inside, train_rows, views.rows("val"))
    for objective in ("bc", "cvae"):
        policy = load_policy(train(data, objective, params=still.model_copy(update={"objective": objective})))
        with torch.inference_mode():
            predicted = policy(torch.from_numpy(views.images[rows]), torch.from_numpy(views.joints[rows])).numpy()
        assert predicted[..., 0] == pytest.approx(linear(views.joints[rows])[..., 0], abs=1e-4)
        assert (predicted[..., 1] == 2.0).all()  # an action that does not move
    absolute = train(data, "absolute", params=still.model_copy(update={"target": "absolute"}))
    figures = evaluate_fusion(absolute, data, data.parent / "e", EvaluateFusionParams())
    assert figures["nmse"] > 10 * figures["baselines"]["linear"]["nmse"]


def test_a_killed_training_continues_and_ends_with_the_same_bytes(data):
    params = SMALL.model_copy(update={"epochs": 3, "objective": "cvae", "weights": "mc", "ema": 0.9})
    whole = train(data, "whole", params=params)
    code = (
        "import sys; sys.path.insert(0, 'tests')\n"
        "import os, lightning, test_fusion_training as t\nfrom pathlib import Path\n"
        "from sightline.training import fitting\n"
        "end = fitting._Keeper.on_train_epoch_end\n"
        "def die(self, trainer, module):\n"
        "    end(self, trainer, module)\n"
        "    trainer.current_epoch == 1 and os._exit(9)\n"
        "fitting._Keeper.on_train_epoch_end = die\n"
        f"t.train(Path({str(data)!r}), 'killed', params=t.SMALL.model_copy(update={params.model_dump()!r}))\n"
    )
    killed = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=os.environ, capture_output=True, text=True, check=False
    )
    assert killed.returncode == 9, killed.stderr
    assert not (data.parent / "killed.safetensors").exists()
    again = train(data, "killed", params=params)
    assert again.read_bytes() == whole.read_bytes()
    for name in ("metrics.json", "curves.csv"):
        assert (data.parent / "killed" / name).read_bytes() == (data.parent / "whole" / name).read_bytes()


def test_the_rewards_of_a_chunk_end_where_the_episode_ends(data):
    views = Views.open(data)  # the reward is step / 8, in episodes of 8
    rewards = chunk_rewards(views, 0.5, 3)
    scale = discounted_returns(views.reward, views.episode, 0.5)[views.split == "train"].std()
    assert rewards.gained[[0, 6]] * scale == pytest.approx([0 + 0.5 / 8 + 0.25 * 2 / 8, 6 / 8 + 0.5 * 7 / 8])
    assert rewards.following[[0, 4, 5, 7, 8]].tolist() == [3, 7, 5, 7, 11]
    assert rewards.continues[[0, 4, 5, 7]].tolist() == [0.125, 0.125, 0, 0]


def test_the_critic_is_that_of_lapo(data):
    """One step, a step ahead: the losses, written down from the paper's algorithm, and where their gradients go."""
    views = Views.open(data)
    config = PolicyConfig(design="joints_only", cameras=CAMERAS, image_size=32, joint_names=("a", "b"), actions=2,
                          steps=1, objective="cvae")  # fmt: skip
    torch.manual_seed(0)
    policy = FusionPolicy(config)
    rewards = chunk_rewards(views, 0.9, 1)
    critic = LapoCritic(policy, 0.9, rewards.lowest, rewards.highest)
    batch = Chunks(views, 1, 1, {}, rewards)[Draw(np.arange(5, 9), np.zeros((4, 0), np.float32))]
    assert batch["continues"].tolist() == pytest.approx([0.9, 0.9, 0, 0.9])
    assert torch.equal(batch["next_joints"][0], torch.from_numpy(views.joints[6]))
    feature = policy.feature(batch["views"], batch["joints"])
    weighing = critic(feature, batch["actions"], batch, torch.zeros(4, critic.noises))

    f, g, c = feature.detach(), batch["gained"], batch["continues"]
    (q1, q2), v, pi, decode = critic.values, critic.value, critic.latent_policy, policy.head
    with torch.no_grad():
        after = policy.feature(batch["next_views"], batch["next_joints"])
        best = {name: torch.minimum(*(q(torch.cat([at, decode(at, 2 * pi(at).tanh()).flatten(1)], 1))[:, 0]
                for q in (q1, q2))) for name, at in (("here", f), ("after", after))}  # fmt: skip
        wanted_q, wanted_v = g + c * v(after)[:, 0], best["here"].clamp(rewards.lowest, rewards.highest)
        advantage = g + c * best["after"] - v(f)[:, 0]
    both = torch.cat([f, batch["actions"].flatten(1)], 1)
    loss = sum(((q(both)[:, 0] - wanted_q) ** 2).mean() for q in (q1, q2)) + ((v(f)[:, 0] - wanted_v) ** 2).mean()
    loss -= q1(torch.cat([f, decode(f, 2 * pi(f).tanh()).flatten(1)], 1))[:, 0].mean()
    assert weighing.weights.tolist() == pytest.approx([0.9 if a > 0 else 0.1 for a in advantage.tolist()])
    assert weighing.loss.item() == pytest.approx(loss.item(), rel=1e-5)
    weighing.loss.backward()
    assert all(p.grad is None for p in policy.parameters())
    on_policy = torch.autograd.grad(-q1(torch.cat([f, decode(f, 2 * pi(f).tanh()).flatten(1)], 1))[:, 0].mean(),
                                    list(pi.parameters()))  # fmt: skip
    assert all(torch.allclose(p.grad, g, atol=1e-6) for p, g in zip(pi.parameters(), on_policy, strict=True))
    on_q = torch.autograd.grad(((q1(both)[:, 0] - wanted_q) ** 2).mean(), list(q1.parameters()))
    assert all(torch.allclose(p.grad, g, atol=1e-6) for p, g in zip(q1.parameters(), on_q, strict=True))


def test_targets_follow_slowly_with_their_statistics():
    config = PolicyConfig(design="stacked", cameras=CAMERAS, image_size=32, joint_names=("a",), actions=1, steps=1,
                          objective="cvae")  # fmt: skip
    policy = FusionPolicy(config)
    critic = LapoCritic(policy, 0.9, 0.0, 1.0)
    statistics = policy.encoder.image_encoders[0].resnet[1].running_mean
    statistics.fill_(1.0)
    critic.follow(policy)
    assert critic.target.encoder.image_encoders[0].resnet[1].running_mean[0].item() == pytest.approx(0.005)


def test_weights_by_temporal_difference_train_and_need_sound_next_frames(data):
    params = SMALL.model_copy(update={"objective": "cvae", "weights": "td"})
    train(data, params=params)
    curves = pd.read_csv(data.parent / "m/curves.csv")
    assert np.isfinite(curves[["train_q", "train_policy", "train_value"]].to_numpy()).all()
    assert curves["train_positive_advantage"].between(0, 1).all()
    views = Views.open(data)
    row = int(views.rows("train")[5])
    with h5py.File(data, "r+") as file:
        file["sound"][row] = False
    with pytest.raises(UserError, match=rf"frame {row + 10} lacks an image, which fusion.weights td needs after frame"):
        train(data, "n", params=params)
    with pytest.raises(ValueError, match="weights td is of objective cvae"):
        FusionParams(weights="td")
