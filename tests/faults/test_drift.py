"""Data unlike what the models know: frames that leave a range are named, embeddings of another recording far."""

import json
import re
import warnings
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from world import copy_world, own, run_command

from sightline.core.errors import UserError
from sightline.core.hdf5 import create_contiguous
from sightline.recording.frames import write_index
from sightline.recording.layout import DepthInfo, read_recording_info, write_recording_info
from sightline.recording.split import DataParams, SplitParams
from sightline.validation.drift import LIMIT, embedding_drift, frechet, nearest, read_embeddings
from sightline.validation.summary import depth_figures, mask_figures, rgb_figures
from sightline.validation.validation import DriftGuard, validate_recording

PARTS = DataParams(split=SplitParams(val=0.25, test=0.25))
ALL_TRAIN = DataParams(split=SplitParams(val=0, test=0))


@pytest.fixture
def place(world, tmp_path) -> Path:
    """The small world, with a reference made of all frames of its recording."""
    place = copy_world(world, tmp_path / "w")
    guard = DriftGuard(0.5, metrics_dir=place / "known")
    validate_recording(place / "rec", place / "out", ALL_TRAIN, processes=1, guard=guard)
    return place


def said(place: Path, data: DataParams = PARTS, reference: str | None = "known", **options) -> tuple[list[str], dict]:
    """Warnings of a validation, and the metrics."""
    guard = DriftGuard(0.5, place / reference if reference else None, place / "out/metrics")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        metrics = validate_recording(place / "rec", place / "out", data, processes=1, guard=guard, **options)
    return [str(warning.message) for warning in caught], metrics


def written(place: Path, name: str) -> dict:
    return json.loads((place / f"out/metrics/{name}.json").read_text())


def change_images(folder: Path, change: Callable[[np.ndarray], np.ndarray], frames: range = range(16)) -> None:
    for i in frames:
        path = own(folder / f"{i:06d}.png")
        pixels = np.asarray(Image.open(path))
        Image.fromarray(change(pixels).astype(pixels.dtype)).save(path)


def change_table(place: Path, **columns: Callable[[pd.Series], object]) -> None:
    path = own(place / "rec/frames.parquet")
    frames = pd.read_parquet(path)
    frames.assign(**{name: change(frames[name]) for name, change in columns.items()}).to_parquet(path)


def farther(raw: np.ndarray) -> np.ndarray:
    return np.where(raw > 0, raw + 300, 0)


# The figures


def test_figures_of_a_colour_image():
    image = np.zeros((4, 6, 3), np.uint8)
    image[:, 3:] = [200, 100, 20]
    figures = rgb_figures(image)
    expected = {"brightness": 160 / 3, "contrast": 50, "sharpness": 20, "red_share": 0.625, "blue_share": 0.0625}
    assert figures == pytest.approx(expected)
    assert rgb_figures(np.zeros((1, 1, 3), np.uint8)) == pytest.approx(dict.fromkeys(expected, 0), abs=1e-6)


def test_figures_of_depth_are_millimetres_of_what_was_measured():
    raw = np.r_[np.zeros(25, int), np.full(25, 65535), np.arange(1001, 1101)]
    info = DepthInfo(unit_mm=0.5, invalid=(0, 65535), height_range=(1, 2))
    figures = depth_figures(np.bincount(raw, minlength=65536), info)
    assert figures == {"invalid_share": pytest.approx(1 / 3), "near_mm": 500.5, "median_mm": 525, "far_mm": 549.5}


def test_figures_of_a_mask_are_shares_of_all_its_pixels():
    pixels = np.bincount([0, 0, 1, 255], minlength=65536)
    figures = mask_figures(pixels, ("floor", "box", "cup"), 255)
    assert figures == {"share.floor": 0.5, "share.box": 0.25, "share.cup": 0, "share_ignored": 0.25}


# The guard


def test_a_recording_does_not_leave_its_own_ranges(place):
    heard, metrics = said(place)
    assert heard == []
    assert {piece: counts["outside_range"] for piece, counts in metrics.items()} == dict.fromkeys(metrics, 0)
    drift = written(place, "drift")
    assert set(drift) == {"joints", "actions", "time", "depth", "masks", *(f"rgb/{c}" for c in (
        "left_wrist", "right_wrist", "global"))}  # fmt: skip
    assert {details["frames"] for details in drift.values()} == {16}
    assert {details["compared_with"] for details in drift.values()} == {str(place / "known/summary.json")}


