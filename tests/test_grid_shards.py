"""A folder of shards reads as one store; what is added behind leaves shards as they are; a wrong shard is refused."""

import gc
import json
import os
import pickle
import shutil
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
from conftest import photo_folder, write_grids
from hypothesis import given, settings
from hypothesis import strategies as st

from sightline.clip import GridParams, GridStore
from sightline.clip import extraction as extraction_module
from sightline.clip.extraction import extract_grids
from sightline.clip.params import VerifyParams
from sightline.clip.store import shard_ranges, write_shards
from sightline.clip.verification import verify_grids
from sightline.core.errors import UserError
from sightline.grids import store as grid_store
from sightline.recording.frames import write_index

SMALL = {"model": "ViT-S-16", "image_size": 32, "grid": 2, "precision": "fp32", "shard_frames": 4}
EPISODES = [0, 0, 0, 2, 2, 3, 3, 3, 5]  # of frames 0, 1, 2 ...: with four frames a shard: 0-0, 2-2, 3-5
pytestmark = pytest.mark.filterwarnings("ignore:grids.pretrained is random")


def random_grids(count: int, dtype: str = "float16") -> np.ndarray:
    return np.random.default_rng(count).normal(size=(count, 4, 6)).astype(dtype)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def index_of(path: Path, episodes: list[int]) -> Path:
    frames = pd.DataFrame({"frame_id": range(len(episodes)), "episode": episodes, "step": 0, "time_s": 0.0})
    write_index(path, frames.assign(split="train"))
    return path


def extract(root: Path, output: str = "grids", episodes: list[int] = EPISODES, **options) -> dict:
    """Extract grids of generated pictures, one for each frame."""
    photos = photo_folder(root / "photos", range(len(episodes)))
    index = index_of(root / "index.parquet", episodes)
    params = GridParams(**SMALL | options.pop("params", {}))
    return extract_grids([photos], root / output, params, index=index, **options)


# ---------------------------------------------------------------- boundaries


@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=20),
    added=st.lists(st.integers(1, 9), max_size=8),
    most=st.integers(1, 12),
)
def test_shards_are_whole_episodes_and_what_comes_behind_changes_at_most_the_last(lengths, added, most):
    episodes = np.repeat(np.arange(len(lengths + added)), lengths + added)
    ids, count = np.arange(len(episodes)) + 100, sum(lengths)
    before, after = shard_ranges(ids[:count], episodes[:count], most), shard_ranges(ids, episodes, most)
    assert np.concatenate(list(after.values())).tolist() == ids.tolist()
    for name, part in after.items():
        of_part = episodes[part - 100]
        assert (of_part[0], of_part[-1]) == tuple(int(number) for number in name[:-5].split("-"))
        assert len(part) <= most or of_part[0] == of_part[-1]
    unchanged = [name for name in before if name in after and before[name].tolist() == after[name].tolist()]
    assert unchanged[: len(before) - 1] == list(before)[:-1]


# ---------------------------------------------------------------- reading


