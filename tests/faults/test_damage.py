"""Whatever is done to a file, its reader gives data or one error a user can read, in time.

Few examples in `make test`, many in `make test-faults` (FAULTS=many).
"""

import json
import os
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from PIL import Image
from world import contents, copy_world, own, run_command

from sightline.clip.photographs import Preparation, prepare
from sightline.core.cli import Section
from sightline.core.errors import UserError
from sightline.core.params import load_params
from sightline.demo.states import StatesFile
from sightline.depth.normalize import NormalizeParams
from sightline.depth.store import DepthStore
from sightline.depth.training import TrainParams
from sightline.depth.weights import load_weights, save_encoder
from sightline.fusion.policy import load_policy
from sightline.fusion.views import Views
from sightline.grids.store import GridStore
from sightline.recording.frames import read_frames, read_index
from sightline.recording.images import read_depth, read_rgb
from sightline.recording.layout import read_recording_info
from sightline.recording.split import DataParams
from sightline.segmentation.model import load_model
from sightline.validation.drift import read_embeddings
from sightline.validation.summary import read_reference

QUIET = {"deadline": None, "database": None, "suppress_health_check": list(HealthCheck)}
settings.register_profile("fast", max_examples=6, derandomize=True, phases=[Phase.generate], **QUIET)
settings.register_profile("many", max_examples=60, phases=[Phase.generate, Phase.shrink], **QUIET)
MANY = settings.get_profile(os.environ.get("FAULTS", "fast"))
PATIENCE = 60  # seconds until a reader counts as hanging
COUNTS: Counter[str] = Counter()  # of refused and of readable files, for docs/reliability.md


class Params(Section):
    seed: int = 0
    data: DataParams = DataParams()
    normalize: NormalizeParams = NormalizeParams()
    train: TrainParams = TrainParams()


def read_states(path: Path) -> None:
    states = StatesFile(path)
    for name in states.names:
        states.episode(name)


def read_grids(path: Path) -> None:
    with GridStore(path) as store:
        store.read(store.image_ids)


READERS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "recording.json": ("rec/recording.json", read_recording_info),
    "frames table": ("rec/frames.parquet", read_frames),
    "frame index": ("index/depth.parquet", read_index),
    "summary": ("reference/summary.json", read_reference),
    "depth PNG": ("rec/depth/000008.png", read_depth),
    "depth TIFF": ("depth.tif", read_depth),
    "colour PNG": ("rec/rgb/global/000002.png", read_rgb),
    "photograph": ("photo.jpg", lambda path: prepare(path, Preparation(32, "shortest", "bicubic"))),
    "normalised depth": ("depth.hdf5", lambda path: DepthStore.open(path).images(slice(None))),
    "views": ("views.hdf5", lambda path: np.array(Views.open(path).images)),
    "grids": ("clip.hdf5", read_grids),
    "embeddings": ("embeddings.hdf5", read_embeddings),
    "states": ("states.hdf5", read_states),
    "encoder": ("encoder.safetensors", lambda path: load_weights(path, "encoder").build(path)),
    "torch encoder": ("encoder.pth", lambda path: load_weights(path, "encoder").build(path)),
    "fusion model": ("fusion.safetensors", load_policy),
    "segmentation model": ("segmentation.safetensors", load_model),
    "params.yaml": ("params.yaml", lambda path: load_params(Params, path)),
}
HDF5 = ("normalised depth", "views", "grids", "embeddings", "states")


@pytest.fixture(scope="module")
def place(world, tmp_path_factory) -> Path:
    """The world, with some files in further formats."""
    folder = copy_world(world, tmp_path_factory.mktemp("damage") / "w")
    Image.open(folder / "rec/depth/000008.png").save(folder / "depth.tif", compression="tiff_lzw")
    Image.open(folder / "rec/rgb/global/000002.png").save(folder / "photo.jpg")
    weights = load_weights(folder / "encoder.safetensors", "encoder")
    save_encoder(folder / "encoder.pth", weights.build(folder), weights.header, "test")
    return folder


@contextmanager
def in_time() -> Iterator[None]:
    def stop(*_: object) -> None:
        raise AssertionError("hangs")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(PATIENCE)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def check(read: Callable[[Path], object], path: Path) -> str:
    """Read: anything but data and a `UserError` of readable text comes out as it is."""
    said = None
    COUNTS["tried"] += 1
    with in_time():
        try:
            read(path)
        except UserError as error:
            said = str(error)
    found = "read" if said is None else "refused"
    assert said is None or path.name in said or any(f"{name}" in said for name in Params.model_fields), said
    COUNTS[found] += 1
    return found


@st.composite
def damages(draw: st.DrawFn) -> Callable[[bytes], bytes]:
    """What can happen to the bytes of a file; places are shares of its length, most of them in its head."""
    share = st.floats(0, 1) | st.floats(0, 0.02)
    kind = draw(st.sampled_from(["cut", "flip", "flip", "zero", "noise", "insert", "empty"]))
    places = draw(st.lists(share, min_size=1, max_size=8))
    bits, noise = draw(st.integers(1, 255)), draw(st.binary(min_size=1, max_size=64))

    def damage(data: bytes) -> bytes:
        found, at = bytearray(data), [min(int(place * len(data)), len(data) - 1) for place in places]
        if kind == "cut":
            return bytes(found[: at[0]])
        if kind == "empty":
            return b""
        if kind == "insert":
            return bytes(found[: at[0]] + noise + found[at[0] :])
        for position in at:
            if kind == "flip":
                found[position] ^= bits
            else:
                new = noise if kind == "noise" else bytes(len(noise))
                found[position : position + len(new)] = new
        return bytes(found)

    return damage


