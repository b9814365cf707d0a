"""Demonstrations of any source, and how they become a recording.

A source says what it has as `Demonstration`s: small tables in memory, and pictures that are only described, so that a
worker process can read them. Pictures are written episode by episode to the scratch folder, where they stay until the
recording is whole: an interrupted import continues, and the recording appears in one step.
"""

import os
import shlex
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from sightline.core.errors import UserError
from sightline.core.files import atomic_output, claim, discard, file_sha256, fingerprint, scratch_folder
from sightline.core.parallel import unordered_map
from sightline.importers.options import NATIVE, ImportOptions
from sightline.importers.pictures import MAX_COUNT, Pictures
from sightline.recording.frames import first_few
from sightline.recording.layout import DepthInfo, RecordingInfo, write_recording_info
from sightline.recording.split import PARTS

FROM_DATA = (0, MAX_COUNT)  # height_range: all counts, so that the pictures decide it
_TAILS = 0.001  # share of the readings beyond each end of a height_range that the pictures decide
_TALLY = "counts.npy"  # in an episode's folder: pixels of each count in its depth, int64 [65536]


@dataclass(frozen=True)
class Demonstration:
    """One episode of a source.

    ``columns`` has ``time_s`` [T], seconds, ``joints`` [T, J] and ``actions`` [T, A]; perhaps ``reward`` [T],
    ``success`` [T] (bool) and ``task`` [T] (text). With ``split``, all episodes must have one.
    """

    number: int  # of the episode
    source: str  # the file (and place in it) that the columns are from, for messages
    columns: dict[str, np.ndarray]
    pictures: dict[str, Pictures]  # camera name -> one colour picture per row
    depth: dict[str, Pictures] = field(default_factory=dict)  # depth camera -> counts, uint16 [H, W], one per row
    split: str | None = None  # train, val or test, where the source says so

    @property
    def steps(self) -> int:
        return len(self.columns["time_s"])


def write_recording(
    demonstrations: list[Demonstration],
    target: Path,
    fps: float,
    joint_names: tuple[str, ...],
    options: ImportOptions,
    *,
    left_out: Sequence[str] = (),
    notes: Sequence[str] = (),
    depth: DepthInfo | None = None,
) -> str:
    """Write a recording of ``demonstrations``, and return what was done and what to do next, for the user to read.

    ``target`` appears whole or not at all. frame_id counts the frames of all episodes, in the order of their numbers,
    so that episodes added at the end change no older one. Finished episodes stay in the scratch folder until then.

    One depth camera is written to ``depth/``, several to ``depth/<camera>/``, as PNG of 16 bits in the source's size:
    a count is never averaged with another.

    Args:
        fps: frames per second, for recording.json.
        options: of which ``size`` and ``processes`` count here; the others are for the reader of the source.
        left_out: keys of the source that are not imported; they are named in one line.
        notes: further lines for the user: what was assumed, turned or chosen.
        depth: unit and invalid codes for recording.json, where demonstrations have depth. A ``height_range`` of
            `FROM_DATA` is replaced by the one that the pictures hold, without the nearest and farthest 0.1 % of the
            readings; 65535 becomes an invalid code, too, where pictures hold it, as no sensor measures it.

    Raises:
        UserError: ``target`` is not empty; episodes without rows, of different columns or joint counts, with NaN or
            with time that does not rise; pictures that are broken, not colour, or not one per row; a full disk.
    """
    # refuse what can be refused before any picture is read
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"{target}: exists and is not an empty folder; name a new one, or delete it first")
    size = options.size
    if size < 0:
        raise UserError(f"--size {size}: give the shorter side in pixels, or 0 for the pictures' own size")
    demonstrations = sorted(demonstrations, key=lambda d: d.number)
    _check(demonstrations)
    info = RecordingInfo(fps=fps, cameras=tuple(demonstrations[0].pictures), joints=joint_names)
    folders = _folders(demonstrations[0])
    sizes = {folder: _first_size(pictures) for folder, pictures in folders.items()}
    # one job per episode; its folder in the scratch folder is named by all that decides its pictures
    place = target.resolve()
    scratch = claim(scratch_folder("import", fingerprint(str(place))))
    code = [file_sha256(path) for path in sorted(Path(__file__).parent.glob("*.py"))]
    jobs = [_Job(d, scratch / _identity(d, size, code), size) for d in demonstrations]
    to_do = [(job, job.demonstration.steps) for job in jobs if not job.folder.is_dir()]  # earlier runs did the others
    frames, first = sum(d.steps for d in demonstrations), 0
    try:
        # write the pictures, episode by episode
        for _ in unordered_map(
            _write_pictures, to_do, total=frames, unit="frame", title="import", processes=options.processes
        ):
            pass
        if depth:
            tally = sum((np.load(job.folder / _TALLY) for job in jobs), np.zeros(MAX_COUNT + 1, np.int64))
            info = info.model_copy(update={"depth": _with_range(depth, tally, target)})
        # put the recording together, and let it appear in one step
        with atomic_output(place) as temporary:
            for folder in folders:
                (temporary / folder).mkdir(parents=True)
            for job in jobs:
                _link_pictures(job, temporary, first)
                first += job.demonstration.steps
            pq.write_table(_table(demonstrations), temporary / "frames.parquet")
            write_recording_info(temporary / "recording.json", info)
    except OSError as error:
        raise UserError(f"{error.filename or target}: cannot be written: {error.strerror or error}") from None
    discard(scratch)
    return _summary(demonstrations, target, info, sizes, size, left_out, notes)