@settings(max_examples=25, deadline=None)
@given(ids=st.lists(st.integers(0, 2**63 - 1), min_size=1, max_size=14, unique=True), order=st.randoms())
def test_a_folder_is_read_like_a_file(tmp_path_factory, ids, order):
    place, grids = tmp_path_factory.mktemp("store"), random_grids(len(ids))
    wanted = [order.choice(ids) for _ in range(20)]
    expected = np.stack([grids[ids.index(i)] for i in wanted])
    with (
        GridStore(write_grids(place / "s", ids, grids)) as store,
        GridStore(write_grids(place / "s.hdf5", ids, grids)) as file,
    ):
        assert len(list((place / "s").glob("*.hdf5"))) == -(-len(ids) // 3)
        for reader in (store, pickle.loads(pickle.dumps(store))):
            assert (reader.read(wanted) == expected).all()
            assert (reader.read_tensor(wanted).numpy() == expected).all()
            assert (reader[wanted[0]] == expected[0]).all()
        assert (store.image_ids.tolist(), store.shape, store.dtype) == (sorted(ids), file.shape, file.dtype)
        assert (store.content_hash == file.content_hash).all()
        assert (np.concatenate(list(store.blocks(5))) == np.concatenate(list(file.blocks()))).all()


def test_episodes_that_take_turns_with_the_ids_are_found(tmp_path):
    ids, episodes = np.arange(8), np.array([1, 0] * 4)
    ranges = shard_ranges(ids, episodes, 4)
    assert {name: part.tolist() for name, part in ranges.items()} == {
        "000000-000000.hdf5": [1, 3, 5, 7],
        "000001-000001.hdf5": [0, 2, 4, 6],
    }
    extract(tmp_path, episodes=episodes.tolist())
    extract(tmp_path, "one.hdf5", episodes=episodes.tolist())
    store, file = GridStore(tmp_path / "grids"), GridStore(tmp_path / "one.hdf5")
    assert store.image_ids.tolist() == list(range(8))
    assert (store.read([6, 1, 0]) == file.read([6, 1, 0])).all()
    assert (store.content_hash == file.content_hash).all()


def test_a_shard_tells_of_its_own_images_that_were_skipped(tmp_path):
    """Also where the ids do not rise from shard to shard; of one without any sound image, the shard before it."""
    ranges = shard_ranges(np.arange(8), np.array([1, 0, 1, 0, 2, 2, 3, 3]), 2)
    written = {}

    def write(path: Path, ids: np.ndarray, skipped: list[int]) -> None:
        write_grids(path, ids, random_grids(len(ids)))
        written[path.name] = (ids.tolist(), skipped)

    write_shards(tmp_path / "grids", ranges, {0, 3, 4, 5}, write)
    assert written == {
        "000000-000000.hdf5": ([1], [3]),
        "000001-000001.hdf5": ([2], [0, 4, 5]),
        "000003-000003.hdf5": ([6, 7], []),
    }


@pytest.mark.parametrize("mapped", [True, False])
def test_a_store_of_many_shards_holds_few_files_open(tmp_path, monkeypatch, mapped):
    monkeypatch.setattr(grid_store, "_MOST_MAPPED", 2**30 if mapped else 0)
    monkeypatch.setattr(grid_store, "_MOST_OPEN", 3)
    grids = random_grids(40)
    write_grids(tmp_path / "s", range(40), grids, most=2)
    gc.collect()  # what earlier tests left open
    before = len(os.listdir("/dev/fd"))
    with GridStore(tmp_path / "s") as store:
        for ids in (np.arange(40), np.random.default_rng(0).permutation(40)):
            assert (store.read(ids) == grids[ids]).all()
            assert len(os.listdir("/dev/fd")) - before == (6 if mapped else 3)
    assert len(os.listdir("/dev/fd")) == before


def _remove(folder: Path) -> None:
    (folder / "000003-000005.hdf5").unlink()


def _add(folder: Path) -> None:
    shutil.copy(folder / "000003-000005.hdf5", folder / "000009-000011.hdf5")


def _of_another_image(folder: Path) -> None:
    with h5py.File(folder / "000003-000005.hdf5", "r+") as file:
        file["content_hash"][1] = b"0" * 32


def _of_another_model(folder: Path) -> None:
    with h5py.File(folder / "000003-000005.hdf5", "r+") as file:
        file.attrs["model"] = "ViT-L-14"


def _exchange(folder: Path) -> None:
    shutil.copy(folder / "000000-000002.hdf5", folder / "000003-000005.hdf5")


def _edit_list(text: str):
    return lambda folder: (folder / "shards.json").write_text(text)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_remove, r"000003-000005.hdf5: a shard is missing; copy or pull the whole folder"),
        (_add, r"000009-000011.hdf5: not a shard that shards.json names; remove it"),
        (_of_another_image, r"000003-000005.hdf5: not the shard that shards.json names; copy or pull"),
        (_of_another_model, r"000003-000005.hdf5: model is ViT-L-14, but ViT-B-16 in 000000-000002.hdf5; extract"),
        (_exchange, r"000003-000005.hdf5: not the shard that shards.json names; copy or pull"),
        (lambda folder: (folder / "shards.json").unlink(), r"s: no shards.json in it, so no grid features; write"),
        (_edit_list("{"), r"shards.json: not a list of shards"),
        (_edit_list('{"shards": {}}'), r"shards.json: not a list of shards"),
        (_edit_list('{"shards": {"../s/000000-000002.hdf5": {"key": ""}}}'), r"shards.json: not a list of shards"),
        (_edit_list('{"shards": ["000000-000002.hdf5"]}'), r"shards.json: not a list of shards"),
    ],
)
def test_a_folder_that_is_not_as_it_was_written_is_refused_in_one_line(tmp_path, spoil, message):
    write_grids(tmp_path / "s", range(9), random_grids(9))
    spoil(tmp_path / "s")
    with pytest.raises(UserError, match=message) as error:
        GridStore(tmp_path / "s")
    assert "\n" not in str(error.value)


