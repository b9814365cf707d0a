"""Importing depth: every count arrives, its unit is said, and what is not depth, or of no known unit, is told."""

import io
from pathlib import Path

import h5py
import numpy as np
import pytest
from data_sets import EPISODES, HEIGHT, ONE, STEPS, WIDTH, aloha, edit_hdf5, refused, robomimic
from PIL import Image

from sightline.core.errors import UserError
from sightline.importers.episodes import import_hdf5
from sightline.importers.options import ImportOptions, choose_confidence
from sightline.importers.pictures import decode_depth, depth_counts, without_unsure
from sightline.recording.images import read_depth
from sightline.recording.layout import read_recording_info
from sightline.recording.split import DataParams, SplitParams
from sightline.validation.validation import validate_recording

METRES = ImportOptions(depth_unit="m", processes=1)


def counts(camera: int, episode: int) -> np.ndarray:
    """Depth of an episode, uint16 [T, H, W] of 500 to 1500, with pixels of no reading, unlike that of any other."""
    rng = np.random.default_rng([camera, episode])
    values = rng.integers(500, 1500, (STEPS, HEIGHT, WIDTH)).astype(np.uint16)
    values[:, :4, :4] = 0
    return values


def aloha_depth(root: Path, cameras: tuple[str, ...] = ("cam_high",), storage: str = "plain") -> Path:
    aloha(root)
    for episode in range(EPISODES):
        with h5py.File(root / f"episode_{episode}.hdf5", "a") as file:
            for camera, name in enumerate(cameras):
                rows = stored(counts(camera, episode), storage)
                file.create_dataset(f"observations/images_depth/{name}", **rows)
    return root


def stored(values: np.ndarray, storage: str) -> dict[str, object]:
    if storage in ("plain", "big-endian", "channel"):
        values = values[..., None] if storage == "channel" else values
        return {"data": values.astype(">u2") if storage == "big-endian" else values}
    rows = [np.frombuffer(encode(image, storage), np.uint8) for image in values]
    longest = max(map(len, rows))
    return {"data": np.stack([np.pad(row, (0, longest - len(row))) for row in rows])}


def encode(image: np.ndarray, kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, kind)
    return buffer.getvalue()


def robomimic_depth(path: Path, values: np.ndarray | None = None) -> Path:
    """A robomimic file with ``obs/agentview_depth``, metres, float32 [T, H, W, 1]."""
    robomimic(path)
    with h5py.File(path, "a") as file:
        for episode in range(EPISODES):
            metres = counts(0, episode).astype(np.float32)[..., None] / 1000 if values is None else values
            file[f"data/demo_{episode}/obs/agentview_depth"] = metres
    return path


def check_depth(folder: Path, camera: int = 0) -> None:
    assert len(list(folder.iterdir())) == EPISODES * STEPS
    for episode in range(EPISODES):
        for step in range(STEPS):
            pixels = read_depth(folder / f"{episode * STEPS + step:06d}.png")
            assert np.array_equal(pixels, counts(camera, episode)[step])


# What is depth arrives, count by count


@pytest.mark.parametrize("storage", ["plain", "big-endian", "channel", "PNG", "TIFF"])
def test_one_depth_camera_is_the_folder_depth(storage, tmp_path):
    target = tmp_path / "recording"
    source = aloha_depth(tmp_path / "set", storage=storage)
    text = import_hdf5(source, target, ImportOptions(size=24, processes=1))
    check_depth(target / "depth")  # in its own size: counts are not averaged
    depth = read_recording_info(target / "recording.json").depth
    assert (depth.unit_mm, depth.invalid, depth.encoding) == (1.0, (0,), None)
    assert depth.height_range == pytest.approx((500, 1499), abs=2)
    assert "taken for millimetres" in text
    assert f"height_range [{depth.height_range[0]}, {depth.height_range[1]}]" in text
    assert "observations/images_depth" not in text
    metrics = validate_recording(target, tmp_path / "index", DataParams(split=SplitParams(test=0)), processes=1)
    assert metrics["depth"]["sound"] == EPISODES * STEPS


def test_each_of_several_depth_cameras_has_a_folder(tmp_path):
    target = tmp_path / "recording"
    import_hdf5(aloha_depth(tmp_path / "set", ("cam_high", "cam_low")), target, ONE)
    check_depth(target / "depth/cam_high", 0)
    check_depth(target / "depth/cam_low", 1)
    assert sorted(path.name for path in (target / "depth").iterdir()) == ["cam_high", "cam_low"]


