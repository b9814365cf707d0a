"""A recording that is exported as a LeRobot data set and imported again is the same, to the last value."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from conftest import ROOT, only_error_line, save_depth
from data_sets import contents
from PIL import Image

from sightline.core.errors import UserError
from sightline.importers.lerobot import import_lerobot
from sightline.importers.options import ImportOptions
from sightline.recording.layout import DepthInfo, RecordingInfo, write_recording_info

STEPS = (3, 5, 4)
SAME = ImportOptions(size=0, processes=1)


def _tool():
    spec = importlib.util.spec_from_file_location("export_lerobot", ROOT / "tools/export_lerobot.py")
    assert spec
    assert spec.loader
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    return tool


export_lerobot = _tool().export_lerobot


def record(root: Path, unit_mm: float = 1.0, tasks: bool = True) -> Path:
    """A recording with all that a LeRobot data set can hold, with numbers that float32 would change."""
    rng = np.random.default_rng(3)
    root.mkdir()
    depth = DepthInfo(unit_mm=unit_mm, invalid=(0, 65535), height_range=(300, 2000))
    info = RecordingInfo(fps=30, cameras=("left", "top"), joints=("elbow", "wrist"), depth=depth)
    write_recording_info(root / "recording.json", info)
    count = sum(STEPS)
    frames = pd.DataFrame(
        {
            "frame_id": np.arange(count),
            "episode": np.repeat([0, 1, 2], STEPS),
            "step": np.concatenate([np.arange(n) for n in STEPS]),
            "time_s": np.concatenate([np.arange(n) / 30 + 0.01 * rng.random(n) for n in STEPS]),
            "joints": list(rng.normal(size=(count, 2))),
            "actions": list(rng.normal(size=(count, 3))),
            "reward": rng.random(count),
            "success": rng.random(count) < 0.3,
            "goal_position": list(rng.normal(size=(count, 3))),
        }
    )
    if tasks:
        frames["task"] = rng.choice(["lift", "turn the wheel", "öffne"], count)
    frames.to_parquet(root / "frames.parquet", index=False)
    for i in range(count):
        for camera, size in (("left", (8, 10)), ("top", (6, 12))):
            path = root / f"rgb/{camera}/{i:06d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8)).save(path)
        save_depth(root / f"depth/{i:06d}.png", rng.integers(0, 65536, (8, 10)))
    return root


def test_a_round_trip_keeps_every_value(tmp_path):
    recording = record(tmp_path / "recording")
    text = export_lerobot(recording, tmp_path / "set", robot="arm")
    assert text == f"{tmp_path / 'set'}: 3 episodes, 12 frames, 3 cameras, LeRobot v3.0"
    import_lerobot(tmp_path / "set", tmp_path / "back", SAME)
    assert (tmp_path / "back/recording.json").read_bytes() == (recording / "recording.json").read_bytes()
    before, after = (pd.read_parquet(root / "frames.parquet") for root in (recording, tmp_path / "back"))
    for name in before:
        assert np.array_equal(np.stack(before[name]), np.stack(after[name])), name
    assert set(after) == set(before)
    images = [path.relative_to(recording) for path in sorted(recording.rglob("*.png"))]
    assert len(images) == 3 * sum(STEPS)
    for name in images:
        pixels = [np.asarray(Image.open(root / name)) for root in (recording, tmp_path / "back")]
        assert pixels[0].dtype == pixels[1].dtype
        assert np.array_equal(*pixels), name


@pytest.mark.parametrize(
    ("parts", "splits"),
    [
        (["train", "val", "test"], {"train": "0:1", "val": "1:2", "test": "2:3"}),
        (["test", "train", "train"], {"test": "0:1", "train": "1:3"}),
        (["train", "val", "train"], {"train": "0:3"}),
    ],
)
def test_a_split_is_kept_where_its_parts_are_ranges_and_else_named(parts, splits, tmp_path):
    recording = record(tmp_path / "recording")
    frames = pd.read_parquet(recording / "frames.parquet").assign(split=np.repeat(parts, STEPS))
    frames.to_parquet(recording / "frames.parquet", index=False)
    text = export_lerobot(recording, tmp_path / "set")
    assert json.loads((tmp_path / "set/meta/info.json").read_text())["splits"] == splits
    import_lerobot(tmp_path / "set", tmp_path / "back", SAME)
    back = pd.read_parquet(tmp_path / "back/frames.parquet")
    if len(splits) > 1:
        assert back["split"].tolist() == frames["split"].tolist()
    else:
        assert "not exported: split (its parts are not ranges of episodes)" in text
        assert "split" not in back


def test_the_set_has_what_lerobot_documents(tmp_path):
    export_lerobot(record(tmp_path / "recording"), tmp_path / "set", robot="arm")
    meta = tmp_path / "set/meta"
    info = json.loads((meta / "info.json").read_text())
    assert (info["codebase_version"], info["robot_type"], info["fps"]) == ("v3.0", "arm", 30)
    assert (info["total_episodes"], info["total_frames"]) == (3, 12)
    assert info["features"]["observation.state"]["names"] == ["elbow", "wrist"]
    assert info["features"]["observation.images.left"]["shape"] == [8, 10, 3]
    assert info["features"]["observation.depth"]["info"]["is_depth_map"]
    tasks = pd.read_parquet(meta / "tasks.parquet")
    assert tasks.index.name == "task"
    assert sorted(tasks["task_index"]) == list(range(info["total_tasks"]))
    episodes = pd.read_parquet(meta / "episodes/chunk-000/file-000.parquet")
    assert episodes["dataset_from_index"].tolist() == [0, 3, 8]
    assert episodes["dataset_to_index"].tolist() == [3, 8, 12]
    data = pq.read_table(tmp_path / "set/data/chunk-000/file-000.parquet")
    assert set(data.column_names) == set(info["features"])
    stats = json.loads((meta / "stats.json").read_text())
    assert set(stats) == set(info["features"])
    assert np.shape(stats["observation.images.top"]["mean"]) == (3, 1, 1)
    assert np.allclose(stats["action"]["mean"], np.stack(data["action"].to_pylist()).mean(axis=0))


def test_data_files_do_not_grow_without_end(tmp_path, monkeypatch):
    tool = _tool()
    monkeypatch.setattr(tool, "FILE_BYTES", 1)
    monkeypatch.setattr(tool, "FILES_PER_CHUNK", 2)
    recording = record(tmp_path / "recording", tasks=False)
    tool.export_lerobot(recording, tmp_path / "set")
    names = [path.relative_to(tmp_path / "set").as_posix() for path in sorted((tmp_path / "set/data").rglob("*.p*"))]
    assert names == [f"data/chunk-{place}.parquet" for place in ("000/file-000", "000/file-001", "001/file-000")]
    import_lerobot(tmp_path / "set", tmp_path / "back", SAME)
    before, after = (pd.read_parquet(root / "frames.parquet") for root in (recording, tmp_path / "back"))
    assert np.array_equal(before["time_s"], after["time_s"])
    assert "task" not in after


def test_images_that_are_not_colour_png(tmp_path):
    recording = record(tmp_path / "recording")
    grey = np.arange(72, dtype=np.uint8).reshape(6, 12)
    Image.fromarray(grey).save(recording / "rgb/top/000004.png")
    (recording / "rgb/top/000005.png").unlink()
    Image.fromarray(np.stack([grey, grey, 0 * grey], axis=-1)).save(recording / "rgb/top/000005.bmp")
    export_lerobot(recording, tmp_path / "set")
    import_lerobot(tmp_path / "set", tmp_path / "back", SAME)
    pixels = [np.asarray(Image.open(tmp_path / f"back/rgb/top/{i:06d}.png")) for i in (4, 5)]
    assert np.array_equal(pixels[0], np.repeat(grey[:, :, None], 3, axis=2))
    assert np.array_equal(pixels[1], np.stack([grey, grey, 0 * grey], axis=-1))


def test_what_cannot_be_exported(tmp_path):
    recording = record(tmp_path / "recording", unit_mm=0.25)
    with pytest.raises(UserError, match=r"unit_mm 0.25, .* convert the images"):
        export_lerobot(recording, tmp_path / "set")
    recording = record(tmp_path / "other")
    (recording / "rgb/top/000004.png").unlink()
    with pytest.raises(UserError, match=r"rgb/top: no image of 1 of 12 frames \(such as frame 4\)"):
        export_lerobot(recording, tmp_path / "set")
    Image.new("RGB", (5, 5)).save(recording / "rgb/top/000004.png")
    with pytest.raises(UserError, match=r"000004.png: \[5, 5\], but the first image of the folder \[6, 12\]"):
        export_lerobot(recording, tmp_path / "set")
    assert not list(tmp_path.glob("*set*"))


def test_the_command(tmp_path):
    recording = record(tmp_path / "recording")
    command = [sys.executable, str(ROOT / "tools/export_lerobot.py"), "recording", "set"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (0, "set: 3 episodes, 12 frames, 3 cameras, LeRobot v3.0\n")
    before = contents(tmp_path / "set")
    assert "set: exists" in only_error_line(
        subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    )
    assert contents(tmp_path / "set") == before
    assert recording.is_dir()
