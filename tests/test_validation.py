"""Validation of recordings: what is sound passes and is indexed; what is not is named, all of it, in readable lines."""

import io
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from sightline.core.errors import UserError
from sightline.recording.frames import read_frames, read_index, write_index
from sightline.recording.images import read_depth
from sightline.recording.layout import DepthInfo, RecordingInfo, read_recording_info, write_recording_info
from sightline.recording.split import DataParams
from sightline.validation.validation import validate_recording

REPOSITORY = Path(__file__).parents[1]
SKIP = DataParams(on_error="skip")


def table(episodes: int = 4, steps: int = 5) -> pd.DataFrame:
    n = episodes * steps
    step = np.tile(np.arange(steps), episodes)
    return pd.DataFrame(
        {
            "frame_id": np.arange(n) + 100,
            "episode": np.repeat(np.arange(episodes), steps),
            "step": step,
            "time_s": step / 10,
            "joints": [[0.5, float(i)] for i in range(n)],
            "actions": [[0.1, 0.2, 0.3]] * n,
            "reward": 0.0,
            "success": (step == steps - 1) & (np.repeat(np.arange(episodes), steps) > 0),
        }
    )


def save_images(folder: Path, arrays: dict[int, np.ndarray]) -> None:
    folder.mkdir(parents=True)
    for frame_id, array in arrays.items():
        Image.fromarray(array).save(folder / f"{frame_id:06d}.png")


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    """A sound recording of 4 episodes of 5 frames, with depth, one camera, and a mask for every second frame."""
    root, rng = tmp_path / "recording", np.random.default_rng(0)
    depth = DepthInfo(unit_mm=1.0, invalid=(0, 65535), height_range=(400, 2000))
    info = RecordingInfo(fps=10.0, cameras=("global",), joints=("a", "b"), classes=("floor", "box"), depth=depth)
    write_recording_info(root / "recording.json", info)
    frames = table()
    frames.to_parquet(root / "frames.parquet")
    ids = frames["frame_id"]
    save_images(root / "depth", {i: rng.integers(500, 1500, (6, 8)).astype(np.uint16) for i in ids})
    save_images(root / "rgb/global", {i: rng.integers(0, 255, (6, 8, 3)).astype(np.uint8) for i in ids})
    save_images(root / "masks", {i: rng.choice([0, 1, 255], (6, 8)).astype(np.uint8) for i in ids[::2]})
    return root


def refused(recording: Path, data: DataParams | None = None, **options) -> list[str]:
    """The lines of the error that validation raises; nothing may have been written."""
    out_dir = recording.parent / "out"
    before = sorted(out_dir.glob("*"))
    with pytest.raises(UserError) as error:
        validate_recording(recording, out_dir, data or DataParams(), **{"processes": 1} | options)
    assert sorted(out_dir.glob("*")) == before
    return str(error.value).splitlines()


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


# A sound recording


def test_a_sound_recording_is_indexed_and_measured(recording, tmp_path):
    metrics = validate_recording(recording, tmp_path / "out", DataParams(), processes=1)

    index = read_index(tmp_path / "out/frames.parquet")
    assert index["frame_id"].tolist() == list(range(100, 120))
    assert index.groupby("episode")["split"].nunique().eq(1).all()
    assert sorted(contents(tmp_path / "out")) == [
        "depth.parquet",
        "frames.parquet",
        "masks.parquet",
        "rgb/global.parquet",
    ]
    assert read_index(tmp_path / "out/rgb/global.parquet").equals(index)
    assert read_index(tmp_path / "out/masks.parquet").equals(index[::2].reset_index(drop=True))
    one_part = {"episodes": 1, "frames": 5}
    assert metrics["frames"] == {
        "episodes": 4, "frames": 20, "train": {"episodes": 2, "frames": 10}, "val": one_part, "test": one_part,
        "success_rate": 0.75,
    }  # fmt: skip
    assert metrics["rgb/global"] == {"images": 20, "broken": 0, "missing": 0, "skipped": 0, "sound": 20}
    assert metrics["masks"]["images"] == metrics["masks"]["missing"] == metrics["masks"]["sound"] == 10
    json.dumps(metrics)


