"""Moving averages of a model's weights."""

import torch
from torch import nn


def share_at(step: int, decay: float) -> float:
    """Share of the new weights in the average after so many steps; large at first, to forget the initial weights."""
    return 1 - min(decay, (1 + step) / (10 + step))


@torch.no_grad()
def move_average(average: nn.Module, model: nn.Module, share: float) -> None:
    """Move ``average``, with its statistics of norms, by this share of the way to ``model``; counters are copied."""
    for mean, value in zip(average.state_dict().values(), model.state_dict().values(), strict=True):
        if mean.is_floating_point():
            mean.lerp_(value, share)
        else:
            mean.copy_(value)
