"""Videos of LeRobot data sets: which picture of a file belongs to which row, and the pictures themselves.

A row's picture is the one whose time in the file is nearest to ``from_timestamp`` of its episode plus the row's
``timestamp``, at most a tenth of a frame away: that is how LeRobot reads its sets. Times alone cannot tell a file whose
``from_timestamp`` drifts by a whole frame from a sound one. So where the times of any episode of a file do not fit, we
take only those of its episodes at which time and counting agree, and refuse the others.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np

from sightline.core.errors import UserError
from sightline.importers.lerobot_faults import Fault
from sightline.importers.pictures import require_data

TOLERANCE = 0.1  # of a frame: the most between the time of a row and that of its picture
_NO_PLAYLISTS = {"format_whitelist": "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi"}  # playlists open further files
Places = range | tuple[int, ...]  # pictures of a file, counted from 0 in the order in which they are shown


@dataclass(frozen=True)
class VideoClip:
    """Colour pictures of a video; ``places``: which of the file's, rising."""

    path: Path
    places: Places

    def __iter__(self) -> Iterator[np.ndarray]:
        for frame in decoded(self.path, self.places):
            if len(frame.format.components) < 3:
                raise UserError(f"{self.path}: a greyscale video; name colour cameras with --camera KEY=NAME")
            yield frame.to_ndarray(format="rgb24")


class Span(NamedTuple):
    """The rows of an episode in a video."""

    episode: int
    rows: int
    start_s: float  # the episode's from_timestamp
    times_s: np.ndarray  # of its rows (in any subset that has the first and the last), seconds after ``start_s``