def test_piece_by_piece_gives_the_same_as_all_at_once(recording, tmp_path):
    whole = validate_recording(recording, tmp_path / "whole", DataParams(), processes=1)
    pieces = {}
    for only in ("frames", "depth", "masks", "rgb/global"):
        pieces |= validate_recording(recording, tmp_path / "pieces", DataParams(), only=only, processes=1)
    assert pieces == whole
    assert contents(tmp_path / "pieces") == contents(tmp_path / "whole")


def test_the_number_of_processes_changes_nothing(recording, tmp_path):
    more = {i: np.full((2, 2), i, np.uint16) for i in range(1000, 1080)}
    frames = table(4, 20).assign(frame_id=sorted(more))
    frames.to_parquet(recording / "frames.parquet")
    (recording / "depth").rename(tmp_path / "unused")
    save_images(recording / "depth", more)
    (recording / "depth/001033.png").write_bytes(b"")
    (recording / "depth/001077.png").write_bytes(b"")
    answers = []
    for n in (1, 2):
        validate_recording(recording, tmp_path / str(n), DataParams(), only="frames")
        with pytest.warns(UserWarning, match="2 of 80 depth images"):
            answers.append(validate_recording(recording, tmp_path / str(n), SKIP, only="depth", processes=n))
    assert answers[0] == answers[1]
    assert contents(tmp_path / "1") == contents(tmp_path / "2")