def test_depth_is_chosen_or_left_out_and_named(tmp_path):
    source = aloha_depth(tmp_path / "set", ("cam_high", "cam_low"))
    one = ImportOptions(depth=["observations/images_depth/cam_low=low"], processes=1)
    text = import_hdf5(source, tmp_path / "one", one)
    check_depth(tmp_path / "one/depth", 1)
    assert "not imported: observations/images_depth/cam_high" in text
    text = import_hdf5(source, tmp_path / "none", ImportOptions(depth=["none"], processes=1))
    assert not (tmp_path / "none/depth").exists()
    assert read_recording_info(tmp_path / "none/recording.json").depth is None
    assert "not imported: observations/images_depth\n" in text
    refused(import_hdf5, source, "--depth front: no depth 'front'", "images_depth/cam_low", depth=["front"])
    refused(import_hdf5, aloha(tmp_path / "plain"), "--depth front", "it has none", depth=["front"])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_metres_become_millimetres(dtype, tmp_path):
    target, source = tmp_path / "recording", robomimic_depth(tmp_path / "demos.hdf5")
    with h5py.File(source, "a") as file:
        for demo in file["data"].values():
            values = demo["obs/agentview_depth"][:].astype(dtype)
            values[:, 0, :4, 0] = [np.nan, np.inf, -1, 0]  # counts() has 0 there
            del demo["obs/agentview_depth"]
            demo["obs/agentview_depth"] = values
    text = import_hdf5(source, target, METRES)
    check_depth(target / "depth")
    assert "taken for m, as --depth-unit says" in text


def test_depth_of_no_known_unit_is_named_and_refused_where_it_is_asked_for(tmp_path):
    source = robomimic_depth(tmp_path / "demos.hdf5")
    text = import_hdf5(source, tmp_path / "recording", ONE)
    assert not (tmp_path / "recording/depth").exists()
    assert "obs/agentview_depth: depth in floating point, whose unit the file does not say: not imported" in text
    assert "  not imported: dones, obs/agentview_depth, obs/robot0_gripper_qpos\n" in text
    refused(import_hdf5, source, "obs/agentview_depth", "--depth-unit m or mm", depth=["obs/agentview_depth"])


def test_segmentation_cameras_and_tables_are_no_depth(tmp_path):
    source = robomimic(tmp_path / "demos.hdf5")
    with h5py.File(source, "a") as file:
        for demo in file["data"].values():
            demo["obs/agentview_segmentation"] = np.zeros((STEPS, HEIGHT, WIDTH, 1), np.uint8)
            demo["obs/poses"] = np.zeros((STEPS, 4, 4))
    text = import_hdf5(source, tmp_path / "recording", METRES)
    assert not (tmp_path / "recording/depth").exists()
    assert "obs/agentview_segmentation, obs/poses" in text


def test_depth_is_turned_with_the_pictures(tmp_path):
    source = aloha_depth(tmp_path / "set")
    import_hdf5(source, tmp_path / "recording", ImportOptions(flip=True, processes=1))
    assert np.array_equal(read_depth(tmp_path / "recording/depth/000002.png"), counts(0, 0)[2, ::-1])


def test_saturated_counts_are_invalid(tmp_path):
    source = aloha_depth(tmp_path / "set")
    values = counts(0, 1)
    values[:, 10:, :] = 65535
    edit_hdf5(source / "episode_1.hdf5", observations__images_depth__cam_high=values)
    import_hdf5(source, tmp_path / "recording", ONE)
    depth = read_recording_info(tmp_path / "recording/recording.json").depth
    assert depth.invalid == (0, 65535)
    assert depth.height_range[1] < 1500


@pytest.mark.parametrize("named", [False, True])
def test_unsure_depth_becomes_invalid(named, tmp_path):
    source, sure = aloha_depth(tmp_path / "set"), np.ones((STEPS, HEIGHT, WIDTH), np.uint8)
    sure[:, :, 20:] = 0
    for path in source.iterdir():
        with h5py.File(path, "a") as file:
            file["observations/confidence/cam_high"] = sure
    key = "observations/confidence/cam_high" + ("=cam_high" if named else "")
    text = import_hdf5(source, tmp_path / "recording", ImportOptions(confidence=[key], processes=1))
    expected = counts(0, 1)[0]
    expected[:, 20:] = 0
    assert np.array_equal(read_depth(tmp_path / f"recording/depth/{STEPS:06d}.png"), expected)
    assert "not imported" not in text
    refused(import_hdf5, source, "--confidence x: no confidence map 'x'", "confidence/cam_high", confidence=["x"])
    refused(import_hdf5, source, "no depth is imported", confidence=[key], depth=["none"])
    edit_hdf5(source / "episode_1.hdf5", observations__confidence__cam_high=sure[:, :4])
    refused(import_hdf5, source, "episode_1.hdf5", "confidence map is [4, 64]", confidence=[key])
    edit_hdf5(source / "episode_1.hdf5", observations__confidence__cam_high=sure[:4])
    refused(import_hdf5, source, "episode_1.hdf5: 4 pictures in observations/confidence", confidence=[key])


