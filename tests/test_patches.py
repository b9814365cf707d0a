"""Patches of volumes: cut and changed as scipy does it, whatever the volume; boxes, parts and norms in three axes."""

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import ndimage
from test_segmentation_training import changed
from test_volumes import frames_of
from torch.nn import functional as F
from volume_files import write_hearts

from sightline.core.errors import UserError
from sightline.importers.volumes import ImportVolumesParams, import_volumes
from sightline.recording.layout import IGNORE
from sightline.recording.split import SplitParams
from sightline.segmentation import SegmentationFrames
from sightline.segmentation.augmentation import (
    STRONG_CHANCES,
    AugmentationParams,
    box_chances,
    random_boxes,
    square_boxes,
    strong_view,
)
from sightline.segmentation.batches import FrameBatches, StepDraw
from sightline.segmentation.methods import largest_parts
from sightline.segmentation.norms import InstanceNorm3d
from sightline.segmentation.patches import (
    PATCH_CHANCES,
    VolumeBatches,
    Volumes,
    _placement,
    check_crop,
    fewer_slices,
    placed_patch,
)
from sightline.training.order import Draw

SIZE = (8, 6, 5)
STILL = AugmentationParams(crop=SIZE, flip=False, zoom=0, rotate=0, shift=0, jitter=0, hue=0)
MOVED = AugmentationParams(crop=SIZE, flip=True, zoom=0.5, rotate=90, shift=0.2, jitter=0, hue=0)


def drawn(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).random(PATCH_CHANCES)


