"""LeRobot data sets, of format v2.0 and v2.1 (a file per episode) and v3.0 (many episodes in a file).

meta/info.json                       codebase_version, fps, features, data_path and video_path (patterns)
v2: meta/episodes.jsonl              episode_index, length; data_path and video_path give one file per episode
v3: meta/episodes/*/*.parquet        episode_index, length, data/{chunk,file}_index, and for each camera
                                     videos/<key>/{chunk_index,file_index,from_timestamp,to_timestamp}
data: parquet with a row per frame   timestamp (seconds in the episode), frame_index, episode_index, the features
cameras                              features of dtype ``video`` (mp4), or ``image`` (encoded, in the data files)
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import BaseModel, Field, ValidationError

from sightline.core.errors import UserError, first_fault
from sightline.importers.demonstrations import Demonstration, write_recording
from sightline.importers.options import ImportOptions, choose_cameras, choose_episodes
from sightline.importers.pictures import Pictures, decode_picture, require_data
from sightline.recording.frames import first_few

VERSIONS = ("v2.0", "v2.1", "v3.0")
_NO_PLAYLISTS = {"format_whitelist": "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi"}  # playlists open further files


class Feature(BaseModel):
    """What ``info.json`` says about one feature; keys that we do not need are ignored."""

    dtype: str
    shape: tuple[int, ...]
    names: Any = None
    info: dict[str, Any] | None = None
    video_info: dict[str, Any] | None = None  # what older sets call ``info``

    @property
    def is_camera(self) -> bool:
        return self.dtype in ("video", "image", "depth_video")

    @property
    def is_colour(self) -> bool:
        about = (self.info or {}) | (self.video_info or {})
        depth = any(key.endswith("is_depth_map") and value for key, value in about.items())
        return not depth and self.dtype != "depth_video" and len(self.shape) == 3 and 3 in self.shape


class Info(BaseModel):
    """``meta/info.json``."""

    codebase_version: str
    fps: float = Field(gt=0)
    features: dict[str, Feature]
    data_path: str
    video_path: str | None = None
    chunks_size: int = Field(default=1000, gt=0)
    total_episodes: int | None = None


def import_lerobot(source: Path, target: Path, options: ImportOptions) -> str:
    """Write a LeRobot data set as a recording, and return what was done and what to do next.

    Args:
        source: folder that holds ``meta/info.json``.
        target: folder to write; must be new or empty.
        options: its keys are names of features; the usual joints are ``observation.state``, the usual actions
            ``action``.

    Raises:
        UserError: not a LeRobot data set of a version we read, unknown features, missing files, counts that differ,
            cameras that are not colour; and see `write_recording`.
    """
    # the features to read, and the cameras
    info = _read_info(source)
    features = {
        "joints": list(options.joints) or ["observation.state"],
        "actions": list(options.actions) or ["action"],
        **{column: [key] for column, key in _OUTCOME.items() if key in info.features},
    }
    for key in (key for keys in features.values() for key in keys):
        _require_vector(key, info, source)
    cameras = [key for key, feature in info.features.items() if feature.is_camera]
    names = choose_cameras(options.cameras, cameras, source)
    for key in names:
        if not info.features[key].is_colour:
            raise UserError(
                f"{source / 'meta/info.json'}: {key}: a depth or greyscale camera, which is not imported; name the "
                "colour cameras, each with --camera KEY=NAME"
            )
    # the tables of the episodes; their pictures are only described
    episodes = _read_episodes(source, info, list(names))
    remaining = choose_episodes([episode.number for episode in episodes], options, source)
    demonstrations = [_demonstration(source, info, e, features, names) for e in episodes if e.number in remaining]
    # names of the joints, if each has one of its own
    labels = [label for key in features["joints"] for label in _joint_names(info.features[key])]
    if not all(labels) or len(set(labels)) < len(labels):
        labels = [f"joint_{i}" for i in range(len(labels))]
    return write_recording(demonstrations, target, info.fps, tuple(labels), options)


_OUTCOME = {"reward": "next.reward", "success": "next.success"}
_TIME = ("timestamp", "frame_index", "episode_index")


@dataclass(frozen=True)
class VideoClip:
    """The frames of a video from ``start_s`` up to, but without, ``end_s``."""

    path: Path
    start_s: float
    end_s: float
    fps: float

    def __iter__(self) -> Iterator[np.ndarray]:
        half = 0.5 / self.fps  # times are rounded in the file; frames are whole periods apart
        try:
            with av.open(str(self.path), options=_NO_PLAYLISTS) as container:
                if not container.streams.video:
                    raise UserError(f"{self.path}: no video in it; copy the file again")
                stream = container.streams.video[0]
                stream.codec_context.thread_count = 1  # episodes run side by side
                if self.start_s > 0:  # to the key frame before it; back by a frame, as the time is rounded
                    container.seek(int(max(0, self.start_s - 2 * half) * av.time_base))
                for frame in container.decode(stream):
                    if frame.time >= self.end_s - half:
                        return
                    if frame.time < self.start_s - half:
                        continue
                    if frame.is_corrupt:
                        raise UserError(f"{self.path}: damaged at {frame.time:.2f} s; copy the file again")
                    if len(frame.format.components) < 3:
                        raise UserError(f"{self.path}: a greyscale video; name colour cameras with --camera KEY=NAME")
                    yield frame.to_ndarray(format="rgb24")
        except av.FFmpegError as error:
            reason = error.strerror or type(error).__name__
            raise UserError(f"{self.path}: a broken or truncated video ({reason}); copy the file again") from None


@dataclass(frozen=True)
class EmbeddedPictures:
    """Encoded pictures in a column of a data file, of one episode, in the order of its rows."""

    path: Path
    key: str
    episode: int

    def __iter__(self) -> Iterator[np.ndarray]:
        rows = _read_parquet(self.path, ["frame_index", self.key], self.episode)
        for step, value in enumerate(rows.sort_by("frame_index").column(self.key)):
            data = (value.as_py() or {}).get("bytes")
            where = f"{self.path}: {self.key} of episode {self.episode}, frame {step}"
            if not data:
                raise UserError(f"{where}: no picture in the table; convert the data set with its pictures embedded")
            yield decode_picture(data, where)


@dataclass(frozen=True)
class _Episode:
    number: int
    length: int
    data: Path
    videos: dict[str, VideoClip]


def _read_info(source: Path) -> Info:
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


def _require_vector(key: str, info: Info, source: Path) -> None:
    path = source / "meta/info.json"
    if key not in info.features or info.features[key].is_camera:
        numbers = [name for name, feature in info.features.items() if not feature.is_camera]
        raise UserError(
            f"{path}: no feature {key!r} with numbers; choose from {', '.join(numbers)} with --joints, --actions"
        )
    if len(info.features[key].shape) != 1:
        raise UserError(f"{path}: {key}: shape {list(info.features[key].shape)}, but one number per joint is needed")


def _joint_names(feature: Feature) -> list[str]:
    """The feature's own names, ``["a", "b"]`` or ``{"motors": ["a", "b"]}``; empty ones if it has none."""
    names = feature.names
    if isinstance(names, dict):
        names = [name for group in names.values() if isinstance(group, list) for name in group]
    right = isinstance(names, list) and len(names) == feature.shape[0] and all(isinstance(n, str) for n in names)
    return names if right else [""] * feature.shape[0]


