"""The two parts of a latent: which numbers they are, in files of today and of older versions, and their scale."""

import json

import pytest
import torch
from encoders import RANGE, images, save_autoencoder
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F

from sightline.core.errors import UserError
from sightline.depth import create_semantic_encoder
from sightline.depth.network import Autoencoder, NetworkConfig, SceneNorm
from sightline.depth.objective import Summary, scale_scene
from sightline.depth.training import AutoencoderModule, TrainParams
from sightline.depth.weights import extract_encoder, load_weights

pytestmark = pytest.mark.usefixtures("one_thread")


def header_of(path):
    with safe_open(path, framework="pt") as file:
        return json.loads(file.metadata()["sightline"])


def test_the_header_says_which_numbers_are_which_and_the_encoder_gives_them(tmp_path):
    autoencoder = save_autoencoder(tmp_path / "a.safetensors", latent_dim=192)
    extract_encoder(tmp_path / "a.safetensors", tmp_path / "e.safetensors")
    latent = header_of(tmp_path / "e.safetensors")["latent"]
    assert latent == {"patches": [0, 128], "scene": [128, 192]}
    encoder = create_semantic_encoder(tmp_path / "e.safetensors", device="cpu")
    whole, parts = encoder.encode(images()), encoder.encode_parts(images())
    for name, (first, behind) in latent.items():
        assert torch.equal(getattr(parts, name), whole[:, first:behind])
    assert torch.equal(parts.patches, autoencoder.encoder.patches(images()))
    assert (encoder.get_model_info()["patch_dim"], encoder.get_model_info()["scene_dim"]) == (128, 64)


@pytest.mark.parametrize(("scene_dim", "parts"), [(0, (192, 0)), (192, (0, 192))])
@pytest.mark.parametrize("head", ["gap", "flat"])
def test_all_numbers_may_be_of_one_part(tmp_path, scene_dim, parts, head):
    torch.manual_seed(0)
    network = Autoencoder(NetworkConfig(latent_dim=192, scene_dim=scene_dim, width=16, head=head)).eval()
    torch.save({"state_dict": network.state_dict()}, tmp_path / "bare.pth")
    with pytest.warns(UserWarning, match="does not tell how its depth was normalised"):
        extract_encoder(tmp_path / "bare.pth", tmp_path / "e.safetensors")
    encoder = create_semantic_encoder(tmp_path / "e.safetensors", device="cpu")
    assert tuple(part.shape[1] for part in encoder.encode_parts(images())) == parts
    assert torch.equal(encoder.encode(images()), network(images())[1])
    decodes_by_upsampling = any(name.startswith("decoder.upsample") for name in network.state_dict())
    assert decodes_by_upsampling == (scene_dim == 192)


def older_file(path, patch_path, head="gap", latent_dim=64):
    """Weights as older versions wrote them: both parts have all numbers, the latent is their sum, no width is told."""
    torch.manual_seed(0)
    made = {"scene_dim": latent_dim, "parts": "added", "has_patches": patch_path != "none"}
    decoded = {"patch_path": "linear" if patch_path == "linear" else "refined"}
    network = Autoencoder(NetworkConfig(latent_dim=latent_dim, head=head, **made, **decoded)).eval()
    shape = {"input_channels": 1, "latent_dim": latent_dim, "head": head, "patch_path": patch_path}
    header = {"kind": "autoencoder", "network": shape, "preprocessing": RANGE.model_dump(mode="json")}
    save_file(network.state_dict(), path, {"sightline": json.dumps(header)})
    return network


@pytest.mark.parametrize("patch_path", ["none", "linear", "refined"])
def test_files_of_older_versions_still_load(tmp_path, patch_path):
    older = older_file(tmp_path / "a.safetensors", patch_path)
    names = set(load_weights(tmp_path / "a.safetensors", "autoencoder").tensors)
    assert not any("scene" in name for name in names)
    assert ("encoder.patch_path.weight" in names) == (patch_path != "none")
    assert ("decoder.refine_patches.output.weight" in names) == (patch_path == "refined")
    extract_encoder(tmp_path / "a.safetensors", tmp_path / "e.safetensors", verify=True)
    encoder = create_semantic_encoder(tmp_path / "e.safetensors", device="cpu")
    x = images()
    with torch.inference_mode():
        y = encoder.layer4(encoder.layer3(encoder.layer2(encoder.layer1(encoder.stem(x)))))
        expected = encoder.head(encoder.attention(y))
        if patch_path != "none":
            expected = expected + encoder.patch_path(x).flatten(1)
        assert torch.equal(encoder.encode(x), expected)
        assert torch.equal(encoder.encode(x), older(x)[1])
    assert header_of(tmp_path / "e.safetensors")["latent"] == {"sum": [0, 64]}
    with pytest.raises(UserError, match=r"e.safetensors: the latent of older weights has no parts; train it again"):
        encoder.encode_parts(x)


