"""The encoders and heads of the fusion model: sizes, initialisations, losses by hand."""

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

from sightline.core.errors import UserError
from sightline.fusion import ImageJointEncoder, ResNet18Encoder
from sightline.fusion.augmentation import CHANCES, augment_views
from sightline.fusion.heads import ChunkHead, CvaeHead, elementwise, kl_divergence


def views(batch: int = 2, size: int = 32) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(0, 256, (batch, 3, size, size), dtype=torch.uint8, generator=generator) for _ in range(3)]


@pytest.mark.parametrize(
    ("design", "parameters"),
    [("stacked", 11_755_840), ("separate", 34_139_200), ("shared", 11_654_848), ("images_only", 11_589_568),
     ("joints_only", 298_112)],
)  # fmt: skip
def test_the_designs_have_their_documented_size_and_give_one_feature(design, parameters):
    encoder = ImageJointEncoder(design=design).eval()
    assert sum(p.numel() for p in encoder.parameters()) == parameters
    feature = encoder(*views(), torch.randn(2, 16))
    assert feature.shape == (2, 256)
    assert (feature >= 0).all()


def test_whole_numbers_and_shares_are_the_same_images():
    encoder, images, joints = ImageJointEncoder().eval(), views(), torch.randn(2, 16)
    assert torch.allclose(encoder(*images, joints), encoder(*(view / 255 for view in images), joints), atol=1e-6)


def test_images_are_normalised_as_imagenet_was():
    encoder = ImageJointEncoder()
    black, white = (encoder._normalised(torch.full((1, 3, 2, 2), value)) for value in (0.0, 1.0))
    assert torch.allclose(black[0, :, 0, 0], torch.tensor([-2.1179, -2.0357, -1.8044]), atol=1e-4)
    assert torch.allclose(white[0, :, 0, 0], torch.tensor([2.2489, 2.4286, 2.6400]), atol=1e-4)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    torch.manual_seed(1)
    path = tmp_path_factory.mktemp("w") / "resnet18.pt"
    resnet = torchvision.models.resnet18()
    torch.save(resnet.state_dict(), path)
    return path, resnet.conv1.weight.detach()


def test_pretrained_filters_go_to_every_camera(weights):
    path, conv1 = weights
    copied = ResNet18Encoder(pretrained=path, conv1_init="copy").resnet[0].weight
    mean = ResNet18Encoder(pretrained=path, conv1_init="copy_mean").resnet[0].weight
    block = ResNet18Encoder(pretrained=path, conv1_init="block").resnet[0].weight
    new = ResNet18Encoder(pretrained=path, conv1_init="independent").resnet[0].weight
    for camera in range(3):
        own = slice(3 * camera, 3 * camera + 3)
        assert torch.equal(copied[:, own], conv1)
        assert torch.allclose(mean[:, own], conv1 / 3)
        assert torch.equal(block[camera::3, own], conv1[camera::3])
        following = (camera + 1) % 3
        assert torch.allclose(block[following::3, own], 0.1 * conv1[following::3])
        assert not torch.allclose(new[:, own], conv1)
    three = ResNet18Encoder(pretrained=path, in_channels=3)
    assert torch.equal(three.resnet[0].weight, conv1)


def test_identical_copies_cannot_tell_left_from_right_at_the_start_and_blocks_can(weights):
    joints, (left, right, other) = torch.zeros(2, 16), views()
    for init, sees in (("copy", False), ("copy_mean", False), ("block", True), ("independent", True)):
        encoder = ImageJointEncoder(pretrained=weights[0], conv1_init=init).eval()
        difference = (encoder(left, right, other, joints) - encoder(right, left, other, joints)).abs().max()
        assert (difference > 1e-3) == sees, init


@pytest.mark.parametrize(("norm", "layer"), [("bn", nn.BatchNorm2d), ("gn", nn.GroupNorm)])
def test_the_norm_is_the_one_asked_for(norm, layer):
    assert isinstance(ResNet18Encoder(norm=norm).resnet[1], layer)


def test_frozen_statistics_do_not_move(weights):
    encoder = ResNet18Encoder(pretrained=weights[0], in_channels=3, norm="frozen_bn").train()
    before = {name: value.clone() for name, value in encoder.named_buffers()}
    encoder(torch.randn(4, 3, 32, 32)).sum().backward()
    assert all(torch.equal(before[name], value) for name, value in encoder.named_buffers())
    assert len(before) == 20 * 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pretrained": "IMAGENET_V9"}, "IMAGENET_V9: neither a file nor a tag of torchvision's ResNet18"),
        ({"in_channels": 4}, "in_channels must be a multiple of 3, not 4"),
        ({"pretrained": "IMAGENET1K_V1", "norm": "gn"}, "norm gn has no place"),
    ],
)
def test_what_cannot_be_built_is_refused(options, message):
    with pytest.raises(UserError, match=message):
        ResNet18Encoder(**options)


