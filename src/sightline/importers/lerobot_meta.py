"""What a LeRobot data set says about itself: features, joint names, episodes and where their files are, task texts.

meta/info.json                       codebase_version, fps, features, data_path and video_path (patterns)
v2: meta/episodes.jsonl              episode_index, length; data_path and video_path give one file per episode
    meta/tasks.jsonl                 task_index, task
v3: meta/episodes/*/*.parquet        episode_index, length, data/{chunk,file}_index, and for each camera
                                     videos/<key>/{chunk_index,file_index,from_timestamp}
    meta/tasks.parquet               task_index, and task as a column or as the row labels of pandas
"""

import json
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, Field, ValidationError

from sightline.core.errors import UserError, first_fault
from sightline.importers.pictures import require_data
from sightline.recording.frames import first_few

VERSIONS = ("v2.0", "v2.1", "v3.0")


class Feature(BaseModel):
    """What ``info.json`` says about one feature; keys that we do not need are ignored."""

    dtype: str
    shape: tuple[int, ...]
    names: Any = None
    info: dict[str, Any] | None = None
    video_info: dict[str, Any] | None = None  # what older sets call ``info``

    @property
    def about(self) -> dict[str, Any]:
        """Both infos, without the prefix ``video.`` that some keys have."""
        about = (self.video_info or {}) | (self.info or {})
        return {key.removeprefix("video."): value for key, value in about.items()}

    @property
    def has_files(self) -> bool:
        """Whether its pictures are in a video."""
        return self.dtype in ("video", "depth_video")

    @property
    def is_depth(self) -> bool:
        one_channel = len(self.shape) == 2 or (len(self.shape) == 3 and 1 in (self.shape[0], self.shape[2]))
        if self.dtype == "depth_video" or (self.dtype in ("uint16", "float32") and len(self.shape) > 1 and one_channel):
            return self.dtype != "float32" or bool(self.about.get("is_depth_map"))
        return self.dtype in ("video", "image") and bool(self.about.get("is_depth_map"))

    @property
    def is_camera(self) -> bool:
        return self.dtype in ("video", "image") and not self.is_depth

    @property
    def is_colour(self) -> bool:
        return self.is_camera and len(self.shape) == 3 and 3 in self.shape


class Info(BaseModel):
    """``meta/info.json``."""

    codebase_version: str
    fps: float = Field(gt=0)
    features: dict[str, Feature]
    data_path: str
    video_path: str | None = None
    robot_type: str | None = None
    chunks_size: int = Field(default=1000, gt=0)
    total_episodes: int | None = None
    splits: dict[str, Any] | None = None

    @property
    def is_v2(self) -> bool:
        return self.codebase_version.startswith("v2")


@dataclass(frozen=True)
class Episode:
    """An episode: its rows are in ``data``, its pictures in ``videos``, key -> file and second at which they begin."""

    number: int
    length: int
    data: Path
    videos: dict[str, tuple[Path, float]]
    tasks: tuple[str, ...]  # empty where the set does not say

    @property
    def files(self) -> list[Path]:
        return [self.data, *(path for path, _ in self.videos.values())]


def read_info(source: Path) -> Info:
    """Read ``meta/info.json``. Raises `UserError` where it is missing, wrong, or of a version that we do not read."""
    path = source / "meta/info.json"
    if not path.is_file():
        raise UserError(f"{source}: not a LeRobot data set: no meta/info.json in it; name the folder that holds meta/")
    require_data(path)
    try:
        info = Info.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except ValidationError as error:
        raise UserError(f"{path}: {first_fault(error)}; not a LeRobot data set of {', '.join(VERSIONS)}") from None
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON: {error}") from None
    if info.codebase_version not in VERSIONS:
        raise UserError(
            f"{path}: codebase_version: {info.codebase_version!r} is not one of {', '.join(VERSIONS)}; "
            "convert the data set with LeRobot's own scripts"
        )
    return info


