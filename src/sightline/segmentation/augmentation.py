"""Random changes of images, on the device they are on, decided by random numbers that come with each sample.

Places are changed for image and mask alike (flip, zoom, rotation, shift), colours for the image alone. The strong
colours and the pasted rectangle are those of consistency training: Sohn et al., "FixMatch" (NeurIPS 2020); Yun et al.,
"CutMix" (ICCV 2019), with the sizes of Yang et al., "Revisiting Weak-to-Strong Consistency" (UniMatch, CVPR 2023).

``Inputs`` is what a network takes: ``image`` float [B, channels, H, W] in [0, 1] and, where there are some, ``depth``
[B, 2, H, W], ``embedding`` [B, D] and ``grid`` [B, P, G]; of volumes ``image`` alone, [B, 1, H, W, Z], whose places
`sightline.segmentation.patches` changes. Random numbers are uniform in [0, 1).
"""

import math
from dataclasses import dataclass

import torch
from pydantic import Field, field_validator
from torch import Tensor
from torch.nn import functional as F

from sightline.core.params import Section
from sightline.recording.layout import IGNORE

Inputs = dict[str, Tensor]
PLACE_CHANCES, COLOUR_CHANCES, BOX_CHANCES, CROP_CHANCES = 5, 4, 5, 2  # of images
STRONG_CHANCES = COLOUR_CHANCES + 3  # whether to change colours, whether to make it grey, how much to blur
WEAK_CHANCES = PLACE_CHANCES + COLOUR_CHANCES
_GREY_SHARE, _COLOUR_SHARE = 0.2, 0.8  # of the strong views


def box_chances(axes: int) -> int:
    """How many random numbers `random_boxes` takes of each image with so many spatial axes."""
    return 2 * axes + 1  # whether there is one, size, ratios of the sides, corner


class AugmentationParams(Section):
    """Of the section ``segmentation``: how images are changed, for every method alike."""

    crop: tuple[int, ...] | None = Field(
        (64, 64), description="rows, columns (and slices, for dims 3) of the random part trained on; null: all"
    )
    flip: bool = Field(True, description="mirror half of the images, left to right; for dims 3 also front to back")
    zoom: float = Field(0.5, ge=0, le=2, description="largest random zoom, in and out, as a share")
    rotate: float = Field(30.0, ge=0, le=180, description="largest random rotation, degrees")
    shift: float = Field(0.1, ge=0, le=0.5, description="largest random shift, as a share of the sides")
    jitter: float = Field(0.3, ge=0, lt=1, description="largest random change of colours, as a share")
    hue: float = Field(0.5, ge=0, le=0.5, description="largest random turn of the hue, as a share of a turn; 0.5: any")
    strong_jitter: float = Field(0.5, ge=0, lt=1, description="jitter of strong views, for semiseg and unimatch")
    strong_hue: float = Field(0.5, ge=0, le=0.5, description="hue of strong views, for semiseg and unimatch")

    @field_validator("crop")
    @classmethod
    def _is_positive(cls, crop: tuple[int, ...] | None) -> tuple[int, ...] | None:
        if crop is not None and (len(crop) not in (2, 3) or min(crop) < 1):
            raise ValueError(f"crop must be two numbers above 0, or three for dims 3, not {list(crop)}")
        return crop


def weak_view(
    inputs: Inputs, masks_BHW: Tensor | None, chances: Tensor, params: AugmentationParams
) -> tuple[Inputs, Tensor]:
    """Change places and colours of uint8 images and their masks -> inputs in [0, 1], masks.

    Args:
        masks_BHW: class ids, uint8; None, of unlabelled images, is taken as zeros: what lies outside the image is 255.
        chances: [B, WEAK_CHANCES].
    """
    of_place, of_colour = chances.split((PLACE_CHANCES, COLOUR_CHANCES), dim=1)
    image = inputs["image"].float() / 255
    theta = _sampling_matrix(of_place, image.shape[2], image.shape[3], params)
    grid = F.affine_grid(theta, [len(image), 1, *image.shape[2:]], align_corners=False)
    placed = {"image": F.grid_sample(image, grid, padding_mode="border", align_corners=False)}
    labels = torch.zeros_like(image[:, 0]) if masks_BHW is None else masks_BHW.float()
    layers = [labels[:, None] - IGNORE, *([inputs["depth"]] if "depth" in inputs else [])]  # zeros outside: ignored
    sampled = F.grid_sample(torch.cat(layers, dim=1), grid, mode="nearest", align_corners=False)
    if "depth" in inputs:
        placed["depth"] = sampled[:, 1:]
    if "grid" in inputs:
        placed["grid"] = _placed_patches(inputs["grid"], theta)
    if "embedding" in inputs:
        placed["embedding"] = inputs["embedding"]
    placed["image"] = change_colours(placed["image"], of_colour, params.jitter, params.hue)
    return placed, (sampled[:, 0] + IGNORE).round().long()


