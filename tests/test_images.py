"""The one reader of pictures: upright whatever the format, and a line for what it does not read."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import PNG_CHUNKS, TAG, TIFF_LAYOUTS, chunk, exif_of, turned, write_png, write_tiff
from PIL import Image

from sightline.clip.photographs import Preparation, inspect, prepare
from sightline.core.errors import UserError
from sightline.recording.images import read_depth, read_grey, read_mask, read_rgb, read_size

READERS = {
    "depth": (read_depth, np.uint16, ()),
    "mask": (read_mask, np.uint8, ()),
    "wide mask": (read_mask, np.uint16, ()),
    "grey": (read_grey, np.uint8, ()),
    "rgb": (read_rgb, np.uint8, (3,)),
}


def picture(kind: str, size: tuple[int, int], seed: int) -> np.ndarray:
    _, dtype, channels = READERS[kind]
    return np.random.default_rng(seed).integers(0, np.iinfo(dtype).max, (*size, *channels), dtype, endpoint=True)


SIZES = st.tuples(st.integers(1, 40), st.integers(1, 40))


@settings(max_examples=150, deadline=None)
@given(
    kind=st.sampled_from(sorted(READERS)), layout=st.sampled_from(TIFF_LAYOUTS), orientation=st.integers(1, 8),
    size=SIZES, seed=st.integers(0, 9),
)  # fmt: skip
def test_a_tiff_is_read_as_by_tifffile_and_turned(tmp_path_factory, kind, layout, orientation, size, seed):
    path, stored = tmp_path_factory.mktemp("t") / "1.tif", picture(kind, size, seed)
    write_tiff(path, stored, orientation, layout)
    if layout not in ("tiff_lzw", "packbits"):  # which tifffile does not decode without another package
        assert (tifffile.imread(path) == stored).all()
    read = READERS[kind][0](path)
    assert read.dtype == stored.dtype
    assert read.tolist() == turned(stored, orientation).tolist()
    assert read_size(path) == read.shape[:2]


@settings(max_examples=100, deadline=None)
@given(
    kind=st.sampled_from(sorted(READERS)), place=st.sampled_from(sorted(PNG_CHUNKS)), behind=st.booleans(),
    orientation=st.integers(1, 8), size=SIZES, seed=st.integers(0, 9),
)  # fmt: skip
def test_a_png_is_turned_wherever_it_keeps_its_orientation(
    tmp_path_factory, kind, place, behind, orientation, size, seed
):
    path, stored = tmp_path_factory.mktemp("t") / "1.png", picture(kind, size, seed)
    write_png(path, stored, PNG_CHUNKS[place](orientation), behind=behind)
    read = READERS[kind][0](path)
    assert read.tolist() == turned(stored, orientation).tolist()
    assert read_size(path) == read.shape[:2]
    if kind in ("grey", "rgb"):
        changes = {1: None if kind == "rgb" else "L"}
        assert inspect(path, path.read_bytes()) == changes.get(orientation, "EXIF orientation")


def upright_quarters(height: int = 80, width: int = 48) -> np.ndarray:
    """Red above, green left."""
    y, x = np.mgrid[:height, :width]
    return np.stack([255 * (2 * y < height), 255 * (2 * x < width), 128 + 0 * x], axis=-1).astype(np.uint8)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["1.jpg", "1.webp", "1.tif", "1.png"])
def test_all_readers_of_colour_see_the_same_upright_picture(tmp_path, name, orientation):
    picture, path = upright_quarters(), tmp_path / name
    candidates = (turned(picture, o) for o in range(1, 9))
    stored = next(a for a in candidates if np.array_equal(turned(a, orientation), picture))
    exif = Image.Exif()
    exif[TAG] = orientation
    Image.fromarray(stored).save(path, exif=exif, **({"quality": 95} if name.endswith("jpg") else {}))
    assert np.abs(read_rgb(path).astype(int) - picture).mean() < 3  # of a lossy format
    prepared = prepare(path, Preparation(32, "squash", "bilinear")).permute(1, 2, 0).numpy()
    expected = np.asarray(Image.fromarray(picture).resize((32, 32), Image.Resampling.BILINEAR))
    assert np.abs(prepared.astype(int) - expected).mean() < 4


@pytest.mark.parametrize("behind", [False, True])
def test_exif_wins_over_xmp_and_damaged_notes_turn_nothing(tmp_path, behind):
    stored, path = picture("rgb", (6, 9), 0), tmp_path / "1.png"
    write_png(path, stored, PNG_CHUNKS["xmp"](3), PNG_CHUNKS["exif"](8), behind=behind)
    assert (read_rgb(path) == turned(stored, 8)).all()
    for kind, note in (
        (b"eXIf", b"\0\0\0\0"), (b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(b"\nexif\n 3\nzz")),
        (b"tEXt", b"Raw profile type APP1\0\ngeneric\n 3\n0"), (b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0<x/>"),
        (b"eXIf", exif_of(9)),
    ):  # fmt: skip
        write_png(path, stored, chunk(kind, note), behind=behind)
        assert (read_rgb(path) == stored).all()


@pytest.mark.parametrize(
    ("pixels", "mode"), [(3, "1"), (2, "P"), (251, "L")], ids=["bilevel", "palette", "grey"]
)  # fmt: skip
def test_masks_hold_the_numbers_of_the_file(tmp_path, pixels, mode):
    ids = np.random.default_rng(0).integers(0, min(pixels, 255), (7, 9)).astype(np.uint8)
    ids = ids % 2 if mode == "1" else ids
    image = Image.fromarray(ids * 255 if mode == "1" else ids).convert("1" if mode == "1" else "L")
    if mode == "P":
        image = Image.fromarray(ids, "P")
        image.putpalette([7, 7, 7] * 256)
    image.save(tmp_path / "1.png")
    assert read_mask(tmp_path / "1.png").tolist() == ids.tolist()


def few_bits(bits: int, rows: list[list[int]]) -> bytes:
    """A grey PNG of 2 or 4 bits a pixel."""
    packed = b"".join(
        b"\0" + int("".join(f"{v:0{bits}b}" for v in row), 2).to_bytes(len(row) * bits // 8, "big") for row in rows
    )
    header = struct.pack(">IIBBBBB", len(rows[0]), len(rows), bits, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(packed)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("bits", [2, 4])
def test_masks_of_few_bits_are_not_spread(tmp_path, bits):
    rows = [[0, 1, 2, 3], [3, 2, 1, 0]]
    (tmp_path / "1.png").write_bytes(few_bits(bits, rows))
    assert read_mask(tmp_path / "1.png").tolist() == rows


# ---------------------------------------------------------------- what is not read


def plain_tiff(*, bits: int = 16, without: tuple[int, ...] = ()) -> bytes:
    pixels = bytes(6 * 8 * 8)
    tags = [(256, 8), (257, 6), (258, bits), (259, 1), (262, 1), (273, 0), (277, 1), (278, 6), (279, len(pixels))]
    tags = [tag for tag in tags if tag[0] not in without]
    start = 8 + 2 + 12 * len(tags) + 4
    entries = b"".join(struct.pack("<HHII", t, 3 if t == 258 else 4, 1, start if t == 273 else v) for t, v in tags)
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + pixels


def write_odd(path: Path) -> None:
    """A file of the kind that its name says."""
    numbers = np.arange(48).reshape(6, 8)
    kind = path.stem
    if kind in ("float16", "float64"):
        tifffile.imwrite(path, numbers.astype(kind))
    elif kind == "big endian BigTIFF":
        tifffile.imwrite(path, numbers.astype(np.uint16), bigtiff=True, byteorder=">")
    elif kind == "pages":
        tifffile.imwrite(path, np.zeros((50, 6, 8), np.uint16), photometric="minisblack")
    elif kind == "animated":
        frame = Image.fromarray(numbers.astype(np.uint8))
        frame.save(path, save_all=True, append_images=[frame.rotate(90), frame.rotate(180)])
    elif kind == "rgb16":
        tifffile.imwrite(path, np.zeros((6, 8, 3), np.uint16), photometric="rgb")
    else:
        path.write_bytes(
            {
                "10 bits": plain_tiff(bits=10),
                "no width": plain_tiff(without=(256,)),
                "no dimensions": plain_tiff(without=(256, 257)),
                "heic": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic",
                "exr": b"\x76\x2f\x31\x01\x02\0\0\0",
                "pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
                "12-bit jpeg": b"\xff\xd8\xff\xc1\0\x0b\x0c\0\x08\0\x08\x01\x01\x11\0" + bytes(40),
                "ppm16": b"P6 2 1 65535\n" + bytes(12),
            }[kind]
        )


ODD = {
    "float16.tif": "not read here: a TIFF of 16-bit floating point numbers; convert it",
    "float64.tif": "not read here: a TIFF of 64-bit floating point numbers; convert it",
    "10 bits.tif": "not read here: a TIFF of 10-bit whole numbers; convert it",
    "big endian BigTIFF.tif": "not read here: a BigTIFF",
    "heic.jpg": "not read here: an HEIC",
    "exr.png": "not read here: an OpenEXR file",
    "pointer.png": 'not read here: a git-LFS pointer; run "git lfs pull"',
    "12-bit jpeg.jpg": "not read here: a JPEG of 12 bits",
    "pages.tif": "50 pictures in one file",
    "animated.png": "3 pictures in one file",
    "animated.gif": "3 pictures in one file",
    "no width.tif": "broken image",
    "no dimensions.tif": "broken image",
}


@pytest.mark.parametrize("name", ODD)
@pytest.mark.parametrize("reader", [read_depth, read_mask, read_rgb, read_grey])
def test_what_is_not_read_is_one_line_for_every_reader(tmp_path, name, reader):
    write_odd(tmp_path / name)
    with pytest.raises(UserError) as raised:
        reader(tmp_path / name)
    assert str(raised.value).startswith(f"{tmp_path / name}: {ODD[name]}")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", ["rgb16.tif", "ppm16.ppm"])
def test_colours_of_16_bits_are_not_cut_to_8(tmp_path, name):
    write_odd(tmp_path / name)
    with pytest.raises(UserError, match="pixels of more than 8 bits"):
        read_rgb(tmp_path / name)


def test_a_mask_in_which_0_is_white_is_refused(tmp_path):
    tifffile.imwrite(tmp_path / "1.tif", np.eye(6, dtype=np.uint8), photometric="miniswhite")
    with pytest.raises(UserError, match="a TIFF in which 0 is white"):
        read_mask(tmp_path / "1.tif")