def _read_episodes(source: Path, info: Info, cameras: list[str]) -> list[_Episode]:
    videos = [key for key in cameras if info.features[key].dtype == "video"]
    if videos and not info.video_path:
        raise UserError(f"{source / 'meta/info.json'}: video_path: is missing, but {videos[0]} is a video")
    per_episode = info.codebase_version.startswith("v2")
    rows = _rows_v2(source) if per_episode else _rows_v3(source, videos)
    where = source / ("meta/episodes.jsonl" if per_episode else "meta/episodes")
    if not rows:
        raise UserError(f"{where}: no episodes in it")
    if info.total_episodes is not None and len(rows) != info.total_episodes:
        raise UserError(
            f"{where}: {len(rows)} episodes, but meta/info.json says total_episodes: {info.total_episodes}; "
            "copy the data set again, whole"
        )
    try:
        return [(_episode_v2 if per_episode else _episode_v3)(source, info, row, videos) for row in rows]
    except UserError:
        raise
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{where}: an episode lacks {error}, or it is not a number; convert the data set again"
        ) from None


def _rows_v2(source: Path) -> list[dict[str, Any]]:
    path = require_data(source / "meta/episodes.jsonl")
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON lines: {error}") from None


def _episode_v2(source: Path, info: Info, row: dict[str, Any], videos: list[str]) -> _Episode:
    number = int(row["episode_index"])
    place = {"episode_chunk": number // info.chunks_size, "episode_index": number}
    clips = {
        key: VideoClip(_place(source, info, "video_path", video_key=key, **place), 0.0, float("inf"), info.fps)
        for key in videos
    }
    return _Episode(number, int(row["length"]), _place(source, info, "data_path", **place), clips)


def _rows_v3(source: Path, videos: list[str]) -> list[dict[str, Any]]:
    columns = ["episode_index", "length", "data/chunk_index", "data/file_index"]
    for key in videos:
        columns += [f"videos/{key}/{part}" for part in ("chunk_index", "file_index", "from_timestamp", "to_timestamp")]
    paths = sorted((source / "meta/episodes").glob("chunk-*/file-*.parquet"))
    return [row for path in paths for row in _read_parquet(path, columns).to_pylist()]


def _episode_v3(source: Path, info: Info, row: dict[str, Any], videos: list[str]) -> _Episode:
    def place(prefix: str) -> dict[str, int]:
        return {part: int(row[f"{prefix}/{part}"]) for part in ("chunk_index", "file_index")}

    clips = {
        key: VideoClip(
            _place(source, info, "video_path", video_key=key, **place(f"videos/{key}")),
            float(row[f"videos/{key}/from_timestamp"]),
            float(row[f"videos/{key}/to_timestamp"]),
            info.fps,
        )
        for key in videos
    }
    data = _place(source, info, "data_path", **place("data"))
    return _Episode(int(row["episode_index"]), int(row["length"]), data, clips)


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


def _demonstration(
    source: Path, info: Info, episode: _Episode, features: dict[str, list[str]], cameras: dict[str, str]
) -> Demonstration:
    for path in [episode.data, *(clip.path for clip in episode.videos.values())]:
        require_data(path)
    keys = [key for group in features.values() for key in group]
    one_each = info.codebase_version.startswith("v2")
    rows = _read_rows(episode.data, tuple(dict.fromkeys((*_TIME, *keys))))
    rows = rows.filter(pc.field("episode_index") == episode.number).sort_by("frame_index")
    label = str(episode.data) if one_each else f"{episode.data}: episode {episode.number}"
    if rows.num_rows != episode.length:
        raise UserError(
            f"{label}: {rows.num_rows} rows, but meta/episodes says length {episode.length}; copy the data set again, "
            f"or leave the episode out with --skip {episode.number}"
        )
    steps = rows.column("frame_index").to_numpy()
    wrong = np.flatnonzero(steps != np.arange(len(steps)))
    if len(wrong):
        raise UserError(f"{label}: frame_index: not 0, 1, 2 ... (rows {first_few(wrong)}); frames are missing")
    columns = {"time_s": _numbers(rows, "timestamp", 1, label)[:, 0].astype(np.float64)}
    for name, group in features.items():
        columns[name] = np.concatenate([_numbers(rows, k, info.features[k].shape[0], label) for k in group], axis=1)
    for name in _OUTCOME.keys() & columns.keys():
        columns[name] = columns[name][:, 0]
    if "success" in columns:
        columns["success"] = columns["success"].astype(bool)
    pictures: dict[str, Pictures] = {}
    for key, name in cameras.items():
        pictures[name] = episode.videos.get(key) or EmbeddedPictures(episode.data, key, episode.number)
    return Demonstration(episode.number, label, columns, pictures)


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
def _read_rows(path: Path, columns: tuple[str, ...]) -> pa.Table:
    return _read_parquet(path, list(columns))


def _read_parquet(path: Path, columns: list[str], episode: int | None = None) -> pa.Table:
    """The ``columns`` of a table, of all rows or of an episode's."""
    require_data(path)
    try:
        schema = pq.read_schema(path)
        missing = [name for name in columns if name not in schema.names]
        if missing:
            raise UserError(f"{path}: no column {', '.join(missing)}; it has {', '.join(schema.names)}")
        filters = None if episode is None else [("episode_index", "=", episode)]
        return pq.read_table(path, columns=columns, filters=filters, partitioning=None).replace_schema_metadata()
    except UserError:
        raise
    except (OSError, ValueError, pa.ArrowException) as error:
        raise UserError(f"{path}: not a parquet file that can be read ({' '.join(str(error).split())})") from None
