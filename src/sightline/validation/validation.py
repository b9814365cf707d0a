"""Is a recording sound? Checks its table and its folders of images, and writes indices of the sound frames.

The table becomes the frame index with the split, ``<out_dir>/frames.parquet``. Each folder of images becomes an index
of the frames whose image is sound, ``<out_dir>/depth.parquet`` (of several cameras ``depth/<camera>.parquet``),
``<out_dir>/rgb/<camera>.parquet``: a stage that reads the folder reads only these. All problems of all folders are
reported at once. Sound frames that are unlike the training frames are counted; with a saved reference, a warning names
those unlike it (`sightline.validation.summary`).
"""

import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from pydantic import Field

from sightline.core.errors import UserError
from sightline.core.files import write_json
from sightline.core.parallel import unordered_map
from sightline.core.params import Section
from sightline.recording.depth import decode
from sightline.recording.frames import (
    first_few,
    read_frames,
    read_index,
    read_recording_key,
    recording_key,
    write_index,
)
from sightline.recording.images import read_depth, read_mask, read_rgb, warn_of_changes
from sightline.recording.layout import IGNORE, RecordingInfo, read_info, read_recording_info
from sightline.recording.names import SUFFIXES, list_frames
from sightline.recording.split import PARTS, DataParams, SplitParams, complete_split, split_episodes
from sightline.validation.plausible import check_height_range
from sightline.validation.summary import (
    TRAIN,
    Reference,
    compare,
    depth_figures,
    mask_figures,
    read_reference,
    rgb_figures,
    summarize,
    table_figures,
)

_CHUNK = 32  # images per job
_RAW_COUNTS = 65536


class ValidationParams(Section):
    """How frames are compared with those that models know."""

    reference: str = Field(
        "reference",
        description="folder with summaries of the recording that models learned from; else the training frames",
    )
    drift_tolerance: float = Field(0.1, ge=0, description="how far frames may leave the training range, as a share")


@dataclass(frozen=True)
class DriftGuard:
    """How frames are compared, and where to write the results."""

    tolerance: float
    reference: Path | None = None  # a summary.json, or a folder of some; train stands in for what it lacks
    metrics_dir: Path | None = None  # folder for summary.json and drift.json


def validate_recording(
    recording: Path,
    out_dir: Path,
    data: DataParams,
    only: str | None = None,
    processes: int | None = None,
    guard: DriftGuard | None = None,
) -> dict[str, Any]:
    """Check a recording, or one piece of it, write the indices to ``out_dir``, and return the metrics by piece.

    It writes nothing unless all that it was asked to check is sound (or skipped, with ``data.on_error: skip``).
    The result does not depend on ``processes``.

    Args:
        only: ``frames`` for the table; or ``depth``, ``depth/<camera>``, ``masks``, ``rgb/<camera>`` for one folder,
            which is checked against the frame index that lies in ``out_dir``; None for the table and all folders.
        processes: number of processes that read images; None takes one per core.
        guard: with it, frames unlike its reference, or unlike train, are counted (``outside_range``), with a warning
            for each modality.

    Raises:
        UserError: whatever is wrong with the recording, or with the reference. For images: per folder one line with
            the count, then one line per image.
    """
    if out_dir.resolve() == recording.resolve():
        raise UserError(
            f"{out_dir}: is the recording itself, whose frames.parquet would be overwritten; choose another"
        )
    info = read_info(recording) if only in (None, "frames") else read_recording_info(recording / "recording.json")
    references = read_reference(guard.reference) if guard and guard.reference else {}
    # the table, or the index that an earlier call made of it
    indices, metrics, complaints = {}, {}, []
    figures: dict[str, dict[str, pd.DataFrame]] = {}  # piece -> modality -> a row for each frame
    if only in (None, "frames"):
        index, metrics["frames"] = check_frames(recording / "frames.parquet", info, data.split)
        indices["frames"], figures["frames"] = index, table_figures(index, info)
        key = recording_key(index)
    else:
        index = read_index(out_dir / "frames.parquet")
        key = read_recording_key(out_dir / "frames.parquet")
    # the folders of images; the problems of all of them make one error
    pieces = image_folders(recording, info) if only is None else [only]
    for folder in (piece for piece in pieces if piece != "frames"):
        try:
            indices[folder], metrics[folder], of_images = check_images(
                recording, folder, info, index, data.on_error, processes
            )
            figures[folder] = {folder: of_images}
        except UserError as error:
            complaints.append(str(error))
    if complaints:
        raise UserError("\n".join(complaints))
    # which frames leave the range of those that models know
    if guard:
        for piece, counts in _guard_drift(guard, recording, index.set_index("frame_id"), figures, references).items():
            metrics[piece] |= counts
    for name, rows in indices.items():
        write_index(out_dir / f"{name}.parquet", rows, key)
    return metrics


