"""The U-Net for any size and its file; losses, smoothness and changes of images against slow references."""

import numpy as np
import pytest
import torch
from torch import nn

from sightline.core.errors import UserError
from sightline.segmentation import SegmentationConfig, SegmentationModel, load_model, virtual_adversarial_loss
from sightline.segmentation.augmentation import (
    BOX_CHANCES,
    CROP_CHANCES,
    STRONG_CHANCES,
    WEAK_CHANCES,
    AugmentationParams,
    Window,
    change_colours,
    pasted,
    random_boxes,
    square_boxes,
    strong_view,
    weak_view,
)
from sightline.segmentation.losses import dice_cross_entropy, dice_loss, soft_dice_distance
from sightline.segmentation.model import save_model

SMALL = (4, 4, 8, 8, 8, 4)
STILL = AugmentationParams(flip=False, zoom=0, rotate=0, shift=0, jitter=0, hue=0)


def model_of(**options) -> SegmentationModel:
    torch.manual_seed(0)
    return SegmentationModel(SegmentationConfig(classes=("background", "a", "b"), channels=SMALL, **options))


@pytest.mark.parametrize("norm", ["batch", "instance", "group"])
@pytest.mark.parametrize("size", [(32, 48), (19, 50), (8, 8)])
def test_logits_have_the_size_of_the_image_whatever_it_is(norm, size):
    for stride, width in ((1, 4), (2, 4), (4, 8)):
        model = model_of(norm=norm, feature_stride=stride).eval()
        images = torch.randint(0, 256, (2, 3, *size), dtype=torch.uint8)
        output = model.decode(model.encode(images), size)
        assert output.logits.shape == (2, 3, *size)
        assert output.features.shape == (2, width, -(-size[0] // stride), -(-size[1] // stride))
        assert output.features.shape[1] == model.network.feature_dim
        torch.testing.assert_close(model(images.float() / 255), output.logits)


@pytest.mark.parametrize("images", [torch.rand(2, 3, 32, 40), torch.randint(0, 256, (2, 3, 32, 40), dtype=torch.uint8)])
def test_a_model_of_parts_is_asked_for_the_whole_and_for_windows_of_that_size(images):
    model = model_of(window=(16, 24)).eval()
    whole, windows, times = model(images).softmax(dim=1), torch.zeros(2, 3, 32, 40), torch.zeros(32, 40)
    for top in (0, 8, 16):
        for left in (0, 12, 16):
            part = model(images[:, :, top : top + 16, left : left + 24]).softmax(dim=1)
            windows[:, :, top : top + 16, left : left + 24] += part
            times[top : top + 16, left : left + 24] += 1
    torch.testing.assert_close(model.probabilities(images), (whole + windows / times) / 2)
    torch.testing.assert_close(model.probabilities(images, windows=False), whole)


@pytest.mark.parametrize("window", [None, (32, 48), (40, 16)])
def test_a_model_of_whole_images_or_of_larger_parts_is_asked_for_the_whole(window):
    model, images = model_of(window=window).eval(), torch.rand(1, 3, 32, 32)
    torch.testing.assert_close(model.probabilities(images), model(images).softmax(dim=1))


def test_windows_cut_further_inputs_too():
    model = model_of(window=(16, 16), extras={"depth": (2, 32, 32), "grid": (9, 5), "embedding": (7,)}).eval()
    images, extras = torch.rand(1, 3, 32, 32), {"depth": torch.rand(1, 2, 32, 32), "grid": torch.rand(1, 9, 5)}
    extras["embedding"] = torch.randn(1, 7)
    probabilities = model.probabilities(images, extras)
    torch.testing.assert_close(probabilities.sum(dim=1), torch.ones(1, 32, 32))
    extras["depth"] = torch.rand(1, 2, 32, 32)
    assert not torch.equal(model.probabilities(images, extras), probabilities)


def test_volumes_are_segmented_and_learnt_from():
    model = model_of(spatial_dims=3, image_channels=1)
    volumes, labels = torch.rand(2, 1, 18, 33, 16), torch.randint(0, 3, (2, 18, 33, 16))
    logits = model(volumes)
    assert logits.shape == (2, 3, 18, 33, 16)
    dice_cross_entropy(logits, labels).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_further_inputs_change_the_result_and_may_be_missing():
    model = model_of(extras={"depth": (2, 32, 32), "grid": (9, 5), "embedding": (7,)}).eval()
    images = torch.rand(2, 3, 32, 32)
    extras = {"depth": torch.rand(2, 2, 32, 32), "grid": torch.randn(2, 9, 5), "embedding": torch.randn(2, 7)}
    full, without = model(images, extras), model(images)
    assert without.shape == full.shape
    for name in extras:
        one = model(images, {name: extras[name]})
        assert not torch.equal(one, without)
        hidden = model(images, extras, {name: torch.tensor([True, False])})
        other = {key: value for key, value in extras.items() if key != name}
        torch.testing.assert_close(hidden[0], model(images, other)[0])
        torch.testing.assert_close(hidden[1], full[1])


def test_a_model_travels_in_a_file(tmp_path):
    model = model_of(norm="instance", void=7, labeled_groups=("3",), window=(8, 16))
    images = torch.randint(0, 256, (5, 3, 16, 16), dtype=torch.uint8)
    model.fit_normalisation(images)
    values = images.double() / 255
    np.testing.assert_allclose(model.mean.flatten(), values.mean((0, 2, 3)), rtol=1e-5)
    np.testing.assert_allclose(model.std.flatten(), values.std((0, 2, 3), correction=0), rtol=1e-5)
    save_model(tmp_path / "m.safetensors", model)
    loaded = load_model(tmp_path / "m.safetensors")
    assert (loaded.config, loaded.training) == (model.config, False)
    assert torch.equal(loaded(images), model.eval()(images))
    whole = (tmp_path / "m.safetensors").read_bytes()
    for other in (b"else", whole.replace(b"[8, 16]", b"[0, 16]")):
        (tmp_path / "other.safetensors").write_bytes(other)
        with pytest.raises(UserError, match=r"other.safetensors: not a segmentation model \(.*\); write one with"):
            load_model(tmp_path / "other.safetensors")
    with pytest.raises(UserError, match=r"none.safetensors: no such file"):
        load_model(tmp_path / "none.safetensors")


def test_dice_and_cross_entropy_by_hand():
    torch.manual_seed(0)
    logits, labels = torch.randn(2, 4, 3, 3), torch.randint(0, 3, (2, 3, 3))  # class 3 is absent
    labels[0, 0, 0] = 255
    trust, factors = torch.rand(2, 3, 3), torch.tensor([1.0, 2, 0.5, 1])
    entropy, valid, overlap, total = 0.0, 0, [0.0] * 4, [0.0] * 4
    for image in range(2):
        for y in range(3):
            for x in range(3):
                label, weight = int(labels[image, y, x]), float(trust[image, y, x])
                if label == 255:
                    continue
                p = logits[image, :, y, x].softmax(0)
                entropy -= weight * float(factors[label] * p[label].log())
                valid += 1
                for c in range(4):
                    truth = float(label == c)
                    overlap[c] += weight * truth * float(p[c])
                    total[c] += weight * (truth + float(p[c]) ** 2)
    dice = np.mean([1 - 2 * overlap[c] / total[c] for c in range(3)])
    loss = dice_cross_entropy(logits, labels, factors, trust)
    assert float(loss) == pytest.approx(0.5 * entropy / valid + 0.5 * dice, rel=1e-4)
    perfect = 40 * torch.eye(4)[torch.where(labels == 255, 0, labels)].permute(0, 3, 1, 2)
    assert float(dice_cross_entropy(perfect, labels)) < 1e-4


def test_losses_of_nothing_are_zero():
    logits, nothing = torch.randn(1, 3, 4, 4, requires_grad=True), torch.full((1, 4, 4), 255)
    loss = dice_cross_entropy(logits, nothing)
    loss.backward()
    assert loss.item() == 0
    assert not logits.grad.any()
    assert float(dice_loss(logits, nothing, torch.zeros(1, 4, 4))) == 0


class Tiny(nn.Module):
    """A convolution, batch normalisation, a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 2, 1))

    def forward(self, x):
        return self.layers(x)


@pytest.mark.parametrize("iterations", [1, 2])
def test_virtual_adversarial_loss_by_hand(iterations):
    torch.manual_seed(3)
    model, x = Tiny().double(), torch.rand(2, 1, 5, 4, dtype=torch.float64)
    before = {name: value.clone() for name, value in model.state_dict().items()}

    def distance(p, q):
        per_class = [
            1 - 2 * (p[:, c] * q[:, c]).sum() / ((p[:, c] ** 2).sum() + (q[:, c] ** 2).sum()) for c in range(2)
        ]
        return sum(per_class) / 2

    def unit(d):
        return torch.stack([one / (one.norm() + 1e-8) for one in d.detach()])

    generator = torch.Generator().manual_seed(9)
    direction = unit((torch.rand(x.shape, generator=generator) - 0.5).double())
    reference = Tiny().double()
    reference.load_state_dict(before)
    clean = reference(x).softmax(1).detach()
    for _ in range(iterations):
        direction.requires_grad_()
        change = distance(reference(x + 10 * direction).softmax(1), clean)
        direction = unit(torch.autograd.grad(change, direction)[0])
    expected = distance(reference(x + 6 * direction).softmax(1), clean)
    expected.backward()

    loss = virtual_adversarial_loss(model, x, iterations=iterations, generator=torch.Generator().manual_seed(9))
    loss.backward()
    assert float(loss) == pytest.approx(float(expected), rel=1e-8)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, dict(reference.named_parameters())[name].grad, rtol=1e-7, atol=1e-10)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name  # statistics do not move
    assert model.layers[1].track_running_stats
    with_target = virtual_adversarial_loss(
        model, x, iterations=iterations, target=clean, generator=torch.Generator().manual_seed(9)
    )
    torch.testing.assert_close(with_target, loss)


@pytest.mark.parametrize("target", [None, torch.rand(2, 1, 8, 8)])
def test_a_model_of_one_channel_is_refused(target):
    """Its softmax is 1 everywhere, and the loss would be 0."""
    with pytest.raises(UserError, match=r"at least 2 classes, not \[2, 1, 8, 8\]; of one channel z give two") as error:
        virtual_adversarial_loss(nn.Conv2d(3, 1, 1), torch.rand(2, 3, 8, 8), target=target)
    assert "\n" not in str(error.value)


def test_the_distance_of_a_map_from_itself_is_zero():
    p = torch.rand(2, 3, 4, 4, dtype=torch.float64).softmax(1)
    assert float(soft_dice_distance(p, p)) == pytest.approx(0, abs=1e-9)
    assert float(soft_dice_distance(p, p.flip(1))) > 0.01


def images_and_masks(size=(24, 32)) -> tuple[torch.Tensor, torch.Tensor]:
    rows, columns = torch.meshgrid(torch.arange(size[0]), torch.arange(size[1]), indexing="ij")
    mask = ((rows - 8) ** 2 + (columns - 20) ** 2 < 30).to(torch.uint8)
    return (mask * 200)[None, None].repeat(4, 3, 1, 1), mask[None].repeat(4, 1, 1)


def test_image_and_mask_move_together_and_what_comes_from_outside_is_ignored():
    images, masks = images_and_masks()
    params = STILL.model_copy(update={"flip": True, "zoom": 0.3, "rotate": 20.0, "shift": 0.2})
    chances = torch.rand(4, WEAK_CHANCES, generator=torch.Generator().manual_seed(1))
    inputs = {"image": images, "depth": (masks[:, None].float()).repeat(1, 2, 1, 1)}
    placed, labels = weak_view(inputs, masks, chances, params)
    inside = labels == 1
    assert inside.sum((1, 2)).min() > 20
    assert not torch.equal(labels[0], labels[1])
    assert ((placed["image"][:, 0] > 0.4) == inside)[labels != 255].float().mean() > 0.97
    assert torch.equal(placed["depth"][:, 0] == 1, inside)
    assert (labels == 255).any()
    _, outside = weak_view({"image": images}, None, chances, params)
    assert torch.equal(outside == 255, labels == 255)
    assert set(outside.unique().tolist()) == {0, 255}


def test_without_changes_a_view_is_the_image_and_a_mirrored_one_its_mirror():
    images, masks = images_and_masks()
    images = torch.randint(0, 256, images.shape, dtype=torch.uint8)
    placed, labels = weak_view({"image": images}, masks, torch.rand(4, WEAK_CHANCES), STILL)
    torch.testing.assert_close(placed["image"], images / 255, atol=1e-4, rtol=0)
    assert torch.equal(labels, masks.long())
    chances = torch.rand(4, WEAK_CHANCES)
    chances[:, 0] = 0.1
    patches = torch.randn(4, 9, 2)
    mirrored, labels = weak_view(
        {"image": images, "grid": patches}, masks, chances, STILL.model_copy(update={"flip": True})
    )
    torch.testing.assert_close(mirrored["image"], images.flip(3) / 255, atol=1e-4, rtol=0)
    assert torch.equal(labels, masks.flip(2).long())
    torch.testing.assert_close(mirrored["grid"], patches.unflatten(1, (3, 3)).flip(2).flatten(1, 2))


def test_a_crop_is_a_part_of_everything_that_belongs_to_an_image():
    images, masks = torch.rand(4, 3, 24, 32), torch.randint(0, 5, (4, 24, 32))
    chances = torch.rand(4, CROP_CHANCES)
    chances[0], chances[1] = 0.0, 0.9999  # the first and the last corner
    window = Window.random(chances, (24, 32), (12, 16))
    patches = torch.randn(4, 16, 2)
    cut, labels = window.of_inputs({"image": images, "depth": images[:, :2], "grid": patches}), window.of(masks)
    for i, (row, column) in enumerate(window.corner.tolist()):
        assert (0 <= row <= 12, 0 <= column <= 16) == (True, True)
        assert torch.equal(cut["image"][i], images[i, :, row : row + 12, column : column + 16])
        assert torch.equal(cut["depth"][i], images[i, :2, row : row + 12, column : column + 16])
        assert torch.equal(labels[i], masks[i, row : row + 12, column : column + 16])
    assert window.corner[:2].tolist() == [[0, 0], [12, 16]]
    # patches of half the image: 4 x 4 of a quarter, where 2 x 2 were
    grids = cut["grid"].unflatten(1, (4, 4))
    torch.testing.assert_close(grids[0, 0, 0], patches[0, 0])
    torch.testing.assert_close(grids[1, 3, 3], patches[1, 15])
    assert Window.random(torch.rand(99, 2), (24, 32), (24, 32)).corner.abs().sum() == 0


def test_colours_change_within_bounds_and_greys_keep_theirs():
    images = torch.rand(3, 3, 8, 8)
    middle = torch.full((3, 4), 0.5)
    torch.testing.assert_close(change_colours(images, middle, 0.5, 0.5), images)
    grey = images[:, :1].expand(-1, 3, -1, -1)
    turned = middle.clone()
    turned[:, 2:] = 0.9
    torch.testing.assert_close(change_colours(grey, turned, 0.5, 0.5), grey)
    red = torch.zeros(1, 3, 2, 2)
    red[:, 0] = 0.6
    third = torch.tensor([[0.5, 0.5, 0.5, 0.5 + 1 / 6]])  # a third of a turn at hue 1
    assert change_colours(red, third, 0.0, 1.0)[0, :, 0, 0].tolist() == pytest.approx([0, 0.6, 0], abs=1e-5)
    changed = change_colours(images[:, :1], torch.rand(3, 4), 0.9, 0.5)
    assert changed.shape == (3, 1, 8, 8)
    assert 0 <= changed.min() < changed.max() <= 1
    chances = torch.rand(3, STRONG_CHANCES)
    chances[:, 4:] = torch.tensor([[0.9, 0.9, 0.2], [0.1, 0.9, 0.2], [0.9, 0.1, 0.9]])
    view = strong_view({"image": images}, chances, AugmentationParams())["image"]
    assert torch.equal(view[0], images[0])
    assert not torch.allclose(view[1], images[1])
    assert view[2].std(0).max() < 1e-6  # grey
    assert view[2].std() < images[2].std()  # and blurred


def test_rectangles_are_pasted():
    chances = torch.rand(200, BOX_CHANCES, generator=torch.Generator().manual_seed(0))
    share = random_boxes(chances, (40, 60)).float().mean((1, 2, 3))
    assert 0.35 < (share > 0).float().mean() < 0.65
    assert share[share > 0].min() > 0.005
    assert share.max() < 0.45
    assert square_boxes(chances, (30, 60)).float().mean((1, 2, 3)).tolist() == pytest.approx([4 / 9] * 200, abs=0.03)
    box = torch.zeros(1, 1, 6, 6, dtype=torch.bool)
    box[..., :2] = True
    ones = {"image": torch.ones(1, 3, 6, 6), "grid": torch.ones(1, 9, 2), "embedding": torch.ones(1, 2)}
    mixed = pasted({name: torch.zeros_like(values) for name, values in ones.items()}, ones, box)
    assert mixed["image"][0, 0].sum(0).tolist() == [6, 6, 0, 0, 0, 0]
    assert mixed["grid"][0, :, 0].tolist() == [1, 0, 0] * 3
    torch.testing.assert_close(mixed["embedding"], torch.full((1, 2), 1 / 3))
