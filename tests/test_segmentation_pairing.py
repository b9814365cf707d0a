"""Masks are paired with images by their names: every mask with its own image, or an error, whatever the names are."""

import itertools
import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import event, given
from hypothesis import strategies as st

from sightline.core.errors import UserError
from sightline.segmentation.pairing import in_order, pair_masks

PETS = [a + b for a in ("ant", "bee", "cat", "dog") for b in ("_black", "_brown", "_white")]
SUFFIXES = ("_mask", "_anno", "_L", ".mask", "-1", "_1_2", "-a_L", " (copy)", "_")
# Names that are prefixes of each other, of hexadecimal digits, with and without numbers, and any text.
short = st.text("ab1_-", min_size=1, max_size=4)
hexadecimal = st.integers(0, 2**40).map("{:010x}".format)
words = st.sampled_from(PETS) | st.text(st.characters(exclude_characters="/.\0"), min_size=1, max_size=8)
numbered = st.builds("{}{:0{}}".format, st.sampled_from(("", "a", "b_", "Seq05VD_f")), st.integers(0, 120), st.just(3))
stems = st.lists(short | hexadecimal | words | numbered, min_size=1, max_size=12, unique=True)


def files(folder: str, names: list[str]) -> list[Path]:
    return [Path(folder, f"{name}.png") for name in names]


def pairs_of(images: list[str], masks: list[str], suffix: str | None = None) -> dict[str, str | None]:
    """The mask of each image, by their names."""
    pairs = pair_masks(files("images", images), files("masks", masks), suffix).masks
    return {image: mask and mask.stem for image, mask in zip(images, pairs, strict=True)}


@dataclass
class Names:
    """Names whose pairs are known by construction."""

    images: list[str]
    mask_of: dict[str, str]
    suffix: str | None  # that the masks have; None where numbers pair them


@st.composite
def by_suffix(draw: st.DrawFn, suffixes: st.SearchStrategy[str]) -> Names:
    """Some images have a mask of their name and a suffix; some of the others are named as masks."""
    images, suffix = draw(stems), draw(suffixes)
    labelled = draw(st.lists(st.sampled_from(images), min_size=1, unique=True))
    images += draw(st.lists(st.sampled_from([f"{name}{suffix}" for name in images]), unique=True))
    return Names(list(dict.fromkeys(images)), {image: f"{image}{suffix}" for image in labelled}, suffix)


@st.composite
def by_number(draw: st.DrawFn) -> Names:
    """Images and masks of one prefix each, numbers padded anyhow."""
    prefixes = draw(st.tuples(*[st.sampled_from(("", "a", "a_", "a_1_", "f-", "b1x"))] * 2))
    numbers = draw(st.lists(st.integers(0, 300), min_size=1, max_size=12, unique=True))
    labelled = draw(st.lists(st.sampled_from(numbers), min_size=1, unique=True))
    widths = st.integers(1, 6)
    image_of = {number: f"{prefixes[0]}{number:0{draw(widths)}}" for number in numbers}
    mask_of = {image_of[number]: f"{prefixes[1]}{number:0{draw(widths)}}" for number in labelled}
    return Names(list(image_of.values()), mask_of, None)


any_names = by_suffix(st.just("")) | by_suffix(st.sampled_from(SUFFIXES)) | by_number()


@given(any_names, st.randoms(use_true_random=False))
def test_no_mask_belongs_to_a_wrong_image_and_the_order_of_files_does_not_matter(names, random):
    def answer() -> dict[str, str | None] | str:
        images, masks = list(names.images), list(names.mask_of.values())
        random.shuffle(images)
        random.shuffle(masks)
        try:
            pairs = pairs_of(images, masks)
        except UserError as error:
            return str(error)
        return {image: pairs[image] for image in sorted(pairs)}

    first = answer()
    event(f"{'refused' if isinstance(first, str) else 'paired'} {names.suffix!r}")
    assert all(answer() == first for _ in range(3))
    if not isinstance(first, str):
        assert {image: mask for image, mask in first.items() if mask} == names.mask_of
    else:
        assert "segmentation.mask_suffix" in first


@given(by_suffix(st.sampled_from((*SUFFIXES, "", "mask", "1", "0L"))))
def test_a_suffix_that_is_given_is_never_ambiguous(names):
    pairs = pairs_of(names.images, list(names.mask_of.values()), names.suffix)
    assert {image: mask for image, mask in pairs.items() if mask} == names.mask_of


@given(st.lists(st.text("ab1é", min_size=1, max_size=4), min_size=1, unique=True), st.sampled_from(SUFFIXES))
def test_names_without_separators_are_paired_by_any_suffix(images, suffix):
    assert pairs_of(images, [image + suffix for image in images]) == {image: image + suffix for image in images}


@given(by_number().filter(lambda names: len(names.mask_of) > 1))
def test_one_prefix_and_a_number_on_each_side_are_always_paired(names):
    pairs = pairs_of(names.images, list(names.mask_of.values()))
    assert {image: mask for image, mask in pairs.items() if mask} == names.mask_of


