"""Photographs as image networks take them: listed by image id, read in any colour mode, resized, cut to a square.

Geometry and interpolation are those of open_clip's own transform; pixels differ by less than 0.01 grey levels on
average, because torchvision's resizing of whole numbers, which is twice as fast, takes the place of Pillow's.
"""

import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional

from sightline.core.errors import UserError
from sightline.recording.frames import first_few, read_index
from sightline.recording.images import MAX_PIXELS, change_of, check_eight_bits, opened, read_file, rgb_pixels
from sightline.recording.names import BY_NAME, SUFFIXES, Images, Naming, list_frames, list_images
from sightline.training.processes import rank


@dataclass(frozen=True)
class Preparation:
    """How a photograph becomes the square input of a model."""

    size: int  # side, pixels
    resize_mode: str  # shortest: the shorter side to `size`, then the central square; squash: both sides to `size`
    interpolation: str  # bicubic or bilinear

    def as_dict(self) -> dict[str, Any]:
        return asdict(self) | {"orientation": "applied"}


def list_photographs(
    folders: Sequence[Path], index: Path | None = None, naming: Naming = BY_NAME, most: int | None = None
) -> Images:
    """The photographs in ``folders`` by image id; see `sightline.recording.names` for the ids.

    Args:
        index: a frame index; only its frames count, and each needs an image that is named by its frame id.
        naming: how files are named, where there is no index.
        most: of these, so many at most, at equal distances in the order of the ids; None: all.

    Raises:
        UserError: see `sightline.recording.names.list_images`; a frame without an image.
    """
    if index is None:
        images = list_images(*folders, naming=naming, called="image id", text=True)
    paths = (path for folder in folders for path in sorted(folder.glob("*")) if path.suffix.lower() not in SUFFIXES)
    others = [str(path) for path in paths if path.is_file() and path.name[0] != "."]
    if others and rank() == 0:
        warnings.warn(f"ignored, not images: {first_few(others)}", stacklevel=2)
    if index is None:
        return _some(images, most)
    frames, ids = list_frames(*folders), read_index(index)["frame_id"].tolist()
    missing = [i for i in ids if i not in frames]
    if missing:
        where = ", ".join(map(str, folders))
        raise UserError(f"{index}: names frames {first_few(missing)} that have no image in {where}")
    return _some(Images({i: frames[i] for i in sorted(ids)}, {i: frames[i].stem for i in sorted(ids)}), most)


def _some(images: Images, most: int | None) -> Images:
    ids = list(images.paths)
    if most is None or most >= len(ids):
        return images
    kept = [ids[i * len(ids) // most] for i in range(most)]
    times = images.time_ns and {i: images.time_ns[i] for i in kept}
    return Images({i: images.paths[i] for i in kept}, {i: images.names[i] for i in kept}, times)


def inspect(path: Path, data: bytes) -> str | None:
    """How a photograph will be changed, see `sightline.recording.images.change_of`.

    Raises:
        UserError: see `sightline.recording.images.opened` and `check_eight_bits`.
    """
    with opened(path, data) as image:
        check_eight_bits(path, image)
        return change_of(image, data)


def prepare(path: Path, preparation: Preparation) -> Tensor:
    """Read a photograph -> uint8 [3, S, S], RGB, upright, as `sightline.recording.images.read_rgb` does.

    Raises:
        UserError: see `inspect`; or a file that cannot be decoded to its end.
    """
    data = read_file(path)
    with opened(path, data) as image:
        check_eight_bits(path, image)
        if image.format == "JPEG" and change_of(image, data) in (None, "L"):  # twice as fast as Pillow
            pixels = decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8), mode=ImageReadMode.RGB)
        else:
            pixels = torch.from_numpy(rgb_pixels(image, data).copy()).permute(2, 0, 1)
    return _resize(path, pixels, preparation)


def _resize(path: Path, pixels: Tensor, preparation: Preparation) -> Tensor:
    size, (height, width) = preparation.size, pixels.shape[-2:]
    squash = preparation.resize_mode == "squash"
    if not squash and size * size * max(height, width) / min(height, width) > MAX_PIXELS:
        raise UserError(f"{path}: {width} x {height} pixels is too oblong to cut a square from; crop it")
    how, target = InterpolationMode(preparation.interpolation), [size, size] if squash else [size]
    resized = functional.resize(pixels, target, interpolation=how, antialias=True)
    return functional.center_crop(resized, [size, size]).contiguous()
