"""What the commands share: kinds of data and outputs, and the pictures of recorded videos."""

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np

from sightline.core.errors import UserError

BATCH = 32
VIDEOS = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi")
Kind = Literal["colour", "grey", "depth"]
_TAKEN = {
    "colour": "pictures of 8 bits", "grey": "grey pictures of 8 bits", "depth": "depth, grey of 16 bits",
}  # fmt: skip


def check_suffix(output: Path, *suffixes: str) -> None:
    """Raise `UserError` unless the name of the output ends in one of these."""
    if output.suffix not in suffixes:
        raise UserError(f"{output}: the name of the output ends in {' or '.join(suffixes)}")


def check_new_folder(output: Path) -> None:
    """Raise `UserError` where the output is there, and is not an empty folder."""
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UserError(f"{output}: is there already; name a folder to make")


def is_video(path: Path) -> bool:
    """Whether the name of a file is that of a video."""
    return path.suffix.lower() in VIDEOS and not path.is_dir()


def count_pictures(video: Path) -> int:
    """How many pictures a video has. Raises `UserError` for a broken one."""
    from sightline.importers.lerobot_video import picture_times

    return len(picture_times(video)[0])


def read_video(video: Path, kind: Kind, model_file: Path) -> Iterator[np.ndarray]:
    """Pictures of a video in order: uint8 RGB [H, W, 3], uint8 grey [H, W], or depth as raw counts, uint16 [H, W].

    Grey pictures are colour pictures, too, as in files of images.

    Raises:
        UserError: a broken video, or one of another kind than ``model_file`` takes.
    """
    from sightline.importers.lerobot_video import decoded

    how = {"colour": "rgb24", "grey": "gray", "depth": "gray16le"}[kind]
    for frame in decoded(video, range(count_pictures(video))):
        is_grey, bits = len(frame.format.components) < 3, frame.format.components[0].bits
        fits = {"colour": not is_grey or bits == 8, "grey": is_grey and bits == 8, "depth": is_grey and bits == 16}
        if not fits[kind]:
            stored = f"{'grey' if is_grey else 'colour'} of {bits} bits ({frame.format.name})"
            raise UserError(f"{video}: pictures are {stored}, but {model_file} takes {_TAKEN[kind]}")
        yield frame.to_ndarray(format=how)