def test_files_that_are_no_weights_are_refused(tmp_path):
    torch.save({"a": torch.zeros(1)}, tmp_path / "other.pt")
    torch.save(nn.Linear(1, 1), tmp_path / "pickle.pt")
    (tmp_path / "text.safetensors").write_text("hello")
    for name, message in {
        "other.pt": "not the state dict of torchvision's ResNet18: lacks 100 of its weights, such as bn1.bias and "
        "holds 1 that it has not, such as a; rename them",
        "pickle.pt": "holds more than tensors",
        "text.safetensors": "could not load the weights",
    }.items():
        with pytest.raises(UserError, match=f"{name}: {message}") as error:
            ResNet18Encoder(pretrained=tmp_path / name)
        assert "\n" not in str(error.value)


def saved(path, content):
    (save_file if path.suffix == ".safetensors" else torch.save)(content, path)
    return path


def prefixed(state, prefix):
    return {f"{prefix}{name}": tensor for name, tensor in state.items()}


FORMS = {
    "without_fc.pth": lambda state: {name: t for name, t in state.items() if not name.startswith("fc.")},
    "without_fc.safetensors": lambda state: {name: t for name, t in state.items() if not name.startswith("fc.")},
    "fc_of_ten_classes.pth": lambda state: state | {"fc.weight": torch.ones(10, 512), "fc.bias": torch.ones(10)},
    "state_dict.pth": lambda state: {"epoch": 90, "arch": "resnet18", "state_dict": state},
    "model_state_dict.pth": lambda state: {"model_state_dict": state, "loss": 0.5},
    "module.pth": lambda state: {"state_dict": prefixed(state, "module.")},
    "compiled.safetensors": lambda state: prefixed(state, "_orig_mod."),
    "compiled_in_parallel.pth": lambda state: prefixed(state, "module._orig_mod."),
    "before_counters.pth": lambda state: {n: t for n, t in state.items() if not n.endswith("num_batches_tracked")},
    "half.pth": lambda state: {n: t.half() if t.is_floating_point() else t for n, t in state.items()},
}


@pytest.mark.parametrize("norm", ["bn", "frozen_bn"])
@pytest.mark.parametrize("name", FORMS)
def test_weights_files_as_training_codes_write_them_load(weights, tmp_path, name, norm):
    state = torch.load(weights[0], weights_only=True)
    expected = ResNet18Encoder(pretrained=weights[0], in_channels=3, norm=norm).resnet.state_dict()
    path = saved(tmp_path / name, FORMS[name](state))
    loaded = ResNet18Encoder(pretrained=path, in_channels=3, norm=norm).resnet.state_dict()
    assert loaded.keys() == expected.keys()
    for key, tensor in loaded.items():
        wanted = expected[key].half().float() if name == "half.pth" and tensor.is_floating_point() else expected[key]
        assert torch.equal(tensor, wanted), key


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: {k: v for k, v in s.items() if k != "layer1.0.bn1.weight"},
         "ResNet18: lacks 1 of its weights, such as layer1.0.bn1.weight;"),
        (lambda s: torchvision.models.resnet34().state_dict(),
         r"ResNet18: holds \d+ that it has not, such as layer1.2.bn1.bias;"),
        (lambda s: prefixed(s, "encoder_q."),
         "lacks 100 of its weights, such as bn1.bias and holds 102 that it has not, such as encoder_q.bn1.bias"),
        (lambda s: s | {"module.conv1.weight": s["conv1.weight"]}, "holds conv1.weight twice, with a prefix and"),
        (lambda s: s | {"conv1.weight": torch.zeros(64, 9, 7, 7)},
         r"conv1.weight is torch.float32 \[64, 9, 7, 7\], but \[64, 3, 7, 7\] in torchvision's ResNet18"),
        (lambda s: s | {"conv1.weight": s["conv1.weight"].char()}, "conv1.weight is torch.int8 .*take weights of that"),
        (lambda s: s | {"bn1.weight": torch.full((64,), torch.nan)}, "bn1.weight holds NaN or infinity"),
        (lambda s: s["conv1.weight"], "not the state dict of torchvision's ResNet18: lacks 100 of its weights"),
    ],
)  # fmt: skip
def test_other_weights_are_refused_by_name(weights, tmp_path, change, message):
    path = saved(tmp_path / "other.pth", change(torch.load(weights[0], weights_only=True)))
    with pytest.raises(UserError, match=rf"other\.pth: .*{message}") as error:
        ResNet18Encoder(pretrained=path)
    assert "\n" not in str(error.value)


