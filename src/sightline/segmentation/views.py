"""What a step sees of a batch: images and masks in random views, or patches of volumes with random grey values."""

from torch import Tensor

from sightline.segmentation.augmentation import (
    COLOUR_CHANCES,
    CROP_CHANCES,
    WEAK_CHANCES,
    AugmentationParams,
    Inputs,
    Window,
    change_colours,
    weak_view,
)


def viewed(frames: Inputs, params: AugmentationParams) -> tuple[Inputs, Tensor, Tensor, Inputs, Window | None]:
    """Weakly changed inputs, masks, the random numbers that are left, whole inputs, and what was cut of them.

    Args:
        frames: a batch of `FrameBatches`, or of `VolumeBatches`, whose places are changed already.
    """
    if frames["image"].ndim == 5:
        of_colour, rest = frames["chances"].tensor_split((COLOUR_CHANCES,), dim=1)
        inputs = {"image": change_colours(frames["image"], of_colour, params.jitter, params.hue)}
        return inputs, frames["mask"].long(), rest, inputs, None
    of_view, of_crop, rest = frames["chances"].tensor_split((WEAK_CHANCES, WEAK_CHANCES + CROP_CHANCES), dim=1)
    inputs = {name: values for name, values in frames.items() if name not in ("mask", "chances")}
    whole, masks = weak_view(inputs, frames.get("mask"), of_view, params)
    if params.crop is None:
        return whole, masks, rest, whole, None
    window = Window.random(of_crop, (masks.shape[1], masks.shape[2]), params.crop)
    return window.of_inputs(whole), window.of(masks), rest, whole, window
