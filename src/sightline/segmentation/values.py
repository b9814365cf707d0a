"""The values of masks: which class ids they stand for, and what to say where they are none.

The highest value in a mask does not tell how many classes there are: files hold 0 and 255 for two classes, or 0, 63,
126 ... for five, and JPEG changes values. So where the classes are not named, ids must be 0, 1, 2 ... without a gap.
"""

from collections import Counter
from collections.abc import Iterable, Mapping

import numpy as np

from sightline.recording.layout import IGNORE

MOST_CLASSES = 64  # without names; more distinct values are rather those of a blended mask
_SHOWN = 8  # values in a message
_MANY = 16  # values that suggest blending
_NOISE = 16  # how far blending carries most values from a true one
_TRUE_SHARE = 0.01  # of the pixels, that a true value has at least


def class_ids(values: np.ndarray, mapping: Mapping[int, int] | None, nearest: bool = False) -> np.ndarray:
    """Class ids of the values of a mask, whole numbers of any shape; 255 = ignore. Values without a name keep theirs.

    Args:
        values: whole numbers of any type.
        mapping: value -> class id.
        nearest: take each value for the nearest of those in ``mapping`` and 0, the lower of two that are as near.
    """
    if values.dtype not in (np.uint8, np.uint16):
        ids = values.astype(np.int64)
        for value, class_id in (mapping or {}).items():
            ids[values == value] = class_id
        return ids
    if not mapping:
        return values
    numbers = np.arange(np.iinfo(values.dtype).max + 1)
    if nearest:
        named = np.array(sorted({0, *mapping}))
        numbers = named[np.abs(numbers[:, None] - named).argmin(axis=1)]
    ids_by_value = numbers.astype(np.int32)
    for value, class_id in mapping.items():
        ids_by_value[numbers == value] = class_id
    return ids_by_value[values]


def count_values(values: np.ndarray) -> Counter[int]:
    """Pixels of each value in whole numbers of any shape."""
    if values.min(initial=0) >= 0 and values.max(initial=0) < 2**16:
        pixels = np.bincount(values.ravel())  # far faster than sorting them
        return Counter({int(value): int(pixels[value]) for value in np.flatnonzero(pixels)})
    return Counter(dict(zip(*(part.tolist() for part in np.unique(values, return_counts=True)), strict=True)))


def listed(counts: Mapping[int, int]) -> str:
    """Values with their pixels, of many the most frequent: ``0 (120 pixels), 7 (3) and 12 more``."""
    shown = sorted(sorted(counts, key=lambda value: (-counts[value], value))[:_SHOWN])
    pixels = {value: f"{counts[value]} pixel{'s' * (counts[value] != 1)}" for value in shown[:1]}
    more = f" and {len(counts) - _SHOWN} more" if len(counts) > _SHOWN else ""
    return ", ".join(f"{value} ({pixels.get(value, counts[value])})" for value in shown) + more


def no_classes(
    counts: Mapping[int, int], masks: int, *, mapping: Mapping[int, int] | None, void: int | None, jpegs: int
) -> str:
    """What is wrong with ids as those of classes without a name, and what to set; "" where nothing is.

    Args:
        counts: pixels of each class id, after ``mapping`` and ``void``.
        masks: how many they are of.
        mapping: value -> class id, as it is set.
        void: class id that became 255.
        jpegs: how many of the masks are JPEG.
    """
    if jpegs and not mapping:
        return f"{jpegs} of {masks} masks are JPEG and hold {listed(counts)}; {jpeg_advice(counts)}"
    ids = {value for value in counts if value != IGNORE}
    if not ids - {0}:
        return only_background(counts, masks, mapping=mapping, void=void, kind="")
    through_void = ids | ({void} if void is not None and void < max(ids) else set())
    if through_void == set(range(len(through_void))) and len(ids) <= MOST_CLASSES:
        return ""
    held = _held(counts, masks, mapping, "")
    if len(ids) > MOST_CLASSES:
        return (
            f"{held}: {len(ids)} values, as in masks that were blended by resizing or JPEG; write such masks again; if "
            "all are true values, name each in segmentation.mask_values, or the classes in segmentation.classes"
        )
    are_ids = min(ids) >= 0 and max(ids) < IGNORE
    return (
        f"{held}, but class ids are 0, 1, 2 ... without a gap; set segmentation.mask_values, e.g. "
        f"{_shown(_closed(ids, mapping or {}))}"
        + (", or, where these are the ids and a class is merely absent, segmentation.classes" if are_ids else "")
        + ("; if blending (JPEG, resizing) made some of them, write the masks again" if len(ids) > _MANY else "")
        + (f'; {IGNORE} means "ignore" here' if IGNORE in counts and _is_raw(mapping, void) else "")
    )