@pytest.mark.parametrize("name", READERS)
def test_damaged_bytes(name, place):
    path, read = place / READERS[name][0], READERS[name][1]
    whole = path.read_bytes()

    @MANY
    @given(damages())
    def holds(damage: Callable[[bytes], bytes]) -> None:
        damaged = path.with_name(f"damaged{path.suffix}")
        damaged.write_bytes(damage(whole))
        try:
            check(read, damaged)
        finally:
            damaged.unlink()

    holds()


# ---------------------------------------------------------------- well-formed files of the wrong content

NUMBERS = st.floats(allow_nan=True, allow_infinity=True) | st.integers(-(2**63), 2**63 - 1)
JSON = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.text(max_size=20), lambda child: st.lists(child, max_size=3), max_leaves=5
)


@st.composite
def hdf5_changes(draw: st.DrawFn) -> Callable[[h5py.File], None]:
    """A data set or an attribute that is missing, or of another shape, type or content."""
    pick, kind = draw(st.floats(0, 0.999)), draw(st.sampled_from(
        ["missing", "scalar", "empty", "fewer", "wider", "text", "complex", "nan", "infinite", "group", "attribute",
         "no attribute"]))  # fmt: skip
    text = draw(st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), max_size=20))
    value = draw(st.sampled_from([text, 1, np.nan, b"\xff", np.zeros(3)]))

    def change(file: h5py.File) -> None:
        names: list[str] = []
        file.visititems(lambda name, item: names.append(name) if isinstance(item, h5py.Dataset) else None)
        names = [name for name in names if not name.endswith("_grids")]
        name = names[int(pick * len(names))]
        values = file[name][()]
        if "attribute" in kind:
            attributes = sorted(file.attrs)
            attribute = attributes[int(pick * len(attributes))]
            del file.attrs[attribute]
            if kind == "attribute":
                file.attrs[attribute] = value
            return
        del file[name]
        if kind == "group":
            file.create_group(name)
        elif kind != "missing":
            wrong = {
                "scalar": np.zeros((), values.dtype), "empty": values[:0], "fewer": values[:1],
                "wider": np.stack([values, values], axis=-1), "text": np.full(values.shape, b"x"),
                "complex": np.full(values.shape, 1j),
            }  # fmt: skip
            filling = np.nan if kind == "nan" else np.inf
            file[name] = wrong[kind] if kind in wrong else np.full(values.shape, filling)

    return change


@pytest.mark.parametrize("name", HDF5)
def test_hdf5_of_the_wrong_content(name, place):
    path, read = place / READERS[name][0], READERS[name][1]

    @MANY
    @given(hdf5_changes())
    def holds(change: Callable[[h5py.File], None]) -> None:
        changed = path.with_name("changed.hdf5")
        changed.write_bytes(path.read_bytes())
        with h5py.File(changed, "r+") as file:
            change(file)
        check(read, changed)
        changed.unlink()

    holds()


@MANY
@given(
    column=st.sampled_from(["frame_id", "episode", "step", "time_s", "joints", "actions", "reward", "new\0 ü"]),
    values=st.lists(NUMBERS | st.none() | st.text(max_size=5) | st.lists(NUMBERS, max_size=3), min_size=16, max_size=16)
    | st.lists(NUMBERS, min_size=16, max_size=16)
    | st.lists(st.integers(-1, 20), min_size=16, max_size=16),
)
def test_frames_of_the_wrong_content(column: str, values: list[Any], place):
    try:
        table = pd.read_parquet(place / "rec/frames.parquet").assign(**{column: values})
        table.to_parquet(place / "frames.parquet")
    except (ValueError, OverflowError, TypeError):  # a table that cannot be written
        return
    check(read_frames, place / "frames.parquet")


@MANY
@given(key=st.sampled_from(["fps", "cameras", "joints", "classes", "depth", "new"]), value=JSON)
def test_recording_info_of_the_wrong_content(key: str, value: Any, place):
    info = json.loads((place / "rec/recording.json").read_text()) | {key: value}
    (place / "info.json").write_text(json.dumps(info))
    check(read_recording_info, place / "info.json")


@MANY
@given(
    st.dictionaries(st.sampled_from(["seed", "data", "train", "normalize"]), JSON | st.dictionaries(
        st.sampled_from(["epochs", "lr", "split", "on_error", "height_range", "x"]), JSON, max_size=3), max_size=3)
    | st.text(max_size=60)
)  # fmt: skip
def test_params_of_the_wrong_content(place, content):
    path = place / "params2.yaml"
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8", errors="replace")
    check(lambda path: load_params(Params, path), path)


COMMANDS_AND_FILES = [
    ("normalize", "rec/depth/000008.png"), ("pack_views", "rec/rgb/global/000002.png"),
    ("validate", "rec/frames.parquet"), ("import_hdf5", "aloha/episode_1.hdf5"),
    ("predict act", "fusion.safetensors"), ("predict segment", "rec/rgb/global/000002.png"),
]  # fmt: skip


@MANY
@given(damages(), st.sampled_from(COMMANDS_AND_FILES))
def test_a_command_on_a_damaged_file_writes_all_or_nothing(world, tmp_path_factory, damage, which):
    command, name = which
    folder = copy_world(world, tmp_path_factory.mktemp("damaged") / "w")
    path = own(folder / name)
    path.write_bytes(damage(path.read_bytes()))
    before = contents(folder)
    COUNTS["tried"] += 1
    with in_time():
        said = run_command(folder, command, "aloha out/recording --processes 1" if command == "import_hdf5" else None)
    COUNTS["refused" if said.code else "read"] += 1
    assert said.code == 0 or (said.code == 1 and said.error and contents(folder) == before), said.stderr
