"""``python tools/export_lerobot.py RECORDING DATA_SET``: write a recording as a LeRobot data set of format v3.0.

Pictures are embedded in the data files as PNG, without loss: ``stages/import_lerobot.py DATA_SET BACK --size 0`` gives
back joints, actions, rewards, success, tasks, times, colour and depth, every value as it was. Episodes are numbered
anew from 0, as LeRobot has them. The split is exported where each part of it is a range of episodes, which is all that
LeRobot can say. Masks and further columns are not exported.
"""

import io
import sys
from argparse import ArgumentParser
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from tqdm import tqdm

from sightline.core.errors import UserError
from sightline.core.files import atomic_output, write_json
from sightline.recording.frames import read_frames
from sightline.recording.images import change_of, check_eight_bits, opened, read_depth, read_file, rgb_pixels
from sightline.recording.layout import DepthInfo, RecordingInfo, read_recording_info
from sightline.recording.names import list_frames

FILE_BYTES = 100 * 2**20  # a new data file after these, as LeRobot writes them
FILES_PER_CHUNK = 1000
SAMPLES, EVERY = 100, 4  # a camera's statistics are of so many pictures, every fourth pixel each way
_KEYS = {"joints": "observation.state", "actions": "action", "reward": "next.reward", "success": "next.success"}
_POSITIONS = ("object_position", "goal_position")
_PLACE = "chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
_EMBEDDED = pa.struct({"bytes": pa.binary(), "path": pa.string()})


def export_lerobot(recording: Path, target: Path, robot: str | None = None) -> str:
    """Write a recording as a LeRobot data set, and return what was done.

    Args:
        recording: folder with ``recording.json`` and ``frames.parquet``.
        target: folder to write; must be new or empty. It appears whole or not at all.
        robot: LeRobot's ``robot_type``.

    Raises:
        UserError: ``target`` is not empty; not a sound recording; frames without a picture, or pictures of a camera of
            several sizes; depth in another unit than millimetres.
    """
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"{target}: exists and is not an empty folder; name a new one, or delete it first")
    info = read_recording_info(recording / "recording.json")
    frames = read_frames(recording / "frames.parquet", info).sort_values(["episode", "step"], ignore_index=True)
    for name in ("joints", "actions"):
        if name not in frames:
            raise UserError(f"{recording / 'frames.parquet'}: no column {name}, which a LeRobot data set needs")
    cameras = _cameras(recording, info, frames)
    texts = frames["task"].fillna("").astype(str) if "task" in frames else pd.Series([""] * len(frames))
    tasks = {text: number for number, text in enumerate(dict.fromkeys(texts))}
    columns = _columns(info, frames, texts.map(tasks).to_numpy())
    with atomic_output(target.resolve()) as folder:
        places = _write_data(folder, frames, columns, cameras)
        _write_meta(folder, info, frames, columns, cameras, tasks, texts, places, robot)
    known = {*_KEYS, *_POSITIONS, "frame_id", "episode", "step", "time_s", "task", "split"}
    left_out = sorted(set(frames) - known)
    left_out += ["split (its parts are not ranges of episodes)"] if "split" in frames and not _splits(frames) else []
    left_out += ["masks"] if (recording / "masks").is_dir() else []
    lines = [f"{target}: {len(places)} episodes, {len(frames)} frames, {len(cameras)} cameras, LeRobot v3.0"]
    return "\n".join(lines + ([f"  not exported: {', '.join(left_out)}"] if left_out else []))


class _Camera:
    """A folder of images, one for each frame."""

    def __init__(self, folder: Path, ids: list[int], depth: DepthInfo | None) -> None:
        self.depth, paths = depth, list_frames(folder)
        missing = [i for i in ids if i not in paths]
        if missing:
            raise UserError(
                f"{folder}: no image of {len(missing)} of {len(ids)} frames (such as frame {missing[0]}), but LeRobot "
                "needs one of each"
            )
        self.paths = [paths[i] for i in ids]
        self.shape = (*self.pixels(0).shape[:2], 1 if depth else 3)

    def pixels(self, row: int) -> np.ndarray:
        return self._read(row)[1]

    def encoded(self, row: int) -> bytes:
        """The image as PNG, upright; a file that is so already keeps its bytes."""
        data, pixels = self._read(row)
        if pixels.shape[:2] != self.shape[:2]:
            sizes = f"{list(pixels.shape[:2])}, but the first image of the folder {list(self.shape[:2])}"
            raise UserError(f"{self.paths[row]}: {sizes}; LeRobot takes one size for each camera")
        if data is None:
            buffer = io.BytesIO()
            Image.fromarray(pixels).save(buffer, "PNG")
            data = buffer.getvalue()
        return data

    def _read(self, row: int) -> tuple[bytes | None, np.ndarray]:
        path = self.paths[row]
        data = read_file(path)
        with opened(path, data) as image:
            as_it_is = image.format == "PNG" and change_of(image, data) in (None, "I;16")
            if self.depth:
                pixels = read_depth(path)
            else:
                check_eight_bits(path, image)
                pixels = rgb_pixels(image, data)
        return data if as_it_is else None, pixels


