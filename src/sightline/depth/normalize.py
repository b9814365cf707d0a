"""Normalise a folder of uint16 depth images to one HDF5 file (`sightline.depth.store`)."""

import json
import shutil
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import AfterValidator, Field, model_validator

from sightline.core.cache import digest
from sightline.core.errors import UserError
from sightline.core.files import atomic_output, claim, discard, fingerprint, scratch_folder
from sightline.core.hdf5 import open_for_writing
from sightline.core.parallel import unordered_map
from sightline.core.params import Section
from sightline.depth.preprocessing import IMAGE_SIZE, Preprocessing, normalize_counts, read_raw, resize_image
from sightline.depth.screening import multiples, repeated_across_parts, warn_of_encoding
from sightline.depth.store import create_depth_store, open_depth_rows
from sightline.recording.depth import Count, check_height_range
from sightline.recording.layout import read_recording_info
from sightline.recording.names import BY_NAME, Naming, list_frames, list_images
from sightline.recording.split import GUARD, SplitParams, counted, split_blocks

BLOCK = 32  # images a worker takes at a time


class NormalizeParams(Section):
    """How depth images become 128x128 values in [-1, 1]."""

    channels: Literal[1, 3] = Field(1, description="1: uint16 depth images; 3: 8-bit RGB images")
    height_range: Annotated[tuple[Count, Count], AfterValidator(check_height_range)] | None = Field(
        None, description="raw counts [near, far] that map to [-1, 1]; null: recording.json's, else all; RGB: [0, 255]"
    )
    invalid: tuple[Count, ...] | None = Field(
        None, description="raw counts that mean 'no reading'; null: recording.json's, else [0, 65535]; RGB: none"
    )
    unit_mm: float | None = Field(None, gt=0, description="millimetres per raw count; null: recording.json's, else 1")
    depth_encoding: Literal["raw", "rotr3", "byteswap"] = Field(
        "raw", description="how files hold a count: raw, rotr3 (bits rotated, SUN RGB-D), byteswap (NYU raw)"
    )
    fit: Literal["squash", "crop", "pad"] = Field(
        "squash", description="how an oblong image becomes square: squash, crop (central part), pad (invalid margins)"
    )
    resize: Literal["nearest", "area"] = Field(
        "nearest", description="nearest pixel, or area: mean over the valid part of each target pixel's footprint"
    )

    @model_validator(mode="after")
    def _is_possible(self) -> "NormalizeParams":
        if self.channels == 3 and (self.depth_encoding != "raw" or self.unit_mm is not None):
            raise ValueError("RGB images (channels 3) have neither a depth_encoding nor a unit_mm")
        return self


@dataclass(frozen=True)
class Frames:
    """The images to normalise, and what belongs to each."""

    paths: list[Path]
    frame_id: np.ndarray  # int64 [N]
    episode: np.ndarray  # int64 [N]
    split: np.ndarray  # str [N]
    time_ns: np.ndarray | None = None  # int64 [N], where names are time stamps
    recording: str = ""  # see `sightline.recording.frames.recording_key`; "" for a bare folder

    def keep(self, rows: np.ndarray) -> "Frames":
        """The frames at ``rows``."""
        times = None if self.time_ns is None else self.time_ns[rows]
        kept = self.frame_id[rows], self.episode[rows], self.split[rows]
        return Frames([self.paths[i] for i in rows], *kept, times, self.recording)


