"""Photographs for CLIP: prepared as by open_clip, whatever their kind; and those that are refused."""

import shutil
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from conftest import photo_folder
from pictures import PNG_CHUNKS, write_png
from PIL import Image
from test_clip_grids import small

from sightline.clip import GridStore, LiveGrids
from sightline.clip.extraction import extract_grids
from sightline.clip.params import VerifyParams
from sightline.clip.photographs import Preparation, prepare
from sightline.clip.tokens import GridEncoder
from sightline.clip.verification import verify_grids
from sightline.core.errors import UserError
from sightline.recording.names import Naming

pytestmark = pytest.mark.filterwarnings("ignore:grids.pretrained is random")


@pytest.mark.parametrize("mode", ["shortest", "squash"])
@pytest.mark.parametrize("size", [(60, 80), (300, 200), (64, 64)])
def test_photographs_are_prepared_as_by_open_clip(tmp_path, mode, size):
    path = photo_folder(tmp_path, [1], size) / "photo_000001.jpg"
    ours = prepare(path, Preparation(64, mode, "bicubic")).float()
    transform = open_clip.image_transform(64, False, (0, 0, 0), (1, 1, 1), resize_mode=mode, interpolation="bicubic")
    theirs = transform(Image.open(path)) * 255
    assert (ours - theirs).abs().mean() < 0.05
    assert (ours - theirs).abs().max() <= 2


# ---------------------------------------------------------------- photographs of every kind


def odd_photograph(path: Path) -> None:
    """Write the kind of image that the file name says."""
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    image = Image.fromarray(pixels)
    kind = path.stem.split("_")[0]
    if kind in ("CMYK", "L", "P", "RGBA", "bilevel", "LA"):
        image.convert(kind.replace("bilevel", "1")).save(path)
    elif kind == "exif":
        exif = Image.Exif()
        exif[0x0112] = 6
        image.save(path, exif=exif)
    elif kind == "deep":
        Image.fromarray(pixels[..., 0].astype(np.uint16) * 200).save(path)
    elif kind == "animated":
        image.save(path, save_all=True, append_images=[image.rotate(90), image.rotate(180)])
    elif kind == "truncated":
        image.save(path)
        path.write_bytes(path.read_bytes()[:-300])
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "text":
        path.write_text("not an image")
    elif kind == "bomb":
        Image.new("1", (20000, 20000)).save(path)
    elif kind == "oblong":
        Image.new("RGB", (60000, 2)).save(path)


@pytest.mark.parametrize(
    ("name", "change"),
    [("CMYK_1.jpg", "CMYK"), ("L_1.jpg", "L"), ("P_1.png", "P"), ("P_1.gif", "P"), ("RGBA_1.png", "RGBA"),
     ("bilevel_1.png", "1"), ("LA_1.png", "LA"), ("exif_1.jpg", "EXIF orientation")],
)  # fmt: skip
def test_images_of_other_modes_become_rgb_as_by_pillow_and_it_is_said(tmp_path, name, change):
    folder = photo_folder(tmp_path / "photos", [2])
    odd_photograph(folder / name)
    prepared = prepare(folder / name, Preparation(32, "squash", "bicubic")).float()
    with Image.open(folder / name) as image:
        upright = image.transpose(Image.Transpose.ROTATE_270) if change.startswith("EXIF") else image
        expected = np.asarray(upright.convert("RGB").resize((32, 32), Image.Resampling.BICUBIC), np.float32)
    assert (prepared - torch.from_numpy(expected).permute(2, 0, 1)).abs().mean() < 0.6  # noise is the worst to resize
    with pytest.warns(UserWarning, match=rf"1 of 2 images have {change}: .*\({name}\)"):
        figures = extract_grids([folder], tmp_path / "g.hdf5", small())
    assert figures["changed"] == {change.replace(" ", "_"): 1}


FAULTS = {
    "deep_1.png": "pixels of more than 8 bits",
    "animated_1.gif": "3 pictures in one file",
    "animated_1.webp": "3 pictures in one file",
    "truncated_1.jpg": "broken image",
    "truncated_1.png": "broken image",
    "empty_1.jpg": "not an image that Pillow knows",
    "text_1.jpg": "not an image that Pillow knows",
    "bomb_1.png": "more than 100,000,000 pixels",
    "oblong_1.png": "too oblong",
}


