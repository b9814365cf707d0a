"""Precomputed features as inputs: the file tells the kind; what does not fit is refused in one line."""

import json
from pathlib import Path

import h5py
import numpy as np
import pytest
from conftest import write_grids

from sightline.core.errors import UserError
from sightline.grids.features import FramesOf, check_features, open_features

IDS = np.arange(10, 16)
ALL = np.ones(len(IDS), bool)
MODEL = Path("m.safetensors")
NAMES = ("vector", "grid", "image")


def write_embeddings(path: Path, ids=IDS, width: int = 3, encoder: str = "e1") -> Path:
    """Each embedding is its frame id, repeated."""
    with h5py.File(path, "w") as file:
        file["embeddings"] = np.repeat(np.array(ids, "f4")[:, None], width, axis=1)
        file["frame_id"], file.attrs["encoder_sha256"] = np.array(ids), encoder
    return path


def opened(*paths: Path, needed=ALL, recording: str = "", kinds: int = 3):
    return open_features(paths, FramesOf(IDS, needed, "views.hdf5", recording), NAMES[:kinds])


def grids_of(ids, width: int = 5) -> np.ndarray:
    return np.tile(np.array(ids, "f4")[:, None, None], (1, 4, width))


@pytest.mark.parametrize("name", ["c.hdf5", "c"])
def test_the_file_tells_the_kind_and_rows_follow_the_frames(tmp_path, name):
    embeddings = write_embeddings(tmp_path / "e.hdf5", ids=[*IDS[::-1], 99])
    clip = write_grids(tmp_path / name, range(8, 20), grids_of(range(8, 20)))
    features = opened(clip, embeddings)
    assert {name: feature.shape for name, feature in features.items()} == {"grid": (4, 5), "vector": (3,)}
    assert features["vector"][np.array([1, 5])][:, 0].tolist() == [11, 15]
    assert features["grid"][np.array([1, 5])][:, 0, 0].tolist() == [11, 15]


def test_frames_that_are_never_asked_for_may_be_missing(tmp_path):
    paths = write_embeddings(tmp_path / "e.hdf5", IDS[1:]), write_grids(tmp_path / "c", IDS[1:], grids_of(IDS[1:]))
    assert opened(*paths, needed=IDS > 10)["vector"][np.array([1])][0, 0] == 11
    for path in paths:
        with pytest.raises(UserError) as error:
            opened(path)
        wanted = f"{path}: lacks 1 of 6 frames of views.hdf5 (first 10); make it from the same recording"
        assert str(error.value) == wanted


def test_features_of_another_recording_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"e.hdf5: lacks 6 of 6 frames of views.hdf5 \(first 10\); make it from"):
        opened(write_embeddings(tmp_path / "e.hdf5", range(6)))
    with pytest.raises(UserError, match=r"c.hdf5: lacks 6 of 6 frames of views.hdf5 \(first 10\); make it from"):
        opened(write_grids(tmp_path / "c.hdf5", range(6), grids_of(range(6))))


@pytest.mark.parametrize("name", ["e.hdf5", "c.hdf5", "c"])
def test_of_recordings_with_the_same_frame_ids_the_key_tells_which(tmp_path, name):
    """Files of older versions have none, and are taken."""
    path = tmp_path / name
    if name == "e.hdf5":
        write_embeddings(path)
    else:
        write_grids(path, IDS, grids_of(IDS))
    opened(path, recording="one")
    if path.is_dir():
        listed = json.loads((path / "shards.json").read_text())
        (path / "shards.json").write_text(json.dumps(listed | {"recording": "one"}))
    else:
        with h5py.File(path, "r+") as file:
            file.attrs["recording"] = "one"
    opened(path, recording="one")
    opened(path)
    with pytest.raises(UserError) as error:
        opened(path, recording="two")
    message = f"{path}: made from another recording than views.hdf5, or before that one changed; make it from the same"
    assert str(error.value) == f"{message} recording"


def test_a_model_takes_the_kinds_that_it_names(tmp_path):
    with h5py.File(tmp_path / "d.hdf5", "w") as file:
        file["depth"], file["valid"] = np.zeros((6, 4, 4), "f4"), np.ones((6, 4, 4), bool)
        file["frame_id"], file.attrs["preprocessing"] = IDS, "{}"
    assert opened(tmp_path / "d.hdf5")["image"].shape == (1, 4, 4)
    message = r"d.hdf5: depth images, which this model does not take; it takes depth embeddings and grids$"
    with pytest.raises(UserError, match=message):
        opened(tmp_path / "d.hdf5", kinds=2)


def test_what_is_no_feature_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"none.hdf5: no such file; make it with sightline embed, sightline clip_grids"):
        opened(tmp_path / "none.hdf5")
    with h5py.File(tmp_path / "other.hdf5", "w") as file:
        file["depth"] = np.zeros(3)
    with pytest.raises(UserError, match=r"other.hdf5: holds none of depth embeddings, grids, depth images; name"):
        opened(tmp_path / "other.hdf5")
    path = write_embeddings(tmp_path / "e.hdf5")
    with pytest.raises(UserError, match=r"f.hdf5: depth embeddings, as .*e.hdf5; a model takes one of each kind"):
        opened(path, write_embeddings(tmp_path / "f.hdf5"))
    with h5py.File(path, "r+") as file:
        file["embeddings"][2, 1] = np.nan
    with pytest.raises(UserError, match=r"e.hdf5: embeddings: holds NaN or infinity; write it again"):
        opened(path)


def test_a_model_takes_the_features_that_it_was_trained_with(tmp_path):
    features = opened(write_embeddings(tmp_path / "e.hdf5"))
    shapes, makers = {"vector": (3,)}, {"vector": features["vector"].maker}
    check_features(features, shapes, makers, MODEL)
    check_features(features, shapes, {}, MODEL)  # a model of before names no maker
    wider = opened(write_embeddings(tmp_path / "w.hdf5", width=4))
    other = opened(write_embeddings(tmp_path / "o.hdf5", encoder="e2"))
    for given, trained, message in (
        (wider, shapes, r"w.hdf5: 4 numbers for each frame, but m.safetensors was trained with 3; name the features"),
        (other, shapes, r"o.hdf5: made by another network, or with other settings, than the features that m.safet"),
        (features, {}, r"e.hdf5: depth embeddings, but m.safetensors was trained without; leave it out"),
        ({}, shapes, r"m.safetensors: was trained with depth embeddings as a further input; add --feature PATH of"),
        (features, shapes | {"grid": (4, 5)}, r"m.safetensors: was trained with grids as a further input; add"),
    ):
        with pytest.raises(UserError, match=message) as error:
            check_features(given, trained, makers, MODEL)
        assert "\n" not in str(error.value)


def test_grids_with_other_settings_have_another_maker(tmp_path):
    path = write_grids(tmp_path / "c.hdf5", IDS, grids_of(IDS))
    first = opened(path)["grid"].maker
    with h5py.File(path, "r+") as file:
        file.attrs["tokens"] = "raw"
    assert opened(path)["grid"].maker != first
    assert opened(write_grids(tmp_path / "d", IDS, grids_of(IDS)))["grid"].maker == first


@pytest.mark.parametrize("option", ["--clip-grids", "--depth-embeddings"])
def test_there_is_one_option(stage, option):
    done = stage("train_fusion", "views.hdf5", "m.safetensors", "--metrics-dir", "m", option, "c")
    assert done.returncode == 2
    assert done.stderr.endswith(f"train_fusion.py: error: unrecognized arguments: {option} c\n")
