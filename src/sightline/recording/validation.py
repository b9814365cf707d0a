"""Is a recording sound? Checks its table and its folders of images, and writes who may read which frame.

The table becomes the frame index with the split, ``<out_dir>/frames.parquet``. Each folder of images becomes an index
of the frames whose image is sound, ``<out_dir>/depth.parquet``, ``<out_dir>/rgb_<camera>.parquet``: that is what a
stage which reads the folder goes by. All problems of all folders are reported at once.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from sightline.errors import UserError
from sightline.parallel import unordered_map
from sightline.recording.frames import first_few, read_frames, read_index, write_index
from sightline.recording.images import list_images, read_depth, read_pixels
from sightline.recording.layout import RecordingInfo, read_recording_info
from sightline.recording.split import PARTS, DataPart, SplitParams, split_episodes

IGNORE = 255  # mask pixels of no class
_CHUNK = 32  # images per job
_RAW_COUNTS = 65536


def validate_recording(
    recording: Path, out_dir: Path, data: DataPart, only: str | None = None, processes: int | None = None
) -> dict[str, Any]:
    """Check a recording, or one piece of it, write the indices to ``out_dir``, and return the metrics by piece.

    Nothing is written unless everything that was asked for is sound (or skipped, with ``data.on_error: skip``).
    The result does not depend on ``processes``.

    Args:
        only: ``frames`` for the table; or ``depth``, ``masks``, ``rgb/<camera>`` for one folder, which is checked
            against the frame index that lies in ``out_dir``; None for the table and all folders.
        processes: number of processes that read images; None takes one per core.

    Raises:
        UserError: whatever is wrong with the recording. For images: per folder one line with the count, then one
            line per image.
    """
    if out_dir.resolve() == recording.resolve():
        raise UserError(
            f"{out_dir}: is the recording itself, whose frames.parquet would be overwritten; choose another"
        )
    info = read_recording_info(recording / "recording.json")
    indices, metrics, complaints = {}, {}, []
    if only in (None, "frames"):
        index, metrics["frames"] = check_frames(recording / "frames.parquet", info, data.split)
        indices["frames"] = index
    else:
        index = read_index(out_dir / "frames.parquet")
    pieces = image_folders(recording, info) if only is None else [only]
    for folder in (piece for piece in pieces if piece != "frames"):
        try:
            indices[folder], metrics[folder] = check_images(recording, folder, info, index, data.on_error, processes)
        except UserError as error:
            complaints.append(str(error))
    if complaints:
        raise UserError("\n".join(complaints))
    for name, rows in indices.items():
        write_index(out_dir / f"{name}.parquet", rows)
    return metrics


def image_folders(recording: Path, info: RecordingInfo) -> list[str]:
    """The folders of images to check: those that ``recording.json`` names, and ``masks`` where there is one."""
    folders = [f"rgb/{camera}" for camera in info.cameras]
    folders += ["depth"] if info.depth else []
    folders += ["masks"] if (recording / "masks").is_dir() else []
    there = [path.relative_to(recording).as_posix() for path in (*recording.glob("depth"), *recording.glob("rgb/*"))]
    unnamed = sorted(name for name in there if name not in folders and (recording / name).is_dir())
    if unnamed:
        warnings.warn(f"{recording}: recording.json does not describe {', '.join(unnamed)}: not checked", stacklevel=2)
    return folders


def check_frames(path: Path, info: RecordingInfo, params: SplitParams) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Check ``frames.parquet`` and split it by episode -> its rows with the column ``split``, metrics.

    Raises:
        UserError: see `sightline.recording.frames.read_frames`; fewer episodes than parts of the split.
    """
    frames = read_frames(path, info)
    try:
        frames["split"] = frames["episode"].map(split_episodes(frames["episode"].unique(), params))
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    metrics: dict[str, Any] = {"episodes": frames["episode"].nunique(), "frames": len(frames)}
    for part in PARTS:
        rows = frames[frames["split"] == part]
        metrics[part] = {"episodes": rows["episode"].nunique(), "frames": len(rows)}
    if "success" in frames:
        metrics["success_rate"] = round(float(frames.groupby("episode")["success"].any().mean()), 6)
    return frames, metrics


