"""Images in the range, type and layout that a model takes, or one line; joints of any real type."""

import re

import h5py
import numpy as np
import pytest
import torch
from encoders import encoder_files, images

from sightline.core.errors import UserError
from sightline.core.tensors import check_range
from sightline.depth import create_semantic_encoder
from sightline.fusion import FusionPolicy, ImageJointEncoder, ResNet18Encoder
from sightline.fusion.policy import PolicyConfig
from sightline.fusion.views import Views
from sightline.segmentation import SegmentationConfig, SegmentationModel

pytestmark = pytest.mark.usefixtures("one_thread")


def refused(message, call, *arguments):
    with pytest.raises(UserError, match=message) as error:
        call(*arguments)
    assert "\n" not in str(error.value)


def pixels(*shape):
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def encoder():
    torch.manual_seed(0)
    return ImageJointEncoder(4, 16, 16).eval()


@pytest.fixture(scope="module")
def policy():
    torch.manual_seed(0)
    config = PolicyConfig(
        cameras=("a", "b", "c"), image_size=32, joint_names=("x", "y"), actions=2, steps=3, fusion_dim=16,
        image_feature_dim=16, target="absolute",
    )  # fmt: skip
    return FusionPolicy(config).eval()


# --- views

WRONG_VIEWS = [
    (
        pixels(2, 3, 16, 16).long(),
        r"must be uint8 0\.\.255 or floating point 0\.\.1, not torch\.int64; for 0\.\.255 use",
    ),
    (pixels(2, 3, 16, 16).short(), r".* not torch\.int16; for 0\.\.255 use .*\.to\(torch\.uint8\)"),
    (pixels(2, 3, 16, 16) > 99, r".* not torch\.bool;"),
    (pixels(2, 3, 16, 16).float(), r"must be floating point in 0\.\.1, not 0\.\.255; divide 0\.\.255 by 255"),
    (pixels(2, 3, 16, 16).half() / 100, r"must be floating point in 0\.\.1, not 0\.\.2\.\d+; divide"),
    (pixels(2, 3, 16, 16) / 127.5 - 1, r"must be floating point in 0\.\.1, not -1\.\.1; .* do not subtract a mean"),
    (pixels(2, 16, 16, 3), r"must be \[B, 3, H, W\], not \[2, 16, 16, 3\]; .*permute\(0, 3, 1, 2\)"),
    (pixels(3, 16, 16), r"must be \[B, 3, H, W\], not \[3, 16, 16\]; add the batch axis with .*unsqueeze\(0\)"),
    (pixels(2, 1, 16, 16), r"must be \[B, 3, H, W\], not \[2, 1, 16, 16\]$"),
    (pixels(2, 3, 16, 16).numpy(), "must be a tensor, not ndarray; torch.from_numpy"),
]


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize(("wrong", "message"), WRONG_VIEWS)
def test_wrong_views_are_one_line_in_each_place(encoder, wrong, message, place, training):
    views = [pixels(2, 3, 16, 16) for _ in range(3)]
    views[place] = wrong
    name = ("left_img", "right_img", "global_img")[place]
    refused(f"^{name} {message}", encoder.train(training), *views, torch.zeros(2, 4))
    encoder.eval()


def test_a_little_overshoot_of_an_interpolation_is_taken(encoder):
    views = [torch.full((1, 3, 16, 16), value) for value in (-0.1, 1.2, 0.5)]
    assert encoder(*views, torch.zeros(1, 4)).isfinite().all()


