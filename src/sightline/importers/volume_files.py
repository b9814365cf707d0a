"""Volumes of one file: NIfTI, HDF5 with ``image`` and ``label``, or ``.npz``; and where their axes lie.

A volume becomes slices [Z, R, C]. The array of a NIfTI file is first turned to the nearest canonical orientation (axes
to the right, to the front and up), so that all volumes lie alike; the slices lie one after the other along the axis
with the widest spacing. Arrays of HDF5 and ``.npz`` have no orientation and stay as they are.
"""

import gzip
import hashlib
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import h5py
import nibabel
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.orientations import apply_orientation, io_orientation

from sightline.core.errors import UserError
from sightline.core.hdf5 import open_hdf5

NIFTI, HDF5, NUMPY = (".nii", ".nii.gz"), (".h5", ".hdf5", ".hdf"), (".npz",)
SUFFIXES = NIFTI + HDF5 + NUMPY
KEYS = {"image": ("image", "images"), "label": ("label", "labels", "mask", "masks")}
_UNITS = {"meter": 1000.0, "micron": 0.001}  # in millimetres; others are taken for millimetres
_WIDEST = 1.5  # how much wider than the others the spacing between slices is
_BROKEN = (
    OSError, EOFError, ValueError, ImageFileError, BadZipFile, zlib.error, LookupError, TypeError, RuntimeError,
    AttributeError,
)  # fmt: skip


@dataclass(frozen=True)
class Grid:
    """Where the voxels of a file lie, and how they become slices.

    Args:
        shape: of the array in the file.
        affine: [4, 4], from indices to millimetres; NaN where the file has none.
        slice_axis: of the array in canonical orientation.
        swaps: whether rows and columns change places: so a body lies as one is used to see it.
        spacing: millimetres between slices, rows and columns.
    """

    shape: tuple[int, int, int]
    affine: np.ndarray
    slice_axis: int
    swaps: bool
    spacing: np.ndarray

    @property
    def plane(self) -> tuple[int, int]:
        """Rows and columns."""
        shape = list(self._canonical_shape())
        del shape[self.slice_axis]
        return (shape[1], shape[0]) if self.swaps else (shape[0], shape[1])

    @property
    def count(self) -> int:
        """How many slices."""
        return self._canonical_shape()[self.slice_axis]

    def slices(self, values: np.ndarray) -> np.ndarray:
        """The array of the file -> slices [Z, R, C]."""
        if self.oriented:
            values = apply_orientation(values, io_orientation(self.affine))
        values = np.moveaxis(values, self.slice_axis, 0)
        return values.transpose(0, 2, 1) if self.swaps else values

    def array(self, slices: np.ndarray) -> np.ndarray:
        """Slices [Z, R, C] -> the array of the file; the way back of `slices`."""
        values = np.moveaxis(slices.transpose(0, 2, 1) if self.swaps else slices, 0, self.slice_axis)
        if not self.oriented:
            return values
        ornt = io_orientation(self.affine)
        back = np.stack([np.argsort(ornt[:, 0]), ornt[np.argsort(ornt[:, 0]), 1]], axis=1)
        return apply_orientation(values, back)

    @property
    def oriented(self) -> bool:
        """Whether the file tells where right, front and top are."""
        return bool(np.isfinite(self.affine).all())

    def _canonical_shape(self) -> tuple[int, ...]:
        if not self.oriented:
            return self.shape
        order = io_orientation(self.affine)[:, 0].astype(int)
        return tuple(self.shape[int(axis)] for axis in np.argsort(order))


@dataclass(frozen=True)
class Entry:
    """A volume that was found.

    Args:
        name: of the volume.
        files: of the images; several, in order, where each holds one slice.
        masks: of the labels, as many; none: in the same files, or there are none.
        place: path without the name of the file, below the source.
        key: of the volume in a file with several, else "".
    """

    name: str
    files: tuple[Path, ...]
    masks: tuple[Path, ...]
    place: Path
    key: str = ""

    @property
    def path(self) -> Path:
        """For messages."""
        return self.files[0]


@dataclass(frozen=True)
class Content:
    """A volume that was read: arrays of the file's own axes."""

    image: np.ndarray
    label: np.ndarray | None
    affine: np.ndarray  # NaN where there is none
    spacing: np.ndarray | None  # of the array's axes, millimetres; None where the file has none
    units: str = ""

    def digest(self) -> bytes:
        """Equal for equal images."""
        return hashlib.sha256(f"{self.image.shape}".encode() + np.ascontiguousarray(self.image).tobytes()).digest()