@pytest.mark.parametrize("name", FAULTS)
def test_images_that_cannot_be_used_fail_or_are_left_out(tmp_path, name):
    folder = photo_folder(tmp_path / "photos", [2, 3])
    odd_photograph(folder / name)
    with pytest.raises(UserError, match=rf"1 of 3 images cannot be read; mend them.*\n.*{name}: .*{FAULTS[name]}"):
        extract_grids([folder], tmp_path / "g.hdf5", small())
    assert not (tmp_path / "g.hdf5").exists()
    with pytest.warns(UserWarning, match=f"1 of 3 images left out; .*{name}"):
        figures = extract_grids([folder], tmp_path / "g.hdf5", small(), on_error="skip")
    assert (figures["images"], figures["skipped"]) == (2, 1)
    store = GridStore(tmp_path / "g.hdf5")
    assert (store.image_ids.tolist(), store.skipped_ids.tolist()) == ([2, 3], [1])
    (tmp_path / "photos/photo_000002.jpg").unlink()
    (tmp_path / "photos/photo_000003.jpg").unlink()
    with pytest.raises(UserError, match="1 of 1 images cannot be read; none is left"):
        extract_grids([folder], tmp_path / "h.hdf5", small(), on_error="skip")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "no images"),
        (["a_1.jpg", "b_01.jpg"], "b_01.jpg: same image id 1 as a_1.jpg"),
        (["a.jpg"], r"photos: 1 of 2 file names do not end in a number that stands alone \(a.jpg\); .* --ids FILE"),
        ([f"a_{2**63}.jpg"], "is beyond 64 bits"),
    ],
)
def test_folders_without_an_image_id_for_each_image_are_refused(tmp_path, names, message):
    photo_folder(tmp_path / "photos", [5] if names else [])
    for name in names:
        shutil.copy(tmp_path / "photos/photo_000005.jpg", tmp_path / "photos" / name)
    with pytest.raises(UserError, match=message):
        extract_grids([tmp_path / "photos"], tmp_path / "g.hdf5", small())
    assert not (tmp_path / "g.hdf5").exists()


def test_the_same_id_in_two_folders_is_refused_and_other_files_are_named(tmp_path):
    a, b = photo_folder(tmp_path / "a", [1]), photo_folder(tmp_path / "b", [1])
    with pytest.raises(UserError, match=r"b/photo_000001.jpg: same image id 1 as .*a/photo_000001.jpg"):
        extract_grids([a, b], tmp_path / "g.hdf5", small())
    (a / "README.txt").write_text("hello")
    with pytest.warns(UserWarning, match=r"ignored, not images: .*README.txt"):
        extract_grids([a], tmp_path / "g.hdf5", small())


def test_photographs_without_numbers_take_their_ids_from_a_file(tmp_path):
    folder, names = photo_folder(tmp_path / "photos", [1, 2, 3]), ["0b_1e", "0a_2f", "0c_9d"]
    for i, name in enumerate(names, 1):
        (folder / f"photo_{i:06d}.jpg").rename(folder / f"{name}.jpg")
    with pytest.raises(UserError, match="3 of 3 file names do not end in a number that stands alone"):
        extract_grids([folder], tmp_path / "g.hdf5", small())
    ids = tmp_path / "ids.csv"
    for column, expected in (("7 5 6", [5, 6, 7]), ("ImageC ImageA ImageB", [0, 1, 2])):
        values = column.split()
        ids.write_text("file_name,id\n" + "".join(f"{n}.jpg,{v}\n" for n, v in zip(names, values, strict=True)))
        extract_grids([folder], tmp_path / "g.hdf5", small(), naming=Naming(ids))
        store, live = GridStore(tmp_path / "g.hdf5"), LiveGrids([folder], small(), naming=Naming(ids))
        assert store.image_ids.tolist() == expected == live.image_ids.tolist()
        assert (store.read(expected) == live.read(expected)).all()
        by_name = {"0b_1e.jpg": store[expected[2]], "0a_2f.jpg": store[expected[0]]}
        for name, grid in by_name.items():
            path = folder / name
            alone = GridEncoder(small(), torch.device("cpu")).encode(prepare(path, live.encoder.preparation)[None])
            assert np.allclose(alone[0].numpy(), grid, atol=2e-3)
            assert (store[path.stem if column[0] == "7" else values[names.index(path.stem)]] == grid).all()
        figures = verify_grids(tmp_path / "g.hdf5", [folder], small(), VerifyParams(), naming=Naming(ids))
        assert figures["images"] == 3
    with pytest.raises(UserError, match="image ids must be whole numbers"):
        live.read(["5"])


@pytest.mark.parametrize("behind", [False, True])
@pytest.mark.parametrize("place", PNG_CHUNKS)
def test_png_that_is_to_be_turned_is_verified(tmp_path, place, behind):
    folder, pixels = tmp_path / "photos", np.zeros((60, 90, 3), np.uint8)
    folder.mkdir()
    pixels[:30, :, 0], pixels[:, :45, 1] = 255, 200
    write_png(folder / "000005.png", pixels, PNG_CHUNKS[place](6), behind=behind)
    with pytest.warns(UserWarning, match="1 of 1 images have EXIF orientation: turned as it says"):
        extract_grids([folder], tmp_path / "g.hdf5", small())
    assert verify_grids(tmp_path / "g.hdf5", [folder], small(), VerifyParams())["images"] == 1
