"""Pictures of LeRobot data sets that are not in videos, and depth.

image        encoded (PNG, JPEG, TIFF) in a column of the data file, or one file each, ``images/<key>/episode_000000/
             frame_000000.png`` (or with hyphens), next to ``meta/``
depth        image of one channel of uint16 or float32, also OpenEXR or ``.npy``; uint16 [H, W] as lists in the data
             file; or a video of 10 to 16 bits. Where a video's info has ``depth_min``, ``depth_max``, ``shift`` and
             ``use_log``, its values are codes of 12 bits (LeRobot 0.6), which we turn into millimetres
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa

from sightline.core.errors import UserError
from sightline.importers.demonstrations import FROM_DATA
from sightline.importers.lerobot_meta import Feature, read_parquet
from sightline.importers.lerobot_video import Places, decoded
from sightline.importers.options import DepthUnit
from sightline.importers.pictures import NO_READING, Pictures, decode_depth, depth_counts, require_data
from sightline.recording.images import check_eight_bits, opened, rgb_pixels
from sightline.recording.layout import DepthInfo

_CODES = ("depth_min", "depth_max", "shift", "use_log")  # what LeRobot says about the codes of a depth video
_LAST_CODE = 4095
_UNITS = {"m": "m", "metre": "m", "metres": "m", "meter": "m", "meters": "m"}
_UNITS |= {"mm": "mm", "millimetre": "mm", "millimetres": "mm", "millimeter": "mm", "millimeters": "mm"}


@dataclass(frozen=True)
class StoredPictures:
    """Encoded colour pictures of an episode, in a column of its data file or in files of their own."""

    path: Path
    key: str
    episode: int
    source: Path  # folder of the set

    def __iter__(self) -> Iterator[np.ndarray]:
        for data, where in self.encoded():
            with opened(Path(where), data) as image:
                check_eight_bits(Path(where), image)
                yield rgb_pixels(image, data)

    def encoded(self) -> Iterator[tuple[bytes, str]]:
        """Bytes of each picture, in the order of the rows, and what to call it in messages."""
        rows = read_parquet(self.path, ["frame_index"], self.episode, further=[self.key]).sort_by("frame_index")
        steps = rows.column("frame_index").to_pylist()
        values = rows.column(self.key) if self.key in rows.column_names else [None] * len(steps)
        for step, value in zip(steps, values, strict=True):
            value = value.as_py() if isinstance(value, pa.Scalar) else value
            data = value.get("bytes") if isinstance(value, dict) else value
            where = f"{self.path}: {self.key} of episode {self.episode}, frame {step}"
            if isinstance(data, bytes) and data:
                yield data, where
            else:
                path = self._file(step)
                if path is None:
                    raise UserError(
                        f"{where}: no picture in the table, nor in {self.source / 'images' / self.key}; convert the "
                        "data set with its pictures embedded"
                    )
                yield require_data(path).read_bytes(), str(path)

    def _file(self, step: int) -> Path | None:
        folder = self.source / "images" / self.key
        names = [f"episode{mark}{self.episode:06d}/frame{mark}{step:06d}" for mark in "_-"]
        paths = [folder / f"{name}{end}" for name in names for end in (".png", ".jpg", ".tiff", ".tif", ".npy", ".exr")]
        return next((path for path in paths if path.is_file()), None)


@dataclass(frozen=True)
class StoredDepth:
    """Depth of an episode that is encoded as `StoredPictures` are -> uint16 counts of a millimetre."""

    pictures: StoredPictures
    unit: DepthUnit

    @property
    def path(self) -> Path:
        return self.pictures.path

    def __iter__(self) -> Iterator[np.ndarray]:
        for data, where in self.pictures.encoded():
            yield depth_counts(decode_depth(data, where), self.unit, where)


@dataclass(frozen=True)
class ListedDepth:
    """Depth of an episode that its data file holds as lists of numbers -> uint16 counts of a millimetre."""

    path: Path
    key: str
    episode: int
    shape: tuple[int, ...]
    dtype: str  # uint16 or float32
    unit: DepthUnit

    def __iter__(self) -> Iterator[np.ndarray]:
        rows = read_parquet(self.path, ["frame_index", self.key], self.episode).sort_by("frame_index")
        kind: type[np.generic] = np.float32 if self.dtype == "float32" else np.int64
        for step, value in enumerate(rows.column(self.key)):
            where = f"{self.path}: {self.key} of episode {self.episode}, frame {step}"
            try:
                values = np.array(value.as_py(), kind).reshape(self.shape)
            except (TypeError, ValueError):
                raise UserError(f"{where}: not numbers of shape {list(self.shape)}, as meta/info.json says") from None
            if kind == np.int64:
                if values.min() < 0 or values.max() > 65535:
                    raise UserError(f"{where}: depth counts outside 0..65535; convert the data set again")
                values = values.astype(np.uint16)
            yield depth_counts(values.reshape([n for n in self.shape if n > 1] or self.shape), self.unit, where)


@dataclass(frozen=True)
class DepthVideo:
    """Depth pictures of a video -> uint16 counts of a millimetre. ``codes``: LeRobot's parameters, in metres."""

    path: Path
    places: Places
    codes: tuple[float, float, float, bool] | None

    def __iter__(self) -> Iterator[np.ndarray]:
        for frame in decoded(self.path, self.places):
            values = _first_plane(frame, self.path)
            yield values if self.codes is None else millimetres(*self.codes)[values.clip(max=_LAST_CODE)]


