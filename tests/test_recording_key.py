"""A key tells recordings apart whose frame ids are the same: from the index to all that is made of it."""

import h5py
import numpy as np
import pandas as pd
from conftest import recording_folder, write_grids

from sightline.clip.store import write_shards
from sightline.depth.normalize import NormalizeParams, normalize_depth
from sightline.depth.store import DepthStore
from sightline.grids.store import GridStore
from sightline.recording.frames import read_index, read_recording_key, recording_key, write_index
from sightline.recording.split import DataParams, SplitParams
from sightline.validation.validation import validate_recording

DATA = DataParams(split=SplitParams(val=0.3, test=0.3))


def table(**columns) -> pd.DataFrame:
    base = {"frame_id": [0, 1], "episode": [0, 1], "step": [0, 0], "joints": [np.array([0.0, 1]), np.array([2.0, 3])]}
    return pd.DataFrame(base | columns)


def test_the_key_is_of_ids_episodes_steps_and_joints():
    first = recording_key(table())
    assert len(first) == 32
    assert recording_key(table(time_s=[0.0, 1.0], split=["train", "val"])) == first
    others = [
        table(frame_id=[0, 2]), table(episode=[0, 2]), table(step=[0, 1]), table().drop(columns="joints"),
        table(joints=[np.array([0.0, 1]), np.array([2.0, 3.5])]),
    ]  # fmt: skip
    assert len({first, *map(recording_key, others)}) == 6
    narrow = table(joints=[np.array([0, 1], "f4"), np.array([2, 3], "f4")])
    assert recording_key(narrow) == first


def test_every_index_has_it_whatever_the_split_and_an_older_one_has_none(tmp_path):
    rec = recording_folder(tmp_path / "rec", ["front"])
    validate_recording(rec, tmp_path / "a", DATA, processes=1)
    for piece in ("frames", "depth", "rgb/front"):
        other = DATA.model_copy(update={"split": SplitParams(seed=1, val=0.3, test=0.3)})
        validate_recording(rec, tmp_path / "b", other, only=piece, processes=1)
    pieces = ("frames", "depth", "rgb/front")
    keys = {read_recording_key(tmp_path / f"{place}/{piece}.parquet") for place in "ab" for piece in pieces}
    (key,) = keys
    assert key
    write_index(tmp_path / "old.parquet", read_index(tmp_path / "a/frames.parquet"))
    assert read_recording_key(tmp_path / "old.parquet") == ""


def test_normalised_depth_has_it_and_that_of_a_bare_folder_has_not(tmp_path):
    rec, out = recording_folder(tmp_path / "rec", ["front"]), tmp_path / "d.hdf5"
    validate_recording(rec, tmp_path / "index", DATA, processes=1)
    index, about = tmp_path / "index/depth.parquet", rec / "recording.json"
    normalize_depth(rec / "depth", out, NormalizeParams(), split=DATA.split, index=index, recording=about, processes=1)
    assert DepthStore.open(out).recording == read_recording_key(index) != ""
    normalize_depth(rec / "depth", out, NormalizeParams(height_range=(500, 1500)), split=DATA.split, processes=1)
    assert DepthStore.open(out).recording == ""
    with h5py.File(out) as file:
        assert "recording" not in file.attrs


def test_of_shards_the_list_has_it_so_that_they_stay_as_episodes_are_added(tmp_path):
    grids = np.zeros((4, 4, 5), "f4")

    def write(path, ids, skipped):
        write_grids(path, ids, grids[: len(ids)])

    for name, key in (("a", "one"), ("b", "two"), ("c", "")):
        write_shards(tmp_path / name, {"000000-000001.hdf5": np.arange(4)}, [], write, key)
        assert GridStore(tmp_path / name).recording == key
    shards = {(tmp_path / name / "000000-000001.hdf5").read_bytes() for name in "abc"}
    assert len(shards) == 1
