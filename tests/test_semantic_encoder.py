"""The semantic encoder: the embeddings of the training's preprocessing, freezing that holds, files that round-trip."""

import os
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
from conftest import ROOT, depth_folder, only_error_line
from PIL import Image
from torch import nn

from sightline.core.errors import UserError
from sightline.depth import SemanticEncoder, create_semantic_encoder
from sightline.depth.network import Autoencoder, Encoder, NetworkConfig
from sightline.depth.normalize import NormalizeParams, normalize_depth
from sightline.depth.preprocessing import Preprocessing
from sightline.depth.store import DepthStore
from sightline.depth.weights import Header, extract_encoder, load_weights, save_weights
from sightline.recording.split import SplitParams

RANGE = Preprocessing(height_range=(500, 1500))


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """The tests run beside each other; torch's threads would wait for one another."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def save_autoencoder(path, preprocessing=RANGE, **network):
    """Weights of an autoencoder in which every layer counts, also the normalisation's statistics."""
    torch.manual_seed(0)
    autoencoder = Autoencoder(NetworkConfig(**({"latent_dim": 64} | network))).train()
    for layer in (autoencoder.encoder.head, autoencoder.encoder.attention.project):
        nn.init.normal_(layer.weight, std=0.05)
    with torch.no_grad():
        autoencoder.encoder(torch.rand(2, autoencoder.config.input_channels, 128, 128))
    autoencoder.eval()
    save_weights(path, autoencoder, Header(kind="autoencoder", network=autoencoder.config, preprocessing=preprocessing))
    return autoencoder


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("encoder")
    save_autoencoder(folder / "autoencoder.safetensors")
    extract_encoder(folder / "autoencoder.safetensors", folder / "encoder.safetensors")
    extract_encoder(folder / "autoencoder.safetensors", folder / "encoder.pth")
    return folder


@pytest.fixture
def encoder(files):
    return create_semantic_encoder(files / "encoder.safetensors", device="cpu")


