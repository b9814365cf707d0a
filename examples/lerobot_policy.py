"""A trained policy with the interface of LeRobot's: `select_action(batch)` and `reset()`.

    policy = SightlinePolicy("policy.onnx")
    policy.reset()  # before each episode
    action = policy.select_action(batch)  # as lerobot's control loops and evaluations call it

The batch has LeRobot's keys and ranges: ``observation.images.<camera>`` float [1, 3, H, W] in 0..1 and
``observation.state`` [1, J]. LeRobot itself is not needed.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sightline.core.errors import UserError
from sightline.fusion import Policy

IMAGES, STATE = "observation.images.", "observation.state"


class SightlinePolicy:
    """One robot's policy, one observation at a time.

    Args:
        path: file of weights, or ONNX file of `sightline export`.
        renamed: camera of the policy -> camera of the batch, where names differ.
        options: those of `Policy.load`, such as ``temporal_ensembling``.

    Raises:
        UserError: as `Policy.load`.
    """

    def __init__(self, path: str | Path, renamed: Mapping[str, str] | None = None, **options: object) -> None:
        self.policy = Policy.load(path, **options)
        self.keys = {camera: IMAGES + (renamed or {}).get(camera, camera) for camera in self.policy.cameras}

    def reset(self) -> None:
        """Begin a new episode."""
        self.policy.reset()

    def select_action(self, batch: Mapping[str, Tensor]) -> Tensor:
        """The action [1, A] of this frame.

        Raises:
            UserError: a key that is missing, more than one observation, or images of another layout or range.
        """
        for key in (STATE, *self.keys.values()):
            if key not in batch:
                raise UserError(f"the batch has no {key}; it has {', '.join(batch)}")
            if len(batch[key]) != 1:
                raise UserError(f"{key}: {len(batch[key])} observations; select_action takes one robot's, [1, ...]")
        images = {camera: _picture(key, batch[key][0]) for camera, key in self.keys.items()}
        observation = {"images": images, "joints": batch[STATE][0].cpu().numpy()}
        return torch.from_numpy(self.policy.act(observation))[None]


def _picture(key: str, image: Tensor) -> np.ndarray:
    """[3, H, W] in 0..1 -> uint8 [H, W, 3]."""
    if image.ndim != 3 or image.shape[0] != 3 or not image.is_floating_point():
        raise UserError(f"{key} must be floating point [1, 3, H, W], not {image.dtype} {[1, *image.shape]}")
    if image.min() < 0 or image.max() > 1:
        raise UserError(f"{key} must be in 0..1, not {image.min():g}..{image.max():g}; leave out the normalisation")
    return (255 * image).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy()
