"""HDF5 files of demonstrations: a folder of ALOHA/ACT episode files, or one robomimic file.

ALOHA/ACT   episode_<i>.hdf5     observations/qpos [T, J], action [T, A], observations/images/<camera>,
                                 observations/images_depth/<camera>
robomimic   data/demo_<i>/       obs/<key> [T, ...], actions [T, A], rewards [T]; obs/<camera>_depth

`sightline.importers.robomimic` says what the files tell about themselves, `sightline.importers.stored` how pictures are
stored.
"""

from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from sightline.core.errors import UserError
from sightline.core.hdf5 import DataFile
from sightline.importers.demonstrations import FROM_DATA, Demonstration, write_recording
from sightline.importers.options import (
    PRESENT,
    ImportOptions,
    choose_cameras,
    choose_confidence,
    choose_depth,
    choose_episodes,
)
from sightline.importers.pictures import NO_READING, is_present
from sightline.importers.robomimic import (
    About,
    Place,
    episode_files,
    episode_groups,
    orientation,
    read_about,
    with_part,
)
from sightline.importers.stored import StoredDepth, StoredPictures, encoding_of, is_floating, kind_of, reading
from sightline.recording.frames import first_few
from sightline.recording.layout import DepthInfo

_MEND = "copy the file again, or leave the episode out with --skip"


def import_hdf5(source: Path, target: Path, options: ImportOptions, fps: float | None = None, bgr: bool = False) -> str:
    """Write demonstrations in HDF5 as a recording, and return what was done and what to do next.

    Depth in uint16 is taken for millimetres with 0 for no reading, as ALOHA's RealSense cameras write it; depth in
    floating point is imported only with ``options.depth_unit``, as files do not say its unit.

    Args:
        source: a folder with ALOHA/ACT's ``episode_<i>.hdf5``, or a robomimic file.
        target: folder to write; must be new or empty.
        options: its keys are paths of data sets within an episode. Cameras are for example
            ``observations/images/cam_high`` or ``obs/agentview_image``; the usual joints are ``observations/qpos``,
            ``obs/robot0_joint_pos`` or ``obs/joint_states``, the usual actions ``action`` or ``actions``.
        fps: frames per second; None takes 50 for ALOHA/ACT, whose files do not say it, and robomimic's control_freq.
        bgr: exchange red and blue, for sources whose RGB pictures were encoded by OpenCV.

    Raises:
        UserError: not such files, missing data sets, counts that differ, cameras that are not colour, depth of another
            kind; and see `write_recording`.
    """
    if fps is not None and not (np.isfinite(fps) and fps > 0):
        raise UserError(f"--fps {fps:g}: give frames per second, above 0")
    # which of the two formats it is decides where episodes are
    notes = list[str]()
    if source.is_dir():
        layout, places = _ALOHA, episode_files(source)
        absent = [place.number for place in places if options.episodes == PRESENT and not is_present(place.path)]
        places = [place for place in places if place.number not in absent]
        notes += [f"{len(absent)} episodes are not there: left out ({first_few(absent)})"] if absent else []
        notes += [orientation("", flip=True)[1]] if options.flip else []
        about = About(fps or 50.0, options.flip, {}, {}, [])
    else:
        layout, places = _ROBOMIMIC, episode_groups(source)
        about = read_about(source, places, options.flip, fps)
    remaining = choose_episodes([place.number for place in places], options, source)
    places = [place for place in places if place.number in remaining]
    notes += about.notes
    if about.parts:
        places, words = with_part(places, about.parts, source)
        notes.append(words)
    # the data sets of the first episode are those of all
    with reading(places[0].path) as file:
        chosen = _choose(file, places[0], layout, options, bgr, notes)
    # the tables of the episodes; their pictures are only described
    demonstrations, left_out = [], dict[str, None]()
    for place in places:
        with reading(place.path) as file:
            demonstrations.append(_demonstration(file, place, chosen, about, options, bgr))
            left_out |= dict.fromkeys(_left_out(file, place, chosen.used))
    # neither format names its joints
    joint_names = tuple(f"joint_{i}" for i in range(demonstrations[0].columns["joints"].shape[1]))
    depth = DepthInfo(unit_mm=1.0, invalid=(NO_READING,), height_range=FROM_DATA) if chosen.depth else None
    return write_recording(
        demonstrations, target, about.fps, joint_names, options, left_out=list(left_out), notes=notes, depth=depth
    )


@dataclass(frozen=True)
class _Layout:
    """Where a format usually has what, as paths within an episode."""

    joints: tuple[str, ...]  # the first that is there
    actions: str
    images: str  # group of the cameras
    depth: str  # group of the depth


