"""Photographs as CLIP takes them: listed by image id, read in any colour mode, resized, cut to a square.

Geometry and interpolation are those of open_clip's own transform; pixels differ by less than 0.01 grey levels on
average, because torchvision's resizing of whole numbers, which is twice as fast, takes the place of Pillow's.
"""

import io
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional

from sightline.core.errors import UserError
from sightline.recording.frames import first_few, read_index
from sightline.recording.images import MAX_PIXELS, list_images
from sightline.training.processes import rank

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm")
_ORIENTATION, _TURNED = 0x0112, "EXIF orientation"  # the tag, and what we call it
_EIGHT_BITS = ("RGB", "L", "1", "LA", "P", "PA", "RGBA", "RGBX", "CMYK", "YCbCr")


@dataclass(frozen=True)
class Preparation:
    """How a photograph becomes the square input of a model."""

    size: int  # side, pixels
    resize_mode: str  # shortest: the shorter side to `size`, then the central square; squash: both sides to `size`
    interpolation: str  # bicubic or bilinear

    def as_dict(self) -> dict[str, Any]:
        return asdict(self) | {"exif_orientation": "applied"}


def list_photographs(folders: Sequence[Path], index: Path | None = None) -> dict[int, Path]:
    """Map image id -> path of the photographs in ``folders``, sorted by id.

    The id is the trailing integer of the file name (``COCO_train2014_000000000009.jpg`` -> 9).

    Args:
        index: a frame index; only its frames count, and each needs an image.

    Raises:
        UserError: see `sightline.recording.images.list_images`; a frame without an image.
    """
    images = list_images(*folders, suffixes=SUFFIXES, called="image id")
    paths = (path for folder in folders for path in sorted(folder.iterdir()) if path.suffix.lower() not in SUFFIXES)
    others = [str(path) for path in paths if path.is_file() and path.name[0] != "."]
    if others and rank() == 0:
        warnings.warn(f"ignored, not images: {first_few(others)}", stacklevel=2)
    if index is None:
        return images
    ids = read_index(index)["frame_id"].tolist()
    missing = [i for i in ids if i not in images]
    if missing:
        where = ", ".join(map(str, folders))
        raise UserError(f"{index}: names frames {first_few(missing)} that have no image in {where}")
    return {i: images[i] for i in sorted(ids)}


def inspect(path: Path, data: bytes) -> str | None:
    """How a photograph will be changed, by its header: "EXIF orientation", a colour mode such as "CMYK", or None.

    Raises:
        UserError: not an image, of several pictures, of more than 8 bits, or too large.
    """
    with _opened(path, data) as image:
        return _change(image)


def prepare(path: Path, preparation: Preparation) -> Tensor:
    """Read a photograph -> uint8 [3, S, S], RGB.

    Grey, palette and CMYK images become RGB as Pillow makes them, transparency is dropped (as CLIP's transform does),
    an EXIF orientation is applied.

    Raises:
        UserError: see `inspect`; or a file that cannot be decoded to its end.
    """
    data = read_file(path)
    with _opened(path, data) as image:
        change = _change(image)
        try:
            if image.format == "JPEG" and change in (None, "L"):
                encoded = torch.frombuffer(bytearray(data), dtype=torch.uint8)
                pixels = decode_jpeg(encoded, mode=ImageReadMode.RGB)
            else:
                upright = ImageOps.exif_transpose(image) if change == _TURNED else image
                pixels = torch.from_numpy(np.array(upright.convert("RGB"))).permute(2, 0, 1)
        except (OSError, SyntaxError, ValueError, RuntimeError) as error:
            raise UserError(f"{path}: broken image ({' '.join(str(error).split())}); copy it again") from None
    return _resize(path, pixels, preparation)


def read_file(path: Path) -> bytes:
    """The bytes of a file. Raises `UserError` where it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None


def _opened(path: Path, data: bytes) -> Image.Image:
    """Open the image in ``data`` and check its header: a kind that converts to RGB in one way only."""
    try:
        image = Image.open(io.BytesIO(data))
        pictures = 1 if image.format in ("JPEG", "MPO") else getattr(image, "n_frames", 1)
    except Image.DecompressionBombError:
        raise UserError(f"{path}: more than {MAX_PIXELS:,} pixels; make it smaller") from None
    except (OSError, SyntaxError, ValueError) as error:
        reason = "not an image that Pillow knows" if "identify" in str(error) else " ".join(str(error).split())
        raise UserError(f"{path}: broken image ({reason}); copy it again, or remove it") from None
    if image.width * image.height > MAX_PIXELS:
        raise UserError(f"{path}: more than {MAX_PIXELS:,} pixels; make it smaller")
    if image.mode not in _EIGHT_BITS:
        raise UserError(f"{path}: pixels of more than 8 bits (mode {image.mode}); convert it to 8-bit RGB")
    if pictures > 1:
        raise UserError(f"{path}: {pictures} pictures in one file; save the one you want in a file of its own")
    return image


def _change(image: Image.Image) -> str | None:
    looked_at = image.format != "PNG" or "exif" in image.info  # else Pillow decodes a PNG to look at its end
    if looked_at and image.getexif().get(_ORIENTATION, 1) != 1:
        return _TURNED
    return None if image.mode == "RGB" else image.mode


def _resize(path: Path, pixels: Tensor, preparation: Preparation) -> Tensor:
    size, (height, width) = preparation.size, pixels.shape[-2:]
    squash = preparation.resize_mode == "squash"
    if not squash and size * size * max(height, width) / min(height, width) > MAX_PIXELS:
        raise UserError(f"{path}: {width} x {height} pixels is too oblong to cut a square from; crop it")
    how, target = InterpolationMode(preparation.interpolation), [size, size] if squash else [size]
    resized = functional.resize(pixels, target, interpolation=how, antialias=True)
    return functional.center_crop(resized, [size, size]).contiguous()
