"""What HDF5 files say about their episodes: where they are, and what robomimic's attributes and masks tell of them.

data, attributes     env_args: JSON with env_kwargs.control_freq, frames per second
                     macros_image_convention: opengl, whose rows go from the bottom to the top, or opencv (LIBERO)
                     problem_info: JSON with language_instruction, the task of all demos (LIBERO)
data/demo_<i>        ep_meta: JSON with lang, the task of the demo (RoboCasa)
mask/<name>          names of demos; train, valid and test are the published split
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from sightline.core.errors import UserError
from sightline.core.hdf5 import DataFile
from sightline.importers.stored import reading
from sightline.recording.frames import first_few

_PARTS = {"train": "train", "valid": "val", "test": "test"}  # robomimic's name -> ours


@dataclass(frozen=True)
class Place:
    """Where an episode is: its number, its file, and its group there (empty: the whole file)."""

    number: int
    path: Path
    group: str

    def key(self, name: str) -> str:
        return f"{self.group}/{name}" if self.group else name

    def __str__(self) -> str:
        return f"{self.path}: {self.group}" if self.group else str(self.path)


@dataclass(frozen=True)
class About:
    """What a source says about all its episodes."""

    fps: float
    flip: bool  # whether pictures are to be turned
    parts: dict[int, str]  # number of the episode -> train, val or test; empty: no published split
    tasks: dict[int, str]  # number of the episode -> its task; empty: none is named
    notes: list[str]


def episode_files(folder: Path) -> list[Place]:
    numbers = {path: re.fullmatch(r"episode_(\d+)\.hdf5", path.name) for path in sorted(folder.iterdir())}
    places = [Place(int(number[1]), path, "") for path, number in numbers.items() if number]
    if not places:
        raise UserError(f"{folder}: no episode_<i>.hdf5 in it; name a folder of ALOHA/ACT episodes or a robomimic file")
    return sorted(places, key=lambda place: place.number)


def episode_groups(path: Path) -> list[Place]:
    """The demos of a robomimic file. Raises `UserError` where it is another file."""
    with reading(path) as file:
        if "observations" in file:
            raise UserError(f"{path}: a single ALOHA/ACT episode; name the folder of all of them")
        data = file.get("data")
        numbers = [re.fullmatch(r"demo_(\d+)", name) for name in data] if isinstance(data, h5py.Group) else []
    places = [Place(int(number[1]), path, f"data/{number[0]}") for number in numbers if number]
    if not places:
        raise UserError(f"{path}: not a robomimic file: no data/demo_<i> in it")
    return sorted(places, key=lambda place: place.number)


def read_about(path: Path, places: list[Place], flip: bool, fps: float | None) -> About:
    """What the attributes and masks of a robomimic file say about its demos.

    Args:
        flip: whether the user turns the pictures, see `orientation`.
        fps: what the user says; None: the file's control_freq.

    Raises:
        UserError: no control_freq, masks that are none, a demo in two parts of the split.
    """
    with reading(path) as file:
        data, notes = file["data"].attrs, list[str]()
        try:
            rate = fps or float(_json(data.get("env_args"))["env_kwargs"]["control_freq"])
        except (KeyError, TypeError, ValueError):
            raise UserError(
                f"{path}: env_args of data has no control_freq; give the frames per second with --fps"
            ) from None
        turned, words = orientation(_text(data.get("macros_image_convention")), flip)
        notes.append(words)
        parts = _read_masks(file, places, notes)
        of_all = _text(_json(data.get("problem_info")).get("language_instruction"))
        tasks = {p.number: _text(_json(file[p.group].attrs.get("ep_meta")).get("lang")) or of_all for p in places}
    return About(rate, turned, parts, tasks if any(tasks.values()) else {}, notes)


def orientation(convention: str, flip: bool) -> tuple[bool, str]:
    """Whether to turn the pictures of a file, and what to say about it.

    Args:
        convention: what the file says: ``opengl``, rows from the bottom to the top; ``opencv``; empty: nothing.
        flip: ``--flip``: do the opposite.
    """
    said = f"macros_image_convention is {convention}" if convention else "the file does not say which way is up"
    if flip:
        how = "imported as they are" if convention == "opengl" else "turned upside down"
        return convention != "opengl", f"pictures are {how}, as --flip says ({said})"
    if convention == "opengl":
        return True, f"pictures are turned upright: {said}, rows from the bottom to the top (--flip leaves them)"
    return False, f"pictures are imported as they are: {said} (--flip turns them upside down)"


def _text(value: Any) -> str:
    value = value.decode("utf-8", "replace") if isinstance(value, bytes) else value
    return value.strip() if isinstance(value, str) else ""


def _json(text: Any) -> dict[str, Any]:
    """What an attribute holds in JSON; empty where it holds none."""
    try:
        value = json.loads(_text(text))
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _read_masks(file: DataFile, places: list[Place], notes: list[str]) -> dict[int, str]:
    """The published split, number of the demo -> part; empty where ``mask/train`` is not there."""
    group = file.get("mask")
    masks = list(group) if isinstance(group, h5py.Group) else []
    published = [name for name in _PARTS if name in masks] if "train" in masks else []
    unused = [f"mask/{name}" for name in masks if name not in published]
    notes += [f"not used: {', '.join(unused)}"] if unused else []
    numbers, parts, unknown = {p.group: p.number for p in places}, dict[int, str](), 0
    for name in published:
        for value in np.asarray(_masked(file, name)):
            number = numbers.get(f"data/{_text(value)}")
            unknown += number is None
            if number is not None and parts.setdefault(number, _PARTS[name]) != _PARTS[name]:
                other = next(key for key, part in _PARTS.items() if part == parts[number])
                raise UserError(
                    f"{file.filename}: demo_{number} is in mask/{other} and mask/{name}; take it out of one of them"
                )
    if published and "train" not in parts.values():
        raise UserError(f"{file.filename}: mask/train names no demo of the file; write it again, or delete the masks")
    notes += [f"masks name {unknown} demos that are not in the file"] if unknown else []
    return parts


def _masked(file: DataFile, name: str) -> np.ndarray:
    dataset = file[f"mask/{name}"]
    if not isinstance(dataset, h5py.Dataset) or dataset.ndim != 1 or dataset.dtype.kind not in "OS":
        raise UserError(f"{file.filename}: mask/{name}: not a list of names of demos; write it again, or delete it")
    return np.asarray(dataset[:])


def with_part(places: list[Place], parts: dict[int, str], source: Path) -> tuple[list[Place], str]:
    """The demos that have a part of the published split, and what to say about it."""
    remaining = [place for place in places if place.number in parts]
    counts = {part: sum(parts[place.number] == part for place in remaining) for part in _PARTS.values()}
    if not counts["train"]:
        raise UserError(f"{source}: no demo of mask/train is left; skip fewer with --skip, or change --episodes")
    words = "split by the masks: " + ", ".join(f"{part} {count}" for part, count in counts.items() if count)
    drawn = [part for part in ("val", "test") if not counts[part]]
    words += f"; {' and '.join(drawn)} will be drawn from train by data.split" if drawn else ""
    odd = [place.number for place in places if place.number not in parts]
    words += f"; left out, as no mask has them: {len(odd)} of {len(places)} demos ({first_few(odd)})" if odd else ""
    return remaining, words