def test_shards_with_a_common_image_are_refused(tmp_path):
    write_grids(tmp_path / "s", range(6), random_grids(6))
    shutil.copy(tmp_path / "s/000000-000002.hdf5", tmp_path / "s/again.hdf5")
    listed = json.loads((tmp_path / "s/shards.json").read_text())
    listed["shards"]["again.hdf5"] = listed["shards"]["000000-000002.hdf5"]
    (tmp_path / "s/shards.json").write_text(json.dumps(listed))
    with pytest.raises(UserError, match=r"s: image 0 is in two of its shards; extract the grids again"):
        GridStore(tmp_path / "s")


# ---------------------------------------------------------------- extraction


def test_new_episodes_leave_all_shards_but_the_last_as_they_are(tmp_path):
    assert extract(tmp_path)["files"] == 3
    before = contents(tmp_path / "grids")
    assert sorted(before) == ["000000-000000.hdf5", "000002-000002.hdf5", "000003-000005.hdf5", "shards.json"]
    shutil.rmtree(tmp_path / ".scratch")
    extract(tmp_path, "again", previous=tmp_path / "grids")
    assert contents(tmp_path / "again") == before
    extract(tmp_path, episodes=[*EPISODES, 6, 7, 7])  # takes the place of the folder
    after = contents(tmp_path / "grids")
    assert set(after) - set(before) == {"000006-000007.hdf5"}
    assert {name for name in before if before[name] != after[name]} == {"shards.json"}
    extract(tmp_path, episodes=[*EPISODES, 6, 7, 7, 8])
    assert sorted(contents(tmp_path / "grids"))[-2:] == ["000006-000008.hdf5", "shards.json"]
    params, limits, index = GridParams(**SMALL), VerifyParams(sample=5), tmp_path / "index.parquet"
    assert verify_grids(tmp_path / "grids", [tmp_path / "photos"], params, limits, index)["images"] == 13


def test_shards_and_file_hold_the_same_and_photographs_without_episodes_go_by_id(tmp_path):
    figures = [extract(tmp_path, output) for output in ("grids", "one.hdf5")]
    apart = {name for name in figures[0] if figures[0][name] != figures[1][name]}
    assert apart == {"files", "bytes"}
    assert figures[0]["bytes"] == sum(path.stat().st_size for path in (tmp_path / "grids").glob("*.hdf5"))
    store, file = GridStore(tmp_path / "grids"), GridStore(tmp_path / "one.hdf5")
    assert (store.read(range(9)) == file.read(range(9))).all()
    extract_grids([tmp_path / "photos"], tmp_path / "by_id", GridParams(**SMALL))
    names = ["000000-000003.hdf5", "000004-000007.hdf5", "000008-000008.hdf5", "shards.json"]
    assert sorted(contents(tmp_path / "by_id")) == names


def test_images_that_cannot_be_read_do_not_move_the_boundaries(tmp_path):
    extract(tmp_path)
    before = contents(tmp_path / "grids")
    for i in (1, 3, 4):  # one of the first shard, all of the second
        (tmp_path / f"photos/photo_{i:06d}.jpg").write_bytes(b"")
    photos, index = tmp_path / "photos", tmp_path / "index.parquet"
    with pytest.warns(UserWarning, match="3 of 9 images left out"):
        extract_grids([photos], tmp_path / "grids", GridParams(**SMALL), on_error="skip", index=index)
    after = contents(tmp_path / "grids")
    assert set(before) - set(after) == {"000002-000002.hdf5"}
    assert before["000003-000005.hdf5"] == after["000003-000005.hdf5"]
    store = GridStore(tmp_path / "grids")
    assert (store.image_ids.tolist(), store.skipped_ids.tolist()) == ([0, 2, 5, 6, 7, 8], [1, 3, 4])
    with pytest.raises(KeyError, match=r"no grid of image 4 .*could not be read when the file was made"):
        store[4]


def test_an_extraction_that_is_stopped_between_shards_leaves_nothing_and_goes_on(tmp_path, monkeypatch):
    extract(tmp_path, "whole")
    shutil.rmtree(tmp_path / ".scratch")
    written, write_store = [], extraction_module.write_store

    def stopping(path, *arguments):
        written.append(path.name)
        if len(written) == 2:
            raise KeyboardInterrupt
        write_store(path, *arguments)

    monkeypatch.setattr(extraction_module, "write_store", stopping)
    with pytest.raises(KeyboardInterrupt):
        extract(tmp_path)
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {".scratch", "whole", "photos", "index.parquet"}
    monkeypatch.setattr(extraction_module, "_encoded", lambda _, jobs: iter([]) if not jobs else pytest.fail("again"))
    extract(tmp_path)
    assert contents(tmp_path / "grids") == contents(tmp_path / "whole")
