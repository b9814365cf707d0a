"""The examples run as they stand, and give what the library gives."""

import json
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import ROOT, depth_folder, recording_folder, write_grids

from sightline.core.errors import UserError
from sightline.depth.network import Encoder, NetworkConfig
from sightline.depth.preprocessing import Preprocessing
from sightline.depth.weights import Header, save_weights
from sightline.fusion import Policy
from sightline.fusion.policy import FusionPolicy, PolicyConfig, save_policy
from sightline.recording.frames import write_index
from sightline.recording.images import read_rgb


@pytest.fixture
def policy(tmp_path) -> Path:
    torch.manual_seed(0)
    config = PolicyConfig(cameras=("front", "top"), image_size=16, joint_names=("lift", "turn"), actions=2, steps=2)
    model = FusionPolicy(config)
    torch.nn.init.normal_(model.head.layers[-1].weight)
    save_policy(tmp_path / "policy.safetensors", model)
    return tmp_path / "policy.safetensors"


def example(name: str, *arguments: object) -> subprocess.CompletedProcess:
    command = [sys.executable, ROOT / f"examples/{name}.py", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("kind", ["safetensors", "onnx"])
def test_a_policy_acts_on_a_recorded_video_as_on_the_pictures(policy, tmp_path, kind):
    root = recording_folder(tmp_path / "recording", ("front", "top"))
    done = example("record_video", root, tmp_path / "video", "--episode", 1)
    assert done.stdout.strip().endswith("2 frames of front, top"), done.stderr
    if kind == "onnx":
        command = [sys.executable, "-m", "sightline.export", policy, policy.with_suffix(".onnx")]
        subprocess.run(command, check=True, capture_output=True)
    output = tmp_path / "actions.npy"
    done = example("live_camera", policy.with_suffix(f".{kind}"), "--video", tmp_path / "video", "--output", output)
    assert done.stdout.startswith("2 frames; "), done.stderr
    ours, joints = Policy.load(policy), np.load(tmp_path / "video/joints.npy")
    for action, frame_id, of_frame in zip(np.load(output), (2, 3), joints, strict=True):
        images = {camera: read_rgb(root / "rgb" / camera / f"{frame_id:06d}.png") for camera in ours.cameras}
        np.testing.assert_allclose(action, ours.act({"images": images, "joints": of_frame}), rtol=1e-5, atol=1e-6)


def test_what_a_video_or_a_camera_lacks_is_one_line(policy, tmp_path):
    def refused(name: str, *arguments: object) -> str:
        done = example(name, *arguments)
        assert done.returncode == 1
        (line,) = (line for line in done.stderr.splitlines() if "error: " in line)
        assert "Traceback" not in done.stderr
        return line

    video, root = tmp_path / "video", recording_folder(tmp_path / "recording", ("front", "top"))
    assert refused("live_camera", policy, "--video", video).endswith("record_video.py makes such a folder")
    assert refused("record_video", root, video, "--episode", 7).endswith("no episode 7; there are 0 to 2")
    assert example("record_video", root, video, "--episode", 1).returncode == 0
    joints = np.load(video / "joints.npy")
    np.save(video / "joints.npy", np.tile(joints, (2, 1)))
    said = refused("live_camera", policy, "--video", video, "--fps", 0)
    assert said.endswith("video: the video of front has 2 pictures, joints.npy 4 rows")
    (video / "front.mkv").write_bytes(b"none")
    assert "Invalid data found" in refused("live_camera", policy, "--video", video, "--fps", 0)
    (video / "front.mkv").unlink()
    said = refused("live_camera", policy, "--video", video)
    assert said.endswith(f"{video}: no video of front; the policy looks at front, top")
    said = refused("live_camera", policy, "--camera", "front=0")
    assert said.endswith("--camera top=DEVICE: give the number of its device; cameras are front, top")


def test_live_cameras_give_pictures_in_rgb_and_ask_for_the_joints_of_the_robot(policy, monkeypatch):
    """A stand-in for OpenCV, whose pictures are blue, green, red."""
    bgr = np.full((12, 16, 3), (30, 20, 10), np.uint8)
    camera = SimpleNamespace(read=lambda: (True, bgr))
    monkeypatch.setitem(sys.modules, "cv2", SimpleNamespace(VideoCapture=lambda number: camera))
    names = runpy.run_path(str(ROOT / "examples/live_camera.py"))
    live = names["live"]
    with pytest.raises(UserError, match="read_joints: read them from your robot here"):
        next(live({"front": 0, "top": 1}))
    monkeypatch.setitem(live.__globals__, "read_joints", lambda: np.array([0.1, 0.2]))
    pictures, _ = next(live({"front": 0, "top": 1}))
    assert set(pictures) == {"front", "top"}
    assert pictures["front"][0, 0].tolist() == [10, 20, 30]
    actions = names["run"](Policy.load(policy), live({"front": 0, "top": 1}), 0, 3)
    assert actions.shape == (3, 2)
    camera.read = lambda: (False, None)
    with pytest.raises(UserError, match=r"camera front: gives no picture; is it device 0\?"):
        next(live({"front": 0, "top": 1}))


def stamped(image: np.ndarray, encoding: str) -> SimpleNamespace:
    """A `sensor_msgs/Image`, with padding at the end of each row as some cameras have it."""
    padded = np.pad(image.reshape(len(image), -1), ((0, 0), (0, 2)))
    return SimpleNamespace(
        encoding=encoding, height=image.shape[0], width=image.shape[1], step=padded.shape[1], data=padded.tobytes()
    )


def test_the_node_acts_on_the_latest_pictures_and_joints_and_says_why_it_does_not(policy):
    latest_of = runpy.run_path(str(ROOT / "examples/ros2_node.py"))["Latest"]
    latest, ours = latest_of(Policy.load(policy)), Policy.load(policy)
    rng = np.random.default_rng(0)
    images = {name: rng.integers(0, 256, (12, 16, 3), np.uint8) for name in ("front", "top")}
    assert latest.act(0.0) == "waiting for joints"
    latest.on_joints(SimpleNamespace(name=["turn", "other", "lift"], position=[0.2, 9.0, 0.1]), 1.0)
    latest.on_image("front", stamped(images["front"], "rgb8"), 1.0)
    assert latest.act(1.0) == "waiting for image top"
    latest.on_image("top", stamped(images["top"][..., ::-1], "bgr8"), 1.1)
    expected = ours.act({"images": images, "joints": [0.1, 0.2]})
    np.testing.assert_array_equal(latest.act(1.2), expected)
    assert latest.act(1.6) == "joints is 0.6 s old"
    with pytest.raises(UserError, match="front: images of encoding mono8; rgb8 or bgr8 is needed"):
        latest.on_image("front", stamped(images["front"], "mono8"), 2.0)
    with pytest.raises(UserError, match="joints: no lift among turn"):
        latest.on_joints(SimpleNamespace(name=["turn"], position=[0.2]), 2.0)
    with pytest.raises(UserError, match="joints: no lift among ; rename"):  # efforts alone
        latest.on_joints(SimpleNamespace(name=["turn", "lift"], position=[]), 3.0)


def test_lerobots_interface_gives_the_same_action(policy):
    made = runpy.run_path(str(ROOT / "examples/lerobot_policy.py"))["SightlinePolicy"]
    theirs, ours = made(policy, {"front": "cam_high"}), Policy.load(policy)
    theirs.reset()
    rng = np.random.default_rng(0)
    images = {name: rng.integers(0, 256, (12, 16, 3), np.uint8) for name in ("front", "top")}
    batch = {"observation.state": torch.tensor([[0.1, 0.2]])}
    for key, name in (("cam_high", "front"), ("top", "top")):
        batch[f"observation.images.{key}"] = torch.from_numpy(images[name]).permute(2, 0, 1)[None] / 255
    action = theirs.select_action(batch)
    assert action.shape == (1, 2)
    np.testing.assert_allclose(action[0].numpy(), ours.act({"images": images, "joints": [0.1, 0.2]}), rtol=1e-5)
    with pytest.raises(UserError, match=r"must be in 0..1, not .*; leave out the normalisation"):
        theirs.select_action(batch | {"observation.images.top": 3 * batch["observation.images.top"]})
    with pytest.raises(UserError, match=r"the batch has no observation.images.top; it has observation.state"):
        theirs.select_action({key: batch[key] for key in list(batch)[:2]})


def test_the_notebook_runs_and_finds_the_frame_that_is_the_same(tmp_path, monkeypatch):
    monkeypatch.setenv("MPLBACKEND", "agg")
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    network = Encoder(NetworkConfig(latent_dim=128, width=16))
    (tmp_path / "models/depth").mkdir(parents=True)
    header = Header(kind="encoder", network=network.config, preprocessing=Preprocessing(height_range=(500, 1500)))
    save_weights(tmp_path / "models/depth/encoder.safetensors", network, header)
    depth_folder(tmp_path / "data/demo/depth", 70)
    shutil.copy(tmp_path / "data/demo/depth/000000.png", tmp_path / "data/demo/depth/000030.png")
    notebook = json.loads((ROOT / "examples/embed_and_search.ipynb").read_text())
    assert (notebook["nbformat"], {cell["cell_type"] for cell in notebook["cells"]}) == (4, {"markdown", "code"})
    names: dict = {}
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == []
            exec("".join(cell["source"]), names)
    assert names["found"][0][1].name == "000030.png"
    assert names["found"][0][0] == pytest.approx(1)


def test_captions_are_learnt_from_stored_grids_and_live_ones_are_the_same(tmp_path):
    """The grid tells the place of the object, on purpose."""
    places = [[0.1 * (i % 2), 0.1 * (i // 2 % 2), 0.0] for i in range(6)]
    root = recording_folder(tmp_path / "recording", object_position=places, task=["lift the cup"] * 6)
    frames = pd.read_parquet(root / "frames.parquet").assign(split=["train"] * 4 + ["test"] * 2)
    write_index(tmp_path / "index.parquet", frames)
    grids = np.zeros((6, 4, 3), np.float32)
    grids[:, 0] = 10 * np.array(places)
    store = write_grids(tmp_path / "grids.hdf5", range(6), grids)
    params = tmp_path / "params.yaml"
    params.write_text("grids: {tiny: {model: ViT-B-16, pretrained: random, grid: 2}}")
    options = ["--name", "tiny", "--camera", "front", "--index", tmp_path / "index.parquet", "--params", params]
    done = example("captioning", root, store, *options, "--every", 1, "--epochs", 60)
    assert "right: 100% of 2" in done.stdout, done.stdout[-500:] + done.stderr
