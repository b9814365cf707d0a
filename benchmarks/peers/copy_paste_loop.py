"""A copy-paste training of a segmentation as one writes it first with MONAI: its transforms, network and loss, float32.

Images and masks lie in memory; the transforms of a sample run one after the other. A teacher, the average of the
network, labels the unlabelled images.
"""

import copy
from collections.abc import Iterator

import numpy as np
import torch
from monai import transforms
from monai.losses import DiceCELoss
from monai.networks.nets.basic_unet import BasicUNet
from torch import Tensor, nn

CHANNELS = (16, 16, 32, 64, 128, 16)


def steps(images: list[np.ndarray], masks: list[np.ndarray], crop: tuple[int, ...], batch: int) -> Iterator[None]:
    """One step of ``batch`` labelled and as many unlabelled images, for each time that the next is asked for.

    Args:
        images: uint8 [1, ...], 2 or 3 axes.
        masks: class ids, uint8 [1, ...].
    """
    device, axes = torch.device("cuda" if torch.cuda.is_available() else "cpu"), len(crop)
    classes = int(max(mask.max() for mask in masks)) + 1
    network = BasicUNet(axes, 1, classes, CHANNELS, norm=("instance", {"affine": True}), upsample="nontrainable")
    network = network.to(device).train()
    teacher = copy.deepcopy(network).requires_grad_(False)
    optimizer = torch.optim.AdamW(network.parameters(), 1e-3)
    criterion, change, rng = DiceCELoss(to_onehot_y=True, softmax=True), _transform(crop), np.random.default_rng(0)
    while True:
        labelled, labels = _drawn(rng, images, masks, change, batch, device)
        unlabelled, _ = _drawn(rng, images, masks, change, batch, device)
        with torch.no_grad():
            pseudo = teacher(unlabelled).argmax(dim=1, keepdim=True)
        box = _box(rng, crop).to(device)
        inward, outward = torch.where(box, unlabelled, labelled), torch.where(box, labelled, unlabelled)
        targets = torch.cat([torch.where(box, pseudo, labels), torch.where(box, labels, pseudo)])
        loss = criterion(network(torch.cat([inward, outward])), targets)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            for mean, value in zip(teacher.parameters(), network.parameters(), strict=True):
                mean.mul_(0.99).add_(value, alpha=0.01)
        yield


def _transform(crop: tuple[int, ...]) -> transforms.Compose:
    keys, modes = ("image", "mask"), ("bilinear", "nearest")
    return transforms.Compose([
        transforms.ScaleIntensityRanged("image", 0, 255, 0, 1),
        transforms.RandSpatialCropd(keys, crop, random_size=False),
        transforms.RandFlipd(keys, 0.5, spatial_axis=1),
        transforms.RandAffined(
            keys, prob=1, rotate_range=[0] * (len(crop) == 3) * 2 + [0.5], scale_range=0.4,
            translate_range=[0.1 * side for side in crop], mode=modes, padding_mode="border",
        ),
        transforms.RandScaleIntensityd("image", 0.3, prob=1),
        transforms.RandAdjustContrastd("image", prob=1, gamma=(0.7, 1.4)),
    ])  # fmt: skip


def _drawn(
    rng: np.random.Generator, images: list[np.ndarray], masks: list[np.ndarray], change: transforms.Compose, batch: int,
    device: torch.device,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    samples = [change({"image": images[i], "mask": masks[i]}) for i in rng.integers(len(images), size=batch)]
    image, mask = (torch.stack([torch.as_tensor(one[key]) for one in samples]).to(device) for key in ("image", "mask"))
    return image, mask.long()


def _box(rng: np.random.Generator, crop: tuple[int, ...]) -> Tensor:
    """A box of two thirds of each side, true within: bool [1, 1, ...]."""
    box = torch.zeros(1, 1, *crop, dtype=torch.bool)
    places = [slice(start := int(rng.integers(side - side * 2 // 3 + 1)), start + side * 2 // 3) for side in crop]
    box[(0, 0, *places)] = True
    return box
