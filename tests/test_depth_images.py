"""Depth images as a channel of the views: read, resized, learnt from, and measured."""

import h5py
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import torchvision
from conftest import depth_folder
from test_cameras import IMAGE_DESIGNS, packed, pixels, refused
from test_fusion_training import CAMERAS, SMALL, pack, train, write_recording

from sightline.depth.normalize import NormalizeParams, normalize_depth
from sightline.fusion import ImageJointEncoder, load_policy
from sightline.fusion.augmentation import shift_images
from sightline.fusion.chunks import Chunks, read_features
from sightline.fusion.depth_images import resize_depth
from sightline.fusion.evaluation import EvaluateFusionParams, evaluate_fusion
from sightline.fusion.network import NO_READING, ResNet18Encoder
from sightline.fusion.views import Views
from sightline.predict import act
from sightline.recording.split import SplitParams
from sightline.training.order import Draw

NAN = float("nan")


def write_depth(path, views: Views, values_N: np.ndarray):
    """A file as stages/normalize.py writes it: each image is one number, without a reading in its first rows."""
    count = len(views.frame_id)
    depth, valid = np.ones((count, 16, 16), "f4") * values_N[:, None, None].astype("f4"), np.ones((count, 16, 16), bool)
    valid[:, :4] = False
    with h5py.File(path, "w") as file:
        file["depth"], file["valid"], file["frame_id"] = depth, valid, views.frame_id
        file.attrs["preprocessing"] = "{}"
    return path


@pytest.fixture
def data(tmp_path):
    return pack(write_recording(tmp_path / "recording"))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("design", IMAGE_DESIGNS)
@pytest.mark.parametrize("cameras", [0, 2])
def test_a_network_takes_depth_beside_any_number_of_views(design, cameras, channels):
    torch.manual_seed(0)
    encoder = ImageJointEncoder(4, 32, 16, design=design, cameras=cameras, depth=channels)
    depth = torch.rand(2, channels, 32, 32, requires_grad=True)
    feature = encoder(views=pixels(cameras), joint=torch.zeros(2, 4), depth=depth)
    assert feature.shape == (2, 16)
    feature.sum().backward()
    assert all(depth.grad[:, channel].abs().sum() > 0 for channel in range(channels))
    if design in ("stacked", "images_only"):
        assert encoder.image_encoders[0].in_channels == 3 * cameras + channels


def test_wrong_depth_is_one_line():
    joint, views = torch.zeros(2, 4), pixels(3)
    encoder = ImageJointEncoder(4, 16, 16, depth=1)
    for depth, message in (
        (None, "^depth is missing: give it to the encoder$"),
        (torch.zeros(2, 32, 32), r"^depth must be \[B, 1, H, W\], not \[2, 32, 32\]"),
        (torch.zeros(2, 1, 32, 32).int(), "^depth must be floating point in -1..1, not torch.int32; normalise it$"),
        (torch.full((2, 1, 32, 32), 900.0), r"^depth must be floating point in -1..1, or -2: no reading, not 900..900"),
        (torch.zeros(2, 1, 16, 16), "^depth must have the size of the views, 32x32, not 16x16; resize it$"),
    ):
        refused(message, encoder, *views, joint, depth=depth)
    refused(
        "^this encoder takes no depth", ImageJointEncoder(4, 16, 16), *views, joint, depth=torch.zeros(2, 1, 32, 32)
    )
    refused("^design joints_only sees no images, so no depth images", ImageJointEncoder, design="joints_only", depth=1)
    refused("^in_channels must be a multiple of 3, not 4", ResNet18Encoder, in_channels=4)
    refused("^in_channels must be a multiple of 3 beside depth_channels=1, not 4", ResNet18Encoder, in_channels=5,
            depth_channels=1)  # fmt: skip


def test_pretrained_filters_see_depth_as_a_grey_picture(tmp_path):
    plain = torchvision.models.resnet18()
    torch.save(plain.state_dict(), tmp_path / "r.pt")
    wide = ResNet18Encoder(pretrained=tmp_path / "r.pt", in_channels=7, conv1_init="copy", depth_channels=1)
    weight = wide.resnet[0].weight
    assert torch.equal(weight[:, 3:6], plain.conv1.weight)
    assert torch.allclose(weight[:, 6], plain.conv1.weight.sum(1))


def test_the_mean_of_what_was_measured_and_a_number_where_nothing_was():
    images = torch.tensor([[0.5, 0.1, NAN, NAN], [0.3, 0.1, NAN, 0.4], [NAN, 0.2, 1.0, 1.0], [NAN, 0.4, -1.0, -1.0]])
    small = resize_depth(images[None, None], 2)[0, 0]
    assert torch.allclose(small, torch.tensor([[0.25, NO_READING], [0.3, 0.0]]))
    assert torch.equal(resize_depth(images[None, None], 4)[0, 0], images.nan_to_num(NO_READING))
    large = resize_depth(images[None, None], 8)[0, 0]
    assert torch.equal(large, images.nan_to_num(NO_READING).repeat_interleave(2, 0).repeat_interleave(2, 1))