def joint_names(feature: Feature) -> list[str] | None:
    """The feature's own names of its numbers, in their order; None if it has none that fit.

    In use are ``["a", "b"]``, ``{"motors": ["a", "b"]}``, ``[["a", "b"]]``, places ``{"b": 1, "a": 0}``, and slices
    ``{"a": {"start": 0, "end": 1}}`` or ``{"a": [0, 1]}``, whose numbers become a_0, a_1 ... where there are several.
    """
    names, count = feature.names, feature.shape[0]
    if isinstance(names, dict) and names:
        slices = {name: _slice(value) for name, value in names.items()}
        ends = [end for end in slices.values() if end]
        if len(ends) == len(slices):
            places = sorted((start, end, name) for name, (start, end) in zip(slices, ends, strict=True))
            follow = [start for start, _, _ in places] == [0, *(end for _, end, _ in places)][:-1]
            if not follow or places[-1][1] != count:
                return None
            names = [
                name if end - start == 1 else f"{name}_{i}" for start, end, name in places for i in range(end - start)
            ]
        else:
            names = list(names.values())
    if isinstance(names, list) and any(isinstance(group, list) for group in names):
        names = [name for group in names for name in (group if isinstance(group, list) else [group])]
    fits = isinstance(names, list) and len(names) == count == len(set(map(str, names)))
    return names if fits and all(isinstance(name, str) and name for name in names) else None


def _slice(value: Any) -> tuple[int, int] | None:
    """First and last-but-one place of the numbers that ``value`` gives to a name."""
    if isinstance(value, dict):
        value = [value.get("start"), value.get("end")]
    if isinstance(value, list) and len(value) == 2 and all(type(end) is int for end in value):
        return (value[0], value[1]) if 0 <= value[0] < value[1] else None
    return (value, value + 1) if type(value) is int and value >= 0 else None


def read_episodes(source: Path, info: Info, videos: list[str]) -> list[Episode]:
    """All episodes of a set, with the places of these videos.

    Raises:
        UserError: no episodes, keys that are missing, patterns of paths that cannot be filled in.
    """
    if videos and not info.video_path:
        raise UserError(f"{source / 'meta/info.json'}: video_path: is missing, but {videos[0]} is a video")
    rows = _rows_v2(source) if info.is_v2 else _rows_v3(source, videos)
    where = source / ("meta/episodes.jsonl" if info.is_v2 else "meta/episodes")
    if not rows:
        raise UserError(f"{where}: no episodes in it")
    if info.total_episodes is not None and len(rows) != info.total_episodes:
        raise UserError(
            f"{where}: {len(rows)} episodes, but meta/info.json says total_episodes: {info.total_episodes}; "
            "copy the data set again, whole"
        )
    try:
        episodes = [(_episode_v2 if info.is_v2 else _episode_v3)(source, info, row, videos) for row in rows]
        twice = [number for number, count in Counter(e.number for e in episodes).items() if count > 1]
        if twice:
            raise UserError(f"{where}: episode_index: {first_few(twice)} occurs twice; copy the data set again")
        return episodes
    except UserError:
        raise
    except KeyError as error:
        raise UserError(f"{where}: an episode lacks {error}; convert the data set again") from None
    except (TypeError, ValueError):
        raise UserError(
            f"{where}: an episode whose number, length, place or from_timestamp is not a number; convert the set again"
        ) from None


def _rows_v2(source: Path) -> list[dict[str, Any]]:
    return _json_lines(source / "meta/episodes.jsonl")


def _json_lines(path: Path) -> list[dict[str, Any]]:
    require_data(path)
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON lines: {error}") from None