def test_further_inputs_may_be_missing_for_all_or_some():
    encoder = ImageJointEncoder(design="joints_only", extras={"depth": (8,), "grid": (4, 6)}).eval()
    nn.init.normal_(encoder.extras["depth"].missing)
    joints, depth, grid = torch.randn(3, 16), torch.randn(3, 8), torch.randn(3, 4, 6)

    def run(**extras):
        return encoder(*views(3), joints, extras, {"depth": torch.tensor([False, True, False])})

    both, without = run(depth=depth, grid=grid), run(grid=grid)
    assert torch.allclose(both[1], without[1])
    assert not torch.allclose(both[0], without[0])
    assert not torch.allclose(both, run(depth=depth, grid=grid.flip(1)))  # positions count


def test_the_error_of_a_chunk_does_not_see_steps_beyond_the_episode():
    torch.manual_seed(0)
    chunk, mask = torch.randn(2, 4, 3), torch.tensor([[1.0, 1, 1, 1], [1, 1, 0, 0]])
    for head in (ChunkHead(8, 4, 3, "l1"), CvaeHead(8, 4, 3)):
        feature, noise = torch.randn(2, 8), torch.randn(2, 6)
        changed = chunk.clone()
        changed[1, 2:] = 100
        one, other = (head.losses(feature, c, mask, 0.1, noise)[0] for c in (chunk, changed))
        assert torch.allclose(one, other)
    head = ChunkHead(8, 4, 3, "mse")
    error = (head(feature) - chunk).square()
    expected = torch.stack([error[0].mean(), error[1, :2].mean()])
    assert torch.allclose(head.losses(feature, chunk, mask, 0.0, noise)[0], expected)


def test_with_one_step_the_cvae_has_the_loss_of_lapo():
    torch.manual_seed(0)
    head = CvaeHead(8, 1, 3, detach_posterior=False, prior_weight=0.0)
    feature, action, noise = torch.randn(5, 8), torch.randn(5, 3), torch.randn(5, 6)
    encoded = head.posterior_layers(torch.cat([feature, action], 1))
    mean, log_variance = encoded[:, :6], encoded[:, 6:]
    decoded = head.decoder(torch.cat([feature, mean + noise * (log_variance / 2).exp()], 1))
    kl = -0.5 * (1 + log_variance - mean**2 - log_variance.exp()).sum(1)
    expected = ((decoded - action) ** 2).sum(1) + 0.3 * kl
    losses, parts = head.losses(feature, action[:, None], torch.ones(5, 1), 0.3, noise)
    assert torch.allclose(losses, expected, atol=1e-5)
    assert torch.allclose(parts["kl"], kl, atol=1e-6)
    assert torch.allclose(kl_divergence(torch.zeros(2, 6), torch.zeros(2, 6)), torch.zeros(2))


def test_a_detached_posterior_teaches_the_feature_through_the_decoder_alone():
    gradients = {}
    for detached in (True, False):
        torch.manual_seed(0)
        head = CvaeHead(8, 2, 3, detach_posterior=detached, prior_weight=0.0)
        feature = torch.randn(4, 8, requires_grad=True)
        mean, log_variance = head.posterior(feature, torch.randn(4, 2, 3), torch.ones(4, 2))
        kl_divergence(mean, log_variance).sum().backward() if mean.requires_grad else None
        gradients[detached] = feature.grad
    assert gradients[True] is None
    assert gradients[False].abs().sum() > 0


def test_the_losses_of_an_element():
    error = torch.tensor([-2.0, 0.5])
    assert elementwise(error, "l1").tolist() == [2.0, 0.5]
    assert elementwise(error, "mse").tolist() == [4.0, 0.25]
    assert elementwise(error, "huber").tolist() == [1.5, 0.125]


def test_every_view_moves_and_changes_by_itself():
    images = torch.stack([torch.arange(64.0).view(8, 8).byte().expand(3, 8, 8)] * 6).view(2, 3, 3, 8, 8)
    still = torch.full((2, 3 * CHANCES), 0.5)
    assert torch.allclose(augment_views(images, still, 2, 0.2), images / 255, atol=1e-6)
    moved = still.clone()
    moved[0, CHANCES : CHANCES + 2] = torch.tensor([0.99, 0.0])  # the second view of the first sample, 2 down, 2 left
    augmented = augment_views(images, moved, 2, 0.0) * 255
    assert torch.allclose(augmented[0, 1, 0, 0], torch.tensor([16.0, 16, 16, 17, 18, 19, 20, 21]))
    augmented[0, 1] = images[0, 1]
    assert torch.allclose(augmented, images.float())
    brighter = still.clone()
    brighter[1, 2] = 1.0
    assert torch.allclose(augment_views(images, brighter, 0, 0.2)[1, 0], images[1, 0] / 255 * 1.2, atol=1e-5)
