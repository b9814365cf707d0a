"""What both importers of demonstrations do."""

import numpy as np
import pytest
from conftest import only_error_line
from data_sets import CODEC_ERROR, LEROBOT, POINTER, STEPS, aloha, lerobot_v2, picture, pixels_of, refused

from sightline.importers.demonstrations import ImportOptions
from sightline.importers.episodes import import_hdf5
from sightline.importers.lerobot import import_lerobot
from sightline.recording.frames import read_frames


@pytest.mark.parametrize("layout", ["v2.1", "v3.0", "aloha"])
def test_episodes_are_left_out(layout, tmp_path):
    source = aloha(tmp_path / "set") if layout == "aloha" else LEROBOT[layout](tmp_path / "set")
    convert = import_hdf5 if layout == "aloha" else import_lerobot
    refused(convert, source, "--skip 7", "0-1", skip=[7])
    refused(convert, source, "no episode is left", skip=[0, 1])
    for broken in (*source.rglob("episode_000000.*"), *source.rglob("episode_0.hdf5")):
        broken.write_bytes(b"")
    convert(source, tmp_path / "recording", ImportOptions(skip=[0], processes=1))
    assert read_frames(tmp_path / "recording/frames.parquet")["episode"].tolist() == [1] * STEPS
    pixels = pixels_of(tmp_path / "recording", "cam_high" if layout == "aloha" else "left", 0)
    assert np.abs(pixels - picture(0, 1, 0).astype(float)).mean() < CODEC_ERROR


def test_episodes_are_chosen(tmp_path):
    source = aloha(tmp_path / "set", episodes=range(6))
    import_hdf5(source, tmp_path / "recording", ImportOptions(episodes="1-3, 5", skip=[2], processes=1))
    assert read_frames(tmp_path / "recording/frames.parquet")["episode"].unique().tolist() == [1, 3, 5]
    refused(import_hdf5, source, "--episodes 4-8: no episode 6, 7, 8 in", "it has 0-5", episodes="4-8")
    refused(import_hdf5, source, "--skip 7 --skip 9: no episode 7, 9 in", skip=[9, 2, 7])
    refused(import_hdf5, source, "no episode is left", episodes="1", skip=[1])
    for wrong in ("", "3-1", "a", "1;2", "-1", "0-99999999"):
        refused(import_hdf5, source, f"--episodes {wrong}: give numbers and ranges", episodes=wrong)


def test_of_a_set_that_is_not_whole_the_episodes_that_are_there(tmp_path):
    source = aloha(tmp_path / "set", episodes=range(4))
    for number in (1, 2):
        (source / f"episode_{number}.hdf5").write_text(POINTER)
    refused(import_hdf5, source, "git lfs pull")
    text = import_hdf5(source, tmp_path / "recording", ImportOptions(episodes="present", processes=1))
    assert read_frames(tmp_path / "recording/frames.parquet")["episode"].unique().tolist() == [0, 3]
    assert "2 episodes are not there: left out (1, 2)" in text


@pytest.mark.parametrize("name", ["lerobot", "hdf5"])
def test_the_scripts_say_what_to_do_next(name, stage, tmp_path):
    source = lerobot_v2(tmp_path / "set") if name == "lerobot" else aloha(tmp_path / "set")
    result = stage(f"import_{name}", source, "data/mine", "--size", 24, "--processes", 1)
    assert result.returncode == 0, result.stderr
    assert "2 episodes, 12 frames" in result.stdout
    assert result.stdout.endswith("\nNext, track it and use it:\n  sightline add_recording data/mine\n")
    again = stage(f"import_{name}", source, "data/mine")
    assert "data/mine: exists and is not an empty folder" in only_error_line(again)
