"""Arrays of 2-D slices, in files of numpy, as a source of frames.

The files are ``.npz``: either one with ``image``, ``label`` and ``group``, or a folder with
``train.npz``, ``val.npz`` and ``test.npz``:

    image    [N, H, W] or [N, H, W, 3]   uint8, or floats: 0..1, or of any range, which is then scaled for each group
                                         from its 0.5th to its 99.5th percentile
    label    [N, H, W]                   whole numbers: class ids, 255 = ignore
    group    [N]                         patients, whole numbers or text: no group lies in two parts of the split
    volume   [N]                         optional: the volume that a slice is of, whole numbers or text; slices in order
    spacing  [2] or [N, 3]               optional: distance of rows and of columns; or of slices, rows and columns, of
                                         each slice; for example in millimetres
"""

import gzip
import warnings
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple
from zipfile import BadZipFile

import numpy as np

from sightline.core.errors import UserError
from sightline.recording.frames import first_few
from sightline.recording.split import PARTS, SplitParams, counted, split_blocks, split_episodes
from sightline.training.processes import rank

KEYS = {
    "image": ("image", "images"),
    "label": ("label", "labels", "mask", "masks"),
    "group": ("group", "groups", "patient", "patients"),
    "volume": ("volume", "volumes"),
    "spacing": ("spacing",),
}  # accepted names of the arrays
_TAILS = (0.5, 99.5)  # percentiles of a group that become black and white
_KINDS = (  # how files begin that people take for .npz
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
    (b"\x93NUMPY", "an .npy file of one array"),
    (b"MATLAB ", "a MATLAB file"),
    (b"\x89PNG", "a PNG image"),
    (b"II*\0", "a TIFF image"),
    (b"MM\0*", "a TIFF image"),
    (b"version https://git-lfs", "a pointer of git-LFS (fetch the file with `git lfs pull`)"),
)


class Slices(NamedTuple):
    """Slices of one file or folder, checked."""

    image: np.ndarray  # uint8 [N, H, W] or [N, H, W, 3]
    label: np.ndarray  # whole numbers [N, H, W]
    group: np.ndarray  # [N], whole numbers or text
    split: np.ndarray  # str [N]: train, val or test
    spacing: np.ndarray | None  # [2], distance of rows and of columns; or [N, 3]
    volume: np.ndarray | None = None  # str [N]


def read_slices(path: Path, split: SplitParams) -> Slices:
    """Read one ``.npz``, which is split by its groups, or a folder with one for each part.

    Without ``group``, one file is split by blocks of its order; slices are then groups of their own.

    Raises:
        UserError: not such a file, missing or misshapen arrays, NaN, a group in two parts, too few to split.
    """
    files = {part: path / f"{part}.npz" for part in PARTS} if path.is_dir() else {"": path}
    arrays = {part: _load(file) for part, file in files.items() if part != "test" or file.is_file()}
    image, label = (np.concatenate([array[key] for array in arrays.values()]) for key in ("image", "label"))
    groups = [array["group"] for array in arrays.values() if "group" in array]
    if groups and len(groups) < len(arrays):
        raise UserError(f"{path}: some of its files have an array group, others have none; give it in all or none")
    group = np.concatenate(groups) if groups else np.arange(len(image))
    if path.is_dir():
        parts = np.concatenate([np.full(len(array["image"]), part) for part, array in arrays.items()])
    else:
        parts = _split(path, group if groups else None, len(image), split)
    for name in np.unique(group) if groups else ():
        if len(several := np.unique(parts[group == name])) > 1:
            raise UserError(f"{path}: group {name} lies in {' and '.join(several)}; a group belongs in one part")
    spacings = [array["spacing"] for array in arrays.values() if "spacing" in array]
    if spacings and all(one.ndim == 2 for one in spacings) and len(spacings) == len(arrays):
        spacing: np.ndarray | None = np.concatenate(spacings)
    else:
        spacing = next((one for one in spacings if one.ndim == 1), None)
    volumes = [array["volume"].astype(str) for array in arrays.values() if "volume" in array]
    if volumes and len(volumes) < len(arrays):
        raise UserError(f"{path}: some of its files have an array volume, others have none; give it in all or none")
    volume = np.concatenate(volumes) if volumes else None
    return Slices(_as_bytes(path, image, group), label, group, parts, spacing, volume)


def read_images(path: Path) -> dict[str, np.ndarray]:
    """The arrays of one ``.npz`` but ``label``, whose ``image`` is uint8 as `read_slices` makes it.

    Raises:
        UserError: not such a file, misshapen arrays, NaN.
    """
    arrays = _load(path, [key for key in KEYS if key != "label"])
    image = arrays["image"]
    return arrays | {"image": _as_bytes(path, image, arrays.get("group", np.arange(len(image))))}


def _split(path: Path, group: np.ndarray | None, count: int, params: SplitParams) -> np.ndarray:
    """Parts of slices, str [N]: by their groups, or by blocks of their order."""
    if group is None:
        return _split_by_order(path, count, params)
    names, index = np.unique(group, return_inverse=True)
    try:
        parts = split_episodes(np.arange(len(names)), params, called="groups", names=names.tolist())
    except UserError as error:
        raise UserError(f"{path}: group: {error}") from None
    return np.array([parts[i] for i in range(len(names))])[index]


