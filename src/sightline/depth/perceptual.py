"""A perceptual loss: distance between the features that a network trained on photographs sees in two depth images.

Zhang et al., "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric" (2018), on VGG-16 (Simonyan and
Zisserman, 2015), without the learned weights of its channels: unit-length features, squared difference.
"""

import pickle
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import vgg16

from sightline.core.errors import UserError
from sightline.core.files import require_file

STAGES = (4, 9, 16)  # ends of the first three blocks of VGG-16's features, behind their last ReLU
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of the photographs, in [0, 1]


class PerceptualLoss(nn.Module):
    """Distance in feature space between a reconstruction and its target. Training does not change its weights.

    Args:
        weights: file with the state dict of torchvision's VGG-16 (``features.*`` is enough), loaded as data only.

    Raises:
        UserError: no such file, or not those weights.
    """

    def __init__(self, weights: Path) -> None:
        super().__init__()
        vgg = "the weights of torchvision's VGG-16"
        require_file(weights, vgg, f"; the perceptual loss needs {vgg}")
        features = vgg16(weights=None).features[: STAGES[-1]]
        try:
            state = torch.load(weights, map_location="cpu", weights_only=True)
            names = features.state_dict()
            features.load_state_dict({name: state[f"features.{name}"] for name in names})
        except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError, TypeError):
            raise UserError(f"{weights}: not a state dict of torchvision's VGG-16") from None
        self.features = features.requires_grad_(False)
        self.register_buffer("mean", torch.tensor(MEAN)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(STD)[:, None, None], persistent=False)

    def forward(self, prediction: Tensor, target: Tensor, valid: Tensor) -> Tensor:
        """Mean distance of [B, 1, S, S] images in [-1, 1]; holes of the target do not count."""
        whole = torch.where(valid, prediction, target)  # else the borders of holes would be most of the distance
        x, y = self._as_photograph(whole), self._as_photograph(target)
        distance = prediction.new_zeros(())
        for start, end in zip((0, *STAGES), STAGES, strict=False):
            x, y = self.features[start:end](x), self.features[start:end](y)
            distance = distance + (F.normalize(x, dim=1) - F.normalize(y, dim=1)).square().sum(1).mean()
        return distance

    def _as_photograph(self, depth: Tensor) -> Tensor:
        return ((depth + 1) / 2 - self.get_buffer("mean")) / self.get_buffer("std")  # (B, 1, S, S) -> (B, 3, S, S)
