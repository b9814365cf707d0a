"""Segmentation models applied to images, videos and slices of one's own: what the training sees, and clear refusals."""

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from videos import write_video

from sightline.core.errors import UserError
from sightline.predict import segment
from sightline.recording.split import SplitParams
from sightline.segmentation.arrays import read_slices
from sightline.segmentation.model import SegmentationConfig, SegmentationModel, load_model, save_model


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory) -> Path:
    """A network that knows red from the rest."""
    torch.manual_seed(0)
    config = SegmentationConfig(classes=("other", "red"), image_size=(32, 32), channels=(8,) * 6, camera="front")
    model = SegmentationModel(config).train()
    images = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)
    images[0, 0, 8:24, 8:24], images[1, 0, :16] = 200, 200
    truth = (images[:, 0] > 0).long()
    model.fit_normalisation(images)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(100):
        loss = torch.nn.functional.cross_entropy(model(images), truth)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    path = tmp_path_factory.mktemp("segmenter") / "model.safetensors"
    save_model(path, model)
    return path


def test_masks_have_the_names_and_sizes_of_the_images(segmenter, tmp_path):
    folder = tmp_path / "mine/rgb/front"
    folder.mkdir(parents=True)
    pixels = np.zeros((64, 64, 3), np.uint8)
    pixels[16:48, 16:48, 0] = 200
    Image.fromarray(pixels).save(folder / "a red square.png")
    (tmp_path / "mine/recording.json").write_text("{}")
    assert segment(segmenter, tmp_path / "mine", tmp_path / "masks") == 1
    mask = np.asarray(Image.open(tmp_path / "masks/a red square.png"))
    assert mask.shape == (64, 64)
    assert ((mask == 1) == (pixels[..., 0] > 0)).mean() > 0.95
    with pytest.raises(UserError, match=r"masks: is there already; name a folder to make"):
        segment(segmenter, folder, tmp_path / "masks")
    Image.fromarray(pixels[..., 0].astype(np.uint16)).save(folder / "deep.png")
    with pytest.raises(UserError, match=r"deep.png: pixels of more than 8 bits"):
        segment(segmenter, folder, tmp_path / "others")
    assert not (tmp_path / "others").exists()


def red_squares(count: int, size: tuple[int, int] = (32, 32)) -> np.ndarray:
    """Pictures of red squares on black, uint8 [N, H, W, 3]."""
    pixels = np.zeros((count, *size, 3), np.uint8)
    for i, picture in enumerate(pixels):
        picture[4 + i : 20 + i, 6:24, 0] = 200
    return pixels


def test_a_video_gives_the_masks_of_its_pictures(segmenter, tmp_path):
    pictures = list(red_squares(3, (40, 48)))
    (tmp_path / "images").mkdir()
    for i, picture in enumerate(pictures):
        Image.fromarray(picture).save(tmp_path / f"images/{i:06d}.png")
    assert segment(segmenter, write_video(tmp_path / "v.mp4", pictures), tmp_path / "of_video") == 3
    segment(segmenter, tmp_path / "images", tmp_path / "of_images")
    for i in range(3):
        masks = [np.asarray(Image.open(tmp_path / f"{of}/{i:06d}.png")) for of in ("of_video", "of_images")]
        np.testing.assert_array_equal(*masks)
        assert ((masks[0] == 1) == (pictures[i][..., 0] > 0)).mean() > 0.9


def save_grey_model(path: Path) -> SegmentationModel:
    """A model that was not trained."""
    torch.manual_seed(0)
    config = SegmentationConfig(classes=("a", "b", "c"), image_size=(32, 32), channels=(8,) * 6, image_channels=1)
    model = SegmentationModel(config).eval()
    noise = torch.randint(0, 256, (8, 1, 32, 32), dtype=torch.uint8)
    (last,) = [bias for name, bias in model.named_parameters() if bias.shape == (3,) and name.endswith("bias")]
    with torch.no_grad():  # each class somewhere
        last -= model(noise).mean(dim=(0, 2, 3))
    save_model(path, model)
    return model