DATA_SETS = {  # as GlaS, CamVid and Carvana name their files, and names without numbers
    "_anno": [f"{p}_{i}" for p, n in (("train", 85), ("testA", 60), ("testB", 20)) for i in range(1, n + 1)],
    "_L": [f"{p}{i:05d}" for p in ("0016E5_", "Seq05VD_f", "0006R0_f") for i in range(390, 1200, 30)],
    "_mask": [f"{c}_{i:02d}" for c in ("0cdf5b5d0ce1", "fff9b3a5373f", "00087a6bd4dc") for i in range(1, 17)],
    "-seg": PETS,
}


@pytest.mark.parametrize("suffix", DATA_SETS)
def test_names_of_public_data_sets_are_paired_by_their_suffix(suffix):
    images = DATA_SETS[suffix]
    random.Random(0).shuffle(images)
    labelled = sorted(images)[::2]
    pairs = pairs_of(images, [f"{name}{suffix}" for name in labelled])
    assert pairs == {name: f"{name}{suffix}" if name in labelled else None for name in images}
    rule = pair_masks(files("i", images), files("m", [f"{name}{suffix}" for name in images])).rule
    assert rule == f'name and the suffix "{suffix}"'


@pytest.mark.parametrize(
    ("images", "masks", "suffix", "message"),
    [
        # whole names and a suffix, or two suffixes, where nothing tells which
        (["a", "b", "a_m", "b_m"], ["a_m", "b_m"], None,
         r'a_m.png may belong to the image a_m by whole name or a by name and the suffix "_m" in images, and .* fits '
         r'all masks; set segmentation.mask_suffix to "" or "_m" \("" means'),
        (["a", "b", "a_1", "b_1"], ["a_1_2", "b_1_2"], None,
         'image a by name and the suffix "_1_2" or a_1 by name and the suffix "_2" in images, .* to "_1_2" or "_2" '),
        (["a_1", "a_2"], ["a_1_2"], None, 'a_1 by name and the suffix "_2" or a_2 by number in images, .* to "_2" '),
        # no rule for all masks
        (["a", "b", "c"], ["a_m", "b_m", "x_m", "y"], None, r"masks: 2 of 4 masks have no image in images by name and "
         r'the suffix "_m": x_m.png, y.png; tried whole names, a suffix .* numbers; rename or remove these masks'),
        (["a", "b"], ["a_m", "b"], None, r"1 of 2 masks have no image in images by whole name: a_m.png;"),
        (["a", "b"], ["amask", "bmask"], None, r"2 of 2 masks .* by whole name: amask.png, bmask.png;"),
        (["f1", "f2"], ["m1", "m2", "m3"], None, r"1 of 3 masks have no image in images by number: m3.png;"),
        (["f1", "f2"], ["m1", "m01"], None, r"2 of 2 masks .* by whole name"),
        (["train_1", "test_1"], ["mask_1"], None, r"1 of 1 masks .* by whole name: mask_1.png"),
        (["a1b", "a2b"], ["m1x", "m2x"], None, r"2 of 2 masks .* by whole name: m1x.png, m2x.png"),
        (["3cat", "4dog"], ["cat3", "dog4"], None, r"2 of 2 masks"),
        (["a", "b"], ["a_m", "b"], "_m", r'1 of 2 masks .* by name and the suffix "_m": b.png; rename or remove these '
         r"masks, or change segmentation.mask_suffix$"),
        (["f1", "f2"], ["m1", "m2"], "", r"2 of 2 masks have no image in images by whole name: m1.png, m2.png; rename"),
    ],
)  # fmt: skip
def test_ambiguous_names_and_masks_without_an_image_are_one_line(images, masks, suffix, message):
    with pytest.raises(UserError, match=message) as error:
        pairs_of(images, masks, suffix)
    assert str(error.value).startswith("masks: ")
    assert "\n" not in str(error.value)


def test_every_mask_without_an_image_is_listed():
    masks = [f"x{i}_m" for i in range(300)]
    with pytest.raises(UserError) as error:
        pairs_of(["a"], ["a_m", *masks])
    assert all(f"{mask}.png" in str(error.value) for mask in masks)


def test_a_given_suffix_says_which_of_two_ways_is_meant():
    images, masks = ["a", "b", "a_m", "b_m"], ["a_m", "b_m"]
    assert pairs_of(images, masks, "") == {"a": None, "b": None, "a_m": "a_m", "b_m": "b_m"}
    assert pairs_of(images, masks, "_m") == {"a": "a_m", "b": "b_m", "a_m": None, "b_m": None}
    assert pairs_of(["a", "b"], ["amask", "bmask"], "mask") == {"a": "amask", "b": "bmask"}


def test_images_are_in_the_order_of_their_numbers_or_else_of_their_names():
    for listed in itertools.permutations(files("i", ["f_10", "f_9", "f_0100"])):
        paths, ids = in_order(listed)
        assert ([path.stem for path in paths], ids.tolist()) == (["f_9", "f_10", "f_0100"], [9, 10, 100])
    for names in (["a_10", "b_9", "b_10"], ["1a", "2a", "10a"], ["f_01", "f_1", "f_2"], ["x", "y2", "y3"]):
        paths, ids = in_order(files("i", names[::-1]))
        assert ids.tolist() == [0, 1, 2]
        assert ids.dtype == np.int64
        assert [path.stem for path in paths] == names
    paths, ids = in_order(files("i", [f"f{10**30}", "f7"]))
    assert ([path.stem for path in paths], ids.tolist()) == (["f7", f"f{10**30}"], [0, 1])