def _episode_v2(source: Path, info: Info, row: dict[str, Any], videos: list[str]) -> Episode:
    number = int(row["episode_index"])
    place = {"episode_chunk": number // info.chunks_size, "episode_index": number}
    files = {key: (_place(source, info, "video_path", video_key=key, **place), 0.0) for key in videos}
    data = _place(source, info, "data_path", **place)
    return Episode(number, int(row["length"]), data, files, _tasks_of(row))


def _rows_v3(source: Path, videos: list[str]) -> list[dict[str, Any]]:
    columns = ["episode_index", "length", "data/chunk_index", "data/file_index"]
    for key in videos:
        columns += [f"videos/{key}/{part}" for part in ("chunk_index", "file_index", "from_timestamp")]
    paths = sorted((source / "meta/episodes").glob("chunk-*/file-*.parquet"))
    return [row for path in paths for row in read_parquet(path, columns, further=["tasks"]).to_pylist()]


def _episode_v3(source: Path, info: Info, row: dict[str, Any], videos: list[str]) -> Episode:
    def place(prefix: str) -> dict[str, int]:
        return {part: int(row[f"{prefix}/{part}"]) for part in ("chunk_index", "file_index")}

    files = {}
    for key in videos:
        path = _place(source, info, "video_path", video_key=key, **place(f"videos/{key}"))
        files[key] = path, float(row[f"videos/{key}/from_timestamp"])
    data = _place(source, info, "data_path", **place("data"))
    return Episode(int(row["episode_index"]), int(row["length"]), data, files, _tasks_of(row))


def _tasks_of(row: dict[str, Any]) -> tuple[str, ...]:
    tasks = row.get("tasks")
    return tuple(task for task in tasks if isinstance(task, str)) if isinstance(tasks, list) else ()


def _place(source: Path, info: Info, pattern: str, **values: Any) -> Path:
    """The file that ``data_path`` or ``video_path`` names."""
    text = getattr(info, pattern)
    where = f"{source / 'meta/info.json'}: {pattern}: {text!r}"
    if any(part == ".." for part in Path(text).parts) or Path(text).is_absolute():
        raise UserError(f"{where} leaves the data set; name files in it")
    try:
        if re.search(r"\{(?!\w+(:0?\d{1,2}d)?\})", text):  # fields and digits only: no width to fill memory with
            raise ValueError
        return source / text.format(**values)
    except (KeyError, IndexError, ValueError, AttributeError):
        raise UserError(f"{where} cannot be filled in; it may use {', '.join(values)}") from None


def read_splits(info: Info, numbers: list[int]) -> tuple[dict[int, str], list[str]]:
    """Which part these episodes belong to, where ``info.json`` gives several parts, and what to tell the user.

    It gives ranges, such as ``{"train": "0:80", "val": "80:100"}``; nearly all sets have ``train`` alone: no split.
    """
    part_of, parts = {"train": "train", "val": "val", "validation": "val", "valid": "val", "test": "test"}, {}
    for name, text in (info.splits or {}).items():
        ends = re.fullmatch(r"(\d+):(\d+)", str(text))
        if ends is None or int(ends[1]) < int(ends[2]):
            parts[name] = range(int(ends[1]), int(ends[2])) if ends else range(0)
    if len(parts) < 2:
        return {}, []
    splits = {n: [part_of[name] for name, part in parts.items() if name in part_of and n in part] for n in numbers}
    if not all(len(names) == 1 for names in splits.values()):
        return {}, [f"splits of meta/info.json are not used: {info.splits} does not give each episode one part"]
    return {number: names[0] for number, names in splits.items()}, []


def read_tasks(source: Path) -> dict[int, str] | None:
    """The texts of the tasks, by number; None where the set has no table of them. Raises `UserError`: a broken one."""
    lines, table = source / "meta/tasks.jsonl", source / "meta/tasks.parquet"
    if table.is_file():
        rows = read_parquet(table, ["task_index"], further=["task", "__index_level_0__"]).to_pylist()
        pairs = [(row["task_index"], row.get("task", row.get("__index_level_0__"))) for row in rows]
    elif lines.is_file():
        pairs = [(row.get("task_index"), row.get("task")) for row in _json_lines(lines)]
    else:
        return None
    path = table if table.is_file() else lines
    if not all(isinstance(number, int) and isinstance(text, str) for number, text in pairs):
        raise UserError(f"{path}: not a table of task_index (whole numbers) and task (texts); convert the set again")
    if len(dict(pairs)) < len(pairs):
        raise UserError(f"{path}: task_index: a number occurs twice; convert the data set again")
    return {number: text for number, text in pairs if isinstance(number, int) and isinstance(text, str)}


def read_parquet(
    path: Path, columns: list[str], episode: int | None = None, further: list[str] | None = None
) -> pa.Table:
    """The ``columns`` of a table, and those of ``further`` that it has, of all rows or of an episode's.

    Raises:
        UserError: not a parquet file, or a column is missing.
    """
    require_data(path)
    try:
        schema = pq.read_schema(path)
        missing = [name for name in columns if name not in schema.names]
        if missing:
            raise UserError(f"{path}: no column {', '.join(missing)}; it has {', '.join(schema.names)}")
        filters = None if episode is None else [("episode_index", "=", episode)]
        columns = columns + [name for name in further or () if name in schema.names]
        return pq.read_table(path, columns=columns, filters=filters, partitioning=None).replace_schema_metadata()
    except UserError:
        raise
    except (OSError, ValueError, pa.ArrowException) as error:
        raise UserError(f"{path}: not a parquet file that can be read ({' '.join(str(error).split())})") from None
