"""The data of a segmentation: images, masks of some of them, groups and split.

The source is a recording, a folder of images with a folder of masks, or arrays of 2-D slices; the rest of the branch
does not depend on which. An image or mask is read, checked and resized when its row is asked for: masks that nobody
asks for are never opened.
"""

import sys
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Self

import numpy as np
from PIL import Image

from sightline.core.cache import digest
from sightline.core.errors import UserError
from sightline.core.threads import threads
from sightline.grids.features import Feature, FramesOf, open_features
from sightline.recording.depth import decode, is_valid, normalize
from sightline.recording.frames import read_index, read_recording_key
from sightline.recording.images import is_grey, read_depth, read_file, read_grey, read_mask, read_rgb, read_size
from sightline.recording.layout import IGNORE, DepthInfo, read_recording_info
from sightline.recording.names import image_files, list_frames
from sightline.recording.split import SplitParams, counted, split_blocks
from sightline.recording.volumes import Intake
from sightline.segmentation.arrays import read_slices
from sightline.segmentation.pairing import in_order, pair_masks
from sightline.segmentation.params import FrameParams
from sightline.segmentation.values import class_ids, count_values, jpeg_advice, listed, no_classes, only_background
from sightline.training.processes import rank

Read = Callable[[int], np.ndarray]  # row -> one image, mask or depth image, at its own size
NAMES = ("embedding", "grid")  # what models call vectors and grids; depth is an image


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
        size_of: row -> rows and columns of its image at its own size.
        read_mask: values as the file holds them, of which `masks` makes class ids.
        of_masks: for messages: the folder or file of the masks.
        void: class id that is ignored like 255.
        mask_values: class id of each value in the masks; values that it does not name are class ids.
        is_jpeg: row -> whether its mask is, so that values are not exact.
        features: of each image, by name: ``embedding`` [N, D], ``grid`` grids [N, P, C].
        volume: text [N]: the volume that an image is a slice of, where images are; slices in order.
        voxel: float64 [N, 3], distance of slices, rows and columns at the images' ``own_size``; None: not known.
        intake: how volumes became slices of one size.
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
    size_of: Callable[[int], tuple[int, int]] = field(repr=False)
    read_mask: Read = field(repr=False)
    called: Callable[[int], str] = field(repr=False)  # row -> what messages call its mask
    of_masks: str
    spacing: tuple[float, float] | None = None
    void: int | None = None
    mask_values: dict[int, int] | None = None
    is_jpeg: Callable[[int], bool] = field(default=lambda _: False, repr=False)
    read_depth: Read | None = field(default=None, repr=False)
    features: dict[str, Feature] = field(default_factory=dict, repr=False)
    volume: np.ndarray | None = None
    voxel: np.ndarray | None = None
    own_size: tuple[int, int] | None = None
    intake: Intake | None = None

    @classmethod
    def from_recording(
        cls,
        root: Path,
        index_dir: Path,
        params: FrameParams,
        depth: Path | None = None,
        features: Sequence[Path] = (),
    ) -> Self:
        """Frames of a recording that have an image of ``params.camera``; those without a mask are unlabelled.

        Args:
            root: folder of the recording.
            index_dir: what sightline validate wrote: frames.parquet, rgb/<camera>.parquet, masks.parquet.
            depth: folder of depth images of the same view, as a further input.
            features: files of grids or depth embeddings of the same frames, as further inputs.

        Raises:
            UserError: no such camera or index, no class names, depth that recording.json does not describe, features
                that lack frames, grids of other images.
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
            has_mask, lambda row: read_rgb(of_image(row)), lambda row: read_size(of_image(row)),
            lambda row: read_mask(of_mask(row)), lambda row: str(of_mask(row)), str(root / "masks"), void=params.void,
            mask_values=params.mask_values, is_jpeg=lambda row: _is_jpeg(of_mask(row)),
            read_depth=_depth_reader(depth, info.depth, ids) if depth and info.depth else None,
            features=_features_of(features, ids, of_image, root, index_dir / f"rgb/{params.camera}.parquet"),
        )  # fmt: skip

    @classmethod
    def from_folders(cls, images: Path, masks: Path, params: FrameParams, split: SplitParams) -> Self:
        """Any folder of images, with a folder of masks that may be fewer: in order, each image a group of its own.

        Masks and images belong together by their names, see `sightline.segmentation.pairing`; a line on standard error
        says by which rule. The split is by blocks of the order of the images, see `in_order` there.

        Raises:
            UserError: no such folder, no images, one folder for both, masks whose images the names do not tell, too few
                images to split.
        """
        if images.is_dir() and masks.is_dir() and images.samefile(masks):
            raise UserError(f"{masks}: holds the images, too; move the masks to a folder of their own")
        paths, ids = in_order(list_by_name(images).values())
        pairs, rule = pair_masks(paths, list(list_by_name(masks).values()), params.mask_suffix)
        has_mask = np.array([pair is not None for pair in pairs])
        try:
            parts = split_blocks(len(paths), split)
        except UserError as error:
            raise UserError(f"{images}: {error}") from None
        if rank() == 0:
            image, mask = next((image, mask) for image, mask in zip(paths, pairs, strict=True) if mask)
            print(
                f"{masks}: {has_mask.sum()} masks paired with images by {rule} ({mask.name} with {image.name}); "
                f"images without a mask, unlabelled: {(~has_mask).sum()}; {counted(parts)}",
                file=sys.stderr,
            )
        grey = is_grey(paths[0])
        read = read_grey if grey else read_rgb
        size = params.image_size or read(paths[0]).shape[:2]

        def mask_of(row: int) -> Path:
            return pairs[row] or masks / paths[row].name

        return cls(
            str(images), ids, np.arange(len(paths)), parts, params.classes, size,
            1 if grey else 3, has_mask, lambda row: read(paths[row]), lambda row: read_size(paths[row]),
            lambda row: read_mask(mask_of(row)), lambda row: str(mask_of(row)), str(masks), void=params.void,
            mask_values=params.mask_values, is_jpeg=lambda row: _is_jpeg(mask_of(row)),
        )  # fmt: skip

    @classmethod
    def from_arrays(cls, path: Path, params: FrameParams, split: SplitParams) -> Self:
        """Arrays of 2-D slices; see `sightline.segmentation.arrays.read_slices`, also for the errors."""
        slices = read_slices(path, split)
        image, count = slices.image, len(slices.image)
        size = params.image_size or image.shape[1:3]
        own, spacing, voxel = image.shape[1:3], None, slices.spacing
        if voxel is not None and voxel.ndim == 1:  # of the plane alone
            spacing, voxel = tuple((voxel * own / size).tolist()), None
        return cls(
            str(path), np.arange(count), slices.group, slices.split, params.classes, size, 3 if image.ndim == 4 else 1,
            np.ones(count, bool), lambda row: image[row], lambda _: own, lambda row: slices.label[row],
            lambda row: f"{path}: label {row}", str(path), void=params.void, mask_values=params.mask_values,
            spacing=spacing, volume=slices.volume, voxel=voxel, own_size=own,
        ).without_ignored()  # fmt: skip

    def without_ignored(self) -> Self:
        """The same, in which masks that are "ignore" alone are none."""
        empty = [(self._class_ids(int(row)) == IGNORE).all() for row in np.flatnonzero(self.has_mask)]
        has_mask = self.has_mask.copy()
        has_mask[np.flatnonzero(self.has_mask)[empty]] = False
        return replace(self, has_mask=has_mask)

    def pixel_of(self, row: int) -> tuple[float, float] | None:
        """Distance of rows and columns of a row at ``image_size``; None: not known."""
        if self.voxel is None or self.own_size is None:
            return self.spacing
        scale = np.array(self.own_size) / self.image_size
        return tuple((self.voxel[row, 1:] * scale).tolist())

    def rows(self, part: str) -> np.ndarray:
        """Rows in a part of the split, int64, ascending."""
        return np.flatnonzero(self.split == part)

    def images(self, rows: np.ndarray) -> np.ndarray:
        """Images of these rows, uint8 [n, channels, H, W]: shrunk by averaging areas, enlarged bilinearly.

        Raises:
            UserError: an image that cannot be read, or of another kind than the first.
        """

        def read(row: int) -> np.ndarray:
            small = resized(Image.fromarray(self.read_image(row)), self.image_size)
            return small.transpose(2, 0, 1) if self.channels == 3 else small[None]

        return _by_row(read, rows, (self.channels, *self.image_size), np.uint8)

    def masks(self, rows: np.ndarray) -> np.ndarray:
        """Masks of these rows, class ids or 255 = ignore, uint8 [n, H, W]: of the nearest pixel.

        Raises:
            UserError: a mask that is not one channel of whole numbers, of another size than its image, or with ids
                beyond the classes; one that is JPEG, without ``mask_values``.
        """
        return _by_row(self._mask, rows, self.image_size, np.uint8)

    def _mask(self, row: int) -> np.ndarray:
        ids, shape = self._class_ids(row), self.size_of(row)
        if ids.shape != shape:
            sizes = " but its image ".join(f"{height} x {width}" for height, width in (ids.shape[:2], shape))
            raise UserError(f"{self.called(row)}: is {sizes}; a mask needs the size of its image")
        if not self.mask_values and self.is_jpeg(row):
            raise UserError(f"{self.called(row)}: {jpeg_advice(count_values(ids))}")
        wrong = ids[(ids != IGNORE) & ((ids >= (len(self.classes) or IGNORE)) | (ids < 0))]
        if len(wrong):
            raise UserError(
                f"{self.called(row)}: class ids {listed(count_values(wrong))}, but there are "
                f"{len(self.classes)} classes ({', '.join(self.classes)}); mend the mask, or set "
                "segmentation.mask_values or segmentation.classes"
            )
        return _nearest(ids.astype(np.uint8), self.image_size)

    def count_classes(self, rows: np.ndarray) -> Counter[int]:
        """Pixels of each class id, or 255 = ignore, in the masks of these rows at their own size.

        Raises:
            UserError: a mask that cannot be read.
        """
        return sum((count_values(self._class_ids(int(row))) for row in rows), Counter())

    def _class_ids(self, row: int) -> np.ndarray:
        """The mask of a row at its own size, whole numbers [H, W]."""
        values = self.read_mask(row)
        ids = class_ids(values, self.mask_values, nearest=bool(self.mask_values) and self.is_jpeg(row))
        return ids if self.void is None else np.where(ids == self.void, IGNORE, ids)

    def depth(self, rows: np.ndarray) -> np.ndarray:
        """Depth of these rows, float32 [n, 2, H, W]: -1 near .. 1 far of the recording's range, 0 where there is none;
        and validity, 1 or 0. Of the nearest pixel.

        Raises:
            UserError: a depth image that cannot be read.
        """
        read_depth = self.read_depth
        assert read_depth is not None

        def read(row: int) -> np.ndarray:
            return np.stack([_nearest(values, self.image_size) for values in read_depth(row)])

        return _by_row(read, rows, (2, *self.image_size), np.float32)

    def extras(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """Further inputs of these rows, float32, by name: ``depth`` [n, 2, H, W], ``embedding`` [n, D], ``grid``
        [n, P, C].
        """
        extras = {"depth": self.depth(rows)} if self.read_depth else {}
        return extras | {name: feature[rows].astype(np.float32) for name, feature in self.features.items()}

    def extra_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of one row of `extras`, by name."""
        shapes: dict[str, tuple[int, ...]] = {"depth": (2, *self.image_size)} if self.read_depth else {}
        return shapes | {name: feature.shape for name, feature in self.features.items()}

    def with_classes_of(self, rows: np.ndarray) -> Self:
        """The same with classes named by number up to the highest id in the masks of ``rows``, where none are named.

        Raises:
            UserError: ids that are not 0, 1, 2 ... without a gap, none above 0, or masks that are JPEG, without
                ``mask_values``.
        """
        if self.classes:
            return self
        counts, jpegs = self.count_classes(rows), sum(self.is_jpeg(int(row)) for row in rows)
        if fault := no_classes(counts, len(rows), mapping=self.mask_values, void=self.void, jpegs=jpegs):
            raise UserError(f"{self.of_masks}: {fault}")
        highest = max(class_id for class_id in counts if class_id != IGNORE)
        return replace(self, classes=("background", *(f"class_{i}" for i in range(1, highest + 1))))

    def nothing_to_learn(self, rows: np.ndarray) -> str:
        """What to say where the masks of ``rows``, those to learn from, hold no class but 0 at ``image_size``."""
        counts = self.count_classes(rows)
        lost = {class_id: pixels for class_id, pixels in counts.items() if class_id not in (0, IGNORE)}
        if lost:
            key = f"segmentation.image_size={list(self.image_size)}"
            return f"{self.of_masks}: of classes {listed(lost)} nothing is left at {key}; raise it"
        return f"{self.of_masks}: " + only_background(
            counts, len(rows), mapping=self.mask_values, void=self.void, kind="labelled "
        )