def _first_plane(frame: av.VideoFrame, path: Path) -> np.ndarray:
    """The values of a frame's first component as they are stored, uint16 [H, W]."""
    name, bits = frame.format.name, frame.format.components[0].bits
    if bits <= 8 or not name.endswith("le") or not name.startswith(("gray", "yuv")):
        raise UserError(
            f"{path}: pictures of format {name} have lost the depth (it takes 10 to 16 bits of grey); name other depth "
            "with --depth, or none with --depth none"
        )
    plane = frame.planes[0]
    rows = np.frombuffer(bytes(plane), "<u2").reshape(frame.height, plane.line_size // 2)
    return rows[:, : frame.width].astype(np.uint16)


def millimetres(depth_min: float, depth_max: float, shift: float, use_log: bool) -> np.ndarray:
    """What each code of a LeRobot depth video means, uint16 [4096], counts of a millimetre.

    Codes 0 and 4095 hold what was below ``depth_min`` or above ``depth_max``, holes too: they become 0, no reading.
    """
    share = np.arange(_LAST_CODE + 1) / _LAST_CODE
    if use_log:
        low, high = np.log(depth_min + shift), np.log(depth_max + shift)
        metres = np.exp(low + share * (high - low)) - shift
    else:
        metres = depth_min + share * (depth_max - depth_min)
    counts = np.round(metres * 1000).clip(0, 65535).astype(np.uint16)
    counts[[0, _LAST_CODE]] = 0
    return counts


def depth_codes(key: str, feature: Feature, where: Path) -> tuple[float, float, float, bool] | None:
    """The parameters of a depth video's codes; None: its values are counts.

    Raises:
        UserError: some of them are missing or make no sense.
    """
    about: dict[str, Any] = feature.about
    given = [about[name] for name in _CODES if about.get(name) is not None]
    if not given:
        return None
    if len(given) < len(_CODES):
        missing = ", ".join(f"video.{name}" for name in _CODES if about.get(name) is None)
        raise UserError(f"{where}: {key}: info lacks {missing}, without which its depth cannot be read; add them")
    numbers = all(isinstance(value, int | float) for value in given) and isinstance(given[3], bool)
    if not numbers or not 0 <= given[0] < given[1] or (given[3] and given[0] + given[2] <= 0):
        raise UserError(f"{where}: {key}: info: video.depth_min to video.use_log are {given}, which fit no depth")
    return float(given[0]), float(given[1]), float(given[2]), given[3]


def unit_of(key: str, feature: Feature, option: DepthUnit | None, where: Path) -> DepthUnit:
    """Unit of a depth feature: what its info says, else the option.

    Raises:
        UserError: neither, or two that differ.
    """
    said = feature.about.get("depth_unit", feature.about.get("unit"))
    unit = _UNITS.get(said.lower()) if isinstance(said, str) else None
    if unit and option and unit != option:
        raise UserError(f"--depth-unit {option}: {where} says that {key} is in {said}; leave the option out")
    unit = unit or option
    if unit is None:
        raise UserError(
            f"{where}: {key}: depth whose unit is not said; give it with --depth-unit m or mm, or import no depth with "
            "--depth none"
        )
    return "m" if unit == "m" else "mm"


def depth_info(features: list[Feature], where: Path) -> DepthInfo | None:
    """What recording.json says about depth of these features; None: there is none.

    Counts are of a millimetre; 0 is no reading, unless the features' infos name their ``invalid`` counts. A
    ``height_range`` is that of the infos, where all have the same, else the writer takes it from the pictures.

    Raises:
        UserError: infos that make no sense.
    """
    if not features:
        return None
    named = [feature.about.get("invalid") for feature in features]
    ranges = [feature.about.get("height_range") for feature in features]
    try:
        invalid = sorted({code for codes in named for code in ([NO_READING] if codes is None else codes)})
        height_range = ranges[0] if ranges[0] is not None and ranges.count(ranges[0]) == len(ranges) else FROM_DATA
        return DepthInfo(unit_mm=1.0, invalid=tuple(invalid), height_range=tuple(height_range))
    except (TypeError, ValueError):
        raise UserError(
            f"{where}: the info of depth has invalid {named}, height_range {ranges}; give lists of counts"
        ) from None


@dataclass(frozen=True)
class Flipped:
    """Pictures turned upside down."""

    pictures: Pictures

    @property
    def path(self) -> Path:
        return self.pictures.path

    def __iter__(self) -> Iterator[np.ndarray]:
        return (np.ascontiguousarray(pixels[::-1]) for pixels in self.pictures)