def test_which_depth_a_confidence_map_belongs_to():
    keys, source = ["c/high", "c/low", "m"], Path("set")
    assert choose_confidence(["c/low"], keys, ["low", "high"], source) == {"low": "c/low"}
    assert choose_confidence(["m=high", "c/low"], keys, ["low", "high"], source) == {"high": "m", "low": "c/low"}
    assert choose_confidence(["m"], keys, ["low"], source) == {"low": "m"}
    with pytest.raises(UserError, match="name it with --confidence KEY=NAME: of low, high"):
        choose_confidence(["m"], keys, ["low", "high"], source)
    with pytest.raises(UserError, match="c/low is already the map of low"):
        choose_confidence(["c/low", "m=low"], keys, ["low", "high"], source)


# Mistakes


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (np.ones((STEPS, HEIGHT, WIDTH), np.uint8), ("(6, 48, 64) are not depth", "--depth none")),
        (np.ones((STEPS, HEIGHT, WIDTH, 3), np.uint8), ("are not depth", "--depth KEY=NAME")),
        (np.ones((STEPS - 1, HEIGHT, WIDTH), np.uint16), ("5 pictures", "6 rows")),
        (np.ones((STEPS, 99), np.uint8), ("cam_high, picture 0", "not a picture in PNG or TIFF")),
        (stored(np.zeros((STEPS, 4, 4), np.uint8), "PNG")["data"], ("picture 0", "PNG of mode L is not depth")),
        (np.ones((STEPS, HEIGHT, WIDTH), np.float32), ("picture 0", "whose unit is not known")),
        (None, ("no data set observations/images_depth/cam_high",)),
    ],
)
def test_depth_that_does_not_fit(values, words, tmp_path):
    source = aloha_depth(tmp_path / "set")
    edit_hdf5(source / "episode_1.hdf5", observations__images_depth__cam_high=values)
    refused(import_hdf5, source, "episode_1.hdf5", *words)


def test_depth_without_a_reading(tmp_path):
    source = aloha_depth(tmp_path / "set")
    for path in source.iterdir():
        edit_hdf5(path, observations__images_depth__cam_high=np.zeros((STEPS, HEIGHT, WIDTH), np.uint16))
    refused(import_hdf5, source, "every depth pixel is invalid (0)", "--depth none")


def test_counts_of_depth():
    metres = np.array([[0.0004, 0.0006, 65.535], [np.nan, -np.inf, -3]], np.float64)
    assert depth_counts(metres, "m", "x").tolist() == [[0, 1, 65535], [0, 0, 0]]
    assert depth_counts(metres[:, :2] * 1000, "mm", "x").tolist() == [[0, 1], [0, 0]]
    assert depth_counts(np.array([[[0.25]]], np.float16), "m", "x").tolist() == [[250]]
    for values, unit, words in (
        (np.array([[65.6]]), "m", "65,600 mm"),
        (np.array([[1.0]]), None, "unit is not known"),
        (np.ones((2, 2), np.uint16), "m", "not metres; give --depth-unit mm"),
        (np.ones((2, 2), np.uint8), "mm", "uint8"),
        (np.ones((2, 2, 3), np.float32), "m", "not depth"),
    ):
        with pytest.raises(UserError, match=rf"^x: .*{words}"):
            depth_counts(values, unit, "x")


def test_a_float_tiff_is_read_as_it_is():
    metres = np.array([[0.5, np.nan]], np.float32)
    assert np.array_equal(decode_depth(encode(metres, "TIFF"), "x"), metres, equal_nan=True)
    with pytest.raises(UserError, match=r"^x: broken picture"):
        decode_depth(encode(counts(0, 0)[0], "PNG")[:300], "x")


def test_confidence_that_is_nan_is_unsure():
    sure = np.array([[1.0, np.nan, 0.0]])
    assert without_unsure(np.array([[5, 6, 7]], np.uint16), sure, "x").tolist() == [[5, 0, 0]]