def test_depth_and_mask_figures_are_those_of_the_pixels(recording, tmp_path):
    depth = {i: np.array([[0, 65535], [700, i]], np.uint16) for i in range(100, 120)}
    depth[100] = np.array([[600, 700], [800, 900]], np.uint16)
    for folder in ("depth", "masks"):
        (recording / folder).rename(tmp_path / folder)
    save_images(recording / "depth", depth)
    save_images(recording / "masks", {104: np.array([[0, 1], [1, 255]], np.uint8)})
    metrics = validate_recording(recording, tmp_path / "out", DataParams(), processes=1)
    assert metrics["depth"]["invalid_share"] == {"mean": 0.475, "max": 0.5}
    values = np.concatenate([image.ravel() for image in depth.values()])
    valid = np.sort(values[(values > 0) & (values < 65535)])
    assert metrics["depth"]["valid_counts"] == {
        "min": valid[0], "median": valid[(len(valid) - 1) // 2], "max": valid[-1],
    }  # fmt: skip
    assert metrics["masks"]["pixel_share"] == {"floor": 0.25, "box": 0.5}
    assert metrics["masks"]["ignored_share"] == 0.25


# Images that are not sound


def bad_images() -> dict[str, bytes]:
    """File contents that no depth image may have."""

    def png(image: Image.Image, form: str = "PNG") -> bytes:
        buffer = io.BytesIO()
        image.save(buffer, form)
        return buffer.getvalue()

    grey = Image.fromarray(np.arange(4096, dtype=np.uint8).reshape(64, 64) % 251)
    sound = png(Image.fromarray(np.random.default_rng(0).integers(1, 65535, (64, 64)).astype(np.uint16)))
    return {
        "empty": b"", "text": b"not an image", "signature": sound[:8], "header": sound[:20],
        "truncated": sound[: len(sound) // 2], "flipped": sound[:2000] + b"\0\0\0\0" + sound[2004:],
        "grey": png(grey), "rgb": png(grey.convert("RGB")), "palette": png(grey.convert("P")),
        "grey-alpha": png(grey.convert("LA")), "bits": png(grey.convert("1")), "jpeg": png(grey, "JPEG"),
        "int32": png(Image.fromarray(np.ones((4, 4), np.int32)), "TIFF"),
        "float": png(Image.fromarray(np.ones((4, 4), np.float32)), "TIFF"),
        "invalid": png(Image.fromarray(np.array([[0, 65535]], np.uint16))),
    }  # fmt: skip


@pytest.mark.parametrize("name", bad_images())
def test_a_bad_depth_image_is_named_in_one_line(recording, name):
    path = recording / "depth/000107.png"
    path.write_bytes(bad_images()[name])
    first, problem = refused(recording)
    assert first == (
        "1 of 20 depth images are broken or missing; mend them, or set data.on_error=skip to leave these frames out"
    )
    assert problem.startswith(f"{path}: ")


def test_a_folder_with_the_name_of_an_image_is_a_broken_image(recording):
    (recording / "rgb/global/000107.png").unlink()
    (recording / "rgb/global/000107.png").mkdir()
    assert "000107.png" in refused(recording)[1]


ODDITIES = REPOSITORY.parent / "shared/data/depth_formats/oddities_8bit"


@pytest.mark.skipif(not ODDITIES.is_dir(), reason="needs the folder of real 8-bit depth images")
def test_real_8_bit_depth_is_refused():
    paths = sorted(ODDITIES.glob("*.png"))
    assert paths
    for path in paths:
        with pytest.raises(UserError, match=r"not a uint16 depth image.*16-bit"):
            read_depth(path)


def test_all_problems_of_all_folders_are_reported_at_once(recording):
    (recording / "depth/000103.png").unlink()
    (recording / "depth/000101.png").write_bytes(b"")
    Image.new("I;16", (4, 4)).save(recording / "rgb/global/000105.png")
    Image.new("L", (4, 4), 2).save(recording / "masks/000110.png")
    lines = refused(recording)
    assert [line.split(";")[0] for line in lines if "on_error" in line] == [
        "1 of 20 rgb/global images are broken or missing",
        "2 of 20 depth images are broken or missing",
        "1 of 10 masks images are broken or missing",
    ]
    assert len(lines) == 3 + 4
    assert "pixels of more than 8 bits" in lines[1]
    assert lines[3].startswith(f"{recording}/depth/000101.png: broken image")
    assert lines[4] == f"frames.parquet names frame 103 but {recording}/depth/000103.png is not there"
    assert lines[6].endswith("class ids 2; recording.json names 2 classes")


def test_skip_leaves_frames_out_of_that_folder_only(recording, tmp_path):
    (recording / "depth/000103.png").unlink()
    (recording / "depth/000101.png").write_bytes(b"")
    with pytest.warns(UserWarning, match="2 of 20 depth images .* frames 101, 103$"):
        metrics = validate_recording(recording, tmp_path / "out", SKIP, processes=1)
    assert {k: metrics["depth"][k] for k in ("images", "broken", "missing", "skipped", "sound")} == {
        "images": 19, "broken": 1, "missing": 1, "skipped": 2, "sound": 18,
    }  # fmt: skip
    assert set(range(100, 120)) - set(read_index(tmp_path / "out/depth.parquet")["frame_id"]) == {101, 103}
    assert len(read_index(tmp_path / "out/rgb/global.parquet")) == 20


def test_skip_that_empties_a_part_of_the_split_is_refused(recording, tmp_path):
    validate_recording(recording, tmp_path / "other", DataParams(), only="frames")
    index = read_index(tmp_path / "other/frames.parquet")
    for frame_id in index["frame_id"][index["split"] == "val"]:
        (recording / f"depth/{frame_id:06d}.png").write_bytes(b"")
    first, *rest = refused(recording, SKIP)
    assert first == "5 of 20 depth images are broken or missing; without them nothing is left of val: mend some"
    assert len(rest) == 5


def test_images_of_no_frame_are_counted_but_not_read(recording, tmp_path):
    (recording / "depth/000999.png").write_bytes(b"")
    with pytest.warns(UserWarning, match="1 of 21 images belong to no frame"):
        metrics = validate_recording(recording, tmp_path / "out", DataParams(), processes=1)
    assert metrics["depth"]["images"] == 20


def test_masks_of_other_frames_only_are_refused(recording):
    for path in (recording / "masks").iterdir():
        path.rename(path.with_name("9" + path.name))
    assert refused(recording) == [f"{recording}/masks: none of its 10 images belongs to a frame of frames.parquet"]


def test_what_recording_json_does_not_describe_is_said(recording, tmp_path):
    info = read_recording_info(recording / "recording.json").model_copy(update={"depth": None, "cameras": ()})
    write_recording_info(recording / "recording.json", info)
    with pytest.warns(UserWarning, match="does not describe depth, rgb/global"):
        metrics = validate_recording(recording, tmp_path / "out", DataParams(), processes=1)
    assert sorted(metrics) == ["frames", "masks"]
    for only in ("depth", "rgb/global", "nonsense"):
        assert refused(recording, only=only)[0].startswith(f"{only}: recording.json describes only")


def test_a_folder_alone_needs_the_frame_index(recording):
    [line] = refused(recording, only="depth")
    assert line.endswith("frames.parquet: no such frame index; make one with sightline validate")


# The table


def with_joints(frames: pd.DataFrame, row: int, joints: list) -> pd.DataFrame:
    return frames.assign(joints=[joints if i == row else old for i, old in enumerate(frames["joints"])])


def at(frames: pd.DataFrame, row: int, column: str, value: object) -> pd.DataFrame:
    frames = frames.astype({column: "float64"}) if isinstance(value, float) else frames.copy()
    frames.loc[row, column] = value
    return frames


BAD_TABLES = {
    "columns": (lambda f: f.drop(columns=["step", "time_s"]), r"no column step, time_s; it has frame_id, episode"),
    "empty": (lambda f: f[:0], r"the table has no rows"),
    "type": (lambda f: f.assign(episode="a"), r"episode: expected an integer per row, the column holds .*string"),
    "float id": (lambda f: f.assign(frame_id=f.frame_id + 0.5), r"frame_id: expected an integer .* double"),
    "null": (lambda f: at(f, 3, "time_s", None), r"time_s: 1 of 20 rows are empty \(rows 3\)"),
    "negative": (lambda f: f.assign(frame_id=f.frame_id - 102), r"frame_id: 2 of 20 are negative \(-2, -1\)"),
    "duplicate": (lambda f: at(f, 4, "frame_id", 103), r"frame_id: 1 ids are there more than once \(103\)"),
    "gap": (
        lambda f: f.drop([7, 16]),
        r"step: not 0, 1, 2 ... in 2 of 4 .*episode 1: frame 108 has step 3, expected 2",
    ),
    "start": (lambda f: f.drop(0), r"episode 0: frame 101 has step 1, expected 0"),
    "time": (lambda f: at(f, 7, "time_s", 0.1), r"time_s: does not rise .* at 1 of 20 .*frames 107 with time_s 0.1"),
    "nan time": (lambda f: at(f, 7, "time_s", float("inf")), r"time_s: 1 of 20 rows hold NaN.*frames 107"),
    "backwards": (
        lambda f: f.assign(frame_id=200 - f.frame_id),
        r"frame_id: does not rise with the step .* at 16 of 20",
    ),
    "ragged": (lambda f: with_joints(f, 2, [1.0]), r"joints: 1 of 20 rows hold 1 numbers, but recording.json names 2"),
    "nan": (lambda f: with_joints(f, 2, [1.0, float("nan")]), r"joints: 1 of 20 rows hold NaN.*\(frames 102\)"),
    "joint text": (lambda f: f.assign(joints=[["a", "b"]] * 20), r"joints: expected a list of numbers"),
    "no joints": (lambda f: f.drop(columns="joints"), r"no column joints, but recording.json names 2"),
    "actions": (
        lambda f: f.assign(actions=[[0.0] * (i > 8) for i in range(20)]),
        r"actions: 11 of 20 .*first row has 0",
    ),
    "success": (lambda f: f.assign(success=1.0), r"success: expected true or false"),
    "reward": (lambda f: f.assign(reward=[float("nan")] + [0.0] * 19), r"reward: 1 of 20 rows"),
    "episodes": (lambda f: f[f.episode < 2], r"2 episodes \(0, 1\) cannot be split .*3 are needed"),
}


@pytest.mark.parametrize("name", BAD_TABLES)
def test_a_bad_table_is_refused_in_one_line_that_names_the_column(recording, name):
    spoil, message = BAD_TABLES[name]
    spoil(table()).to_parquet(recording / "frames.parquet")
    [line] = refused(recording)
    assert line.startswith(f"{recording}/frames.parquet: ")
    assert re.search(message, line)


def test_the_table_is_sorted_and_keeps_further_columns(tmp_path):
    table().assign(task="stack").sample(frac=1, random_state=0).to_parquet(tmp_path / "frames.parquet")
    frames = read_frames(tmp_path / "frames.parquet")
    assert frames["frame_id"].tolist() == list(range(100, 120))
    assert frames["task"].eq("stack").all()
    assert np.stack(frames["joints"]).shape == (20, 2)


def test_a_table_saved_with_frame_ids_as_row_labels_is_read(tmp_path):
    table().sample(frac=1, random_state=0).set_index("frame_id").to_parquet(tmp_path / "frames.parquet")
    assert read_frames(tmp_path / "frames.parquet")["frame_id"].tolist() == list(range(100, 120))


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 6), min_size=1, max_size=8), st.integers(0, 40), st.data())
def test_any_one_missing_frame_is_noticed_unless_it_is_an_episodes_last(lengths, first, data):
    step = np.concatenate([np.arange(n) for n in lengths])
    frames = pd.DataFrame({"episode": np.repeat(range(len(lengths)), lengths), "step": step, "time_s": step / 30})
    frames.insert(0, "frame_id", np.arange(len(step)) + first)
    gone = data.draw(st.integers(0, len(step) - 1))
    is_last = gone + 1 == len(step) or step[gone + 1] == 0
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "frames.parquet"
        frames.to_parquet(path)
        assert read_frames(path).equals(frames)
        frames.drop(gone).to_parquet(path)
        if not is_last:
            with pytest.raises(UserError, match="step: not 0, 1, 2"):
                read_frames(path)


