"""Models with their preprocessing, as modules that a program can be made of: raw images in, results out.

Each has ``inputs``, in the order of its arguments, and ``outputs``, by name, described for people.
"""

import numpy as np
import torch
from monai.data.utils import dense_patch_slices
from torch import Tensor, nn
from torch.nn import functional as F

from sightline.core.errors import UserError
from sightline.depth.network import Encoder
from sightline.depth.preprocessing import IMAGE_SIZE, Preprocessing
from sightline.export.resampling import DOUBLE, is_tall, length, nearest, placed, resize, span, weights
from sightline.fusion.depth_images import DEPTH_IMAGES
from sightline.fusion.network import NO_READING
from sightline.fusion.policy import FusionPolicy, PolicyConfig
from sightline.segmentation.model import SegmentationModel


class EncoderProgram(nn.Module):
    """Raw depth uint16 [N, H, W] (or pictures uint8 [N, H, W, C]) -> embeddings float32 [N, D].

    The embedding of an image without a valid pixel is NaN.
    """

    def __init__(self, encoder: Encoder, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.encoder, self.preprocessing = encoder, preprocessing
        self.channels = encoder.config.input_channels
        is_depth = self.channels == 1
        self.inputs = {"images": "raw depth uint16 [N, H, W]" if is_depth else f"uint8 [N, H, W, {self.channels}]"}
        self.outputs = {"embeddings": f"float32 [N, {encoder.config.latent_dim}], NaN without a valid pixel"}

    def example(self, count: int, size: tuple[int, int]) -> tuple[Tensor, ...]:
        """Inputs such as the program takes."""
        if self.channels == 1:
            return (torch.randint(1, 5000, (count, *size)).to(torch.uint16),)
        return (torch.randint(0, 255, (count, *size, self.channels), dtype=torch.uint8),)

    def dynamic(self) -> tuple[dict[int, str], ...]:
        """Names of the axes of each input that may have any length."""
        return ({0: "count", 1: "height", 2: "width"},)

    def forward(self, images: Tensor) -> Tensor:
        depth, valid = self.prepare(images)
        z = self.encoder(depth)
        return torch.where(valid.flatten(1).any(dim=1, keepdim=True), z, torch.full_like(z, torch.nan))

    def prepare(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Raw images -> what the encoder takes, and where it was measured, bool [N, 1, 128, 128]; see `preprocess`."""
        raw = images.float()
        raw = raw[:, None] if self.channels == 1 else raw.permute(0, 3, 1, 2)
        counts, valid = self._resized(self._decoded(raw))
        near, far = self.preprocessing.height_range
        depth = (counts - near) * float(np.float32(2 / (far - near))) - 1
        return _filled(depth.clamp(-1, 1), valid.float()), valid

    def _decoded(self, raw: Tensor) -> Tensor:
        """Counts behind the values of a file, see `sightline.recording.depth.decode`."""
        step = {"raw": 0, "rotr3": 8, "byteswap": 256}[self.preprocessing.depth_encoding]
        if not step:
            return raw
        upper = torch.floor(raw / step)
        return upper + (raw - step * upper) * (65536 // step)

    def _is_valid(self, counts: Tensor) -> Tensor:
        valid = counts >= 0
        for code in self.preprocessing.invalid:
            valid = valid & (counts != code)
        return valid

    def _resized(self, counts: Tensor) -> tuple[Tensor, Tensor]:
        """Counts [N, C, H, W] -> [N, C, S, S], 0 where invalid, and where all channels are valid [N, 1, S, S]."""
        axes = [torch.arange(counts.shape[axis], dtype=DOUBLE) for axis in (2, 3)]
        spans = span(length(axes[0]), length(axes[1]), self.preprocessing.fit, torch.trunc)
        if self.preprocessing.resize == "nearest":
            place = torch.arange(IMAGE_SIZE, dtype=DOUBLE)
            taken, inside = [], []
            for pixels, (first, side) in zip(axes, spans, strict=True):
                index = torch.floor((2 * place + 1) * side / (2 * IMAGE_SIZE)) + first
                inside.append((index >= 0) & (index < length(pixels)))
                taken.append(index.clamp(min=0).minimum(length(pixels) - 1).long())
            counts = counts[:, :, taken[0]][:, :, :, taken[1]]
            valid = self._is_valid(counts) & inside[0][:, None] & inside[1]
            return torch.where(valid, counts, 0.0), valid.all(dim=1, keepdim=True)
        rows, columns = (_footprints(*of) for of in zip(axes, spans, strict=True))
        seen = self._is_valid(counts).float()
        weighted, covered = (rows @ (values @ columns.T) for values in (counts * seen, seen))
        valid = covered >= 0.5 - 1e-6
        return torch.where(valid, weighted / covered.clamp(min=1e-6), 0.0), valid.all(dim=1, keepdim=True)


def _footprints(pixels: Tensor, of: tuple[Tensor, Tensor]) -> Tensor:
    """Shares [S, H] of pixels in the footprints of targets; see `sightline.depth.preprocessing.footprints`."""
    first, side = of
    step = side / IMAGE_SIZE
    edges = torch.arange(IMAGE_SIZE + 1, dtype=DOUBLE) * step + first
    overlap = torch.minimum(edges[1:, None], pixels + 1) - torch.maximum(edges[:-1, None], pixels)
    return (overlap.clamp(min=0) / step).float()


def _filled(depth: Tensor, valid: Tensor) -> Tensor:
    """Depth [N, C, S, S] with holes filled, see `sightline.depth.preprocessing.fill_holes`; valid [N, 1, S, S]."""
    if depth.shape[-1] == 1:
        return depth * valid
    counts, sums = (4 * F.avg_pool2d(values, 2) for values in (valid, depth * valid))
    coarse = _filled(sums / counts.clamp(min=1), (counts > 0).float())
    return torch.where(valid > 0, depth, coarse.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3))


class PolicyProgram(nn.Module):
    """A picture of each camera, uint8 [B, H, W, 3] of any size, joints, further inputs -> actions [B, steps, A]."""

    means: Tensor  # of the pixels of depth images that make one of the views' pixels

    def __init__(self, policy: FusionPolicy) -> None:
        super().__init__()
        self.policy, self.config = policy, policy.config
        config = policy.config
        self.cameras = () if config.design == "joints_only" else config.cameras
        self.inputs = {f"image_{camera}": "RGB, uint8 [B, H, W, 3]" for camera in self.cameras}
        self.inputs["joints"] = f"float32 [B, {len(config.joint_names)}], data units: {', '.join(config.joint_names)}"
        self.inputs |= {name: f"float32 [B, {', '.join(map(str, of))}]" for name, of in config.extras.items()}
        self.outputs = {"actions": f"float32 [B, {config.steps}, {config.actions}], {config.stride} frames apart"}
        if DEPTH_IMAGES in config.extras:
            source = config.extras[DEPTH_IMAGES][-1]
            means = F.adaptive_avg_pool2d(torch.eye(source)[None, None], (config.image_size, source))[0, 0]
            self.register_buffer("means", means, persistent=False)

    def example(self, count: int, size: tuple[int, int]) -> tuple[Tensor, ...]:
        """Inputs such as the program takes."""
        pictures = [torch.randint(0, 255, (count, *size, 3), dtype=torch.uint8) for _ in self.cameras]
        numbers = [(len(self.config.joint_names),), *self.config.extras.values()]
        return (*pictures, *(torch.rand(count, *shape) for shape in numbers))

    def dynamic(self) -> tuple[dict[int, str], ...]:
        """Names of the axes of each input that may have any length."""
        pictures = [{0: "batch", 1: f"height_{i}", 2: f"width_{i}"} for i in range(len(self.cameras))]
        return (*pictures, *({0: "batch"} for _ in range(1 + len(self.config.extras))))

    def forward(self, *inputs: Tensor) -> Tensor:
        views = [_view(picture, self.config) for picture in inputs[: len(self.cameras)]]
        joints, *further = inputs[len(self.cameras) :]
        extras = dict(zip(self.config.extras, further, strict=True))
        if DEPTH_IMAGES in extras:
            extras[DEPTH_IMAGES] = self._depth(extras[DEPTH_IMAGES])
        size = self.config.image_size
        empty = joints.new_zeros(joints.shape[0], len(self.config.cameras), 3, size, size)
        return self.policy(torch.stack(views, dim=1) if views else empty, joints, extras)

    def _depth(self, images: Tensor) -> Tensor:
        """`sightline.fusion.depth_images.resize_depth` of images whose size does not change."""
        measured = torch.where(images.isnan(), 0.0, 1.0)
        share, total = (self.means @ values @ self.means.T for values in (measured, images.nan_to_num(0.0)))
        return torch.where(share < 0.5, NO_READING, total / share.clamp(min=1e-6))


def _view(picture: Tensor, config: PolicyConfig) -> Tensor:
    """Pictures uint8 [B, H, W, 3] -> views [B, 3, S, S] in [0, 1]; see `sightline.fusion.views.square_view`."""
    pixels = picture.permute(0, 3, 1, 2).float()
    axes = [torch.arange(pixels.shape[axis], dtype=DOUBLE) for axis in (2, 3)]
    height, width = map(length, axes)
    spans = span(height, width, config.fit, torch.floor)
    many = torch.arange(pixels.shape[2] + pixels.shape[3], dtype=DOUBLE)  # no side is longer
    is_larger = torch.minimum(*(side for _, side in spans)) > config.image_size
    made = []
    for pixels_of_axis, (first, side) in zip(axes, spans, strict=True):
        smaller, larger = (
            weights(many, side, config.image_size, "box"),
            weights(many, side, config.image_size, "bicubic"),
        )
        made.append(placed(torch.where(is_larger, smaller, larger), pixels_of_axis, first, side))
    sides = (config.image_size, config.image_size)
    return resize(pixels, made[0], made[1], is_tall(spans[0][1], spans[1][1], sides)) / 255


class SegmentationProgram(nn.Module):
    """Images uint8 [B, H, W, 3] (grey: [B, H, W]) -> probabilities [B, C, h, w], and class ids uint8 [B, H, W].

    Args:
        windows: predict also from windows, where the model was trained on parts: as `predict segment` does, and slower.
    """

    def __init__(self, model: SegmentationModel, windows: bool) -> None:
        super().__init__()
        config = model.config
        if config.extras or config.image_size is None:
            what = ", ".join(config.extras) or "images of any size"
            raise UserError(f"cannot export a segmentation model with {what}; give one of 2-D images alone")
        self.model, self.size = model, config.image_size
        self.channels = config.image_channels
        fits = config.window and all(part <= side for part, side in zip(config.window, self.size, strict=True))
        self.window = config.window if windows and fits else None
        self.inputs = {"images": "uint8 [B, H, W]" if self.channels == 1 else "RGB, uint8 [B, H, W, 3]"}
        size = f"{self.size[0]}, {self.size[1]}"
        names = ", ".join(config.classes)
        self.outputs = {"probabilities": f"float32 [B, {len(config.classes)}, {size}]: {names}",
                        "mask": f"class ids uint8 [B, H, W]: 0..{len(config.classes) - 1}"}  # fmt: skip

    def example(self, count: int, size: tuple[int, int]) -> tuple[Tensor, ...]:
        """Inputs such as the program takes."""
        shape = (count, *size) if self.channels == 1 else (count, *size, self.channels)
        return (torch.randint(0, 255, shape, dtype=torch.uint8),)

    def dynamic(self) -> tuple[dict[int, str], ...]:
        """Names of the axes of each input that may have any length."""
        return ({0: "batch", 1: "height", 2: "width"},)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        pixels = images[:, None] if self.channels == 1 else images.permute(0, 3, 1, 2)
        axes = [torch.arange(pixels.shape[axis], dtype=DOUBLE) for axis in (2, 3)]
        shrinks = (length(axes[0]) >= self.size[0]) & (length(axes[1]) >= self.size[1])
        made = [
            torch.where(
                shrinks, weights(axis, length(axis), side, "box"), weights(axis, length(axis), side, "bilinear")
            )
            for axis, side in zip(axes, self.size, strict=True)
        ]
        tall = is_tall(length(axes[0]), length(axes[1]), self.size)
        small = resize(pixels.float(), made[0], made[1], tall) / 255
        found = self.model(small).softmax(dim=1)
        if self.window:
            found = (found + self._of_windows(small, self.window)) / 2
        rows, columns = (
            nearest(torch.arange(side, dtype=DOUBLE), axis) for side, axis in zip(self.size, axes, strict=True)
        )
        return found, found.argmax(dim=1)[:, rows][:, :, columns].to(torch.uint8)

    def _of_windows(self, images: Tensor, window: tuple[int, ...]) -> Tensor:
        """Mean of predictions from windows, half of one apart; see `SegmentationModel.probabilities`."""
        places = dense_patch_slices(self.size, window, tuple(side // 2 for side in window))
        parts = torch.cat([images[:, :, rows, columns] for rows, columns in places])
        of_parts = self.model(parts).softmax(dim=1).unflatten(0, (len(places), -1))
        total, times = torch.zeros(self.size), torch.zeros(self.size)
        for part, (rows, columns) in zip(of_parts.unbind(0), places, strict=True):
            around = (columns.start, self.size[1] - columns.stop, rows.start, self.size[0] - rows.stop)
            total, times = total + F.pad(part, around), times + F.pad(torch.ones(window), around)
        return total / times


class VolumeProgram(nn.Module):
    """Windows of a volume, uint8 [B, rows, columns, slices] -> probabilities [B, C, rows, columns, slices].

    Windows have the size of those that it was trained on. They are cut from a volume whose grey values, size and slices
    are as the model's ``intake``, ``image_size`` and ``slice_step`` say; how they overlap is the caller's choice.
    """

    def __init__(self, model: SegmentationModel) -> None:
        super().__init__()
        assert model.config.window is not None
        self.model, self.window = model, model.config.window
        size, classes = ", ".join(map(str, self.window)), model.config.classes
        self.inputs = {"windows": f"grey values, uint8 [B, {size}]: rows, columns, slices"}
        self.outputs = {"probabilities": f"float32 [B, {len(classes)}, {size}]: {', '.join(classes)}"}

    def example(self, count: int, _: tuple[int, int]) -> tuple[Tensor, ...]:
        """Inputs such as the program takes."""
        return (torch.randint(0, 255, (count, *self.window), dtype=torch.uint8),)

    def dynamic(self) -> tuple[dict[int, str], ...]:
        """Names of the axes of each input that may have any length."""
        return ({0: "batch"},)

    def forward(self, windows: Tensor) -> Tensor:
        return self.model(windows[:, None]).softmax(dim=1)


Program = EncoderProgram | PolicyProgram | SegmentationProgram | VolumeProgram