def only_background(
    counts: Mapping[int, int], masks: int, *, mapping: Mapping[int, int] | None, void: int | None, kind: str
) -> str:
    """That there is nothing to learn from masks of class 0 and 255 alone, and what to do; ``kind``: which masks."""
    held = f"{_held(counts, masks, mapping, kind)}: nothing to learn"
    if IGNORE not in counts:
        return f"{held} but class 0; check the masks, or raise segmentation.labeled_groups"
    if _is_raw(mapping, void):
        return f'{held}, as {IGNORE} means "ignore" here; where it is a class, set segmentation.mask_values={{255: 1}}'
    return f'{held}, as {IGNORE} means "ignore"; check segmentation.mask_values and segmentation.void, which set it'


def jpeg_advice(counts: Mapping[int, int]) -> str:
    """What to do with masks that are JPEG and hold these pixels of each value."""
    return (
        "JPEG changes values: store masks as PNG, or set segmentation.mask_values, "
        f"e.g. {_shown(_peaks(counts))}, which then takes the nearest of these values and 0"
    )


def _is_raw(mapping: Mapping[int, int] | None, void: int | None) -> bool:
    """Whether a 255 is what files hold, not what settings made of something else."""
    return void is None and IGNORE not in (mapping or {}).values()


def _held(counts: Mapping[int, int], masks: int, mapping: Mapping[int, int] | None, kind: str) -> str:
    after = f" after segmentation.mask_values={_shown(mapping)}" if mapping else ""
    return f"the {masks} {kind}masks hold {listed(counts)}{after}"


def _shown(mapping: Mapping[int, int]) -> str:
    """As one writes it in YAML; of many the first."""
    items = [f"{value}: {class_id}" for value, class_id in list(mapping.items())[:_SHOWN]]
    return "{" + ", ".join(items + ["..."] * (len(mapping) > _SHOWN)) + "}"


def _closed(ids: Iterable[int], mapping: Mapping[int, int]) -> dict[int, int]:
    """A mapping that leaves no gap between the ids that there are; below 0 nothing is a class."""
    class_of = {value: IGNORE for value in ids if value < 0}
    class_of |= {value: rank for rank, value in enumerate(sorted(value for value in ids if value >= 0))}
    again = {value: class_of[class_id] for value, class_id in mapping.items() if class_id in class_of}
    new = {value: rank for value, rank in class_of.items() if value != rank and value not in mapping.values()}
    return dict(sorted((new | again).items()))


def _peaks(counts: Mapping[int, int]) -> dict[int, int]:
    """A mapping of the values that most pixels have, each far from 0 and from more frequent ones."""
    total, peaks = sum(counts.values()), [0]
    for value in sorted(counts, key=lambda value: (-counts[value], value)):
        if counts[value] >= _TRUE_SHARE * total and all(abs(value - peak) > _NOISE for peak in peaks):
            peaks.append(value)
    return {value: rank for rank, value in enumerate(sorted(peaks[1:]), 1)} or {max(counts) or 255: 1}
