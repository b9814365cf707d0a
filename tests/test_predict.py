"""Trained models applied to data of one's own: what the stages would give, and clear refusals."""

import json
import subprocess
import sys
import warnings
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from conftest import depth_folder, photo_folder, save_depth
from PIL import Image

from sightline.core.errors import UserError
from sightline.depth.network import Encoder, NetworkConfig
from sightline.depth.preprocessing import Preprocessing
from sightline.depth.semantic_encoder import create_semantic_encoder
from sightline.depth.weights import Header, save_weights
from sightline.fusion.policy import FusionPolicy, PolicyConfig, load_policy, save_policy
from sightline.fusion.views import ViewParams, Views, pack_views
from sightline.predict import act, embed, segment
from sightline.recording.frames import write_index
from sightline.recording.images import read_depth
from sightline.segmentation.model import SegmentationConfig, SegmentationModel, load_model, save_model

CAMERAS = ("left_wrist", "right_wrist", "global")
RANGE = Preprocessing(height_range=(600, 1400), invalid=(0,))


@pytest.fixture(scope="module")
def encoder(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    config = NetworkConfig(latent_dim=128, width=16)
    path = tmp_path_factory.mktemp("encoder") / "encoder.safetensors"
    save_weights(path, Encoder(config), Header(kind="encoder", network=config, preprocessing=RANGE))
    return path


@pytest.fixture(scope="module")
def policy(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    config = PolicyConfig(cameras=CAMERAS, image_size=16, joint_names=("a", "b"), actions=3, steps=2, stride=2)
    path = tmp_path_factory.mktemp("policy") / "policy.safetensors"
    save_policy(path, FusionPolicy(config))
    return path


@pytest.fixture
def recording(tmp_path) -> Path:
    """Two episodes of two frames without actions; the last frame has no global view."""
    root = tmp_path / "mine"
    for camera in CAMERAS:
        photo_folder(root / "rgb" / camera, range(3 if camera == "global" else 4), (20, 24), ".png")
    frames = pd.DataFrame({
        "frame_id": range(4), "episode": [0, 0, 1, 1], "step": [0, 1, 0, 1], "time_s": [0.0, 0.1, 0.0, 0.1],
        "joints": [[float(i), 1.0] for i in range(4)],
    })  # fmt: skip
    frames.to_parquet(root / "frames.parquet")
    depth = {"unit_mm": 1.0, "invalid": [0], "height_range": [600, 1400]}
    info = {"fps": 10, "cameras": CAMERAS, "joints": ["a", "b"], "depth": depth}
    (root / "recording.json").write_text(json.dumps(info))
    return root


def predict(*arguments: object) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "sightline.predict", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_folder_of_any_sizes_is_embedded_as_the_encoder_does(tmp_path, encoder):
    folder = depth_folder(tmp_path / "depth", 3)
    save_depth(folder / "000007.tiff", np.full((10, 50), 900))
    assert embed(encoder, folder, tmp_path / "e.hdf5") == 4
    with h5py.File(tmp_path / "e.hdf5") as file:
        ids, embeddings = file["frame_id"][:], file["embeddings"][:]
    module = create_semantic_encoder(encoder, device="cpu")
    paths = [folder / f"{i:06d}.png" for i in range(3)] + [folder / "000007.tiff"]
    expected = np.concatenate([module.encode_numpy(read_depth(path)) for path in paths])
    assert ids.tolist() == [0, 1, 2, 7]
    np.testing.assert_allclose(embeddings, expected, rtol=1e-4, atol=1e-5)
    embed(encoder, folder, tmp_path / "e.parquet")
    table = pq.read_table(tmp_path / "e.parquet").to_pydict()
    np.testing.assert_array_equal(np.array(table["embedding"], np.float32), embeddings)


def test_a_recording_gives_its_depth_images(tmp_path, encoder, recording):
    depth_folder(recording / "depth", 2)
    done = predict("embed", encoder, recording, tmp_path / "e.parquet")
    assert done.returncode == 0, done.stderr
    assert "e.parquet: 2 embeddings" in done.stdout
    info = json.loads((recording / "recording.json").read_text())
    info["depth"]["unit_mm"] = 0.1
    (recording / "recording.json").write_text(json.dumps(info))
    with pytest.raises(UserError, match=r"recording.json: counts of 0.1 mm, but .* was trained on 1 mm"):
        embed(encoder, recording, tmp_path / "f.parquet")


def test_a_raw_recording_gives_the_actions_of_its_packed_views(tmp_path, policy, recording):
    with pytest.warns(UserWarning, match="lack an image"):
        assert act(policy, recording, tmp_path / "raw.parquet") == 3
    table = pq.read_table(tmp_path / "raw.parquet")
    assert table["frame_id"].to_pylist() == [0, 1, 2]
    assert table.schema.metadata[b"frames_between_steps"] == b"2"
    sound = pd.read_parquet(recording / "frames.parquet").assign(split="train")
    write_index(tmp_path / "index/frames.parquet", sound)
    for camera in CAMERAS:
        write_index(tmp_path / f"index/rgb/{camera}.parquet", sound[: 3 if camera == "global" else 4])
    packed = tmp_path / "views.hdf5"
    with pytest.warns(UserWarning, match="lack an image"):
        pack_views(recording, tmp_path / "index", packed, ViewParams(cameras=CAMERAS, image_size=16), "joints", 1)
    act(policy, packed, tmp_path / "packed.parquet")
    assert pq.read_table(tmp_path / "packed.parquet").equals(table)
    views = Views.open(packed)
    with torch.inference_mode():
        expected = load_policy(policy)(torch.from_numpy(views.images[:3].copy()), torch.from_numpy(views.joints[:3]))
    np.testing.assert_allclose(np.array(table["actions"].to_pylist()), expected.numpy(), rtol=1e-4, atol=1e-5)


def test_joints_of_another_robot_are_refused(tmp_path, policy, recording):
    info = json.loads((recording / "recording.json").read_text()) | {"joints": ["a", "c"]}
    (recording / "recording.json").write_text(json.dumps(info))
    with (
        pytest.warns(UserWarning, match="lack an image"),
        pytest.raises(UserError, match=r"joints: a, c, but .* was trained with a, b$"),
    ):
        act(policy, recording, tmp_path / "out.parquet")


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory) -> Path:
    """A network that knows red from the rest."""
    torch.manual_seed(0)
    config = SegmentationConfig(classes=("other", "red"), image_size=(32, 32), channels=(8,) * 6, camera="front")
    model = SegmentationModel(config).train()
    images = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)
    images[0, 0, 8:24, 8:24], images[1, 0, :16] = 200, 200
    truth = (images[:, 0] > 0).long()
    model.fit_normalisation(images)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(100):
        loss = torch.nn.functional.cross_entropy(model(images), truth)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    path = tmp_path_factory.mktemp("segmenter") / "model.safetensors"
    save_model(path, model)
    return path


