"""Import volumes, of NIfTI, HDF5 or ``.npz``, as one file of slices and volumes.

Every file is read and checked before anything is written; all faults are listed at once.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field, field_validator, model_validator
from tqdm import tqdm

from sightline.core.errors import UserError
from sightline.core.files import atomic_output
from sightline.core.hdf5 import create_contiguous, open_for_writing, open_rows
from sightline.core.params import Section
from sightline.importers.volume_files import NIFTI, NUMPY, Entry, Grid, grid_of, read_entry
from sightline.importers.volume_folders import LABELS, Folder, find_volumes
from sightline.recording.layout import IGNORE
from sightline.recording.split import PARTS
from sightline.recording.volumes import Intake, as_text, attributes

_SPREAD = 0.02  # spacings that differ by less, as a share, are the same


class ImportVolumesParams(Section):
    """How volumes become slices of one size; options of ``sightline import_volumes``."""

    window: tuple[float, float] | None = Field(
        None, description="grey values (HU) that become 0 and 255; null: percentiles"
    )
    percentiles: tuple[float, float] = Field((0.5, 99.5), description="of each volume, which become 0 and 255")
    size: tuple[int, int] | None = Field(
        None, description="rows, columns of slices, cropped or padded; null: the median side, more where masks need it"
    )
    scale: Literal["auto", "none", "spacing", "field"] = Field(
        "auto",
        description="none; spacing: one size of pixels; field: each volume fills the slices; auto: spacing where files "
        "have it, else field; none where all are alike",
    )
    spacing: tuple[float, float, float] | None = Field(
        None, description="millimetres between slices, rows, columns of files without; [1, 1, 1] measures in voxels"
    )
    pixel: float | None = Field(None, gt=0, description="millimetres of a pixel for scale spacing; null: the median")
    slice_axis: Literal[0, 1, 2] | None = Field(None, description="axis along which slices lie; null: find it")
    group: str | None = Field(None, description="regular expression, whose (group) in a volume's name is the patient")
    exclude: tuple[str, ...] = Field((), description="patterns of files to leave out, as *_4d.nii.gz")

    @field_validator("spacing")
    @classmethod
    def _is_positive(cls, spacing: tuple[float, float, float] | None) -> tuple[float, float, float] | None:
        if spacing is not None and not min(spacing) > 0:
            raise ValueError(f"spacing must be three numbers above 0, not {list(spacing)}")
        return spacing

    @field_validator("group")
    @classmethod
    def _is_an_expression(cls, group: str | None) -> str | None:
        try:
            if group is not None and re.compile(group).groups < 1:
                raise ValueError(f"group must have a (group), as '(patient[0-9]+)', not {group!r}")
        except re.error as error:
            raise ValueError(f"group is no regular expression: {error}") from None
        return group

    @field_validator("size")
    @classmethod
    def _is_a_size(cls, size: tuple[int, int] | None) -> tuple[int, int] | None:
        if size is not None and not all(8 <= side <= 4096 for side in size):
            raise ValueError(f"size must be 8..4096 rows and columns, not {list(size)}")
        return size

    @model_validator(mode="after")
    def _rise(self) -> "ImportVolumesParams":
        for name, pair in (("window", self.window), ("percentiles", self.percentiles)):
            if pair is not None and not pair[0] < pair[1]:
                raise ValueError(f"{name} must be two rising numbers, not {list(pair)}")
        if not 0 <= self.percentiles[0] < self.percentiles[1] <= 100:
            raise ValueError(f"percentiles must lie in 0..100, not {list(self.percentiles)}")
        return self


@dataclass(frozen=True)
class _Checked:
    """What is kept of a volume after it was read once."""

    entry: Entry
    grid: Grid
    digest: bytes
    values: frozenset[int]  # in its label; none: no label
    reach: tuple[int, int]  # how far, in voxels of the file, labels lie from the middle: rows, columns
    has_spacing: bool
    has_label: bool


def import_volumes(source: Path, target: Path, params: ImportVolumesParams) -> str:
    """Read ``source``, a folder or a file, and write the file ``target`` -> what to print.

    Raises:
        UserError: whatever is wrong with the files, a line each; nothing is written then.
    """
    if target.suffix not in (".hdf5", ".h5"):
        raise UserError(f"{target}: the name of the output ends in .hdf5")
    folder = find_volumes(source, params.exclude, params.group)
    checked, faults = _check_all(folder, params)
    faults = folder.faults + faults
    if not faults:
        faults = _check_together(checked, folder, source)
    if faults:
        raise UserError("\n".join(faults))
    intake = _intake(checked, params)
    cut = [one for one in checked if any(_cut(one, intake))]
    _write(target, checked, folder, intake)
    return _summary(target, checked, folder, intake, cut)


def _check_all(folder: Folder, params: ImportVolumesParams) -> tuple[list[_Checked], list[str]]:
    checked, faults, lacking = list[_Checked](), list[str](), {"spacing": list[Entry](), "axis": list[Entry]()}
    for entry in tqdm(folder.entries, desc="check", unit="volume", mininterval=0.5):
        try:
            content = read_entry(entry)
        except UserError as error:
            faults.append(str(error))
            continue
        grid = grid_of(content, params.slice_axis, params.spacing)
        if isinstance(grid, str):
            lacking[grid].append(entry)
            continue
        label = None if content.label is None else grid.slices(content.label)
        values = frozenset() if label is None else frozenset(np.unique(label).tolist())
        reach = (0, 0) if label is None else _reach(label)
        checked.append(_Checked(
            entry, grid, content.digest(), values, reach, content.spacing is not None, label is not None
        ))  # fmt: skip
    words = {
        "spacing": "without spacing; set import_volumes.spacing=[slices,rows,columns], in millimetres, or [1,1,1] to "
        "measure in voxels",
        "axis": "nothing tells along which axis slices lie; set import_volumes.slice_axis",
    }
    for what, entries in lacking.items():
        if entries:
            names = ", ".join(str(entry.path) for entry in entries)
            faults.append(f"{names}: {words[what]}{_without_group(entries)}")
    return checked, faults


def _without_group(entries: list[Entry]) -> str:
    """What to do where an ``.npz`` may hold more than the one volume that it is taken for."""
    if not any(entry.path.name.endswith(NUMPY) and not entry.key for entry in entries):
        return ""
    return "; if an .npz holds slices of several patients, add an array group that names the patient of each slice"


def _check_together(checked: list[_Checked], folder: Folder, source: Path) -> list[str]:
    """What is wrong with volumes beside each other."""
    faults = []
    axes = {one.grid.slice_axis for one in checked}
    if len(axes) > 1:
        common = max(sorted(axes), key=lambda axis: sum(one.grid.slice_axis == axis for one in checked))
        others = [str(one.entry.path) for one in checked if one.grid.slice_axis != common]
        faults.append(
            f"{', '.join(others)}: of another orientation: slices lie along another axis than those of the "
            f"{len(checked) - len(others)} other volumes; leave them out, or set import_volumes.slice_axis"
        )
    part, seen = folder.part, dict[bytes, _Checked]()
    for one in checked:
        other = seen.setdefault(one.digest, one)
        parts = part.get(one.entry.name, ""), part.get(other.entry.name, "")
        is_other_group = folder.group[one.entry.name] != folder.group[other.entry.name]
        if other is not one and (parts[0] != parts[1] or (is_other_group and not part)):
            where = f" of part {parts[0]}, the other of {parts[1]}" if part else ", but of another patient"
            faults.append(f"{one.entry.path}: the same image as {other.entry.path}{where}; leave one out")
    labelled = [one for one in checked if one.has_label and one.values - {IGNORE}]
    if not labelled:
        is_nifti = checked[0].entry.path.name.endswith(NIFTI)
        beside = f"NAME.nii.gz and its label with {LABELS} behind NAME" if is_nifti else "an array label beside image"
        faults.append(f"{source}: no volume has a label; expected {beside}")
    known = _values(one for one in labelled if part.get(one.entry.name, "train") == "train")
    for name in PARTS[1:]:
        absent = sorted(_values(one for one in labelled if part.get(one.entry.name) == name) - known - {IGNORE})
        if absent and known:
            faults.append(
                f"part {name}: its labels hold {', '.join(map(str, absent))}, which no labelled volume of train has; "
                "mend the labels, or move a patient"
            )
    return faults


def _values(checked: Iterable[_Checked]) -> frozenset[int]:
    return frozenset().union(*(one.values for one in checked))


def _reach(label: np.ndarray) -> tuple[int, int]:
    """How far pixels that are neither 0 nor "ignore" lie from the middle of the plane, in rows and columns."""
    here = (label != 0) & (label != IGNORE)
    reach = []
    for axis in (1, 2):
        places = np.flatnonzero(here.any(axis=tuple({0, 1, 2} - {axis})))
        half = label.shape[axis] / 2
        reach.append(int(np.ceil(max(half - places[0], places[-1] + 1 - half))) if len(places) else 0)
    return reach[0], reach[1]


def _intake(checked: list[_Checked], params: ImportVolumesParams) -> Intake:
    """Decide scale and size for all volumes together."""
    planes = {one.grid.plane for one in checked}
    spacings = np.array([one.grid.spacing[1:] for one in checked])
    are_alike = len(planes) == 1 and bool((np.ptp(spacings, axis=0) <= _SPREAD * spacings.min()).all())
    scale = params.scale
    if scale == "auto":
        own = all(one.has_spacing for one in checked)
        scale = "none" if are_alike else "spacing" if own else "field"
    if params.pixel is not None and scale != "spacing":
        raise UserError(f"import_volumes.pixel is for import_volumes.scale=spacing, not {scale}; set that, too")
    pixel = (params.pixel or round(float(np.median(spacings)), 4)) if scale == "spacing" else None
    made: dict[str, Any] = {
        "scale": scale, "pixel": pixel, "window": params.window, "percentiles": params.percentiles,
        "slice_axis": checked[0].grid.slice_axis, "oriented": checked[0].grid.oriented,
    }  # fmt: skip
    if params.size is not None:
        return Intake(size=params.size, **made)
    if scale == "none" and are_alike:
        side = max(checked[0].grid.plane)
        return Intake(size=(side, side), **made)
    large = Intake(size=(4096, 4096), **made)
    if scale == "field":
        side = int(np.median([max(one.grid.plane) for one in checked]))
        return Intake(size=(side, side), **made)
    scaled = [large.scaled_shape(one.grid.plane, _of_plane(one)) for one in checked]
    side = int(np.median([max(shape) for shape in scaled]))
    for one, shape in zip(checked, scaled, strict=True):  # no labelled pixel is cut off
        needed = [2 * far * new / old for far, new, old in zip(one.reach, shape, one.grid.plane, strict=True)]
        side = max(side, int(np.ceil(max(needed))))
    side += side % 2
    return Intake(size=(side, side), **made)


def _of_plane(one: _Checked) -> tuple[float, float]:
    return float(one.grid.spacing[1]), float(one.grid.spacing[2])


def _cut(one: _Checked, intake: Intake) -> tuple[bool, bool]:
    """Whether labelled rows and columns are cut off."""
    shape = intake.scaled_shape(one.grid.plane, _of_plane(one))
    reach = [2 * far * new / old for far, new, old in zip(one.reach, shape, one.grid.plane, strict=True)]
    return reach[0] > intake.size[0] + 1, reach[1] > intake.size[1] + 1


def _write(target: Path, checked: list[_Checked], folder: Folder, intake: Intake) -> None:
    counts = [one.grid.count for one in checked]
    total = sum(counts)
    values = _values(checked)
    kind = "u1" if values and min(values) >= 0 and max(values) <= IGNORE else "i4"
    names = np.repeat([one.entry.name for one in checked], counts)
    spacing = np.concatenate([
        np.tile(intake.spacing_of(one.grid.plane, one.grid.spacing), (count, 1))
        for one, count in zip(checked, counts, strict=True)
    ])  # fmt: skip
    filled = {
        "volume": as_text(names),
        "group": as_text([folder.group[name] for name in names.tolist()]),
        "split": as_text([folder.part.get(name, "") for name in names.tolist()]),
        "spacing": spacing,
        "source/name": as_text([one.entry.name for one in checked]),
        "source/shape": np.array([one.grid.shape for one in checked], np.int64),
        "source/affine": np.array([one.grid.affine for one in checked]),
        "source/spacing": np.array([one.grid.spacing for one in checked]),
        "source/slice_axis": np.array([one.grid.slice_axis for one in checked], np.int64),
        "source/swaps": np.array([one.grid.swaps for one in checked]),
    }
    empty = {name: ((total, *intake.size), dtype) for name, dtype in (("image", "u1"), ("label", kind))}
    labelled = np.zeros(total, bool)
    with atomic_output(target) as temporary:
        create_contiguous(temporary, empty, filled | {"labelled": labelled}, attributes(intake))
        images, labels, row = open_rows(temporary, "image", "r+"), open_rows(temporary, "label", "r+"), 0
        for one, count in zip(tqdm(checked, desc="write", unit="volume", mininterval=0.5), counts, strict=True):
            content, here = read_entry(one.entry), slice(row, row + count)
            images[here] = intake.placed(intake.grey(one.grid.slices(content.image)), _of_plane(one), nearest=False)
            if content.label is not None:
                label = one.grid.slices(content.label)
                labels[here] = intake.placed(label, _of_plane(one), nearest=True)
                labelled[here] = (label != IGNORE).any(axis=(1, 2))
            else:
                labels[here] = 0
            row += count
        images.flush()
        labels.flush()
        del images, labels
        with open_for_writing(temporary, "r+") as file:
            file["labelled"][...] = labelled


def _summary(target: Path, checked: list[_Checked], folder: Folder, intake: Intake, cut: list[_Checked]) -> str:
    groups = {folder.group[one.entry.name] for one in checked}
    slices = sum(one.grid.count for one in checked)
    of_part = {part: {folder.group[n] for n, p in folder.part.items() if p == part} for part in PARTS}
    parts = ", ".join(f"{name} {len(some)}" for name, some in of_part.items() if some) or "to be split by data.split"
    how = {
        "none": "pixels as they are",
        "field": "each as large as its longer side",
        "spacing": f"{intake.pixel} mm a pixel",
    }
    lines = [
        f"{target}: {slices} slices of {len(checked)} volumes of {len(groups)} patients ({parts}); "
        f"{intake.size[0]} x {intake.size[1]} pixels, {how[intake.scale]}; labels "
        f"{', '.join(map(str, sorted(_values(checked))))}"
    ]
    unlabelled = sum(not one.has_label for one in checked)
    lines += [f"{unlabelled} volumes have no label: unlabelled"] if unlabelled else []
    lines += [f"{folder.left_out} volumes are in no list: left out"] if folder.left_out else []
    if cut:
        names = ", ".join(one.entry.name for one in cut)
        lines.append(f"warning: import_volumes.size cuts labelled pixels off in {len(cut)} volumes: {names}")
    return "\n".join([*lines, f"next: dvc add {target}"])
