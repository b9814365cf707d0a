"""The verification lets sound stores pass, and finds every way of being wrong that has cost others a paper."""

import h5py
import numpy as np
import pytest
import torch
from conftest import only_error_line, photo_folder
from open_clip.transformer import QuickGELU

from sightline.clip import verification
from sightline.clip.extraction import extract_grids
from sightline.clip.params import GridParams, VerifyParams
from sightline.clip.reference import ReferenceTower
from sightline.clip.verification import verify_grids
from sightline.clip.weights import load_image_tower
from sightline.core.errors import UserError
from sightline.core.hdf5 import open_rows

SMALL = {"model": "ViT-S-16", "image_size": 64, "grid": 2}
pytestmark = pytest.mark.filterwarnings("ignore:grids.pretrained is random")


@pytest.fixture
def photos(tmp_path):
    return photo_folder(tmp_path / "photos", range(1, 9))


def params(**changes) -> GridParams:
    return GridParams(**SMALL | changes)


@pytest.mark.parametrize(
    "changes",
    [{}, {"tokens": "raw"}, {"tokens": "projected"}, {"pool": "before_norm"}, {"resize": "squash"},
     {"tokens": "projected", "pool": "before_norm", "dtype": "float32", "precision": "fp32"}, {"grid": 4}],
    ids=str,
)  # fmt: skip
def test_a_sound_store_passes_and_the_figures_say_how_near_it_is(photos, tmp_path, changes):
    extract_grids([photos], tmp_path / "g.hdf5", params(**changes))
    figures = verify_grids(tmp_path / "g.hdf5", [photos], params(**changes), VerifyParams())
    assert (figures["images"], figures["skipped"], figures["random_weights"]) == (8, 0, 1)
    assert figures["live"]["max_difference"] == 0
    assert 0 <= figures["reference"]["relative"] < 0.03
    assert figures["reference"]["min_cosine"] > 0.999
    assert figures["model"]["class_token_difference"] < 1e-5
    assert figures["model"]["change_by_shuffling"] > 0.01


def without_positions(tower):
    tower.visual.positional_embedding.data[1:] = 0


def reference_with(positions):
    """The reference's tower, its positions times a factor."""

    def spoilt(*arguments):
        tower = ReferenceTower(*arguments)
        tower.positions.data[1:] *= positions
        return tower

    return spoilt


def with_another_activation(tower):
    for block in tower.visual.transformer.resblocks:
        block.mlp.gelu = QuickGELU()


def with_other_weights(tower):
    tower.visual.conv1.weight.data.mul_(-1)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (without_positions, "position embeddings are all alike"),
        (with_another_activation, "differ from (the same computed again|open_clip's own)"),
        (with_other_weights, "differ from (the same computed again|open_clip's own)"),
    ],
)
def test_an_extraction_by_another_model_than_the_name_says_is_found(photos, tmp_path, monkeypatch, spoil, message):
    def spoilt(*arguments):
        tower = load_image_tower(*arguments)
        spoil(tower)
        return tower

    monkeypatch.setattr("sightline.clip.tokens.load_image_tower", spoilt)  # the extraction and its repetition
    extract_grids([photos], tmp_path / "g.hdf5", params())
    if spoil is without_positions:  # the same fault in the reference, as if the weights never had any
        monkeypatch.setattr(verification, "ReferenceTower", reference_with(0))
    with pytest.raises(UserError, match=message):
        verify_grids(tmp_path / "g.hdf5", [photos], params(), VerifyParams())


def test_a_model_that_ignores_positions_is_found(photos, tmp_path, monkeypatch):
    monkeypatch.setattr(verification, "ReferenceTower", reference_with(1e-7))  # not all alike, yet of no effect
    extract_grids([photos], tmp_path / "g.hdf5", params())
    with pytest.raises(UserError, match="shuffling the patches of an image changes its tokens by"):
        verify_grids(tmp_path / "g.hdf5", [photos], params(), VerifyParams())


def shift_rows(grids):
    grids[:] = np.roll(grids, 1, axis=0)


def transpose_patches(grids):
    grids[:] = grids.reshape(-1, 2, 2, grids.shape[-1]).transpose(0, 2, 1, 3).reshape(grids.shape)


def one_nan(grids):
    grids[3, 0, 0] = np.nan


def one_empty(grids):
    grids[3] = 0


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (shift_rows, "differ from"),
        (transpose_patches, "differ from"),
        (one_nan, "not finite, or constant: images 4"),
        (one_empty, "not finite, or constant: images 4"),
    ],
)
def test_a_file_with_wrong_numbers_is_found(photos, tmp_path, spoil, message):
    extract_grids([photos], tmp_path / "g.hdf5", params())
    grids = open_rows(tmp_path / "g.hdf5", "grids", "r+")
    spoil(grids)
    grids.flush()
    with pytest.raises(UserError, match=message):
        verify_grids(tmp_path / "g.hdf5", [photos], params(), VerifyParams())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "ViT-S-32"}, "model is 'ViT-S-16', but 'ViT-S-32' is expected"),
        ({"tokens": "raw"}, "tokens is 'ln_post', but 'raw' is expected"),
        ({"grid": 4}, "grid is 2, but 4 is expected"),
        ({"pool": "before_norm"}, "pool is after_norm, but the parameters give before_norm"),
        ({"image_size": 32}, "weights_sha256 is"),
        ({"resize": "squash"}, "preprocessing is .*shortest.* but the parameters give .*squash"),
        ({"dtype": "float32"}, "dtype is float16, but the parameters give float32"),
    ],
    ids=str,
)
def test_a_store_that_was_made_otherwise_is_found(photos, tmp_path, changes, message):
    extract_grids([photos], tmp_path / "g.hdf5", params())
    with pytest.raises(UserError, match=message):
        verify_grids(tmp_path / "g.hdf5", [photos], params(**changes), VerifyParams())


def test_missing_surplus_and_changed_images_are_found(photos, tmp_path):
    extract_grids([photos], tmp_path / "g.hdf5", params())
    photo_folder(photos, [30])
    with pytest.raises(UserError, match=r"g.hdf5: lacks images 30; extract"):
        verify_grids(tmp_path / "g.hdf5", [photos], params(), VerifyParams())
    (photos / "photo_000030.jpg").unlink()
    (photos / "photo_000002.jpg").unlink()
    with pytest.raises(UserError, match=r"g.hdf5: holds images that are not in the folders: 2"):
        verify_grids(tmp_path / "g.hdf5", [photos], params(), VerifyParams())
    photo_folder(photos, [2], size=(61, 80))
    with pytest.raises(UserError, match=r"photo_000002.jpg: has changed since its grid was extracted"):
        verify_grids(tmp_path / "g.hdf5", [photos], params(), VerifyParams())


def test_the_command_reports_figures_or_one_line(photos, tmp_path, stage):
    settings = [word for key, value in SMALL.items() for word in ("--set", f"grids.{key}={value}")]
    extract_grids([photos], tmp_path / "g.hdf5", params())
    result = stage("verify_clip_grids", "g.hdf5", "photos", *settings, "--metrics-dir", "m")
    assert result.returncode == 0, result.stderr
    assert '"min_cosine": ' in (tmp_path / "m/metrics.json").read_text()
    with h5py.File(tmp_path / "g.hdf5", "r+") as file:
        file["grids"][...] = torch.randn(file["grids"].shape)
    assert "differ from" in only_error_line(stage("verify_clip_grids", "g.hdf5", "photos", *settings))