@dataclass
class Window:
    """Parts of images: ``size`` pixels each, from the pixel ``corner`` [B, 2] (row, column) on."""

    corner: Tensor
    size: tuple[int, ...]

    @classmethod
    def random(cls, chances: Tensor, whole: tuple[int, int], size: tuple[int, ...]) -> "Window":
        """Anywhere in images of ``whole`` pixels. ``chances`` is [B, CROP_CHANCES]."""
        rooms = (all_ - part + 1 for all_, part in zip(whole, size, strict=True))
        return cls(torch.stack([(chances[:, axis] * room).long() for axis, room in enumerate(rooms)], dim=1), size)

    def of(self, values: Tensor) -> Tensor:
        """The parts of [B, H, W] or [B, channels, H, W]."""
        place = [self.corner[:, axis, None] + torch.arange(self.size[axis], device=values.device) for axis in (0, 1)]
        image, rows, columns = torch.arange(len(values), device=values.device), place[0], place[1]
        if values.ndim == 3:
            return values[image[:, None, None], rows[:, :, None], columns[:, None, :]]
        parts = values[image[:, None, None], :, rows[:, :, None], columns[:, None, :]]  # (B, h, w, channels)
        return parts.permute(0, 3, 1, 2)

    def of_inputs(self, inputs: Inputs) -> Inputs:
        """The parts of images and depth; grids of as many patches as before, of that part; vectors as they are."""
        cut = {name: self.of(values) for name, values in inputs.items() if name not in ("embedding", "grid")}
        if "embedding" in inputs:
            cut["embedding"] = inputs["embedding"]
        if "grid" in inputs:
            rows, columns = (
                (part / all_, (2 * self.corner[:, axis] + part) / all_ - 1)  # share of the side, and its middle
                for axis, (part, all_) in enumerate(zip(self.size, inputs["image"].shape[2:], strict=True))
            )
            theta = inputs["grid"].new_zeros((len(self.corner), 2, 3), dtype=torch.float32)  # x, y
            theta[:, 0, 0], theta[:, 1, 1], theta[:, 0, 2], theta[:, 1, 2] = columns[0], rows[0], columns[1], rows[1]
            cut["grid"] = _placed_patches(inputs["grid"], theta)
        return cut


def extras_of(inputs: Inputs) -> Inputs:
    """Those of ``inputs`` that come beside the image: ``depth``, ``embedding``, ``grid``, where they are there."""
    return {name: inputs[name] for name in ("depth", "embedding", "grid") if name in inputs}


def strong_view(inputs: Inputs, chances: Tensor, params: AugmentationParams) -> Inputs:
    """Change colours of most images much, make some grey, blur half of them: [0, 1] -> [0, 1].

    Args:
        chances: [B, STRONG_CHANCES].
    """
    image, (of_colour, of_rest) = inputs["image"], chances.split((COLOUR_CHANCES, 3), dim=1)
    apply, grey, blur = (of_rest[:, i].view(-1, *[1] * (image.ndim - 1)) for i in range(3))  # (B, 1, 1, ...) each
    changed = change_colours(image, of_colour, params.strong_jitter, params.strong_hue)
    image = torch.where(apply < _COLOUR_SHARE, changed, image)
    image = torch.where(grey < _GREY_SHARE, image.mean(1, keepdim=True), image)
    average = F.avg_pool2d if image.ndim == 4 else F.avg_pool3d
    soft = average(F.pad(image, [2, 2] * (image.ndim - 2), mode="replicate"), kernel_size=3, stride=1)
    soft = average(soft, kernel_size=3, stride=1)
    return inputs | {"image": image + (soft - image) * (2 * blur - 1).clamp_min(0)}


def change_colours(images: Tensor, chances: Tensor, amount: float, hue: float) -> Tensor:
    """Change brightness, contrast and, of RGB, saturation by up to ``amount``, and turn the hue by up to ``hue`` turns.

    Args:
        images: [B, 3 or 1, H, W] or [B, 1, H, W, Z] in [0, 1]; so is the result.
        chances: [B, COLOUR_CHANCES].
    """
    amounts_3B = (1 + amount * (2 * chances[:, :3] - 1)).T
    brightness, contrast, saturation = amounts_3B.reshape(3, -1, *[1] * (images.ndim - 1))
    images = images * brightness
    images = (images - (mean := images.mean(tuple(range(1, images.ndim)), keepdim=True))) * contrast + mean
    if images.shape[1] == 3:
        angle = (2 * math.pi * hue * (2 * chances[:, 3] - 1))[:, None, None]
        one, third = torch.eye(3, device=images.device), torch.full((3, 3), 1 / 3, device=images.device)
        turn = (one.roll(1, 0) - one.roll(1, 1)) / math.sqrt(3)  # [[0, -1, 1], [1, 0, -1], [-1, 1, 0]], on the device
        rotation = angle.cos() * (one - third) + angle.sin() * turn  # about the axis of greys, which it removes
        mix = third + saturation[:, :, 0] * rotation
        images = torch.einsum("bij,bjhw->bihw", mix, images)
    return images.clamp(0, 1)


