"""What a training step sees: views, joints, and the chunk of actions that follows, within the episode."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from sightline.core.errors import UserError
from sightline.fusion.advantage import Rewards
from sightline.fusion.depth_images import DEPTH_IMAGES, resize_depth
from sightline.fusion.views import Views
from sightline.grids.features import Feature, FramesOf, open_features
from sightline.training.loading import sent
from sightline.training.order import Draw

NAMES = ("depth", "grid", DEPTH_IMAGES)  # what models call vectors, grids and depth images


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
        also each of ``extras``, by name (depth images float32 [B, D, S, S], see `resize_depth`); with ``rewards``,
        ``gained`` (see `Rewards`); where these have following rows, ``continues``, and ``next_views``,
        ``next_joints`` and ``next_<extra>`` of those rows

    Args:
        extras: precomputed features of every frame, by name, from `read_features`.
        rewards: what a critic learns from.
        resident: all views on a GPU, to read from in place of the file; from `resident_views`.
    """

    def __init__(
        self,
        views: Views,
        steps: int,
        stride: int,
        extras: Mapping[str, Feature],
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
            views = self.resident[sent(torch.from_numpy(rows), self.resident.device)]
        else:
            views = torch.from_numpy(self.views.images[rows])
        return {"views": views, "joints": torch.from_numpy(self.views.joints[rows]), **self.extras_of(rows)}

    def extras_of(self, rows: np.ndarray) -> dict[str, Tensor]:
        """Further inputs of these frames, by name."""
        return extras_of(self.extras, rows, self.views.images.shape[-1])


def resident_views(views: Views, device: torch.device) -> Tensor | None:
    """All views on ``device``, where that is a GPU and they take less than half of its free memory."""
    if device.type != "cuda" or 2 * views.images.nbytes > torch.cuda.mem_get_info(device)[0]:
        return None
    return torch.from_numpy(np.array(views.images)).to(device)


def read_features(paths: Sequence[Path], views: Views) -> dict[str, Feature]:
    """Features of every frame of ``views``, by name: ``depth`` embeddings, ``grid`` grids, ``depth_images``.

    Raises:
        UserError: files of another kind or another recording, two of a kind, or a frame that is missing.
    """
    return open_features(paths, FramesOf(views.frame_id, views.sound, str(views.path), views.recording), NAMES)


def extras_of(features: Mapping[str, Feature], rows: np.ndarray, size: int) -> dict[str, Tensor]:
    """Features of some rows as a model takes them, by name; depth images at the ``size`` of the views."""
    extras = {name: torch.from_numpy(np.asarray(values[rows])) for name, values in features.items()}
    if DEPTH_IMAGES in extras:
        extras[DEPTH_IMAGES] = resize_depth(extras[DEPTH_IMAGES], size)
    return extras