def volume_of(shape: tuple[int, int, int], seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(seed)
    smooth = ndimage.gaussian_filter(rng.random(shape), 1)
    image = np.round(255 * (smooth - smooth.min()) / np.ptp(smooth)).astype(np.uint8)
    return torch.from_numpy(image), torch.from_numpy(rng.integers(0, 3, shape).astype(np.uint8))


@pytest.fixture(scope="module")
def hearts(tmp_path_factory) -> Path:
    folder = write_hearts(tmp_path_factory.mktemp("hearts") / "h")
    import_volumes(folder, folder.parent / "hearts.hdf5", ImportVolumesParams())
    return folder.parent / "hearts.hdf5"


def test_a_patch_that_is_not_changed_is_cut_from_any_place_of_the_volume():
    image, mask = volume_of((9, 8, 7))
    corners = set()
    for seed in range(200):
        chances = drawn(seed)
        corner = np.floor(chances[:3] * [2, 3, 3]).astype(int)
        corners.add(tuple(corner))
        part = tuple(slice(first, first + side) for first, side in zip(corner.tolist(), SIZE, strict=True))
        patch, labels = placed_patch(image, mask, chances, SIZE, STILL)
        torch.testing.assert_close(patch[0] * 255, image[part].float(), atol=1e-3, rtol=0)
        assert torch.equal(labels, mask[part])
    assert len(corners) == 18


def test_a_volume_smaller_than_the_patch_lies_in_its_middle_and_the_rest_is_ignored():
    image, mask = volume_of((9, 3, 1))
    patch, labels = placed_patch(image, mask, np.zeros(PATCH_CHANCES), SIZE, STILL)
    assert torch.equal(labels[:, 2:5, 2], mask[:8, :, 0])
    assert (labels == IGNORE).sum() == 8 * (6 * 5 - 3)
    torch.testing.assert_close(patch[0, :, 5, 4] * 255, image[:8, 2, 0].float())
    assert ((placed_patch(image, None, np.zeros(PATCH_CHANCES), SIZE, STILL)[1] == IGNORE) == (labels == IGNORE)).all()


@pytest.mark.parametrize("seed", range(6))
def test_a_patch_that_is_turned_and_zoomed_is_what_scipy_makes_of_the_whole_volume(seed):
    image, mask = volume_of((14, 13, 9), seed)
    chances = drawn(seed)
    patch, labels = placed_patch(image, mask, chances, SIZE, MOVED)
    turn, middle = _placement(np.array(image.shape), chances, np.array(SIZE), MOVED)
    offset = middle - turn @ ((np.array(SIZE) - 1) / 2)
    options = {"offset": offset, "output_shape": SIZE}
    expected = ndimage.affine_transform(image.numpy().astype(float), turn, order=1, mode="nearest", **options)
    assert np.abs(patch[0].numpy() * 255 - expected).max() < 0.05
    of_mask = ndimage.affine_transform(mask.numpy(), turn, order=0, mode="constant", cval=IGNORE, **options)
    places = turn @ np.stack(np.mgrid[:8, :6, :5]).reshape(3, -1) + offset[:, None]
    between = np.abs(places % 1 - 0.5).min(axis=0).reshape(SIZE) < 1e-3  # as near to one voxel as to the next
    beyond = ((places < 0) | (places > np.array(image.shape)[:, None] - 1)).any(axis=0).reshape(SIZE)
    assert (labels.numpy() == of_mask)[~between & ~beyond].all()
    outside = (places < -0.51) | (places > np.array(image.shape)[:, None] - 0.49)
    assert (labels.numpy()[outside.any(axis=0).reshape(SIZE)] == IGNORE).all()


def test_half_of_the_patches_are_mirrored_and_volumes_keep_their_slices_in_order():
    params = AugmentationParams(crop=SIZE, flip=True, zoom=0, rotate=0, shift=0)
    turns = [np.diag(_placement(np.array(SIZE), drawn(seed), np.array(SIZE), params)[0]) for seed in range(200)]
    assert (np.mean(np.array(turns) < 0, axis=0)[:2] == pytest.approx([0.5, 0.5], abs=0.1)) is True
    assert (np.array(turns)[:, 2] == 1).all()


def test_fewer_slices_are_means():
    slices = torch.arange(7, dtype=torch.uint8)[:, None, None].expand(7, 2, 2) * 10
    assert fewer_slices(slices, 1) is slices
    assert fewer_slices(slices, 2)[:, 0, 0].tolist() == [5, 25, 45, 60]
    assert fewer_slices(slices, 3)[:, 1, 1].tolist() == [10, 40, 60]


def batches(hearts: Path, masked: np.ndarray, step: int = 1) -> tuple[VolumeBatches, SegmentationFrames, Volumes]:
    frames = frames_of(hearts)
    rows = np.arange(len(frames.frame_id))
    data = FrameBatches.read(frames, masked, rows, rows[:0])
    volumes = Volumes(frames)
    return VolumeBatches(data, volumes, masked, STILL, step), frames, volumes


def test_slices_without_masks_are_ignored_in_a_labelled_volume(hearts):
    masked = np.array([1, 2, 4])
    data, frames, volumes = batches(hearts, masked)
    batch = data[Draw(np.array([0]), np.empty((1, 0), np.float32))]["labelled"]
    assert volumes.names[0] == "p0_frame01"
    assert batch["image"].shape == (1, 1, 20, 20, 6)
    assert torch.equal(batch["image"][0, 0], torch.from_numpy(frames.images(np.arange(6))[:, 0]).permute(1, 2, 0))
    assert torch.equal(batch["mask"][0, :, :, masked], torch.from_numpy(frames.masks(masked)).permute(1, 2, 0))
    assert (batch["mask"][0, :, :, [0, 3, 5]] == IGNORE).all()
    of_two = batches(hearts, masked, 2)[0][Draw(np.array([0]), np.empty((1, 0), np.float32))]["labelled"]
    assert torch.equal(of_two["mask"][0], batch["mask"][0, :, :, [1, 3, 5]])
    assert of_two["image"].shape == (1, 1, 20, 20, 3)
    assert data.pixels(np.array([0]))[0, :3].sum() == 3 * 400


def test_a_step_has_patches_of_labelled_and_unlabelled_volumes(hearts):
    data, _, _ = batches(hearts, np.arange(6))
    chances = np.random.default_rng(0).random((2, PATCH_CHANCES + 3), np.float32)
    batch = data[StepDraw(Draw(np.array([0, 0]), chances), Draw(np.array([3, 1]), chances))]
    for kind, most in (("labelled", 2), ("unlabelled", 0)):
        assert batch[kind]["image"].shape == (2, 1, *SIZE)
        assert batch[kind]["mask"].max() == most
        assert torch.equal(batch[kind]["chances"], torch.from_numpy(chances[:, PATCH_CHANCES:]))
    assert 0 <= batch["labelled"]["image"].min() < batch["labelled"]["image"].max() <= 1


def test_other_data_are_refused(hearts, tmp_path):
    frames = frames_of(hearts)
    with pytest.raises(
        UserError, match=r"crop is \[16, 33, 6\], larger than the largest volume .*, \[20, 20, 6\] rows"
    ):
        check_crop(frames, Volumes(frames), (16, 33, 6), 1)
    check_crop(frames, Volumes(frames), (16, 32, 16), 2)  # a network pads to multiples of 16
    image, label, group = np.zeros((4, 8, 8), np.uint8), np.ones((4, 8, 8), np.uint8), ["p", "q", "r", "s"]
    arrays = {"grey": {"image": image}, "colour": {"image": image[..., None].repeat(3, 3), "volume": group}}
    arrays["mixed"] = {"image": image, "volume": ["a", "a", "b", "b"]}
    words = {"grey": "it is not of volumes; give --volumes FILE, or set it to 2", "colour": "its slices are in colour"}
    words["mixed"] = "volume a is of group p and q; a volume is of one"
    for name, some in arrays.items():
        path = tmp_path / f"{name}.npz"
        np.savez(path, label=label, group=group, **some)
        with pytest.raises(UserError, match=words[name]):
            Volumes(SegmentationFrames.from_arrays(path, changed(image_size=(8, 8)), SplitParams()))


def test_boxes_of_volumes():
    chances = torch.rand(300, box_chances(3), generator=torch.Generator().manual_seed(0))
    boxes = random_boxes(chances, (30, 24, 20))
    share = boxes.float().mean((1, 2, 3, 4))
    assert boxes.shape == (300, 1, 30, 24, 20)
    assert (share > 0).float().mean() == pytest.approx(0.5, abs=0.1)
    assert 0 < share[share > 0].min() < 0.05
    assert 0.3 < share.max() < 0.45
    square = square_boxes(chances, (30, 24, 21))
    assert square.sum((1, 2, 3, 4)).tolist() == pytest.approx([20 * 16 * 14] * 300, rel=0.2)


def test_strong_views_of_volumes_stay_volumes():
    image = torch.rand(40, 1, 8, 6, 5, generator=torch.Generator().manual_seed(0))
    chances = torch.rand(40, STRONG_CHANCES, generator=torch.Generator().manual_seed(1))
    changed_image = strong_view({"image": image}, chances, STILL)["image"]
    assert changed_image.shape == image.shape
    assert (changed_image >= 0).all()
    assert (changed_image <= 1).all()
    assert (changed_image != image).flatten(1).any(dim=1).float().mean() > 0.6


def test_of_each_class_the_largest_part_of_a_volume_is_kept():
    rng = np.random.default_rng(0)
    labels = np.where(rng.random((2, 9, 8, 7)) < 0.18, rng.integers(1, 3, (2, 9, 8, 7)), 0)
    labels[0, 0, 0, 0] = IGNORE
    expected = np.where(labels == IGNORE, IGNORE, 0)
    for image in range(2):
        for class_id in (1, 2):
            parts, _ = ndimage.label(labels[image] == class_id, np.ones((3, 3, 3)))
            sizes = np.bincount(parts.ravel())[1:]
            for part in np.flatnonzero(sizes == sizes.max()) + 1:
                expected[image][parts == part] = class_id
    assert (expected != labels).any()
    assert (largest_parts(torch.from_numpy(labels), 3).numpy() == expected).all()


def test_the_norm_of_volumes_is_pytorchs_in_either_order_of_axes():
    torch.manual_seed(0)
    ours, theirs = InstanceNorm3d(5, affine=True), torch.nn.InstanceNorm3d(5, affine=True)
    for order in (torch.channels_last_3d, torch.contiguous_format):
        ours.zero_grad()
        theirs.zero_grad()
        x = (3 + torch.randn(3, 5, 6, 7, 4)).contiguous(memory_format=order)
        grown = [x.clone().requires_grad_() for _ in range(2)]
        results = [norm(one) for norm, one in zip((ours, theirs), grown, strict=True)]
        torch.testing.assert_close(*results)
        for result in results:
            F.avg_pool3d(result.square(), 2).sum().backward()
        torch.testing.assert_close(grown[0].grad, grown[1].grad, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(ours.weight.grad, theirs.weight.grad, rtol=1e-4, atol=1e-4)
        assert results[0].is_contiguous(memory_format=order)
