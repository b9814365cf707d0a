"""Volumes as a source of frames, and what becomes of predictions of their slices."""

from collections.abc import Iterator
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
from sightline.segmentation.model import SegmentationModel
from sightline.segmentation.params import FrameParams, LargestComponent
from sightline.segmentation.patches import Volumes, fewer_slices

_AT_A_TIME = 16  # slices that are enlarged together
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
        lambda row: file.image[row], lambda _: own, lambda row: np.asarray(file.label[row]),
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


@torch.inference_mode()
def seen_slices(model: SegmentationModel, slices: np.ndarray, windows: bool = True) -> Iterator[Tensor]:
    """Probabilities of the classes [n, C, h, w] of a volume's slices, a few at a time, by a model of volumes.

    Args:
        slices: uint8 [Z, h, w], of the size that the network sees.
        windows: see `SegmentationModel.probabilities`.
    """
    step, device = model.config.slice_step, next(model.parameters()).device
    volume = fewer_slices(torch.from_numpy(slices).to(device), step).permute(1, 2, 0)
    found_ZC = model.probabilities(volume[None, None], windows=windows)[0].movedim(-1, 0)  # (z, C, h, w)
    for start in range(0, len(slices), _AT_A_TIME):
        place = torch.arange(start, min(start + _AT_A_TIME, len(slices)), device=device)
        place = ((place + 0.5) / step - 0.5).clamp(0, len(found_ZC) - 1)
        before = place.long()
        after = (before + 1).clamp_max(len(found_ZC) - 1)
        yield torch.lerp(found_ZC[before], found_ZC[after], (place - before).view(-1, 1, 1, 1))


class VolumePredictions:
    """What a model of volumes makes of the slices of volumes: each volume is predicted as a whole, and remembered."""

    def __init__(self, model: SegmentationModel, frames: SegmentationFrames, windows: bool) -> None:
        self.model, self.frames, self.windows, self.volumes = model, frames, windows, Volumes(frames)
        self._found: dict[int, tuple[np.ndarray, np.ndarray, np.ndarray]] = {}  # of rows

    def ids(self, rows: np.ndarray) -> np.ndarray:
        """Class ids at ``image_size``, uint8 [n, h, w]."""
        return np.stack([ids for ids, _, _ in self._of(rows)])

    def confidence(self, rows: np.ndarray) -> np.ndarray:
        """Their probabilities, float32 [n, h, w]."""
        return np.stack([sure for _, sure, _ in self._of(rows)]).astype(np.float32)

    def whole_ids(self, rows: np.ndarray) -> np.ndarray:
        """Class ids at the size of the slices, uint8 [n, H, W]."""
        return np.stack([whole for _, _, whole in self._of(rows)])

    def _of(self, rows: np.ndarray) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        assert self.frames.own_size is not None
        new = np.array([row for row in rows.tolist() if row not in self._found], int)
        for own in (self.volumes.rows[volume] for volume in self.volumes.of(new)):
            ids, sure, whole = [], [], []
            for probabilities in seen_slices(self.model, self.frames.images(own)[:, 0], self.windows):
                confidence, classes = probabilities.max(dim=1)
                ids.append(classes.to(torch.uint8).cpu().numpy())
                sure.append(confidence.half().cpu().numpy())  # half the memory, and finer than the bins
                whole.append(enlarged(probabilities, self.frames.own_size).cpu().numpy())
            found = zip(*(np.concatenate(parts) for parts in (ids, sure, whole)), strict=True)
            self._found.update(zip(own.tolist(), found, strict=True))
        return [self._found[row] for row in rows.tolist()]


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