@dataclass(frozen=True)
class _Job:
    demonstration: Demonstration
    folder: Path  # of the episode's pictures, to be written
    size: int


def _folders(demonstration: Demonstration) -> dict[str, Pictures]:
    """The recording's folders of images, and the pictures of an episode that go there."""
    rgb, depth = demonstration.pictures, demonstration.depth
    alone = len(depth) == 1
    return {f"rgb/{name}": pictures for name, pictures in rgb.items()} | {
        "depth" if alone else f"depth/{name}": pictures for name, pictures in depth.items()
    }


def _check(demonstrations: list[Demonstration]) -> None:
    """Check all that needs no pictures."""
    first = demonstrations[0]
    for one, other in pairwise(demonstrations):
        if one.number == other.number:
            raise UserError(f"{other.source}: episode {other.number} is also {one.source}; leave one of them out")
    for d in demonstrations:
        if d.steps == 0:
            raise UserError(f"{d.source}: the episode has no rows; leave it out with --skip {d.number}")
        if d.columns.keys() != first.columns.keys():
            odd = ", ".join(sorted(d.columns.keys() ^ first.columns.keys()))
            raise UserError(f"{d.source}: only one of it and {first.source} has {odd}; import them separately")
        if d.depth.keys() != first.depth.keys():
            odd = ", ".join(sorted(d.depth.keys() ^ first.depth.keys()))
            raise UserError(f"{d.source}: only one of it and {first.source} has depth {odd}; choose with --depth")
        if (d.split is None) != (first.split is None) or d.split not in (None, *PARTS):
            raise UserError(f"{d.source}: split {d.split}, but {first.source} has {first.split}; give each a part")
        for name, values in d.columns.items():
            if values.dtype.kind in "OUT":  # text
                continue
            if values.ndim == 2 and values.shape[1] != first.columns[name].shape[1]:
                counts = f"{values.shape[1]} {name}, but {first.source} has {first.columns[name].shape[1]}"
                raise UserError(f"{d.source}: has {counts}; import episodes of different robots separately")
            bad = np.flatnonzero(~np.isfinite(values.reshape(d.steps, -1).astype(float)).all(axis=1))
            if len(bad):
                raise UserError(
                    f"{d.source}: {name}: {len(bad)} of {d.steps} rows hold NaN or infinity (rows {first_few(bad)}); "
                    f"mend them, or leave the episode out with --skip {d.number}"
                )
        falls = np.flatnonzero(np.diff(d.columns["time_s"]) <= 0) + 1
        if len(falls):
            raise UserError(
                f"{d.source}: time does not rise at {len(falls)} of {d.steps} rows ({first_few(falls)}); mend them, or "
                f"leave the episode out with --skip {d.number}"
            )


def _first_size(pictures: Pictures) -> tuple[int, int]:
    """Height and width of the first picture. A camera that cannot be imported fails here, before hours of work."""
    for pixels in pictures:
        return pixels.shape[0], pixels.shape[1]
    raise UserError(f"{pictures.path}: holds no pictures; copy or record it again")


def _target_size(height: int, width: int, size: int) -> tuple[int, int]:
    scale = size / min(height, width)
    return (height, width) if size == NATIVE or scale >= 1 else (round(height * scale), round(width * scale))


def _identity(demonstration: Demonstration, size: int, code: list[str]) -> str:
    """Hash of all that decides an episode's pictures; a source file counts as unchanged while its size and date are."""
    folders = _folders(demonstration)
    files = [pictures.path.stat() for pictures in folders.values()]
    dates = [(file.st_size, file.st_mtime_ns) for file in files]
    return fingerprint(repr(folders), demonstration.steps, dates, size, code)


def _write_pictures(job: _Job) -> None:
    """Write ``<folder>/rgb/<camera>/<step:06d>.png`` of an episode, the same of its depth, and the tally of that."""
    demonstration, tally = job.demonstration, np.zeros(MAX_COUNT + 1, np.int64)
    with atomic_output(job.folder) as folder:
        for name, pictures in _folders(demonstration).items():
            (folder / name).mkdir(parents=True)
            count = 0
            for count, pixels in enumerate(pictures, start=1):
                if count > demonstration.steps:
                    continue
                path = folder / name / f"{count - 1:06d}.png"
                if pixels.ndim == 2:
                    tally += np.bincount(pixels.ravel(), minlength=len(tally))
                    Image.fromarray(pixels).save(path, compress_level=1)
                else:
                    _save(pixels, path, job.size)
            if count != demonstration.steps:
                raise UserError(
                    f"{pictures.path}: {count} pictures of camera {name.removeprefix('rgb/')} in episode "
                    f"{demonstration.number}, but {demonstration.source} has {demonstration.steps} rows; copy them "
                    f"again, or leave the episode out with --skip {demonstration.number}"
                )
        if demonstration.depth:
            np.save(folder / _TALLY, tally)


