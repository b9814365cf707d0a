"""What the scene numbers are trained for, beside the reconstruction: heads that only the training has.

Inverse dynamics, from the codes of two moments to what happened between them: Agrawal et al., "Learning to Poke by
Poking" (2016); as the objective of a representation: Brandfonbrener et al., "Inverse Dynamics Pretraining Learns Good
Representations for Multitask Imitation" (2023).
"""

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from sightline.core.params import Section
from sightline.depth.network import GRID, POSITIONS, Autoencoder
from sightline.depth.preprocessing import IMAGE_SIZE

SUMMARY = 32  # pixels on an edge of the small picture
HIDDEN = 128


class Objective(Section):
    """What the network is trained for: weights of the terms of the loss."""

    reconstruction: float = Field(1.0, gt=0, description="weight of the error of the reconstructed image")
    summary: float = Field(
        1.0, ge=0, description="weight of the error of a 32x32 image made from the scene numbers alone"
    )
    inverse_dynamics: float = Field(
        1.0,
        ge=0,
        description="weight of predicting the joints' change over 1 to 4 frames from scene numbers; needs joints",
    )


class Summary(nn.Module):
    """A small picture from the scene numbers alone: [B, D] -> [B, C, 32, 32]."""

    def __init__(self, numbers: int, channels: int) -> None:
        super().__init__()
        self.start = nn.Linear(numbers, 32 * POSITIONS)
        self.grow = nn.Sequential(
            nn.ConvTranspose2d(32, 32, 4, 2, 1), nn.GELU(), nn.ConvTranspose2d(32, 16, 4, 2, 1), nn.GELU()
        )
        self.output = nn.Conv2d(16, channels, 3, 1, 1)

    def forward(self, scene: Tensor) -> Tensor:
        y = F.gelu(self.start(scene)).reshape(len(scene), -1, GRID, GRID)
        return self.output(self.grow(y))

    def error(self, scene: Tensor, depth: Tensor, valid: Tensor) -> Tensor:
        """Mean squared error, as a share of the variance over the batch, of the cells that are half valid at least."""
        size = IMAGE_SIZE // SUMMARY
        seen = F.avg_pool2d(valid.float(), size)  # (B, 1, 32, 32), share of each cell
        target = F.avg_pool2d(depth * valid, size) / seen.clamp(min=1e-6)
        cells = (seen >= 0.5).float().expand_as(target)
        count = cells.sum().clamp(min=1)
        variance = ((target - (target * cells).sum() / count).square() * cells).sum() / count
        return ((self(scene) - target).square() * cells).sum() / count / variance.clamp(min=1e-4)


class InverseDynamics(nn.Module):
    """How the joints move from one frame to a later one: two scenes [B, D] -> [B, J]."""

    def __init__(self, numbers: int, joints: int) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.Linear(2 * numbers, HIDDEN), nn.GELU(), nn.Linear(HIDDEN, joints))

    def forward(self, scene: Tensor, later: Tensor) -> Tensor:
        return self.network(torch.cat([scene, later], dim=1))

    def error(self, scene: Tensor, later: Tensor, change: Tensor, paired: Tensor) -> Tensor:
        """Mean error (Huber's) of the frames that are ``paired``, bool [B]; 0 where none is."""
        error = F.smooth_l1_loss(self(scene, later).float(), change, reduction="none").mean(dim=1)
        return (error * paired).sum() / paired.sum().clamp(min=1)


def scale_scene(network: Autoencoder, images: Tensor) -> None:
    """Give the scene numbers together the variance that the patch numbers of these ``images`` [N, C, S, S] have."""
    config = network.config
    if config.scene_dim and config.patch_dim:
        with torch.no_grad():
            patches = network.encoder.patches(images)
        variance = patches.var(dim=0, correction=0).sum() / config.scene_dim
        scale = float(variance.sqrt().clamp(min=1e-3))
        network.encoder.scene_norm.scale.fill_(scale)
        if config.patch_path == "refined":
            network.decoder.refine_patches.scene_scale.fill_(scale)  # what it is given has spread 1
