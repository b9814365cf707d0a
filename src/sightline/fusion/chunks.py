"""What a training step sees: views, joints, and the chunk of actions that follows, within the episode."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from sightline.core.errors import UserError
from sightline.core.hdf5 import open_hdf5
from sightline.fusion.advantage import Rewards
from sightline.fusion.views import Views
from sightline.grids.store import GridRows, GridStore
from sightline.training.order import Draw


def chunk_rows(episode_N: np.ndarray, steps: int, stride: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Rows of each frame and the ``steps`` - 1 after it, ``stride`` frames apart, int64 [N, H]; and which lie in its
    episode, bool [N, H].

    Beyond the end of the episode the last row repeats. Frames are sorted by episode and step.
    """
    count = len(episode_N)
    ends = np.flatnonzero(np.append(episode_N[1:] != episode_N[:-1], True))
    last = ends[np.searchsorted(ends, np.arange(count))]
    rows = np.arange(count)[:, None] + stride * np.arange(steps)
    inside = rows <= last[:, None]
    return np.where(inside, rows, last[:, None]), inside


class Chunks(Dataset[dict[str, Tensor]]):
    """Batches of a file of views: `Draw` -> tensors.

        views     uint8 [B, V, 3, S, S]     joints  float32 [B, J], data units
        actions   float32 [B, H, A]         mask    float32 [B, H], 1 within the episode
        chances   float32 [B, K]
        also each of ``extras``, by name; with ``rewards``, ``gained`` (see `Rewards`); where these have following rows,
        ``continues``, and ``next_views``, ``next_joints`` and ``next_<extra>`` of those rows

    Args:
        extras: precomputed features of every frame, [N, ...], by name, from `read_extras`.
        rewards: what a critic learns from.
        resident: all views on a GPU, to read from in place of the file; from `resident_views`.
    """

    def __init__(
        self,
        views: Views,
        steps: int,
        stride: int,
        extras: Mapping[str, np.ndarray | GridRows],
        rewards: Rewards | None = None,
        resident: Tensor | None = None,
    ) -> None:
        self.views, self.extras, self.rewards, self.resident = views, extras, rewards, resident
        self.ahead, self.inside = chunk_rows(views.episode, steps, stride)
        longest = int(self.inside.sum(1).max())
        if steps > longest:
            raise UserError(
                f"{views.path}: fusion.chunk is {steps} steps, {stride} frames apart, but the longest episode has room "
                f"for {longest}; lower it"
            )

    def __getitem__(self, draw: Draw) -> dict[str, Tensor]:
        rows, rewards = draw.rows, self.rewards
        batch = self._seen(rows) | {
            "actions": torch.from_numpy(self.views.actions[self.ahead[rows]]),
            "mask": torch.from_numpy(self.inside[rows].astype(np.float32)),
            "chances": torch.from_numpy(draw.chances),
        }
        if rewards is not None:
            batch["gained"] = torch.from_numpy(rewards.gained[rows])
            if rewards.following is not None and rewards.continues is not None:
                batch["continues"] = torch.from_numpy(rewards.continues[rows])
                batch |= {f"next_{name}": value for name, value in self._seen(rewards.following[rows]).items()}
        return batch

    def _seen(self, rows: np.ndarray) -> dict[str, Tensor]:
        """Inputs of the encoder for these frames."""
        if self.resident is not None:
            views = self.resident[torch.from_numpy(rows).to(self.resident.device)]
        else:
            views = torch.from_numpy(self.views.images[rows])
        extras = {name: torch.from_numpy(np.asarray(values[rows])) for name, values in self.extras.items()}
        return {"views": views, "joints": torch.from_numpy(self.views.joints[rows]), **extras}


def resident_views(views: Views, device: torch.device) -> Tensor | None:
    """All views on ``device``, where that is a GPU and they take less than half of its free memory."""
    if device.type != "cuda" or 2 * views.images.nbytes > torch.cuda.mem_get_info(device)[0]:
        return None
    return torch.from_numpy(np.array(views.images)).to(device)


def read_extras(files: dict[str, Path], views: Views) -> dict[str, np.ndarray | GridRows]:
    """Precomputed features of every frame of ``views``: [N, D] of ``embeddings``, or CLIP grids [N, P, C].

    Args:
        files: name -> HDF5 file with ``embeddings`` and ``frame_id``, or a store of grids.

    Raises:
        UserError: neither, or a frame that is missing.
    """
    return {name: _read_extra(path, views) for name, path in files.items()}


def _read_extra(path: Path, views: Views) -> np.ndarray | GridRows:
    if path.is_dir():
        return _read_grids(path, views)
    with open_hdf5(path) as file:
        if "grids" in file:
            return _read_grids(path, views)
        if not {"embeddings", "frame_id"} <= set(file):
            raise UserError(f"{path}: holds neither depth embeddings nor CLIP grids")
        ids, values = file["frame_id"][:], file.rows("embeddings")
    missing = np.setdiff1d(views.frame_id[views.sound], ids)
    if len(missing):
        raise UserError(f"{path}: lacks {len(missing)} frames of {views.path} (first {missing[0]})")
    order = np.argsort(ids)
    rows = order[np.searchsorted(ids, views.frame_id, sorter=order).clip(max=len(ids) - 1)]
    same = len(ids) == len(rows) and (rows == np.arange(len(rows))).all()
    return np.asarray(values if same else values[rows])


def _read_grids(path: Path, views: Views) -> GridRows:
    first = views.frame_id[views.sound][0]  # stands for frames that are never drawn, which may have no grid
    return GridRows(GridStore(path), np.where(views.sound, views.frame_id, first))