def test_a_dark_camera_is_named_once_with_figure_frame_and_range(place):
    change_images(place / "rec/rgb/global", lambda pixels: pixels // 16, range(5, 8))
    (line,), metrics = said(place)
    assert metrics["rgb/global"]["outside_range"] == 3
    assert line.startswith(f"{place}/rec/rgb/global: rgb/global: frame ")
    assert " is beyond " in line
    assert f" of {place}/known/summary.json; 3 of 16 frames leave a range, of episodes 1" in line
    figures = written(place, "drift")["rgb/global"]["figures"]
    assert figures["brightness"]["outside"] == figures["contrast"]["outside"] == 3
    assert figures["brightness"]["lowest"] < figures["brightness"]["low"]
    assert figures["red_share"]["outside"] == 0


@pytest.mark.parametrize(
    ("spoil", "where", "figure"),
    [
        (lambda w: change_images(w / "rec/depth", farther), "rec/depth: depth", "(near|median|far)_mm"),
        (lambda w: change_images(w / "rec/masks", lambda mask: 1 - mask), "rec/masks: masks", "share.b"),
        (lambda w: change_table(w, joints=lambda column: column * 20), "rec/frames.parquet: joints", "(lift|turn)"),
        (lambda w: change_table(w, actions=lambda column: column * 20), "rec/frames.parquet: actions", "(lift|turn)"),
        (lambda w: change_table(w, time_s=lambda column: column * 2), "rec/frames.parquet: time", "interval_s 0.2"),
    ],
    ids=("depth", "masks", "joints", "actions", "time"),
)
def test_every_modality_is_guarded_and_only_the_one_that_drifts_is_named(place, spoil, where, figure):
    spoil(place)
    (line,), _ = said(place)
    assert re.match(rf"{place}/{where}: frame \d+: {figure}", line)


def test_without_a_reference_val_and_test_are_held_against_train(place):
    index = pd.read_parquet(place / "index/frames.parquet").set_index("frame_id")
    (val,) = index["episode"][index["split"] == "val"].unique()
    frames = [int(i) for i in index.index[index["episode"] == val]]
    change_images(place / "rec/rgb/global", lambda pixels: pixels // 16, range(frames[0], frames[-1] + 1))
    heard, metrics = said(place, reference=None)
    assert heard == []  # with few episodes it is usual
    assert metrics["rgb/global"]["outside_range"] == 4
    said(place, ALL_TRAIN, reference=None)
    assert written(place, "drift") == {}  # nothing is left to hold against train


def test_what_the_reference_lacks_is_held_against_train(place):
    summaries = json.loads((place / "known/summary.json").read_text())
    del summaries["depth"]
    (place / "known/summary.json").write_text(json.dumps(summaries))
    said(place)
    drift = written(place, "drift")
    assert (drift["depth"]["compared_with"], drift["depth"]["frames"]) == ("train", 8)
    assert drift["masks"]["frames"] == 16


def test_a_reference_that_describes_nothing_is_none(place):
    (place / "none").mkdir()
    (place / "none/summary.json").write_text("{}\n")
    said(place, reference="none")
    assert {details["compared_with"] for details in written(place, "drift").values()} == {"train"}


def test_single_frames_have_no_interval_and_joints_of_one_name_are_told_apart_by_number(place):
    change_table(place, episode=lambda column: np.arange(16), step=lambda column: 0)
    info = read_recording_info(place / "rec/recording.json").model_copy(update={"joints": ("lift", "lift")})
    own(place / "rec/recording.json")
    write_recording_info(place / "rec/recording.json", info)
    said(place, reference=None, only="frames")
    assert set(written(place, "summary")) == {"joints", "actions"}
    assert set(written(place, "summary")["joints"]["figures"]) == {"0", "1"}
    assert [line for line in said(place, only="frames")[0] if "interval_s" in line] == [
        f"{place}/rec/frames.parquet: time: interval_s is in {place}/known/summary.json only"
    ]


def test_other_names_of_joints_are_said(place):
    info = read_recording_info(place / "rec/recording.json").model_copy(update={"joints": ("lift", "spin")})
    own(place / "rec/recording.json")
    write_recording_info(place / "rec/recording.json", info)
    heard, _ = said(place, only="frames")
    expected = f"spin is not in {place}/known/summary.json, turn is in {place}/known/summary.json only"
    assert heard == [f"{place}/rec/frames.parquet: {name}: {expected}" for name in ("joints", "actions")]


def test_another_unit_of_depth_is_no_drift(place):
    change_images(place / "rec/depth", lambda raw: raw * 2)
    info = read_recording_info(place / "rec/recording.json")
    depth = info.depth.model_copy(update={"unit_mm": 0.5, "height_range": (1000, 3000)})
    own(place / "rec/recording.json")
    write_recording_info(place / "rec/recording.json", info.model_copy(update={"depth": depth}))
    assert said(place)[0] == []


def test_summaries_of_the_pieces_are_together_that_of_the_whole(place):
    pieces = {}
    for only in ("frames", "depth", "masks", "rgb/left_wrist", "rgb/right_wrist", "rgb/global"):
        guard = DriftGuard(0.5, metrics_dir=place / "pieces" / only)
        validate_recording(place / "rec", place / "out", ALL_TRAIN, only=only, processes=1, guard=guard)
        pieces |= json.loads((place / "pieces" / only / "summary.json").read_text())
    assert pieces == json.loads((place / "known/summary.json").read_text())
    change_images(place / "rec/depth", farther)
    heard, _ = said(place, reference="pieces")
    assert len(heard) == 1
    assert f"{place}/pieces/depth/summary.json" in heard[0]


def test_images_that_are_skipped_or_are_not_for_training_leave_the_summary_alone(place):
    said(place, reference=None)
    before = written(place, "summary")["depth"]
    index = pd.read_parquet(place / "index/frames.parquet")
    test, train = (index["frame_id"][index["split"] == part].iloc[0] for part in ("test", "train"))
    change_images(place / "rec/depth", farther, range(test, test + 1))
    said(place, reference=None)
    assert written(place, "summary")["depth"] == before
    own(place / f"rec/depth/{train:06d}.png").write_bytes(b"")
    said(place, PARTS.model_copy(update={"on_error": "skip"}), reference=None)
    assert written(place, "summary")["depth"]["frames"] == before["frames"] - 1 == 7


def test_masks_of_no_training_frame_have_no_summary(place):
    index = pd.read_parquet(place / "index/frames.parquet")
    for i in index["frame_id"][index["split"] == "train"]:
        (place / f"rec/masks/{i:06d}.png").unlink()
    _, metrics = said(place, reference=None)
    assert "masks" not in written(place, "summary")
    assert "outside_range" not in metrics["masks"]


def test_the_command_warns_in_one_line_and_succeeds(place):
    change_images(place / "rec/rgb/global", lambda pixels: pixels // 16)
    answer = run_command(place, "validate", "rec out --metrics-dir out/metrics --reference known --processes 1")
    assert answer.code == 0
    (line,) = (line for line in answer.stderr.splitlines() if "warning" in line)
    assert line.startswith("warning: rec/rgb/global: rgb/global: frame ")
    generous = run_command(
        place, "validate", "rec out --reference known --processes 1 --set validation.drift_tolerance=1000"
    )
    assert generous.warning == ""


# Embeddings


def embeddings(path: Path, episodes: int, seed: int, shift: float = 0.0, encoder: str = "e") -> Path:
    """Ten frames around a point of its own for each episode, in 16 dimensions."""
    rng = np.random.default_rng(seed)
    rows = np.repeat(rng.normal(size=(episodes, 16)), 10, axis=0) + 0.1 * rng.normal(size=(10 * episodes, 16)) + shift
    ids = np.arange(10 * episodes)
    filled = {"embeddings": rows.astype(np.float32), "frame_id": ids}
    create_contiguous(path, {}, filled, {"encoder_sha256": encoder})
    table = {"frame_id": ids, "episode": ids // 10, "step": ids % 10, "time_s": ids / 10, "split": "train"}
    write_index(path.with_suffix(".parquet"), pd.DataFrame(table))
    return path


def test_frechet_distance_of_a_moved_and_of_a_wider_cloud():
    rows = np.random.default_rng(0).normal(size=(200, 8))
    variance = rows.var(axis=0).sum()
    assert frechet(rows, rows) == pytest.approx(0, abs=1e-6)
    assert frechet(rows, rows + 2) == pytest.approx(8 * 4 / variance)
    assert frechet(rows, rows[0] + 3 * (rows - rows[0])) == pytest.approx(
        4 + 4 * ((rows.mean(0) - rows[0]) ** 2).sum() / variance
    )


def test_nearest_frame_of_another_episode():
    rng = np.random.default_rng(0)
    rows, others, episode = rng.normal(size=(30, 5)) + 100, rng.normal(size=(20, 5)) + 100, np.arange(30) // 6
    apart = np.linalg.norm(rows[:, None] - others, axis=2)
    np.testing.assert_allclose(nearest(rows, others), apart.min(1), rtol=1e-9)
    within = np.linalg.norm(rows[:, None] - rows, axis=2)
    within[episode[:, None] == episode] = np.inf
    np.testing.assert_allclose(nearest(rows, rows, episode), within.min(1), rtol=1e-9)


def test_another_seed_is_near_and_a_shift_is_far(tmp_path):
    known = embeddings(tmp_path / "known.hdf5", 40, seed=0)
    index = known.with_suffix(".parquet")
    same = embedding_drift(known, embeddings(tmp_path / "same.hdf5", 40, seed=1), index)
    moved = embedding_drift(known, embeddings(tmp_path / "moved.hdf5", 40, seed=1, shift=2.0), index)
    assert same["frechet"] < same["frechet_within"]
    assert same["far_share"] < 0.15
    assert moved["frechet"] > 3 * moved["frechet_within"]
    assert moved["far_share"] > 0.9
    assert same["distance_within"] == moved["distance_within"] == pytest.approx(same["distance"], rel=0.2)
    assert embedding_drift(known, known, index)["frechet"] == pytest.approx(0, abs=1e-6)


def test_the_farthest_frames_are_named(tmp_path):
    known = embeddings(tmp_path / "known.hdf5", 20, seed=0)
    rng = np.random.default_rng(1)
    rows = rng.normal(size=(30, 16)).astype(np.float32)
    rows[17] += 30
    create_contiguous(
        tmp_path / "new.hdf5", {}, {"embeddings": rows, "frame_id": np.arange(30) + 500}, {"encoder_sha256": "e"}
    )
    figures = embedding_drift(known, tmp_path / "new.hdf5", known.with_suffix(".parquet"))
    assert figures["farthest"][0] == 517
    assert figures["frames"] == 30


def test_many_frames_are_thinned_evenly(tmp_path):
    known, ids = embeddings(tmp_path / "known.hdf5", 20, seed=0), np.arange(3 * LIMIT)
    rows = np.repeat(ids[:, None] < 2 * LIMIT, 16, axis=1) * np.float32(100)
    create_contiguous(tmp_path / "new.hdf5", {}, {"embeddings": rows, "frame_id": ids}, {"encoder_sha256": "e"})
    figures = embedding_drift(known, tmp_path / "new.hdf5", known.with_suffix(".parquet"))
    assert figures["frames"] == LIMIT
    assert figures["far_share"] == pytest.approx(2 / 3, abs=1e-3)


def test_a_table_of_predict_is_read_as_its_hdf5_file(place):
    for name in ("new.hdf5", "new.parquet"):
        answer = run_command(place, "predict embed", f"encoder.safetensors rec/depth {name}")
        assert answer.code == 0, answer.stderr
    table, file = (read_embeddings(place / name) for name in ("new.parquet", "new.hdf5"))
    np.testing.assert_array_equal(table.ids, file.ids)
    np.testing.assert_array_equal(table.values, file.values)
    assert table.made_by == file.made_by
    with pytest.raises(UserError, match=r"depth.parquet: not a table of embeddings \("):
        read_embeddings(place / "index/depth.parquet")


def test_the_command_compares_embeddings_and_grids_of_a_pipeline(place):
    assert (
        run_command(place, "clip_grids", "rec/rgb/global shards --name clip --index index/rgb/global.parquet").code == 0
    )
    for files, index in (("embeddings.hdf5 embeddings.hdf5", "depth"), ("clip.hdf5 shards", "rgb/global")):
        answer = run_command(place, "drift", f"{files} --index index/{index}.parquet --metrics-dir out/{index}")
        assert answer.code == 0, answer.stderr
        figures = json.loads((place / "out" / index / "details.json").read_text())
        assert figures["frames"] == 16
        assert figures["far_share"] == 0
        assert figures["distance_within"] > figures["distance"] >= 0
        assert figures["frechet"] < 1e-3 < figures["frechet_within"]


def test_other_parameters_of_the_grids_are_refused(place):
    own(place / "clip.hdf5")
    (place / "other.hdf5").write_bytes((place / "clip.hdf5").read_bytes())
    with h5py.File(place / "other.hdf5", "r+") as file:
        file.attrs["tokens"] = "raw"
    answer = run_command(place, "drift", "clip.hdf5 other.hdf5 --index index/rgb/global.parquet")
    assert answer.code == 1
    assert "other.hdf5: tokens is raw, but ln_post in clip.hdf5" in answer.error
