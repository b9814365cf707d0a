"""Images, masks, groups and split of recordings, folders and arrays; one line for whatever is wrong with them."""

import gzip
import json
from dataclasses import replace
from pathlib import Path
from zipfile import ZipFile

import h5py
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from sightline.core.errors import UserError
from sightline.depth.normalize import NormalizeParams, resolve_preprocessing
from sightline.depth.preprocessing import resize_depth
from sightline.recording.images import read_depth
from sightline.recording.layout import DepthInfo, RecordingInfo, write_recording_info
from sightline.recording.split import DataParams, SplitParams
from sightline.segmentation import SegmentationFrames
from sightline.segmentation.batches import choose_labelled
from sightline.segmentation.frames import FrameParams
from sightline.segmentation.inputs import open_frames
from sightline.validation.validation import validate_recording

EPISODES, STEPS, SIZE = 8, 4, (24, 32)
CLASSES = ("background", "disc", "bar")
PARAMS = FrameParams(image_size=SIZE)
SPLIT = SplitParams(guard=0)


def scene(i: int, size: tuple[int, int] = SIZE) -> tuple[np.ndarray, np.ndarray]:
    """A red disc and a blue bar on grey, uint8 [H, W, 3], and their mask."""
    rng = np.random.default_rng(i)
    rows, columns = np.mgrid[0 : size[0], 0 : size[1]]
    y, x, top = rng.integers(6, size[0] - 6), rng.integers(6, size[1] - 6), rng.integers(0, size[0] - 4)
    mask = np.where((rows >= top) & (rows < top + 4), 2, 0)
    mask = np.where((rows - y) ** 2 + (columns - x) ** 2 < 25, 1, mask).astype(np.uint8)
    colours = np.array([[120, 120, 120], [220, 40, 40], [40, 40, 220]])
    return (colours[mask] + rng.integers(-15, 15, (*size, 3))).astype(np.uint8), mask


def write_recording(root: Path, masked: int = EPISODES * STEPS) -> Path:
    """Eight episodes of four frames with depth, of which the first so many have a mask, and their index beside it."""
    count = EPISODES * STEPS
    step = np.tile(np.arange(STEPS), EPISODES)
    table = {"frame_id": np.arange(count) + 10, "episode": np.arange(EPISODES).repeat(STEPS), "step": step}
    root.mkdir(parents=True)
    pd.DataFrame(table | {"time_s": step / 10}).to_parquet(root / "frames.parquet")
    depth = DepthInfo(unit_mm=1.0, invalid=(0,), height_range=(500, 1500))
    write_recording_info(
        root / "recording.json", RecordingInfo(fps=10.0, cameras=("global",), joints=(), classes=CLASSES, depth=depth)
    )
    for folder in ("rgb/global", "masks", "depth"):
        (root / folder).mkdir(parents=True)
    for i in range(count):
        pixels, mask = scene(i)
        Image.fromarray(pixels).save(root / f"rgb/global/{i + 10:06d}.png")
        raw = np.where(mask == 1, 0, np.where(mask == 2, 500, 1250)).astype(np.uint16)
        Image.fromarray(raw).save(root / f"depth/{i + 10:06d}.png")
        if i < masked:
            Image.fromarray(mask).save(root / f"masks/{i + 10:06d}.png")
    validate_recording(root, root.parent / "index", DataParams(), processes=1)
    return root


def from_recording(root: Path) -> SegmentationFrames:
    return SegmentationFrames.from_recording(root, root.parent / "index", PARAMS, depth=root / "depth")


def write_arrays(path: Path, groups: bool = True, count: int = 24, **changes: np.ndarray) -> Path:
    scenes = [scene(i) for i in range(count)]
    arrays = {"image": np.stack([pixels for pixels, _ in scenes]), "label": np.stack([mask for _, mask in scenes])}
    arrays |= {"group": np.array([f"p{i // 2}" for i in range(count)])} if groups else {}
    np.savez(path, **{name: value for name, value in (arrays | changes).items() if value is not None})
    return path


def arrays_of(path: Path, params: FrameParams = PARAMS) -> SegmentationFrames:
    return SegmentationFrames.from_arrays(path, params, SPLIT)


