"""A policy as a robot calls it: the numbers of `predict act`, one action for each frame, and clear refusals."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_fusion_training import CAMERAS, write_recording

from sightline.core.errors import UserError
from sightline.fusion.acting import ActionQueue, Policy, between
from sightline.fusion.policy import FusionPolicy, PolicyConfig, save_policy
from sightline.predict import act
from sightline.recording.frames import read_frames
from sightline.recording.images import read_rgb
from sightline.recording.layout import read_recording_info

JOINTS = ("lift", "fixed")


def save(path: Path, **changes: object) -> Path:
    """A model with random weights that looks at pictures."""
    torch.manual_seed(0)
    config = {"cameras": CAMERAS, "image_size": 32, "joint_names": JOINTS, "actions": 3, "steps": 4, "stride": 2}
    model = FusionPolicy(PolicyConfig(**config | {"target": "absolute"} | changes))
    model.fit_normalisation(torch.randn(50, len(JOINTS)), 5 * torch.randn(50, 3))
    save_policy(path, model)
    return path


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    return save(tmp_path_factory.mktemp("policy") / "policy.safetensors")


def observation(size: tuple[int, int] = (20, 30), **changes: object) -> dict:
    rng = np.random.default_rng(0)
    images = {camera: rng.integers(0, 256, (*size, 3)).astype(np.uint8) for camera in CAMERAS}
    return {"images": images, "joints": [0.5, 0.7]} | changes


@pytest.mark.parametrize("fit", ["squash", "pad", "crop"])
def test_a_policy_gives_the_numbers_of_predict_act(tmp_path, fit):
    root, weights = write_recording(tmp_path / "recording"), save(tmp_path / "policy.safetensors", fit=fit)
    act(weights, root, tmp_path / "actions.parquet")
    chunks = np.array(pq.read_table(tmp_path / "actions.parquet")["actions"].to_pylist())  # (48, 4, 3)
    joints = read_frames(root / "frames.parquet", read_recording_info(root / "recording.json"))["joints"]
    every_frame, policy = Policy.load(weights, replan_every=1), Policy.load(weights, replan_every=7)
    assert np.ptp(chunks[:, 0], axis=0).min() > 0.01, "the pictures decide the actions"
    for row in range(8):
        images = {camera: read_rgb(root / f"rgb/{camera}/{row + 10:06d}.png") for camera in CAMERAS}
        seen = {"images": images, "joints": joints[row]}
        action = every_frame.act(seen)
        assert (action.dtype, action.shape) == (np.float32, (3,))
        np.testing.assert_allclose(action, chunks[row, 0], rtol=1e-5, atol=1e-6)
        expected = between(chunks[0], 2)[row] if row < 7 else chunks[7, 0]
        np.testing.assert_allclose(policy.act(seen), expected, rtol=1e-5, atol=1e-6)


def by_hand(chunks: np.ndarray, stride: int, every: int, decay: float | None) -> np.ndarray:
    """The actions of an episode of T frames, whose frame t would predict chunks[t], [T, H, A]."""
    count, steps, actions = chunks.shape
    result = []
    for frame in range(count):
        weighted, total, age = np.zeros(actions), 0.0, 0
        for first in range(0, frame + 1, every):  # oldest first
            is_latest = first + every > frame
            step, part = divmod(frame - first, stride)
            if step > steps - 1 or (step == steps - 1 and part) or (decay is None and not is_latest):
                continue
            value = chunks[first, step]
            if part:
                value = value + (chunks[first, step + 1] - value) * part / stride
            weight = np.exp(-(decay or 0.0) * age)
            weighted, total, age = weighted + weight * value, total + weight, age + 1
        result.append(weighted / total)
    return np.array(result)


@settings(max_examples=60, deadline=None)
@given(data=st.data(), steps=st.integers(1, 5), stride=st.integers(1, 4), decay=st.none() | st.floats(0, 2))
def test_the_queue_agrees_with_plain_loops(data, steps, stride, decay):
    every = data.draw(st.integers(1, (steps - 1) * stride + 1))
    chunks = np.random.default_rng(steps).normal(size=(14, steps, 2)).astype(np.float32)
    queue = ActionQueue(steps, stride, every, decay)
    for _ in range(2):  # the second episode knows nothing of the first
        queue.reset()
        frames = iter(range(14))
        actions = []
        for frame in frames:
            actions.append(queue.next(lambda frame=frame: chunks[frame]))
        np.testing.assert_allclose(actions, by_hand(chunks, stride, every, decay), rtol=1e-5, atol=1e-6)


def test_how_often_it_plans_by_default():
    assert ActionQueue(16).replan_every == 8
    assert ActionQueue(4, 3).replan_every == 5  # of 10 frames
    assert ActionQueue(1).replan_every == 1
    assert ActionQueue(16, temporal_ensembling=0.01).replan_every == 1
    assert ActionQueue(16, temporal_ensembling=0.0).decay == 0.0
    assert ActionQueue(16, temporal_ensembling=None).decay is None


def test_pictures_are_of_any_size_and_other_cameras_are_ignored(weights):
    policy, small, large = Policy.load(weights, replan_every=1), observation(), observation((90, 70))
    large["images"] |= {"chest": "not looked at"}
    assert not np.allclose(policy.act(small), policy.act(large))
    assert np.isfinite(policy.act(large)).all()


def test_a_refused_frame_does_not_count(weights):
    policy, plain = Policy.load(weights, replan_every=3), Policy.load(weights, replan_every=3)
    for _ in range(3):
        np.testing.assert_array_equal(policy.act(observation()), plain.act(observation()))
        with pytest.raises(UserError):
            policy.act(observation(joints=[np.nan, 1.0]))


def test_the_joints_alone_are_enough_where_the_model_sees_nothing_else(tmp_path):
    policy = Policy.load(save(tmp_path / "joints.safetensors", design="joints_only"))
    assert policy.cameras == ()
    assert policy.act({"joints": np.array([1, 2])}).shape == (3,)


def test_further_inputs_come_under_their_names(tmp_path):
    path = save(tmp_path / "with.safetensors", design="joints_only", extras={"depth": (6,), "grid": (4, 5)})
    policy, rng = Policy.load(path, replan_every=1), np.random.default_rng(0)
    seen = observation(depth=rng.normal(size=6), grid=rng.normal(size=(4, 5)).astype(np.float16))
    assert not np.allclose(policy.act(seen), policy.act(seen | {"depth": np.zeros(6)}))
    with pytest.raises(UserError, match=r"no grid, a further input .*; give numbers \[4, 5\] under 'grid'"):
        policy.act({name: seen[name] for name in ("joints", "depth")})
    with pytest.raises(UserError, match=r"depth must be \[6\], not \[7\]"):
        policy.act(seen | {"depth": np.zeros(7)})
    with pytest.raises(UserError, match="depth must be finite; NaN or infinity is a failed reading"):
        policy.act(seen | {"depth": np.full(6, np.nan)})


def test_depth_images_come_as_the_training_saw_them(tmp_path):
    """Normalised, of the size of the training's, NaN where nothing was measured."""
    path = save(tmp_path / "with.safetensors", extras={"depth_images": (1, 40, 40)})
    policy, depth = Policy.load(path, replan_every=1), np.linspace(-1, 1, 1600).reshape(1, 40, 40)
    near, far = (policy.act(observation(depth_images=values)) for values in (depth, -depth))
    holes = policy.act(observation(depth_images=np.where(depth > 0, np.nan, depth)))
    assert not np.allclose(near, far)
    assert np.isfinite(holes).all()
    with pytest.raises(UserError, match=r"depth_images must be in -1..1, NaN where nothing was measured; normalise"):
        policy.act(observation(depth_images=1000 * depth))


