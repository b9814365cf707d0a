"""HDF5 files of demonstrations: a folder of ALOHA/ACT episode files, or one robomimic file.

ALOHA/ACT   episode_<i>.hdf5     observations/qpos [T, J], action [T, A], observations/images/<camera>
robomimic   data/demo_<i>/       obs/<key> [T, ...], actions [T, A], rewards [T]; attribute env_args of data

Pictures are uint8 [T, H, W, 3], or encoded (JPEG, PNG): a row of bytes for each, [T, L] filled up with zeros (files
with the attribute ``compress``) or of its own length.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from sightline.core.errors import UserError
from sightline.core.hdf5 import open_hdf5
from sightline.importers.demonstrations import Demonstration, write_recording
from sightline.importers.options import ImportOptions, choose_cameras, choose_episodes
from sightline.importers.pictures import decode_picture, require_data

_BLOCK = 16  # pictures read at a time: chunks of the file may hold several
_MEND = "copy the file again, or leave the episode out with --skip"


@dataclass(frozen=True)
class StoredPictures:
    """Pictures in a data set of an HDF5 file; ``bgr``: their channels are blue, green, red."""

    path: Path
    key: str
    bgr: bool

    def __iter__(self) -> Iterator[np.ndarray]:
        with _reading(self.path) as file:
            dataset = file[self.key]
            for start in range(0, len(dataset), _BLOCK):
                for step, value in enumerate(dataset[start : start + _BLOCK], start=start):
                    encoded = value.ndim < 3
                    where = f"{self.path}: {self.key}, picture {step}"
                    pixels = decode_picture(value.tobytes(), where) if encoded else value
                    yield np.ascontiguousarray(pixels[..., ::-1]) if self.bgr else pixels


def import_hdf5(source: Path, target: Path, options: ImportOptions, fps: float | None = None, bgr: bool = False) -> str:
    """Write demonstrations in HDF5 as a recording, and return what was done and what to do next.

    Args:
        source: a folder with ALOHA/ACT's ``episode_<i>.hdf5``, or a robomimic file.
        target: folder to write; must be new or empty.
        options: its keys are paths of data sets within an episode. Cameras are for example
            ``observations/images/cam_high`` or ``obs/agentview_image``; the usual joints are ``observations/qpos`` or
            ``obs/robot0_joint_pos``, the usual actions ``action`` or ``actions``.
        fps: frames per second; None takes 50 for ALOHA/ACT, whose files do not say it, and robomimic's control_freq.
        bgr: exchange red and blue, for sources whose RGB pictures were encoded by OpenCV.

    Raises:
        UserError: not such files, missing data sets, counts that differ, cameras that are not colour; and see
            `write_recording`.
    """
    if fps is not None and not (np.isfinite(fps) and fps > 0):
        raise UserError(f"--fps {fps:g}: give frames per second, above 0")
    # which of the two formats it is decides where episodes are, and the usual keys
    if source.is_dir():
        places, usual = _episode_files(source), ("observations/qpos", "action", "observations/images")
        fps = fps or 50.0
    else:
        places, usual = _episode_groups(source), ("obs/robot0_joint_pos", "actions", "obs")
        fps = fps or _control_frequency(source)
    vectors = {"joints": list(options.joints) or [usual[0]], "actions": list(options.actions) or [usual[1]]}
    remaining = choose_episodes([place.number for place in places], options, source)
    places = [place for place in places if place.number in remaining]
    # the cameras of the first episode are those of all
    first = places[0]
    with _reading(first.path) as file:
        names = choose_cameras(options.cameras, _cameras(file, first, usual[2]), first.path)
    demonstrations = [_demonstration(place, vectors, names, fps, bgr) for place in places]
    # neither format names its joints
    joint_names = tuple(f"joint_{i}" for i in range(demonstrations[0].columns["joints"].shape[1]))
    return write_recording(demonstrations, target, fps, joint_names, options)


@dataclass(frozen=True)
class _Place:
    """Where an episode is: its number, its file, and its group there (empty: the whole file)."""

    number: int
    path: Path
    group: str

    def key(self, name: str) -> str:
        return f"{self.group}/{name}" if self.group else name

    def __str__(self) -> str:
        return f"{self.path}: {self.group}" if self.group else str(self.path)


def _episode_files(folder: Path) -> list[_Place]:
    numbers = {path: re.fullmatch(r"episode_(\d+)\.hdf5", path.name) for path in sorted(folder.iterdir())}
    places = [_Place(int(number[1]), path, "") for path, number in numbers.items() if number]
    if not places:
        raise UserError(f"{folder}: no episode_<i>.hdf5 in it; name a folder of ALOHA/ACT episodes or a robomimic file")
    return sorted(places, key=lambda place: place.number)


def _episode_groups(path: Path) -> list[_Place]:
    with _reading(path) as file:
        if "observations" in file:
            raise UserError(f"{path}: a single ALOHA/ACT episode; name the folder of all of them")
        data = file.get("data")
        numbers = [re.fullmatch(r"demo_(\d+)", name) for name in data] if isinstance(data, h5py.Group) else []
    places = [_Place(int(number[1]), path, f"data/{number[0]}") for number in numbers if number]
    if not places:
        raise UserError(f"{path}: not a robomimic file: no data/demo_<i> in it")
    return sorted(places, key=lambda place: place.number)


def _control_frequency(path: Path) -> float:
    with _reading(path) as file:
        try:
            return float(json.loads(file["data"].attrs["env_args"])["env_kwargs"]["control_freq"])
        except UserError:
            raise
        except (KeyError, TypeError, ValueError):
            raise UserError(
                f"{path}: env_args of data has no control_freq; give the frames per second with --fps"
            ) from None


def _cameras(file: h5py.File, place: _Place, folder: str) -> list[str]:
    """Keys of the data sets with pictures in ``folder`` of an episode: all, but in robomimic's ``obs`` the 4-D ones."""
    group = file.get(place.key(folder))
    if not isinstance(group, h5py.Group):
        raise UserError(f"{place}: no group {folder} in it; a recording needs camera pictures")
    mixed = folder == "obs"
    return [f"{folder}/{name}" for name, item in group.items() if not mixed or getattr(item, "ndim", 0) == 4]