def check_images(
    recording: Path,
    folder: str,
    info: RecordingInfo,
    index: pd.DataFrame,
    on_error: Literal["fail", "skip"],
    processes: int | None,
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Check one folder of images against the frame index -> its rows whose image is sound, metrics.

    Every frame needs an image, but masks may be sparse. Images of no frame are not read; a warning counts them.

    Raises:
        UserError: the folder is missing, not described by recording.json, or has no image of any frame; with
            ``on_error`` "fail" a broken or missing image; with "skip" when a part of the split would be left empty.
    """
    kind = _kind(folder, info)
    images = list_images(recording / folder)
    there = {int(i): images[i] for i in index["frame_id"] if i in images}
    if not there:
        raise UserError(f"{recording / folder}: none of its {len(images)} images belongs to a frame of frames.parquet")
    if len(there) < len(images):
        unnamed = f"{len(images) - len(there)} of {len(images)} images"
        warnings.warn(f"{recording / folder}: {unnamed} belong to no frame of frames.parquet: not read", stacklevel=2)
    tally = _read_images(kind, info, there, folder, processes)
    expected = index[index["frame_id"].isin(there)] if kind == "masks" else index
    problems = tally.problems | {
        i: f"frames.parquet names frame {i} but {recording / folder}/{i:06d}.png is not there"
        for i in expected["frame_id"]
        if i not in there
    }
    sound = expected[~expected["frame_id"].isin(problems)]
    _answer_problems(folder, problems, expected, sound, on_error)
    counts = {
        "images": len(there),
        "broken": len(tally.problems),
        "missing": len(index) - len(there),
        "skipped": len(problems),
        "sound": len(sound),
    }
    return sound, counts | _CONTENT[kind](tally, info)


def _answer_problems(
    folder: str, problems: dict[int, str], expected: pd.DataFrame, sound: pd.DataFrame, on_error: str
) -> None:
    """Raise or warn about the ``problems`` (frame id -> what is wrong), as ``on_error`` has it."""
    if not problems:
        return
    count = f"{len(problems)} of {len(expected)} {folder} images are broken or missing"
    lines = "\n".join(problems[i] for i in sorted(problems))
    if on_error == "fail":
        raise UserError(f"{count}; mend them, or set data.on_error=skip to leave these frames out\n{lines}")
    emptied = [part for part in PARTS if part in set(expected["split"]) - set(sound["split"])]
    if emptied:
        raise UserError(f"{count}; without them nothing is left of {', '.join(emptied)}: mend some\n{lines}")
    warnings.warn(f"{count}; left out: frames {first_few(sorted(problems))}", stacklevel=3)


@dataclass
class _Tally:
    """What was found in some images of a folder."""

    problems: dict[int, str] = field(default_factory=dict)  # frame id -> what is wrong
    pixels: np.ndarray = field(default_factory=lambda: np.zeros(_RAW_COUNTS, np.int64))  # per value, in sound images
    invalid_share: dict[int, float] = field(default_factory=dict)  # sound depth images: share of their pixels


def _read_images(kind: str, info: RecordingInfo, images: dict[int, Path], title: str, processes: int | None) -> _Tally:
    items, total = list(images.items()), _Tally()
    chunks = [items[start : start + _CHUNK] for start in range(0, len(items), _CHUNK)]
    jobs = [((kind, info, chunk), len(chunk)) for chunk in chunks]
    for tally in unordered_map(
        _read_chunk, jobs, total=len(items), unit="image", title=f"check {title}", processes=processes
    ):
        total.problems |= tally.problems
        total.pixels += tally.pixels
        total.invalid_share |= tally.invalid_share
    return total


def _read_chunk(job: tuple[str, RecordingInfo, list[tuple[int, Path]]]) -> _Tally:
    kind, info, images = job
    tally = _Tally()
    with warnings.catch_warnings(action="ignore"):  # Pillow's, on files that it reads all the same
        for frame_id, path in images:
            try:
                pixels = _READ[kind](path, info)
            except UserError as error:
                tally.problems[frame_id] = str(error)
                continue
            tally.pixels += pixels
            if kind == "depth" and info.depth:
                tally.invalid_share[frame_id] = float(pixels[list(info.depth.invalid)].sum() / pixels.sum())
    return tally


def _read_depth(path: Path, info: RecordingInfo) -> np.ndarray:
    assert info.depth is not None
    pixels = np.bincount(read_depth(path).ravel(), minlength=_RAW_COUNTS)
    if pixels.sum() == pixels[list(info.depth.invalid)].sum():
        raise UserError(
            f"{path}: every pixel is invalid ({', '.join(map(str, info.depth.invalid))}): nothing was measured"
        )
    return pixels


def _read_mask(path: Path, info: RecordingInfo) -> np.ndarray:
    pixels = np.bincount(read_pixels(path, ("L", "P")).ravel(), minlength=_RAW_COUNTS)
    unknown = [i for i in np.flatnonzero(pixels) if i >= len(info.classes) and i != IGNORE]
    if unknown:
        raise UserError(f"{path}: class ids {first_few(unknown)}; recording.json names {len(info.classes)} classes")
    return pixels


def _read_rgb(path: Path, info: RecordingInfo) -> np.ndarray:
    read_pixels(path, ("RGB",))
    return np.zeros(_RAW_COUNTS, np.int64)


def _depth_content(tally: _Tally, info: RecordingInfo) -> dict[str, Any]:
    assert info.depth is not None
    share = np.array([tally.invalid_share[i] for i in sorted(tally.invalid_share)])
    valid = tally.pixels.copy()
    valid[list(info.depth.invalid)] = 0
    counts, up_to = np.flatnonzero(valid), np.cumsum(valid)
    median = np.searchsorted(up_to, (up_to[-1] + 1) // 2)
    return {
        "invalid_share": {"mean": round(float(share.mean()), 6), "max": round(float(share.max()), 6)},
        "valid_counts": {"min": int(counts[0]), "median": int(median), "max": int(counts[-1])},
    }


def _mask_content(tally: _Tally, info: RecordingInfo) -> dict[str, Any]:
    share = (tally.pixels / tally.pixels.sum()).round(6)
    return {
        "pixel_share": {name: float(share[i]) for i, name in enumerate(info.classes)},
        "ignored_share": float(share[IGNORE]),
    }


def _kind(folder: str, info: RecordingInfo) -> str:
    """``depth``, ``masks`` or ``rgb``. Raises `UserError` where ``recording.json`` does not describe ``folder``."""
    known = [f"rgb/{camera}" for camera in info.cameras]
    known += ["depth"] if info.depth else []
    known += ["masks"] if info.classes else []
    if folder not in known:
        raise UserError(f"{folder}: recording.json does not describe it; known are {', '.join(known) or 'no folders'}")
    return folder.split("/")[0]


_READ: dict[str, Callable[[Path, RecordingInfo], np.ndarray]] = {
    "depth": _read_depth,
    "masks": _read_mask,
    "rgb": _read_rgb,
}
_CONTENT: dict[str, Callable[[_Tally, RecordingInfo], dict[str, Any]]] = {
    "depth": _depth_content,
    "masks": _mask_content,
    "rgb": lambda tally, info: {},
}
