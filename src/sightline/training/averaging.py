"""Moving averages of a model's weights."""

import torch
from torch import nn


def share_at(step: int, decay: float) -> float:
    """Share of the new weights in the average after so many steps; large at first, to forget the initial weights."""
    return 1 - min(decay, (1 + step) / (10 + step))


@torch.no_grad()
def move_average(average: nn.Module, model: nn.Module, share: float) -> None:
    """Move ``average``, with its statistics of norms, by this share of the way to ``model``; counters are copied."""
    means, values = average.state_dict().values(), model.state_dict().values()
    pairs = list(zip(means, values, strict=True))
    moving = [pair for pair in pairs if pair[0].is_floating_point()]
    torch._foreach_lerp_([mean for mean, _ in moving], [value for _, value in moving], share)  # few kernels for all
    for mean, value in pairs:
        if not mean.is_floating_point():
            mean.copy_(value)