def _save(pixels_HWC: np.ndarray, path: Path, size: int) -> None:
    height, width = _target_size(pixels_HWC.shape[0], pixels_HWC.shape[1], size)
    image = Image.fromarray(pixels_HWC).resize((width, height), Image.Resampling.BOX)
    image.save(path, compress_level=1)  # a quarter less time than level 3, for 7 % more bytes


def _with_range(depth: DepthInfo, tally: np.ndarray, target: Path) -> DepthInfo:
    """``depth`` with what the pictures decide, from their pixels of each count."""
    if depth.height_range != FROM_DATA:
        return depth
    invalid = (*depth.invalid, *([MAX_COUNT] if tally[MAX_COUNT] and MAX_COUNT not in depth.invalid else []))
    valid = tally.copy()
    valid[list(invalid)] = 0
    up_to = np.cumsum(valid)
    if not up_to[-1]:
        codes = ", ".join(map(str, invalid))
        raise UserError(f"{target}: every depth pixel is invalid ({codes}); import it without, by --depth none")
    near, far = (int(count) for count in np.searchsorted(up_to, np.array([_TAILS, 1 - _TAILS]) * up_to[-1]))
    if near == far:  # a range has two ends
        near, far = max(0, near - 1), min(MAX_COUNT, far + 1)
    return depth.model_copy(update={"invalid": invalid, "height_range": (near, far)})


def _link_pictures(job: _Job, recording: Path, first_id: int) -> None:
    """Put an episode's pictures into the recording, as hard links: a copy would take the disk space twice."""
    for folder in _folders(job.demonstration):
        for step in range(job.demonstration.steps):
            source, target = job.folder / folder / f"{step:06d}.png", recording / folder / f"{first_id + step:06d}.png"
            try:
                os.link(source, target)
            except OSError:  # another disk, or one without links
                shutil.copyfile(source, target)


def _table(demonstrations: list[Demonstration]) -> pa.Table:
    """The rows of frames.parquet."""
    steps = [d.steps for d in demonstrations]
    columns: dict[str, Any] = {
        "frame_id": np.arange(sum(steps)),
        "episode": np.repeat([d.number for d in demonstrations], steps),
        "step": np.concatenate([np.arange(n) for n in steps]),
    }
    for name in demonstrations[0].columns:
        values = np.concatenate([d.columns[name] for d in demonstrations])
        vectors, text = values.ndim == 2, values.dtype.kind in "OUT"
        flat = pa.array([str(value) for value in values], pa.string()) if text else pa.array(values.ravel())
        columns[name] = pa.FixedSizeListArray.from_arrays(flat, values.shape[1]) if vectors else flat
    if demonstrations[0].split is not None:
        columns["split"] = pa.array(np.repeat([d.split for d in demonstrations], steps).tolist(), pa.string())
    return pa.table(columns)


def _depth_words(info: DepthInfo) -> str:
    low, high = info.height_range
    return (
        f"counts of {info.unit_mm:g} mm, {' and '.join(map(str, info.invalid)) or 'none'} = no reading, height_range "
        f"[{low}, {high}] (from the readings, without {_TAILS:.1%} at each end: set the distances of interest in "
        "recording.json)"
    )


def _summary(
    demonstrations: list[Demonstration],
    target: Path,
    info: RecordingInfo,
    sizes: dict[str, tuple[int, int]],
    size: int,
    left_out: Sequence[str],
    notes: Sequence[str],
) -> str:
    first, frames = demonstrations[0], sum(d.steps for d in demonstrations)
    columns = [f"{values.shape[1]} {name}" if values.ndim == 2 else name for name, values in first.columns.items()]
    columns += ["split"] if first.split else []
    lines = [f"{target}: {len(demonstrations)} episodes, {frames} frames at {info.fps:g} fps; {', '.join(columns)}"]
    for folder, (height, width) in sizes.items():
        new = _target_size(height, width, NATIVE if folder.startswith("depth") else size)
        how = "as they were" if new == (height, width) else f"averaged down to {new[0]}x{new[1]}"
        lines.append(f"  {folder}: pictures of {height}x{width} pixels, {how}")
    if info.depth:
        lines.append(f"  depth: {_depth_words(info.depth)}")
    lines += [f"  {note}" for note in notes]
    lines += [f"  not imported: {', '.join(left_out)}"] if left_out else []
    next_step = f"  sightline add_recording {shlex.quote(str(target))}"
    return "\n".join([*lines, "Next, track it and use it:", next_step])
