"""The semantic encoder: the embeddings of the training's preprocessing, and freezing that holds."""

import os
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
from conftest import ROOT, depth_folder
from encoders import encoder_files, images, modes, raw_depth, save_autoencoder
from PIL import Image
from torch import nn

from sightline.core.errors import UserError
from sightline.depth import SemanticEncoder, create_semantic_encoder
from sightline.depth.network import Encoder
from sightline.depth.normalize import NormalizeParams, normalize_depth
from sightline.depth.preprocessing import Preprocessing
from sightline.depth.store import DepthStore
from sightline.depth.weights import extract_encoder, load_weights
from sightline.recording.split import SplitParams

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return encoder_files(tmp_path_factory.mktemp("encoder"))


@pytest.fixture
def encoder(files):
    return create_semantic_encoder(files / "encoder.safetensors", device="cpu")


# --- embeddings


def test_the_names_are_public_and_the_preprocessing_needs_no_torch():
    code = (
        "import sys; import sightline.depth.preprocessing as p; assert 'torch' not in sys.modules\n"
        "import sightline.depth as depth; assert 'SemanticEncoder' in dir(depth) and not hasattr(depth, 'nothing')\n"
        "from sightline.depth import *; SemanticEncoder, create_semantic_encoder"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_encode_gives_the_latents_of_the_autoencoder_and_changes_no_mode(files, encoder):
    autoencoder = load_weights(files / "autoencoder.safetensors", "autoencoder").build(files)
    assert not any(modes(encoder))
    with torch.no_grad():
        assert torch.equal(encoder.encode(images()), autoencoder(images())[1])
    assert torch.equal(encoder(images()), encoder.encode(images()))
    assert not any(modes(encoder))
    encoder.train()
    encoder.encode(images())
    assert all(modes(encoder))


def test_gradients_flow_unless_everything_is_frozen(encoder):
    x = images().requires_grad_()
    encoder.encode(x).sum().backward()
    assert x.grad.abs().sum() > 0
    assert encoder.stem[0].weight.grad.abs().sum() > 0
    encoder.freeze_parameters(True)
    assert not encoder.encode(x).requires_grad
    assert encoder.stem[0].weight.grad is None
    encoder.freeze_parameters(False)
    assert encoder.encode(x).requires_grad


def test_precision_and_device_of_the_input_are_those_of_the_encoder(encoder):
    assert torch.equal(encoder.encode(images().double()), encoder.encode(images()))
    assert encoder.bfloat16().encode(images(1)).dtype == torch.bfloat16
    assert encoder.encode_numpy(raw_depth(1, 20, 30)).dtype == np.float32


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (images()[:, 0], r"\[B, 1, 128, 128\], got \[2, 128, 128\]; .*unsqueeze\(1\)"),
        (images(channels=3), r"got \[2, 3, 128, 128\]; the encoder takes 1 channel"),
        (images().movedim(1, -1), r"permute\(0, 3, 1, 2\)"),
        (images()[..., :64], r"got \[2, 1, 128, 64\]; encode_numpy resizes"),
        (images()[0, 0], r"got \[128, 128\]"),
        (images().int(), "torch.int32; encode_numpy takes raw counts"),
        (images().numpy(), "encode_numpy takes arrays"),
    ],
)
def test_images_of_another_shape_or_type_are_refused(encoder, x, message):
    for call in (encoder.encode, encoder.encode_batch) if isinstance(x, torch.Tensor) else (encoder.encode,):
        with pytest.raises(UserError, match=message) as error:
            call(x)
        assert "\n" not in str(error.value)


def test_encode_batch_is_in_eval_mode_without_gradients_and_restores_the_modes(encoder, monkeypatch):
    expected = encoder.encode_batch(images(5), 2)
    assert not expected.requires_grad
    assert not expected.is_inference()
    encoder.train()
    encoder.layer2.eval()  # a mixture
    before, statistics = modes(encoder), [b.clone() for b in encoder.buffers()]
    assert torch.equal(encoder.encode_batch(images(5), 2), expected)
    assert modes(encoder) == before
    assert all(map(torch.equal, statistics, encoder.buffers()))
    assert encoder.encode_batch(images(0)).shape == (0, 128)
    with pytest.raises(UserError, match="batch_size must be at least 1, not 0"):
        encoder.encode_batch(images(), 0)

    def fail(*_):
        raise MemoryError

    monkeypatch.setattr(Encoder, "forward", fail)
    with pytest.raises(MemoryError):
        encoder.encode_batch(images(5), 2)
    assert modes(encoder) == before


