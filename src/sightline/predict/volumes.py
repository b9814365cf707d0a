"""Masks of volumes, and of the slices of one."""

import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from sightline.core.errors import UserError
from sightline.core.files import atomic_output
from sightline.importers.volume_files import NIFTI, Grid, grid_of, nifti_bytes, read_entry
from sightline.importers.volume_folders import find_volumes
from sightline.predict.data import BATCH, check_new_folder
from sightline.recording.volumes import Intake, VolumeFile, is_volume_file
from sightline.segmentation.frames import resized
from sightline.segmentation.model import SegmentationConfig, SegmentationModel
from sightline.segmentation.params import LargestComponent
from sightline.segmentation.volumes import enlarged, largest_components, seen_slices
from sightline.training.processes import process_device


def segment_volumes(
    model: SegmentationModel, model_file: Path, data: Path, output: Path, largest: LargestComponent
) -> int:
    """Write a NIfTI file of class ids for each volume of ``data`` -> how many; see `sightline.predict.segment`."""
    if model.config.image_channels != 1:
        raise UserError(
            f"{model_file}: was trained on colour images; a model for volumes was trained on slices of them"
        )
    to_file = output.name.endswith(NIFTI)
    if not to_file:
        check_new_folder(output)
    names: list[str] = []
    with atomic_output(output) as temporary, torch.inference_mode():
        if not to_file:
            temporary.mkdir()
        for name, slices, grid, intake, header in _volumes_of(data, model.config, model_file):
            if to_file and names:
                raise UserError(f"{data}: holds several volumes; name a folder in the place of {output.name}")
            ids = intake.undone(class_ids(model, slices), grid.plane, (grid.spacing[1], grid.spacing[2]))
            ids = largest_components(ids, len(model.config.classes), largest)
            is_packed = not to_file or output.name.endswith(".gz")
            file = temporary if to_file else temporary / f"{name}.nii.gz"
            file.write_bytes(nifti_bytes(grid, grid.array(ids), header, is_packed))
            names.append(name)
    return len(names)


def _volumes_of(
    data: Path, config: SegmentationConfig, model_file: Path
) -> Iterator[tuple[str, np.ndarray, Grid, Intake, Path | None]]:
    """Name, slices uint8 [Z, H, W], place, way there and, of NIfTI, the file of each volume."""
    if is_volume_file(data):
        file = VolumeFile.open(data)
        if config.intake is not None:
            file.intake.check_same(data, config.intake, model_file)
        of = file.sources
        for i, name in enumerate(of.name.tolist()):
            grid = Grid(
                tuple(of.shape[i].tolist()), of.affine[i], int(of.slice_axis[i]), bool(of.swaps[i]), of.spacing[i]
            )
            yield name, file.image[np.flatnonzero(file.volume == name)], grid, file.intake, None
        return
    folder = find_volumes(data, ("*.list",), None)  # all volumes, whatever lists name
    if folder.faults:
        raise UserError("\n".join(folder.faults))
    warned = False
    needs_spacing = config.intake is not None and config.intake.scale == "spacing"
    for entry in tqdm(folder.entries, desc="segment", unit="volume", mininterval=0.5):
        content = read_entry(replace(entry, masks=()))
        oriented = bool(np.isfinite(content.affine).all())
        is_same = (config.intake is not None and config.intake.oriented) == oriented
        if not is_same and not warned:
            warned = True
            warnings.warn(
                f"{entry.path}: one of it and the volumes that {model_file} was trained on does not tell where right, "
                "front and top are: look at a mask before you use them",
                stacklevel=2,
            )
        axis = config.intake.slice_axis if config.intake and is_same else None
        placed = grid_of(content, axis, None if needs_spacing else (1.0, 1.0, 1.0))
        if isinstance(placed, str):
            what = "no spacing" if placed == "spacing" else "nothing that tells along which axis slices lie"
            raise UserError(f"{entry.path}: has {what}, which {model_file} needs; write it as NIfTI with a header")
        intake = config.intake or Intake(size=placed.plane, scale="none")
        slices = intake.placed(intake.grey(placed.slices(content.image)), tuple(placed.spacing[1:]), nearest=False)
        yield entry.name, slices, placed, intake, entry.path if entry.path.name.endswith(NIFTI) else None


def class_ids(model: SegmentationModel, slices: np.ndarray) -> np.ndarray:
    """Class ids uint8 [Z, H, W] of slices uint8 [Z, H, W], or [Z, H, W, 3] in colour."""
    shape = (slices.shape[1], slices.shape[2])
    size, ids = model.config.image_size or shape, []
    if model.config.spatial_dims == 3:
        seen = np.stack([resized(Image.fromarray(one), size) for one in slices])
        return np.concatenate([enlarged(found, shape).cpu().numpy() for found in seen_slices(model, seen)])
    for start in range(0, len(slices), BATCH):
        some = np.stack([resized(Image.fromarray(one), size) for one in slices[start : start + BATCH]])
        pixels = torch.from_numpy(some.reshape(*some.shape[:3], -1)).permute(0, 3, 1, 2)
        ids.append(enlarged(model.probabilities(pixels.to(process_device())), shape).cpu().numpy())
    return np.concatenate(ids)