def test_a_recording_gives_its_frames_and_those_without_mask_are_unlabelled(tmp_path):
    root = write_recording(tmp_path / "r", masked=30)
    frames = from_recording(root)
    assert frames.frame_id.tolist() == list(range(10, 42))
    assert frames.group.tolist() == np.arange(8).repeat(4).tolist()
    assert (frames.has_mask.sum(), frames.classes, frames.channels) == (30, CLASSES, 3)
    index = pd.read_parquet(tmp_path / "index/frames.parquet")
    assert frames.split.tolist() == index["split"].tolist()
    rows = np.array([3, 7])
    pixels, mask = scene(7)
    assert (frames.images(rows)[1] == pixels.transpose(2, 0, 1)).all()
    assert (frames.masks(rows)[1] == mask).all()
    depth, valid = frames.depth(rows)[1]
    assert (valid == (mask != 1)).all()
    np.testing.assert_allclose(depth, np.select([mask == 1, mask == 2], [0, -1], 0.5), atol=1e-6)
    assert frames.extra_shapes() == {"depth": (2, *SIZE)}
    train = frames.rows("train")
    labelled, unlabelled = choose_labelled(frames, 3, None, 0)
    assert len(np.unique(frames.group[labelled])) == 3
    assert np.union1d(labelled, unlabelled).tolist() == train.tolist()
    assert not np.intersect1d(labelled, unlabelled).size


@pytest.mark.parametrize("encoding", ["rotr3", "byteswap"])
def test_every_reader_of_depth_decodes_what_the_recording_names(tmp_path, encoding):
    root, rows = write_recording(tmp_path / "r"), np.arange(6)
    plain, path = from_recording(root).depth(rows), root / "recording.json"
    for file in (root / "depth").iterdir():
        raw = np.asarray(Image.open(file)).astype(np.uint16)
        Image.fromarray((raw << 3) | (raw >> 13) if encoding == "rotr3" else raw.byteswap()).save(file)
    assert (from_recording(root).depth(rows) != plain).any()
    info = json.loads(path.read_text())
    assert "encoding" not in info["depth"]  # plain counts leave the file as it always was
    info["depth"]["encoding"] = encoding
    path.write_text(json.dumps(info))
    assert (from_recording(root).depth(rows) == plain).all()
    figures = validate_recording(root, tmp_path / "index", DataParams(), only="depth", processes=1)["depth"]
    assert figures["valid_counts"] == {"min": 500, "median": 1250, "max": 1250}
    preprocessing = resolve_preprocessing(NormalizeParams(), path)
    counts, valid = resize_depth(read_depth(root / "depth/000012.png"), preprocessing)
    assert set(counts[valid]) == {500, 1250}
    of_params = NormalizeParams(depth_encoding="rotr3")
    assert resolve_preprocessing(of_params, path).depth_encoding == "rotr3"


def test_fewer_labeled_groups_are_among_more_and_the_seed_chooses(tmp_path):
    frames = arrays_of(write_arrays(tmp_path / "a.npz", count=60))

    def labelled(groups: int | None, fraction: float | None, seed: int) -> set[str]:
        return set(frames.group[choose_labelled(frames, groups, fraction, seed)[0]].tolist())

    assert labelled(2, None, 0) < labelled(5, None, 0) < labelled(None, None, 0)
    assert len({tuple(labelled(2, None, seed)) for seed in range(6)}) > 2
    assert len(labelled(None, 0.01, 0)) == 1
    assert len(labelled(None, 0.5, 0)) == round(0.5 * len(labelled(None, None, 0)))
    with pytest.raises(UserError, match=r"a.npz: segmentation.labeled_groups is 99, but \d+ training groups"):
        labelled(99, None, 0)


def test_masks_are_resized_to_the_nearest_pixel_and_images_by_area(tmp_path):
    frames = arrays_of(write_arrays(tmp_path / "a.npz"), FrameParams(image_size=(12, 16)))
    pixels, mask = scene(5)
    small = frames.images(np.array([5]))[0]
    blocks = pixels.reshape(12, 2, 16, 2, 3).mean((1, 3)).transpose(2, 0, 1)
    assert np.abs(small - blocks).max() <= 1
    nearest = frames.masks(np.array([5]))[0]
    blocks = mask.reshape(12, 2, 16, 2).transpose(0, 2, 1, 3).reshape(12, 16, 4)
    assert (nearest[..., None] == blocks).any(-1).all()