def headline(metrics: dict[str, Any]) -> dict[str, int]:
    """The few figures of `validate_recording`'s metrics to compare recordings by, over all pieces that were checked."""
    frames, folders = metrics.get("frames"), [counts for piece, counts in metrics.items() if piece != "frames"]
    outside = [counts["outside_range"] for counts in metrics.values() if "outside_range" in counts]
    return {
        **({"frames": frames["frames"], "episodes": frames["episodes"]} if frames else {}),
        **({name: sum(counts[name] for counts in folders) for name in ("images", "skipped")} if folders else {}),
        **({"outside_range": max(outside)} if outside else {}),
    }


def _guard_drift(
    guard: DriftGuard,
    recording: Path,
    index: pd.DataFrame,
    figures: dict[str, dict[str, pd.DataFrame]],
    references: dict[str, Reference],
) -> dict[str, dict[str, int]]:
    """Compare each modality, and write summary.json and drift.json -> piece -> its count of frames outside."""
    summaries, drift, counts = {}, {}, {}
    for piece, modalities in figures.items():
        for name, values in modalities.items():
            is_train = index["split"][values.index] == "train"
            summary = summarize(values[is_train])
            if summary:
                summaries[name] = summary.model_dump()
            others = values if name in references else values[~is_train]
            reference = references.get(name) or (Reference(TRAIN, summary) if summary else None)
            if reference and len(others):
                place = recording / ("frames.parquet" if piece == "frames" else piece)
                drift[name] = compare(name, place, others, index["episode"], reference, guard.tolerance)
        outside = [drift[name]["outside"] for name in modalities if name in drift]
        counts[piece] = {"outside_range": max(outside)} if outside else {}
    if guard.metrics_dir:
        write_json(guard.metrics_dir / "summary.json", summaries)
        write_json(guard.metrics_dir / "drift.json", drift)
    return counts


def image_folders(recording: Path, info: RecordingInfo) -> list[str]:
    """The folders of images to check: those that ``recording.json`` describes, and ``masks`` where there is one."""
    folders = [f"rgb/{camera}" for camera in info.cameras]
    folders += depth_folders(recording) if info.depth else []
    folders += ["masks"] if (recording / "masks").is_dir() else []
    there = [*depth_folders(recording), *(f"rgb/{path.name}" for path in recording.glob("rgb/*"))]
    unnamed = sorted(name for name in there if name not in folders and (recording / name).is_dir())
    if unnamed:
        warnings.warn(f"{recording}: recording.json does not describe {', '.join(unnamed)}: not checked", stacklevel=2)
    return folders


def depth_folders(recording: Path) -> list[str]:
    """``depth/<camera>`` of each depth camera where there are such folders, else ``depth``."""
    there = sorted((recording / "depth").glob("*"))
    cameras = [path for path in there if path.is_dir() and path.suffix.lower() not in SUFFIXES]
    has_images = any(path.suffix.lower() in SUFFIXES for path in there)
    return (["depth"] if has_images or not cameras else []) + [f"depth/{path.name}" for path in cameras]


