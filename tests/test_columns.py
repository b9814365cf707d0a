"""What a recording says about itself, split, task and goal, and depth of several cameras: heeded, or refused."""

import re
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from sightline.core.errors import UserError
from sightline.recording.frames import read_frames, read_index
from sightline.recording.layout import DepthInfo, RecordingInfo, write_recording_info
from sightline.recording.split import DataParams
from sightline.validation.parameters import Contents
from sightline.validation.validation import validate_recording

EPISODES, STEPS = 4, 3
N = EPISODES * STEPS


def table(**columns: object) -> pd.DataFrame:
    step = np.tile(np.arange(STEPS), EPISODES)
    frames = {"frame_id": np.arange(N), "episode": np.repeat(np.arange(EPISODES), STEPS), "step": step}
    return pd.DataFrame(frames | {"time_s": step / 10}).assign(**columns)


def parts(*names: str) -> list[str]:
    return np.repeat(names, STEPS).tolist()


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    """A recording of a table alone."""
    root = tmp_path / "recording"
    write_recording_info(root / "recording.json", RecordingInfo(fps=10.0, cameras=(), joints=()))
    table().to_parquet(root / "frames.parquet")
    return root


@pytest.mark.parametrize("seed", [0, 3])
@pytest.mark.parametrize("kind", ["object", "category"])
def test_the_split_of_the_table_replaces_that_of_the_seed(seed, kind, recording, tmp_path):
    split = parts("train", "test", "train", "val")
    table(split=pd.Series(split).astype(kind)).to_parquet(recording / "frames.parquet")
    data = DataParams.model_validate({"split": {"seed": seed, "val": 0.5, "test": 0.4}})
    metrics = validate_recording(recording, tmp_path / "out", data, only="frames")
    assert read_index(tmp_path / "out/frames.parquet")["split"].tolist() == split
    assert metrics["frames"]["train"] == {"episodes": 2, "frames": 2 * STEPS}


def test_a_table_without_test_episodes_gets_them_from_train(recording, tmp_path):
    table(split=parts("train", "train", "train", "val")).to_parquet(recording / "frames.parquet")
    metrics = validate_recording(recording, tmp_path / "out", DataParams(), only="frames")["frames"]
    assert [metrics[part]["episodes"] for part in ("train", "val", "test")] == [2, 1, 1]
    index = read_index(tmp_path / "out/frames.parquet")
    assert set(index["episode"][index["split"] == "val"]) == {3}


def test_texts_and_goals_are_read(recording):
    table(task="lift", goal_position=[[0.1, 0.2, 0.3]] * N).to_parquet(recording / "frames.parquet")
    frames = read_frames(recording / "frames.parquet")
    assert frames["task"].eq("lift").all()
    assert np.stack(frames["goal_position"]).shape == (N, 3)


BAD = {
    "split words": ({"split": parts("train", "train", "val", "valid")}, r"split: 3 of 12 rows hold valid, .*frames 9"),
    "split type": ({"split": 1}, r"split: expected text per row, the column holds int64"),
    "split torn": (
        {"split": ["train"] * (STEPS + 1) + ["val"] * (N - STEPS - 1)},
        r"split: changes within 1 of 4 episodes \(episodes 1\)",
    ),
    "no train": ({"split": "val"}, r"split: no train episode"),
    "too few": ({"split": parts("train", "val", "val", "val")}, r"1 train episodes of the column split \(0\) cannot"),
    "task": ({"task": 3}, r"task: expected text"),
    "no task": ({"task": ["lift"] * (N - 1) + [None]}, r"task: 1 of 12 rows are empty \(rows 11\)"),
    "goal": ({"goal_position": [[0.1, 0.2]] * N}, r"goal_position: 12 of 12 rows hold 2 numbers, but each needs 3"),
    "nan goal": ({"goal_position": [[0.1, 0.2, np.nan]] * N}, r"goal_position: 12 of 12 rows hold NaN"),
}


