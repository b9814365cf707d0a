"""Importing LeRobot data sets: a recording holds what the data set did; a mistake is one line and leaves nothing."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT
from data_sets import (
    CODEC_ERROR,
    EPISODES,
    FPS,
    HEIGHT,
    KEYS,
    LEROBOT,
    NAMES,
    ONE,
    POINTER,
    STEPS,
    WIDTH,
    check_pictures,
    contents,
    edit_info,
    edit_rows,
    joints_of,
    lerobot_v2,
    lerobot_v3,
    picture,
    pixels_of,
    refused,
    write_video,
)
from PIL import Image

from sightline.core.errors import UserError
from sightline.importers.lerobot import import_lerobot
from sightline.importers.lerobot_video import VideoClip
from sightline.importers.options import ImportOptions
from sightline.recording.frames import read_frames
from sightline.recording.layout import RecordingInfo, read_recording_info
from sightline.recording.split import DataParams, SplitParams
from sightline.validation.validation import validate_recording

REAL_SET = ROOT.parent / "shared/data/robot_so101"


@pytest.fixture
def v2(tmp_path: Path) -> Path:
    return lerobot_v2(tmp_path / "set")


@pytest.fixture
def v3(tmp_path: Path) -> Path:
    return lerobot_v3(tmp_path / "set")


@pytest.fixture
def decoded(monkeypatch) -> list[Path]:
    """The video of each frame that is decoded."""
    paths: list[Path] = []
    read = VideoClip.__iter__

    def note(clip):
        for pixels in read(clip):
            paths.append(clip.path)
            yield pixels

    monkeypatch.setattr(VideoClip, "__iter__", note)
    return paths


# What a data set holds is in the recording


@pytest.mark.parametrize("layout", LEROBOT)
def test_a_lerobot_set_becomes_a_sound_recording(layout, tmp_path):
    source, target = LEROBOT[layout](tmp_path / "set"), tmp_path / "recording"
    import_lerobot(source, target, ONE)

    info = read_recording_info(target / "recording.json")
    assert info == RecordingInfo(fps=FPS, cameras=("left", "top"), joints=NAMES)
    frames = read_frames(target / "frames.parquet", info)
    assert frames["frame_id"].tolist() == list(range(EPISODES * STEPS))
    assert frames["episode"].tolist() == [0] * STEPS + [1] * STEPS
    assert np.allclose(frames["time_s"], np.tile(np.arange(STEPS) / FPS, EPISODES))
    joints = np.concatenate([joints_of(0), joints_of(1)])
    assert np.array_equal(np.stack(frames["joints"]), joints)
    assert np.array_equal(np.stack(frames["actions"]), joints[:, :2] + 0.5)
    assert np.allclose(frames["reward"], np.tile(np.linspace(0, 1, STEPS), EPISODES))
    assert frames["success"].tolist() == ([False] * (STEPS - 1) + [True]) * EPISODES
    check_pictures(target, info.cameras, 0 if "images" in layout else CODEC_ERROR)
    validate_recording(target, tmp_path / "index", DataParams(split=SplitParams(test=0)), processes=1)


def test_cameras_are_chosen_and_named_by_the_user(v2, tmp_path):
    text = import_lerobot(
        v2, tmp_path / "recording", ImportOptions(cameras=["observation.images.top=global"], processes=1)
    )
    assert [path.name for path in (tmp_path / "recording/rgb").iterdir()] == ["global"]
    assert np.abs(pixels_of(tmp_path / "recording", "global", 7) - picture(1, 1, 1).astype(float)).mean() < CODEC_ERROR
    assert "  rgb/global: pictures of " in text


def test_features_are_put_side_by_side(v2, tmp_path):
    import_lerobot(v2, tmp_path / "recording", ImportOptions(joints=["observation.state", "next.reward"], processes=1))
    info = read_recording_info(tmp_path / "recording/recording.json")
    assert info.joints == ("joint_0", "joint_1", "joint_2", "joint_3")  # not all of them have names in the source
    assert np.stack(read_frames(tmp_path / "recording/frames.parquet", info)["joints"]).shape == (12, 4)


def test_the_number_of_processes_changes_nothing(v3, tmp_path):
    for processes in (1, 2):
        import_lerobot(v3, tmp_path / f"recording{processes}", ImportOptions(size=24, processes=processes))
    assert contents(tmp_path / "recording1") == contents(tmp_path / "recording2")


@pytest.mark.skipif(not REAL_SET.is_dir(), reason="needs a real LeRobot data set")
def test_a_real_set_is_imported_whole(tmp_path):
    target = tmp_path / "recording"
    options = ImportOptions(cameras=["observation.images.left=global"], size=32, processes=1)
    text = import_lerobot(REAL_SET, target, options)
    info = read_recording_info(target / "recording.json")
    assert (info.fps, len(info.joints), info.joints[5]) == (30, 12, "left_gripper.pos")
    frames = read_frames(target / "frames.parquet", info)
    lengths = [json.loads(line)["length"] for line in (REAL_SET / "meta/episodes.jsonl").read_text().splitlines()]
    assert frames.groupby("episode").size().tolist() == lengths
    assert set(frames["task"]) == {"Clap twice"}
    assert len(list((target / "rgb/global").iterdir())) == sum(lengths)
    assert pixels_of(target, "global", 431).shape == (32, 43, 3)
    assert "robot bi_so101_follower, 30 fps: with fusion.stride: 3, the steps of a chunk are 10 Hz" in text
    assert "not imported: observation.images.top, observation.images.right" in text


# Interruption


def test_finished_episodes_are_not_decoded_again(v2, decoded, tmp_path):
    broken = v2 / f"videos/chunk-000/{KEYS[1]}/episode_000001.mp4"
    sound = broken.read_bytes()
    middle = sound.index(b"mdat") + 4 + len(sound) // 4
    broken.write_bytes(sound[:middle] + b"\xff" * 400 + sound[middle + 400 :])  # the times of its pictures are right
    refused(import_lerobot, v2, str(broken))

    broken.write_bytes(sound)
    decoded.clear()
    import_lerobot(v2, tmp_path / "refused", ONE)
    counts = {number: sum(number in path.name for path in decoded) for number in ("000000", "000001")}
    assert counts == {"000000": len(KEYS), "000001": len(KEYS) * STEPS}  # of the first one, a look at its first frames
    check_pictures(tmp_path / "refused", ("left", "top"), CODEC_ERROR)
    assert not list((tmp_path / ".scratch/import").iterdir())


def test_other_settings_and_other_files_do_not_take_what_was_left(v2, tmp_path):
    last = v2 / f"videos/chunk-000/{KEYS[1]}/episode_000001.mp4"
    sound = last.read_bytes()
    last.write_bytes(b"")
    refused(import_lerobot, v2, str(last))
    last.write_bytes(sound)

    other = [picture(1, 1, step) for step in range(STEPS)]
    write_video(v2 / f"videos/chunk-000/{KEYS[0]}/episode_000000.mp4", other)
    import_lerobot(v2, tmp_path / "refused", ImportOptions(size=24, processes=1))
    for camera, expected in (("left", other[2]), ("top", picture(1, 0, 2))):
        pixels = pixels_of(tmp_path / "refused", camera, 2)
        assert np.abs(pixels - expected.reshape(24, 2, 32, 2, 3).mean((1, 3))).mean() < CODEC_ERROR


def test_a_killed_import_leaves_nothing_that_looks_complete(v2, tmp_path):
    """Killed at the worst time, while the recording is put together."""
    script = (
        "import os, signal, sys; from pathlib import Path; from sightline.importers import lerobot, options\n"
        "link, calls = os.link, []\n"
        "def count(*paths):\n"
        "    calls.append(link(*paths))\n"
        "    if len(calls) == 9: os.kill(os.getpid(), signal.SIGKILL)\n"
        "os.link = count\n"
        "options = options.ImportOptions(processes=1)\n"
        "lerobot.import_lerobot(Path(sys.argv[1]), Path(sys.argv[2]), options)\n"
    )
    environment = os.environ | {"DVC_ROOT": str(tmp_path)}
    target = tmp_path / "recording"
    command = [sys.executable, "-c", script, str(v2), str(target)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == -signal.SIGKILL, result.stderr
    assert not target.exists()

    import_lerobot(v2, target, ONE)
    check_pictures(target, ("left", "top"), CODEC_ERROR)


def test_disks_without_links(v2, tmp_path, monkeypatch):
    import_lerobot(v2, tmp_path / "linked", ONE)
    monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(PermissionError()))
    import_lerobot(v2, tmp_path / "copied", ONE)
    assert contents(tmp_path / "copied") == contents(tmp_path / "linked")


def test_a_full_disk(v2, monkeypatch):
    def save(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", save)
    refused(import_lerobot, v2, "refused", "No space left on device")


# Mistakes


def test_not_a_lerobot_set(tmp_path):
    (tmp_path / "set").mkdir()
    refused(import_lerobot, tmp_path / "set", "not a LeRobot data set", "meta/info.json")
    refused(import_lerobot, tmp_path / "absent", "not a LeRobot data set", "meta/info.json")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda info: info.update(codebase_version="v1.6"), ("codebase_version", "v1.6", "v2.1, v3.0")),
        (lambda info: info.pop("fps"), ("fps",)),
        (lambda info: info.update(fps=0), ("fps",)),
        (lambda info: info.update(total_episodes=7), ("episodes.jsonl", "2 episodes", "7")),
        (lambda info: info.update(data_path="data/{oops}.parquet"), ("data_path", "oops", "episode_index")),
        (lambda info: info.pop("video_path"), ("video_path", KEYS[0])),
        (lambda info: info["features"].pop("action"), ("'action'", "observation.state", "--actions")),
        (lambda info: info["features"][KEYS[1]]["info"].update({"video.is_depth_map": True}), (KEYS[1], "depth")),
        (lambda info: info["features"][KEYS[1]].update(shape=[HEIGHT, WIDTH, 1]), (KEYS[1], "greyscale", "--camera")),
        (lambda info: [info["features"].pop(key) for key in KEYS], ("no camera",)),
        (lambda info: info["features"]["observation.state"].update(shape=[4]), ("observation.state", "4 numbers")),
    ],
)
def test_an_info_file_that_does_not_fit(change, words, v2):
    edit_info(v2, change)
    refused(import_lerobot, v2, *words)


def test_an_info_file_that_is_not_json(v2):
    (v2 / "meta/info.json").write_text("{")
    refused(import_lerobot, v2, "info.json", "not valid JSON")


@pytest.mark.parametrize(
    ("cameras", "words"),
    [
        (["front=global"], ("front", *KEYS)),
        ([f"{KEYS[0]}=a", f"{KEYS[1]}=a"], (*KEYS, "both be called a")),
        ([KEYS[0], KEYS[0]], ("twice",)),
        ([f"{KEYS[0]}=../up"], ("../up", "letters")),
    ],
)
def test_cameras_that_cannot_be(cameras, words, v2):
    refused(import_lerobot, v2, *words, cameras=cameras)


@pytest.mark.parametrize("place", ["meta/info.json", "meta/episodes.jsonl", "data/chunk-000/episode_000001.parquet",
                                   f"videos/chunk-000/{KEYS[0]}/episode_000001.mp4"])  # fmt: skip
def test_git_lfs_pointers(place, v2):
    (v2 / place).write_text(POINTER)
    refused(import_lerobot, v2, place, "git lfs pull")


def test_a_data_file_that_is_no_parquet(v2):
    (v2 / "data/chunk-000/episode_000000.parquet").write_text("rubbish")
    refused(import_lerobot, v2, "episode_000000.parquet", "not a parquet file")


@pytest.mark.parametrize(
    "place", ["data/chunk-000/episode_000001.parquet", f"videos/chunk-000/{KEYS[0]}/episode_000001.mp4"]
)
def test_missing_files(place, v2):
    (v2 / place).unlink()
    refused(import_lerobot, v2, place, "No such file")


@pytest.mark.parametrize("index_first", [False, True])
@pytest.mark.parametrize("share", [0.0, 0.4, 0.9])
def test_truncated_videos(index_first, share, v2):
    video = v2 / f"videos/chunk-000/{KEYS[0]}/episode_000001.mp4"
    write_video(video, [picture(0, 1, step) for step in range(STEPS)], index_first=index_first)
    data = video.read_bytes()
    video.write_bytes(data[: int(len(data) * share)])
    refused(import_lerobot, v2, str(video))


def test_a_row_without_a_picture(v2):
    video = v2 / f"videos/chunk-000/{KEYS[1]}/episode_000001.mp4"
    write_video(video, [picture(1, 1, step) for step in range(STEPS - 1)])
    refused(import_lerobot, v2, str(video), "row 5 is 100.0 ms", "5 pictures for 6 rows", "--skip 1")


def test_a_picture_without_a_row_is_told(v2, tmp_path):
    write_video(
        v2 / f"videos/chunk-000/{KEYS[1]}/episode_000001.mp4", [picture(1, 1, step) for step in range(STEPS + 1)]
    )
    text = import_lerobot(v2, tmp_path / "recording", ONE)
    assert "1 picture(s) of 1 video(s), such as videos/" in text
    check_pictures(tmp_path / "recording", ("left", "top"), CODEC_ERROR)


def test_a_video_of_many_episodes_that_ends_too_early(v3):
    video = v3 / f"videos/{KEYS[1]}/chunk-000/file-000.mp4"
    write_video(video, [picture(1, 0, step) for step in range(2 * STEPS - 1)])
    refused(import_lerobot, v3, str(video), "row 5 is", "11 pictures for 12 rows", "episode 1")


def test_a_greyscale_video(v2):
    video = v2 / f"videos/chunk-000/{KEYS[0]}/episode_000000.mp4"
    write_video(video, [picture(0, 0, 0)] * STEPS, codec="ffv1", pix_fmt="gray")
    refused(import_lerobot, v2, "episode_000000.mp4", "greyscale")


def test_rows_that_are_not_what_the_episodes_say(v2):
    path = v2 / "data/chunk-000/episode_000001.parquet"
    pd.read_parquet(path)[:-1].to_parquet(path)
    refused(import_lerobot, v2, str(path), f"{STEPS - 1} rows", f"length {STEPS}")


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"observation.state": [np.full(3, np.nan, np.float32)] * STEPS}, ("joints", "6 of 6 rows", "NaN")),
        ({"timestamp": np.zeros(STEPS, np.float32)}, ("time does not rise", "5 of 6 rows")),
        ({"frame_index": np.arange(STEPS) * 2}, ("frame_index", "missing")),
        ({"observation.state": [np.zeros(2 + i % 2) for i in range(STEPS)]}, ("observation.state", "3 numbers")),
        ({"observation.state": ["a"] * STEPS}, ("observation.state", "3 numbers")),
        ({"observation.state": [None] * STEPS}, ("observation.state", "3 numbers")),
    ],
)  # fmt: skip
def test_rows_that_cannot_be_used(columns, words, v2):
    path = v2 / "data/chunk-000/episode_000001.parquet"
    edit_rows(path, **columns)
    refused(import_lerobot, v2, str(path), *words)


def test_a_column_that_is_missing(v2):
    path = v2 / "data/chunk-000/episode_000000.parquet"
    pd.read_parquet(path).drop(columns="action").to_parquet(path)
    refused(import_lerobot, v2, str(path), "no column action")


def test_episodes_that_lack_a_key(v2, tmp_path):
    (v2 / "meta/episodes.jsonl").write_text('{"episode_index": 0}\n{"episode_index": 1}\n')
    refused(import_lerobot, v2, "episodes.jsonl", "length")


def test_no_episodes_in_a_set_of_format_3(v3):
    shutil.rmtree(v3 / "meta/episodes")
    refused(import_lerobot, v3, "meta/episodes", "no episodes")


@pytest.mark.parametrize("size", [-1, -224])
def test_a_size_below_zero(size, v2):
    refused(import_lerobot, v2, "--size", size=size)


def test_a_target_that_is_not_empty_is_left_alone(v2, tmp_path):
    target = tmp_path / "recording"
    target.mkdir()
    (target / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="not an empty folder"):
        import_lerobot(v2, target, ONE)
    assert contents(target) == {"notes.txt": b"mine"}
    (target / "notes.txt").unlink()
    import_lerobot(v2, target, ONE)  # an empty one will do
