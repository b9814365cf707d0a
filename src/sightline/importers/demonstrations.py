"""Demonstrations of any source, and how they become a recording.

A source says what it has as `Demonstration`s: small tables in memory, and pictures that are only described, so that a
worker process can read them. Pictures are written episode by episode to the scratch folder, where they stay until the
recording is whole: an interrupted import continues, and the recording appears in one step.
"""

import os
import re
import shlex
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, UnidentifiedImageError

from sightline.core.errors import UserError
from sightline.core.files import atomic_output, claim, discard, file_sha256, fingerprint, scratch_folder
from sightline.core.parallel import unordered_map
from sightline.recording.frames import first_few
from sightline.recording.images import MAX_PIXELS
from sightline.recording.layout import RecordingInfo, write_recording_info

NATIVE = 0  # picture size: as it is
_LFS = b"version https://git-lfs.github.com/spec/"


@dataclass(frozen=True)
class ImportOptions:
    """What the user chooses about an import, whatever the source."""

    cameras: Sequence[str] = ()  # see `choose_cameras`
    joints: Sequence[str] = ()  # keys of the source that are joined as joint states; empty: the format's usual one
    actions: Sequence[str] = ()  # the same of the actions
    skip: Sequence[int] = ()  # numbers of the episodes to leave out
    size: int = 224  # shorter side of the written pictures, pixels; smaller ones are not enlarged. `NATIVE`: no change
    processes: int | None = None  # that read and write pictures; None: one per core


class Pictures(Protocol):
    """The pictures of one camera in one episode. Can be sent to another process; equal ``repr``, equal pictures."""

    @property
    def path(self) -> Path:
        """The file that holds them."""

    def __iter__(self) -> Iterator[np.ndarray]:
        """Yield uint8 RGB [H, W, 3]. Raises `UserError` where the file is broken or its pictures are not colour."""


@dataclass(frozen=True)
class Demonstration:
    """One episode of a source.

    ``columns`` has ``time_s`` [T], seconds, ``joints`` [T, J] and ``actions`` [T, A]; perhaps ``reward`` [T] and
    ``success`` [T] (bool).
    """

    number: int  # of the episode
    source: str  # the file (and place in it) that the columns are from, for messages
    columns: dict[str, np.ndarray]
    pictures: dict[str, Pictures]  # camera name -> one picture per row

    @property
    def steps(self) -> int:
        return len(self.columns["time_s"])


def choose_cameras(options: Iterable[str], keys: Iterable[str], source: Path) -> dict[str, str]:
    """Which cameras are imported: key in the source -> name in the recording, in the source's order.

    Args:
        options: ``KEY=NAME`` or ``KEY`` strings; with any, only these cameras. Without: all, each named by the last
            component of its key.
        keys: of the source's cameras.
        source: for messages.

    Raises:
        UserError: no cameras, an unknown key, a name that cannot be a folder's, two cameras of one name.
    """
    keys, names = list(keys), dict[str, str]()
    if not keys:
        raise UserError(f"{source}: no camera pictures in it; a recording needs at least one camera")
    for option in options or keys:
        key, _, name = option.partition("=")
        if key not in keys:
            raise UserError(f"--camera {option}: no camera {key!r} in {source}; it has {', '.join(keys)}")
        if key in names:
            raise UserError(f"--camera {option}: {key} is named twice; name it once")
        names[key] = name or re.split(r"[./]", key)[-1]
        if not re.fullmatch(r"\w[\w-]*", names[key]):
            raise UserError(f"--camera {option}: {names[key]!r} names a folder; use letters, digits, _ and - only")
    for name, count in Counter(names.values()).items():
        if count > 1:
            same = " and ".join(key for key in names if names[key] == name)
            raise UserError(f"cameras {same} would both be called {name}; name them with --camera KEY=NAME")
    return {key: names[key] for key in keys if key in names}


def leave_out(numbers: list[int], skip: Iterable[int], source: Path) -> set[int]:
    """Numbers of episodes without those in ``skip``. Raises `UserError` for a number that no episode has."""
    for number in skip:
        if number not in numbers:
            raise UserError(f"--skip {number}: no episode {number} in {source}; it has {first_few(sorted(numbers))}")
    remaining = set(numbers) - set(skip)
    if not remaining:
        raise UserError(f"{source}: no episode is left of {len(numbers)}; skip fewer with --skip")
    return remaining


def require_data(path: Path) -> Path:
    """Return ``path`` if it is a file with data. Raises `UserError` if it is missing or a git-LFS pointer."""
    try:
        with open(path, "rb") as file:
            start = file.read(len(_LFS))
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}; copy or download it again") from None
    if start == _LFS:
        raise UserError(f'{path}: a git-LFS pointer, not the data; run "git lfs pull" where it comes from')
    return path