# --- raw arrays


@pytest.mark.parametrize("resize", ["nearest", "area"])
def test_raw_arrays_become_what_the_normalize_stage_stores(tmp_path, resize):
    folder = depth_folder(tmp_path / "in", 5, size=(90, 70))
    params = NormalizeParams(height_range=(550, 1450), resize=resize, fit="pad")
    normalize_depth(folder, tmp_path / "depth.hdf5", params, split=SplitParams(guard=0), processes=1)
    store = DepthStore.open(tmp_path / "depth.hdf5")
    save_autoencoder(tmp_path / "autoencoder.safetensors", store.preprocessing)
    extract_encoder(tmp_path / "autoencoder.safetensors", tmp_path / "encoder.safetensors")
    encoder = create_semantic_encoder(tmp_path / "encoder.safetensors", device="cpu")
    stored = torch.from_numpy(np.array(store.depth)).unsqueeze(1)
    raw = np.stack([np.asarray(Image.open(path)) for path in sorted(folder.iterdir())])
    assert raw.dtype == np.uint16
    expected = encoder.encode_batch(stored, 2).numpy()
    for array in (raw, raw[:, None], raw.astype(np.float64), raw.astype(">u2"), raw.astype(np.int32)):
        result = encoder.encode_numpy(array, batch_size=2)
        assert result.dtype == np.float32
        assert (result == expected).all()
    assert (encoder.encode_numpy(raw[0]) == encoder.encode_batch(stored[:1]).numpy()).all()
    assert (encoder.encode_numpy(stored.numpy(), batch_size=2, normalize=False) == expected).all()
    assert encoder.encode_numpy(raw[:0]).shape == (0, 128)


def test_three_axes_are_three_images_for_one_channel_and_one_image_for_three(tmp_path, encoder):
    assert encoder.encode_numpy(raw_depth(3, 20, 30)).shape == (3, 128)
    save_autoencoder(tmp_path / "a.safetensors", Preprocessing(height_range=(0, 255), invalid=()), input_channels=3)
    extract_encoder(tmp_path / "a.safetensors", tmp_path / "e.pth", verify=True)
    colour = create_semantic_encoder(tmp_path / "e.pth", device="cpu")
    rgb = np.random.default_rng(0).integers(0, 256, (2, 3, 128, 128), np.uint8)
    expected = colour.encode_batch(torch.from_numpy(rgb.astype(np.float32)) * np.float32(2 / 255) - 1)
    np.testing.assert_allclose(colour.encode_numpy(rgb), expected.numpy(), rtol=1e-4, atol=1e-4)
    assert (colour.encode_numpy(rgb[0]) == colour.encode_numpy(rgb[:1])).all()
    for wrong in (rgb[0, 0], np.moveaxis(rgb, 1, -1), rgb[:, :2]):
        with pytest.raises(UserError, match=r"\[3, H, W\] or \[N, 3, H, W\]"):
            colour.encode_numpy(wrong)
    with pytest.raises(UserError, match="moveaxis"):
        colour.encode_numpy(np.moveaxis(rgb, 1, -1))


def test_values_that_look_normalised_or_like_metres_are_warned_of_once(encoder):
    for array, message in (
        (np.random.default_rng(0).random((3, 8, 8)), "as if normalised already"),
        (np.full((2, 8, 8), 3.5), "not metres"),
    ):
        with pytest.warns(UserWarning, match=message) as caught:
            encoder.encode_numpy(array, batch_size=1)
        assert len(caught) == 1
        assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        encoder.encode_numpy(raw_depth(2, 8, 8).astype(np.float32))
        encoder.encode_numpy(images(1).numpy(), normalize=False)


