"""Which mask belongs to which image, and the order of images, by their names: pure functions of the set of names.

A name is a file's name without its ending. One rule holds for a whole folder, and it must give every mask an image of
its own:

    whole names   image ``a.png``, mask ``a.png``
    suffix        image ``a.png``, mask ``a_mask.png``: all masks share the suffix, which starts with neither a letter
                  nor a digit where it is not given
    numbers       image ``photo_7.png``, mask ``mask_007.png``: where the names of all images are one prefix and a
                  number, and those of all masks, too

Digits within a word never count. Where two rules give different pairs, nothing tells which is right: an error.
"""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from sightline.core.errors import UserError

_INT64_MAX = 2**63 - 1
_KEY = "segmentation.mask_suffix"


class Pairing(NamedTuple):
    """A mask, or None, of each image, and the rule in words."""

    masks: list[Path | None]
    rule: str


class _Rule(NamedTuple):
    """A rule that was tried: its words, the suffix that chooses it, and the image's name by the mask's."""

    words: str
    suffix: str | None  # None: numbers
    image_of: dict[str, str]


def pair_masks(images: Sequence[Path], masks: Sequence[Path], suffix: str | None = None) -> Pairing:
    """Give every mask its image.

    Args:
        images: one or more, of different names; those without a mask get None.
        masks: one or more, of different names.
        suffix: what the name of a mask has behind that of its image, taken as it is; "": nothing; None: find the rule.

    Raises:
        UserError: masks without an image, all of them listed; or two rules that give different pairs.
    """
    names = {path.stem for path in images}
    of_mask = {path.stem: path for path in masks}
    folders = f"{masks[0].parent}", f"{images[0].parent}"
    tried = _all_rules(names, set(of_mask)) if suffix is None else [_with_suffix(names, set(of_mask), suffix)]
    complete = [rule for rule in tried if len(rule.image_of) == len(of_mask)]
    if not complete:
        best = max(tried, key=lambda rule: len(rule.image_of))  # of equal ones the first
        missing = sorted(path.name for name, path in of_mask.items() if name not in best.image_of)
        way_out = f"or set {_KEY}" if suffix is None else f"or change {_KEY}"
        others = "; tried whole names, a suffix that all masks share, and numbers" if suffix is None else ""
        raise UserError(
            f"{folders[0]}: {len(missing)} of {len(of_mask)} masks have no image in {folders[1]} by {best.words}: "
            f"{', '.join(missing)}{others}; rename or remove these masks, {way_out}"
        )
    if any(rule.image_of != complete[0].image_of for rule in complete):
        mask = min(name for name in of_mask if len({rule.image_of[name] for rule in complete}) > 1)
        candidates = " or ".join(f"{rule.image_of[mask]} by {rule.words}" for rule in complete)
        keys = " or ".join(f'"{rule.suffix}"' for rule in complete if rule.suffix is not None)
        raise UserError(
            f"{folders[0]}: {of_mask[mask].name} may belong to the image {candidates} in {folders[1]}, and each of "
            f'these rules fits all masks; set {_KEY} to {keys} ("" means whole names), or rename the masks'
        )
    rule = complete[0]
    mask_of = {image: of_mask[mask] for mask, image in rule.image_of.items()}
    return Pairing([mask_of.get(path.stem) for path in images], rule.words)


def in_order(images: Iterable[Path]) -> tuple[list[Path], np.ndarray]:
    """Images in order, and their ids, int64 [N], ascending.

    Where all names are one prefix and a number: by number, which is the id unless two are the same. Else by name, with
    the numbers in it as numbers (``a_9`` before ``a_10``: neighbours stay neighbours), and the ids are 0, 1, 2 ...
    """
    paths = sorted(images, key=_natural)
    numbers = _numbers({path.stem for path in paths})
    if numbers is None:
        return paths, np.arange(len(paths))
    paths.sort(key=lambda path: numbers[path.stem])
    ids = [numbers[path.stem] for path in paths]
    are_ids = len(set(ids)) == len(ids) and ids[-1] <= _INT64_MAX
    return paths, np.array(ids, np.int64) if are_ids else np.arange(len(paths))


def _natural(path: Path) -> tuple[list[str | int], str]:
    parts = re.split("([0-9]+)", path.stem)
    return [int(part) if i % 2 else part for i, part in enumerate(parts)], path.name


def _all_rules(images: set[str], masks: set[str]) -> list[_Rule]:
    """Whole names, every suffix that gives some mask an image, and numbers, in this order."""
    by_suffix: dict[str, dict[str, str]] = {}
    for mask in masks:
        for end in range(1, len(mask)):
            if not mask[end].isalnum() and mask[:end] in images:
                by_suffix.setdefault(mask[end:], {})[mask] = mask[:end]
    rules = [_with_suffix(images, masks, "")]
    rules += [_Rule(_words(suffix), suffix, by_suffix[suffix]) for suffix in sorted(by_suffix)]
    of_images, of_masks = _numbers(images), _numbers(masks)
    if of_images and of_masks and all(len(set(of.values())) == len(of) for of in (of_images, of_masks)):
        image_of = {number: name for name, number in of_images.items()}
        paired = {mask: image_of[number] for mask, number in of_masks.items() if number in image_of}
        rules.append(_Rule("number", None, paired))
    return rules


def _with_suffix(images: set[str], masks: set[str], suffix: str) -> _Rule:
    image_of = {mask: mask[: len(mask) - len(suffix)] for mask in masks if mask.endswith(suffix)}
    return _Rule(_words(suffix), suffix, {mask: image for mask, image in image_of.items() if image in images})


def _words(suffix: str) -> str:
    return f'name and the suffix "{suffix}"' if suffix else "whole name"


def _numbers(names: set[str]) -> dict[str, int] | None:
    """The number at the end of each name, where all names are one and the same prefix and decimal digits; else None."""
    parts = {name: re.fullmatch("(.*?)([0-9]+)", name, re.DOTALL) for name in names}
    prefixes = {part[1] if part else None for part in parts.values()}
    if len(prefixes) != 1 or None in prefixes:
        return None
    return {name: int(part[2]) for name, part in parts.items() if part}
