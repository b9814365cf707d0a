"""The data of a segmentation: images, masks of some of them, groups and split.

The source is a recording, a folder of images with a folder of masks, or arrays of 2-D slices; the rest of the branch
does not depend on which. An image or mask is read, checked and resized when its row is asked for: masks that nobody
asks for are never opened.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Self

import numpy as np
from PIL import Image
from pydantic import Field, field_validator

from sightline.core.errors import UserError
from sightline.core.params import Section
from sightline.grids.store import GridRows, GridStore
from sightline.recording.depth import decode, is_valid, normalize
from sightline.recording.frames import first_few, read_index
from sightline.recording.images import is_grey, read_depth, read_grey, read_mask, read_rgb
from sightline.recording.layout import IGNORE, DepthInfo, read_recording_info
from sightline.recording.names import image_files, list_frames
from sightline.recording.split import SplitParams, split_blocks
from sightline.segmentation.arrays import read_slices

Read = Callable[[int], np.ndarray]  # row -> one image, mask or depth image, at its own size


class FrameParams(Section):
    """Of the section ``segmentation``: what an image and a mask are."""

    camera: str = Field("global", description="folder under rgb/ of the images that the masks belong to")
    image_size: tuple[int, int] | None = Field(
        (128, 128), description="rows and columns that images and masks are brought to; null: as the first image"
    )
    classes: tuple[str, ...] = Field((), description="names by class id; []: recording.json's, or by the highest id")
    has_background: bool = Field(True, description="class 0 is of no interest: left out of means and ss_net's bank")
    void: int | None = Field(None, ge=0, le=255, description="class id without meaning, ignored like 255; null: none")

    @property
    def first_class(self) -> int:
        """Id of the first class that counts in means."""
        return int(self.has_background)

    @field_validator("image_size")
    @classmethod
    def _is_a_size(cls, size: tuple[int, int] | None) -> tuple[int, int] | None:
        if size and not all(8 <= side <= 4096 for side in size):
            raise ValueError(f"image_size must be 8..4096 rows and columns, not {list(size)}")
        return size

    @field_validator("classes")
    @classmethod
    def _are_two_or_more(cls, classes: tuple[str, ...]) -> tuple[str, ...]:
        if classes and not 2 <= len(set(classes)) == len(classes) <= IGNORE:
            raise ValueError(f"classes must be 2 to {IGNORE} different names, not {list(classes)}")
        return classes


@dataclass(frozen=True)
class SegmentationFrames:
    """Images and masks at one size, read by row.

    Args:
        name: for messages: the recording, folder or file.
        frame_id: int64 [N], ascending.
        group: [N], whole numbers or text: the episode or patient.
        split: str [N]: train, val or test (or guard, which is none of them).
        classes: names by class id; () where nothing tells them yet, see `with_classes_of`.
        image_size: rows and columns of what `images`, `masks` and `depth` return.
        channels: 3, or 1 for grey images.
        has_mask: bool [N].
        spacing: distance of rows and columns at ``image_size``, in the source's unit.
        void: class id that is ignored like 255.
        grids: [N, P, C], CLIP grid of each image.
    """

    name: str
    frame_id: np.ndarray
    group: np.ndarray
    split: np.ndarray
    classes: tuple[str, ...]
    image_size: tuple[int, int]
    channels: int
    has_mask: np.ndarray
    read_image: Read = field(repr=False)
    read_mask: Read = field(repr=False)
    called: Callable[[int], str] = field(repr=False)  # row -> what messages call its mask
    spacing: tuple[float, float] | None = None
    void: int | None = None
    read_depth: Read | None = field(default=None, repr=False)
    grids: GridRows | None = field(default=None, repr=False)

    @classmethod
    def from_recording(
        cls, root: Path, index_dir: Path, params: FrameParams, depth: Path | None = None, grids: Path | None = None
    ) -> Self:
        """Frames of a recording that have an image of ``params.camera``; those without a mask are unlabelled.

        Args:
            root: folder of the recording.
            index_dir: what stages/validate.py wrote: frames.parquet, rgb/<camera>.parquet, masks.parquet.
            depth: folder of depth images of the same view, as a further input.
            grids: CLIP grids of the same images, as a further input.

        Raises:
            UserError: no such camera or index, no class names, depth that recording.json does not describe, grids that
                lack frames.
        """
        info = read_recording_info(root / "recording.json")
        if params.camera not in info.cameras:
            names = ", ".join(info.cameras) or "none"
            raise UserError(f"segmentation.camera: {params.camera} not in {root}/recording.json, which has: {names}")
        classes = params.classes or info.classes
        if not classes:
            raise UserError(f"{root}/recording.json: names no classes; name them there, or in segmentation.classes")
        frames = read_index(index_dir / f"rgb/{params.camera}.parquet")
        ids = frames["frame_id"].to_numpy(np.int64)
        of_image, of_mask = (_paths(root / folder, ids) for folder in (f"rgb/{params.camera}", "masks"))
        has_mask = np.isin(ids, read_index(index_dir / "masks.parquet")["frame_id"])
        if depth and not info.depth:
            raise UserError(f"{root}/recording.json: does not describe depth images; add depth to it")
        size = params.image_size or read_rgb(of_image(0)).shape[:2]
        return cls(
            str(root), ids, frames["episode"].to_numpy(np.int64), frames["split"].to_numpy(str), classes, size, 3,
            has_mask, lambda row: read_rgb(of_image(row)),
            lambda row: read_mask(of_mask(row)), lambda row: str(of_mask(row)), void=params.void,
            read_depth=_depth_reader(depth, info.depth, ids) if depth and info.depth else None,
            grids=GridRows(GridStore(grids), ids) if grids else None,
        )  # fmt: skip

    @classmethod
    def from_folders(cls, images: Path, masks: Path, params: FrameParams, split: SplitParams) -> Self:
        """Any folder of images, with a folder of masks that may be fewer: in order, each image a group of its own.

        A mask belongs to the image with the same name, or else to the one with the same trailing integer. The split is
        by blocks of the order of their integers, or of their names where one has none or two are the same.

        Raises:
            UserError: no such folder, no images, no mask of any image, too few images to split.
        """
        paths, mask_paths = list_by_name(images), list_by_name(masks)
        numbers = [_number(path) for path in paths.values()]
        if None not in numbers and len(set(numbers)) == len(numbers):
            paths = dict(sorted(paths.items(), key=lambda item: _number(item[1]) or 0))
            ids = np.sort(np.array(numbers, np.int64))
        else:
            ids = np.arange(len(paths))
        by_number = {_number(path): path for path in mask_paths.values()}
        listed = list(paths.values())
        pairs = [mask_paths.get(name) or by_number.get(_number(path)) for name, path in paths.items()]
        if not any(pairs):
            raise UserError(f"{masks}: no mask has the name or the number of an image in {images}")
        grey = is_grey(listed[0])
        read = read_grey if grey else read_rgb
        size = params.image_size or read(listed[0]).shape[:2]
        try:
            parts = split_blocks(len(listed), split)
        except UserError as error:
            raise UserError(f"{images}: {error}") from None
        return cls(
            str(images), ids, np.arange(len(listed)), parts, params.classes, size,
            1 if grey else 3, np.array([pair is not None for pair in pairs]),
            lambda row: read(listed[row]),
            lambda row: read_mask(pairs[row] or masks),
            lambda row: str(pairs[row]), void=params.void,
        )  # fmt: skip

    @classmethod
    def from_arrays(cls, path: Path, params: FrameParams, split: SplitParams) -> Self:
        """Arrays of 2-D slices; see `sightline.segmentation.arrays.read_slices`, also for the errors."""
        slices = read_slices(path, split)
        image, count = slices.image, len(slices.image)
        size = params.image_size or image.shape[1:3]
        spacing = None if slices.spacing is None else tuple((slices.spacing * image.shape[1:3] / size).tolist())
        return cls(
            str(path), np.arange(count), slices.group, slices.split, params.classes, size, 3 if image.ndim == 4 else 1,
            np.ones(count, bool), lambda row: image[row], lambda row: slices.label[row],
            lambda row: f"{path}: label {row}", void=params.void, spacing=spacing,
        )  # fmt: skip

    def rows(self, part: str) -> np.ndarray:
        """Rows in a part of the split, int64, ascending."""
        return np.flatnonzero(self.split == part)

    def images(self, rows: np.ndarray) -> np.ndarray:
        """Images of these rows, uint8 [n, channels, H, W]: shrunk by averaging areas, enlarged bilinearly.

        Raises:
            UserError: an image that cannot be read, or of another kind than the first.
        """
        images = np.empty((len(rows), self.channels, *self.image_size), np.uint8)
        for i, row in enumerate(rows):
            small = resized(Image.fromarray(self.read_image(int(row))), self.image_size)
            images[i] = small.transpose(2, 0, 1) if self.channels == 3 else small
        return images

    def masks(self, rows: np.ndarray) -> np.ndarray:
        """Masks of these rows, class ids or 255 = ignore, uint8 [n, H, W]: of the nearest pixel.

        Raises:
            UserError: a mask that is not one channel of whole numbers, of another size than its image, or with ids
                beyond the classes.
        """
        masks = np.empty((len(rows), *self.image_size), np.uint8)
        for i, row in enumerate(rows):
            ids = self.read_mask(int(row))
            shape = self.read_image(int(row)).shape[:2]
            if ids.shape != shape:
                sizes = " but its image ".join(f"{height} x {width}" for height, width in (ids.shape[:2], shape))
                raise UserError(f"{self.called(int(row))}: is {sizes}; a mask needs the size of its image")
            if self.void is not None:
                ids = np.where(ids == self.void, IGNORE, ids)
            wrong = np.unique(ids[(ids != IGNORE) & ((ids >= (len(self.classes) or IGNORE)) | (ids < 0))])
            if len(wrong):
                raise UserError(
                    f"{self.called(int(row))}: class ids {first_few(wrong)}, but there are {len(self.classes)} classes "
                    f"({', '.join(self.classes)}); mend the mask, or set segmentation.classes"
                )
            masks[i] = _nearest(ids.astype(np.uint8), self.image_size)
        return masks

    def depth(self, rows: np.ndarray) -> np.ndarray:
        """Depth of these rows, float32 [n, 2, H, W]: -1 near .. 1 far of the recording's range, 0 where there is none;
        and validity, 1 or 0. Of the nearest pixel.

        Raises:
            UserError: a depth image that cannot be read.
        """
        assert self.read_depth is not None
        depth = np.empty((len(rows), 2, *self.image_size), np.float32)
        for i, row in enumerate(rows):
            depth[i] = [_nearest(values, self.image_size) for values in self.read_depth(int(row))]
        return depth

    def extras(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """Further inputs of these rows, by name: ``depth`` float32 [n, 2, H, W], ``clip`` float32 [n, P, C]."""
        extras = {"depth": self.depth(rows)} if self.read_depth else {}
        return extras if self.grids is None else extras | {"clip": self.grids[rows].astype(np.float32)}

    def extra_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of one row of `extras`, by name."""
        shapes: dict[str, tuple[int, ...]] = {"depth": (2, *self.image_size)} if self.read_depth else {}
        return shapes if self.grids is None else shapes | {"clip": tuple(self.grids.shape[1:])}

    def with_classes_of(self, rows: np.ndarray) -> Self:
        """The same with classes named by number up to the highest id in the masks of ``rows``, where none are named.

        Raises:
            UserError: no id above 0.
        """
        if self.classes:
            return self
        masks = self.masks(rows)
        highest = int(masks[masks != IGNORE].max(initial=0))
        if highest == 0:
            raise UserError(f"{self.name}: no class but the background in {len(rows)} masks; there is nothing to learn")
        return replace(self, classes=("background", *(f"class_{i}" for i in range(1, highest + 1))))