def images(count=2, channels=1, seed=0):
    return torch.rand(count, channels, 128, 128, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def raw_depth(*shape, seed=0):
    raw = np.random.default_rng(seed).integers(600, 1400, shape, np.uint16)
    raw[..., 3:9, 4:11] = 0
    return raw


def modes(module):
    return [part.training for part in module.modules()]


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
    assert encoder.encode_batch(images(0)).shape == (0, 64)
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
    assert encoder.encode_numpy(raw[:0]).shape == (0, 64)


def test_three_axes_are_three_images_for_one_channel_and_one_image_for_three(tmp_path, encoder):
    assert encoder.encode_numpy(raw_depth(3, 20, 30)).shape == (3, 64)
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
    parent = nn.Sequential(encoder, nn.Linear(64, 2)).train()
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
    names = {name for name in encoder.state_dict() if not name.startswith(("stem.", "layer1."))}
    assert moved == names
    assert not any(modes(encoder.stem) + modes(encoder.layer1))
    assert all(modes(encoder.layer2))
    with pytest.raises(UserError, match=r"no layer 'layer9'; the layers are stem, layer1, layer2, .*head"):
        encoder.freeze_layers(["layer2", "layer9"])
    assert encoder.frozen_layers == ["stem", "layer1"]
    encoder.freeze_layers("head")
    assert encoder.frozen_layers == ["stem", "layer1", "head"]


def test_a_new_encoder_is_frozen_on_demand(files):
    encoder = SemanticEncoder(1, 64, str(files / "encoder.pth"), freeze_weights=True, device="cpu")
    assert encoder.is_frozen
    assert encoder.count_parameters(only_trainable=True) == 0
    assert encoder.count_parameters() == sum(p.numel() for p in encoder.parameters())


# --- files


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_saved_weights_load_as_they_were_with_the_same_bytes_each_time(files, tmp_path, encoder, suffix):
    encoder.preprocessing = Preprocessing(height_range=(7, 70), invalid=(3,), resize="area")
    paths = [tmp_path / f"{name}{suffix}" for name in "ab"]
    for path in paths:
        encoder.save_encoder_weights(path)
    assert paths[0].read_bytes() == paths[1].read_bytes()
    loaded = create_semantic_encoder(str(paths[0]), device="cpu")
    assert torch.equal(loaded.encode(images()), encoder.encode(images()))
    assert (loaded.config, loaded.preprocessing) == (encoder.config, encoder.preprocessing)
    assert not any(modes(loaded))
    assert [path.name for path in tmp_path.iterdir() if path not in paths] == []


def test_the_torch_file_is_the_documented_dictionary(files, encoder):
    content = torch.load(files / "encoder.pth", weights_only=True)
    assert list(content) == ["encoder_state_dict", "model_config", "extracted_from", "extraction_info"]
    config = content["model_config"]
    assert (config["input_channels"], config["latent_dim"], config["model_type"]) == (1, 64, "SemanticEncoder")
    assert config["preprocessing"]["height_range"] == [500, 1500]
    assert content["extracted_from"] == "autoencoder.safetensors"
    assert content["extraction_info"] == {
        "total_params": encoder.count_parameters(),
        "trainable_params": encoder.count_parameters(),
        "num_weights": len(encoder.state_dict()),
    }
    assert set(content["encoder_state_dict"]) == set(Encoder(encoder.config).state_dict())


def test_loading_keeps_mode_and_freezing_and_takes_network_and_preprocessing(files, tmp_path, encoder):
    other = SemanticEncoder(latent_dim=64, device="cpu")
    assert other.preprocessing == Preprocessing()
    assert other.training
    other.freeze_layers(["stem", "patch_path"])
    weight = other.stem[0].weight
    other.load_pretrained_weights(files / "encoder.safetensors")
    assert other.stem[0].weight is weight  # an optimizer's
    assert other.preprocessing == RANGE
    assert (other.training, other.frozen_layers) == (True, ["stem", "patch_path"])
    assert torch.equal(other.encode_batch(images()), encoder.encode_batch(images()))
    save_autoencoder(tmp_path / "flat.safetensors", head="flat", patch_path="none")
    extract_encoder(tmp_path / "flat.safetensors", tmp_path / "encoder.pth")
    other.load_pretrained_weights(tmp_path / "encoder.pth")
    assert (other.config.head, other.config.patch_path, other.frozen_layers) == ("flat", "none", ["stem"])
    assert not other.stem[0].weight.requires_grad
    assert not any(modes(other.stem))
    assert torch.equal(
        other.encode_batch(images()), create_semantic_encoder(tmp_path / "encoder.pth", device="cpu").encode(images())
    )


def test_numbers_that_disagree_with_the_file_are_refused(files):
    with pytest.raises(UserError, match=r"encoder.pth: latent_dim is 64 in the file, but 768 was asked for"):
        SemanticEncoder(pretrained_path=files / "encoder.pth")
    with pytest.raises(UserError, match="input_channels is 1 in the file, but 3 was asked for"):
        SemanticEncoder(3, 64, files / "encoder.safetensors")
    with pytest.raises(UserError, match="latent_dim is 64 in the file, but 128 was asked for"):
        SemanticEncoder(latent_dim=128, device="cpu").load_pretrained_weights(files / "encoder.safetensors")
    with pytest.raises(UserError, match="latent_dim must be a multiple of 64"):
        SemanticEncoder(latent_dim=100)
    with pytest.raises(UserError, match="device 'abacus': "):
        SemanticEncoder(latent_dim=64, device="abacus")


def checkpoint(files, prefix, only=("encoder.", "decoder.")):
    tensors = load_weights(files / "autoencoder.safetensors", "autoencoder").tensors
    return {prefix + name: tensor for name, tensor in tensors.items() if name.startswith(only)}


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "network.", "module._orig_mod.", "network._orig_mod."])
@pytest.mark.parametrize("entry", ["state_dict", "model_state_dict"])
def test_torch_checkpoints_are_extracted_whatever_wrapped_the_network(files, tmp_path, encoder, prefix, entry):
    path = tmp_path / "best_model.pth"
    config = {"model_config": encoder.config.model_dump(mode="json"), "preprocessing": RANGE.model_dump(mode="json")}
    torch.save({entry: checkpoint(files, prefix), "epoch": 3, "optimizer_states": [{"state": {}}], **config}, path)
    extract_encoder(path, tmp_path / "encoder.safetensors")
    assert (tmp_path / "encoder.safetensors").read_bytes() == (files / "encoder.safetensors").read_bytes()


def test_a_bare_state_dict_tells_its_shape_and_is_warned_of_for_its_preprocessing(files, tmp_path, encoder):
    torch.save(checkpoint(files, "network."), tmp_path / "weights.pth")
    with pytest.warns(UserWarning, match="does not tell how its depth was normalised"):
        extract_encoder(tmp_path / "weights.pth", tmp_path / "e.safetensors")
    torch.save({f"module.{name}": tensor for name, tensor in encoder.state_dict().items()}, tmp_path / "bare.pt")
    with pytest.warns(UserWarning, match="0..65535"):
        bare = create_semantic_encoder(tmp_path / "bare.pt", device="cpu")
    for other in (bare, create_semantic_encoder(tmp_path / "e.safetensors", device="cpu")):
        assert other.config == encoder.config
        assert torch.equal(other.encode(images()), encoder.encode(images()))


