"""Any number of cameras: encoders, policies and files of views of 0 to 8, and how pictures become square."""

import hashlib
import json

import numpy as np
import pytest
import torch
from conftest import recording_folder
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from test_fusion_training import SMALL, pack, train, write_recording

from sightline.core.errors import UserError
from sightline.fusion import FusionPolicy, ImageJointEncoder, load_policy
from sightline.fusion.evaluation import EvaluateFusionParams, evaluate_fusion
from sightline.fusion.policy import PolicyConfig, save_policy
from sightline.fusion.views import ViewParams, Views, pack_views
from sightline.recording.split import DataParams, SplitParams
from sightline.validation.validation import validate_recording

# keys of the state dict, hash of their names and shapes, sum of the feature: of three views, before there were others
OF_THREE = {
    "stacked": (132, "c6f0a1fe7ce88aa4", 36.2414),
    "separate": (376, "48ef42bff202eb9f", 18.7607),
    "shared": (132, "884affb0e91aa106", 18.1141),
    "images_only": (128, "fa177624ae85f76a", 43.7947),
    "joints_only": (10, "79bfcd437d2f7d8c", 9.9607),
}
STACKED = {1: 11_737_024, 2: 11_746_432, 3: 11_755_840, 4: 11_765_248, 8: 11_802_880}
IMAGE_DESIGNS = ("stacked", "separate", "shared", "images_only")


def pixels(count: int, batch: int = 2, size: int = 32) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(0, 256, (batch, 3, size, size), dtype=torch.uint8, generator=generator) for _ in range(count)]


def refused(message: str, call, *arguments, **named) -> None:
    with pytest.raises(UserError, match=message) as error:
        call(*arguments, **named)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("design", OF_THREE)
def test_three_views_give_what_they_gave_before_there_were_others(design):
    torch.manual_seed(0)
    encoder = ImageJointEncoder(design=design).eval()
    keys, names, total = OF_THREE[design]
    shapes = json.dumps({name: list(tensor.shape) for name, tensor in encoder.state_dict().items()})
    assert (len(encoder.state_dict()), hashlib.sha256(shapes.encode()).hexdigest()[:16]) == (keys, names)
    generator = torch.Generator().manual_seed(0)
    views = [torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8, generator=generator) for _ in range(3)]
    joints = torch.randn(2, 16, generator=generator)
    feature = encoder(*views, joints)
    assert feature.sum().item() == pytest.approx(total, rel=1e-4)
    named = dict(zip(("left_img", "right_img", "global_img"), views, strict=True))
    for again in (encoder(**named, joint=joints), encoder(views=views, joint=joints),
                  encoder(views=torch.stack(views, 1), joint=joints)):  # fmt: skip
        assert torch.equal(again, feature)


@pytest.mark.parametrize("cameras", range(1, 9))
@pytest.mark.parametrize("design", IMAGE_DESIGNS)
def test_every_camera_counts(design, cameras):
    """The feature has its shape, and a gradient reaches each view."""
    torch.manual_seed(0)
    encoder = ImageJointEncoder(4, 32, 16, design=design, cameras=cameras)
    views = [(view / 255).requires_grad_() for view in pixels(cameras)]
    feature = encoder(views=views, joint=torch.zeros(2, 4))
    assert feature.shape == (2, 16)
    feature.sum().backward()
    assert all(view.grad.abs().sum() > 0 for view in views)
    count = {"separate": cameras}.get(design, 1)
    assert len(encoder.image_encoders) == count


@pytest.mark.parametrize(("cameras", "parameters"), STACKED.items())
def test_a_camera_of_the_stack_costs_its_filters_alone(cameras, parameters):
    encoder = ImageJointEncoder(cameras=cameras)
    assert sum(p.numel() for p in encoder.parameters()) == parameters


def test_without_cameras_the_joints_are_left():
    encoder = ImageJointEncoder(4, design="joints_only", cameras=0)
    assert encoder(views=[], joint=torch.zeros(2, 4)).shape == (2, 256)
    assert encoder(joint=torch.zeros(2, 4)).shape == (2, 256)
    for design in IMAGE_DESIGNS:
        refused(f"^design {design} needs a camera; without any take joints_only$", ImageJointEncoder, design=design,
                cameras=0)  # fmt: skip


def test_another_number_of_views_is_one_line():
    joint, two = torch.zeros(2, 4), ImageJointEncoder(4, 16, 16, cameras=2)
    refused(r"^views must be 2 tensors \[B, 3, H, W\], one for each camera, not 3$", two, views=pixels(3), joint=joint)
    refused(r"^views must be \[B, 2, 3, H, W\], not \[2, 3, 3, 32, 32\]$", two, views=torch.stack(pixels(3), 1),
            joint=joint)  # fmt: skip
    refused(r"^views must be \[B, 2, 3, H, W\], not \[2, 3, 32, 32\]$", two, views=pixels(1)[0], joint=joint)
    refused(r"^this encoder takes 2 views: call it with views=\[...\] of as many", two, *pixels(3), joint)
    refused(r"^views\[1\] must be \[B, 3, H, W\], not \[2, 32, 32, 3\]", two, joint=joint,
            views=[pixels(1)[0], pixels(1)[0].permute(0, 2, 3, 1)])  # fmt: skip
    three = ImageJointEncoder(4, 16, 16)
    refused("^global_img is missing", three, *pixels(2), joint=joint)
    refused("^give views=..., or left_img, right_img, global_img, not both", three, *pixels(3), joint, views=pixels(3))
    refused("^joint is missing", three, *pixels(3))