def test_a_design_without_views_does_not_look_at_them():
    nothing = torch.zeros(2, 0)
    encoder = ImageJointEncoder(4, 16, 16, design="joints_only")
    assert encoder(nothing, nothing, nothing, torch.zeros(2, 4)).shape == (2, 16)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (pixels(1, 9, 32, 32), r"images must be normalised floating point, not torch\.uint8; divide 0\.\.255 by 255"),
        (pixels(1, 9, 32, 32).float(), r"images must be floating point in about -2\.\.3, not 0\.\.255; divide"),
        (torch.zeros(1, 32, 32, 9), r"images must be \[B, 9, H, W\], not .*permute\(0, 3, 1, 2\)"),
    ],
)
def test_the_resnet_takes_normalised_images(x, message):
    refused(message, ResNet18Encoder(8), x)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (
            pixels(2, 3, 32, 32, 3),
            r"views must be \[B, 3, 3, 32, 32\], not \[2, 3, 32, 32, 3\]; .*permute\(0, 1, 4, 2, 3\)",
        ),
        (pixels(3, 3, 32, 32), r"not \[3, 3, 32, 32\]; add the batch axis with views\.unsqueeze\(0\)"),
        (pixels(2, 3, 3, 48, 48), r"not \[2, 3, 3, 48, 48\]; resize each view to the 32 pixels of the training"),
        (pixels(2, 9, 32, 32), r"views must be \[B, 3, 3, 32, 32\], not \[2, 9, 32, 32\]$"),
        (pixels(2, 3, 3, 32, 32).numpy(), "views must be a tensor, not ndarray"),
        (pixels(2, 3, 3, 32, 32).int(), r"must be uint8 0\.\.255 or floating point 0\.\.1, not torch\.int32"),
        (pixels(2, 3, 3, 32, 32).double(), r"must be floating point in 0\.\.1, not 0\.\.255"),
    ],
)
def test_a_policy_refuses_other_views_in_one_line(policy, wrong, message):
    refused(message, policy, wrong, torch.zeros(2, 2))


# --- joints


@pytest.mark.parametrize("base", ["absolute", "residual"])
def test_joints_of_any_real_type_give_the_same_actions(policy, base):
    policy.base_holds.fill_(base == "residual")
    policy.fit_normalisation(torch.rand(9, 2), torch.rand(9, 2))
    views, joints = pixels(2, 3, 3, 32, 32), torch.tensor([[1, 2], [0, 3]])
    expected = policy(views, joints.float())
    for dtype in (torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.uint8):
        actions = policy(views, joints.to(dtype))
        assert actions.dtype == torch.float32
        assert torch.equal(actions, expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.int32])
def test_an_encoder_takes_joints_in_its_own_type(encoder, dtype):
    views, joints = [pixels(2, 3, 16, 16) for _ in range(3)], torch.ones(2, 4)
    assert torch.equal(encoder(*views, joints.to(dtype)), encoder(*views, joints))


def test_an_encoder_of_another_precision_takes_the_same_views(encoder):
    views, joints = [pixels(2, 3, 16, 16) for _ in range(3)], torch.ones(2, 4)
    double = ImageJointEncoder(4, 16, 16).double().eval()
    double.load_state_dict(encoder.state_dict())
    for some in (views, [view / 255 for view in views]):
        torch.testing.assert_close(double(*some, joints).float(), encoder(*views, joints), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("joints", "message"),
    [
        (torch.zeros(2), r"joints must be \[B, 2\], not \[2\]; add the batch axis with joints\.unsqueeze\(0\)"),
        (torch.zeros(2, 3), r"joints must be \[B, 2\], not \[2, 3\]$"),
        (torch.zeros(2, 2, dtype=torch.complex64), r"joints must be real numbers, not torch\.complex64"),
        (torch.zeros(2, 2).bool(), r"joints must be real numbers, not torch\.bool"),
        (np.zeros((2, 2)), "joints must be a tensor, not ndarray; torch.from_numpy"),
    ],
)
def test_wrong_joints_are_one_line(policy, joints, message):
    refused(message, policy, pixels(2, 3, 3, 32, 32), joints)


# --- the file of views


def write_views(path, **changes):
    """A file of two frames; ``changes`` replace columns."""
    columns = {
        "images": pixels(2, 3, 3, 16, 16).numpy(), "sound": np.ones(2, bool), "joints": np.ones((2, 2), "f4"),
        "actions": np.ones((2, 2), "f4"), "reward": np.zeros(2, "f4"), "frame_id": np.arange(2),
        "episode": np.zeros(2, int), "step": np.arange(2), "split": np.array([b"train", b"val"]),
    }  # fmt: skip
    with h5py.File(path, "w") as file:
        for name, values in (columns | changes).items():
            file[name] = values
        file.attrs.update(cameras='["a", "b", "c"]', joint_names='["x", "y"]', has_reward=False)
    return path


