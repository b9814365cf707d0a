"""LeRobot data sets, of format v2.0 and v2.1 (a file per episode) and v3.0 (many episodes in a file).

What a set says about itself is read by `lerobot_meta`; its pictures by `lerobot_video`, which also decides which
picture belongs to which row, and `lerobot_pictures`. Data files hold a row per frame: timestamp (seconds in the
episode), frame_index, episode_index, task_index, and the features.
"""

from collections import defaultdict
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sightline.core.errors import UserError
from sightline.importers.demonstrations import Demonstration, write_recording
from sightline.importers.lerobot_faults import EpisodeError, Fault, refuse
from sightline.importers.lerobot_meta import (
    Episode,
    Info,
    joint_names,
    read_episodes,
    read_info,
    read_parquet,
    read_splits,
    read_tasks,
)
from sightline.importers.lerobot_pictures import (
    DepthVideo,
    Flipped,
    ListedDepth,
    StoredDepth,
    StoredPictures,
    depth_codes,
    depth_info,
    unit_of,
)
from sightline.importers.lerobot_video import Places, Span, VideoClip, assign, unused_pictures
from sightline.importers.options import (
    NO_DEPTH,
    PRESENT,
    DepthUnit,
    ImportOptions,
    choose_cameras,
    choose_depth,
    choose_episodes,
)
from sightline.importers.pictures import Pictures, is_present, require_data
from sightline.recording.frames import first_few

Align = Literal["time", "count"]
_OUTCOME = {"reward": "next.reward", "success": "next.success"}
_POSITIONS = {  # columns that a recording may have, under the same names -> whether a shape fits
    "object_position": lambda shape: len(shape) == 1,
    "goal_position": lambda shape: shape == (3,),
}
_TIME = ("timestamp", "frame_index", "episode_index")
_ALWAYS = (*_TIME, "index", "task_index")
_HERTZ = 10  # of the steps of a chunk that fusion learns well


@dataclass(frozen=True)
class _Choice:
    """What is imported: features of the columns, and the cameras and depth, key -> name."""

    features: dict[str, list[str]]
    cameras: dict[str, str]
    depth: dict[str, str]
    units: dict[str, DepthUnit]  # of the depth that is not in codes
    codes: dict[str, tuple[float, float, float, bool] | None]  # of depth videos

    def videos(self, info: Info) -> list[str]:
        return [key for key in (*self.cameras, *self.depth) if info.features[key].has_files]


def import_lerobot(source: Path, target: Path, options: ImportOptions, align: Align = "time") -> str:
    """Write a LeRobot data set as a recording, and return what was done and what to do next.

    Args:
        source: folder that holds ``meta/info.json``.
        target: folder to write; must be new or empty.
        options: its keys are names of features; the usual joints are ``observation.state``, the usual actions
            ``action``.
        align: how pictures of videos are assigned to rows: by ``time``, or by ``count``, which demands as many pictures
            in each file as its episodes have rows.

    Raises:
        UserError: not a LeRobot data set of a version we read, unknown features, cameras that are not colour, depth
            without a unit; all episodes that cannot be imported, a line each (files that are missing, counts that
            differ, rows without a picture at their time); and see `write_recording`.
    """
    info = read_info(source)
    choice = _choose(source, info, options)
    episodes = read_episodes(source, info, choice.videos(info))
    remaining, notes = _remaining(source, episodes, options)
    # the tables of the episodes, and which pictures are theirs; the pictures themselves are only described
    faults: dict[int, Fault] = {}
    tables: dict[int, dict[str, np.ndarray]] = {}
    tasks = _Tasks(source, episodes, info)
    for episode in (e for e in episodes if e.number in remaining):
        try:
            tables[episode.number] = _columns(info, episode, choice.features, tasks)
        except EpisodeError as fault:
            faults[episode.number] = Fault(str(fault))
    places, unused = _places(info, episodes, tables, align, faults)
    refuse(source, faults, len(remaining), sorted(remaining - set(faults)))
    demonstrations = [_demonstration(source, info, e, choice, tables[e.number], places, options.flip)
                      for e in episodes if e.number in remaining]  # fmt: skip
    splits, uncovered = read_splits(info, sorted(remaining))
    demonstrations = [replace(d, split=splits.get(d.number)) for d in demonstrations]
    # what the user should know
    if align == "count" and choice.videos(info):
        notes.append("pictures of videos are assigned to rows by counting, whatever their times (--align count)")
    if unused:
        where = f"{len(unused)} video(s), such as {next(iter(unused)).relative_to(source)}"
        notes.append(f"{sum(unused.values())} picture(s) of {where}, belong to no row")
    labels, missing = _labels(info, choice.features["joints"])
    notes += missing + tasks.notes + uncovered + [_rate(info)]
    known = {*_ALWAYS, *choice.cameras, *choice.depth, *(key for keys in choice.features.values() for key in keys)}
    depth = depth_info([info.features[key] for key in choice.depth], source / "meta/info.json")
    left_out = [key for key in info.features if key not in known]
    if options.flip:
        notes.append("pictures are turned upside down (--flip)")
    return write_recording(
        demonstrations, target, info.fps, labels, options, left_out=left_out, notes=notes, depth=depth
    )


