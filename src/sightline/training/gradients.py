"""The norm of the gradient: clipped, logged, and checked before each step."""

import math
from collections.abc import Iterable
from itertools import islice
from typing import Any

import lightning
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn

from sightline.core.errors import UserError


def clip_gradients(parameters: Iterable[Tensor], largest: float) -> Tensor:
    """Scale gradients whose norm is above ``largest`` -> their norm before.

    As `torch.nn.utils.clip_grad_norm_`, which also on a processor multiplies all of them where that changes nothing.
    """
    parameters = list(parameters)
    norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    if norm.device.type != "cpu" or norm > largest:  # looking at a GPU's would wait for it
        nn.utils.clip_grads_with_norm_(parameters, largest, norm)
    return norm


class Gradients(Callback):
    """Clips the gradient's norm (Lightning's own clipping refuses fused optimizers), logs it, stops if not finite.

    It checks before the step, so that the weights stay sound. On a GPU it checks once in `EVERY` batches, because a
    check waits for all computations; the weights of the last epoch stay sound in any case.
    """

    EVERY = 32

    def __init__(self, largest: float, order: Iterable[Any], frame_id: np.ndarray) -> None:
        self.largest, self.order, self.frame_id = largest, order, frame_id
        self.unsound: Tensor | None = None  # the first batch of the epoch with such a gradient, -1 for none

    def on_train_epoch_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        self.batch, self.unsound = 0, torch.full((), -1, device=module.device)

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        self.batch = batch_idx

    def on_before_optimizer_step(
        self, trainer: lightning.Trainer, module: lightning.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        assert self.unsound is not None
        norm = clip_gradients(module.parameters(), self.largest or math.inf)
        module.log("gradient_norm", norm, on_step=False, on_epoch=True, batch_size=1)
        is_first = ~norm.isfinite() & (self.unsound < 0)
        self.unsound = torch.where(is_first, self.batch, self.unsound)
        if norm.device.type == "cpu" or self.batch % self.EVERY == 0:
            self._check(trainer)

    def on_validation_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        self._check(trainer)

    def _check(self, trainer: lightning.Trainer) -> None:
        if self.unsound is None or self.unsound < 0:
            return
        last = int(self.unsound) + 1
        draws = list(islice(self.order, last))[max(0, last - trainer.accumulate_grad_batches) :]
        ids = sorted({int(i) for draw in draws for i in self.frame_id[draw.rows]})
        raise UserError(
            f"the gradient is not finite in batch {last - 1} of epoch {trainer.current_epoch}, of frames "
            f"{', '.join(map(str, ids))}: look at these frames for NaN, or lower the lr; the last good epoch is kept"
        )
