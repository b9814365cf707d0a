"""Volumes in three dimensions: what a network sees of them, and random patches, changed in place.

A volume is uint8 [H, W, Z]: rows, columns, slices. A patch is cut from the volume through its own random change of
places (mirroring, zoom, rotation in the plane of the slices, shift), so that what is turned into it comes from the
volume around it; only what lies beyond the volume is ignored. Random numbers come with each draw.
"""

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset

from sightline.core.errors import UserError
from sightline.recording.layout import IGNORE
from sightline.segmentation.augmentation import AugmentationParams
from sightline.segmentation.batches import Batch, FrameBatches, StepDraw
from sightline.segmentation.frames import SegmentationFrames
from sightline.segmentation.network import STRIDE
from sightline.training.loading import sent
from sightline.training.order import Draw

PATCH_CHANCES = 10  # corner 3, mirroring 2, zoom, angle, shift 3


class Volumes:
    """The volumes that frames are slices of: volume ``i`` has the name ``names[i]`` and the rows ``rows[i]``, in order.

    Raises:
        UserError: frames that are not of grey volumes, or a volume of several groups or parts.
    """

    def __init__(self, frames: SegmentationFrames) -> None:
        if frames.volume is None:
            raise UserError(
                f"{frames.name}: segmentation.dims is 3, but it is not of volumes; give --volumes FILE, or set it to 2"
            )
        if frames.channels != 1:
            raise UserError(f"{frames.name}: segmentation.dims is 3, but its slices are in colour; set it to 2")
        names, index = np.unique(frames.volume, return_inverse=True)
        self.names: list[str] = names.tolist()
        order, counts = np.argsort(index, kind="stable"), np.bincount(index)
        self.rows: list[np.ndarray] = np.split(order, np.cumsum(counts)[:-1])
        self.of_row = index
        for name, rows in zip(self.names, self.rows, strict=True):
            for kind, values in (("group", frames.group[rows]), ("part", frames.split[rows])):
                if len(several := np.unique(values)) > 1:
                    shown = " and ".join(map(str, several))
                    raise UserError(f"{frames.name}: volume {name} is of {kind} {shown}; a volume is of one")

    def of(self, rows: np.ndarray) -> np.ndarray:
        """The volumes of these rows, int64, ascending, each once."""
        return np.unique(self.of_row[rows])

    def all_rows(self, rows: np.ndarray) -> np.ndarray:
        """All rows of the volumes of these rows, ascending."""
        return np.flatnonzero(np.isin(self.of_row, self.of(rows)))


