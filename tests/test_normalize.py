"""Normalisation: what becomes of a raw depth image, invalid codes, sizes, broken files, interruption."""

import json
import warnings

import h5py
import numpy as np
import pytest
from conftest import depth_folder, save_depth
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from sightline.core.errors import UserError
from sightline.depth import normalize
from sightline.depth.folder import Params, normalized
from sightline.depth.normalize import NormalizeParams, normalize_depth
from sightline.depth.preprocessing import Preprocessing, fill_holes, normalize_counts, preprocess, resize_depth
from sightline.depth.store import DepthStore
from sightline.recording.depth import decode
from sightline.recording.images import read_depth
from sightline.recording.split import SplitParams

RANGE = NormalizeParams(height_range=(500, 4500), invalid=(0, 65535))
SPLIT = SplitParams(guard=0)


def run(folder, output, params=RANGE, **options):
    return normalize_depth(folder, output, params, split=SPLIT, **{"processes": 1} | options)


def footprints(size: int) -> np.ndarray:
    """Overlap of each of 128 equal target intervals with each source pixel, the plain way -> [128, size]."""
    edges = np.arange(129) * size / 128
    pixel = np.arange(size)
    return np.clip(np.minimum(edges[1:, None], pixel + 1) - np.maximum(edges[:-1, None], pixel), 0, None)


sizes = st.integers(1, 300)


@settings(max_examples=40, deadline=None)
@given(sizes, sizes, st.integers(0, 2**32 - 1), st.floats(0, 1))
def test_area_is_the_mean_of_the_valid_part_of_each_footprint(height, width, seed, share):
    rng = np.random.default_rng(seed)
    raw = rng.integers(1, 65535, (height, width)).astype(np.uint16)
    raw[rng.random(raw.shape) < share] = rng.choice([0, 65535])
    ok = (raw != 0) & (raw != 65535)
    rows, columns = footprints(height), footprints(width)
    covered = rows @ ok @ columns.T
    expected_valid = covered / (rows.sum(1)[:, None] * columns.sum(1)) > 0.5
    expected = (rows @ (raw * ok.astype(float)) @ columns.T) / np.maximum(covered, 1e-9)
    counts, valid = resize_depth(raw, Preprocessing(resize="area"))
    clear = np.abs(covered / (rows.sum(1)[:, None] * columns.sum(1)) - 0.5) > 1e-4  # exactly half may round either way
    assert (valid == expected_valid)[clear].all()
    np.testing.assert_allclose(counts[valid & clear], expected[valid & clear], rtol=1e-4)
    assert (counts[~valid] == 0).all()


@settings(max_examples=40, deadline=None)
@given(sizes, sizes, st.integers(0, 2**32 - 1))
def test_nearest_takes_values_that_are_there_and_the_pixel_at_each_centre(height, width, seed):
    raw = np.random.default_rng(seed).integers(0, 65536, (height, width)).astype(np.uint16)
    counts, valid = resize_depth(raw, Preprocessing(resize="nearest"))
    rows = np.floor((np.arange(128) + 0.5) * height / 128).astype(int)
    columns = np.floor((np.arange(128) + 0.5) * width / 128).astype(int)
    expected = raw[np.ix_(rows, columns)]
    assert (valid == ((expected != 0) & (expected != 65535))).all()
    assert (counts == np.where(valid, expected, 0)).all()


def test_the_height_range_maps_to_minus_one_and_one_and_values_beyond_are_clipped_and_counted():
    raw = np.repeat(np.array([100, 500, 2500, 4500, 9000], np.float32), 128 * 128).reshape(5, 128, 128)
    depth, clipped = normalize_counts(raw, np.ones(raw.shape, bool), Preprocessing(height_range=(500, 4500)))
    assert depth[:, 0, 0].tolist() == [-1, -1, 0, 1, 1]
    assert clipped.tolist() == [128 * 128, 0, 0, 0, 128 * 128]