@pytest.mark.parametrize("name", BAD)
def test_columns_that_mean_something_else_are_refused(name, recording, tmp_path):
    columns, message = BAD[name]
    table(**columns).to_parquet(recording / "frames.parquet")
    with pytest.raises(UserError) as error:
        validate_recording(recording, tmp_path / "out", DataParams(), only="frames")
    assert str(error.value).startswith(f"{recording}/frames.parquet: ")
    assert re.search(message, str(error.value)), error.value
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_all_faults_of_the_description_and_of_the_table_are_listed_at_once(recording, tmp_path):
    (recording / "recording.json").write_text(
        '{"fps": 0, "cameras": ["a/b"], "colour": 1, "depth": {"unit_mm": "one", "invalid": [0]}}'
    )
    spoiled = table(joints=[[1.0]] * (N - 1) + [[1.0, 2.0]], goal_position=[[0.1, 0.2]] * N, success="yes", split="all")
    spoiled = spoiled.drop(columns="time_s")
    spoiled.loc[5, ["frame_id", "step"]] = [4, 7]
    spoiled.to_parquet(recording / "frames.parquet")
    of_json = ["fps: ", "cameras.0: ", "joints: ", "depth.unit_mm: ", "depth.height_range: ", "colour: "]
    of_table = ["no column time_s; ", "success: ", "joints: 1 of 12 ", "goal_position: 12 of 12 "]
    of_table += ["frame_id: 1 ids are there more than once (4)", "step: not 0, 1, 2 ... in 1 of 4", "split: 12 of 12 "]
    expected = [f"{recording}/recording.json: {start}" for start in of_json]
    expected += [f"{recording}/frames.parquet: {start}" for start in of_table]
    with pytest.raises(UserError) as error:
        validate_recording(recording, tmp_path / "out", DataParams())
    lines = str(error.value).splitlines()
    assert [line for line in lines if not line.startswith(tuple(expected))] == []
    assert len(lines) == len(expected)
    with pytest.raises(UserError) as error:
        Contents.read(recording)
    assert str(error.value).splitlines() == lines


def test_a_time_that_does_not_rise_is_told_beside_wrong_steps(recording):
    spoiled = table().astype({"time_s": float})
    spoiled.loc[5, "step"], spoiled.loc[10, "time_s"] = 7, 0.0
    spoiled.to_parquet(recording / "frames.parquet")
    with pytest.raises(UserError) as error:
        read_frames(recording / "frames.parquet")
    steps, times = str(error.value).splitlines()
    assert "step: not 0, 1, 2 ... in 1 of 4 episodes" in steps
    assert (
        "time_s: does not rise with frame_id within an episode at 1 of 12 frames (frames 10 with time_s 0.0)" in times
    )


@pytest.mark.parametrize(
    ("height_range", "share", "is_refused"),
    [((400, 2000), None, False), ((5, 45), "0.0%", True), ((500, 510), "33.3%", False), ((0, 1508), "99.0%", False)],
)
def test_a_height_range_far_off_the_depth_is_refused_or_warned_about(
    recording, tmp_path, height_range, share, is_refused
):
    depth = DepthInfo(unit_mm=1.0, invalid=(0,), height_range=height_range)
    write_recording_info(recording / "recording.json", RecordingInfo(fps=10.0, cameras=(), joints=(), depth=depth))
    (recording / "depth").mkdir()
    pixels = np.repeat(np.array([500, 1000, 1500], np.uint16), 4).reshape(3, 4)
    for i in range(N):
        Image.fromarray(pixels).save(recording / f"depth/{i:06d}.png")
    words = (
        f"{recording}/depth: {share} of the valid pixels lie inside depth.height_range {list(height_range)} of "
        "recording.json; the 5th to 95th percentile is 500 to 1500 counts; set the range "
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if is_refused:
            with pytest.raises(UserError, match=re.escape(words)):
                validate_recording(recording, tmp_path / "out", DataParams(), processes=1)
        else:
            validate_recording(recording, tmp_path / "out", DataParams(), processes=1)
    told = [str(warning.message) for warning in caught if "height_range" in str(warning.message)]
    assert [text[: len(words)] for text in told] == [words] * (share == "33.3%")


def test_each_depth_camera_has_a_folder_of_its_own(recording, tmp_path):
    depth = DepthInfo(unit_mm=1.0, invalid=(0,), height_range=(400, 2000))
    info = RecordingInfo(fps=10.0, cameras=(), joints=(), depth=depth)
    write_recording_info(recording / "recording.json", info)
    for offset, camera in ((0, "high"), (100, "low")):
        (recording / "depth" / camera).mkdir(parents=True)
        for i in range(N):
            pixels = np.full((4, 4), 500 + i + offset, np.uint16)
            Image.fromarray(pixels).save(recording / f"depth/{camera}/{i:06d}.png")
    (recording / "depth/.gitignore").write_text("/high\n")  # as dvc add leaves it
    with warnings.catch_warnings(action="error"):
        metrics = validate_recording(recording, tmp_path / "out", DataParams(), processes=1)
    assert sorted(metrics) == ["depth/high", "depth/low", "frames"]
    assert metrics["depth/low"]["valid_counts"] == {"min": 600, "median": 605, "max": 611}
    assert len(read_index(tmp_path / "out/depth/high.parquet")) == N
    with pytest.raises(UserError, match="depth/none"):
        validate_recording(recording, tmp_path / "out", DataParams(), only="depth/none", processes=1)
    (recording / "depth/low/000003.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"^1 of 12 depth/low images are broken"):
        validate_recording(recording, tmp_path / "out", DataParams(), processes=1)