def check_crop(frames: SegmentationFrames, volumes: Volumes, crop: tuple[int, ...], step: int) -> None:
    """Raise `UserError` where patches are larger than the largest volume as a network sees it, with its padding."""
    seen = *frames.image_size, -(-max(map(len, volumes.rows)) // step)
    if any(side > whole + -whole % STRIDE for side, whole in zip(crop, seen, strict=True)):
        raise UserError(
            f"{frames.name}: segmentation.crop is {list(crop)}, larger than the largest volume as the network sees it, "
            f"{list(seen)} rows, columns and slices; lower it"
        )


def fewer_slices(slices: Tensor, step: int) -> Tensor:
    """The mean of every ``step`` slices: uint8 [Z, H, W] -> [ceil(Z / step), H, W]; the last is repeated to fill."""
    if step == 1:
        return slices
    lacking = -len(slices) % step
    whole = torch.cat([slices, slices[-1:].expand(lacking, -1, -1)])
    return whole.unflatten(0, (-1, step)).float().mean(dim=1).round().to(torch.uint8)


class VolumeBatches(Dataset[Batch]):
    """Batches of volumes that were read before: `StepDraw` or `Draw`, of volumes -> tensors.

        labelled    image float32 [B, 1, h, w, z] in [0, 1], mask uint8 [B, h, w, z], chances float32 [B, K]: random
                    patches, and the random numbers that they leave; of a `Draw`, one whole volume, image uint8
        unlabelled  the same, with a mask that is 255 beyond the volume, else 0; where the draw has some

    Args:
        data: slices and masks of all rows.
        masked: rows whose masks are used; other slices of their volumes are ignored.
        step: see `fewer_slices`; of masks the middle one is taken.
    """

    def __init__(
        self, data: FrameBatches, volumes: Volumes, masked: np.ndarray, params: AugmentationParams, step: int
    ) -> None:
        self.params, self.images, self.masks = params, dict[int, Tensor](), dict[int, Tensor]()
        assert params.crop is not None
        self.size = params.crop
        for volume in volumes.of(data.rows).tolist():
            rows, here = volumes.rows[volume], np.isin(volumes.rows[volume], masked)
            places = torch.from_numpy(np.searchsorted(data.rows, rows)).to(data.images.device)
            slices = fewer_slices(data.images[places, 0], step)
            self.images[volume] = slices.permute(1, 2, 0).contiguous()
            if here.any():
                mask = torch.full((len(rows), *data.masks.shape[1:]), IGNORE, dtype=torch.uint8)
                mask = mask.to(data.masks.device)
                mask[torch.from_numpy(here)] = data.masks[torch.from_numpy(np.searchsorted(data.masked, rows[here]))]
                seen = (torch.arange(len(slices)) * step + step // 2).clamp_max(len(rows) - 1)
                self.masks[volume] = mask[seen].permute(1, 2, 0).contiguous()

    def pixels(self, volumes: np.ndarray) -> np.ndarray:
        """Voxels of each class in the masks of these volumes, int64 [V, 255]."""
        counts = [torch.bincount(self.masks[i].flatten().int(), minlength=IGNORE + 1) for i in volumes.tolist()]
        return torch.stack(counts).cpu().numpy()[:, :IGNORE]

    def __getitem__(self, draw: StepDraw | Draw) -> Batch:
        if isinstance(draw, Draw):
            (volume,) = draw.rows.tolist()
            return {"labelled": {"image": self.images[volume][None, None], "mask": self.masks[volume][None]}}
        batch = {"labelled": self._patches(draw.labelled, True)}
        return batch if draw.unlabelled is None else batch | {"unlabelled": self._patches(draw.unlabelled, False)}

    def _patches(self, draw: Draw, labelled: bool) -> dict[str, Tensor]:
        drawn = zip(draw.rows.tolist(), draw.chances.astype(float), strict=True)
        patches = [
            placed_patch(self.images[i], self.masks[i] if labelled else None, chances, self.size, self.params)
            for i, chances in drawn
        ]
        image, mask = (torch.stack(parts) for parts in zip(*patches, strict=True))
        rest = sent(torch.from_numpy(draw.chances[:, PATCH_CHANCES:]), image.device)
        return {"image": image, "mask": mask, "chances": rest}


def placed_patch(
    volume_HWZ: Tensor, mask_HWZ: Tensor | None, chances: np.ndarray, size: tuple[int, ...], params: AugmentationParams
) -> tuple[Tensor, Tensor]:
    """A random patch of a volume and its mask -> image float32 [1, h, w, z] in [0, 1], mask uint8 [h, w, z].

    The image is linear between voxels, the mask of the nearest; beyond the volume the image repeats its border, and the
    mask is 255.

    Args:
        volume_HWZ: uint8.
        mask_HWZ: class ids, uint8; None is taken as zeros.
        chances: [>= PATCH_CHANCES].
    """
    turn, middle = _placement(np.array(volume_HWZ.shape), chances, np.array(size), params)
    # The part of the volume that the patch comes from, with a voxel around it.
    reach = np.abs(turn) @ ((np.array(size) - 1) / 2)
    shape = np.array(volume_HWZ.shape)
    first = np.clip(np.floor(middle - reach) - 1, 0, shape - 1).astype(int)
    last = np.clip(np.ceil(middle + reach) + 1, first, shape - 1).astype(int)
    part = tuple(slice(a, b + 1) for a, b in zip(first.tolist(), last.tolist(), strict=True))
    # grid_sample counts from -1 to 1 over all voxels, and has the last axis first.
    voxels = last - first + 1
    scale = turn * (np.array(size) - 1) / voxels[:, None]
    theta = np.concatenate([scale[::-1, ::-1], ((2 * (middle - first) + 1) / voxels - 1)[::-1, None]], axis=1)
    device = volume_HWZ.device
    grid = F.affine_grid(sent(torch.from_numpy(theta[None]).float(), device), [1, 1, *size], align_corners=True)
    image = volume_HWZ[part].float()[None, None] / 255
    image = F.grid_sample(image, grid, padding_mode="border", align_corners=False)
    labels = torch.zeros_like(volume_HWZ[part]) if mask_HWZ is None else mask_HWZ[part]
    labels = labels.float()[None, None] - IGNORE  # zeros outside: ignored
    sampled = F.grid_sample(labels, grid, mode="nearest", align_corners=False)
    return image[0], (sampled[0, 0] + IGNORE).round().to(torch.uint8)


def _placement(
    shape: np.ndarray, chances: np.ndarray, size: np.ndarray, params: AugmentationParams
) -> tuple[np.ndarray, np.ndarray]:
    """From offsets in a patch to those in the volume, [3, 3], and the voxel of the volume at its middle, [3]."""
    corner, mirror, zoom, angle, shift = np.split(chances[:PATCH_CHANCES], [3, 5, 6, 7])
    room = shape - size
    start = np.where(room > 0, np.floor(corner * (room + 1)), np.floor(room / 2))
    middle = start + (size - 1) / 2 + np.round(params.shift * size * (2 * shift - 1))
    turned = math.radians(params.rotate) * (2 * angle[0] - 1)
    cosine, sine = math.cos(turned), math.sin(turned)
    turn = np.array([[cosine, -sine, 0], [sine, cosine, 0], [0, 0, 1]])
    turn *= (1 + params.zoom) ** (1 - 2 * zoom[0])
    return turn * np.where(params.flip & (np.append(mirror, 1) < 0.5), -1, 1), middle
