"""Encoders and policies applied to data of one's own: what the stages would give, and clear refusals."""

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
from conftest import depth_folder, only_error_line, photo_folder, save_depth
from videos import write_video

from sightline.core.errors import UserError
from sightline.depth.network import Encoder, NetworkConfig
from sightline.depth.normalize import NormalizeParams, normalize_depth
from sightline.depth.preprocessing import Preprocessing
from sightline.depth.semantic_encoder import create_semantic_encoder
from sightline.depth.weights import Header, save_weights
from sightline.fusion.policy import FusionPolicy, PolicyConfig, load_policy, save_policy
from sightline.fusion.views import ViewParams, Views, pack_views
from sightline.predict import act, embed
from sightline.recording.frames import write_index
from sightline.recording.images import read_depth, read_rgb
from sightline.recording.split import SplitParams
from sightline.validation.drift import embedding_drift

CAMERAS = ("left_wrist", "right_wrist", "global")
RANGE = Preprocessing(height_range=(600, 1400), invalid=(0,))


def write_encoder(path: Path, channels: int, preprocessing: Preprocessing) -> Path:
    torch.manual_seed(0)
    network = Encoder(NetworkConfig(input_channels=channels, latent_dim=128, width=16))
    torch.nn.init.normal_(network.head.weight, std=0.02)
    save_weights(path, network, Header(kind="encoder", network=network.config, preprocessing=preprocessing))
    return path


@pytest.fixture(scope="module")
def encoder(tmp_path_factory) -> Path:
    return write_encoder(tmp_path_factory.mktemp("encoder") / "encoder.safetensors", 1, RANGE)


@pytest.fixture(scope="module")
def colour_encoder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("encoder") / "colour.safetensors"
    return write_encoder(path, 3, Preprocessing(height_range=(0, 255), invalid=()))


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


def embeddings_of(path: Path) -> np.ndarray:
    with h5py.File(path) as file:
        return file["embeddings"][:]


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


def test_a_normalised_file_gives_the_embeddings_of_its_images(tmp_path, encoder):
    depth_folder(tmp_path / "depth", 40)
    params = NormalizeParams(height_range=(600, 1400), invalid=(0,))
    normalize_depth(tmp_path / "depth", tmp_path / "depth.hdf5", params, split=SplitParams(guard=0), processes=1)
    assert embed(encoder, tmp_path / "depth.hdf5", tmp_path / "of_file.hdf5") == 40
    embed(encoder, tmp_path / "depth", tmp_path / "of_folder.hdf5")
    expected = embeddings_of(tmp_path / "of_folder.hdf5")
    np.testing.assert_allclose(embeddings_of(tmp_path / "of_file.hdf5"), expected, atol=1e-6)
    params = NormalizeParams(height_range=(600, 1500), invalid=(0,))
    normalize_depth(tmp_path / "depth", tmp_path / "other.hdf5", params, split=SplitParams(guard=0), processes=1)
    with pytest.raises(UserError, match=r"other.hdf5: normalised with .* but .* was trained on .*; normalise the data"):
        embed(encoder, tmp_path / "other.hdf5", tmp_path / "no.hdf5")


def test_videos_give_the_embeddings_of_their_pictures(tmp_path, encoder, colour_encoder):
    depth_folder(tmp_path / "depth", 35)
    video = write_video(tmp_path / "depth.mkv", [read_depth(path) for path in sorted((tmp_path / "depth").iterdir())])
    assert embed(encoder, video, tmp_path / "of_video.hdf5") == 35
    embed(encoder, tmp_path / "depth", tmp_path / "of_folder.hdf5")
    expected = embeddings_of(tmp_path / "of_folder.hdf5")
    np.testing.assert_array_equal(embeddings_of(tmp_path / "of_video.hdf5"), expected)
    photo_folder(tmp_path / "rgb", range(3), (60, 80), ".png")
    colours = [read_rgb(path) for path in sorted((tmp_path / "rgb").iterdir())]
    assert embed(colour_encoder, write_video(tmp_path / "a.mp4", colours), tmp_path / "a.hdf5") == 3
    embed(colour_encoder, tmp_path / "rgb", tmp_path / "b.hdf5")
    np.testing.assert_array_equal(embeddings_of(tmp_path / "a.hdf5"), embeddings_of(tmp_path / "b.hdf5"))


def test_drift_compares_what_was_embedded_from_a_recording_a_file_and_a_video(tmp_path, encoder, recording):
    depth_folder(recording / "depth", 4)
    embed(encoder, recording, tmp_path / "known.hdf5")
    frames = pd.read_parquet(recording / "frames.parquet").assign(split="train")
    write_index(tmp_path / "index.parquet", frames)
    normalize_depth(
        recording / "depth", tmp_path / "depth.hdf5", NormalizeParams(), split=SplitParams(guard=0), processes=1,
        recording=recording / "recording.json",
    )  # fmt: skip
    pictures = [read_depth(path) for path in sorted((recording / "depth").iterdir())]
    write_video(tmp_path / "depth.mkv", pictures)
    for source, suffix in (("depth.hdf5", "hdf5"), ("depth.mkv", "parquet")):
        output = tmp_path / f"new.{suffix}"
        embed(encoder, tmp_path / source, output)
        figures = embedding_drift(tmp_path / "known.hdf5", output, tmp_path / "index.parquet")
        assert (figures["frames"], figures["frechet"], figures["distance"]) == pytest.approx((4, 0, 0), abs=1e-3)


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


