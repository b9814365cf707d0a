"""The one reader of image files: strict about what a file holds, alike in how it turns and converts it.

Every picture comes upright (`sightline.recording.orientation`), whatever its format. A file of several pictures, of
more bits than its use can take, or of a kind that we do not read is refused, in one line that names it.
"""

import io
import re
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, ImageFile

from sightline.core.errors import UserError
from sightline.recording.orientation import lies_on_its_side, orientation, upright

TURNED = "EXIF orientation"  # what we call a picture that is to be turned
MAX_PIXELS = 100_000_000  # more is taken for an attack on memory
_FORMATS = ("PNG", "TIFF", "JPEG", "PPM", "BMP", "WEBP", "GIF")
_DEPTH_MODES = ("I;16", "I;16B", "I;16L")  # what Pillow calls one channel of uint16
_MASK_MODES = ("1", "L", "P", *_DEPTH_MODES)
_SCALED = {"L;2": 85, "L;4": 17}  # Pillow spreads the values of few bits over 0..255
_INVERTED = re.compile(r";[24]?IR?\b")
_GREY_MODES = ("1", "L", "LA")
_COLOUR_MODES = ("RGB", "P", "PA", "RGBA", "RGBX", "CMYK", "YCbCr")
_OTHER_KINDS = (  # start of a file -> what it is
    (b"version https://git-lfs", 'a git-LFS pointer; run "git lfs pull" where it comes from'),
    (b"\x76\x2f\x31\x01", "an OpenEXR file"),
    (b"\xff\x0a", "a JPEG XL file"),
    (b"\0\0\0\x0cJXL ", "a JPEG XL file"),
    (b"\0\0\0\x0cjP  ", "a JPEG 2000 file"),
    (b"\x89HDF", "an HDF5 file"),
    (b"\x93NUMPY", "a numpy file"),
    (b"8BPS", "a Photoshop file"),
)