def normalize_depth(
    folder: Path,
    output: Path,
    params: NormalizeParams,
    *,
    split: SplitParams,
    on_error: Literal["fail", "skip"] = "fail",
    index: Path | None = None,
    recording: Path | None = None,
    naming: Naming = BY_NAME,
    processes: int | None = None,
) -> dict[str, Any]:
    """Write the normalised depth of ``folder`` to ``output``, and return figures about it.

    An interrupted run continues where it was; ``output`` appears whole or not at all.

    Args:
        folder: uint16 PNG or TIFF images of any size, or 8-bit RGB images with ``channels=3``; see
            `sightline.recording.names` for their ids.
        output: HDF5 file, see `sightline.depth.store`.
        split: how to split a bare folder (no ``index``) into contiguous blocks.
        on_error: "fail" lists all broken images and writes nothing, "skip" leaves them out.
        index: frame index written by `validate`; None takes every image of the folder.
        naming: how the files of a bare folder are named.
        recording: ``recording.json`` that says height range, invalid codes, unit and encoding where ``params`` do not.
        processes: None takes one per core; the output does not depend on it.

    Raises:
        UserError: nothing to read, broken images (all of them listed) with "fail", or all broken.
    """
    preprocessing = resolve_preprocessing(params, recording)
    frames = _frames_of_index(folder, index) if index else _frames_of_folder(folder, split, naming)
    files = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in frames.paths]
    settings = preprocessing.model_dump(), params.channels, frames.frame_id.tolist(), frames.recording
    scratch = claim(scratch_folder("normalize", fingerprint(str(folder.resolve()), settings, files)))
    partial, journal = scratch / "depth.hdf5", scratch / "journal.jsonl"
    if not (journal.exists() and partial.exists()):  # killed before the first block, or after the last
        journal.unlink(missing_ok=True)
        _create(partial, frames, preprocessing, params.channels)
        journal.touch()
    blocks = _process_blocks(frames, preprocessing, params.channels, partial, journal, processes)
    reports = sorted(blocks, key=lambda report: report["start"])
    failures = {row: message for report in reports for row, message in report["failures"]}
    if failures and (on_error == "fail" or len(failures) == len(frames.paths)):
        discard(scratch)  # the user will mend images, so a later run can use nothing of this one
        raise UserError(_list_failures(failures, len(frames.paths)))
    if params.channels == 1:
        warn_of_encoding([pair for report in reports for pair in report["multiples"]], preprocessing)
    digests = {row: key for report in reports for row, key in zip(report["rows"], report["digests"], strict=True)}
    duplicates = repeated_across_parts(digests, frames.split)
    frames.split[duplicates] = GUARD
    with open_for_writing(partial, "r+") as file:
        file["split"][...] = frames.split.astype("S5")
    with atomic_output(output) as temporary:
        if failures:
            warnings.warn(f"{len(failures)} of {len(frames.paths)} images are broken and left out", stacklevel=2)
            rows = np.setdiff1d(np.arange(len(frames.paths)), list(failures))
            _copy_rows(partial, temporary, frames.keep(rows), rows, preprocessing, params.channels)
        else:
            shutil.move(partial, temporary)
    discard(scratch)
    if index is None:
        say_folder(folder, preprocessing, frames.split, len(duplicates))
    figures = _figures(frames, reports, preprocessing) | {"duplicates_left_out": len(duplicates)}
    return figures | (preprocessing.range_mm() if params.channels == 1 else {})


def say_folder(folder: Path, preprocessing: Preprocessing, split: np.ndarray, repeated: int = 0) -> None:
    """Say on standard error how a bare folder was mapped and split; ``repeated``: frames left out as duplicates."""
    also = f"; {repeated} of these repeated from another part" if repeated else ""
    span = list(preprocessing.height_range)
    print(f"{folder}: normalize.height_range {span}; {counted(split)}{also}", file=sys.stderr)


def resolve_preprocessing(params: NormalizeParams, recording: Path | None) -> Preprocessing:
    """The preprocessing that ``params`` ask for, completed from ``recording.json``; warns where neither has a range."""
    if params.channels == 3:
        height_range, invalid = params.height_range or (0, 255), params.invalid or ()
        return Preprocessing(height_range=height_range, invalid=invalid, fit=params.fit, resize=params.resize)
    info = read_recording_info(recording).depth if recording else None
    if recording and info is None:
        raise UserError(f"{recording}: has no depth entry, so its depth images cannot be normalised")
    values: dict[str, Any] = {"fit": params.fit, "resize": params.resize}
    values |= {name: getattr(info, name) for name in ("height_range", "invalid", "unit_mm")} if info else {}
    set_here = {name: getattr(params, name) for name in ("height_range", "invalid", "unit_mm")}
    values |= {name: value for name, value in set_here.items() if value is not None}
    recorded = info.encoding if info and params.depth_encoding == "raw" else None
    values["depth_encoding"] = recorded or params.depth_encoding
    if "height_range" not in values:
        warnings.warn(
            "normalize.height_range is not set: the full uint16 range 0..65535 is mapped to [-1, 1], which leaves "
            "little resolution for the usual millimetres; set it, e.g. --set normalize.height_range=[500,4500]",
            stacklevel=2,
        )
    return Preprocessing(**values)


def _frames_of_index(folder: Path, index: Path) -> Frames:
    from sightline.recording.frames import (
        read_index,
        read_recording_key,
    )  # imports pandas: twice as long as all the rest, in each worker

    table, images = read_index(index), list_frames(folder)
    absent = [str(i) for i in table["frame_id"] if i not in images]
    if absent:
        raise UserError(
            f"{index}: names frames that {folder} does not hold ({len(absent)}, first {absent[0]}); "
            "run sightline validate again"
        )
    ids = table["frame_id"].to_numpy(np.int64)
    columns = table["episode"].to_numpy(np.int64), table["split"].to_numpy(str)
    return Frames([images[i] for i in ids], ids, *columns, recording=read_recording_key(index))


def _frames_of_folder(folder: Path, split: SplitParams, naming: Naming) -> Frames:
    images = list_images(folder, naming=naming)
    ids = np.fromiter(images.paths, np.int64)
    try:
        parts = split_blocks(len(ids), split)
    except UserError as error:  # too few to train on, but not to embed
        warnings.warn(f"{folder}: {error}; all are marked train", stacklevel=3)
        parts = np.full(len(ids), "train")
    times = np.fromiter(images.time_ns.values(), np.int64) if images.time_ns else None
    return Frames(list(images.paths.values()), ids, np.full(len(ids), -1, np.int64), parts, times)