def decode_picture(data: bytes, where: str) -> np.ndarray:
    """Decode a JPEG or PNG image (bytes after its end are ignored) -> uint8 RGB [H, W, 3].

    Raises:
        UserError: naming ``where``: not an image, a broken one, or not 8-bit RGB.
    """
    try:
        with Image.open(BytesIO(data)) as image:
            if image.mode != "RGB":
                raise UserError(f"{where}: a picture of mode {image.mode}, not RGB; name colour cameras with --camera")
            if image.width * image.height > MAX_PIXELS:
                raise UserError(f"{where}: {image.width} x {image.height} pixels are more than {MAX_PIXELS:,}")
            return np.asarray(image)
    except UserError:
        raise
    except UnidentifiedImageError:
        raise UserError(f"{where}: not a picture in JPEG or PNG; copy the file again") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"{where}: broken picture ({' '.join(str(error).split())}); copy the file again") from None


def write_recording(
    demonstrations: list[Demonstration], target: Path, fps: float, joint_names: tuple[str, ...], options: ImportOptions
) -> str:
    """Write a recording of ``demonstrations``, and return what was done and what to do next, for the user to read.

    ``target`` appears whole or not at all. frame_id counts the frames of all episodes, in the order of their numbers,
    so that episodes added at the end change no older one. Finished episodes stay in the scratch folder until then.

    Args:
        fps: frames per second, for recording.json.
        options: of which ``size`` and ``processes`` count here; the others are for the reader of the source.

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
    sizes = {camera: _first_size(pictures) for camera, pictures in demonstrations[0].pictures.items()}
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
        # put the recording together, and let it appear in one step
        with atomic_output(place) as temporary:
            for camera in info.cameras:
                (temporary / "rgb" / camera).mkdir(parents=True)
            for job in jobs:
                _link_pictures(job, temporary / "rgb", first)
                first += job.demonstration.steps
            pq.write_table(_table(demonstrations), temporary / "frames.parquet")
            write_recording_info(temporary / "recording.json", info)
    except OSError as error:
        raise UserError(f"{error.filename or target}: cannot be written: {error.strerror or error}") from None
    discard(scratch)
    return _summary(demonstrations, target, fps, sizes, size)


@dataclass(frozen=True)
class _Job:
    demonstration: Demonstration
    folder: Path  # of the episode's pictures, to be written
    size: int


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
        for name, values in d.columns.items():
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
    files = [pictures.path.stat() for pictures in demonstration.pictures.values()]
    dates = [(file.st_size, file.st_mtime_ns) for file in files]
    return fingerprint(repr(demonstration.pictures), demonstration.steps, dates, size, code)


def _write_pictures(job: _Job) -> None:
    """Write ``<folder>/<camera>/<step:06d>.png`` of an episode."""
    demonstration = job.demonstration
    with atomic_output(job.folder) as folder:
        for camera, pictures in demonstration.pictures.items():
            (folder / camera).mkdir(parents=True)
            count = 0
            for count, pixels in enumerate(pictures, start=1):
                if count <= demonstration.steps:
                    _save(pixels, folder / camera / f"{count - 1:06d}.png", job.size)
            if count != demonstration.steps:
                raise UserError(
                    f"{pictures.path}: {count} pictures of camera {camera} in episode {demonstration.number}, but "
                    f"{demonstration.source} has {demonstration.steps} rows; copy them again, or leave the "
                    f"episode out with --skip {demonstration.number}"
                )


def _save(pixels_HWC: np.ndarray, path: Path, size: int) -> None:
    height, width = _target_size(pixels_HWC.shape[0], pixels_HWC.shape[1], size)
    image = Image.fromarray(pixels_HWC).resize((width, height), Image.Resampling.BOX)
    image.save(path, compress_level=1)  # a quarter less time than level 3, for 7 % more bytes


def _link_pictures(job: _Job, rgb: Path, first_id: int) -> None:
    """Put an episode's pictures into the recording, as hard links: a copy would take the disk space twice."""
    for camera in job.demonstration.pictures:
        for step in range(job.demonstration.steps):
            source, target = job.folder / camera / f"{step:06d}.png", rgb / camera / f"{first_id + step:06d}.png"
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
        vectors = values.ndim == 2
        flat = pa.array(values.ravel())
        columns[name] = pa.FixedSizeListArray.from_arrays(flat, values.shape[1]) if vectors else flat
    return pa.table(columns)


def _summary(
    demonstrations: list[Demonstration], target: Path, fps: float, sizes: dict[str, tuple[int, int]], size: int
) -> str:
    first, frames = demonstrations[0], sum(d.steps for d in demonstrations)
    columns = [f"{values.shape[1]} {name}" if values.ndim == 2 else name for name, values in first.columns.items()]
    lines = [f"{target}: {len(demonstrations)} episodes, {frames} frames at {fps:g} fps; {', '.join(columns)}"]
    for camera, (height, width) in sizes.items():
        new = _target_size(height, width, size)
        how = "as they were" if new == (height, width) else f"averaged down to {new[0]}x{new[1]}"
        lines.append(f"  rgb/{camera}: pictures of {height}x{width} pixels, {how}")
    next_step = f"  python stages/add_recording.py {shlex.quote(str(target))}"
    return "\n".join([*lines, "Next, track it and use it:", next_step])
