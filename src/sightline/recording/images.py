"""Image files of a recording: listing them, and reading them strictly."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, ImageFile

from sightline.core.errors import UserError

SUFFIXES = (".png", ".tif", ".tiff", ".jpg", ".jpeg", ".pgm", ".bmp")
MAX_PIXELS = 100_000_000  # more is taken for an attack on memory
_INT64_MAX = 2**63 - 1
_DEPTH_MODES = ("I;16", "I;16B", "I;16L")  # what Pillow calls one channel of uint16


def list_images(*folders: Path, suffixes: tuple[str, ...] = SUFFIXES, called: str = "frame id") -> dict[int, Path]:
    """Map id -> path of the images in ``folders``, sorted by id.

    The id is the trailing integer of the file name: ``frame-000042.depth.png`` and ``000042.png`` -> 42.

    Args:
        suffixes: endings, in lower case, of the files that are images; other files are ignored.
        called: what messages call the id.

    Raises:
        UserError: see `image_files`; a name without an integer or with one beyond int64, two names with the same one.
    """
    images: dict[int, Path] = {}
    for folder in folders:
        for path in image_files(folder, suffixes):
            number = re.search(r"(\d+)\D*$", path.stem)
            if number is None:
                example = f"000001{path.suffix}"
                raise UserError(f"{path}: the file name has no number to use as {called}; rename it, e.g. to {example}")
            if len(number[1]) > 18 and int(number[1]) > _INT64_MAX:
                raise UserError(f"{path}: {called} {number[1]} is beyond 64 bits; rename it with a smaller number")
            other = images.setdefault(int(number[1]), path)
            if other is not path:
                where = other.name if other.parent == path.parent else other
                raise UserError(f"{path}: same {called} {int(number[1])} as {where}; {called}s must be unique")
    return dict(sorted(images.items()))


def image_files(folder: Path, suffixes: tuple[str, ...] = SUFFIXES) -> list[Path]:
    """Paths of the images in ``folder``, sorted.

    Raises:
        UserError: no such folder, no images in it, a broken link, or something that is not a file (reading a pipe
            would never end).
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    paths = [path for path in sorted(folder.iterdir()) if path.suffix.lower() in suffixes and path.name[0] != "."]
    if not paths:
        raise UserError(f"{folder}: no images ({', '.join(suffixes)}) in this folder")
    for path in paths:
        if not path.exists():
            raise UserError(f"{path}: a link that leads nowhere; mend or remove it")
        if not (path.is_file() or path.is_dir()):  # the latter is a broken image
            raise UserError(f"{path}: is not a file; remove it")
    return paths


def read_depth(path: Path) -> np.ndarray:
    """Read a single-channel uint16 image (PNG, TIFF, PGM) -> uint16 [H, W], raw counts in native byte order.

    Raises:
        UserError: missing or broken file, or anything that is not one channel of 16 bits (8-bit, RGB, palette, JPEG):
            such files have already lost the depth, and a training on them would learn rubbish.
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
    """Open an image file; every fault, also one while decoding, becomes a `UserError`."""
    try:
        with Image.open(path) as image:
            if image.width * image.height > MAX_PIXELS:
                raise UserError(
                    f"{path}: {image.width} x {image.height} pixels are more than {MAX_PIXELS:,}; shrink it"
                )
            yield image
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        reason = str(error).replace(str(path), path.name)
        raise UserError(f"{path}: broken image ({reason}); record or copy it again") from None