def _process_blocks(
    frames: Frames, preprocessing: Preprocessing, channels: int, partial: Path, journal: Path, processes: int | None
) -> Iterator[dict[str, Any]]:
    """Yield the report of each block of images, from the journal of an earlier run or after writing its rows."""
    written, whole, _ = journal.read_text().rpartition("\n")  # a kill may have cut the last line short
    journal.write_text(written + whole)
    done = [json.loads(line) for line in written.splitlines()]
    yield from done
    starts = sorted(set(range(0, len(frames.paths), BLOCK)) - {report["start"] for report in done})
    blocks = ((start, frames.paths[start : start + BLOCK]) for start in starts)
    jobs = (((partial, start, paths, preprocessing, channels), len(paths)) for start, paths in blocks)
    with open(journal, "a", encoding="utf-8") as file:
        total = len(frames.paths)
        for report in unordered_map(
            _normalize_block, jobs, total=total, unit="img", title="normalize", processes=processes
        ):
            file.write(json.dumps(report) + "\n")
            file.flush()
            yield report


def _normalize_block(job: tuple[Path, int, list[Path], Preprocessing, int]) -> dict[str, Any]:
    """Normalise one block of images into its rows of the partial file; report failures and counts."""
    partial, start, paths, preprocessing, channels = job
    resized: dict[int, tuple[np.ndarray, np.ndarray]] = {}
    failures: list[tuple[int, str]] = []
    report: dict[str, Any] = {"start": start, "failures": failures, "multiples": []}
    report |= {"rows": [], "valid": [], "clipped": 0, "digests": []}
    for row, path in enumerate(paths, start):
        try:
            raw = read_raw(path, channels)
            counts, valid = resize_image(raw, preprocessing)
            if not valid.any():
                raise UserError(f"{path}: no valid pixel (every one is {' or '.join(map(str, preprocessing.invalid))})")
            resized[row] = counts, valid
            if channels == 1:
                report["multiples"].append(multiples(raw, preprocessing.invalid))
        except UserError as error:
            failures.append((row, str(error)))
    if resized:
        rows = np.array(list(resized))
        valid_N = np.stack([valid for _, valid in resized.values()])
        depth_N, clipped = normalize_counts(np.stack([c for c, _ in resized.values()]), valid_N, preprocessing)
        depth_rows, valid_rows = open_depth_rows(partial)
        depth_rows[rows], valid_rows[rows] = depth_N, valid_N
        report |= {
            "rows": rows.tolist(),
            "valid": valid_N.sum(axis=(1, 2)).tolist(),
            "clipped": int(clipped.sum()) / channels,
            "digests": [digest(image).hex() for image in depth_N],
        }
    return report


def _list_failures(failures: dict[int, str], total: int) -> str:
    remedy = "mend them, or set data.on_error=skip to leave them out" if len(failures) < total else "nothing is left"
    lines = [message for _, message in sorted(failures.items())]
    return "\n  ".join([f"{len(failures)} of {total} images are broken; {remedy}", *lines])


def _create(path: Path, frames: Frames, preprocessing: Preprocessing, channels: int) -> None:
    columns = {"frame_id": frames.frame_id, "episode": frames.episode, "split": frames.split.astype("S5")}
    times = {} if frames.time_ns is None else {"time_ns": frames.time_ns}
    create_depth_store(path, columns | times, preprocessing, channels, frames.recording)


def _copy_rows(
    source: Path, target: Path, frames: Frames, rows: np.ndarray, preprocessing: Preprocessing, channels: int
) -> None:
    _create(target, frames, preprocessing, channels)
    for old, new in zip(open_depth_rows(source), open_depth_rows(target), strict=True):
        for start in range(0, len(rows), BLOCK):
            new[start : start + BLOCK] = old[rows[start : start + BLOCK]]


def _figures(frames: Frames, reports: list[dict[str, Any]], preprocessing: Preprocessing) -> dict[str, Any]:
    valid = np.concatenate([report["valid"] for report in reports])
    share = valid / IMAGE_SIZE**2
    clipped_share = sum(report["clipped"] for report in reports) / valid.sum()
    if clipped_share > 0.05:
        warnings.warn(
            f"{clipped_share:.1%} of the valid pixels lie outside height_range {list(preprocessing.height_range)} "
            "and are clipped; widen normalize.height_range to keep them apart",
            stacklevel=3,
        )
    return {
        "images": len(valid),
        "skipped": len(frames.paths) - len(valid),
        "valid_share": {"mean": round(float(share.mean()), 6), "min": round(float(share.min()), 6)},
        "clipped_share": round(float(clipped_share), 6),
    }
