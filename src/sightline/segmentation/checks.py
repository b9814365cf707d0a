"""What a training of a segmentation says of its labelled masks before it begins."""

import warnings
from typing import TYPE_CHECKING

import numpy as np

from sightline.core.errors import UserError
from sightline.segmentation.frames import IGNORE, SegmentationFrames
from sightline.training.processes import rank

if TYPE_CHECKING:
    from sightline.segmentation.training import SegmentationParams


def check_labelled(frames: SegmentationFrames, labelled: np.ndarray, empty: np.ndarray) -> None:
    """Raise `UserError` naming the groups of which all ``labelled`` masks are ``empty``, bool as many."""
    groups = frames.group[labelled].astype(str)
    lacking = sorted(set(groups.tolist()) - set(groups[~empty].tolist()))
    if lacking:
        raise UserError(without_masks(frames, lacking))


def without_masks(frames: SegmentationFrames, groups: list[str]) -> str:
    return (
        f"{frames.name}: no masks, or masks of {IGNORE} (ignore) alone, in the labelled groups "
        f"{', '.join(groups)}; choose others (segmentation.labeled_groups)"
    )


def check_classes(
    frames: SegmentationFrames,
    labelled: np.ndarray,
    of_labelled: np.ndarray,
    of_val: np.ndarray,
    unlabelled: int,
    params: "SegmentationParams",
) -> None:
    """Say once what cannot be learnt or measured, and go on where that is possible."""
    if not of_labelled[:, 1:].any():
        raise UserError(frames.nothing_to_learn(labelled))
    if not of_val[:, params.first_class :].any():
        raise UserError(f"{frames.name}: the {len(of_val)} masks of part val hold no class but {frames.classes[0]}")
    absent = [name for name, there in zip(frames.classes, of_labelled.sum(axis=0).tolist(), strict=True) if not there]
    if absent and frames.volume is not None:
        groups = ", ".join(names_of(frames.group[labelled]))
        raise UserError(
            f"{frames.name}: {', '.join(absent)} in no mask of the labelled groups, {groups}: cannot be learnt; label "
            "others (segmentation.labeled_groups), or mend segmentation.mask_values"
        )
    if rank() != 0:
        return
    if absent:
        warnings.warn(
            f"{frames.name}: {', '.join(absent)} in none of the {len(of_labelled)} labelled masks: cannot be learnt; "
            "label more groups",
            stacklevel=3,
        )
    if frames.channels == 1 and params.dims == 2 and params.crop and params.crop != frames.image_size:
        warnings.warn(
            f"{frames.name}: trained on parts, segmentation.crop={list(params.crop)}, of grey images of "
            f"{list(frames.image_size)}; where the place tells the class, as in slices of a body, set "
            "segmentation.crop=null",
            stacklevel=3,
        )
    if not unlabelled and params.method != "supervised":
        warnings.warn(
            f"{frames.name}: all training frames are labelled: {params.method} is the same as supervised; set "
            "segmentation.labeled_groups",
            stacklevel=3,
        )


def names_of(groups: np.ndarray) -> tuple[str, ...]:
    """Names of groups, each once."""
    return tuple(str(group) for group in np.unique(groups).tolist())
