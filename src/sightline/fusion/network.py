"""Camera views and joints to one feature.

The designs, by what encodes the V views (ResNet-18: He et al., "Deep Residual Learning for Image Recognition", 2016):

    stacked       one ResNet-18 over the views stacked to 3V channels: early fusion, 1 / V of the arithmetic
    separate      a ResNet-18 for each view
    shared        one ResNet-18, run on each view
    images_only   as stacked, without the joints
    joints_only   the joints alone

Depth images are D further channels of the stack; with separate and shared, a ResNet-18 of their own encodes them.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_args

import torch
import torchvision
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from sightline.core.errors import UserError
from sightline.core.tensors import check_joints, check_layout, check_pixels, check_range, may_look
from sightline.fusion.pretrained import load_resnet18

Design = Literal["stacked", "separate", "shared", "images_only", "joints_only"]
Conv1Init = Literal["independent", "copy", "copy_mean", "block"]
Norm = Literal["bn", "frozen_bn", "gn"]
RENAMED = {"nine": "stacked", "three": "separate"}  # designs by the names that they had in older versions
VIEW_NAMES = ("left_img", "right_img", "global_img")  # arguments of an encoder of three views
NO_READING = -2.0  # of depth images: a pixel where nothing was measured; the others are in [-1, 1]
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_LARGEST = 10.0  # no normalised image has such a number: the range of views is 0..1, with some room
_NORMALISE = "divide 0..255 by 255, subtract IMAGENET_MEAN and divide by IMAGENET_STD"
OF_PATCH = 32  # numbers that are kept of each patch of a grid
_OTHERS = 0.1  # weight of the cameras that a filter does not belong to, with the block initialisation


class ResNet18Encoder(nn.Module):
    """torchvision's ResNet-18 up to the pooling, with a wider first convolution and a linear layer.

    Args:
        output_dim: numbers in the feature.
        pretrained: a torchvision tag ("IMAGENET1K_V1", downloaded where it is not cached), a file with the state dict
            (safetensors, or a torch file that holds nothing but tensors; under ``state_dict`` or not, with the prefixes
            that wrappers leave or not, with any ``fc`` or none), or None for random weights.
        in_channels: 3 for each camera, and ``depth_channels``, which come last.
        conv1_init: how the first convolution's filters for 3 channels become those for all: ``copy`` to each camera
            (the network then starts on the sum of the views), ``copy_mean`` the same times 3 / in_channels, ``block``
            an equal share of the filters for each camera (the others weighted 0.1), ``independent`` new random filters.
            A channel of depth counts as a camera whose picture is grey.
        norm: ``bn``; ``frozen_bn``, whose statistics and weights never change; ``gn``, groups of 16 channels.
        depth_channels: how many of ``in_channels`` are depth rather than RGB.

    Raises:
        UserError: no such tag or file, weights of another network, channels of RGB that are not a multiple of 3, or
            pretrained weights for ``gn``, whose statistics they do not hold.
    """

    def __init__(
        self,
        output_dim: int = 256,
        pretrained: str | Path | None = None,
        in_channels: int = 9,
        conv1_init: Conv1Init = "independent",
        norm: Norm = "bn",
        depth_channels: int = 0,
    ) -> None:
        super().__init__()
        of_colour = in_channels - depth_channels
        if in_channels < 1 or not 0 <= depth_channels <= in_channels or of_colour % 3:
            beside = f" beside depth_channels={depth_channels}" if depth_channels else ""
            raise UserError(f"in_channels must be a multiple of 3{beside}, not {of_colour}: each camera is RGB")
        if pretrained and norm == "gn":
            raise UserError("norm gn has no place for the statistics of pretrained weights; take bn or frozen_bn")
        layer = {"bn": nn.BatchNorm2d, "frozen_bn": FrozenBatchNorm2d, "gn": _group_norm}[norm]
        resnet = torchvision.models.resnet18(norm_layer=layer)
        if pretrained:
            load_resnet18(resnet, pretrained)
        if (of_colour, depth_channels) != (3, 0):
            resnet.conv1 = _widened(resnet.conv1, of_colour // 3, depth_channels, conv1_init)
        self.in_channels = in_channels
        self.resnet = nn.Sequential(*list(resnet.children())[:-1])
        self.fc = nn.Linear(512, output_dim)

    def forward(self, images: Tensor) -> Tensor:
        """Images [B, in_channels, H, W], normalised as ImageNet's, -> [B, output_dim].

        Raises:
            UserError: another layout, whole numbers, or numbers that are not normalised, see `sightline.core.tensors`.
        """
        check_layout("images", images, self.in_channels)
        if not images.is_floating_point():
            raise UserError(f"images must be normalised floating point, not {images.dtype}; {_NORMALISE}")
        check_range("images", images, may_look(self, images), -_LARGEST, _LARGEST, "about -2..3", _NORMALISE)
        return self.fc(self.resnet(images).flatten(1))


class ImageJointEncoder(nn.Module):
    """Views and the joints -> one feature [B, fusion_dim], not negative.

    With the default dimensions, three views and 16 joints, design ``stacked`` has 11,755,840 parameters, ``separate``
    34,139,200. Every view more of ``stacked`` costs 9,408.

    Args:
        joint_dim: joint states; they come normalised.
        image_feature_dim: numbers in the feature of the views, and of the joints; with ``separate`` and ``shared``,
            half as many for each view.
        fusion_dim: numbers in the result.
        pretrained, conv1_init, norm: see `ResNet18Encoder`.
        design: see the top of this module.
        extras: further inputs by name: (D,) for vectors, (P, C) for grids of P patches, see `ExtraInput`.
        cameras: number of views V; ``joints_only`` needs none.
        depth: channels of depth images, see the top of this module; 0 for none.

    Raises:
        UserError: a design that there is not, one that sees images without a camera or depth, or ``joints_only`` with
            depth.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        joint_dim: int = 16,
        image_feature_dim: int = 256,
        fusion_dim: int = 256,
        pretrained: str | Path | None = None,
        *,
        design: Design = "stacked",
        conv1_init: Conv1Init = "independent",
        norm: Norm = "bn",
        extras: dict[str, tuple[int, ...]] | None = None,
        cameras: int = 3,
        depth: int = 0,
    ) -> None:
        super().__init__()
        check_design(design, cameras, depth)
        self.design: Design = design
        self.joint_dim, self.cameras, self.depth = joint_dim, cameras, depth
        width, self.stacked = image_feature_dim, design in ("stacked", "images_only")
        per_view = width if self.stacked else width // 2
        of_views = {"separate": [(3, 0)] * cameras, "shared": [(3, 0)] * min(cameras, 1)}.get(design, [])
        of_depth = [(depth, depth)] if depth else []
        channels = [(3 * cameras + depth, depth)] if self.stacked else of_views + of_depth
        if design != "joints_only":
            self.image_encoders = nn.ModuleList(
                ResNet18Encoder(per_view, pretrained, count, conv1_init, norm, of_them) for count, of_them in channels
            )
        images = 0 if design == "joints_only" else 1 if self.stacked else cameras + len(of_depth)
        joints = 0 if design == "images_only" else width if design in ("stacked", "joints_only") else width // 2
        if joints:
            self.joint_fc = nn.Sequential(nn.Linear(joint_dim, 128), nn.ReLU(), nn.Linear(128, joints), nn.ReLU())
        self.extras = nn.ModuleDict({name: ExtraInput(shape, width) for name, shape in sorted((extras or {}).items())})
        entering = per_view * images + joints + width * len(self.extras)
        self.fusion_fc = nn.Sequential(nn.Linear(entering, 512), nn.ReLU(), nn.Linear(512, fusion_dim), nn.ReLU())
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(3, 1, 1))

    def forward(
        self,
        left_img: Tensor | None = None,
        right_img: Tensor | None = None,
        global_img: Tensor | None = None,
        joint: Tensor | None = None,
        extras: dict[str, Tensor] | None = None,
        hidden: dict[str, Tensor] | None = None,
        *,
        views: Sequence[Tensor] | Tensor | None = None,
        depth: Tensor | None = None,
    ) -> Tensor:
        """Views [B, 3, H, W], in [0, 1] or uint8, and joints [B, joint_dim] of any real type -> [B, fusion_dim].

        Three views may come one by one, any number as ``views``: V tensors, or one [B, V, 3, H, W]. ``depth`` is
        [B, D, H, W] in [-1, 1], with `NO_READING` where nothing was measured.

        ``extras`` may lack any of the further inputs. ``hidden``, bool [B] by name, hides one from some samples. A
        learned vector replaces what is missing or hidden.

        Raises:
            UserError: another number of views, or views, depth or joints, where the design takes them, of another
                layout, type or range, see `sightline.core.tensors`.
        """
        parts = []
        if self.design != "joints_only":
            of_cameras = self._views((left_img, right_img, global_img), views)
            parts.append(self._encode([self._normalised(view) for view in of_cameras], self._depth(depth, of_cameras)))
        if self.design != "images_only":
            joint = _given("joint", joint)
            check_joints("joint", joint, self.joint_dim)
            parts.append(self.joint_fc(joint.to(self.mean.dtype)))
        for name, module in self.extras.items():
            parts.append(module((extras or {}).get(name), (hidden or {}).get(name), parts[0].shape[0]))
        return self.fusion_fc(torch.cat(parts, dim=1))

    def _views(self, one_by_one: tuple[Tensor | None, ...], views: Sequence[Tensor] | Tensor | None) -> list[Tensor]:
        """The views that were given, checked."""
        count, names = self.cameras, list(VIEW_NAMES)
        if views is None:
            if count != len(VIEW_NAMES):
                raise UserError(f"this encoder takes {count} views: call it with views=[...] of as many, joint=...")
            given = [_given(name, view) for name, view in zip(names, one_by_one, strict=True)]
        else:
            if any(view is not None for view in one_by_one):
                raise UserError(f"give views=..., or {', '.join(VIEW_NAMES)}, not both")
            if isinstance(views, Tensor) and (views.ndim != 5 or views.shape[1] != count):
                raise UserError(f"views must be [B, {count}, 3, H, W], not {list(views.shape)}")
            given = list(views.unbind(1) if isinstance(views, Tensor) else views)
            names = [f"views[{i}]" for i in range(count)]
        if len(given) != count:
            raise UserError(f"views must be {count} tensors [B, 3, H, W], one for each camera, not {len(given)}")
        for name, view in zip(names, given, strict=True):
            check_layout(name, view, 3)
            check_pixels(name, view, may_look(self, view))
        return given

    def _depth(self, depth: Tensor | None, views: list[Tensor]) -> list[Tensor]:
        """The depth images in a list, checked; no list item for an encoder without."""
        if not self.depth:
            if depth is not None:
                raise UserError("this encoder takes no depth: build it with depth=1, or leave depth out")
            return []
        depth = _given("depth", depth)
        check_layout("depth", depth, self.depth)
        if not depth.is_floating_point():
            raise UserError(f"depth must be floating point in -1..1, not {depth.dtype}; normalise it")
        look = may_look(self, depth)
        check_range("depth", depth, look, NO_READING, 1.5, f"-1..1, or {NO_READING:g}: no reading", "normalise it")
        if views and depth.shape[-2:] != views[0].shape[-2:]:
            sizes = [f"{height}x{width}" for height, width in (depth.shape[-2:], views[0].shape[-2:])]
            raise UserError(f"depth must have the size of the views, {sizes[1]}, not {sizes[0]}; resize it")
        return [depth.to(self.mean.dtype)]

    def _normalised(self, view: Tensor) -> Tensor:
        values = view.to(self.mean.dtype)  # before the division, which half precision rounds
        values = values / 255 if view.dtype == torch.uint8 else values
        return (values - self.mean) / self.std

    def _encode(self, views: list[Tensor], depth: list[Tensor]) -> Tensor:
        fast = torch.channels_last
        if self.stacked:
            return self.image_encoders[0](torch.cat([*views, *depth], dim=1).contiguous(memory_format=fast))
        if self.design == "shared" and views:
            of_views = self.image_encoders[0](torch.cat(views).contiguous(memory_format=fast))
            of_depth = [self.image_encoders[1](image.contiguous(memory_format=fast)) for image in depth]
            return torch.cat([*of_views.chunk(len(views)), *of_depth], dim=1)
        pairs = zip(self.image_encoders, [*views, *depth], strict=True)
        return torch.cat([encode(image.contiguous(memory_format=fast)) for encode, image in pairs], dim=1)


