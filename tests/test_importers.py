"""What both importers of demonstrations do."""

import numpy as np
import pytest
from conftest import only_error_line
from data_sets import CODEC_ERROR, LEROBOT, STEPS, aloha, lerobot_v2, picture, pixels_of, refused

from sightline.importers.demonstrations import ImportOptions
from sightline.importers.episodes import import_hdf5
from sightline.importers.lerobot import import_lerobot
from sightline.recording.frames import read_frames


@pytest.mark.parametrize("layout", ["v2.1", "v3.0", "aloha"])
def test_episodes_are_left_out(layout, tmp_path):
    source = aloha(tmp_path / "set") if layout == "aloha" else LEROBOT[layout](tmp_path / "set")
    convert = import_hdf5 if layout == "aloha" else import_lerobot
    refused(convert, source, "--skip 7", "0, 1", skip=[7])
    refused(convert, source, "no episode is left", skip=[0, 1])
    for broken in (*source.rglob("episode_000000.*"), *source.rglob("episode_0.hdf5")):
        broken.write_bytes(b"")
    convert(source, tmp_path / "recording", ImportOptions(skip=[0], processes=1))
    assert read_frames(tmp_path / "recording/frames.parquet")["episode"].tolist() == [1] * STEPS
    pixels = pixels_of(tmp_path / "recording", "cam_high" if layout == "aloha" else "left", 0)
    assert np.abs(pixels - picture(0, 1, 0).astype(float)).mean() < CODEC_ERROR


@pytest.mark.parametrize("name", ["lerobot", "hdf5"])
def test_the_scripts_say_what_to_do_next(name, stage, tmp_path):
    source = lerobot_v2(tmp_path / "set") if name == "lerobot" else aloha(tmp_path / "set")
    result = stage(f"import_{name}", source, "data/mine", "--size", 24, "--processes", 1)
    assert result.returncode == 0, result.stderr
    assert "2 episodes, 12 frames" in result.stdout
    assert result.stdout.endswith("\nNext, track it and use it:\n  python stages/add_recording.py data/mine\n")
    again = stage(f"import_{name}", source, "data/mine")
    assert "data/mine: exists and is not an empty folder" in only_error_line(again)