def check_frames(path: Path, info: RecordingInfo, params: SplitParams) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Check ``frames.parquet`` and split it by episode -> its rows with the column ``split``, metrics.

    A column ``split`` of the table wins over the seed (`sightline.recording.split.complete_split`).

    Raises:
        UserError: see `sightline.recording.frames.read_frames`; fewer episodes than parts of the split.
    """
    frames = read_frames(path, info)
    try:
        if "split" in frames:
            split = complete_split(dict(zip(frames["episode"], frames["split"], strict=True)), params)
        else:
            split = split_episodes(frames["episode"].unique(), params)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    frames["split"] = frames["episode"].map(split)
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
) -> tuple[pd.DataFrame, dict[str, Any], pd.DataFrame]:
    """Check one folder of images against the frame index -> its rows whose image is sound, metrics, figures of those.

    Every frame needs an image, but masks may be sparse. Images of no frame are not read; a warning counts them.

    Raises:
        UserError: the folder is missing, not described by recording.json, or has no image of any frame; with
            ``on_error`` "fail" a broken or missing image; with "skip" when a part of the split would be left empty;
            depth that lies elsewhere than its height range.
    """
    kind = _kind(folder, info)
    images = list_frames(recording / folder)
    there = {int(i): images[i] for i in index["frame_id"] if i in images}
    if not there:
        raise UserError(f"{recording / folder}: none of its {len(images)} images belongs to a frame of frames.parquet")
    if len(there) < len(images):
        unnamed = f"{len(images) - len(there)} of {len(images)} images"
        warnings.warn(f"{recording / folder}: {unnamed} belong to no frame of frames.parquet: not read", stacklevel=2)
    tally = _read_images(kind, info, there, folder, processes)
    warn_of_changes(tally.changes, there)
    expected = index[index["frame_id"].isin(there)] if kind == "masks" else index
    problems = tally.problems | {
        i: f"frames.parquet names frame {i} but {recording / folder}/{i:06d}.png is not there"
        for i in expected["frame_id"]
        if i not in there
    }
    sound = expected[~expected["frame_id"].isin(problems)]
    faults = check_height_range(recording / folder, tally.pixels, info.depth) if info.depth and kind == "depth" else []
    try:
        _answer_problems(folder, problems, expected, sound, on_error)
    except UserError as error:
        faults.insert(0, str(error))
    if faults:
        raise UserError("\n".join(faults))
    counts = {
        "images": len(there),
        "broken": len(tally.problems),
        "missing": len(index) - len(there),
        "skipped": len(problems),
        "sound": len(sound),
    }
    return sound, counts | _KINDS[kind][1](tally, info), pd.concat(tally.figures).loc[sound["frame_id"]]


def _answer_problems(
    folder: str, problems: dict[int, str], expected: pd.DataFrame, sound: pd.DataFrame, on_error: str
) -> None:
    """Raise an error or warn about the ``problems`` (frame id -> what is wrong), as ``on_error`` says."""
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
    """Results of checking some images of a folder."""

    problems: dict[int, str] = field(default_factory=dict)  # frame id -> what is wrong
    pixels: np.ndarray = field(default_factory=lambda: np.zeros(_RAW_COUNTS, np.int64))  # per value, in sound images
    figures: list[pd.DataFrame] = field(default_factory=list)  # of sound images, by frame id
    changes: dict[int, str] = field(default_factory=dict)  # frame id -> how a picture is changed to be RGB


def _read_images(kind: str, info: RecordingInfo, images: dict[int, Path], title: str, processes: int | None) -> _Tally:
    items, total = list(images.items()), _Tally()
    chunks = [items[start : start + _CHUNK] for start in range(0, len(items), _CHUNK)]
    jobs = [((kind, info, chunk), len(chunk)) for chunk in chunks]
    for tally in unordered_map(
        _read_chunk, jobs, total=len(items), unit="image", title=f"check {title}", processes=processes
    ):
        total.problems |= tally.problems
        total.pixels += tally.pixels
        total.figures += tally.figures
        total.changes |= tally.changes
    return total


def _read_chunk(job: tuple[str, RecordingInfo, list[tuple[int, Path]]]) -> _Tally:
    kind, info, images = job
    tally, figures = _Tally(), {}
    with warnings.catch_warnings(action="ignore"):  # Pillow's, on files that it reads all the same
        for frame_id, path in images:
            try:
                changes: list[str] = []
                pixels, figures[frame_id] = _KINDS[kind][0](path, info, changes)
            except UserError as error:
                tally.problems[frame_id] = str(error)
                continue
            tally.pixels += pixels
            if changes:
                tally.changes[frame_id] = changes[0]
    if figures:
        tally.figures.append(pd.DataFrame.from_dict(figures, orient="index"))
    return tally


def _read_depth(path: Path, info: RecordingInfo, _: list[str]) -> tuple[np.ndarray, dict[str, float]]:
    assert info.depth is not None
    pixels = np.bincount(decode(read_depth(path), info.depth.encoding).ravel(), minlength=_RAW_COUNTS)
    if pixels.sum() == pixels[list(info.depth.invalid)].sum():
        raise UserError(
            f"{path}: every pixel is invalid ({', '.join(map(str, info.depth.invalid))}): nothing was measured"
        )
    return pixels, depth_figures(pixels, info.depth)


def _read_mask(path: Path, info: RecordingInfo, _: list[str]) -> tuple[np.ndarray, dict[str, float]]:
    pixels = np.bincount(read_mask(path).ravel(), minlength=_RAW_COUNTS)
    unknown = [i for i in np.flatnonzero(pixels) if i >= len(info.classes) and i != IGNORE]
    if unknown:
        raise UserError(f"{path}: class ids {first_few(unknown)}; recording.json names {len(info.classes)} classes")
    return pixels, mask_figures(pixels, info.classes, IGNORE)


def _read_rgb(path: Path, info: RecordingInfo, changes: list[str]) -> tuple[np.ndarray, dict[str, float]]:
    return np.zeros(_RAW_COUNTS, np.int64), rgb_figures(read_rgb(path, changes))


def _depth_content(tally: _Tally, info: RecordingInfo) -> dict[str, Any]:
    assert info.depth is not None
    share = pd.concat(tally.figures).sort_index()["invalid_share"]
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
    folders = [f"rgb/{camera}" for camera in info.cameras]
    folders += ["depth"] if info.depth else []
    folders += ["masks"] if info.classes else []
    if info.depth and re.fullmatch(r"depth/[^/]+", folder):
        return "depth"
    if folder not in folders:
        raise UserError(
            f"{folder}: recording.json describes only {', '.join(folders) or 'the table'}; name one of them"
        )
    return folder.split("/")[0]


_Read = Callable[[Path, RecordingInfo, list[str]], tuple[np.ndarray, dict[str, float]]]
_KINDS: dict[str, tuple[_Read, Callable[[_Tally, RecordingInfo], dict[str, Any]]]] = {
    "depth": (_read_depth, _depth_content),
    "masks": (_read_mask, _mask_content),
    "rgb": (_read_rgb, lambda tally, info: {}),
}