def picture_times(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Time stamps int64 [P] of a video's pictures, rising, and the same in seconds, float64 [P].

    Reads packets and decodes nothing. What an edit list cuts away is left out; it shifts the others, as for a player.

    Raises:
        UserError: a missing, broken or truncated file; pictures without times, or two of one time.
    """
    file = require_data(path).stat()
    return _picture_times(path, file.st_size, file.st_mtime_ns)


@lru_cache(maxsize=256)
def _picture_times(path: Path, *_: int) -> tuple[np.ndarray, np.ndarray]:
    with _opened(path) as (container, stream):
        packets = [p for p in container.demux(stream) if p.size and not p.is_discard]
        if any(packet.is_corrupt for packet in packets):
            raise UserError(f"{path}: a truncated video; copy the file again")
        stamps = [packet.pts for packet in packets if packet.pts is not None]
        if not packets:
            raise UserError(f"{path}: no pictures in it; copy the file again")
        pts = np.unique(np.array(stamps, np.int64))
        if len(pts) < len(packets) or stream.time_base is None:
            raise UserError(f"{path}: pictures without a time of their own; encode the video again, as mp4")
        return pts, pts * float(stream.time_base)


def decoded(path: Path, places: Places) -> Iterator[av.VideoFrame]:
    """Decode the pictures at these places, and no others in their stead.

    Raises:
        UserError: a broken, damaged or truncated file.
    """
    pts, seconds = picture_times(path)
    if not len(places):
        return
    wanted = pts[np.asarray(places)]
    frames = _from(path, int(wanted[0]))
    frame = next(frames, None)
    if frame is not None and frame.pts is not None and frame.pts > wanted[0]:  # a seek that went too far
        frames = _from(path, None)
        frame = next(frames, None)
    for place, stamp in zip(places, wanted.tolist(), strict=True):
        while frame is not None and (frame.pts is None or frame.pts < stamp):
            frame = next(frames, None)
        if frame is None or frame.pts != stamp or frame.is_corrupt:
            raise UserError(f"{path}: damaged at {seconds[place]:.2f} s; copy the file again")
        yield frame


def _from(path: Path, stamp: int | None) -> Iterator[av.VideoFrame]:
    """Decode from the key frame before the picture of this time stamp, or from the beginning."""
    with _opened(path) as (container, stream):
        if stamp is not None:
            container.seek(stamp, stream=stream)
        yield from container.decode(stream)


@contextmanager
def _opened(path: Path) -> Iterator[tuple[av.container.InputContainer, av.VideoStream]]:
    require_data(path)
    try:
        with av.open(str(path), options=_NO_PLAYLISTS) as container:
            if not container.streams.video:
                raise UserError(f"{path}: no video in it; copy the file again")
            stream = container.streams.video[0]
            stream.codec_context.thread_count = 1  # episodes run side by side
            yield container, stream
    except av.FFmpegError as error:
        reason = error.strerror or type(error).__name__
        raise UserError(f"{path}: a broken or truncated video ({reason}); copy the file again") from None


def assign(path: Path, spans: Sequence[Span], fps: float, count: bool) -> dict[int, Places | Fault]:
    """Which pictures of a video are those of each episode in it: places, or why the episode cannot be used.

    Args:
        spans: all episodes of the file.
        count: assign by counting instead of by time: the episodes follow one another, each picture has its row.

    Raises:
        UserError: see `picture_times`.
    """
    _, seconds = picture_times(path)
    spans = sorted(spans, key=lambda span: (span.start_s, span.episode))
    first = np.cumsum([0, *(span.rows for span in spans)])  # by counting
    by_count = {s.episode: range(a, a + s.rows) for s, a in zip(spans, first.tolist(), strict=False)}
    numbers = f"{len(seconds)} pictures for {first[-1]} rows"
    if count:
        if len(seconds) != first[-1]:
            why = f"{path}: {numbers}, but --align count needs as many; copy the data set again"
            return dict.fromkeys(by_count, Fault(why))
        return dict(by_count)
    # Times count from 0 or, where B-frames were written without an edit list, from the first picture. One of the two
    # fits all episodes of a sound file; where both do, it is the one that agrees with counting, if one does.
    starts = [0.0] if abs(seconds[0]) * fps <= TOLERANCE else [0.0, float(seconds[0])]
    trials = [[_nearest(seconds - start, span, fps) for span in spans] for start in starts]
    odd = [_odd(trial) for trial in trials]
    shifts = [sum(abs(t.places[0] - a) for t, a in zip(trial, first, strict=False)) for trial in trials]
    best = min(range(len(trials)), key=lambda i: (odd[i], shifts[i]))
    if len(odd) == 2 and not any(odd) and min(shifts):
        why = (
            f"{path}: times fit both from 0 and from its first picture, at {seconds[0]:.3f} s ({numbers}); "
            "encode the video again, from 0"
        )
        return dict.fromkeys(by_count, Fault(why))
    in_order = [span.episode for span in spans] == sorted(by_count)
    answers: dict[int, Places | Fault] = {}
    for span, trial in zip(spans, trials[best], strict=True):
        places, counted = trial.places, by_count[span.episode]
        if not trial.distance <= TOLERANCE:  # NaN, too
            why = (
                f"row {trial.row} is {trial.distance / fps * 1000:.1f} ms "
                f"({trial.distance:.2g} frames) from the nearest picture, and a tenth of a frame is allowed"
            )
        elif len(set(places)) < len(places):
            why = "two rows have the same picture"
        elif odd[best] and not (in_order and (places[0], places[-1]) == (counted[0], counted[-1])):
            why = (
                f"the episode begins at picture {places[0]} by its time, but at picture {counted[0]} by "
                "counting, and the times of other episodes do not fit"
            )
        else:
            answers[span.episode] = _compact(places)
            continue
        answers[span.episode] = Fault(f"{path}: {why} ({numbers})", len(seconds) == first[-1])
    return answers


class _Trial(NamedTuple):
    places: list[int]  # of the nearest pictures
    distance: float  # the largest from a row to its picture, frames
    row: int  # where that is


def _nearest(seconds: np.ndarray, span: Span, fps: float) -> _Trial:
    times = span.start_s + span.times_s
    after = np.searchsorted(seconds, times).clip(1, max(1, len(seconds) - 1))
    after = np.minimum(after, len(seconds) - 1)
    before = np.maximum(after - 1, 0)
    nearest = np.where(times - seconds[before] <= seconds[after] - times, before, after)
    distances = np.abs(seconds[nearest] - times) * fps
    row = int(distances.argmax())
    return _Trial(nearest.tolist(), float(distances[row]), row)


def _odd(trials: Sequence[_Trial]) -> int:
    """Number of episodes whose times cannot be right: far from any picture, or at pictures of others."""
    end, number = 0, 0
    for trial in trials:
        first, last = trial.places[0], trial.places[-1]
        number += not trial.distance <= TOLERANCE or first < end
        end = max(end, last + 1)
    return number


def _compact(places: list[int]) -> Places:
    """A range where the pictures follow one another: it takes no memory."""
    run = range(places[0], places[-1] + 1)
    return run if len(run) == len(places) else tuple(places)


def unused_pictures(path: Path, spans: Sequence[Span]) -> int:
    """How many pictures of a video no row of its episodes needs."""
    return len(picture_times(path)[0]) - sum(span.rows for span in spans)