def _given(name: str, tensor: Tensor | None) -> Tensor:
    if tensor is None:
        raise UserError(f"{name} is missing: give it to the encoder")
    return tensor


def check_design(design: str, cameras: int, depth: int) -> None:
    """Raise `UserError` where there is no such design for so many cameras and channels of depth."""
    if design in RENAMED:
        raise UserError(f"design {design} is now called {RENAMED[design]}; write that")
    if design not in get_args(Design):
        raise UserError(f"design {design}: choose from {', '.join(get_args(Design))}")
    if cameras < 0 or depth < 0:
        raise UserError(f"cameras and depth must not be negative, not {cameras} and {depth}")
    if design == "joints_only" and depth:
        takers = ", ".join(name for name in get_args(Design) if name != "joints_only")
        raise UserError(f"design joints_only sees no images, so no depth images: leave them out, or take {takers}")
    if design != "joints_only" and not cameras + depth:
        raise UserError(f"design {design} needs a camera; without any take joints_only")


class ExtraInput(nn.Module):
    """A precomputed feature -> [B, width]; a learned vector where it is missing.

    Args:
        shape: (D,), or (P, C) of a grid: a few numbers are kept of each of the P patches, so that it is known where
            they are.
        width: numbers in the result.
    """

    def __init__(self, shape: tuple[int, ...], width: int) -> None:
        super().__init__()
        self.of_patch: nn.Module = nn.Identity()
        entering = shape[0]
        if len(shape) == 2:
            self.of_patch = nn.Sequential(nn.LayerNorm(shape[1]), nn.Linear(shape[1], OF_PATCH), nn.ReLU())
            entering *= OF_PATCH
        self.enter = nn.Linear(entering, width)
        self.missing = nn.Parameter(torch.zeros(width))

    def forward(self, values: Tensor | None, hidden: Tensor | None, batch: int) -> Tensor:
        if values is None:
            return self.missing.expand(batch, -1)
        feature = self.enter(self.of_patch(values.to(self.enter.weight.dtype)).flatten(1))
        return feature if hidden is None else torch.where(hidden[:, None], self.missing, feature)


