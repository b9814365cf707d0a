"""The store of grid features: every reader gets the row it asked for, or an error; never something else."""

import multiprocessing
import os
import pickle
from itertools import pairwise
from pathlib import Path
from unittest.mock import patch

import h5py
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader, Dataset

from sightline.clip import GridStore
from sightline.clip.store import Rows, StoreLayout, write_store
from sightline.core.errors import UserError
from sightline.grids import store as grid_store
from sightline.grids.store import MissingImageError

ATTRIBUTES = {"model": "ViT-B-16", "tokens": "ln_post", "grid": 2, "dtype": "float16"}


def store_of(
    path: Path, ids, keyed=("grids",), compression="none", dtype="float16", shape=(4, 6), skipped=()
) -> np.ndarray:
    """Write a store of random grids, in two blocks -> the grids."""
    grids = np.random.default_rng(0).normal(size=(len(ids), *shape)).astype(dtype)
    blocks = iter([grids[: len(ids) // 2], grids[len(ids) // 2 :]])
    hashes = [f"{i:032x}".encode() for i in range(len(ids))]
    attributes = ATTRIBUTES | {"dtype": dtype}
    rows = Rows(np.array(ids), [f"photo {i}é" for i in ids], hashes, skipped)
    write_store(path, rows, blocks, StoreLayout(shape, attributes, keyed, compression))
    return grids


@settings(max_examples=25, deadline=None)
@given(
    ids=st.lists(st.integers(0, 2**63 - 1), min_size=1, max_size=12, unique=True).map(sorted),
    order=st.randoms(),
    compression=st.sampled_from(["none", "gzip", "blosc2"]),
    dtype=st.sampled_from(["float16", "float32"]),
    most_mapped=st.sampled_from([0, 2**30]),
)
def test_every_way_of_reading_gives_the_row_of_the_id(tmp_path_factory, ids, order, compression, dtype, most_mapped):
    path = tmp_path_factory.mktemp("store") / "grids.hdf5"
    grids = store_of(path, ids, compression=compression, dtype=dtype)
    wanted = [order.choice(ids) for _ in range(20)]
    expected = np.stack([grids[ids.index(i)] for i in wanted])
    with patch.object(grid_store, "_MOST_MAPPED", most_mapped), GridStore(path) as store:
        assert (store.read(wanted) == expected).all()
        assert all((store[i] == e).all() for i, e in zip(wanted, expected, strict=True))
        assert (store.read_tensor(wanted).numpy() == expected).all()
        assert (len(store), store.image_ids.tolist(), store.dtype) == (len(ids), ids, dtype)
        assert (np.concatenate(list(store.blocks(5))) == grids).all()
        assert ids[0] in store
        for row in (-1, len(ids)):
            with pytest.raises(IndexError, match=f"grids.hdf5: row {row} "):
                store.take(np.array([row]))


def test_keys_of_images_move_with_the_file_and_may_be_left_out(tmp_path):
    grids = store_of(tmp_path / "keyed.hdf5", range(9, 72, 3), shape=(49, 768))
    store_of(tmp_path / "plain.hdf5", [9], keyed=(), shape=(49, 768))
    (tmp_path / "keyed.hdf5").rename(tmp_path / "moved.hdf5")
    with h5py.File(tmp_path / "moved.hdf5", "r") as f:
        assert (f["9_grids"][()] == grids[0]).all()
        assert (f["30_grids"][()] == grids[7]).all()
    with h5py.File(tmp_path / "plain.hdf5", "r") as f:
        assert "9_grids" not in f


@pytest.mark.parametrize("compression", ["none", "gzip", "blosc2"])
def test_equal_content_gives_equal_bytes(tmp_path, compression):
    for name in ("a", "b"):
        store_of(tmp_path / name, [1, 2, 3], compression=compression)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_missing_image_is_an_error_and_never_a_placeholder(tmp_path):
    store_of(tmp_path / "s.hdf5", [3, 7], skipped=[5])
    store = GridStore(tmp_path / "s.hdf5")
    for ids in ([4], [3, 8], [-1], [2**62]):
        with pytest.raises(MissingImageError, match=rf"s.hdf5: no grid of image {ids[-1]} .*extract it"):
            store.read(ids)
    with pytest.raises(KeyError, match=r"no grid of image 5 .*could not be read when the file was made"):
        store[5]
    assert 4 not in store


class _Images(Dataset):
    def __init__(self, store: GridStore) -> None:
        self.store = store

    def __len__(self) -> int:
        return len(self.store)

    def __getitem__(self, row: int) -> torch.Tensor:
        return torch.from_numpy(self.store[int(self.store.image_ids[row])].copy())


@pytest.mark.parametrize("wrong", [[27.9], ["27"], [True], [[27]], np.array([27.0]), [27, "28"]])
def test_ids_are_whole_numbers_and_nothing_else(tmp_path, wrong):
    store_of(tmp_path / "g.hdf5", [27, 28])
    store = GridStore(tmp_path / "g.hdf5")
    with pytest.raises(UserError, match="image ids must be whole numbers, not "):
        store.read(wrong)
    with pytest.raises(UserError, match="image ids must be whole numbers, not float64"):
        store[27.9]
    assert store.read([]).shape == (0, 4, 6)
    assert (store.read(np.array([28], np.uint8)) == store[28]).all()


def test_images_are_found_by_name_too(tmp_path):
    grids = store_of(tmp_path / "g.hdf5", [27, 28, 2**62])
    store = GridStore(tmp_path / "g.hdf5")
    assert store.image_names == ["photo 27é", "photo 28é", f"photo {2**62}é"]
    for i, grid in zip(store.image_ids.tolist(), grids, strict=True):
        assert (store[f"photo {i}é"] == grid).all()
        assert (store[f"photo {i}é.jpg"] == grid).all()
        assert f"photo {i}é" in store
    assert "photo 29é" not in store
    with pytest.raises(MissingImageError, match=r"g.hdf5: no image 'photo 29é'"):
        store["photo 29é"]
    with h5py.File(tmp_path / "g.hdf5", "r+") as file:
        assert file["image_names"].asstr()[1] == "photo 28é"
        file["image_names"][1] = file["image_names"][0]
    with pytest.raises(UserError, match=r"images 27 and 28 have the name 'photo 27é'; ask by id"):
        GridStore(tmp_path / "g.hdf5")["photo 27é"]
    with h5py.File(tmp_path / "g.hdf5", "r+") as file:
        del file["image_names"]
    older = GridStore(tmp_path / "g.hdf5")
    assert (older[28] == grids[1]).all()
    with pytest.raises(UserError, match="holds no image names, an older version wrote it"):
        older["photo 28é"]


@pytest.mark.parametrize("context", ["fork", "spawn"])
@pytest.mark.parametrize("compression", ["none", "gzip"])
def test_it_can_be_pickled_and_used_in_workers(tmp_path, compression, context):
    grids = store_of(tmp_path / "s.hdf5", range(40), compression=compression)
    store = GridStore(tmp_path / "s.hdf5")
    store.read([1])  # opened before the workers come
    copy = pickle.loads(pickle.dumps(store))
    assert (copy[39] == grids[39]).all()
    assert len(pickle.dumps(store)) < 10_000
    workers = DataLoader(_Images(store), 4, num_workers=2, multiprocessing_context=multiprocessing.get_context(context))
    assert (torch.cat(list(workers)).numpy() == grids).all()


def test_what_the_consumer_expects_is_checked(tmp_path):
    store_of(tmp_path / "s.hdf5", [1])
    GridStore(tmp_path / "s.hdf5", model="ViT-B/16", tokens="ln_post", grid=2)
    for name, value in {"model": "ViT-L-14", "tokens": "raw", "grid": 14}.items():
        with pytest.raises(UserError, match=f"s.hdf5: {name} is .* but '?{value}'? is expected"):
            GridStore(tmp_path / "s.hdf5", **{name: value})


def test_files_that_are_no_stores_are_refused_in_one_line(tmp_path):
    store_of(tmp_path / "s.hdf5", [1, 2])
    (tmp_path / "cut.hdf5").write_bytes((tmp_path / "s.hdf5").read_bytes()[:-40])
    (tmp_path / "text.hdf5").write_text("hello")
    with h5py.File(tmp_path / "other.hdf5", "w") as file:
        file["x"] = 1
    for name, message in {
        "cut.hdf5": "not a readable HDF5 file .*truncated",
        "text.hdf5": "not a readable HDF5 file",
        "other.hdf5": "not a file of grid features",
        "none.hdf5": "no such file",
    }.items():
        with pytest.raises(UserError, match=f"{name}: {message}") as error:
            GridStore(tmp_path / name)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("most_mapped", [0, 2**30])
def test_a_file_that_is_cut_while_it_is_open_is_an_error(tmp_path, monkeypatch, most_mapped):
    monkeypatch.setattr(grid_store, "_MOST_MAPPED", most_mapped)
    path = tmp_path / "s.hdf5"
    store_of(path, [3, 5], keyed=(), shape=(49, 768))
    with GridStore(path) as store:
        store.read([3, 5])
        os.truncate(path, path.stat().st_size - 60_000)
        with pytest.raises(UserError, match=r"s.hdf5: ends before its last row"):
            store.read([3, 5])


def _forget(path: Path) -> None:
    """Take a file out of the system's memory."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


@pytest.mark.skipif(not hasattr(os, "RWF_NOWAIT"), reason="the system does not tell what is in memory")
@pytest.mark.parametrize("most_mapped", [0, 2**30])
def test_rows_that_are_not_in_memory_are_asked_for_at_once(tmp_path, monkeypatch, most_mapped):
    monkeypatch.setattr(grid_store, "_MOST_MAPPED", most_mapped)
    grids, asked = store_of(tmp_path / "s.hdf5", range(40), shape=(49, 768)), []
    _forget(tmp_path / "s.hdf5")
    ask = os.posix_fadvise
    monkeypatch.setattr(os, "posix_fadvise", lambda *what: asked.append(what[1:3]) or ask(*what))
    with GridStore(tmp_path / "s.hdf5") as store:
        assert (store.read([30, 2, 17]) == grids[[30, 2, 17]]).all()
        if not asked:
            pytest.skip("the file system keeps its files in memory")
        assert [end - start for (start, _), (end, _) in pairwise(asked)] == [-28 * 75_264, 15 * 75_264]
        assert {size for _, size in asked} == {75_264}
        assert (store.read([17, 30]) == grids[[17, 30]]).all()
        assert len(asked) == 3


def _hold_open(path: Path, ready, done) -> None:
    with h5py.File(path, "r+"):
        ready.set()
        done.wait(30)


def test_a_store_that_is_open_for_writing_elsewhere_is_refused(tmp_path):
    store_of(tmp_path / "s.hdf5", [1, 2])
    context = multiprocessing.get_context("spawn")
    ready, done = context.Event(), context.Event()
    writer = context.Process(target=_hold_open, args=(tmp_path / "s.hdf5", ready, done))
    writer.start()
    try:
        assert ready.wait(30)
        with pytest.raises(UserError, match=r"s.hdf5: open for writing in another process"):
            GridStore(tmp_path / "s.hdf5")
    finally:
        done.set()
        writer.join()
