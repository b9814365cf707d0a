"""Random shifts and colours of the views, for each sample and each camera its own, on the device they are on."""

import torch
from torch import Tensor

CHANCES = 5  # random numbers for a view: two for the shift, three for the colours
SHIFT_CHANCES = 2  # for a depth image, which has no colours


def augment_views(images: Tensor, chances: Tensor, shift: int, jitter: float) -> Tensor:
    """Augment views uint8 [B, V, 3, S, S] -> float [B, V, 3, S, S] in [0, 1].

    A view moves by up to ``shift`` pixels each way, its border repeated (Yarats et al., "Image Augmentation Is All You
    Need", 2021); then brightness, contrast and saturation change by up to ``jitter``, as a share. Never mirrored: that
    would need other joints and actions.

    Args:
        chances: [B, V * CHANCES], uniform in [0, 1).
    """
    views, chance = images.flatten(0, 1), chances.reshape(-1, CHANCES)  # (B V, 3, S, S), (B V, CHANCES)
    if shift:
        views = shift_images(views, chance, shift)
    pixels = views.float() / 255
    if jitter:
        brightness, contrast, saturation = ((1 + jitter * (2 * chance[:, 2:] - 1)).T)[..., None, None, None]
        pixels = pixels * brightness
        pixels = (pixels - (mean := pixels.mean((1, 2, 3), keepdim=True))) * contrast + mean
        grey = pixels.mean(1, keepdim=True)
        pixels = ((pixels - grey) * saturation + grey).clamp(0, 1)
    return pixels.unflatten(0, images.shape[:2])


def shift_images(images: Tensor, chances: Tensor, shift: int) -> Tensor:
    """Move images [B, C, S, S] by up to ``shift`` pixels each way, the border repeated.

    Args:
        chances: [B, >= 2], uniform in [0, 1).
    """
    size, device = images.shape[-1], images.device
    offset = (chances[:, :2] * (2 * shift + 1)).long() - shift
    rows, columns = ((torch.arange(size, device=device) + offset[:, i, None]).clamp(0, size - 1) for i in (0, 1))
    image = torch.arange(len(images), device=device)[:, None, None, None]
    channel = torch.arange(images.shape[1], device=device)[:, None, None]
    return images[image, channel, rows[:, None, :, None], columns[:, None, None, :]]