_ALOHA = _Layout(("observations/qpos",), "action", "observations/images", "observations/images_depth")
_ROBOMIMIC = _Layout(("obs/robot0_joint_pos", "obs/joint_states"), "actions", "obs", "obs")


@dataclass(frozen=True)
class _Chosen:
    """Data sets of an episode that are imported."""

    vectors: dict[str, list[str]]  # joints, actions -> keys
    cameras: dict[str, str]  # key -> name
    depth: dict[str, str]  # key -> name
    confidence: dict[str, str]  # name of a depth camera -> key

    @property
    def used(self) -> set[str]:
        """Keys that need not be named as left out; ``compress_len`` holds lengths of the encoded pictures."""
        vectors = [key for keys in self.vectors.values() for key in keys]
        return {*vectors, *self.cameras, *self.depth, *self.confidence.values(), "rewards", "compress_len"}


def _choose(
    file: DataFile, place: Place, layout: _Layout, options: ImportOptions, bgr: bool, notes: list[str]
) -> _Chosen:
    """The data sets to import, by those of the first episode; what is assumed about them is appended to ``notes``."""
    colour, grey, depth = _image_keys(file, place, layout)
    if grey and not colour and not options.cameras:
        _check_colour(_dataset(file, place, grey[0]), place, grey[0])
    cameras = choose_cameras(options.cameras, colour, place.path)
    notes += _channel_order({name: encoding_of(file, place.key(key)) for key, name in cameras.items()}, bgr)
    imported = _choose_depth(file, place, depth, options, notes)
    unused = [key for key in _names(file, place) if key not in cameras and key not in imported]
    maps = [key for key in unused if len(file[place.key(key)].shape or ()) >= 3]
    confidence = choose_confidence(options.confidence, maps, imported.values(), place.path)
    joints = next((key for key in layout.joints if place.key(key) in file), layout.joints[0])
    vectors = {"joints": list(options.joints) or [joints], "actions": list(options.actions) or [layout.actions]}
    return _Chosen(vectors, cameras, imported, confidence)


def _image_keys(file: DataFile, place: Place, layout: _Layout) -> tuple[list[str], list[str], list[str]]:
    """Keys of the colour cameras of an episode, of what else lies among them, and of the depth."""
    colour, others, depth = list[str](), list[str](), list[str]()
    for folder in dict.fromkeys((layout.images, layout.depth)):
        group = file.get(place.key(folder))
        if folder == layout.images and not isinstance(group, h5py.Group):
            raise UserError(f"{place}: no group {folder} in it; a recording needs camera pictures")
        for name in group if isinstance(group, h5py.Group) else ():
            key = f"{folder}/{name}"
            kind, is_mixed = kind_of(file.get(place.key(key))), layout.images == layout.depth
            if kind == "depth" and (not is_mixed or name.endswith("depth")):  # others are tables of numbers
                depth.append(key)
            elif kind == "encoded" and not is_mixed:
                (colour if folder == layout.images else depth).append(key)
            elif folder == layout.images:
                (colour if kind == "colour" else others).append(key)
    return colour, [] if layout.images == layout.depth else others, depth


def _channel_order(encodings: dict[str, str], bgr: bool) -> list[str]:
    """What is assumed about the channels of encoded cameras, name -> encoding (empty: not encoded)."""
    cameras = [name for name, encoding in encodings.items() if encoding]
    if not cameras:
        return []
    kinds = "/".join(sorted({encodings[name] for name in cameras}))
    order = "blue, green, red, as --bgr says" if bgr else "red, green, blue, as the format defines"
    other = "" if bgr else " (if red and blue are exchanged in the pictures, add --bgr)"
    return [f"{kinds} pictures of {', '.join(cameras)}: channels are taken for {order}{other}"]


def _choose_depth(
    file: DataFile, place: Place, keys: list[str], options: ImportOptions, notes: list[str]
) -> dict[str, str]:
    """The depth to import, key -> name: all there is, but in floating point only where the user says its unit."""
    depth, unit = choose_depth(options.depth, keys, place.path), options.depth_unit
    floating = [key for key in depth if is_floating(file, place.key(key))]
    if len(floating) < len(depth):
        source = "--depth-unit says" if unit else "RealSense cameras write them"
        notes.append(f"depth in uint16: counts are taken for millimetres and 0 for no reading, as {source}")
    words = "depth in floating point, whose unit the file does not say"
    if floating and unit:
        notes.append(f"depth in floating point: taken for {unit}, as --depth-unit says, and rounded to millimetres")
    elif floating and options.depth:
        raise UserError(f"{place}: {floating[0]}: {words}; give --depth-unit m or mm")
    elif floating:
        notes.append(f"{', '.join(floating)}: {words}: not imported; give --depth-unit m or mm to import it")
    return {key: name for key, name in depth.items() if unit or key not in floating}