def test_an_index_reads_back_with_the_same_bytes(tmp_path):
    frames = table().assign(split="train")
    write_index(tmp_path / "a.parquet", frames)
    back = read_index(tmp_path / "a.parquet")
    assert back.columns.tolist() == ["frame_id", "episode", "step", "time_s", "split"]
    write_index(tmp_path / "b.parquet", back)
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()


def test_a_table_is_no_index(tmp_path):
    table().to_parquet(tmp_path / "frames.parquet")
    with pytest.raises(UserError, match="not a frame index"):
        read_index(tmp_path / "frames.parquet")
    write_index(tmp_path / "index.parquet", table().assign(split="training"))
    with pytest.raises(UserError, match="split: expected only train, val, test"):
        read_index(tmp_path / "index.parquet")


# The command


def test_the_command_writes_metrics_and_prints_errors_without_traceback(recording, tmp_path):
    command = [
        sys.executable,
        REPOSITORY / "stages/validate.py",
        recording,
        tmp_path / "out",
        "--metrics-dir",
        tmp_path / "m",
    ]
    options = ["--only", "frames", "--set", "data.split.val=0.5", "--set", "data.split.seed=3"]
    subprocess.run([*command, *options], check=True, cwd=tmp_path)
    metrics = json.loads((tmp_path / "m/details.json").read_text())
    assert metrics["frames"]["val"] == {"episodes": 2, "frames": 10}
    (recording / "depth/000103.png").unlink()
    failed = subprocess.run([*command, "--only", "depth"], capture_output=True, text=True, cwd=tmp_path)
    assert failed.returncode == 1
    assert "validate.py: error: 1 of 20 depth images" in failed.stderr
    assert "Traceback" not in failed.stderr
    assert not (tmp_path / "out/depth.parquet").exists()