def write_folders(root: Path, masks: dict[int, str], count: int = 10) -> dict[str, Path]:
    """Images ``photo_<i>.png``, and of those named in ``masks`` a mask of that name."""
    for name in ("images", "masks"):
        (root / name).mkdir()
    for i in range(count):
        pixels, mask = scene(i)
        Image.fromarray(pixels).save(root / f"images/photo_{i}.png")
        if i in masks:
            Image.fromarray(mask).save(root / f"masks/{masks[i]}.png")
    return {"images": root / "images", "masks": root / "masks"}


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("photo_{}", "whole name (photo_1.png with photo_1.png)"),
        ("photo_{}_L", 'name and the suffix "_L" (photo_1_L.png with photo_1.png)'),
        ("mask-{:04d}", "number (mask-0001.png with photo_1.png)"),
    ],
)
def test_folders_pair_by_name_suffix_or_number_and_split_in_order(tmp_path, capsys, name, said):
    folders = write_folders(tmp_path, {i: name.format(i) for i in range(1, 12, 2)}, 12)
    frames = open_frames(PARAMS, SPLIT, **folders)
    line = f"masks: 6 masks paired with images by {said}; images without a mask, unlabelled: 6; "
    line += "train 7, val 2, test 3\n"
    assert capsys.readouterr().err.endswith(line)
    assert frames.frame_id.tolist() == list(range(12))  # photo_10 behind photo_9
    assert frames.has_mask.tolist() == [False, True] * 6
    for i in range(1, 12, 2):
        assert (frames.masks(np.array([i]))[0] == scene(i)[1]).all()
        assert (frames.images(np.array([i]))[0] == scene(i)[0].transpose(2, 0, 1)).all()
    assert {part: len(frames.rows(part)) for part in ("train", "val", "test")} == {"train": 7, "val": 2, "test": 3}
    assert frames.classes == ()
    assert frames.with_classes_of(np.array([1, 3])).classes == ("background", "class_1", "class_2")


def test_of_several_processes_the_first_says_how_masks_are_paired(tmp_path, capsys, monkeypatch):
    folders = write_folders(tmp_path, {1: "photo_1"})
    monkeypatch.setenv("RANK", "1")
    open_frames(PARAMS, SPLIT, **folders)
    assert capsys.readouterr().err == ""


def test_wrong_folders_are_one_line(tmp_path):
    folders = write_folders(tmp_path, {1: "photo_1", 3: "photo_3"})
    for path in folders["images"].iterdir():
        Image.open(path).convert("L").save(path)
    grey = open_frames(PARAMS, SPLIT, **folders)
    assert grey.images(np.array([0, 1])).shape == (2, 1, *SIZE)
    Image.fromarray(scene(0)[1]).resize((8, 8)).save(tmp_path / "masks/photo_1.png")
    with pytest.raises(UserError, match=r"photo_1.png: is 8 x 8 but its image 24 x 32; a mask needs the size"):
        grey.masks(np.array([1]))
    Image.fromarray(scene(0)[0]).save(tmp_path / "masks/photo_1.png")
    with pytest.raises(UserError, match=r"photo_1.png: .*RGB"):
        grey.masks(np.array([1]))
    (tmp_path / "masks/photo_3.png").rename(tmp_path / "masks/x.png")
    with pytest.raises(UserError, match=r"masks: 1 of 2 masks have no image in .*images by whole name: x.png; tried"):
        open_frames(PARAMS, SPLIT, **folders)
    with pytest.raises(UserError, match=r"images: holds the images, too; move the masks to a folder of their own"):
        open_frames(PARAMS, SPLIT, images=tmp_path / "images", masks=tmp_path / "masks/../images")