def read_entry(entry: Entry) -> Content:
    """Read image and label of a volume, checked. Raises `UserError` naming the file for whatever is wrong with it."""
    if entry.path.name.endswith(NIFTI):
        content = _read_nifti(entry)
    else:
        parts = [_read_arrays(path, entry.key) for path in entry.files]
        if len(parts) > 1 and len({part.image.shape for part in parts}) > 1:
            raise UserError(f"{entry.path}: slices of this volume have several shapes")
        content = parts[0] if len(parts) == 1 and parts[0].image.ndim == 3 else _stacked(parts)
    image, label = content.image, content.label
    if image.ndim != 3:
        split = "; split it into phases, one file each" if image.ndim == 4 else ""
        raise UserError(f"{entry.path}: has {image.ndim} dimensions {list(image.shape)}, a volume has 3{split}")
    if image.dtype.kind not in "uifb":
        raise UserError(f"{entry.path}: holds {image.dtype}; expected numbers")
    if not np.isfinite(image).all():
        raise UserError(f"{entry.path}: {int((~np.isfinite(image)).sum())} voxels are NaN or infinity; replace them")
    if label is None:
        return content
    of_label = entry.masks[0] if entry.masks else entry.path
    if label.shape != image.shape:
        raise UserError(f"{of_label}: label has the shape {list(label.shape)}, its image {list(image.shape)}")
    if label.dtype.kind not in "uifb" or (label.dtype.kind == "f" and not (label == np.round(label)).all()):
        raise UserError(f"{of_label}: label does not hold whole numbers; store class ids")
    if label.size and (label.min() < -(2**31) or label.max() >= 2**31):
        raise UserError(f"{of_label}: label holds numbers beyond 32 bits; store class ids")
    return Content(image, label.astype(np.int32), content.affine, content.spacing, content.units)


def grid_of(content: Content, slice_axis: int | None, spacing: tuple[float, float, float] | None) -> Grid | str:
    """Where the voxels of a volume lie; or, as text, what is missing: ``spacing`` or ``axis``.

    Args:
        slice_axis: of the array in canonical orientation; None finds it: the widest spacing, without one the axis with
            fewest voxels.
        spacing: between slices, rows and columns, where the file has none.
    """
    shape, oriented = content.image.shape, bool(np.isfinite(content.affine).all())
    order = io_orientation(content.affine)[:, 0].astype(int) if oriented else np.arange(3)
    canonical = np.argsort(order)  # axis of the file of each canonical axis
    distance = content.spacing[canonical] if content.spacing is not None else None
    if slice_axis is None:
        slice_axis = _slice_axis(np.array(shape)[canonical], distance, oriented)
    if slice_axis is None:
        return "axis"
    rest = [axis for axis in range(3) if axis != slice_axis]
    ordered = [slice_axis, *(rest[::-1] if oriented else rest)]
    if distance is None and spacing is None:
        return "spacing"
    of_slices = np.array(spacing, float) if distance is None else distance[ordered]
    return Grid((shape[0], shape[1], shape[2]), content.affine, slice_axis, oriented, of_slices)


def _slice_axis(shape: np.ndarray, spacing: np.ndarray | None, oriented: bool) -> int | None:
    """Axis, in canonical orientation, along which slices lie; None where nothing tells it."""
    if spacing is not None:
        widest = np.argsort(spacing)[::-1]
        if spacing[widest[0]] >= _WIDEST * spacing[widest[1]]:
            return int(widest[0])
        if oriented:
            return 2  # slices from the feet to the head
    shortest = np.argsort(shape, kind="stable")
    return int(shortest[0]) if shape[shortest[0]] < shape[shortest[1]] else None


def _read_nifti(entry: Entry) -> Content:
    image, mask = _nifti(entry.path), _nifti(entry.masks[0]) if entry.masks else None
    shape, affine = image.shape, np.asarray(image.affine, float)
    values = _voxels(image, entry.path)
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-12:
        raise UserError(f"{entry.path}: its affine is not one ({affine[:3, :3].tolist()}); write the header again")
    label = None
    if mask is not None:
        label = _voxels(mask, entry.masks[0])
        if label.shape == values.shape and not np.allclose(mask.affine, affine, atol=1e-2):
            raise UserError(
                f"{entry.masks[0]}: lies elsewhere than its image (another affine); resample it to the image"
            )
    zooms = np.array(image.header.get_zooms()[:3], float)
    coded = int(image.header["sform_code"]) or int(image.header["qform_code"])
    missing = (
        len(zooms) < 3 or not (np.isfinite(zooms).all() and (zooms > 0).all()) or (not coded and (zooms == 1).all())
    )
    unit = image.header.get_xyzt_units()[0]
    spacing = None if missing else np.sqrt((affine[:3, :3] ** 2).sum(axis=0)) * _UNITS.get(unit, 1.0)
    codes = "".join(nibabel.aff2axcodes(affine)) if len(shape) >= 3 else ""
    return Content(values, label, affine, spacing, codes)


def _nifti(path: Path) -> nibabel.Nifti1Image:
    try:
        image = nibabel.load(path)
    except _BROKEN as error:
        raise UserError(f"{path}: not a NIfTI file ({_words(error)})") from None
    if not isinstance(image, nibabel.Nifti1Image):
        raise UserError(f"{path}: not a NIfTI file, but {type(image).__name__}")
    return image