def _choose(source: Path, info: Info, options: ImportOptions) -> _Choice:
    features = {
        "joints": list(options.joints) or ["observation.state"],
        "actions": list(options.actions) or ["action"],
        **{name: [key] for name, key in _OUTCOME.items() if key in info.features and info.features[key].shape == (1,)},
        **{
            key: [key]
            for key, shapes in _POSITIONS.items()
            if key in info.features and shapes(info.features[key].shape)
        },
    }
    for key in (key for keys in features.values() for key in keys):
        _require_vector(key, info, source)
    where = source / "meta/info.json"
    if options.confidence:
        raise UserError(f"--confidence {options.confidence[0]}: is not read from LeRobot sets; leave it out")
    deep = [key for key, feature in info.features.items() if feature.is_depth]
    cameras = choose_cameras(options.cameras, [k for k, f in info.features.items() if f.is_camera], source)
    for key in cameras:
        if not info.features[key].is_colour:
            raise UserError(
                f"{where}: {key}: a greyscale camera, which is not imported; name the colour cameras, each with "
                "--camera KEY=NAME"
            )
    depth = choose_depth(options.depth, deep, source)
    same = sorted(set(depth.values()) & {NO_DEPTH})
    if same:
        raise UserError(f"--depth: {same[0]!r} cannot be the name of depth; name it with --depth KEY=NAME")
    videos = [key for key in depth if info.features[key].has_files]
    codes = {key: depth_codes(key, info.features[key], where) for key in videos}
    counts = [key for key in depth if codes.get(key) is None]
    units = {key: unit_of(key, info.features[key], options.depth_unit, where) for key in counts}
    for key in counts:
        if key in videos and units[key] == "m":
            raise UserError(f"{where}: {key}: a video holds whole numbers, which are not metres; give --depth-unit mm")
    return _Choice(features, cameras, depth, units, codes)


def _require_vector(key: str, info: Info, source: Path) -> None:
    path = source / "meta/info.json"
    if key not in info.features or info.features[key].is_camera or info.features[key].is_depth:
        numbers = [name for name, f in info.features.items() if not f.is_camera and not f.is_depth]
        raise UserError(
            f"{path}: no feature {key!r} with numbers; choose from {', '.join(numbers)} with --joints, --actions"
        )
    if len(info.features[key].shape) != 1:
        raise UserError(f"{path}: {key}: shape {list(info.features[key].shape)}, but one number per joint is needed")


def _labels(info: Info, joints: list[str]) -> tuple[tuple[str, ...], list[str]]:
    """Names of the joints, and a note where they have none of their own."""
    names = {key: joint_names(info.features[key]) for key in joints}
    labels = [name for key in joints for name in names[key] or [""]]
    unnamed = [key for key in joints if names[key] is None]
    if not unnamed and len(set(labels)) == len(labels):
        return tuple(labels), []
    count = sum(info.features[key].shape[0] for key in joints)
    why = (
        f"has no name for each number of {', '.join(unnamed)}" if unnamed else f"uses names twice: {', '.join(joints)}"
    )
    note = f"joints are called joint_0 to joint_{count - 1}: meta/info.json {why}"
    return tuple(f"joint_{i}" for i in range(count)), [note]