def test_depth_moves_by_itself_and_keeps_its_numbers():
    image = torch.arange(16.0).view(1, 1, 4, 4)
    assert torch.equal(shift_images(image, torch.tensor([[0.5, 0.5]]), 1), image)
    assert shift_images(image, torch.tensor([[0.99, 0.0]]), 1)[0, 0, 0].tolist() == [4, 4, 5, 6]


def test_batches_hold_the_depth_of_their_frames(data, tmp_path):
    views = Views.open(data)
    path = write_depth(tmp_path / "depth.hdf5", views, np.arange(48) / 50)
    batch = Chunks(views, 4, 1, read_features([path], views))[Draw(np.array([3, 7]), np.zeros((2, 0), np.float32))]
    assert batch["depth_images"].shape == (2, 1, 32, 32)
    assert batch["depth_images"][:, 0, 31, 31].tolist() == pytest.approx([3 / 50, 7 / 50])
    assert (batch["depth_images"][:, :, :8] == NO_READING).all()


def test_depth_that_tells_the_actions_is_learnt_from_and_its_worth_measured(tmp_path):
    data = pack(write_recording(tmp_path / "recording"), test=0.3)  # whose views tell nothing
    views, worth = Views.open(data), {}
    params = SMALL.model_copy(update={"epochs": 12, "jitter": 0.0, "target": "absolute", "patience": 12})
    for name, values in (("told", views.actions[:, 0]), ("noise", np.random.default_rng(0).uniform(-1, 1, 48))):
        path = write_depth(tmp_path / f"{name}.hdf5", views, values)
        weights = train(data, name, "images_only", params=params, features=[path])
        figures = evaluate_fusion(weights, data, tmp_path / f"e{name}", EvaluateFusionParams(), [path])
        worth[name] = figures["use"]["shuffled_depth_images"]
    assert worth["told"] > 0.5 + worth["noise"]


@pytest.mark.parametrize("design", ["separate", "shared"])
def test_the_other_designs_train_with_depth_and_act(data, tmp_path, design):
    path = write_depth(tmp_path / "depth.hdf5", Views.open(data), np.arange(48) / 50)
    params = SMALL.model_copy(update={"epochs": 1, "view_dropout": 0.5, "objective": "cvae", "weights": "td"})
    weights = train(data, design=design, params=params, features=[path])
    assert load_policy(weights).config.extras == {"depth_images": (1, 16, 16)}
    assert act(weights, data, tmp_path / "actions.parquet", [path]) == 48
    refused("was trained with depth images as a further input; add --feature PATH of them", act, weights, data,
            tmp_path / "a.parquet")  # fmt: skip
    other = write_depth(tmp_path / "other.hdf5", Views.open(data), np.arange(48) / 50)
    with h5py.File(other, "r+") as file:
        file.attrs["preprocessing"] = '{"fit": "crop"}'
    refused("made by another network, or with other settings", act, weights, data, tmp_path / "a.parquet", [other])
    refused("design joints_only sees no images", train, data, design="joints_only", features=[path])


def test_what_normalize_writes_is_taken_whole(tmp_path):
    """From images of a recording to actions; another recording of the same frame ids is refused."""
    rec = write_recording(tmp_path / "rec")
    depth_folder(tmp_path / "d", 48)
    (rec / "depth").mkdir()
    for i in range(48):
        (tmp_path / f"d/{i:06d}.png").rename(rec / f"depth/{i + 10:06d}.png")
    text = (rec / "recording.json").read_text()
    info = '"depth": {"unit_mm": 1.0, "invalid": [0], "height_range": [500, 1500]}'
    (rec / "recording.json").write_text(text.replace('"depth": null', info))
    data = packed(rec, CAMERAS)
    index, depth = tmp_path / "index/depth.parquet", tmp_path / "depth.hdf5"
    recording = rec / "recording.json"

    def normalise():
        normalize_depth(rec / "depth", depth, NormalizeParams(), split=SplitParams(), index=index, recording=recording,
                        processes=1)  # fmt: skip

    normalise()
    before = depth.read_bytes()
    normalise()
    assert depth.read_bytes() == before
    weights = train(data, params=SMALL.model_copy(update={"epochs": 1}), features=[depth])
    figures = evaluate_fusion(weights, data, tmp_path / "e", EvaluateFusionParams(), [depth])
    assert "shuffled_depth_images" in figures["use"]
    assert act(weights, rec, tmp_path / "actions.parquet", [depth]) == 48
    assert pq.read_metadata(tmp_path / "actions.parquet").num_rows == 48
    with h5py.File(depth, "r+") as file:
        file["depth"][20, 3, 3] = NAN
    refused("depth.hdf5: depth: holds NaN or infinity; write it again", train, data, "n", features=[depth])
    with h5py.File(depth, "r+") as file:
        file.attrs["recording"] = "0" * 32
    refused("depth.hdf5: made from another recording than .*, or before that one changed", train, data, "o",
            features=[depth])  # fmt: skip
    with h5py.File(depth, "r+") as file:  # as an older version wrote it
        file["frame_id"][...] = file["frame_id"][:] + np.where(np.arange(48) > 0, 1000, 0)
        del file.attrs["recording"]
    refused(r"depth.hdf5: lacks 47 of 48 frames of .*first 11", train, data, "p", features=[depth])
