"""Extraction: the tokens that were asked for, of the images that were asked for, each computed once."""

import shutil
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import photo_folder

from sightline.clip import GridParams, GridStore, LiveGrids, open_grids
from sightline.clip import extraction as extraction_module
from sightline.clip.extraction import extract_grids
from sightline.clip.photographs import prepare
from sightline.clip.tokens import GridEncoder, average_patches, grid_features
from sightline.clip.weights import load_image_tower
from sightline.core.errors import UserError
from sightline.recording.frames import write_index

SMALL = {"model": "ViT-S-16", "image_size": 64, "grid": 2, "precision": "fp32"}
pytestmark = pytest.mark.filterwarnings("ignore:grids.pretrained is random")


def small(**changes) -> GridParams:
    return GridParams(**SMALL | changes)


@pytest.fixture
def photos(tmp_path) -> Path:
    return photo_folder(tmp_path / "photos", range(1, 8))


@pytest.fixture(scope="module")
def tower():
    return load_image_tower(small())


def counted(monkeypatch) -> list[int]:
    """How many images each later extraction encodes."""
    counts: list[int] = []
    encoded = extraction_module._encoded

    def counting(encoder, jobs):
        counts.append(len(jobs))
        return encoded(encoder, jobs)

    monkeypatch.setattr(extraction_module, "_encoded", counting)
    return counts


# ---------------------------------------------------------------- tokens


def test_the_tokens_are_those_of_open_clip(tower):
    images = torch.randn(2, 3, 64, 64)
    tower.visual.output_tokens = True
    with torch.inference_mode():
        pooled, tokens = tower.visual(images)
        raw = grid_features(tower.visual, images, "raw", "after_norm", 4)
        normalised = grid_features(tower.visual, images, "ln_post", "after_norm", 4)
        projected = grid_features(tower.visual, images, "projected", "after_norm", 4)
        before = grid_features(tower.visual, images, "ln_post", "before_norm", 2)
        after = grid_features(tower.visual, images, "ln_post", "after_norm", 2)
        assert torch.equal(normalised, tokens)
        assert torch.equal(tower.visual.ln_post(raw), tokens)
        assert torch.allclose(projected, tokens @ tower.visual.proj, atol=1e-5)
        assert projected.shape[-1] == pooled.shape[-1]
        assert torch.allclose(before, tower.visual.ln_post(average_patches(raw, 2)))
        assert torch.allclose(after, average_patches(tokens, 2))
        assert (before - after).norm() > 0.1 * after.norm()
    tower.visual.output_tokens = False


def test_pooling_averages_squares_of_neighbours_in_row_major_order():
    tokens = torch.arange(16.0).view(1, 16, 1)  # 4 x 4
    assert average_patches(tokens, 2).flatten().tolist() == [2.5, 4.5, 10.5, 12.5]
    assert torch.equal(average_patches(tokens, 4), tokens)


@pytest.mark.parametrize(
    ("model", "image_size", "grid", "shape"),
    [("ViT-S-16", None, 7, (49, 384)), ("ViT-S-16", 112, 7, (49, 384)), ("ViT-S/32", None, 7, (49, 384))],
)
def test_a_grid_of_seven_by_pooling_by_smaller_input_or_by_larger_patches(model, image_size, grid, shape):
    encoder = GridEncoder(small(model=model, image_size=image_size, grid=grid), torch.device("cpu"))
    assert encoder.shape == shape
    size = image_size or 224
    assert encoder.encode(torch.zeros(1, 3, size, size, dtype=torch.uint8)).shape == (1, *shape)
    assert encoder.attributes()["pool"] == ("after_norm" if (model, image_size) == ("ViT-S-16", None) else "none")


def test_a_grid_does_not_depend_on_the_company(photos):
    encoder = GridEncoder(small(precision="bf16"), torch.device("cpu"))
    images = torch.stack([prepare(path, encoder.preparation) for path in sorted(photos.iterdir())])
    together, reverse = encoder.encode(images), encoder.encode(images.flip(0)).flip(0)
    assert torch.equal(together, reverse)
    assert torch.equal(encoder.encode(images[5:6]), together[5:6])


# ---------------------------------------------------------------- the file


