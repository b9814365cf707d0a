"""Grids as captioning codes read them: each reader here does what that project's own one does with a file of features.

Whoever asks for a key that is not there gets random numbers from meshed-memory-transformer, and an error from others.
"""

import shutil
import warnings
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from conftest import photo_folder

from sightline.clip import GridParams, GridStore
from sightline.clip.extraction import extract_grids
from sightline.clip.params import SHORTHANDS
from sightline.clip.store import Rows, StoreLayout, write_store
from sightline.core.errors import UserError
from sightline.core.params import Section, load_params

IDS, WIDTH = [9, 12, 581929], 768


class Params(Section):
    grids: GridParams = GridParams()


def image_id(name: str) -> int:
    """The number at the end of a name of COCO, as all of these projects take it."""
    return int(Path(name).stem.rpartition("_")[2])


def meshed_memory(path: Path, name: str, most: int = 50) -> np.ndarray:
    """float32 [most, C]: ``<id>_features``, cut or filled up with zeros; ten random rows of 2048 where it is missing.

    RSTNet, DLCT and others have the same reader, and a line for ``_grids`` in place of ``_features``.
    """
    try:
        with h5py.File(path, "r") as file:
            rows = file[f"{image_id(name)}_features"][()]
    except KeyError:
        warnings.warn(f"no detections of {image_id(name)}", stacklevel=1)
        rows = np.random.rand(10, 2048)
    filled = np.zeros((most, rows.shape[1]))
    filled[: min(most, len(rows))] = rows[:most]
    return filled.astype(np.float32)


def grids_of(path: Path, name: str) -> np.ndarray:
    """RSTNet's reader of grids (also DLCT's, before it asks for its regions)."""
    with h5py.File(path, "r") as file:
        return file[f"{image_id(name)}_grids"][()].astype(np.float32)


def regions_and_grids(path: Path, name: str) -> list[np.ndarray]:
    """DLCT: features, boxes, sizes and masks of regions beside the grids; what is missing is an error."""
    with h5py.File(path, "r") as file:
        return [file[f"{image_id(name)}_{word}"][()] for word in ("features", "grids", "boxes", "size", "mask")]


def labels_of(path: Path, name: str) -> np.ndarray:
    """FSGR: labels of the patches, made by itself."""
    with h5py.File(path, "r") as file:
        return file[f"{image_id(name)}_labels"][()]


def written(path: Path, *words: str, compression="none", ids=tuple(IDS)) -> np.ndarray:
    grids = np.random.default_rng(0).normal(size=(len(ids), 49, WIDTH)).astype(np.float16)
    rows = Rows(np.array(ids), [str(i) for i in ids], [f"{i:032x}".encode() for i in ids], [])
    write_store(path, rows, [grids], StoreLayout((49, WIDTH), {"dtype": "float16"}, words, compression))
    return grids


@pytest.mark.parametrize("compression", ["none", "gzip"])
def test_meshed_memory_reads_features_where_they_are_asked_for(tmp_path, compression):
    grids = written(tmp_path / "g.hdf5", "grids", "features", compression=compression)
    (tmp_path / "tmp").mkdir()
    copy = shutil.copy(tmp_path / "g.hdf5", tmp_path / "tmp/g.hdf5")  # it reads from a copy in /tmp
    (tmp_path / "g.hdf5").unlink()
    read = meshed_memory(copy, "COCO_val2014_000000581929.jpg")
    assert read.shape == (50, WIDTH)  # its own features have 2048 channels
    assert (read[:49] == grids[2]).all()
    assert not read[49:].any()  # which its encoder takes for padding
    with pytest.raises(RuntimeError, match="768 and 2048"):  # as it stands, it stops, and does not train on them
        torch.nn.Linear(2048, 512)(torch.from_numpy(read))


def test_meshed_memory_takes_random_numbers_where_the_key_is_missing(tmp_path):
    written(tmp_path / "g.hdf5", "grids")  # the default
    with pytest.warns(UserWarning, match="no detections of 9"):
        assert meshed_memory(tmp_path / "g.hdf5", "COCO_train2014_000000000009.jpg").shape == (50, 2048)


def test_rstnet_and_dlct_read_the_grids(tmp_path):
    grids = written(tmp_path / "g.hdf5", "grids")
    for i, expected in zip(IDS, grids, strict=True):
        read = grids_of(tmp_path / "g.hdf5", f"COCO_train2014_{i:012d}.jpg")
        assert (read == expected).all()
        assert read.shape == (49, WIDTH)


def test_what_is_not_in_the_file_is_an_error_and_never_invented(tmp_path):
    written(tmp_path / "g.hdf5", "grids", "features")
    for reader, missing in ((regions_and_grids, "9_boxes"), (labels_of, "9_labels")):
        with pytest.raises(KeyError, match=missing):
            reader(tmp_path / "g.hdf5", "COCO_train2014_000000000009.jpg")
    with pytest.raises(KeyError, match="10_grids"):
        grids_of(tmp_path / "g.hdf5", "COCO_train2014_000000000010.jpg")


def test_no_key_is_a_second_copy(tmp_path):
    sizes = []
    for words in ((), ("grids",), ("grids", "features")):
        written(tmp_path / "g.hdf5", *words, ids=range(30))
        sizes.append((tmp_path / "g.hdf5").stat().st_size)
        assert len(GridStore(tmp_path / "g.hdf5")) == 30
    assert sizes[1] < 1.02 * sizes[0]
    assert sizes[2] < 1.03 * sizes[0]


@pytest.mark.filterwarnings("ignore:grids.pretrained is random")
@pytest.mark.parametrize("keyed", [[], ["features"], ["grids", "features"]], ids=str)
def test_the_extraction_writes_the_keys_that_are_asked_for(tmp_path, keyed):
    photo_folder(tmp_path / "photos", [3, 7])
    params = GridParams(model="ViT-S-16", image_size=32, grid=2, precision="fp32", keyed=keyed)
    extract_grids([tmp_path / "photos"], tmp_path / "g.hdf5", params)
    with h5py.File(tmp_path / "g.hdf5", "r") as file:
        assert {name for name in file if name[0].isdigit()} == {f"{i}_{word}" for i in (3, 7) for word in keyed}
        assert all((file[f"7_{word}"][()] == file["grids"][1]).all() for word in keyed)


def test_keys_are_a_list_of_those_that_we_can_write():
    for assignment, words in (
        (SHORTHANDS["keyed"], ("grids",)),
        (SHORTHANDS["no_keyed"], ()),
        ("grids.keyed=[features, grids]", ("features", "grids")),
    ):
        assert load_params(Params, None, [assignment]).grids.keyed == words
    for value, words in (
        ("true", r"grids.keyed: a list such as \[grids\], \[grids, features\], or \[\] for none; got true"),
        ("[grids, grids]", r"grids.keyed: a list such as .*; got \[\"grids\", \"grids\"\]"),
        ("[labels]", r"grids.keyed.0: Input should be 'grids' or 'features', got 'labels'"),
    ):
        with pytest.raises(UserError, match=words):
            load_params(Params, None, [f"grids.keyed={value}"])