def _voxels(image: nibabel.Nifti1Image, path: Path) -> np.ndarray:
    try:
        values = np.asanyarray(image.dataobj)
    except _BROKEN as error:
        raise UserError(f"{path}: broken NIfTI file ({_words(error)})") from None
    while values.ndim > 3 and values.shape[-1] == 1:
        values = values[..., 0]
    return values.astype(np.float32) if values.dtype == np.float64 else values


def _read_arrays(path: Path, key: str) -> Content:
    nothing = np.full((4, 4), np.nan)
    arrays = _hdf5_arrays(path) if path.name.endswith(HDF5) else _numpy_arrays(path)
    if "image" not in arrays:
        raise UserError(f"{path}: no array image ({' or '.join(KEYS['image'])})")
    image, label, spacing = arrays["image"], arrays.get("label"), arrays.get("spacing")
    if key:
        rows = _volume_of(arrays) == key
        image, label = image[rows], None if label is None else label[rows]
        spacing = spacing[rows][0] if spacing is not None and spacing.ndim == 2 else spacing
    if spacing is not None and (spacing.shape != (3,) or not (spacing > 0).all()):
        raise UserError(f"{path}: spacing: expected three numbers above 0, of the axes of image, in millimetres")
    return Content(image, label, nothing, None if spacing is None else spacing.astype(float))


def _hdf5_arrays(path: Path) -> dict[str, np.ndarray]:
    with open_hdf5(path) as file:
        found = {key: next((name for name in names if name in file), None) for key, names in KEYS.items()}
        found["spacing"] = "spacing" if "spacing" in file else None
        return {key: file[name][()] for key, name in found.items() if name and isinstance(file[name], h5py.Dataset)}


def _numpy_arrays(path: Path) -> dict[str, np.ndarray]:
    names = KEYS | {key: (key, f"{key}s") for key in ("group", "volume")} | {"spacing": ("spacing",)}
    try:
        with np.load(path, allow_pickle=False) as file:
            found = {key: next((name for name in some if name in file.files), None) for key, some in names.items()}
            return {key: file[name] for key, name in found.items() if name}
    except _BROKEN as error:
        raise UserError(f"{path}: not an .npz file of plain arrays ({_words(error)})") from None


def volumes_in(path: Path) -> Iterator[tuple[str, str]]:
    """Name and group of each volume of an ``.npz`` with several; none where it is one volume.

    Raises:
        UserError: not such a file.
    """
    arrays = _numpy_arrays(path)
    if "group" not in arrays and "volume" not in arrays:
        return
    names, groups = _volume_of(arrays), arrays.get("group", _volume_of(arrays)).astype(str)
    count = len(arrays.get("image", ()))
    if names.shape != (count,) or groups.shape != (count,):
        raise UserError(f"{path}: group and volume: expected as many as images, {count}")
    for name in dict.fromkeys(names.tolist()):
        group = np.unique(groups[names == name])
        if len(group) > 1:
            raise UserError(f"{path}: volume {name} is of groups {' and '.join(group)}; a volume is of one")
        yield name, str(group[0])


def _volume_of(arrays: dict[str, np.ndarray]) -> np.ndarray:
    return arrays["volume" if "volume" in arrays else "group"].astype(str)


def _stacked(parts: list[Content]) -> Content:
    """Slices, each in a file of its own, as one volume."""
    labels = [part.label for part in parts]
    label = None if any(one is None for one in labels) else np.stack([one for one in labels if one is not None])
    return Content(np.stack([part.image for part in parts]), label, parts[0].affine, parts[0].spacing)


def nifti_bytes(grid: Grid, ids: np.ndarray, header: Path | None, is_packed: bool) -> bytes:
    """A NIfTI file of class ids, uint8 of the grid's shape, with its affine and, of NIfTI, what its header says.

    Args:
        header: the NIfTI file that the image came from.
        is_packed: compress it, as ``.nii.gz``.
    """
    if header is not None:
        source = _nifti(header)
        image = nibabel.Nifti1Image(ids, source.affine, source.header)
        image.header["cal_min"] = image.header["cal_max"] = 0
    else:
        affine = grid.affine
        if not np.isfinite(affine).all():
            of_axes = np.insert(grid.spacing[1:], grid.slice_axis, grid.spacing[0])
            affine = np.diag([*of_axes, 1.0])
        image = nibabel.Nifti1Image(ids, affine)
        image.header.set_xyzt_units("mm")
    image.set_data_dtype(np.uint8)
    return gzip.compress(image.to_bytes(), mtime=0) if is_packed else image.to_bytes()


def _words(error: BaseException) -> str:
    return re.sub(r"\s+", " ", str(error).split(" If you trust", 1)[0]) or type(error).__name__