def open_frames(
    params: FrameParams,
    split: SplitParams,
    *,
    recording: Path | None = None,
    index: Path | None = None,
    images: Path | None = None,
    masks: Path | None = None,
    arrays: Path | None = None,
    depth: Path | None = None,
    grids: Path | None = None,
) -> SegmentationFrames:
    """Frames of one source: recording and index, images and masks, or arrays.

    Raises:
        UserError: none or several of them, a half of a pair, further inputs without a recording, and what
            `SegmentationFrames` raises.
    """
    sources = sum(source is not None for source in (recording, images, arrays))
    if sources != 1 or (index is None) != (recording is None) or (masks is None) != (images is None):
        raise UserError("give one source: --recording with --index, --images with --masks, or --arrays")
    if (depth or grids) and recording is None:
        raise UserError("--depth and --clip-grids: further inputs need --recording, whose frame ids they go by")
    if recording and index:
        return SegmentationFrames.from_recording(recording, index, params, depth, grids)
    if images and masks:
        return SegmentationFrames.from_folders(images, masks, params, split)
    assert arrays is not None
    return SegmentationFrames.from_arrays(arrays, params, split)


def list_by_name(folder: Path) -> dict[str, Path]:
    """Images of a folder by their name without suffix, in its order. Raises `UserError` for none, or a name twice."""
    paths: dict[str, Path] = {}
    for path in image_files(folder):
        other = paths.setdefault(path.stem, path)
        if other is not path:
            raise UserError(f"{path}: same name as {other.name}; remove one")
    return paths