def _demonstration(
    file: DataFile, place: Place, chosen: _Chosen, about: About, options: ImportOptions, bgr: bool
) -> Demonstration:
    columns = {
        name: np.concatenate([_vectors(file, place, key) for key in keys], axis=1)
        for name, keys in chosen.vectors.items()
    }
    if "rewards" in (file[place.group] if place.group else file):
        columns["reward"] = _dataset(file, place, "rewards")[:].astype(np.float64).reshape(-1)
    steps = len(columns["joints"])
    for name, values in columns.items():
        if len(values) != steps:
            raise UserError(f"{place}: {steps} rows of joints, but {len(values)} of {name}; {_MEND} {place.number}")
    for key in chosen.cameras:
        _check_colour(_dataset(file, place, key), place, key)
    for key in chosen.depth:
        _check_depth(_dataset(file, place, key), place, key)
    for key in (*chosen.cameras, *chosen.depth, *chosen.confidence.values()):
        count = len(_dataset(file, place, key))
        if count != steps:
            raise UserError(f"{place}: {count} pictures in {key}, but {steps} rows of joints; {_MEND} {place.number}")
    if about.tasks:
        columns["task"] = np.full(steps, about.tasks[place.number], object)
    maps = {name: place.key(key) for name, key in chosen.confidence.items()}
    return Demonstration(
        place.number,
        str(place),
        {"time_s": np.arange(steps) / about.fps} | columns,
        {name: StoredPictures(place.path, place.key(key), bgr, about.flip) for key, name in chosen.cameras.items()},
        {
            name: StoredDepth(place.path, place.key(key), options.depth_unit, about.flip, maps.get(name))
            for key, name in chosen.depth.items()
        },
        about.parts.get(place.number),
    )


def _names(file: DataFile, place: Place) -> list[str]:
    """Keys of all data sets of an episode."""
    names: list[str] = []
    (file[place.group] if place.group else file).visititems(
        lambda name, item: names.append(name) if isinstance(item, h5py.Dataset) else None
    )
    return names


def _left_out(file: DataFile, place: Place, used: set[str]) -> list[str]:
    """Keys of an episode that are not ``used``; of groups of which nothing is, the group alone."""
    names = _names(file, place)
    touched = {"/".join(name.split("/")[:n]) for name in used & set(names) for n in range(1, name.count("/") + 1)}
    left = []
    for name in names:
        groups = ["/".join(name.split("/")[:n]) for n in range(1, name.count("/") + 1)]
        if name not in used:
            left.append(next((group for group in groups if group not in touched), name))
    return list(dict.fromkeys(left))


def _dataset(file: DataFile, place: Place, key: str) -> h5py.Dataset:
    dataset = file.get(place.key(key))
    if not isinstance(dataset, h5py.Dataset) or dataset.ndim == 0:
        raise UserError(f"{place}: no data set {key} in it; it has {', '.join(_names(file, place)) or 'none'}")
    return dataset


def _vectors(file: DataFile, place: Place, key: str) -> np.ndarray:
    """Numbers [T, J] or [T] -> [T, J]."""
    dataset = _dataset(file, place, key)
    if dataset.ndim > 2 or dataset.dtype.kind not in "fiu":
        raise UserError(f"{place}: {key}: {dataset.dtype} {dataset.shape}, but numbers [T, joints] are needed")
    values = dataset[:]
    return values.astype(np.float32 if values.dtype == np.float32 else np.float64).reshape(len(values), -1)


def _check_colour(dataset: h5py.Dataset, place: Place, key: str) -> None:
    if kind_of(dataset) not in ("colour", "encoded"):
        raise UserError(
            f"{place}: {key}: {dataset.dtype} {dataset.shape} are not colour pictures (uint8 [T, H, W, 3] or encoded); "
            "name the colour cameras, each with --camera KEY=NAME"
        )


def _check_depth(dataset: h5py.Dataset, place: Place, key: str) -> None:
    if kind_of(dataset) not in ("depth", "encoded"):
        raise UserError(
            f"{place}: {key}: {dataset.dtype} {dataset.shape} are not depth (uint16 or floating point [T, H, W], or "
            "encoded); name the depth to import with --depth KEY=NAME, or none with --depth none"
        )
