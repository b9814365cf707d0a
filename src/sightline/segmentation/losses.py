"""Losses of logits against class ids, and smoothness in the direction that changes the prediction most.

Shapes: B images, C classes, ... the spatial axes.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sightline.core.errors import UserError
from sightline.core.tensors import without_looking
from sightline.recording.layout import IGNORE
from sightline.segmentation.arguments import full_precision

_SMOOTH = 1e-5


def dice_cross_entropy(
    logits: Tensor, labels: Tensor, weights_C: Tensor | None = None, pixel_weights: Tensor | None = None
) -> Tensor:
    """Half the cross-entropy and half the soft Dice loss, a scalar.

    Args:
        logits: [B, C, ...].
        labels: class ids [B, ...]; 255 counts nowhere.
        weights_C: factor of each class in the cross-entropy; None is 1.
        pixel_weights: [B, ...]: factor of each pixel, for example 0 where a pseudo-label is not trusted. The
            cross-entropy is divided by the number of all valid pixels, those of weight 0 among them.
    """
    logits, valid = logits.float(), labels != IGNORE
    weights = valid.float() if pixel_weights is None else valid * pixel_weights
    entropy = F.cross_entropy(logits, labels, weights_C, ignore_index=IGNORE, reduction="none")
    return 0.5 * (entropy * weights).sum() / valid.sum().clamp_min(1) + 0.5 * dice_loss(logits, labels, weights)


def dice_loss(logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """One minus the soft Dice coefficient of all images together (Milletari et al., V-Net, 3DV 2016), a scalar.

    Mean over the classes in ``labels``: the loss of another class would be 1 whatever the network predicts.

    Args:
        logits, labels: as in `dice_cross_entropy`.
        weights: [B, ...]: factor of each pixel.
    """
    probability_BCN = logits.float().softmax(dim=1).flatten(2)
    truth_BCN = labels.flatten(1)[:, None] == torch.arange(logits.shape[1], device=logits.device)[:, None]
    truth_BCN = truth_BCN * weights.flatten(1)[:, None]
    there_C = truth_BCN.sum((0, 2)) > 0
    overlap_C = (probability_BCN * truth_BCN).sum((0, 2))
    total_C = (probability_BCN.square() * weights.flatten(1)[:, None]).sum((0, 2)) + truth_BCN.sum((0, 2))
    loss_C = 1 - (2 * overlap_C + _SMOOTH) / (total_C + _SMOOTH)
    return (loss_C * there_C).sum() / there_C.sum().clamp_min(1)


def soft_dice_distance(probabilities: Tensor, target: Tensor) -> Tensor:
    """One minus the soft Dice coefficient of two maps of probabilities [B, C, ...], the mean over classes: a scalar."""
    axes = [0, *range(2, target.ndim)]
    overlap_C = (probabilities * target).sum(axes)
    total_C = probabilities.square().sum(axes) + target.square().sum(axes)
    return (1 - (2 * overlap_C + 1e-10) / (total_C + 1e-10)).mean()


def virtual_adversarial_loss(
    model: nn.Module,
    x: Tensor,
    xi: float = 10.0,
    eps: float = 6.0,
    iterations: int = 1,
    *,
    target: Tensor | None = None,
    generator: torch.Generator | None = None,
    **inputs: Any,
) -> Tensor:
    """How much the prediction changes under the small change of ``x`` that changes it most, a scalar with gradient.

    Miyato et al., "Virtual Adversarial Training" (TPAMI 2018), with the distance that Wu et al. (SS-Net, MICCAI 2022)
    take: the soft Dice distance between maps of probabilities. The direction starts as uniform noise; ``iterations``
    steps of the power method turn it. In train mode, batch normalisation uses the batch's statistics, and its running
    statistics do not move; gradients of the weights come from the returned loss alone.

    Args:
        model: ``model(x, **inputs)`` gives logits [B, C, ...] of at least two classes.
        x: images [B, channels, ...], floating point.
        xi: length, per image, of the change in which the direction is looked for; units of ``x``.
        eps: length, per image, of the change that is measured.
        iterations: power iterations.
        target: probabilities [B, C, ...] of ``x`` itself, where the caller has them; no gradient flows into them.
        generator: of the noise, which is drawn where the generator is; None takes torch's own, where ``x`` is.
        **inputs: further arguments of the model.

    Raises:
        ValueError: the model gives one channel, whose softmax is 1 everywhere.
    """
    with _still_statistics(model):
        if target is None:
            with torch.no_grad():
                target = model(x, **inputs).softmax(dim=1)
        target = full_precision(target.detach())
        place = x.device if generator is None else generator.device
        direction = _unit(torch.rand(x.shape, generator=generator, device=place).sub(0.5).to(x))
        with without_looking():  # pixels may leave the range of an image
            for _ in range(iterations):
                direction.requires_grad_()
                distance = soft_dice_distance(_probabilities(model(x.detach() + xi * direction, **inputs)), target)
                direction = _unit(torch.autograd.grad(distance, direction)[0])
            return soft_dice_distance(_probabilities(model(x + eps * direction, **inputs)), target)


def _probabilities(logits: Tensor) -> Tensor:
    if logits.ndim < 2 or logits.shape[1] < 2:
        raise UserError(
            f"model must give logits [B, C, ...] of at least 2 classes, not {list(logits.shape)}; of one channel z "
            "give two, 0 and z: torch.cat([torch.zeros_like(z), z], dim=1)"
        )
    return full_precision(logits).softmax(dim=1)


def _unit(x: Tensor) -> Tensor:
    """Each image's numbers at length one; zeros stay zeros."""
    length = torch.linalg.vector_norm(x.flatten(1), dim=1) + 1e-8
    return x.detach() / length.view(-1, *[1] * (x.ndim - 1))


@contextmanager
def _still_statistics(model: nn.Module) -> Iterator[None]:
    """Running statistics of batch normalisation do not move; in train mode it uses those of the batch as before."""
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    tracked = [norm.track_running_stats for norm in norms]
    try:
        for norm in norms:
            norm.track_running_stats = norm.track_running_stats and not norm.training
        yield
    finally:
        for norm, was in zip(norms, tracked, strict=True):
            norm.track_running_stats = was