def test_one_file_that_says_what_made_it(photos, tmp_path):
    with pytest.warns(UserWarning, match=r"grids.pretrained is random: ViT-S-16 has untrained weights"):
        figures = extract_grids([photos], tmp_path / "g.hdf5", small())
    with h5py.File(tmp_path / "g.hdf5") as file:
        assert (file["grids"].shape, file["grids"].dtype) == ((7, 4, 384), np.float16)
        assert file["image_ids"][:].tolist() == list(range(1, 8))
        assert (file["3_grids"][()] == file["grids"][2]).all()
        attributes = dict(file.attrs)
    assert (attributes["model"], attributes["tokens"], attributes["grid"]) == ("ViT-S-16", "ln_post", 2)
    assert attributes["random_weights"]
    assert len(attributes["weights_sha256"]) == 64
    assert '"resize_mode": "shortest"' in attributes["preprocessing"]
    assert (figures["images"], figures["patches"], figures["channels"], figures["random_weights"]) == (7, 4, 384, 1)
    assert figures["std"] > 0.1
    assert str(tmp_path) not in str(attributes)


def test_several_folders_go_into_one_file_by_coco_ids(tmp_path):
    for folder, name, i in (("train", "COCO_train2014_000000000009", 9), ("val", "000000037209", 37209)):
        photo_folder(tmp_path / folder, [i])
        (tmp_path / folder / f"photo_{i:06d}.jpg").rename(tmp_path / folder / f"{name}.jpg")
    extract_grids([tmp_path / "train", tmp_path / "val"], tmp_path / "g.hdf5", small())
    assert GridStore(tmp_path / "g.hdf5").image_ids.tolist() == [9, 37209]


def test_only_new_and_changed_images_are_computed_and_the_bytes_are_those_of_a_run_from_nothing(
    photos, tmp_path, monkeypatch
):
    counts = counted(monkeypatch)
    extract_grids([photos], tmp_path / "old.hdf5", small())
    photo_folder(photos, [20, 21])
    shutil.copy(photos / "photo_000021.jpg", photos / "photo_000003.jpg")  # changed, and equal to another
    (photos / "photo_000001.jpg").unlink()
    extract_grids([photos], tmp_path / "new.hdf5", small())
    assert counts == [7, 2]
    shutil.rmtree(tmp_path / ".scratch")
    extract_grids([photos], tmp_path / "scratch.hdf5", small())
    shutil.rmtree(tmp_path / ".scratch")
    extract_grids([photos], tmp_path / "previous.hdf5", small(), previous=tmp_path / "old.hdf5")
    assert counts == [7, 2, 7, 2]
    expected = (tmp_path / "scratch.hdf5").read_bytes()
    assert (tmp_path / "new.hdf5").read_bytes() == (tmp_path / "previous.hdf5").read_bytes() == expected


def test_a_previous_file_of_other_settings_is_refused(photos, tmp_path):
    extract_grids([photos], tmp_path / "old.hdf5", small())
    with pytest.raises(UserError, match=r"old.hdf5: made with tokens ln_post, now it is raw; leave it out"):
        extract_grids([photos], tmp_path / "new.hdf5", small(tokens="raw"), previous=tmp_path / "old.hdf5")
    assert not (tmp_path / "new.hdf5").exists()


def test_an_interrupted_extraction_continues_and_ends_with_the_same_bytes(photos, tmp_path, monkeypatch, scratch_root):
    extract_grids([photos], tmp_path / "whole.hdf5", small())
    (cache,) = (scratch_root / "cache").glob("*/arrays.bin")
    cache.write_bytes(cache.read_bytes()[: 3 * (16 + 2 * 4 * 384) + 100])  # three grids, and a fourth cut short
    counts = counted(monkeypatch)
    extract_grids([photos], tmp_path / "resumed.hdf5", small())
    assert counts == [4]
    assert (tmp_path / "resumed.hdf5").read_bytes() == (tmp_path / "whole.hdf5").read_bytes()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_live_and_stored_are_the_same_values_by_one_switch(photos, tmp_path, precision):
    params, ids = small(precision=precision), [5, 2, 2, 7]
    extract_grids([photos], tmp_path / "g.hdf5", params)
    read = []
    for features in ("stored", "live"):
        with open_grids(features, tmp_path / "g.hdf5", [photos], params) as grids:
            assert (len(grids), grids.shape, grids.image_ids.tolist()) == (7, (7, 4, 384), list(range(1, 8)))
            assert (grids[2] == grids.read([2])[0]).all()
            read.append((grids.read(ids), grids.read_tensor(ids).numpy(), grids.attributes))
    (stored, stored_tensor, made), (live, live_tensor, would_be_made) = read
    assert (stored == live).all()
    assert (stored_tensor == live_tensor).all()
    assert stored.dtype == live.dtype == np.float16
    assert made == would_be_made
    with pytest.raises(KeyError, match="no image 99 among the 7 photographs"):
        LiveGrids([photos], params).read([99])
    with pytest.raises(UserError, match="tokens is 'ln_post', but 'raw' is expected"):
        open_grids("stored", tmp_path / "g.hdf5", [photos], small(tokens="raw"))


