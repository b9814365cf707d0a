"""Arguments of the memory bank, checked and brought to rows."""

import torch
from torch import Tensor

from sightline.core.errors import UserError


def classes_of_rows(name: str, labels: Tensor, features: Tensor, num_classes: int, ignore_index: int) -> Tensor:
    """Labels [N] or [B, ...] checked and flattened: [N], ignored rows as class C."""
    if not isinstance(labels, Tensor) or labels.dtype.is_floating_point or labels.dtype.is_complex:
        raise UserError(f"{name} must be a tensor of whole numbers, not {_kind(labels)}")
    check_same(name, labels.shape, features)
    labels_N = labels.detach().reshape(-1).long()
    ignored_N = labels_N == ignore_index
    wrong_N = ~ignored_N & ((labels_N < 0) | (labels_N >= num_classes))
    if wrong_N.any():  # the one look at numbers from outside: an id too high would be a class that never learns
        raise UserError(
            f"{name} must be 0..{num_classes - 1} or ignore_index {ignore_index}, not {int(labels_N[wrong_N][0])}"
        )
    return torch.where(ignored_N, num_classes, labels_N)


def full_precision(x: Tensor) -> Tensor:
    """In float32, or float64 where it is."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def flatten(name: str, x: Tensor, channels: int) -> Tensor:
    """[N, channels] as it is, [B, channels, ...] -> [N, channels]."""
    check_floating(name, x)
    if x.ndim < 2 or x.shape[1] != channels:
        raise UserError(f"{name} must be [N, {channels}] or [B, {channels}, ...], not {list(x.shape)}")
    return x if x.ndim == 2 else x.movedim(1, -1).reshape(-1, channels)


def layout(x: Tensor) -> torch.Size:
    """The shape without the channels: [N] or [B, ...]."""
    return x.shape[:1] + x.shape[2:]


def check_same(name: str, shape: torch.Size, features: Tensor) -> None:
    """Raise `UserError` unless ``shape``, without channels, is that of the features."""
    if shape != layout(features):
        raise UserError(f"{name} must be of the features' rows {list(layout(features))}, not of {list(shape)}")


def check_floating(name: str, x: Tensor) -> None:
    """Raise `UserError` unless ``x`` is a floating point tensor."""
    if not isinstance(x, Tensor) or not x.dtype.is_floating_point:
        raise UserError(f"{name} must be a floating point tensor, not {_kind(x)}")


def _kind(x: object) -> str:
    return str(x.dtype) if isinstance(x, Tensor) else type(x).__name__