def test_uint16_values_above_32767_stay_positive():
    depth, _ = preprocess(np.full((1, 4, 4), 60000, np.uint16), Preprocessing(height_range=(0, 60000)))
    assert (depth == 1).all()


def test_holes_take_the_mean_of_the_smallest_block_around_them_that_has_a_reading():
    depth, valid = np.zeros((1, 8, 8), np.float32), np.zeros((1, 8, 8), bool)
    depth[0, 0, 0], depth[0, 1, 1], depth[0, 7, 7] = 0.2, 0.4, -0.5
    valid[0, [0, 1, 7], [0, 1, 7]] = True
    filled = fill_holes(depth, valid)[0]
    assert (filled[0, 0], filled[1, 1], filled[7, 7]) == (np.float32(0.2), np.float32(0.4), -0.5)
    np.testing.assert_allclose(filled[[0, 3, 4], [1, 3, 5]], [0.3, 0.3, -0.5], rtol=1e-6)
    assert (depth == np.where(valid, depth, 0)).all()  # the argument is left as it was


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0.01, 0.99))
def test_filling_keeps_what_was_measured_and_stays_within_its_range(seed, share):
    rng = np.random.default_rng(seed)
    depth, valid = rng.uniform(-1, 1, (2, 16, 16)).astype(np.float32), rng.random((2, 16, 16)) < share
    valid[:, 3, 3] = True
    filled = fill_holes(depth, valid)
    assert (filled[valid] == depth[valid]).all()
    for image, mask, whole in zip(depth, valid, filled, strict=True):
        assert image[mask].min() - 1e-6 <= whole.min() <= whole.max() <= image[mask].max() + 1e-6


def test_an_image_without_a_reading_is_refused():
    with pytest.raises(UserError, match="depth image 1: no valid pixel"):
        preprocess(np.array([[[5]], [[0]]], np.uint16), Preprocessing())


def test_rotated_bits_and_swapped_bytes_are_decoded():
    counts = np.arange(0, 65536, 7, dtype=np.uint16)
    rotated = (counts << 3) | (counts >> 13)
    assert (decode(rotated, "rotr3") == counts).all()
    assert (decode(counts.byteswap(), "byteswap") == counts).all()
    codes = np.array([0, 65535], np.uint16)
    assert (decode(codes, "rotr3") == codes).all()


@pytest.mark.parametrize("resize", ["nearest", "area"])
@pytest.mark.parametrize("shape", [(96, 160), (160, 96), (97, 160), (128, 128)])
def test_crop_takes_the_central_square_and_pad_adds_invalid_margins(shape, resize):
    raw = np.random.default_rng(0).integers(1, 60000, shape).astype(np.uint16)
    height, width = shape
    small, large = min(shape), max(shape)
    top, left = (height - small) // 2, (width - small) // 2
    expected = resize_depth(raw[top : top + small, left : left + small], Preprocessing(resize=resize))
    cropped = resize_depth(raw, Preprocessing(resize=resize, fit="crop"))
    assert all((a == b).all() for a, b in zip(cropped, expected, strict=True))

    square = np.zeros((large, large), np.uint16)  # 0 is invalid
    top, left = (large - height) // 2, (large - width) // 2
    square[top : top + height, left : left + width] = raw
    padded = resize_depth(raw, Preprocessing(resize=resize, fit="pad"))
    expected = resize_depth(square, Preprocessing(resize=resize))
    assert all((a == b).all() for a, b in zip(padded, expected, strict=True))
    without_codes = resize_depth(raw, Preprocessing(resize=resize, fit="pad", invalid=()))
    assert (without_codes[1] == expected[1]).all()  # margins are invalid even where no code is


@pytest.mark.parametrize(
    ("factor", "remedy"), [(8, "normalize.depth_encoding=rotr3"), (5, "normalize.unit_mm=0.2"), (1, None)]
)
def test_values_that_are_not_millimetres_are_recognised_by_their_multiples(tmp_path, factor, remedy):
    rng = np.random.default_rng(0)
    for i in range(4):
        save_depth(tmp_path / f"in/{i}.png", rng.integers(600, 800, (40, 40)) * factor)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run(tmp_path / "in", tmp_path / "out", NormalizeParams(height_range=(500, 7000)))
    told = [str(warning.message) for warning in caught if "multiples" in str(warning.message)]
    assert len(told) == (remedy is not None)
    assert all(remedy in text for text in told)