def test_arrays_split_by_patient_or_as_they_are_given(tmp_path):
    frames = arrays_of(write_arrays(tmp_path / "a.npz", spacing=np.array([1.5, 2.0])))
    for name in np.unique(frames.group):
        assert len(set(frames.split[frames.group == name])) == 1
    assert {len(frames.rows(part)) > 0 for part in ("train", "val", "test")} == {True}
    assert frames.spacing == (1.5, 2.0)
    assert arrays_of(tmp_path / "a.npz", FrameParams(image_size=(12, 16))).spacing == (3.0, 4.0)
    (tmp_path / "d").mkdir()
    for i, part in enumerate(("train", "val", "test")):
        write_arrays(tmp_path / f"d/{part}.npz", count=6, group=np.arange(6) // 2 + 10 * i)
    parts = arrays_of(tmp_path / "d")
    assert parts.split.tolist() == ["train"] * 6 + ["val"] * 6 + ["test"] * 6
    write_arrays(tmp_path / "d/val.npz", count=6, group=np.array([10, 10, 1, 11, 11, 11]))
    with pytest.raises(UserError, match=r"d: group 1 lies in train and val; a group belongs in one part"):
        arrays_of(tmp_path / "d")
    write_arrays(tmp_path / "d/val.npz", groups=False)
    with pytest.raises(UserError, match=r"d: some of its files have an array group, others have none"):
        arrays_of(tmp_path / "d")


def test_floats_become_bytes_patient_by_patient(tmp_path):
    grey = np.stack([scene(i)[0][..., 0] for i in range(24)]).astype(np.float32)
    unit = arrays_of(write_arrays(tmp_path / "u.npz", image=grey / 255))
    assert (unit.images(np.array([4]))[0, 0] == grey[4]).all()
    scale = 1 + 9 * (np.arange(24) // 2 % 2)
    wide = arrays_of(write_arrays(tmp_path / "w.npz", image=grey * scale[:, None, None] - 50)).images(np.arange(4))
    assert wide[:2].max() == wide[2:].max() == 255
    assert np.corrcoef(wide[2].ravel(), grey[2].ravel())[0, 1] > 0.99
    void = arrays_of(write_arrays(tmp_path / "v.npz"), FrameParams(image_size=SIZE, void=2))
    assert set(np.unique(void.masks(np.arange(4)))) == {0, 1, 255}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image": None}, r"no array image \(image or images\); it has label, group"),
        (
            {"label": np.zeros((24, 8, 8), np.uint8)},
            r"label: shape \[24, 8, 8\], expected \[24, 24, 32\] as the images",
        ),
        ({"label": np.zeros((24, *SIZE), np.float32)}, r"label: holds float32; expected whole numbers"),
        ({"label": np.zeros((24, *SIZE, 3), np.uint8)}, r"label: shape \[24, 24, 32, 3\], expected"),
        ({"image": np.full((24, *SIZE), np.nan, np.float32)}, r"image: NaN or infinity in 24 of 24 \(slices 0, 1, 2"),
        ({"image": np.zeros((24, *SIZE), np.int16)}, r"image: holds int16; expected uint8 or floats"),
        ({"image": np.zeros(24, np.uint8)}, r"image: shape \[24\], expected \[N, H, W\]"),
        ({"group": np.arange(3)}, r"group: shape \[3\], expected \[24\]"),
        ({"group": np.arange(24) // 20 + 1}, r"group: 2 groups \(1, 2\) cannot be split into train, val, test; 3 are"),
        ({"group": np.array(["p7", "p9"] * 12)}, r"group: 2 groups \(p7, p9\) cannot be split"),
        ({"group": np.array([{}] * 24)}, r"not an .npz file of plain arrays"),
        ({"spacing": np.array([1.0])}, r"spacing: expected two numbers above 0"),
    ],
)
def test_wrong_arrays_are_one_line(tmp_path, changes, message):
    with pytest.raises(UserError, match=r"a.npz: " + message) as error:
        arrays_of(write_arrays(tmp_path / "a.npz", **changes))
    assert "\n" not in str(error.value)


def write_zip(path: Path, **members: bytes) -> None:
    with ZipFile(path, "w") as file:
        for name, content in members.items():
            file.writestr(name, content)


@pytest.mark.parametrize(
    ("write", "kind"),
    [
        (
            lambda path: h5py.File(path, "w").close(),
            r"an HDF5 file, not .npz; write one with numpy.savez\(FILE, im",
        ),
        (lambda path: path.write_bytes(b"\x93NUMPY\x01\0"), "an .npy file of one array, not .npz"),
        (lambda path: path.write_bytes(b"MATLAB 5.0 MAT-file"), "a MATLAB file, not"),
        (lambda path: Image.new("L", (2, 2)).save(path, "PNG"), "a PNG image, not"),
        (lambda path: path.write_bytes(gzip.compress(bytes(344) + b"n+1\0" + bytes(9))), "a NIfTI volume, not .npz"),
        (lambda path: path.write_bytes(bytes(344) + b"n+1\0" + bytes(9)), "a NIfTI volume, not .npz"),
        (lambda path: path.write_bytes(gzip.compress(b"text")), "a gzipped file, not .npz"),
        (lambda path: path.write_bytes(b"version https://git-lfs.github.com/spec/v1"), "a pointer of git-LFS "),
        (
            lambda path: write_zip(path, a=b"1", b=b"2", c=b"3", d=b"4"),
            r"a zip file of other things \(a, b, c and 1 more\)",
        ),
    ],
)
def test_other_kinds_of_files_are_named(tmp_path, write, kind):
    write(tmp_path / "a.npz")
    with pytest.raises(UserError, match=r"a.npz: is " + kind):
        arrays_of(tmp_path / "a.npz")


def test_members_of_a_zip_that_are_no_arrays_are_not_taken_for_them(tmp_path):
    write_arrays(tmp_path / "a.npz", image=None)
    with ZipFile(tmp_path / "a.npz", "a") as file:
        file.writestr("image", b"text")
    with pytest.raises(UserError, match=r"a.npz: no array image"):
        arrays_of(tmp_path / "a.npz")


def test_slices_without_groups_that_are_too_few_name_their_file(tmp_path):
    path = write_arrays(tmp_path / "a.npz", groups=False)
    lacks = r"a.npz: no array group; add one that names the patient of each slice\. Without it, "
    with pytest.raises(UserError, match=lacks + "24 frames are too few to split into train, val, test"):
        SegmentationFrames.from_arrays(path, PARAMS, SplitParams(guard=10))
    told = r"slices are split by their order: train 9, val 3, test 4, left out between them 8 \(data\.split\.guard\)"
    with pytest.warns(UserWarning, match=lacks + told):
        SegmentationFrames.from_arrays(path, PARAMS, SplitParams(guard=2))


def test_ids_beyond_the_classes_are_named(tmp_path):
    label = np.stack([scene(i)[1] for i in range(24)])
    label[3, 0, 0], label[4, 0, 0] = 9, 255
    frames = arrays_of(write_arrays(tmp_path / "a.npz", label=label), FrameParams(image_size=SIZE, classes=CLASSES))
    assert frames.masks(np.array([4]))[0, 0, 0] == 255
    with pytest.raises(
        UserError, match=r"a.npz: label 3: class ids 9 \(1 pixel\), but there are 3 classes \(background, d"
    ):
        frames.masks(np.array([3]))
    negative = arrays_of(write_arrays(tmp_path / "b.npz", label=label.astype(np.int64) - 1))
    with pytest.raises(UserError, match=r"b.npz: label 0: class ids -1 \(\d+ pixels\)"):
        negative.masks(np.array([0]))


def test_masks_are_read_without_decoding_their_images(tmp_path):
    frames = from_recording(write_recording(tmp_path / "r"))

    def refuse(row: int) -> np.ndarray:
        raise AssertionError(row)

    rows = np.flatnonzero(frames.has_mask)
    assert (replace(frames, read_image=refuse).masks(rows) == frames.masks(rows)).all()


def test_a_wrong_source_is_one_line(tmp_path):
    root, index = write_recording(tmp_path / "r"), tmp_path / "index"
    with pytest.raises(UserError, match=r"give one source: --recording with --index, --images with --masks, or"):
        open_frames(PARAMS, SPLIT, recording=root)
    with pytest.raises(UserError, match=r"give one source"):
        open_frames(PARAMS, SPLIT)
    with pytest.raises(UserError, match=r"further inputs need --recording"):
        open_frames(PARAMS, SPLIT, arrays=root, depth=root)
    with pytest.raises(UserError, match=r"segmentation.camera: front not in .*recording.json, which has: global"):
        open_frames(FrameParams(camera="front"), SPLIT, recording=root, index=index)
    with pytest.raises(UserError, match=r"none.npz: no such file"):
        open_frames(PARAMS, SPLIT, arrays=tmp_path / "none.npz")
    (tmp_path / "text.npz").write_text("text")
    with pytest.raises(UserError, match=r"text.npz: not an .npz file of plain arrays"):
        open_frames(PARAMS, SPLIT, arrays=tmp_path / "text.npz")
    with pytest.raises(UserError, match=r"frames.parquet: not a readable HDF5"):
        open_frames(PARAMS, SPLIT, recording=root, index=index, features=[root / "frames.parquet"])
    info = json.loads((root / "recording.json").read_text())
    (root / "recording.json").write_text(json.dumps(info | {"classes": []}))
    with pytest.raises(UserError, match=r"recording.json: names no classes; name them there, or in"):
        open_frames(PARAMS, SPLIT, recording=root, index=index)
    assert open_frames(FrameParams(classes=("a", "b")), SPLIT, recording=root, index=index).classes == ("a", "b")
    (index / "masks.parquet").unlink()
    with pytest.raises(UserError, match=r"masks.parquet: no such frame index; make one with sightline validate"):
        open_frames(FrameParams(classes=("a", "b")), SPLIT, recording=root, index=index)