def test_slices_give_the_masks_of_what_the_training_sees(tmp_path):
    """Forty slices, more than rows; grey values of any range, which are scaled by patient."""
    model = save_grey_model(tmp_path / "model.safetensors")
    rng = np.random.default_rng(0)
    group = np.repeat(["p1", "p2", "p3", "p4", "p5"], 8)
    image = rng.normal(size=(40, 32, 32)) * np.repeat([1, 5, 20, 100, 3], 8)[:, None, None]
    np.savez(tmp_path / "slices.npz", image=image, group=group, spacing=[0.5, 0.7], label=np.zeros(image.shape, int))
    seen = read_slices(tmp_path / "slices.npz", SplitParams()).image
    expected = model.probabilities(torch.from_numpy(seen[:, None])).argmax(dim=1).numpy()
    np.savez(tmp_path / "slices.npz", image=image, group=group, spacing=[0.5, 0.7])  # without masks
    assert segment(tmp_path / "model.safetensors", tmp_path / "slices.npz", tmp_path / "masks.npz") == 40
    with np.load(tmp_path / "masks.npz") as made:
        np.testing.assert_array_equal(made["label"], expected)
        assert (made["label"].dtype, set(made.files)) == (np.uint8, {"label", "group", "spacing"})
        np.testing.assert_array_equal(made["group"], group)
    segment(tmp_path / "model.safetensors", tmp_path / "slices.npz", tmp_path / "folder", "3d")
    with np.load(tmp_path / "folder/slices.npz") as made:
        kept = made["label"] != 0
        assert kept.sum() < (expected != 0).sum()
        np.testing.assert_array_equal(made["label"][kept], expected[kept])


def test_a_folder_of_slices_and_slices_in_colour_give_masks(segmenter, tmp_path):
    pictures = red_squares(4, (40, 48))
    (tmp_path / "slices").mkdir()
    for part, rows in (("train", slice(0, 3)), ("val", slice(3, 4))):
        np.savez(tmp_path / f"slices/{part}.npz", images=pictures[rows])
    assert segment(segmenter, tmp_path / "slices", tmp_path / "masks") == 4
    found = np.concatenate([np.load(tmp_path / f"masks/{part}.npz")["label"] for part in ("train", "val")])
    assert ((found == 1) == (pictures[..., 0] > 0)).mean() > 0.9
    save_grey_model(tmp_path / "grey.safetensors")
    with pytest.raises(UserError, match=r"train.npz: image: colour, but .*grey.safetensors was trained on grey"):
        segment(tmp_path / "grey.safetensors", tmp_path / "slices", tmp_path / "no")
    with pytest.raises(UserError, match=r"train.npz: has no array volume or group, which tells its volumes"):
        segment(segmenter, tmp_path / "slices", tmp_path / "no", "3d")
    assert not (tmp_path / "no").exists()


def test_grey_videos_are_for_models_of_grey_images(segmenter, tmp_path):
    save_grey_model(tmp_path / "grey.safetensors")
    rng = np.random.default_rng(0)
    grey = write_video(tmp_path / "grey.mkv", list(rng.integers(0, 256, (2, 32, 32), np.uint8)))
    assert segment(tmp_path / "grey.safetensors", grey, tmp_path / "grey") == 2
    assert segment(segmenter, grey, tmp_path / "colour") == 2  # as grey files of images
    of_colour = write_video(tmp_path / "v.mp4", list(red_squares(2)))
    with pytest.raises(UserError, match=r"v.mp4: pictures are colour of 8 bits \(gbrp\), but .* takes grey pictures"):
        segment(tmp_path / "grey.safetensors", of_colour, tmp_path / "no")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ("depth.mkv", r"depth.mkv: pictures are grey of 16 bits .* takes pictures of 8 bits"),
        ("a.png", r"a.png: segment takes a folder of images, a recording, a video, .npz of slices, or volumes"),
        ("none.mp4", r"none.mp4: cannot be read: No such file"),
    ],
)
def test_data_of_another_kind_are_one_line_that_says_what_is_taken(data, words, segmenter, tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    write_video(tmp_path / "depth.mkv", list(np.full((2, 16, 16), 900, np.uint16)))
    with pytest.raises(UserError, match=words) as error:
        segment(segmenter, tmp_path / data, tmp_path / "out")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_loading_a_model_warns_of_nothing(segmenter):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_model(segmenter)
