"""Image files of a recording: which there are, and strict reading of depth."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, ImageFile

from sightline.errors import UserError

SUFFIXES = (".png", ".tif", ".tiff", ".jpg", ".jpeg", ".pgm", ".bmp")
_DEPTH_MODES = ("I;16", "I;16B", "I;16L")  # what Pillow calls one channel of uint16


def list_images(folder: Path) -> dict[int, Path]:
    """Map id -> path of the images in ``folder``, sorted by id.

    The id is the trailing integer of the file name: ``frame-000042.depth.png`` and ``000042.png`` -> 42.

    Raises:
        UserError: no such folder, no images in it, a name without an integer, two names with the same integer.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    images: dict[int, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() not in SUFFIXES or path.name.startswith("."):
            continue
        number = re.search(r"(\d+)\D*$", path.stem)
        if number is None:
            raise UserError(
                f"{path}: the file name has no number to use as frame id; rename it, e.g. to 000001{path.suffix}"
            )
        other = images.setdefault(int(number[1]), path)
        if other is not path:
            raise UserError(f"{path}: same frame id {int(number[1])} as {other.name}; frame ids must be unique")
    if not images:
        raise UserError(f"{folder}: no images ({', '.join(SUFFIXES)}) in this folder")
    return dict(sorted(images.items()))


def read_depth(path: Path) -> np.ndarray:
    """Read a single-channel uint16 image (PNG, TIFF, PGM) -> uint16 [H, W], raw counts in native byte order.

    Raises:
        UserError: missing or broken file, or anything that is not one channel of 16 bits (8-bit, RGB, palette, JPEG):
            such files have already lost the depth, and reading them as if they had not would train on rubbish.
    """
    with _opened(path) as image:
        pgm = image.format == "PPM" and image.mode == "I" and image.tile[0][0] == "raw"  # else Pillow rescales it
        if image.mode not in _DEPTH_MODES and not pgm:
            raise UserError(
                f"{path}: not a uint16 depth image ({image.format} of mode {image.mode}); "
                "export depth as single-channel 16-bit PNG or TIFF"
            )
        return np.asarray(image).astype(np.uint16, copy=False)


def read_pixels(path: Path, modes: tuple[str, ...]) -> np.ndarray:
    """Read an image whose Pillow mode is one of ``modes`` -> uint8 [H, W] or [H, W, C].

    Raises:
        UserError: missing or broken file, another mode.
    """
    with _opened(path) as image:
        if image.mode not in modes:
            raise UserError(f"{path}: image mode {image.mode}, expected {' or '.join(modes)}; convert it")
        return np.asarray(image)


def read_rgb(path: Path) -> np.ndarray:
    """Read an 8-bit RGB image -> uint16 [3, H, W], values 0..255.

    Raises:
        UserError: missing or broken file, another kind of image.
    """
    return read_pixels(path, ("RGB",)).transpose(2, 0, 1).astype(np.uint16)


@contextmanager
def _opened(path: Path) -> Iterator[ImageFile.ImageFile]:
    """An image file whose faults, also those found while decoding, are errors a user can read."""
    try:
        with Image.open(path) as image:
            yield image
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        reason = str(error).replace(str(path), path.name)
        raise UserError(f"{path}: broken image ({reason}); record or copy it again") from None