def resized(image: Image.Image, size: tuple[int, int]) -> np.ndarray:
    """Pixels of ``size`` (rows, columns): shrunk by averaging areas, enlarged bilinearly."""
    shrinks = image.height >= size[0] and image.width >= size[1]
    return np.asarray(image.resize(size[::-1], Image.Resampling.BOX if shrinks else Image.Resampling.BILINEAR))


def _nearest(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return np.asarray(Image.fromarray(values).resize(size[::-1], Image.Resampling.NEAREST))


def _number(path: Path) -> int | None:
    digits = re.search(r"(\d{1,18})\D*$", path.stem)
    return int(digits[1]) if digits else None


def _paths(folder: Path, ids: np.ndarray) -> Callable[[int], Path]:
    """Row -> path of its image, as it should be called where there is none."""
    images = list_frames(folder)
    return lambda row: images.get(int(ids[row]), folder / f"{ids[row]:06d}.png")


def _depth_reader(folder: Path, info: DepthInfo, ids: np.ndarray) -> Read:
    """Row -> float32 [2, H, W], depth and validity at the image's own size."""
    of_depth = _paths(folder, ids)

    def read(row: int) -> np.ndarray:
        counts = decode(read_depth(of_depth(row)), info.encoding)
        valid = is_valid(counts, info.invalid)
        return np.stack([np.where(valid, normalize(counts, info.height_range).clip(-1, 1), 0), valid]).astype("f4")

    return read