@pytest.mark.parametrize(("old", "new"), [("nine", "stacked"), ("three", "separate")])
def test_designs_have_new_names_which_old_files_are_read_by(tmp_path, old, new, stage):
    refused(f"^design {old} is now called {new}; write that$", ImageJointEncoder, design=old)
    config = PolicyConfig(design=new, cameras=("a", "b", "c"), image_size=16, joint_names=("x",), actions=1, steps=1)
    save_policy(tmp_path / "new.safetensors", FusionPolicy(config))
    with safe_open(tmp_path / "new.safetensors", "pt") as file:
        header = json.loads(file.metadata()["sightline_fusion"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    del header["fit"]  # which older files do not have
    save_file(tensors, tmp_path / "old.safetensors", {"sightline_fusion": json.dumps(header | {"design": old})})
    policy = load_policy(tmp_path / "old.safetensors")
    assert (policy.config.design, policy.config.fit) == (new, "squash")
    save_policy(tmp_path / "again.safetensors", policy)
    assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "new.safetensors").read_bytes()


def packed(root, cameras, fit="squash", size=32):
    """Packed views of a recording at ``root`` -> the path."""
    index = root.parent / "index"
    validate_recording(root, index, DataParams(split=SplitParams(val=0.3, test=0.3)), processes=1)
    output = root.parent / f"{len(cameras)}{fit}.hdf5"
    pack_views(root, index, output, ViewParams(cameras=cameras, image_size=size, fit=fit), processes=1)
    return output


@pytest.mark.parametrize("count", [0, 1, 2, 5, 8])
def test_a_file_of_any_number_of_views_is_trained_on_and_evaluated(tmp_path, count):
    cameras = tuple("abcdefgh"[:count])
    data = packed(recording_folder(tmp_path / "rec", cameras, depth=False, masks=False), cameras)
    views = Views.open(data)
    assert (views.images.shape, views.cameras) == ((6, count, 3, 32, 32), cameras)
    assert views.sound.all()
    params = SMALL.model_copy(update={"chunk": 2, "epochs": 1, "view_dropout": 0.3})
    weights = train(data, design="stacked" if count else "joints_only", params=params)
    use = evaluate_fusion(weights, data, tmp_path / "e", EvaluateFusionParams())["use"]
    swapped = {"swapped_first_two"} if count > 1 else set()
    of_views = {"shuffled_views", *swapped, *(f"blank_{camera}" for camera in cameras)} if count else set()
    assert set(use) == {"shuffled_joints", *of_views}
    again = data.read_bytes()
    packed(tmp_path / "rec", cameras)
    assert data.read_bytes() == again


def test_a_model_refuses_views_of_other_cameras_or_another_fit(tmp_path):
    rec = recording_folder(tmp_path / "rec", ("a", "b", "c"), depth=False, masks=False)
    params = SMALL.model_copy(update={"chunk": 2, "epochs": 1})
    weights = train(packed(rec, ("a", "b")), design="stacked", params=params)
    for cameras, fit, message in (
        (("b", "a"), "squash", r"cameras: b, a, but .*m.safetensors was trained with a, b, in this order$"),
        (("a", "b", "c"), "squash", r"cameras: a, b, c, but .* was trained with a, b, in this order$"),
        ((), "squash", r"cameras: none, but .* was trained with a, b, in this order$"),
        (("a", "b"), "pad", r"fit: pad, but .*m.safetensors was trained with squash$"),
    ):
        data = packed(rec, cameras, fit)
        refused(message, evaluate_fusion, weights, data, tmp_path / "e", EvaluateFusionParams())


@pytest.mark.parametrize(("fit", "expected"), [
    ("squash", [[10, 20], [30, 40]]),  # quarters
    ("pad", [[5, 10], [15, 20]]),  # quarters of a square whose upper and lower quarter are black
    ("crop", [[10, 20], [30, 40]]),  # quarters of the central square
])  # fmt: skip
def test_how_a_picture_becomes_square(tmp_path, fit, expected):
    rec = recording_folder(tmp_path / "rec", ("front",), depth=False, masks=False)
    picture = np.kron([[10, 20], [30, 40]], np.ones((16, 32)))  # 32 high, 64 wide
    for path in (rec / "rgb/front").iterdir():
        Image.fromarray(np.repeat(picture[..., None], 3, 2).astype(np.uint8)).save(path)
    view = Views.open(packed(rec, ("front",), fit, 16)).images[0, 0, 0].astype(float)
    assert np.array_equal(view.reshape(2, 8, 2, 8).mean((1, 3)), expected)
    if fit == "pad":
        assert (view[:4] == 0).all()
        assert (view[-4:] == 0).all()
        assert view[4, 0] == 10
    narrow = np.full((16, 16, 3), 7, np.uint8)  # a square stays as it is
    for path in (rec / "rgb/front").iterdir():
        Image.fromarray(narrow).save(path)
    assert (Views.open(packed(rec, ("front",), fit, 16)).images == 7).all()


def test_more_than_eight_cameras_or_one_twice_are_refused():
    for cameras in (tuple("abcdefghi"), ("a", "a")):
        with pytest.raises(ValueError, match="at most 8 different cameras are taken"):
            ViewParams(cameras=cameras)


def test_the_file_of_three_views_is_as_wide_as_ever(tmp_path):
    views = Views.open(pack(write_recording(tmp_path / "recording")))
    assert (views.images.shape[1], views.fit, len(views.recording)) == (3, "squash", 32)
