"""RGB images through the depth branch: normalised, trained on, embedded, and encoded from the raw pixels alike."""

import json

import h5py
import numpy as np
import pytest
from conftest import depth_folder, only_error_line
from PIL import Image

from sightline.depth import create_semantic_encoder
from sightline.depth.store import DepthStore

TRAIN = ("epochs=2", "batch_size=4", "latent_dim=128", "width=16", "precision=fp32", "gradient_weight=0.5")
SETTINGS = [part for setting in TRAIN for part in ("--set", f"train.{setting}")]
RGB = ["--set", "normalize.channels=3", "--set", "data.split.guard=0"]


@pytest.fixture
def photographs(tmp_path) -> np.ndarray:
    """Twelve 30x40 pictures in ``rgb/`` -> uint8 [12, 3, 30, 40]."""
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (12, 5, 4, 3), np.uint8)
    pictures = np.stack([np.asarray(Image.fromarray(picture).resize((40, 30))) for picture in small])
    (tmp_path / "rgb").mkdir()
    for i, picture in enumerate(pictures):
        Image.fromarray(picture).save(tmp_path / f"rgb/{i:06d}.png")
    return pictures.transpose(0, 3, 1, 2)


@pytest.mark.slow
def test_rgb_images_train_and_encode(photographs, stage, tmp_path):
    for arguments in (
        ["normalize", "rgb", "rgb.hdf5", *RGB, "--set", "normalize.fit=pad", "--metrics-dir", "n"],
        ["train_autoencoder", "rgb.hdf5", "a.safetensors", "--metrics-dir", "m", *SETTINGS],
        ["extract_encoder", "a.safetensors", "--output", "e.safetensors", "--input_channels", 3, "--verify"],
        ["embed", "e.safetensors", "rgb.hdf5", "embeddings.hdf5", "--set", "embed.precision=fp32"],
    ):
        result = stage(*arguments)
        assert result.returncode == 0, result.stderr
    store = DepthStore.open(tmp_path / "rgb.hdf5")
    assert store.images(slice(None)).shape == (12, 3, 128, 128)
    assert (store.channels, store.preprocessing.height_range, store.preprocessing.invalid) == (3, (0, 255), ())
    assert store.valid.mean() == pytest.approx(0.75, abs=0.01)  # padded from 30x40
    assert store.images(slice(3, 4))[0, :, 64, 64] == pytest.approx(photographs[3, :, 15, 20] / 127.5 - 1, abs=1e-6)
    metrics = json.loads((tmp_path / "m/details.json").read_text())
    assert metrics["joints"] == 0
    assert set(metrics["val"]) == set(metrics["val_mean_image"]) == {"rmse", "mae"}  # colours have no millimetres
    assert "near_mm" not in json.loads((tmp_path / "n/details.json").read_text())
    encoder = create_semantic_encoder(tmp_path / "e.safetensors", device="cpu")
    with h5py.File(tmp_path / "embeddings.hdf5") as file:
        np.testing.assert_allclose(encoder.encode_numpy(photographs), file["embeddings"][:], rtol=1e-3, atol=1e-3)

    line = only_error_line(stage("evaluate", "a.safetensors", "rgb.hdf5", "out"))
    assert "a.safetensors: takes 3 channels, but depth is evaluated" in line
    depth_folder(tmp_path / "depth", 3)
    assert stage("normalize", "depth", "depth.hdf5", "--set", "normalize.height_range=[500,1500]").returncode == 0
    range_of_rgb = ["--set", "normalize.height_range=[0,255]", "--set", "normalize.invalid=[]"]
    assert stage("normalize", "depth", "d255.hdf5", "--set", "normalize.fit=pad", *range_of_rgb).returncode == 0
    line = only_error_line(stage("embed", "e.safetensors", "d255.hdf5", "out.hdf5"))
    assert "d255.hdf5: images of 1 channel(s), but e.safetensors takes 3" in line


def test_depth_and_rgb_are_never_taken_for_each_other(photographs, stage, tmp_path):
    depth_folder(tmp_path / "depth", 3)
    refused = stage("normalize", "depth", "out.hdf5", *RGB)
    assert "3 of 3 images are broken" in only_error_line(refused)
    assert "000000.png: pixels of more than 8 bits (mode I;16)" in refused.stderr
    refused = stage("normalize", "rgb", "out.hdf5")
    assert "not a uint16 depth image (PNG of mode RGB)" in refused.stderr
    line = only_error_line(stage("normalize", "rgb", "out.hdf5", *RGB, "--set", "normalize.unit_mm=2.0"))
    assert "RGB images (channels 3) have neither a depth_encoding nor a unit_mm" in line
    assert not (tmp_path / "out.hdf5").exists()