def test_a_file_of_views_holds_uint8(tmp_path):
    for i, (wrong, kind) in enumerate({"u2": "uint16", "u8": "uint64"}.items()):
        path = write_views(tmp_path / f"{i}.hdf5", images=np.ones((2, 3, 3, 16, 16), wrong))
        refused(rf"{i}\.hdf5: views are {kind} \[3, 3, 16, 16\], not uint8 \[3, 3, S, S\]; write", Views.open, path)
    path = write_views(tmp_path / "last.hdf5", images=np.ones((2, 3, 16, 16, 3), "u1"))
    refused(r"views are uint8 \[3, 16, 16, 3\], not uint8 \[3, 3, S, S\]", Views.open, path)
    for wrong in ("i8", "f4"):
        path = write_views(tmp_path / f"{wrong}.hdf5", images=np.ones((2, 3, 3, 16, 16), wrong))
        refused(re.escape(str(path)), Views.open, path)


@pytest.mark.parametrize("dtype", ["f2", "f8"])
def test_joints_and_actions_of_a_file_become_float32(tmp_path, dtype):
    some = {name: np.ones((2, 2), dtype) for name in ("joints", "actions")} | {"reward": np.zeros(2, dtype)}
    views = Views.open(write_views(tmp_path / "views.hdf5", **some))
    assert [values.dtype for values in (views.joints, views.actions, views.reward)] == [np.float32] * 3


# --- depth and segmentation


@pytest.mark.parametrize("factor", [1.6, 255, 4000])
def test_the_depth_encoder_refuses_images_that_are_not_normalised(tmp_path_factory, factor):
    folder = encoder_files(tmp_path_factory.mktemp("encoder"))
    encoder = create_semantic_encoder(folder / "encoder.safetensors", device="cpu")
    message = r"images must be floating point in \[-1, 1\], not -.*; encode_numpy takes raw counts"
    for call in (encoder, encoder.encode, encoder.encode_batch):
        refused(message, call, images() * factor)
    refused(message, encoder.train(), images() * factor)
    refused(message, lambda x: encoder.encode_numpy(x, normalize=False), (images() * factor).numpy())


WRONG_PICTURES = [*WRONG_VIEWS[:7], WRONG_VIEWS[-1]]


@pytest.mark.parametrize(("wrong", "message"), WRONG_PICTURES)
def test_a_segmentation_model_refuses_other_images_in_one_line(wrong, message):
    config = SegmentationConfig(image_size=(16, 16), classes=("a", "b"), channels=(4, 4, 4, 4, 4, 4))
    model = SegmentationModel(config).eval()
    for call in (model, model.probabilities):
        refused(f"^images {message}", call, wrong)
    if not isinstance(wrong, torch.Tensor) or not wrong.is_floating_point():
        refused(f"^images {message}", model.encode, wrong)
        refused(f"^images {message}", model.train(), wrong)


# --- when numbers are looked at


def test_compiled_and_exported_programs_have_no_branch_on_numbers(encoder):
    views, joints = [pixels(2, 3, 32, 32) / 255 for _ in range(3)], torch.zeros(2, 4)
    with torch.no_grad():
        expected = encoder(*views, joints)
        torch.testing.assert_close(torch.compile(encoder, backend="eager", fullgraph=True)(*views, joints), expected)
        exported = torch.export.export(encoder, (*views, joints)).module()
        torch.testing.assert_close(exported(*views, joints), expected)
        torch.testing.assert_close(torch.jit.trace(encoder, (*views, joints))(*views, joints), expected)


def test_numbers_that_may_not_be_looked_at_pass():
    arguments = (-1.5, 1.5, "[-1, 1]", "")
    check_range("x", torch.full((2,), 9.0), False, *arguments)
    check_range("x", torch.full((2,), 9.0, device="meta"), True, *arguments)
    check_range("x", torch.zeros(0), True, *arguments)
    with pytest.raises(UserError, match=r"x must be floating point in \[-1, 1\], not 9\.\.9"):
        check_range("x", torch.full((2,), 9.0), True, *arguments)