def _split_by_order(path: Path, count: int, params: SplitParams) -> np.ndarray:
    """Parts of slices whose patients are not known, str [N]; with a warning."""
    lacks = f"{path}: no array group; add one that names the patient of each slice"
    try:
        parts = split_blocks(count, params)
    except UserError as error:
        raise UserError(f"{lacks}. Without it, {error}") from None
    if rank() == 0:
        warnings.warn(f"{lacks}. Without it, slices are split by their order: {counted(parts)}", stacklevel=4)
    return parts


def _load(path: Path, wanted: Iterable[str] = KEYS) -> dict[str, np.ndarray]:
    """The arrays of one file under the names ``wanted``, of `KEYS`, checked."""
    _refuse_other_kinds(path)
    try:
        with np.load(path, allow_pickle=False) as file:
            members = file.zip.namelist()
            if members and not any(name.endswith(".npy") for name in members):
                raise UserError(_not_npz(path, f"a zip file of other things ({first_few(members, 3)})"))
            names = {key: [name for name in KEYS[key] if f"{name}.npy" in members] for key in wanted}
            arrays = {key: file[there[0]] for key, there in names.items() if there}
            present = ", ".join(file.files)
    except UserError:
        raise
    except (
        OSError,
        ValueError,
        EOFError,
        BadZipFile,
        zlib.error,
        AttributeError,
        LookupError,
        TypeError,
        RuntimeError,
    ) as error:
        reason = str(error).split(" If you trust", 1)[0]  # numpy goes on to say how to run what is in the file
        raise UserError(f"{path}: not an .npz file of plain arrays ({' '.join(reason.split())})") from None
    for key in ("image", "label"):
        if key in names and key not in arrays:
            raise UserError(f"{path}: no array {key} ({' or '.join(KEYS[key])}); it has {present or 'none'}")
    image, label = arrays["image"], arrays.get("label")
    if image.ndim not in (3, 4) or (image.ndim == 4 and image.shape[3] != 3) or not len(image):
        raise UserError(f"{path}: image: shape {list(image.shape)}, expected [N, H, W] or [N, H, W, 3]")
    if image.dtype != np.uint8 and not np.issubdtype(image.dtype, np.floating):
        raise UserError(f"{path}: image: holds {image.dtype}; expected uint8 or floats")
    if label is not None and not np.issubdtype(label.dtype, np.integer):
        raise UserError(f"{path}: label: holds {label.dtype}; expected whole numbers, class ids")
    if label is not None and label.shape != image.shape[:3]:
        raise UserError(f"{path}: label: shape {list(label.shape)}, expected {list(image.shape[:3])} as the images")
    for key in ("group", "volume"):
        if key in arrays and arrays[key].shape != image.shape[:1]:
            raise UserError(f"{path}: {key}: shape {list(arrays[key].shape)}, expected [{len(image)}]")
    if "spacing" in arrays and (
        arrays["spacing"].shape not in ((2,), (len(image), 3)) or not (arrays["spacing"] > 0).all()
    ):
        raise UserError(
            f"{path}: spacing: expected two numbers above 0, the distance of rows and columns, or three of each slice"
        )
    return arrays


def _refuse_other_kinds(path: Path) -> None:
    """Raise `UserError` for a file that is missing, or is known to be of another kind."""
    try:
        with path.open("rb") as file:
            head = file.read(352)
        if head.startswith(b"\x1f\x8b"):
            with gzip.open(path) as file:
                head = file.read(352)
            kind = "a gzipped file"
        else:
            kind = next((words for start, words in _KINDS if head.startswith(start)), "")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (OSError, EOFError, zlib.error):
        return  # the reader says what is wrong
    if head[344:347] in (b"n+1", b"ni1"):
        kind = "a NIfTI volume"
    if kind:
        raise UserError(_not_npz(path, kind))


def _not_npz(path: Path, kind: str) -> str:
    return f"{path}: is {kind}, not .npz; write one with numpy.savez(FILE, image=..., label=..., group=...)"


def _as_bytes(path: Path, image: np.ndarray, group: np.ndarray) -> np.ndarray:
    """Images as uint8, see the top of this module."""
    if image.dtype == np.uint8:
        return image
    broken = np.flatnonzero(~np.isfinite(image).reshape(len(image), -1).all(axis=1))
    if len(broken):
        raise UserError(f"{path}: image: NaN or infinity in {len(broken)} of {len(image)} (slices {first_few(broken)})")
    if image.min() >= 0 and image.max() <= 1:
        return np.round(image * 255).astype(np.uint8)
    pixels = np.empty(image.shape, np.uint8)
    for name in np.unique(group):
        rows = group == name
        low, high = np.percentile(image[rows], _TAILS)
        pixels[rows] = np.round(255 * ((image[rows] - low) / max(high - low, 1e-12)).clip(0, 1))
    return pixels
