"""Values of masks become class ids as the parameters say; what is no class id is told with its pixels, in one line."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image
from test_segmentation_frames import CLASSES, PARAMS, SIZE, SPLIT, scene, write_arrays, write_folders, write_recording

from sightline.core.errors import UserError
from sightline.core.params import Section, load_params
from sightline.segmentation import SegmentationFrames, load_model
from sightline.segmentation.evaluation import EvaluateSegmentationParams, evaluate_segmentation
from sightline.segmentation.frames import read_mask
from sightline.segmentation.inputs import open_frames
from sightline.segmentation.params import FrameParams
from sightline.segmentation.training import SegmentationParams, train_segmentation
from sightline.segmentation.values import class_ids, count_values, listed

KINDS = (np.uint8, np.uint16, np.int8, np.int16, np.int64, np.uint64)
mappings = st.dictionaries(st.integers(-5, 70000), st.integers(0, 255), max_size=5)
masks = st.sampled_from(KINDS).flatmap(lambda kind: arrays.arrays(kind, (3, 4)))
ALL = np.arange(10)


def params_of(**options) -> FrameParams:
    return FrameParams(image_size=SIZE, **options)


@given(masks, mappings)
def test_values_that_are_named_become_their_class_and_others_keep_their_number(values, mapping):
    ids = class_ids(values, mapping)
    expected = [mapping.get(value, value) for value in values.ravel().tolist()]
    if values.dtype == np.uint64:  # beyond 63 bits no value is a class id, whatever its number
        assert [i if 0 <= i < 2**63 else None for i in ids.ravel().tolist()] == [
            i if i < 2**63 else None for i in expected
        ]
    else:
        assert ids.ravel().tolist() == expected


@given(arrays.arrays(np.uint8, (3, 4)), mappings)
def test_of_a_jpeg_each_value_is_taken_for_the_nearest_of_those_named_and_zero(values, mapping):
    ids = class_ids(values, mapping, nearest=True)
    for value, class_id in zip(values.ravel().tolist(), ids.ravel().tolist(), strict=True):
        nearest = min(sorted({0, *mapping}), key=lambda named: abs(named - value)) if mapping else value
        assert class_id == mapping.get(nearest, nearest)


@given(masks)
def test_pixels_are_counted_by_value(values):
    ids = class_ids(values, None)
    assert count_values(ids) == {value: (ids == value).sum() for value in np.unique(ids).tolist()}


def test_of_many_values_the_most_frequent_are_listed():
    assert listed({0: 12, 255: 1}) == "0 (12 pixels), 255 (1)"
    assert listed({3: 1}) == "3 (1 pixel)"
    assert listed({i: 100 - i for i in range(20)} | {200: 500}).endswith(", 6 (94), 200 (500) and 13 more")


@pytest.mark.parametrize(
    ("pixels", "mode"),
    [
        (np.array([[0, 1], [254, 255]], np.uint8), "L"),
        (np.array([[0, 205], [850, 65535]], np.uint16), "I;16"),
        (np.array([[False, True], [True, False]]), "1"),
    ],
)
@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_masks_of_8_1_and_16_bits_are_read_as_they_are(tmp_path, pixels, mode, suffix):
    path = tmp_path / f"m.{suffix}"
    Image.fromarray(pixels).save(path)
    assert Image.open(path).mode == mode
    values = read_mask(path)
    assert values.dtype == (np.uint16 if mode == "I;16" else np.uint8)
    assert (values == pixels).all()


def test_a_palette_gives_its_indices(tmp_path):
    image = Image.fromarray(np.array([[0, 2], [1, 2]], np.uint8))
    image.putpalette([200, 0, 0, 0, 200, 0, 0, 0, 200])
    assert image.mode == "P"
    image.save(tmp_path / "m.png")
    assert read_mask(tmp_path / "m.png").tolist() == [[0, 2], [1, 2]]


# ---------------------------------------------------------------- through the three sources


def stored(ids: np.ndarray, values: list[int], kind: type = np.uint8) -> np.ndarray:
    """Class ids 0, 1, 2 and 255, as a file holds them that has these values."""
    table = np.zeros(256, kind)
    table[: len(values)], table[255] = values, 255
    return table[ids]


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_a_mapping_holds_for_recordings_folders_and_arrays(tmp_path, kind):
    values = [0, 63, 126] if kind == np.uint8 else [0, 205, 850]
    mapping = {values[1]: 1, values[2]: 2}
    write_recording(tmp_path / "r")
    folders = write_folders(tmp_path, {i: f"photo_{i}" for i in range(10)})
    for i in range(10):
        mask = Image.fromarray(stored(scene(i)[1], values, kind))
        for path in (tmp_path / f"r/masks/{i + 10:06d}.png", folders["masks"] / f"photo_{i}.png"):
            mask.save(path)
    label = np.stack([stored(scene(i)[1], values, kind) for i in range(24)]).astype(np.int64)
    write_arrays(tmp_path / "a.npz", label=label)
    for source in ({"recording": tmp_path / "r", "index": tmp_path / "index"}, folders, {"arrays": tmp_path / "a.npz"}):
        params = params_of(mask_values=mapping)
        frames = open_frames(params, SPLIT, **source)
        assert (frames.masks(ALL) == np.stack([scene(i)[1] for i in ALL])).all()
        assert len(frames.with_classes_of(ALL).classes) == 3
        assert frames.count_classes(ALL) == count_values(np.stack([scene(i)[1] for i in ALL]))


def test_a_mapping_comes_before_the_void_class_and_may_ignore(tmp_path):
    label = np.stack([scene(i)[1] for i in range(24)]).astype(np.int8)
    label[label == 2] = -1
    write_arrays(tmp_path / "a.npz", label=label)
    params = params_of(mask_values={-1: 255, 1: 3}, void=3)
    frames = SegmentationFrames.from_arrays(tmp_path / "a.npz", params, SPLIT)
    assert (frames.masks(ALL) == np.where(label[:10] == 0, 0, 255)).all()


def write_values(root: Path, values: list[int], suffix: str = "png") -> dict[str, Path]:
    """Ten images, with masks whose classes 0, 1 and 2 have these values."""
    folders = write_folders(root, {})
    for i in range(10):
        mask = Image.fromarray(stored(scene(i)[1], values))
        mask.save(folders["masks"] / f"photo_{i}.{suffix}", quality=90)
    return folders


def test_jpeg_masks_are_read_with_a_mapping_and_refused_without(tmp_path):
    folders = write_values(tmp_path, [0, 120, 255], "jpg")
    frames = open_frames(params_of(mask_values={120: 1, 255: 2}), SPLIT, **folders)
    truth = np.stack([scene(i)[1] for i in ALL])
    assert (frames.masks(ALL) == truth).mean() > 0.97  # a border between 0 and 255 has pixels near 120
    assert frames.with_classes_of(ALL).classes == ("background", "class_1", "class_2")
    plain = open_frames(PARAMS, SPLIT, **folders)
    message = (
        r"masks: 10 of 10 masks are JPEG and hold 0 \(\d+ pixels\), .* and \d+ more; JPEG changes values: store masks "
        r"as PNG, or set segmentation.mask_values, e.g. \{1[12]\d: 1, 255: 2\}, which then takes the nearest"
    )
    with pytest.raises(UserError, match=message):
        plain.with_classes_of(ALL)
    named = open_frames(params_of(classes=CLASSES), SPLIT, **folders)
    with pytest.raises(UserError, match=r"photo_0.jpg: JPEG changes values: store masks as PNG, or set"):
        named.masks(ALL[:1])
    for path in list(folders["masks"].iterdir()):  # what counts is the content
        path.rename(path.with_suffix(".png"))
    with pytest.raises(UserError, match=r"10 of 10 masks are JPEG"):
        open_frames(PARAMS, SPLIT, **folders).with_classes_of(ALL)


ABSENT = "where these are the ids and a class is merely absent, segmentation.classes"


@pytest.mark.parametrize(
    ("values", "options", "message"),
    [
        ([0, 255, 255], {}, r'0 \(\d+ pixels\), 255 \(\d+\): nothing to learn, as 255 means "ignore" here; where it '
         r"is a class, set segmentation.mask_values=\{255: 1\}$"),
        ([0, 255, 255], {"mask_values": {254: 1}}, r'as 255 means "ignore" here; .* segmentation.mask_values=\{255: 1'),
        ([0, 1, 1], {"void": 1}, r'as 255 means "ignore"; check segmentation.mask_values and segmentation.void'),
        ([0, 0, 0], {}, r"0 \(7680 pixels\): nothing to learn but class 0; check the masks, or raise seg"),
        ([0, 126, 252], {}, r"0 \(\d+ pixels\), 126 \(\d+\), 252 \(\d+\), but class ids are 0, 1, 2 ... without a gap; "
         rf"set segmentation.mask_values, e.g. \{{126: 1, 252: 2\}}, or, {ABSENT}$"),
        ([0, 126, 255], {}, r'e.g. \{126: 1\}, or, .*; 255 means "ignore" here$'),
        ([1, 2, 3], {}, r"e.g. \{1: 0, 2: 1, 3: 2\}"),
        ([0, 1, 3], {}, rf"e.g. \{{3: 2\}}, or, {ABSENT}$"),
        ([0, 63, 126], {"mask_values": {63: 1}}, r"126 \(\d+\) after segmentation.mask_values=\{63: 1\}, but .* "
         r"e.g. \{63: 1, 126: 2\}"),
        ([0, 63, 126], {"mask_values": {63: 2, 126: 2}}, r"e.g. \{63: 1, 126: 1\}"),
    ],
)  # fmt: skip
def test_values_that_are_no_class_ids_are_told_with_their_pixels(tmp_path, values, options, message):
    frames = open_frames(params_of(**options), SPLIT, **write_values(tmp_path, values))
    with pytest.raises(UserError, match=r"masks: the 10 masks hold .*" + message) as error:
        frames.with_classes_of(ALL)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([-1, 0, 1, 2], r"a.npz: the 4 masks hold -1 \(.* e.g. \{-1: 255\}$"),
        ([0, 205, 420, 500, 550, 600, 820, 850], r"e.g. \{205: 1, 420: 2, 500: 3, 550: 4, 600: 5, 820: 6, 850: 7\}$"),
        (
            range(100),
            r"and 92 more: 100 values, as in masks that were blended .* write such masks again; if all are",
        ),
        (
            range(0, 60, 3),
            r"e.g. \{3: 1, .*, \.\.\.\}, or, .* if blending \(JPEG, resizing\) made some of them, write the",
        ),
    ],
)
def test_any_whole_numbers_are_told(tmp_path, values, message):
    label = np.resize(np.array(values, np.int16), (24, *SIZE))
    frames = SegmentationFrames.from_arrays(write_arrays(tmp_path / "a.npz", label=label), PARAMS, SPLIT)
    with pytest.raises(UserError, match=message):
        frames.with_classes_of(np.arange(4))


@pytest.mark.parametrize(
    ("values", "options", "count"), [([0, 1, 2], {}, 3), ([0, 1, 255], {}, 2), ([0, 1, 2], {"void": 1}, 3)]
)
def test_ids_without_a_gap_are_classes_by_number(tmp_path, values, options, count):
    frames = open_frames(params_of(**options), SPLIT, **write_values(tmp_path, values))
    assert len(frames.with_classes_of(ALL).classes) == count


def test_values_are_looked_at_before_masks_are_resized_and_no_other_mask_is_read(tmp_path):
    folders = write_values(tmp_path, [0, 1, 2])
    mask = scene(0)[1].copy()
    mask[0, 0] = 7  # the nearest pixel of none
    Image.fromarray(mask).save(folders["masks"] / "photo_0.png")
    (folders["masks"] / "photo_9.png").write_text("not an image")
    small = open_frames(FrameParams(image_size=(8, 8)), SPLIT, **folders)
    with pytest.raises(UserError, match=r"7 \(1\), but class ids are"):
        small.with_classes_of(ALL[:9])
    assert len(small.with_classes_of(ALL[1:9]).classes) == 3


# ---------------------------------------------------------------- through a training and the model's file

SMALL = SegmentationParams(
    image_size=SIZE, method="supervised", labeled_groups=None, epochs=1, steps_per_epoch=1, batch_size=2,
    unlabelled_batch_size=2, precision="fp32", channels=(4, 4, 8, 8, 8, 4), crop=None,
)  # fmt: skip


def train(tmp_path: Path, source: dict[str, Path], **options) -> Path:
    params = SMALL.model_copy(update=options)
    train_segmentation(open_frames(params, SPLIT, **source), tmp_path / "m.safetensors", tmp_path / "m", params, 0)
    return tmp_path / "m.safetensors"


def test_mapping_and_suffix_travel_in_the_model_to_the_evaluation(tmp_path):
    folders = write_values(tmp_path, [0, 255, 255])
    for path in list(folders["masks"].iterdir()):
        path.rename(path.with_name(f"{path.stem}_L.png"))
    for path in list(folders["images"].iterdir()):  # masks might be of these as well
        path.with_name(f"{path.stem}_L.png").write_bytes(path.read_bytes())
    with pytest.raises(UserError, match=r"masks: photo_0_L.png may belong to the image photo_0_L by whole name or"):
        train(tmp_path, folders, mask_values={255: 1})
    weights = train(tmp_path, folders, mask_values={255: 1}, mask_suffix="_L")
    config = load_model(weights).config
    assert (config.mask_values, config.mask_suffix) == ({255: 1}, "_L")
    frames = open_frames(config, SPLIT, **folders)
    assert frames.has_mask.tolist() == [True, False] * 10
    assert set(np.unique(frames.masks(np.arange(0, 20, 2)))) == {0, 1}
    figures = evaluate_segmentation(weights, frames, tmp_path / "out", EvaluateSegmentationParams(batch_size=4))
    assert set(figures["classes"]) == {"background", "class_1"}


def test_named_classes_of_which_training_masks_hold_none_are_refused(tmp_path):
    source = {"recording": write_recording(tmp_path / "r"), "index": tmp_path / "index"}
    for i in range(32):
        Image.fromarray(stored(scene(i)[1], [0, 255, 255])).save(tmp_path / f"r/masks/{i + 10:06d}.png")
    message = r"r/masks: the \d+ labelled masks hold 0 \(\d+ pixels\), 255 \(\d+\): nothing to learn, as 255 means"
    with pytest.raises(UserError, match=message):
        train(tmp_path, source)
    assert not (tmp_path / "m.safetensors").exists()
    for i in range(32):
        mask = np.zeros(SIZE, np.uint8)
        mask[0, 0] = 1
        Image.fromarray(mask).save(tmp_path / f"r/masks/{i + 10:06d}.png")
    message = r"r/masks: of classes 1 \(\d+ pixels\) nothing is left at segmentation.image_size=\[8, 8\]; raise it"
    with pytest.raises(UserError, match=message):
        train(tmp_path, source, image_size=(8, 8))


# ---------------------------------------------------------------- the keys


class Params(Section):
    segmentation: FrameParams = FrameParams()


@pytest.mark.parametrize(
    ("text", "mapping"),
    [
        ("{255: 1}", {255: 1}),
        ("{-1: 255, 0x10: 0}", {-1: 255, 16: 0}),
        ("{}", {}),
        ("null", None),
        ('{"63":1}', {63: 1}),
    ],
)
def test_the_mapping_is_read_from_yaml_and_survives_json(text, mapping, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p.yaml").write_text(f"segmentation:\n  mask_values: {text}\n")
    for params in (
        load_params(Params, tmp_path / "p.yaml"),
        load_params(Params, None, [f"segmentation.mask_values={text}"]),
    ):
        assert params.segmentation.mask_values == mapping
        assert FrameParams.model_validate_json(params.segmentation.model_dump_json()) == params.segmentation
        assert FrameParams.model_validate_json(json.dumps(params.segmentation.model_dump(mode="json"))).mask_values == (
            mapping
        )


@pytest.mark.parametrize(
    ("text", "wrong"),
    [("{a: 1}", "a: 1"), ("{255:1}", "255:1: null"), ("{1: 256}", "1: 256"), ("{1: -1}", "1: -1"),
     ("{1.5: 1}", "1.5: 1"), ("{1: 1.0}", "1: 1.0"), ("{true: 1}", "true: 1"),
     ("{1: true}", "1: True"), ("{1: [2]}", "1: [2]")],
)  # fmt: skip
def test_a_wrong_mapping_is_one_line_that_names_the_key(text, wrong, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as error:
        load_params(Params, None, [f"segmentation.mask_values={text}"])
    must = "{value: class id 0..254, or 255}, as {63: 1, 126: 2}, a space after each colon"
    assert str(error.value) == f"parameters: segmentation.mask_values: must be {must}, not {wrong}"


@pytest.mark.parametrize("text", ["3", "[1]", "x"])
def test_what_is_no_mapping_is_one_line(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"^parameters: segmentation.mask_values: .*(dictionary|object), got"):
        load_params(Params, None, [f"segmentation.mask_values={text}"])