def _rate(info: Info) -> str:
    stride = max(1, round(info.fps / _HERTZ))
    robot = f"robot {info.robot_type}, " if info.robot_type else ""
    return f"{robot}{info.fps:g} fps: with fusion.stride: {stride}, the steps of a chunk are {info.fps / stride:.3g} Hz"


def _remaining(source: Path, episodes: list[Episode], options: ImportOptions) -> tuple[set[int], list[str]]:
    """Numbers of the episodes to import, and a note on those whose files are missing."""
    numbers, notes = [e.number for e in episodes], list[str]()
    if options.episodes == PRESENT:
        files = sorted({path for episode in episodes for path in episode.files})
        missing = {path for path in files if not is_present(path)}
        numbers = [e.number for e in episodes if not missing & set(e.files)]
        if len(numbers) < len(episodes):
            names = first_few([path.relative_to(source).as_posix() for path in files if path in missing], 3)
            notes.append(
                f"{len(episodes) - len(numbers)} of {len(episodes)} episodes are not there: {len(missing)} of "
                f"{len(files)} files are missing ({names})"
            )
        if not numbers:
            raise UserError(f"{source}: no episode of {len(episodes)} has all its files; download more of them")
    return choose_episodes(numbers, options, source), notes


class _Tasks:
    """The texts of the tasks, and whether they can be imported."""

    def __init__(self, source: Path, episodes: list[Episode], info: Info) -> None:
        self.texts = read_tasks(source) or {}
        some = any(self.texts.values()) or any(text for episode in episodes for text in episode.tasks)  # not all empty
        self.by_row = some and bool(self.texts) and "task_index" in info.features
        self.one_each = some and all(len(episode.tasks) == 1 for episode in episodes)
        self.notes = []
        if some and not self.by_row and not self.one_each:
            self.notes.append("tasks are not imported: neither rows nor episodes say which of several is theirs")

    def of(self, rows: pa.Table, episode: Episode, label: str) -> np.ndarray | None:
        """Texts [T] of the tasks of an episode's rows."""
        if self.by_row:
            numbers = rows.column("task_index").to_pylist()
            unknown = sorted({str(number) for number in numbers if number not in self.texts})
            if unknown:
                raise EpisodeError(f"{label}: task_index {first_few(unknown)}: no such task in meta/tasks")
            return np.array([self.texts[number] for number in numbers], object)
        return np.array(list(episode.tasks) * rows.num_rows, object) if self.one_each else None


def _label(info: Info, episode: Episode) -> str:
    return str(episode.data) if info.is_v2 else f"{episode.data}: episode {episode.number}"


def _columns(info: Info, episode: Episode, features: dict[str, list[str]], tasks: _Tasks) -> dict[str, np.ndarray]:
    """The table of an episode. Raises `EpisodeError` where this episode is at fault, else `UserError`."""
    for path in episode.files:
        try:
            require_data(path)
        except UserError as error:
            raise EpisodeError(str(error)) from None
    keys = [key for group in features.values() for key in group]
    wanted = tuple(dict.fromkeys((*_TIME, *keys, *(("task_index",) if tasks.by_row else ()))))
    try:
        file = episode.data.stat()
        rows = _read_rows(episode.data, wanted, file.st_size, file.st_mtime_ns)
    except UserError as error:
        raise EpisodeError(str(error)) from None
    rows = rows.filter(pc.field("episode_index") == episode.number).sort_by("frame_index")
    label = _label(info, episode)
    if rows.num_rows != episode.length or not rows.num_rows:
        raise EpisodeError(
            f"{label}: {rows.num_rows} rows, but meta/episodes says length {episode.length}; copy the data set again"
        )
    steps = rows.column("frame_index").to_numpy()
    wrong = np.flatnonzero(steps != np.arange(len(steps)))
    if len(wrong):
        raise EpisodeError(f"{label}: frame_index: not 0, 1, 2 ... (rows {first_few(wrong)}); frames are missing")
    columns = {"time_s": _numbers(rows, "timestamp", 1, label)[:, 0].astype(np.float64)}
    for name, group in features.items():
        columns[name] = np.concatenate([_numbers(rows, k, info.features[k].shape[0], label) for k in group], axis=1)
    for name, values in columns.items():
        bad = np.flatnonzero(~np.isfinite(values.reshape(len(steps), -1)).all(axis=1))
        if len(bad):
            raise EpisodeError(
                f"{label}: {name}: {len(bad)} of {len(steps)} rows hold NaN or infinity (rows {first_few(bad)})"
            )
    falls = np.flatnonzero(np.diff(columns["time_s"]) <= 0) + 1
    if len(falls):
        raise EpisodeError(f"{label}: time does not rise at {len(falls)} of {len(steps)} rows ({first_few(falls)})")
    for name in _OUTCOME.keys() & columns.keys():
        columns[name] = columns[name][:, 0]
    if "success" in columns:
        columns["success"] = columns["success"].astype(bool)
    texts = tasks.of(rows, episode, label)
    return columns if texts is None else columns | {"task": texts}