def read_file(path: Path) -> bytes:
    """The bytes of a file. Raises `UserError` where it cannot be read."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except OSError as error:
        raise UserError(f"{path}: broken image (cannot be read: {error.strerror}); record or copy it again") from None


def read_depth(path: Path) -> np.ndarray:
    """Read a single-channel uint16 image (PNG, TIFF, PGM) -> uint16 [H, W], raw counts in native byte order.

    Raises:
        UserError: see `opened`, or anything that is not one channel of 16 bits (8-bit, RGB, palette, JPEG): such files
            have already lost the depth, and a training on them would learn rubbish.
    """
    data = read_file(path)
    with opened(path, data) as image:
        pgm = image.format == "PPM" and image.mode == "I" and image.tile[0][0] == "raw"  # else Pillow rescales it
        if image.mode not in _DEPTH_MODES and not pgm:
            raise UserError(
                f"{path}: not a uint16 depth image ({image.format} of mode {image.mode}); "
                "export depth as single-channel 16-bit PNG or TIFF"
            )
        return np.asarray(upright(image, data)).astype(np.uint16, copy=False)


def read_mask(path: Path) -> np.ndarray:
    """Read an image of one channel of whole numbers, or of indices of a palette -> uint8 or (of 16 bits) uint16 [H, W].

    Raises:
        UserError: see `opened`; an image of several channels, or a TIFF whose 0 is white, which Pillow would invert.
    """
    data = read_file(path)
    with opened(path, data) as image:
        if image.mode not in _MASK_MODES:
            raise UserError(
                f"{path}: not a mask ({image.format} of mode {image.mode}); store class ids in one channel of 8 bits"
            )
        stored = str(image.tile[0].args)
        if _INVERTED.search(stored):
            raise UserError(f"{path}: a TIFF in which 0 is white; store class ids in a PNG, or with black as 0")
        pixels = np.asarray(upright(image, data))
        pixels = pixels.astype(np.uint16 if image.mode in _DEPTH_MODES else np.uint8, copy=False)
        return next((pixels // factor for raw, factor in _SCALED.items() if raw in stored), pixels)


def read_rgb(path: Path, changes: list[str] | None = None) -> np.ndarray:
    """Read an image of 8 bits -> uint8 [H, W, 3], converted as `rgb_pixels` says.

    Args:
        changes: what was changed is appended, see `change_of`.

    Raises:
        UserError: see `opened` and `check_eight_bits`.
    """
    data = read_file(path)
    with opened(path, data) as image:
        check_eight_bits(path, image)
        if changes is not None and (change := change_of(image, data)):
            changes.append(change)
        return rgb_pixels(image, data)


def read_grey(path: Path) -> np.ndarray:
    """Read a grey image of 8 bits -> uint8 [H, W].

    Raises:
        UserError: see `opened` and `check_eight_bits`; an image in colour.
    """
    data = read_file(path)
    with opened(path, data) as image:
        check_eight_bits(path, image)
        if image.mode not in _GREY_MODES:
            raise UserError(f"{path}: in colour (mode {image.mode}), but the first image is grey; convert one of them")
        return np.asarray(upright(image, data).convert("L"))


def is_grey(path: Path) -> bool:
    """Whether an image file holds shades of grey alone, by its header. Raises `UserError` as `opened` does."""
    with opened(path, read_file(path)) as image:
        return image.mode in _GREY_MODES


def read_size(path: Path) -> tuple[int, int]:
    """Rows and columns of an image as it should be seen, by its header. Raises `UserError` as `opened` does."""
    data = read_file(path)
    with opened(path, data) as image:
        return image.size if lies_on_its_side(image, data) else image.size[::-1]


def rgb_pixels(image: Image.Image, data: bytes) -> np.ndarray:
    """Pixels of an opened image as it should be seen -> uint8 [H, W, 3].

    Grey, palette and CMYK images become RGB as Pillow makes them; transparency is dropped.
    """
    seen = upright(image, data)
    return np.asarray(seen if seen.mode == "RGB" else seen.convert("RGB"))  # converting RGB to RGB would copy it


def change_of(image: Image.Image, data: bytes) -> str | None:
    """How `rgb_pixels` changes an image, by its header: "EXIF orientation", a colour mode such as "CMYK", or None."""
    if orientation(image, data) != 1:
        return TURNED
    return None if image.mode == "RGB" else image.mode


def warn_of_changes(changes: dict[int, str], paths: dict[int, Path]) -> None:
    """Warn once about each kind of `change_of` among images, id -> change."""
    for change in sorted(set(changes.values())):
        ids = [i for i in changes if changes[i] == change]
        how = "turned as it says" if change == TURNED else "made RGB"
        example = paths[min(ids)]
        warnings.warn(f"{len(ids)} of {len(paths)} images have {change}: {how} ({example.name})", stacklevel=3)


def check_eight_bits(path: Path, image: ImageFile.ImageFile) -> None:
    """Raise `UserError` unless an opened image becomes RGB in one way only: Pillow would cut 16 bits to 8 silently."""
    modes = (*_GREY_MODES, *_COLOUR_MODES)
    deep = any(";16" in str(tile.args) or _most_of(image, tile) > 255 for tile in image.tile)
    if image.mode not in modes or deep:
        mode = f"mode {image.mode}" if image.mode not in modes else f"{image.format} of 16 bits"
        raise UserError(f"{path}: pixels of more than 8 bits ({mode}); convert it to 8-bit RGB")


def _most_of(image: ImageFile.ImageFile, tile: ImageFile._Tile) -> int:
    """The largest value of a PPM, as its header gives it; Pillow scales it to 255."""
    last = tile.args[-1] if isinstance(tile.args, tuple) and len(tile.args) > 1 else 0
    return last if image.format == "PPM" and isinstance(last, int) else 0


@contextmanager
def opened(path: Path, data: bytes) -> Iterator[ImageFile.ImageFile]:
    """Open the image file ``data`` and check its header; every fault, also one while decoding, becomes a `UserError`.

    Raises:
        UserError: a broken file, a kind of file that is not read here, several pictures, more than `MAX_PIXELS`.
    """
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:  # not by its path: Pillow would map turned TIFFs
            if image.width * image.height > MAX_PIXELS:
                raise UserError(
                    f"{path}: {image.width} x {image.height} pixels are more than {MAX_PIXELS:,}; shrink it"
                )
            pictures = 1 if image.format in ("JPEG", "MPO") else getattr(image, "n_frames", 1)  # MPO: copies of one
            if pictures > 1:
                raise UserError(f"{path}: {pictures} pictures in one file; save each of them in a file of its own")
            yield image
    except UserError:
        raise
    except Image.DecompressionBombError:
        raise UserError(f"{path}: more than {MAX_PIXELS:,} pixels; shrink it") from None
    except Exception as error:  # decoders raise anything on damaged files, TypeError too
        if kind := _unread_kind(data):
            raise UserError(f"{path}: not read here: {kind}") from None
        reason = " ".join(str(error).split()) or type(error).__name__
        reason = "not an image that Pillow knows" if "identify" in reason else reason
        raise UserError(f"{path}: broken image ({reason}); record or copy it again") from None


def _unread_kind(data: bytes) -> str | None:
    """What a sound file that we do not read is, and what to do; None: nothing that we know."""
    to_png = "; convert it to PNG"
    kind = next((words for start, words in _OTHER_KINDS if data.startswith(start)), None)
    if kind:
        return kind if ";" in kind else kind + to_png
    if data[4:8] == b"ftyp":
        return "an HEIC, AVIF or video file" + to_png
    if data[:4] in (b"II*\0", b"MM\0*"):
        kind = _kind_of_tiff(data)
    elif data[:4] in (b"II+\0", b"MM\0+"):
        kind = "a BigTIFF of this kind"
    elif data[:2] == b"\xff\xd8":
        kind = _kind_of_jpeg(data)
    return kind and kind + to_png


def _kind_of_tiff(data: bytes) -> str | None:
    """Bits and number format of a TIFF, where they are unusual (TIFF 6.0, tags 258 and 339)."""
    order = "<" if data[:1] == b"I" else ">"
    tags = {}
    try:
        start = struct.unpack_from(order + "I", data, 4)[0]
        for k in range(struct.unpack_from(order + "H", data, start)[0]):
            tag, kind, count, value = struct.unpack_from(order + "HHI4s", data, start + 2 + 12 * k)
            if kind == 3:  # 16-bit numbers: one or two in place, more elsewhere
                place = struct.unpack(order + "I", value)[0] if count > 2 else start + 10 + 12 * k
                tags[tag] = struct.unpack_from(order + "H", data, place)[0]
    except struct.error:
        return None
    bits, number = tags.get(258, 1), {2: "signed", 3: "floating point"}.get(tags.get(339, 1))
    if number is None and bits in (1, 8, 16):
        return None
    return f"a TIFF of {bits}-bit {number or 'whole'} numbers"


def _kind_of_jpeg(data: bytes) -> str | None:
    """Bits of a JPEG where they are not 8 (ITU T.81, B.2.2)."""
    place = 2
    while place + 5 <= len(data) and data[place] == 0xFF:
        marker, length = data[place + 1], int.from_bytes(data[place + 2 : place + 4], "big")
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            return None if data[place + 4] == 8 else f"a JPEG of {data[place + 4]} bits"
        place += 2 + length
    return None