def _splits(frames: pd.DataFrame) -> dict[str, str]:
    """Part of the column split -> range of episodes, as ``info.json`` has it; {} where a part is none."""
    parts = frames.drop_duplicates("episode")["split"].to_list()
    ranges = {part: (parts.index(part), len(parts) - parts[::-1].index(part)) for part in dict.fromkeys(parts)}
    are_ranges = all(end - first == parts.count(part) for part, (first, end) in ranges.items())
    return {part: f"{first}:{end}" for part, (first, end) in ranges.items()} if are_ranges else {}


def _cameras(recording: Path, info: RecordingInfo, frames: pd.DataFrame) -> dict[str, _Camera]:
    """Key of the feature -> images."""
    ids = frames["frame_id"].tolist()
    cameras = {f"observation.images.{name}": _Camera(recording / "rgb" / name, ids, None) for name in info.cameras}
    folder = recording / "depth"
    if not folder.is_dir():
        return cameras
    where = recording / "recording.json"
    if info.depth is None:
        raise UserError(f"{where}: no key depth, but there is a folder depth; add its unit")
    if info.depth.unit_mm != 1 or info.depth.encoding not in (None, "raw"):
        raise UserError(
            f"{where}: depth: unit_mm {info.depth.unit_mm:g}, encoding {info.depth.encoding or 'raw'}, but LeRobot "
            "takes plain counts of a millimetre; convert the images, or move the folder depth away"
        )
    several = sorted(path for path in folder.iterdir() if path.is_dir())
    if several:
        return cameras | {f"observation.depth.{path.name}": _Camera(path, ids, info.depth) for path in several}
    return cameras | {"observation.depth": _Camera(folder, ids, info.depth)}


def _columns(info: RecordingInfo, frames: pd.DataFrame, tasks: np.ndarray) -> dict[str, np.ndarray]:
    """Features of numbers, [N] or [N, width]."""
    columns = {_KEYS[name]: np.stack(frames[name].to_list()) for name in ("joints", "actions")}
    columns |= {_KEYS[name]: frames[name].to_numpy() for name in ("reward", "success") if name in frames}
    columns |= {name: np.stack(frames[name].to_list()) for name in _POSITIONS if name in frames}
    numbers = frames["episode"].rank(method="dense").astype("int64").to_numpy() - 1
    return columns | {
        "timestamp": frames["time_s"].to_numpy(),
        "frame_index": frames["step"].to_numpy(),
        "episode_index": numbers,
        "index": np.arange(len(frames)),
        "task_index": tasks,
    }


def _write_data(
    folder: Path, frames: pd.DataFrame, columns: dict[str, np.ndarray], cameras: dict[str, _Camera]
) -> list[dict[str, int]]:
    """Write the data files, a row group for each episode, and return where each episode is."""
    places: list[dict[str, int]] = []
    writer, number, size = None, -1, FILE_BYTES
    bounds = np.flatnonzero(np.diff(columns["episode_index"])) + 1
    try:
        for first, end in zip([0, *bounds], [*bounds, len(frames)], strict=True):
            table = pa.table({name: _array(values[first:end]) for name, values in columns.items()})
            for key, camera in cameras.items():
                rows = tqdm(range(first, end), desc=f"episode {len(places)}, {key}", unit="image", leave=False)
                pictures = [{"bytes": camera.encoded(row), "path": None} for row in rows]
                table = table.append_column(key, pa.array(pictures, _EMBEDDED))
            if size >= FILE_BYTES:
                if writer is not None:
                    writer.close()
                number, size = number + 1, 0
                path = folder / "data" / _PLACE.format(**_place(number))
                path.parent.mkdir(parents=True, exist_ok=True)
                writer = pq.ParquetWriter(path, table.schema)
            assert writer is not None
            writer.write_table(table)
            size += table.nbytes
            places.append({**_place(number), "from": int(first), "to": int(end)})
    finally:
        if writer is not None:
            writer.close()
    return places