def _numbers(rows: pa.Table, key: str, width: int, label: str) -> np.ndarray:
    """A column of numbers, or of lists of ``width`` numbers -> [T, width]; a missing number becomes NaN."""
    column = rows.column(key).combine_chunks()
    is_list = hasattr(column.type, "value_type")
    lengths = pc.list_value_length(column).to_numpy(zero_copy_only=False) if is_list else np.array([1])
    try:
        if (lengths != width).any():
            raise ValueError
        values = (pc.list_flatten(column) if is_list else column).to_numpy(zero_copy_only=False)
        return values.astype(np.float32 if values.dtype == np.float32 else np.float64).reshape(-1, width)
    except (TypeError, ValueError):
        raise UserError(f"{label}: {key}: expected {width} numbers in each row, as meta/info.json says") from None


@lru_cache(maxsize=1)  # the episodes of a file come one after the other
def _read_rows(path: Path, columns: tuple[str, ...], *_: int) -> pa.Table:
    return read_parquet(path, list(columns))


def _places(
    info: Info,
    episodes: list[Episode],
    tables: dict[int, dict[str, np.ndarray]],
    align: Align,
    faults: dict[int, Fault],
) -> tuple[dict[tuple[str, int], Places], dict[Path, int]]:
    """Which pictures of a video belong to an episode's rows, (key, number) -> places; pictures that none needs.

    Adds to ``faults`` the episodes that have no picture for each row.
    """
    groups: dict[tuple[str, Path], list[Span]] = defaultdict(list)
    for e in episodes:
        # rows that are not imported are taken to be a period apart: their places tell whether those of others are right
        regular = np.unique([0.0, max(0, e.length - 1) / info.fps])
        times = tables[e.number]["time_s"] if e.number in tables else regular
        for key, (path, start) in e.videos.items():
            groups[key, path].append(Span(e.number, e.length, start, times))
    places: dict[tuple[str, int], Places] = {}
    unused: dict[Path, int] = {}
    for (key, path), spans in groups.items():
        if not any(span.episode in tables for span in spans):
            continue
        try:
            answers = assign(path, spans, info.fps, count=align == "count")
            unused[path] = unused_pictures(path, spans)
        except UserError as error:
            answers = {span.episode: Fault(str(error)) for span in spans}
        for number, answer in answers.items():
            if number not in tables or number in faults:
                continue
            if isinstance(answer, Fault):
                faults[number] = answer
            else:
                places[key, number] = answer
    return places, {path: count for path, count in unused.items() if count > 0}


def _demonstration(
    source: Path,
    info: Info,
    episode: Episode,
    choice: _Choice,
    columns: dict[str, np.ndarray],
    places: dict[tuple[str, int], Places],
    flip: bool,
) -> Demonstration:
    def of(key: str) -> Pictures:
        feature, at = info.features[key], places.get((key, episode.number))
        stored = StoredPictures(episode.data, key, episode.number, source)
        pictures: Pictures
        if at is not None:
            path = episode.videos[key][0]
            pictures = DepthVideo(path, at, choice.codes[key]) if key in choice.depth else VideoClip(path, at)
        elif key not in choice.depth:
            pictures = stored
        elif feature.dtype == "image":
            pictures = StoredDepth(stored, choice.units[key])
        else:
            pictures = ListedDepth(episode.data, key, episode.number, feature.shape, feature.dtype, choice.units[key])
        return Flipped(pictures) if flip else pictures

    return Demonstration(
        episode.number,
        _label(info, episode),
        columns,
        {name: of(key) for key, name in choice.cameras.items()},
        {name: of(key) for key, name in choice.depth.items()},
    )