def test_masks_have_the_names_and_sizes_of_the_images(segmenter, tmp_path):
    folder = tmp_path / "mine/rgb/front"
    folder.mkdir(parents=True)
    pixels = np.zeros((64, 64, 3), np.uint8)
    pixels[16:48, 16:48, 0] = 200
    Image.fromarray(pixels).save(folder / "a red square.png")
    (tmp_path / "mine/recording.json").write_text("{}")
    assert segment(segmenter, tmp_path / "mine", tmp_path / "masks") == 1
    mask = np.asarray(Image.open(tmp_path / "masks/a red square.png"))
    assert mask.shape == (64, 64)
    assert ((mask == 1) == (pixels[..., 0] > 0)).mean() > 0.95
    with pytest.raises(UserError, match=r"masks: is there already; name a folder to make"):
        segment(segmenter, folder, tmp_path / "masks")
    Image.fromarray(pixels[..., 0].astype(np.uint16)).save(folder / "deep.png")
    with pytest.raises(UserError, match=r"deep.png: pixels of more than 8 bits"):
        segment(segmenter, folder, tmp_path / "others")
    assert not (tmp_path / "others").exists()


def test_loading_a_model_warns_of_nothing(encoder, policy, segmenter):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        create_semantic_encoder(encoder, device="cpu")
        load_policy(policy)
        load_model(segmenter)