def _place(number: int) -> dict[str, int]:
    return {"chunk_index": number // FILES_PER_CHUNK, "file_index": number % FILES_PER_CHUNK}


def _array(values: np.ndarray) -> pa.Array:
    return (
        pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), values.shape[1])
        if values.ndim == 2
        else (pa.array(values))
    )


def _write_meta(
    folder: Path,
    info: RecordingInfo,
    frames: pd.DataFrame,
    columns: dict[str, np.ndarray],
    cameras: dict[str, _Camera],
    tasks: dict[str, int],
    texts: pd.Series,
    places: list[dict[str, int]],
    robot: str | None,
) -> None:
    """Write info.json, stats.json, tasks.parquet and the table of episodes."""
    features: dict[str, Any] = {}
    for key, values in columns.items():
        width = values.shape[1] if values.ndim == 2 else 1
        names = list(info.joints) or None if key == _KEYS["joints"] else None
        features[key] = {"dtype": str(values.dtype), "shape": [width], "names": names}
    for key, camera in cameras.items():
        features[key] = {"dtype": "image", "shape": list(camera.shape), "names": ["height", "width", "channels"]}
        if camera.depth:
            about = {"is_depth_map": True, "depth_unit": "mm", "invalid": list(camera.depth.invalid)}
            features[key]["info"] = about | {"height_range": list(camera.depth.height_range)}
    write_json(
        folder / "meta/info.json",
        {
            "codebase_version": "v3.0",
            "robot_type": robot,
            "total_episodes": len(places),
            "total_frames": len(frames),
            "total_tasks": len(tasks),
            "chunks_size": FILES_PER_CHUNK,
            "data_files_size_in_mb": FILE_BYTES // 2**20,
            "video_files_size_in_mb": 200,
            "fps": int(info.fps) if info.fps == int(info.fps) else info.fps,
            "splits": ("split" in frames and _splits(frames)) or {"train": f"0:{len(places)}"},
            "data_path": f"data/{_PLACE}",
            "video_path": None,
            "features": features,
        },
    )
    write_json(folder / "meta/stats.json", dict(_statistics(columns, cameras)))
    pd.DataFrame({"task_index": list(tasks.values())}, index=pd.Index(tasks, name="task")).to_parquet(
        folder / "meta/tasks.parquet"
    )
    rows = [
        {
            "episode_index": number,
            "tasks": list(dict.fromkeys(texts[place["from"] : place["to"]])),
            "length": place["to"] - place["from"],
            "data/chunk_index": place["chunk_index"],
            "data/file_index": place["file_index"],
            "dataset_from_index": place["from"],
            "dataset_to_index": place["to"],
            "meta/episodes/chunk_index": 0,
            "meta/episodes/file_index": 0,
        }
        for number, place in enumerate(places)
    ]
    path = folder / "meta/episodes" / _PLACE.format(chunk_index=0, file_index=0)
    path.parent.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows), path)


def _statistics(
    columns: dict[str, np.ndarray], cameras: dict[str, _Camera]
) -> Iterator[tuple[str, dict[str, list[Any]]]]:
    """What LeRobot normalises by: of all numbers, and of some pictures of each camera (colour 0..1, [3, 1, 1])."""
    for key, values in columns.items():
        yield key, _summary(values.reshape(len(values), -1).astype(np.float64), len(values))
    for key, camera in cameras.items():
        rows = np.unique(np.linspace(0, len(camera.paths) - 1, SAMPLES).astype(int))
        pixels = np.concatenate([camera.pixels(row)[::EVERY, ::EVERY].reshape(-1, camera.shape[2]) for row in rows])
        figures = _summary(pixels / (1 if camera.depth else 255), len(rows))
        yield key, {name: [[[v]] for v in values] if name != "count" else values for name, values in figures.items()}


def _summary(values: np.ndarray, count: int) -> dict[str, list[Any]]:
    figures = {"min": values.min(0), "max": values.max(0), "mean": values.mean(0), "std": values.std(0)}
    return {name: figure.tolist() for name, figure in figures.items()} | {"count": [count]}


def main() -> None:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("recording", type=Path, help="folder with recording.json")
    parser.add_argument("data_set", type=Path, help="folder to write: new or empty")
    parser.add_argument("--robot", metavar="NAME", help="LeRobot's robot_type")
    args = parser.parse_args()
    try:
        print(export_lerobot(args.recording, args.data_set, args.robot))
    except UserError as error:
        print(f"{parser.prog}: error: {error}", file=sys.stderr)
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