def list_by_name(folder: Path) -> dict[str, Path]:
    """Images of a folder by their name without suffix, in its order. Raises `UserError` for none, or a name twice."""
    paths: dict[str, Path] = {}
    for path in image_files(folder):
        other = paths.setdefault(path.stem, path)
        if other is not path:
            raise UserError(f"{path}: same name as {other.name}; remove one")
    return paths


def _by_row(read: Read, rows: np.ndarray, shape: tuple[int, ...], dtype: type) -> np.ndarray:
    """``read(row)`` of each row, [n, *shape], in threads: Pillow decodes without Python's lock."""
    values: np.ndarray = np.empty((len(rows), *shape), dtype)
    with ThreadPoolExecutor(threads()) as pool:
        for i, one in enumerate(pool.map(read, rows.tolist())):
            values[i] = one
    return values


def resized(image: Image.Image, size: tuple[int, int]) -> np.ndarray:
    """Pixels of ``size`` (rows, columns): shrunk by averaging areas, enlarged bilinearly."""
    shrinks = image.height >= size[0] and image.width >= size[1]
    return np.asarray(image.resize(size[::-1], Image.Resampling.BOX if shrinks else Image.Resampling.BILINEAR))


def _nearest(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return np.asarray(Image.fromarray(values).resize(size[::-1], Image.Resampling.NEAREST))


def _paths(folder: Path, ids: np.ndarray) -> Callable[[int], Path]:
    """Row -> path of its image, as it should be called where there is none."""
    images = list_frames(folder)
    return lambda row: images.get(int(ids[row]), folder / f"{ids[row]:06d}.png")


def _features_of(
    files: Sequence[Path], ids: np.ndarray, of_image: Callable[[int], Path], root: Path, index: Path
) -> dict[str, Feature]:
    """Features of the frames ``ids``; grids must be of the images, as a network lays them over these."""
    frames = FramesOf(ids, np.ones(len(ids), bool), str(root), read_recording_key(index))
    features = open_features(files, frames, NAMES)
    for feature in features.values():
        if feature.content_hash is None:
            continue
        for row in (0, len(ids) // 2, len(ids) - 1):  # some tell another camera or recording
            path = of_image(row)
            if digest(read_file(path)).hex().encode() != feature.content_hash[row]:
                raise UserError(
                    f"{feature.path}: its grid of frame {ids[row]} is not of {path}; name the grids of that camera, or "
                    "extract them again"
                )
    return features


def _depth_reader(folder: Path, info: DepthInfo, ids: np.ndarray) -> Read:
    """Row -> float32 [2, H, W], depth and validity at the image's own size."""
    of_depth = _paths(folder, ids)

    def read(row: int) -> np.ndarray:
        counts = decode(read_depth(of_depth(row)), info.encoding)
        valid = is_valid(counts, info.invalid)
        return np.stack([np.where(valid, normalize(counts, info.height_range).clip(-1, 1), 0), valid]).astype("f4")

    return read


def _is_jpeg(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(3) == b"\xff\xd8\xff"