def test_only_the_frames_of_the_index_are_extracted(photos, tmp_path):
    ids = [2, 4, 6]
    frames = pd.DataFrame({"frame_id": ids, "episode": 0, "step": range(3), "time_s": 0.0, "split": "train"})
    write_index(tmp_path / "index.parquet", frames)
    extract_grids([photos], tmp_path / "g.hdf5", small(), index=tmp_path / "index.parquet")
    assert GridStore(tmp_path / "g.hdf5").image_ids.tolist() == ids
    (photos / "photo_000004.jpg").unlink()
    with pytest.raises(UserError, match=r"index.parquet: names frames 4 that have no image in .*photos"):
        extract_grids([photos], tmp_path / "h.hdf5", small(), index=tmp_path / "index.parquet")


@pytest.mark.parametrize("compression", ["gzip", "blosc2"])
def test_compression_saves_something_and_says_how_much(photos, tmp_path, compression, capsys):
    extract_grids([photos], tmp_path / "plain.hdf5", small())
    extract_grids([photos], tmp_path / "small.hdf5", small(compression=compression))
    assert f"{compression} saves " in capsys.readouterr().err
    plain, packed = GridStore(tmp_path / "plain.hdf5"), GridStore(tmp_path / "small.hdf5")
    assert (plain.read([7, 1]) == packed.read([7, 1])).all()
    with h5py.File(tmp_path / "small.hdf5") as file:
        assert (file["7_grids"][()] == plain[7]).all()


def test_a_folder_of_something_else_is_never_replaced(photos, tmp_path):
    (tmp_path / "g.hdf5").mkdir()
    for output in (photos, tmp_path / "g.hdf5"):
        with pytest.raises(UserError, match=rf"{output.name}: is a folder of something else; name the output last"):
            extract_grids([photos], output, small())
    assert len(list(photos.iterdir())) == 7
    with pytest.raises(UserError, match=r"photo_000001.jpg: is a file; name one that ends in .hdf5, or another folder"):
        extract_grids([photos], photos / "photo_000001.jpg", small())


def test_too_little_disk_is_found_before_the_work(photos, tmp_path, monkeypatch):
    counts = counted(monkeypatch)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 10, 1000))
    with pytest.raises(UserError, match=r": 0.0 MB needed, but only 0.0 MB free; make room"):
        extract_grids([photos], tmp_path / "g.hdf5", small())
    assert counts == []


# ---------------------------------------------------------------- weights


def test_random_weights_are_the_same_each_time_and_do_not_touch_the_generator(tower):
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    assert load_image_tower(small()).sha256 == tower.sha256
    assert torch.equal(torch.rand(2), expected)
    assert tower.random


@pytest.mark.parametrize(
    ("model", "pretrained", "image_size", "message"),
    [
        ("ViT-B-17", "random", None, r"grids.model: open_clip has no model 'ViT-B-17'; some that it has: ViT-B-16"),
        ("RN50", "random", None, r"RN50 is not a vision transformer with a class token"),
        ("ViT-B-16-SigLIP", "random", None, r"is not a vision transformer with a class token"),
        ("coca_ViT-B-32", "random", None, r"is not a vision transformer with a class token"),
        ("ViT-B-16", "no_such_tag", None, r"'no_such_tag' is neither a file nor a tag of ViT-B-16 .*laion2b"),
        ("ViT-B-16", "openai", None, r"trained with QuickGELU.*set it to ViT-B-16-quickgelu"),
        ("ViT-B-16-quickgelu", "laion2b_s34b_b88k", None, r"neither a file nor a tag|set it to ViT-B-16$"),
        ("ViT-S-16", "random", 65, r"grids.image_size: 65 is no multiple of the 16 pixels"),
    ],
)
def test_models_and_weights_that_do_not_fit_are_refused(model, pretrained, image_size, message):
    with pytest.raises(UserError, match=message):
        load_image_tower(GridParams(model=model, pretrained=pretrained, image_size=image_size))