@pytest.mark.parametrize(
    ("array", "options", "message"),
    [
        (np.full((2, 8, 8), [[[700.0]], [[np.nan]]]), {}, r"images\[1\]: holds NaN; .* invalid code"),
        (np.full((8, 8), np.inf), {}, r"images\[0\]: holds infinite"),
        (
            raw_depth(4, 8, 8) * np.uint16([[[1]], [[1]], [[1]], [[0]]]),
            {"batch_size": 2},
            r"images\[3\]: .*no valid pixel",
        ),
        (np.full((8, 8), -5), {}, "expected raw counts 0..65535, got values from -5 to -5"),
        (np.full((8, 8), 70000.0), {}, "got values from 70000"),
        (np.full((8, 8), True), {}, "array of bool"),
        (np.full(8, 700), {}, r"expected images \[H, W\], \[N, H, W\] or \[N, 1, H, W\], got \[8\]"),
        (np.full((2, 2, 8, 8), 700), {}, r"got \[2, 2, 8, 8\]"),
        (np.full((2, 8, 8, 1), 700), {}, "moveaxis"),
        (np.full((2, 0, 8), 700), {}, r"got \[2, 0, 8\]"),
        (raw_depth(128, 128), {"normalize": False}, "got uint16; raw: normalize=True"),
        (np.full((8, 8), 0.5), {"normalize": False}, "expects 128x128 images"),
        (np.full((128, 128), np.nan), {"normalize": False}, "holds NaN"),
        (raw_depth(8, 8), {"batch_size": 0}, "batch_size must be at least 1"),
    ],
)
def test_arrays_that_are_no_depth_are_refused(encoder, array, options, message):
    with pytest.raises(UserError, match=message):
        encoder.encode_numpy(array, **options)


# --- freezing


def train_parent(encoder, steps=3):
    """Three steps of a classifier in train mode; names of the weights and statistics that moved."""
    parent = nn.Sequential(encoder, nn.Linear(128, 2)).train()
    optimizer = torch.optim.SGD(parent.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    for step in range(steps):
        optimizer.zero_grad(set_to_none=False)
        nn.functional.cross_entropy(parent(images(seed=step)), torch.tensor([0, 1])).backward()
        optimizer.step()
    return {name for name, tensor in encoder.state_dict().items() if not torch.equal(tensor, before[name])}


def test_a_frozen_encoder_stays_bit_for_bit_in_a_training_parent(encoder):
    expected = encoder.encode(images()).detach()
    encoder.freeze_parameters(True)
    assert train_parent(encoder) == set()
    assert torch.equal(encoder.encode(images()), expected)
    assert encoder.training  # the flag is the parent's
    encoder.freeze_parameters(False)
    assert all(modes(encoder))
    assert {name.partition(".")[0] for name in train_parent(encoder, 1)} == {n for n, _ in encoder.named_children()}


def test_frozen_layers_stay_and_the_others_learn(encoder):
    train_parent(encoder, 1)  # leaves gradients behind, which an optimizer must not use
    encoder.freeze_layers(["stem"])
    encoder.freeze_layers(["layer1"])
    assert encoder.frozen_layers == ["stem", "layer1"]
    moved = train_parent(encoder)
    fixed = ("stem.", "layer1.", "scene_norm.scale")
    names = {name for name in encoder.state_dict() if not name.startswith(fixed)}
    assert moved == names
    assert not any(modes(encoder.stem) + modes(encoder.layer1))
    assert all(modes(encoder.layer2))
    with pytest.raises(UserError, match=r"no layer 'layer9'; the layers are stem, layer1, layer2, .*head"):
        encoder.freeze_layers(["layer2", "layer9"])
    assert encoder.frozen_layers == ["stem", "layer1"]
    encoder.freeze_layers("head")
    assert encoder.frozen_layers == ["stem", "layer1", "head"]


def test_a_new_encoder_is_frozen_on_demand(files):
    encoder = SemanticEncoder(1, 128, str(files / "encoder.pth"), freeze_weights=True, device="cpu")
    assert encoder.is_frozen
    assert encoder.count_parameters(only_trainable=True) == 0
    assert encoder.count_parameters() == sum(p.numel() for p in encoder.parameters())


# --- information


def test_the_encoder_tells_what_it_is(encoder):
    encoder.freeze_layers(["stem"])
    info, text = encoder.get_model_info(), repr(nn.Sequential(encoder))
    assert info["total_parameters"] - info["trainable_parameters"] == sum(p.numel() for p in encoder.stem.parameters())
    assert (info["input_channels"], info["latent_dim"], info["frozen_layers"]) == (1, 128, ["stem"])
    assert info["preprocessing"]["height_range"] == [500, 1500]
    for part in (
        "[B, 1, 128, 128] -> embeddings [B, 128]",
        f"{info['total_parameters']:,}",
        "frozen: stem",
        "500, 1500",
    ):
        assert part in text


def test_the_example_runs(tmp_path):
    script = ROOT / "examples/semantic_encoder.py"
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [sys.executable, script], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert "6. save the tuned encoder" in result.stdout
    assert "False" not in result.stdout
    assert list(tmp_path.iterdir()) == []
