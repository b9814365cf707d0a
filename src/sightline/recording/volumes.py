"""A file of volumes, in slices: what sightline import_volumes writes, and a segmentation reads.

One HDF5 file of N slices of V volumes, the slices of a volume one after the other. A slice is [H, W] for all:

    image     uint8 [N, H, W]      grey values, of the window of the volume
    label     whole numbers [N, H, W]  values of the masks; 0 where a volume has none, see ``labelled``
    group     text [N]             the patient: in one part of the split
    volume    text [N]             the volume: a patient may have several phases
    spacing   float64 [N, 3]       millimetres between slices, rows and columns, as they are here
    labelled  bool [N]             whether the mask is there, and is not "ignore" (255) alone
    split     text [N]             train, val or test, or nothing where no list and no folder says so
    source/   of each volume: ``name`` text [V], ``shape`` int64 [V, 3] and ``affine`` float64 [V, 4, 4] of its file
              (NaN where it has none), ``spacing`` float64 [V, 3] of slices, rows and columns there, ``slice_axis``
              int64 [V] and ``swaps`` bool [V]: how its axes became slices, rows and columns

The attribute ``intake`` holds `Intake` as JSON: how volumes were brought to one size, for those to come.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import h5py
import numpy as np
from PIL import Image
from pydantic import Field, ValidationError

from sightline.core.errors import UserError, first_fault
from sightline.core.hdf5 import open_hdf5, require
from sightline.core.params import Section

_TEXTS = ("group", "volume", "split")
_SOURCE = ("name", "shape", "affine", "spacing", "slice_axis", "swaps")


class Intake(Section):
    """How a volume becomes slices of one size: grey values by a window, scale, then crop or pad about the middle."""

    size: tuple[int, int] = Field(description="rows and columns of a slice")
    scale: Literal["none", "spacing", "field"] = Field(description="what decides the scale in the plane")
    pixel: float | None = Field(None, description="spacing: millimetres of a pixel")
    window: tuple[float, float] | None = Field(None, description="grey values that become 0 and 255")
    percentiles: tuple[float, float] = Field((0.5, 99.5), description="of a volume, where there is no window")
    slice_axis: int | None = Field(None, description="axis of all volumes along which slices lie")
    oriented: bool = Field(False, description="files tell where right, front and top are")

    def check_same(self, name: object, other: "Intake", other_name: object) -> None:
        """Raise `UserError` unless ``other`` brings volumes to the same size, scale and grey values."""
        mine, theirs = self.model_dump(mode="json"), other.model_dump(mode="json")
        different = [key for key in mine if key not in ("slice_axis", "oriented") and mine[key] != theirs[key]]
        if different:
            keys = " ".join(
                f"--set import_volumes.{key}={json.dumps(theirs[key])}".replace(" ]", "]") for key in different
            )
            raise UserError(
                f"{name}: its volumes were imported in another way than those of {other_name}; import them again with "
                f"{keys.replace(', ', ',')}"
            )

    def grey(self, image: np.ndarray) -> np.ndarray:
        """Grey values of a whole volume -> uint8 of the same shape."""
        low, high = self.window or np.percentile(image, self.percentiles)
        return np.round(255 * ((image - low) / max(high - low, 1e-12)).clip(0, 1)).astype(np.uint8)

    def scaled_shape(self, shape: tuple[int, int], spacing: tuple[float, float]) -> tuple[int, int]:
        """Rows and columns of slices of this shape and spacing after scaling, before crop or pad."""
        if self.scale == "spacing":
            assert self.pixel is not None
            factors = [distance / self.pixel for distance in spacing]
        else:
            both = min(new / old for new, old in zip(self.size, shape, strict=True))
            factors = [1.0 if self.scale == "none" else both] * 2
        rows, columns = (max(1, round(side * factor)) for side, factor in zip(shape, factors, strict=True))
        return rows, columns

    def placed(self, values: np.ndarray, spacing: tuple[float, float], nearest: bool) -> np.ndarray:
        """Slices [Z, R, C] -> [Z, H, W], zeros around: images smooth, masks of the ``nearest`` pixel."""
        scaled = _resized(values, self.scaled_shape(_plane(values), spacing), nearest)
        return _middle(scaled, self.size)

    def undone(self, values: np.ndarray, shape: tuple[int, int], spacing: tuple[float, float]) -> np.ndarray:
        """Masks [Z, H, W] of slices that had this shape and spacing -> [Z, R, C], zeros where they were cropped."""
        scaled = _middle(values, self.scaled_shape(shape, spacing))
        return _resized(scaled, shape, nearest=True)

    def spacing_of(self, shape: tuple[int, int], spacing: np.ndarray) -> np.ndarray:
        """Spacing [3] after scaling slices of this shape."""
        rows, columns = self.scaled_shape(shape, (spacing[1], spacing[2]))
        return spacing * [1, shape[0] / rows, shape[1] / columns]


@dataclass(frozen=True)
class Sources:
    """What is known of the files that volumes came from."""

    name: np.ndarray  # str [V]
    shape: np.ndarray  # int64 [V, 3]
    affine: np.ndarray  # float64 [V, 4, 4]; NaN where a file had none
    slice_axis: np.ndarray  # int64 [V], of the array in canonical orientation
    swaps: np.ndarray  # bool [V]: whether rows and columns change places
    spacing: np.ndarray  # float64 [V, 3], of slices, rows and columns of the file


@dataclass(frozen=True)
class VolumeFile:
    """A file of volumes, checked; images and labels are read when they are asked for."""

    image: np.ndarray  # memory map, uint8 [N, H, W]
    label: np.ndarray  # memory map, whole numbers [N, H, W]
    group: np.ndarray  # str [N]
    volume: np.ndarray  # str [N]
    split: np.ndarray  # str [N]
    spacing: np.ndarray  # float64 [N, 3]
    labelled: np.ndarray  # bool [N]
    sources: Sources
    intake: Intake

    @classmethod
    def open(cls, path: Path) -> "VolumeFile":
        """Open a file. Raises `UserError` where it is not one that sightline import_volumes writes."""
        with open_hdf5(path, "the file that sightline import_volumes makes of it") as file:
            if "intake" not in file.attrs or "source" not in file:
                raise UserError(f"{path}: not a file of volumes; write it with sightline import_volumes")
            image, label = file.rows("image"), file.rows("label")
            texts = {name: np.char.decode(file[name][()], "utf-8") for name in _TEXTS}
            spacing, labelled = file["spacing"][()], file["labelled"][()]
            source = {name: file[f"source/{name}"][()] for name in _SOURCE}
            source["name"] = np.char.decode(source["name"], "utf-8")
            try:
                intake = Intake.model_validate_json(file.attrs["intake"])
            except ValidationError as error:
                raise UserError(f"{path}: intake: {first_fault(error)}") from None
        kinds = {"image": (image, "u", 3), "label": (label, "ui", 3), "spacing": (spacing, "f", 2)}
        require(path, kinds | {"labelled": (labelled, "b", 1)} | {name: (texts[name], "U", 1) for name in _TEXTS})
        if (
            image.shape != label.shape
            or image.shape[1:] != intake.size
            or spacing.shape[1] != 3
            or (spacing <= 0).any()
        ):
            raise UserError(f"{path}: image, label and spacing do not fit together; write it again")
        return cls(image, label, **texts, spacing=spacing, labelled=labelled, sources=Sources(**source), intake=intake)


def is_volume_file(path: Path) -> bool:
    """Whether an HDF5 file is one of volumes; False for whatever is not HDF5."""
    if not path.is_file() or not h5py.is_hdf5(path):
        return False
    with open_hdf5(path) as file:
        return "intake" in file.attrs


def as_text(values: Any) -> np.ndarray:
    """Texts as HDF5 holds them, of one length."""
    return np.char.encode(np.asarray(values, str), "utf-8")


def attributes(intake: Intake) -> Mapping[str, str]:
    """Attributes of the file."""
    return {"intake": json.dumps(intake.model_dump(mode="json"), sort_keys=True)}


def _plane(values: np.ndarray) -> tuple[int, int]:
    return values.shape[1], values.shape[2]


def _resized(values: np.ndarray, shape: tuple[int, int], nearest: bool) -> np.ndarray:
    if _plane(values) == shape:
        return values
    if nearest:
        rows, columns = (
            np.minimum(((np.arange(new) + 0.5) * old / new).astype(int), old - 1)
            for new, old in zip(shape, _plane(values), strict=True)
        )
        return values[:, rows[:, None], columns]
    how = Image.Resampling.BILINEAR  # of what shrinks, over as many pixels as become one
    slices = [np.asarray(Image.fromarray(one.astype(np.float32)).resize(shape[::-1], how)) for one in values]
    resized = np.stack(slices)
    return resized.round().clip(0, 255).astype(np.uint8) if values.dtype == np.uint8 else resized


def _middle(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The middle of [Z, R, C], cropped or padded with zeros to ``size``; with the shapes exchanged, the way back."""
    for axis, side in ((1, size[0]), (2, size[1])):
        lacking = side - values.shape[axis]
        if lacking < 0:
            start = -lacking // 2
            values = values.take(range(start, start + side), axis=axis)
        elif lacking:
            around = [(0, 0)] * 3
            around[axis] = (lacking // 2, lacking - lacking // 2)
            values = np.pad(values, around)
    return values