def _group_norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(channels // 16, channels)


def _widened(conv1: nn.Conv2d, cameras: int, depth: int, init: Conv1Init) -> nn.Conv2d:
    """A first convolution for so many cameras and channels of depth, whose filters come from those for one camera."""
    wide = nn.Conv2d(3 * cameras + depth, 64, kernel_size=7, stride=2, padding=3, bias=False)
    nn.init.kaiming_normal_(wide.weight, mode="fan_out", nonlinearity="relu")  # as torchvision does
    if init == "independent":
        return wide
    of_camera = conv1.weight.detach()
    of_depth = of_camera.sum(dim=1, keepdim=True)  # a grey picture has the same number in all three channels
    weight = torch.cat([of_camera.repeat(1, cameras, 1, 1), of_depth.repeat(1, depth, 1, 1)], dim=1)
    source = torch.cat([torch.arange(cameras).repeat_interleave(3), cameras + torch.arange(depth)])  # of each channel
    if init == "copy_mean":
        weight = weight / (cameras + depth)
    if init == "block":
        owner = torch.arange(64)[:, None] % (cameras + depth) == source[None]  # (64, channels)
        weight = weight * torch.where(owner, 1.0, _OTHERS)[..., None, None]
    wide.weight.data.copy_(weight)
    return wide
