"""Files of the semantic encoder: they round-trip, tell what they are, and are checked before they are written."""

import warnings

import pytest
import torch
from conftest import only_error_line
from encoders import RANGE, encoder_files, images, modes, save_autoencoder

from sightline.core.errors import UserError
from sightline.depth import SemanticEncoder, create_semantic_encoder
from sightline.depth.network import Encoder
from sightline.depth.preprocessing import Preprocessing
from sightline.depth.weights import extract_encoder, load_weights

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return encoder_files(tmp_path_factory.mktemp("encoder"))


@pytest.fixture
def encoder(files):
    return create_semantic_encoder(files / "encoder.safetensors", device="cpu")


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
    assert (config["input_channels"], config["latent_dim"], config["model_type"]) == (1, 128, "SemanticEncoder")
    assert config["preprocessing"]["height_range"] == [500, 1500]
    assert content["extracted_from"] == "autoencoder.safetensors"
    assert content["extraction_info"] == {
        "total_params": encoder.count_parameters(),
        "trainable_params": encoder.count_parameters(),
        "num_weights": len(encoder.state_dict()),
    }
    assert set(content["encoder_state_dict"]) == set(Encoder(encoder.config).state_dict())


def test_loading_keeps_mode_and_freezing_and_takes_network_and_preprocessing(files, tmp_path, encoder):
    other = SemanticEncoder(latent_dim=128, device="cpu")
    assert other.preprocessing == Preprocessing()
    assert other.training
    other.freeze_layers(["stem", "patch_path"])
    other.load_pretrained_weights(files / "encoder.safetensors")  # of another width: parts are replaced
    weight = other.stem[0].weight
    other.load_pretrained_weights(files / "encoder.safetensors")
    assert other.stem[0].weight is weight  # an optimizer's
    assert other.preprocessing == RANGE
    assert (other.training, other.frozen_layers) == (True, ["stem", "patch_path"])
    assert torch.equal(other.encode_batch(images()), encoder.encode_batch(images()))
    save_autoencoder(tmp_path / "flat.safetensors", head="flat", scene_dim=128)
    extract_encoder(tmp_path / "flat.safetensors", tmp_path / "encoder.pth")
    other.load_pretrained_weights(tmp_path / "encoder.pth")
    assert (other.config.head, other.config.patch_dim, other.frozen_layers) == ("flat", 0, ["stem"])
    assert not other.stem[0].weight.requires_grad
    assert not any(modes(other.stem))
    assert torch.equal(
        other.encode_batch(images()), create_semantic_encoder(tmp_path / "encoder.pth", device="cpu").encode(images())
    )


def test_numbers_that_disagree_with_the_file_are_refused(files):
    with pytest.raises(UserError, match=r"encoder.pth: latent_dim is 128 in the file, but 768 was asked for"):
        SemanticEncoder(pretrained_path=files / "encoder.pth")
    with pytest.raises(UserError, match="input_channels is 1 in the file, but 3 was asked for"):
        SemanticEncoder(3, 128, files / "encoder.safetensors")
    with pytest.raises(UserError, match="latent_dim is 128 in the file, but 192 was asked for"):
        SemanticEncoder(latent_dim=192, device="cpu").load_pretrained_weights(files / "encoder.safetensors")
    with pytest.raises(
        UserError, match="latent_dim - scene_dim must be a multiple of 64, the positions of the patches, not 36"
    ):
        SemanticEncoder(latent_dim=100)
    with pytest.raises(UserError, match="device 'abacus': "):
        SemanticEncoder(latent_dim=128, device="abacus")


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
        str(files / "autoencoder.safetensors"): "holds an autoencoder, not an encoder.*sightline extract_encoder",
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
    assert "latent_dim is 128 in the file, but 768 was asked for" in line
    assert not (tmp_path / "o.pth").exists()


def test_a_file_without_a_decoder_and_the_checkpoint_itself_are_refused(files, tmp_path):
    torch.save(checkpoint(files, "", only="encoder."), tmp_path / "half.pth")
    for path in (tmp_path / "half.pth", files / "encoder.pth", files / "encoder.safetensors"):
        with (
            pytest.raises(UserError, match=r"holds an encoder, not an autoencoder.*sightline train_autoencoder"),
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
    with pytest.raises(UserError, match=r"verification failed: the latents differ by up to 0\.000"):
        extract_encoder(files / "autoencoder.safetensors", tmp_path / "e.safetensors", verify=True)
    assert list(tmp_path.iterdir()) == []
