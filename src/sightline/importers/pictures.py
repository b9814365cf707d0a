"""Pictures of a source: what a camera gives, and how colour and depth are decoded.

Depth becomes counts of a millimetre, uint16; 0 means no reading. Metres are rounded to them.
"""

from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Protocol

import av
import numpy as np
from PIL import Image, UnidentifiedImageError

from sightline.core.errors import UserError
from sightline.importers.options import DepthUnit
from sightline.recording.images import MAX_PIXELS

NO_READING = 0
MAX_COUNT = 65535
_NUMPY, _EXR = b"\x93NUMPY", b"\x76\x2f\x31\x01"  # first bytes
_LFS = b"version https://git-lfs.github.com/spec/"
_DEPTH_MODES = ("I;16", "I;16B", "I;16L", "F")


class Pictures(Protocol):
    """The pictures of one camera in one episode. Can be sent to another process; equal ``repr``, equal pictures."""

    @property
    def path(self) -> Path:
        """The file that holds them."""

    def __iter__(self) -> Iterator[np.ndarray]:
        """Yield uint8 RGB [H, W, 3], or of depth uint16 counts [H, W].

        Raises `UserError` where the file is broken, or holds something else.
        """


def is_present(path: Path) -> bool:
    """Whether ``path`` is a file with data: not missing, and not a git-LFS pointer."""
    try:
        require_data(path)
    except UserError:
        return False
    return True


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
    image = _decode(data, where, "not a picture in JPEG or PNG; copy the file again")
    if image.mode != "RGB":
        raise UserError(f"{where}: a picture of mode {image.mode}, not RGB; name colour cameras with --camera")
    return np.asarray(image)


def decode_depth(data: bytes, where: str) -> np.ndarray:
    """Decode a PNG of 16 bits, a TIFF of 16 bits or of floating point, an OpenEXR file, or an array of numpy.

    Returns:
        uint16 or floating point [H, W]; of numpy whatever the array is.

    Raises:
        UserError: naming ``where``: not an image, a broken one, or one that has lost the depth (8 bits, colour, JPEG).
    """
    if data.startswith(_NUMPY):
        try:
            return np.asarray(np.load(BytesIO(data), allow_pickle=False))
        except (OSError, ValueError, EOFError) as error:
            raise UserError(f"{where}: not a plain array of numpy ({' '.join(str(error).split())})") from None
    if data.startswith(_EXR):
        return _decode_exr(data, where)
    image = _decode(data, where, "not a picture in PNG or TIFF; copy the file again")
    if image.mode not in _DEPTH_MODES:
        raise UserError(
            f"{where}: {image.format} of mode {image.mode} is not depth (one channel of 16 bits or of metres); name "
            "other depth with --depth, or none with --depth none"
        )
    pixels = np.asarray(image)
    return pixels if image.mode == "F" else pixels.astype(np.uint16, copy=False)


def _decode_exr(data: bytes, where: str) -> np.ndarray:
    """float32 [H, W] of an OpenEXR file of one channel, or of three that are alike."""
    try:
        with av.open(BytesIO(data), "r", format="exr_pipe") as container:
            frame = next(container.decode(video=0))
    except (av.FFmpegError, StopIteration) as error:
        reason = getattr(error, "strerror", None) or "no picture in it"
        raise UserError(f"{where}: a broken OpenEXR file, or of other channels than Y or R, G, B ({reason})") from None
    if frame.width * frame.height > MAX_PIXELS:
        raise UserError(f"{where}: {frame.width} x {frame.height} pixels are more than {MAX_PIXELS:,}")
    if frame.format.name not in ("grayf32le", "gbrpf32le"):
        raise UserError(f"{where}: an OpenEXR file of {frame.format.name} is not depth; store one channel of 32 bits")
    planes = [np.frombuffer(bytes(plane), "<f4").reshape(frame.height, -1)[:, : frame.width] for plane in frame.planes]
    if any(not np.array_equal(planes[0], plane, equal_nan=True) for plane in planes[1:]):
        raise UserError(f"{where}: an OpenEXR file of three channels that differ is not depth; store one channel")
    return planes[0]


def _decode(data: bytes, where: str, unknown: str) -> Image.Image:
    try:
        with Image.open(BytesIO(data)) as image:
            if image.width * image.height > MAX_PIXELS:
                raise UserError(f"{where}: {image.width} x {image.height} pixels are more than {MAX_PIXELS:,}")
            image.load()
            return image
    except UserError:
        raise
    except UnidentifiedImageError:
        raise UserError(f"{where}: {unknown}") from None
    except (OSError, SyntaxError, ValueError, TypeError, Image.DecompressionBombError) as error:
        raise UserError(f"{where}: broken picture ({' '.join(str(error).split())}); copy the file again") from None


def depth_counts(values: np.ndarray, unit: DepthUnit | None, where: str) -> np.ndarray:
    """Depth [H, W] or [H, W, 1] in the unit of its source -> counts of a millimetre, uint16 [H, W].

    uint16 stays what it is. In floating point, NaN, infinity and what is not above 0 become 0, no reading.

    Args:
        values: uint16 (of millimetres), or floating point (of ``unit``).
        unit: "m" or "mm".
        where: for messages.

    Raises:
        UserError: other types or shapes, floating point without a unit, uint16 in metres, a value beyond 65535 mm.
    """
    values = values[..., 0] if values.ndim == 3 and values.shape[-1] == 1 else values
    whole = values.dtype.kind == "u" and values.dtype.itemsize == 2  # of either byte order
    if values.ndim != 2 or not (whole or values.dtype.kind == "f"):
        raise UserError(f"{where}: {values.dtype} {list(values.shape)} is not depth (uint16 or floating point [H, W])")
    if whole:
        if unit == "m":
            raise UserError(f"{where}: holds whole numbers, which are not metres; give --depth-unit mm")
        return values.astype(np.uint16)
    if unit is None:
        raise UserError(f"{where}: depth in floating point, whose unit is not known; give --depth-unit m or mm")
    counts = np.round(values.astype(np.float64) * (1000 if unit == "m" else 1))
    measured = np.isfinite(counts) & (counts > 0)
    largest = counts.max(where=measured, initial=0)
    if largest > MAX_COUNT:
        raise UserError(
            f"{where}: a depth of {largest:,.0f} mm (--depth-unit {unit}), but {MAX_COUNT:,} is the largest count; "
            "check the unit, or set what is farther to 0 in the source"
        )
    return np.where(measured, counts, NO_READING).astype(np.uint16)


def without_unsure(counts: np.ndarray, confidence: np.ndarray, where: str) -> np.ndarray:
    """Counts [H, W] with 0, no reading, where a confidence map of the same size ([H, W] or [H, W, 1]) is 0 or NaN.

    Raises:
        UserError: a map of another size.
    """
    confidence = confidence[..., 0] if confidence.ndim == 3 and confidence.shape[-1] == 1 else confidence
    if confidence.shape != counts.shape:
        sizes = f"{list(confidence.shape)}, but the depth {list(counts.shape)}"
        raise UserError(f"{where}: the confidence map is {sizes}; give a map of the same size with --confidence")
    return np.where((confidence == 0) | (confidence != confidence), np.uint16(NO_READING), counts)
