"""Arguments of the memory bank, checked and brought to rows."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sightline.core.errors import UserError


@dataclass(frozen=True)
class Doubt:
    """What may be wrong with numbers from outside: to be read together with others, as reading waits for a GPU."""

    is_true: Tensor  # bool []
    words: Callable[[], str]  # reads the number that is wrong

    def refuse(self) -> None:
        """Raise the `UserError`."""
        raise UserError(self.words())


def classes_of_rows(
    name: str, labels: Tensor, features: Tensor, num_classes: int, ignore_index: int
) -> tuple[Tensor, Doubt]:
    """Labels [N] or [B, ...] checked and flattened: [N], ignored rows as class C; and whether one is out of range."""
    if not isinstance(labels, Tensor) or labels.dtype.is_floating_point or labels.dtype.is_complex:
        raise UserError(f"{name} must be a tensor of whole numbers, not {_kind(labels)}")
    check_same(name, labels.shape, features)
    labels_N = labels.detach().reshape(-1).long()
    ignored_N = labels_N == ignore_index
    wrong_N = ~ignored_N & ((labels_N < 0) | (labels_N >= num_classes))
    most = num_classes - 1

    def words() -> str:  # an id too high would be a class that never learns
        return f"{name} must be 0..{most} or ignore_index {ignore_index}, not {int(labels_N[wrong_N][0])}"

    return torch.where(ignored_N, num_classes, labels_N), Doubt(wrong_N.any(), words)


def logits_of_rows(predictions: Tensor, num_classes: int, are_weighed: bool) -> tuple[Tensor, list[Doubt]]:
    """Predictions checked and flattened to logits without gradient: [N, C]; and what may be wrong with the numbers.

    Args:
        predictions: logits [N, C] or [B, C, ...]; or, of two classes, the probability of class 1 in one channel.
        are_weighed: whether the caller asks how probable a class is. Probabilities of several channels, which have the
            same largest class as their logits, are then refused.
    """
    is_one = num_classes == 2 and isinstance(predictions, Tensor) and predictions.ndim > 1 and predictions.shape[1] == 1
    rows_NC = flatten("predictions", predictions, 1 if is_one else num_classes).detach()
    if is_one:
        probability_N1 = full_precision(rows_NC)
        wrong_N = ((probability_N1 < 0) | (probability_N1 > 1))[:, 0]

        def words() -> str:
            return (
                "predictions with one channel must be probabilities of class 1, from 0 to 1, not "
                f"{float(probability_N1[wrong_N][0]):g}; apply torch.sigmoid to logits first"
            )

        logits_N2 = torch.cat([1 - probability_N1, probability_N1], dim=1).log()
        return logits_N2, [Doubt(wrong_N.any(), words)]
    if not (are_weighed and len(rows_NC)):
        return rows_NC, []
    sums_N = rows_NC.sum(dim=1, dtype=_full_type(rows_NC))
    are_shares = ((rows_NC.amin(dim=1) >= 0) & ((sums_N - 1).abs() < 1e-2)).all()
    advice = (
        "predictions must be logits to compare with confidence_threshold, but every row is at least 0 and sums to 1, "
        "as probabilities do; leave the softmax out"
    )
    return rows_NC, [Doubt(are_shares, lambda: advice)]


def finite_rows(rows_ND: Tensor, dtype: torch.dtype) -> Tensor | None:
    """Rows that hold no NaN and no infinity in ``dtype``, bool [N]; None where all are so. Waits for a GPU once."""
    if sums_are_finite(rows_ND, dtype):
        return None
    return _narrowed(rows_ND, dtype).isfinite().all(dim=1)


def sums_are_finite(rows_ND: Tensor, dtype: torch.dtype) -> Tensor:
    """Whether the sum of each row is finite, bool []: then all numbers are, for a twentieth of a look at each on a CPU.

    The opposite does not hold: a sum may overflow.
    """
    narrowed_ND = _narrowed(rows_ND, dtype)
    return narrowed_ND.sum(dim=1, dtype=_full_type(narrowed_ND)).isfinite().all()


def _narrowed(x: Tensor, dtype: torch.dtype) -> Tensor:
    """In ``dtype``, where its range is smaller."""
    return x.to(dtype) if torch.finfo(dtype).max < torch.finfo(x.dtype).max else x


def _full_type(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def full_precision(x: Tensor) -> Tensor:
    """In float32, or float64 where it is."""
    return x.to(_full_type(x))


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
