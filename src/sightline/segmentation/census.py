"""What the host must know of rows before the memory bank can take them: read for all of a step with one wait."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sightline.core.errors import UserError
from sightline.segmentation.arguments import (
    Doubt,
    check_same,
    classes_of_rows,
    finite_rows,
    flatten,
    full_precision,
    layout,
    logits_of_rows,
    sums_are_finite,
)
from sightline.segmentation.contrastive import class_members
from sightline.segmentation.presets import PrototypeOptions


@dataclass
class Rows:
    """Rows of one kind of images as a bank takes them: N pixels of all images together."""

    features: Tensor  # [N, D]
    stored: Tensor  # [N, D], what is stored in their place, without gradient
    classes: Tensor  # [N], C for those without a class
    storable: Tensor  # [N], the class of what may be stored, else C
    stores: bool  # whether they may write the bank
    learns: bool  # whether gradients flow
    doubts: list[Doubt]


@dataclass
class Census:
    """Of some rows: how many are of each class, and of those how many may be stored."""

    members: Tensor  # bool [C, N]
    counts: list[int]
    storable: list[int]


def rows_of(
    options: PrototypeOptions,
    features: Tensor,
    predictions: Tensor,
    labels: Tensor | None,
    is_labeled: bool,
    memory_features: Tensor | None,
) -> Rows:
    """Check the arguments of `ContrastivePrototypeManager.update_and_compute_loss`, and bring all to rows."""
    num_classes = options.num_classes
    rows_ND = flatten("features", features, options.rows_dim)
    logits_NC, doubts = logits_of_rows(predictions, num_classes, options.confidence_threshold > 0)
    check_same("predictions", layout(predictions), features)
    stored_ND = rows_ND
    if memory_features is not None:
        if options.heads:
            raise UserError("memory_features must be None with heads: the projection makes what is stored")
        stored_ND = flatten("memory_features", memory_features, options.feature_dim)
        check_same("memory_features", layout(memory_features), features)
    # the class of each row: its label, or where there is none the predicted class
    predicted_N = torch.where(logits_NC.amax(dim=1).isnan(), num_classes, logits_NC.argmax(dim=1))
    classes_N = predicted_N
    if labels is not None:
        classes_N, doubt = classes_of_rows("labels", labels, features, num_classes, options.ignore_index)
        doubts.append(doubt)
    stores, learns = options.memory_source == "all" or (is_labeled and labels is not None), torch.is_grad_enabled()
    storable_N = _storable(options, logits_NC, predicted_N, classes_N) if stores else classes_N
    return Rows(rows_ND, stored_ND.detach(), classes_N, storable_N, stores, learns, doubts)


def _storable(options: PrototypeOptions, logits_NC: Tensor, predicted_N: Tensor, classes_N: Tensor) -> Tensor:
    """The classes of rows that are foreground, correct and confident, as the options ask; C for the others."""
    qualifies_N = classes_N < options.num_classes
    if not options.store_background:
        qualifies_N &= classes_N != 0
    if options.require_correct:
        qualifies_N &= predicted_N == classes_N
    if options.confidence_threshold > 0:
        qualifies_N &= full_precision(logits_NC).softmax(dim=1).amax(dim=1) > options.confidence_threshold
    return torch.where(qualifies_N, classes_N, options.num_classes)


def read(*tensors: Tensor) -> list[list[int]]:
    """Whole numbers of small tensors of one device, which a GPU is waited for once."""
    numbers = iter(torch.cat([x.reshape(-1).long() for x in tensors]).tolist())
    return [[next(numbers) for _ in range(x.numel())] for x in tensors]


def take(
    parts: Sequence[Rows], memory_count_C: Tensor, stored_type: torch.dtype, types: Sequence[torch.dtype]
) -> tuple[list[Census], list[int]]:
    """A census of each of ``parts``, and the numbers of stored rows; a GPU is waited for once if all is finite.

    Rows with NaN or infinity lose their class, in ``parts`` too.

    Args:
        stored_type: of the bank.
        types: in which the features of each part must be finite.

    Raises:
        UserError: a doubt is true.
    """
    num_classes, device = len(memory_count_C), memory_count_C.device
    doubts = [doubt for part in parts for doubt in part.doubts]
    members_CN = [class_members(part.classes, num_classes) for part in parts]
    told = [doubt.is_true for doubt in doubts]
    for part, dtype, members in zip(parts, types, members_CN, strict=True):
        told += [sums_are_finite(part.features.detach(), dtype), members.sum(dim=1)]
        if part.stores:
            told += [sums_are_finite(part.stored, stored_type)]
            told += [class_members(part.storable, num_classes).sum(dim=1)]
    numbers = read(*(x.to(device) for x in told), memory_count_C)
    _refuse(doubts, numbers[: len(doubts)])
    rest, made = iter(numbers[len(doubts) :]), []
    for part, dtype, members in zip(parts, types, members_CN, strict=True):
        is_finite, counts = next(rest), next(rest)
        stored_is_finite, storable = (next(rest), next(rest)) if part.stores else ([1], [0] * num_classes)
        if not stored_is_finite[0]:
            finite_N = finite_rows(part.stored, stored_type)
            if finite_N is not None:
                part.storable = torch.where(finite_N, part.storable, num_classes)
                (storable,) = read(class_members(part.storable, num_classes).sum(dim=1))
        if not is_finite[0]:
            finite_N = finite_rows(part.features.detach(), dtype)
            if finite_N is not None:
                part.features, part.classes = part.features[finite_N], part.classes[finite_N]
                members = class_members(part.classes, num_classes)
                (counts,) = read(members.sum(dim=1))
        made.append(Census(members, counts, storable))
    return made, next(rest)


def _refuse(doubts: Sequence[Doubt], answers: Sequence[list[int]]) -> None:
    for doubt, (is_true,) in zip(doubts, answers, strict=True):
        if is_true:
            doubt.refuse()
