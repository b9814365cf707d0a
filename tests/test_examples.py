"""The examples run as they stand, and give what the library gives."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, recording_folder

from sightline.fusion import Policy
from sightline.fusion.policy import FusionPolicy, PolicyConfig, save_policy
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


def test_a_camera_without_a_video_is_one_line(policy, tmp_path):
    np.save(tmp_path / "joints.npy", np.zeros((2, 2)))
    done = example("live_camera", policy, "--video", tmp_path)
    assert done.returncode == 1
    assert done.stderr.strip().endswith(f"{tmp_path}: no video of front; the policy looks at front, top")