class NotData:
    """Anything but tensors, numbers and texts."""


def test_files_that_are_no_encoder_are_refused_in_one_line(files, tmp_path):
    torch.save({"state_dict": checkpoint(files, ""), "args": NotData()}, tmp_path / "code.pth")
    torch.save({"weight": torch.zeros(3)}, tmp_path / "other.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    torch.save({"encoder_state_dict": {"stem.0.weight": torch.zeros(3), "head.weight": torch.zeros(3)}}, tmp_path / "d")
    (tmp_path / "cut.pth").write_bytes((files / "encoder.pth").read_bytes()[:5000])
    (tmp_path / "text.pth").write_text("weights")
    (tmp_path / "empty.pth").touch()
    bad = torch.load(files / "encoder.pth", weights_only=True)
    del bad["encoder_state_dict"]["layer1.0.conv1.weight"]
    torch.save(bad, tmp_path / "missing.pth")
    bad["model_config"]["preprocessing"]["height_range"] = [5, 5]
    torch.save(bad, tmp_path / "range.pth")
    for name, message in {
        "none.pth": "no such file",
        "code.pth": "could run code",
        "other.pth": "without the weights of a depth encoder",
        "list.pth": "without the weights of a depth encoder",
        "d": "without the weights of a depth encoder",
        "cut.pth": "not a readable torch file",
        "text.pth": "not a depth encoder, safetensors or torch",
        "empty.pth": "not a depth encoder, safetensors or torch",
        "missing.pth": "do not fit the network: .*layer1.0.conv1.weight",
        "range.pth": "preprocessing.height_range|near < far",
        str(files / "autoencoder.safetensors"): "holds an autoencoder, not an encoder.*extract_encoder.py",
    }.items():
        with pytest.raises(UserError, match=message) as error:
            create_semantic_encoder(tmp_path / name)
        assert "\n" not in str(error.value)


# --- the command


def test_the_command_extracts_checks_and_verifies(files, stage, tmp_path):
    result = stage("extract_encoder", files / "autoencoder.safetensors", "--output", "e.safetensors", "--verify")
    assert "verified: " in result.stdout, result.stderr
    assert "max |z_autoencoder - z| = 0.0" in result.stdout
    assert (tmp_path / "e.safetensors").read_bytes() == (files / "encoder.safetensors").read_bytes()
    flags = ["--input_channels", 1, "--latent_dim", 768, "--output", "o.pth"]
    line = only_error_line(stage("extract_encoder", files / "autoencoder.safetensors", *flags))
    assert "latent_dim is 64 in the file, but 768 was asked for" in line
    assert not (tmp_path / "o.pth").exists()


def test_a_file_without_a_decoder_and_the_checkpoint_itself_are_refused(files, tmp_path):
    torch.save(checkpoint(files, "", only="encoder."), tmp_path / "half.pth")
    for path in (tmp_path / "half.pth", files / "encoder.pth", files / "encoder.safetensors"):
        with (
            pytest.raises(UserError, match=r"holds an encoder, not an autoencoder.*train_autoencoder.py"),
            warnings.catch_warnings(action="ignore"),
        ):
            extract_encoder(path, tmp_path / "o.pth")
    save_autoencoder(tmp_path / "a.safetensors")
    with pytest.raises(UserError, match="is the checkpoint itself"):
        extract_encoder(tmp_path / "a.safetensors", tmp_path / "a.safetensors")


def test_a_verification_that_fails_leaves_no_file(files, tmp_path, monkeypatch):
    def spoil(network):
        return {name: tensor + (name == "head.bias") * 1e-6 for name, tensor in network.state_dict().items()}

    monkeypatch.setattr("sightline.core.weights_file.weights_of", spoil)
    with pytest.raises(UserError, match="verification failed: the latents differ by up to 1"):
        extract_encoder(files / "autoencoder.safetensors", tmp_path / "e.safetensors", verify=True)
    assert list(tmp_path.iterdir()) == []


# --- information


def test_the_encoder_tells_what_it_is(encoder):
    encoder.freeze_layers(["stem"])
    info, text = encoder.get_model_info(), repr(nn.Sequential(encoder))
    assert info["total_parameters"] - info["trainable_parameters"] == sum(p.numel() for p in encoder.stem.parameters())
    assert (info["input_channels"], info["latent_dim"], info["frozen_layers"]) == (1, 64, ["stem"])
    assert info["preprocessing"]["height_range"] == [500, 1500]
    for part in (
        "[B, 1, 128, 128] -> embeddings [B, 64]",
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