def _demonstration(
    place: _Place, vectors: dict[str, list[str]], cameras: dict[str, str], fps: float, bgr: bool
) -> Demonstration:
    with _reading(place.path) as file:
        columns = {
            name: np.concatenate([_vectors(file, place, key) for key in keys], axis=1) for name, keys in vectors.items()
        }
        if "rewards" in (file[place.group] if place.group else file):
            columns["reward"] = _dataset(file, place, "rewards")[:].astype(np.float64).reshape(-1)
        steps = len(columns["joints"])
        for name, values in columns.items():
            if len(values) != steps:
                raise UserError(f"{place}: {steps} rows of joints, but {len(values)} of {name}; {_MEND} {place.number}")
        for key in cameras:
            _check_pictures(_dataset(file, place, key), place, key, steps)
    time = {"time_s": np.arange(steps) / fps}
    pictures = {name: StoredPictures(place.path, place.key(key), bgr) for key, name in cameras.items()}
    return Demonstration(place.number, str(place), time | columns, dict(pictures))


def _dataset(file: h5py.File, place: _Place, key: str) -> h5py.Dataset:
    dataset = file.get(place.key(key))
    if not isinstance(dataset, h5py.Dataset) or dataset.ndim == 0:
        names: list[str] = []
        (file[place.group] if place.group else file).visititems(
            lambda name, item: names.append(name) if isinstance(item, h5py.Dataset) else None
        )
        raise UserError(f"{place}: no data set {key} in it; it has {', '.join(names) or 'none'}")
    return dataset


def _vectors(file: h5py.File, place: _Place, key: str) -> np.ndarray:
    """Numbers [T, J] or [T] -> [T, J]."""
    dataset = _dataset(file, place, key)
    if dataset.ndim > 2 or dataset.dtype.kind not in "fiu":
        raise UserError(f"{place}: {key}: {dataset.dtype} {dataset.shape}, but numbers [T, joints] are needed")
    values = dataset[:]
    return values.astype(np.float32 if values.dtype == np.float32 else np.float64).reshape(len(values), -1)


def _check_pictures(dataset: h5py.Dataset, place: _Place, key: str, steps: int) -> None:
    encoded = (dataset.ndim == 2 and dataset.dtype == np.uint8) or (dataset.ndim == 1 and dataset.dtype.kind in "OSV")
    if not encoded and not (dataset.ndim == 4 and dataset.shape[3] == 3 and dataset.dtype == np.uint8):
        raise UserError(
            f"{place}: {key}: {dataset.dtype} {dataset.shape} are not colour pictures (uint8 [T, H, W, 3] or encoded); "
            "name the colour cameras, each with --camera KEY=NAME"
        )
    if len(dataset) != steps:
        raise UserError(
            f"{place}: {len(dataset)} pictures in {key}, but {steps} rows of joints; {_MEND} {place.number}"
        )


def _reading(path: Path) -> h5py.File:
    """Open an HDF5 file, unless it is a git-LFS pointer."""
    return open_hdf5(require_data(path))