def test_a_bare_state_dict_of_an_older_version_still_loads(tmp_path):
    older = older_file(tmp_path / "a.safetensors", "refined")
    torch.save(older.encoder.state_dict(), tmp_path / "bare.pt")
    with pytest.warns(UserWarning, match="does not tell"):
        encoder = create_semantic_encoder(tmp_path / "bare.pt", device="cpu")
    assert torch.equal(encoder.encode(images()), older.eval()(images())[1])


def test_the_heads_of_a_training_are_left_in_its_checkpoint(tmp_path):
    autoencoder = save_autoencoder(tmp_path / "a.safetensors")
    module = AutoencoderModule(autoencoder, TrainParams(latent_dim=128), RANGE, None, joints=3)
    checkpoint = {"state_dict": module.state_dict()}
    module.on_save_checkpoint(checkpoint)
    torch.save(checkpoint, tmp_path / "best_model.pth")
    for source in ("best_model.pth", "a.safetensors"):
        extract_encoder(tmp_path / source, tmp_path / f"of_{source}.safetensors")
    one, other = (tmp_path / f"of_{source}.safetensors" for source in ("best_model.pth", "a.safetensors"))
    assert one.read_bytes() == other.read_bytes()
    assert any(name.startswith("inverse_dynamics.") for name in checkpoint["state_dict"])


def test_scene_numbers_have_the_spread_of_the_patches_together():
    torch.manual_seed(0)
    network, x = Autoencoder(NetworkConfig(latent_dim=192, width=16)), images(16)
    scale_scene(network, x)
    patches, scene = network.train().encoder(x).split([128, 64], dim=1)
    spread = [float(part.detach().var(dim=0, correction=0).sum()) for part in (scene, patches)]
    assert spread[0] == pytest.approx(spread[1], rel=0.01)
    assert scene.mean(dim=0).abs().max() < 1e-3 * scene.std()
    given = scene / network.decoder.refine_patches.scene_scale
    assert float(given.var(dim=0, correction=0).mean()) == pytest.approx(1, rel=0.01)


def test_a_file_that_does_not_tell_the_scale_of_the_scene_gives_it_as_it_is(tmp_path):
    autoencoder = save_autoencoder(tmp_path / "a.safetensors")
    tensors = load_file(tmp_path / "a.safetensors")
    del tensors["decoder.refine_patches.scene_scale"]
    with safe_open(tmp_path / "a.safetensors", "pt") as file:
        header = file.metadata()
    save_file(tensors, tmp_path / "a.safetensors", header)
    loaded = load_weights(tmp_path / "a.safetensors", "autoencoder").build(tmp_path / "a.safetensors")
    assert torch.equal(loaded.eval()(images())[0], autoencoder.eval()(images())[0])


def test_scene_numbers_are_the_same_in_training_and_after_it():
    torch.manual_seed(0)
    norm = SceneNorm(3).train()
    for _ in range(30):
        z = torch.randn(8, 3).mul(2).add(1).requires_grad_()
        y = norm(z)
    assert torch.allclose(y, norm.eval()(z), atol=1e-5)
    of_batch = torch.autograd.grad(F.batch_norm(z, None, None, training=True).pow(3).sum(), z)[0]
    followed = torch.autograd.grad(y.pow(3).sum(), z)[0]
    assert F.cosine_similarity(of_batch.flatten(), followed.flatten(), dim=0) > 0.5
    assert followed.sum(dim=0).abs().max() < 1e-4  # no step moves all of a batch alike, which the norm would undo


def test_a_single_image_in_train_mode_takes_the_running_statistics():
    norm = SceneNorm(3).train()
    norm.running_mean += 2
    assert torch.allclose(norm(torch.tensor([[2.0, 3.0, 1.0]])), torch.tensor([[0.0, 1.0, -1.0]]), atol=1e-4)
    assert norm(torch.rand(8, 3)).mean(dim=0).abs().max() < 1e-6


def test_the_refinement_sees_the_scene_and_the_linear_code_does_not():
    torch.manual_seed(0)
    for scene_dim, sees in ((64, True), (0, False)):
        network = Autoencoder(NetworkConfig(latent_dim=128, scene_dim=scene_dim, width=16)).eval()
        for layer in (network.decoder.refine_patches.output, network.decoder.refine_patches.scene):  # zero at first
            if layer is not None:
                nn.init.normal_(layer.weight, std=0.1)
        z = network.encoder(images()).detach().requires_grad_()
        network.decoder(z).square().sum().backward()
        assert (z.grad[:, 64:].abs().sum() > 0) or not sees


def test_the_small_picture_counts_what_was_measured():
    torch.manual_seed(0)
    summary, scene, depth = Summary(8, 1), torch.randn(4, 8), images(4)
    valid = torch.ones(4, 1, 128, 128, dtype=torch.bool)
    valid[..., :64] = False
    other = torch.where(valid, depth, -1.0)
    with torch.no_grad():
        errors = [float(summary.error(scene, seen, valid)) for seen in (depth, other)]
        assert errors[0] == pytest.approx(errors[1], rel=1e-5)
        assert summary.error(scene, depth, torch.zeros_like(valid)) == 0