def random_boxes(chances: Tensor, size: tuple[int, ...], share: float = 0.5) -> Tensor:
    """A rectangle, or of volumes a cuboid, in some of the images -> bool [B, 1, ...], true within.

    It is 2 to 40 % of the image, the ratio of its sides 0.3 to 1 / 0.3.

    Args:
        chances: [B, `box_chances`].
        share: of the images that have one.
    """
    axes, area = len(size), 0.02 + 0.38 * chances[:, 1]
    if axes == 2:
        ratio = 0.3 ** (1 - 2 * chances[:, 2])
        sides = torch.stack([(area * ratio).sqrt(), (area / ratio).sqrt()])  # shares of height and width
    else:
        ratios_2B = 0.3 ** (1 - 2 * chances[:, 2:4].T)  # of rows and of columns to slices
        sides = (area / ratios_2B.prod(dim=0)) ** (1 / 3) * torch.cat([ratios_2B, torch.ones_like(area)[None]])
    has_one = (chances[:, 0] < share).view(-1, *[1] * (axes + 1))
    return _boxes(sides.clamp_max(1), chances[:, axes + 1 :].T, size) & has_one


def square_boxes(chances: Tensor, size: tuple[int, ...], side: float = 2 / 3) -> Tensor:
    """A box of ``side`` times the image's sides, anywhere: bool [B, 1, ...]. ``chances`` is [B, >= spatial axes]."""
    return _boxes(chances.new_full((len(size), len(chances)), side), chances[:, : len(size)].T, size)


def pasted(inputs: Inputs, others: Inputs, box_B1HW: Tensor) -> Inputs:
    """``others`` within the boxes, ``inputs`` elsewhere; of grids, the patches whose middle lies in the box; of
    vectors, the mean of both, weighed by their areas.
    """
    mixed = {}
    for name, values in inputs.items():
        if name == "grid":
            side = round(values.shape[1] ** 0.5)
            patches = F.interpolate(box_B1HW.float(), (side, side), mode="nearest").flatten(2).transpose(1, 2) > 0.5
            mixed[name] = torch.where(patches, others[name], values)
        elif name == "embedding":
            mixed[name] = torch.lerp(values, others[name], box_B1HW.to(values.dtype).mean((2, 3)))
        else:
            mixed[name] = torch.where(box_B1HW, others[name], values)
    return mixed


def _boxes(sides_AB: Tensor, corner_AB: Tensor, size: tuple[int, ...]) -> Tensor:
    inside = torch.ones([len(sides_AB[0]), *[1] * (len(size) + 1)], dtype=torch.bool, device=sides_AB.device)
    for axis, length in enumerate(size):
        start = corner_AB[axis] * (1 - sides_AB[axis]) * length
        place = torch.arange(length, device=sides_AB.device) + 0.5
        along = (place >= start[:, None]) & (place < (start + sides_AB[axis] * length)[:, None])
        inside = inside & along.view(-1, 1, *[length if other == axis else 1 for other in range(len(size))])
    return inside


def _sampling_matrix(chances: Tensor, height: int, width: int, params: AugmentationParams) -> Tensor:
    """Where an output pixel comes from, [B, 2, 3], in coordinates from -1 to 1 (x, y)."""
    flip = torch.where((chances[:, 0] < 0.5) & params.flip, -1.0, 1.0)
    zoom = (1 + params.zoom) ** (1 - 2 * chances[:, 1])
    angle = math.radians(params.rotate) * (2 * chances[:, 2] - 1)
    shift = 2 * params.shift * (2 * chances[:, 3:] - 1)  # (B, 2)
    cosine, sine = zoom * angle.cos(), zoom * angle.sin()
    first = torch.stack([flip * cosine, -flip * sine * height / width, shift[:, 0]], dim=1)
    second = torch.stack([sine * width / height, cosine, shift[:, 1]], dim=1)
    return torch.stack([first, second], dim=1)


def _placed_patches(grids_BPG: Tensor, theta: Tensor) -> Tensor:
    side = round(grids_BPG.shape[1] ** 0.5)
    maps = grids_BPG.transpose(1, 2).unflatten(2, (side, side))
    grid = F.affine_grid(theta, [len(maps), 1, side, side], align_corners=False)
    return F.grid_sample(maps, grid, padding_mode="border", align_corners=False).flatten(2).transpose(1, 2)
