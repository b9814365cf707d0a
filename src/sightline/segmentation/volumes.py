"""Volumes as a source of frames, and what becomes of predictions of their slices."""

from pathlib import Path

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor
from torch.nn import functional as F

from sightline.core.errors import UserError
from sightline.recording.layout import IGNORE
from sightline.recording.split import SplitParams, complete_split, split_episodes
from sightline.recording.volumes import VolumeFile
from sightline.segmentation.frames import SegmentationFrames
from sightline.segmentation.params import FrameParams, LargestComponent

_SAME = 0.02  # ratios of the sides that differ by less are the same


def frames_of_volumes(path: Path, params: FrameParams, split: SplitParams) -> SegmentationFrames:
    """Slices of a file of volumes, see `sightline.recording.volumes`; the patients are the groups.

    A part that the file does not name is drawn from the patients of part train; where it names none, from all.

    Raises:
        UserError: not such a file, too few patients to split, an ``image_size`` that would stretch the slices.
    """
    file = VolumeFile.open(path)
    count, own = len(file.image), (file.image.shape[1], file.image.shape[2])
    size = params.image_size or own
    if abs(size[0] * own[1] / (size[1] * own[0]) - 1) > _SAME:
        raise UserError(
            f"segmentation.image_size {list(size)} would stretch the slices of {path}, which are {own[0]} x {own[1]}; "
            "set sides of the same ratio, or null"
        )
    return SegmentationFrames(
        str(path), np.arange(count), file.group, _parts(path, file, split), params.classes, size, 1, file.labelled,
        lambda row: file.image[row], lambda row: np.asarray(file.label[row]),
        lambda row: f"{path}: label {row} ({file.volume[row]})", str(path), void=params.void,
        mask_values=params.mask_values, volume=file.volume, voxel=file.spacing, own_size=own, intake=file.intake,
    ).without_ignored()  # fmt: skip


def _parts(path: Path, file: VolumeFile, split: SplitParams) -> np.ndarray:
    """Part of each slice, str [N]."""
    names, index = np.unique(file.group, return_inverse=True)
    try:
        if not (file.split != "").any():
            parts = split_episodes(np.arange(len(names)), split, called="patients", names=names.tolist())
        else:
            named = dict(zip(index.tolist(), file.split.tolist(), strict=True))
            parts = complete_split(named, split)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    return np.array([parts[i] for i in range(len(names))])[index]


def enlarged(probabilities: Tensor, size: tuple[int, int]) -> Tensor:
    """Probabilities [B, C, h, w] -> class ids uint8 [B, H, W] of ``size``, from the nearest probabilities, smoothly."""
    if tuple(probabilities.shape[2:]) != size:
        shrinks = probabilities.shape[2] > size[0]
        how = {"mode": "area"} if shrinks else {"mode": "bilinear", "align_corners": False}
        probabilities = F.interpolate(probabilities, size, **how)
    return probabilities.argmax(dim=1).to(torch.uint8)


def largest_components(ids: np.ndarray, classes: int, mode: LargestComponent) -> np.ndarray:
    """Of each class but 0 the largest connected component, in each slice (``2d``) or the volume (``3d``); others are 0.

    Corners connect. Of components of one size, the first stays.

    Args:
        ids: class ids, uint8 [Z, H, W].
    """
    if mode == "none":
        return ids
    neighbours = np.ones((3, 3, 3), bool)
    if mode == "2d":
        neighbours[[0, 2]] = False
    largest = np.where(ids == IGNORE, ids, 0).astype(ids.dtype)
    for class_id in range(1, classes):
        parts, _ = ndimage.label(ids == class_id, neighbours)
        for part, kept in zip(parts, largest, strict=True) if mode == "2d" else ((parts, largest),):
            sizes = np.bincount(part.ravel())
            sizes[0] = 0
            if sizes.any():
                kept[part == sizes.argmax()] = class_id
    return largest