def without(camera: str) -> dict:
    return {"images": {name: image for name, image in observation()["images"].items() if name != camera}}


def with_picture(picture: np.ndarray) -> dict:
    return {"images": observation()["images"] | {"global": picture}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (without("global"), "images: no picture of global; the model was trained with left_wrist, right_wrist, global, "
         "and there are: left_wrist, right_wrist"),
        ({"images": None}, "the observation has no images; give a picture for each camera under 'images'"),
        (with_picture(np.zeros((20, 30, 3))), "images: global must be uint8 0..255, not float64"),
        (with_picture(np.zeros((20, 30), np.uint8)), r"images: global must be RGB \[H, W, 3\], not \[20, 30\]"),
        (with_picture(np.zeros((20, 0, 3), np.uint8)), r"images: global must be RGB \[H, W, 3\], not \[20, 0, 3\]"),
        (with_picture(np.zeros((20, 30, 4), np.uint8)), r"images: global must be RGB \[H, W, 3\], not \[20, 30, 4\]"),
        (with_picture(np.zeros((3, 20, 30), np.uint8)), "the channels are first: use picture.transpose"),
        ({"joints": [1.0]}, r"joints must be \[2\], not \[1\]; the model was trained with lift, fixed"),
        ({"joints": [[1.0, 2.0]]}, r"joints must be \[2\], not \[1, 2\]"),
        ({"joints": [1.0, np.inf]}, "joints: fixed is not finite; do not act on a failed reading"),
        ({"joints": [1.0, 1e300]}, "joints: fixed is not finite"),
        ({"joints": ["a", "b"]}, "joints must be real numbers, not <U1"),
        ({"joints": [True, False]}, "joints must be real numbers, not bool"),
        ({"joints": [[1.0], [1.0, 2.0]]}, "joints must be real numbers"),
        ({"joints": None}, "joints must be real numbers, not object"),
    ],
)  # fmt: skip
def test_bad_observations_are_refused_in_one_line(weights, changes, message):
    with pytest.raises(UserError, match=message) as error:
        Policy.load(weights).act(observation(**changes))
    assert "\n" not in str(error.value)


def test_an_observation_without_joints_is_refused(weights):
    with pytest.raises(UserError, match="the observation has no joints; give 2 numbers under 'joints'"):
        Policy.load(weights).act({"images": observation()["images"]})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"replan_every": 8}, r"replan_every must be 1..7, not 8: a chunk of 4 steps, 2 frames apart, serves for 7"),
        ({"replan_every": 0}, r"replan_every must be 1..7, not 0"),
        ({"temporal_ensembling": True}, "temporal_ensembling must be False or a decay of 0 or more, not True"),
        ({"temporal_ensembling": -0.1}, "temporal_ensembling must be False or a decay of 0 or more, not -0.1"),
    ],
)
def test_options_out_of_range_are_refused(weights, options, message):
    with pytest.raises(UserError, match=message):
        Policy.load(weights, **options)