@pytest.fixture
def videos(tmp_path, recording) -> Path:
    """The first three frames of the recording as a folder of videos."""
    folder = tmp_path / "videos"
    for camera, name in zip(CAMERAS, ("left_wrist.mp4", "right_wrist.mp4", "global.mkv"), strict=True):
        paths = sorted((recording / "rgb" / camera).iterdir())[:3]
        write_video(folder / name, [read_rgb(path) for path in paths])
    np.save(folder / "joints.npy", np.stack(pd.read_parquet(recording / "frames.parquet")["joints"])[:3])
    return folder


def test_videos_give_the_actions_of_their_pictures(tmp_path, policy, recording, videos):
    assert act(policy, videos, tmp_path / "videos.parquet") == 3
    with pytest.warns(UserWarning, match="lack an image"):
        act(policy, recording, tmp_path / "raw.parquet")
    ours, raw = (pq.read_table(tmp_path / f"{name}.parquet") for name in ("videos", "raw"))
    actions = [np.array(table["actions"].to_pylist()) for table in (ours, raw)]
    np.testing.assert_allclose(*actions, atol=1e-6)
    assert ours.schema == raw.schema
    assert ours.select(["frame_id", "episode", "step"]).to_pydict() == {
        "frame_id": [0, 1, 2], "episode": [0, 0, 0], "step": [0, 1, 2]}  # fmt: skip


def test_videos_that_do_not_fit_the_policy_are_one_line(tmp_path, policy, videos):
    def refused(words: str) -> None:
        with pytest.raises(UserError, match=words) as error:
            act(policy, videos, tmp_path / "out.parquet")
        assert "\n" not in str(error.value)

    joints = np.load(videos / "joints.npy")
    for wrong, words in (
        (joints[:2], r"left_wrist.mp4: 3 pictures, but joints.npy has 2 rows"),
        (joints[:, :1], r"joints.npy: float64 \[3, 1\], expected numbers \[frames, 2\]: a, b"),
        (joints * np.nan, r"joints.npy: holds NaN or infinity"),
    ):
        np.save(videos / "joints.npy", wrong)
        refused(words)
    np.save(videos / "joints.npy", joints)
    (videos / "left_wrist.mp4").write_bytes((videos / "left_wrist.mp4").read_bytes()[:200])
    refused(r"left_wrist.mp4: a broken or truncated video")
    (videos / "left_wrist.mp4").unlink()
    refused(r"videos: no video of left_wrist, such as left_wrist.mp4; .* looks at left_wrist, right_wrist, global")


def test_joints_of_another_robot_are_refused(tmp_path, policy, recording):
    info = json.loads((recording / "recording.json").read_text()) | {"joints": ["a", "c"]}
    (recording / "recording.json").write_text(json.dumps(info))
    with (
        pytest.warns(UserWarning, match="lack an image"),
        pytest.raises(UserError, match=r"joints: a, c, but .* was trained with a, b$"),
    ):
        act(policy, recording, tmp_path / "out.parquet")


@pytest.mark.parametrize(
    ("command", "data", "words"),
    [
        ("embed", "v.mp4", r"v.mp4: pictures are colour of 8 bits .* takes depth, grey of 16 bits"),
        ("embed", "x.npz", r"x.npz: embed takes a folder of images, a recording, an HDF5 file of sightline normalize"),
        ("embed", "x.nii.gz", r"x.nii.gz: embed takes a folder of images"),
        ("embed", "x.hdf5", r"x.hdf5: not a file of normalised depth; write one with sightline normalize"),
        ("act", "v.mp4", r"v.mp4: act takes a recording, .* a video needs a folder with joints.npy"),
        ("act", "x.npz", r"x.npz: act takes a recording, an HDF5 file of sightline pack_views, or a folder of joints"),
        ("act", "x.hdf5", r"x.hdf5: not a file of views; write one with sightline pack_views"),
        ("act", "folder", r"folder: neither a recording, .*import_lerobot and import_hdf5 make one.* nor videos with"),
        ("act", "none.mp4", r"none.mp4: no such file"),
    ],
)  # fmt: skip
def test_data_of_another_kind_are_one_line_that_says_what_is_taken(command, data, words, encoder, policy, tmp_path):
    np.savez(tmp_path / "x.npz", image=np.zeros((2, 8, 8), np.uint8))
    (tmp_path / "x.nii.gz").write_bytes(b"a volume")
    (tmp_path / "folder").mkdir()
    with h5py.File(tmp_path / "x.hdf5", "w") as file:
        file["image"] = np.zeros((2, 8, 8), np.uint8)
    write_video(tmp_path / "v.mp4", list(np.zeros((2, 16, 16, 3), np.uint8)))
    calls = {"embed": (embed, encoder, "out.hdf5"), "act": (act, policy, "out.parquet")}
    call, model, output = calls[command]
    with pytest.raises(UserError, match=words) as error:
        call(model, tmp_path / data, tmp_path / output)
    assert "\n" not in str(error.value)
    assert not (tmp_path / output).exists()


def test_an_encoder_of_pictures_asks_for_a_folder_of_a_recording(colour_encoder, recording, tmp_path):
    error = only_error_line(predict("embed", colour_encoder, recording, tmp_path / "out.hdf5"))
    assert error.endswith(f"name a folder of them, such as {recording}/rgb/left_wrist")
    (recording / "rgb/left_wrist").rename(tmp_path / "pictures")
    assert embed(colour_encoder, tmp_path / "pictures", tmp_path / "out.hdf5") == 4


def test_loading_a_model_warns_of_nothing(encoder, policy):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        create_semantic_encoder(encoder, device="cpu")
        load_policy(policy)