def test_a_frame_that_the_sensor_repeated_is_never_on_both_sides_of_the_split(tmp_path):
    folder = depth_folder(tmp_path / "in", 40)
    for copy, original in ((3, 25), (5, 37), (29, 38), (10, 11)):  # train-val, train-test, val-test, train-train
        (folder / f"{copy:06d}.png").write_bytes((folder / f"{original:06d}.png").read_bytes())
    figures = run(folder, tmp_path / "out")
    store = DepthStore.open(tmp_path / "out")
    assert figures["duplicates_left_out"] == 3
    assert np.flatnonzero(store.split == "guard").tolist() == [3, 5, 29]
    assert store.split[[10, 11, 25, 37, 38]].tolist() == ["train", "train", "val", "test", "test"]


def test_a_16_bit_pgm_is_read_as_it_is(tmp_path):
    raw = np.array([[1, 2, 300], [40000, 65535, 0]], np.uint16)
    (tmp_path / "1.pgm").write_bytes(b"P5\n3 2\n65535\n" + raw.astype(">u2").tobytes())
    assert (read_depth(tmp_path / "1.pgm") == raw).all()
    (tmp_path / "2.pgm").write_bytes(b"P5\n3 2\n4095\n" + (raw // 16).astype(">u2").tobytes())
    with pytest.raises(UserError, match="not a uint16 depth image"):
        read_depth(tmp_path / "2.pgm")


def test_a_folder_becomes_one_file(tmp_path):
    folder = depth_folder(tmp_path / "in", 40)
    figures = run(folder, tmp_path / "out.hdf5")
    store = DepthStore.open(tmp_path / "out.hdf5")
    assert store.depth.shape == store.valid.shape == (40, 128, 128)
    assert (store.depth.dtype, store.valid.dtype) == (np.float32, np.bool_)
    assert store.frame_id.tolist() == list(range(40))
    assert set(store.episode) == {-1}
    assert {part: len(store.rows(part)) for part in ("train", "val", "test")} == {"train": 22, "val": 8, "test": 10}
    expected, valid = preprocess(read_depth(folder / "000007.png")[None], store.preprocessing)
    assert (store.depth[7] == expected[0]).all()
    assert (store.valid[7] == valid[0]).all()
    assert figures["images"] == 40
    assert figures["skipped"] == 0
    assert 0.9 < figures["valid_share"]["min"] < 1
    assert (figures["near_mm"], figures["far_mm"]) == (500, 4500)


def test_bytes_depend_neither_on_processes_nor_on_the_run(tmp_path):
    folder = depth_folder(tmp_path / "in", 70)
    for name, processes in (("a", 1), ("b", 2), ("c", 1)):
        run(folder, tmp_path / name, processes=processes)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes() == (tmp_path / "c").read_bytes()


def test_an_interrupted_run_continues_and_ends_with_the_same_bytes(tmp_path, monkeypatch, scratch_root):
    folder = depth_folder(tmp_path / "in", 100)
    run(folder, tmp_path / "whole")
    calls = []

    def killed_at_the_third_block(job):
        calls.append(job[1])
        if len(calls) == 3:
            raise KeyboardInterrupt
        return one_block(job)

    one_block = normalize._normalize_block
    monkeypatch.setattr(normalize, "_normalize_block", killed_at_the_third_block)
    with pytest.raises(KeyboardInterrupt):
        run(folder, tmp_path / "resumed")
    assert not (tmp_path / "resumed").exists()
    (journal,) = (scratch_root / "normalize").glob("*/journal.jsonl")
    with open(journal, "a") as file:
        file.write('{"start": 96, "fail')  # a line cut short by the kill
    run(folder, tmp_path / "resumed")
    assert calls == [0, 32, 64, 64, 96]
    assert (tmp_path / "resumed").read_bytes() == (tmp_path / "whole").read_bytes()
    assert list((scratch_root / "normalize").iterdir()) == []


@pytest.fixture
def partly_broken(tmp_path):
    folder = depth_folder(tmp_path / "in", 40)
    data = (folder / "000003.png").read_bytes()
    (folder / "000003.png").write_bytes(data[: len(data) // 2])
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(folder / "000010.png")
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(folder / "000011.png")
    Image.fromarray(np.full((4, 4), 9, np.uint8)).save(folder / "000012.jpg")
    (folder / "000012.png").unlink()
    save_depth(folder / "000020.png", np.array([[0, 65535]]))
    return folder


def test_all_broken_images_are_listed_at_once_and_nothing_is_written(partly_broken, tmp_path, scratch_root):
    with pytest.raises(UserError) as error:
        run(partly_broken, tmp_path / "out.hdf5")
    first, *rest = str(error.value).splitlines()
    assert first.startswith("5 of 40 images are broken")
    assert "data.on_error=skip" in first
    names = ["000003.png: broken", "000010.png: not a uint16", "000011.png: not a uint16", "000012.jpg: not a uint16"]
    for line, message in zip(rest, [*names, "000020.png: no valid pixel"], strict=True):
        assert message in line
    assert sorted(path.name for path in tmp_path.iterdir()) == [".scratch", "in"]
    assert list((scratch_root / "normalize").iterdir()) == []


def test_skip_leaves_broken_images_out_and_counts_them(partly_broken, tmp_path):
    with pytest.warns(UserWarning, match="5 of 40 images are broken and left out"):
        figures = run(partly_broken, tmp_path / "out.hdf5", on_error="skip")
    assert (figures["images"], figures["skipped"]) == (35, 5)
    store = DepthStore.open(tmp_path / "out.hdf5")
    assert store.frame_id.tolist() == [i for i in range(40) if i not in (3, 10, 11, 12, 20)]
    expected, _ = preprocess(read_depth(partly_broken / "000039.png")[None], store.preprocessing)
    assert (store.depth[-1] == expected[0]).all()


def test_nothing_but_broken_images_is_an_error_even_with_skip(tmp_path):
    save_depth(tmp_path / "in/1.png", np.zeros((4, 4)))
    with (
        pytest.warns(UserWarning, match="too few to split"),
        pytest.raises(UserError, match="1 of 1 images are broken; nothing is left"),
    ):
        run(tmp_path / "in", tmp_path / "out", on_error="skip")


def test_ids_are_the_numbers_of_the_names_in_their_natural_order(tmp_path):
    for name in ("frame-9.depth.png", "frame-10.depth.png", "b_0100.depth.png", "7.depth.tiff"):
        save_depth(tmp_path / "in" / name, np.full((3, 5), 1001))
    run(tmp_path / "in", tmp_path / "out")
    assert DepthStore.open(tmp_path / "out").frame_id.tolist() == [7, 9, 10, 100]


def test_frames_named_by_time_keep_it_and_the_guard_holds_in_time(tmp_path):
    rng = np.random.default_rng(0)
    times = 1305031102160407000 + np.cumsum(rng.integers(32, 35, 120)) * 10**6  # crosses a second every 30 frames
    for k in rng.permutation(120):  # flat images: the value tells the frame
        save_depth(tmp_path / f"in/{times[k] // 10**9}.{times[k] % 10**9 // 1000:06d}.png", np.full((4, 5), 1000 + k))
    figures = normalize_depth(
        tmp_path / "in", tmp_path / "out", RANGE, split=SplitParams(guard=10), processes=1, on_error="fail"
    )
    store = DepthStore.open(tmp_path / "out")
    assert figures["images"] == 120
    assert store.frame_id.tolist() == list(range(120))
    assert store.time_ns.tolist() == times.tolist()
    assert np.allclose(store.preprocessing.to_mm(store.depth[:, 0, 0]), 1000 + np.arange(120), atol=0.1)
    parts = {part: np.sort(times[store.rows(part)]) for part in ("train", "val", "test")}
    assert parts["val"][0] - parts["train"][-1] > 20 * 32e6  # nanoseconds of the 20 frames at each border
    assert parts["test"][0] - parts["val"][-1] > 20 * 32e6


def test_big_endian_tiff_is_read_in_native_order(tmp_path):
    raw = np.array([[258, 4000], [1, 60000]], np.uint16)
    header = b"MM\x00*\x00\x00\x00\x08" + (9).to_bytes(2, "big")
    entries = [
        (256, 4, 2),
        (257, 4, 2),
        (258, 3, 16),
        (259, 3, 1),
        (262, 3, 1),
        (273, 4, 122),
        (277, 3, 1),
        (278, 4, 2),
    ]
    body = b""
    for tag, kind, value in [*entries, (279, 4, 8)]:
        packed = value.to_bytes(4, "big") if kind == 4 else value.to_bytes(2, "big") + b"\0\0"
        body += tag.to_bytes(2, "big") + kind.to_bytes(2, "big") + (1).to_bytes(4, "big") + packed
    (tmp_path / "1.tif").write_bytes(header + body + bytes(4) + raw.astype(">u2").tobytes())
    assert (read_depth(tmp_path / "1.tif") == raw).all()


def test_the_range_comes_from_params_else_the_recording_else_is_warned_about(tmp_path):
    folder = depth_folder(tmp_path / "in", 4)
    recording = tmp_path / "recording.json"
    depth = {"unit_mm": 0.5, "invalid": [0, 7], "height_range": [200, 3000]}
    recording.write_text(json.dumps({"fps": 10, "cameras": [], "joints": [], "depth": depth}))
    run(folder, tmp_path / "a", NormalizeParams(), recording=recording)
    assert DepthStore.open(tmp_path / "a").preprocessing == Preprocessing(
        height_range=(200, 3000), invalid=(0, 7), unit_mm=0.5
    )
    run(folder, tmp_path / "b", RANGE, recording=recording)
    assert DepthStore.open(tmp_path / "b").preprocessing == Preprocessing(height_range=(500, 4500), unit_mm=0.5)
    with pytest.warns(UserWarning, match=r"height_range is not set.*--set normalize.height_range=\[500,4500\]"):
        run(folder, tmp_path / "c", NormalizeParams())
    assert DepthStore.open(tmp_path / "c").preprocessing == Preprocessing()


@pytest.mark.filterwarnings("ignore:normalize.height_range is not set")
def test_how_a_folder_is_mapped_and_split_is_said_each_time(tmp_path, capsys):
    folder = depth_folder(tmp_path / "in", 60)
    said = f"{folder}: normalize.height_range [0, 65535]; "
    said += "train 11, val 4, test 5, left out between them 40 (data.split.guard)"
    for _ in range(2):  # the second time from the cache
        normalized(folder, Params())
        assert said in capsys.readouterr().err.splitlines()
    (folder / "000058.png").write_bytes((folder / "000001.png").read_bytes())
    run(folder, tmp_path / "out")
    assert (
        "left out between them 1 (data.split.guard); 1 of these repeated from another part" in capsys.readouterr().err
    )


def test_values_outside_the_range_are_warned_about(tmp_path):
    with pytest.warns(UserWarning, match="of the valid pixels lie outside height_range"):
        run(depth_folder(tmp_path / "in", 4), tmp_path / "a", NormalizeParams(height_range=(900, 1100)))


def test_the_command_writes_the_file_and_prints_the_figures(stage, tmp_path):
    depth_folder(tmp_path / "in", 3)
    result = stage(
        "normalize", "in", "out.hdf5", "--set", "normalize.height_range=[500,4500]", "--set", "data.split.guard=0"
    )
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["images"] == 3
    with h5py.File(tmp_path / "out.hdf5") as file:
        assert sorted(file) == ["depth", "episode", "frame_id", "split", "valid"]
