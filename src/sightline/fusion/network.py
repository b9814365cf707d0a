"""Camera views and joints to one feature.

The designs, by what encodes the views (ResNet-18: He et al., "Deep Residual Learning for Image Recognition", 2016):

    nine          one ResNet-18 over the views stacked to nine channels: early fusion, a third of the arithmetic
    three         a ResNet-18 for each view
    shared        one ResNet-18, run on each view
    images_only   as nine, without the joints
    joints_only   the joints alone
"""

from pathlib import Path
from typing import Any, Literal

import torch
import torchvision
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from sightline.core.errors import UserError
from sightline.core.tensors import check_joints, check_layout, check_pixels, check_range
from sightline.core.weights_file import check_finite, unwrapped_name

Design = Literal["nine", "three", "shared", "images_only", "joints_only"]
Conv1Init = Literal["independent", "copy", "copy_mean", "block"]
Norm = Literal["bn", "frozen_bn", "gn"]
VIEWS = 3  # left, right, global
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_LARGEST = 10.0  # no normalised image has such a number: the range of views is 0..1, with some room
_NORMALISE = "divide 0..255 by 255, subtract IMAGENET_MEAN and divide by IMAGENET_STD"
_STATE_KEYS = ("state_dict", "model_state_dict")  # under which training codes save it
_OTHERS = 0.1  # weight of the cameras that a filter does not belong to, with the block initialisation


class ResNet18Encoder(nn.Module):
    """torchvision's ResNet-18 up to the pooling, with a wider first convolution and a linear layer.

    Args:
        output_dim: numbers in the feature.
        pretrained: a torchvision tag ("IMAGENET1K_V1", downloaded where it is not cached), a file with the state dict
            (safetensors, or a torch file that holds nothing but tensors; under ``state_dict`` or not, with the prefixes
            that wrappers leave or not, with any ``fc`` or none), or None for random weights.
        in_channels: 3 for each camera.
        conv1_init: how the first convolution's filters for 3 channels become those for all: ``copy`` to each camera
            (the network then starts on the sum of the views), ``copy_mean`` the same times 3 / in_channels, ``block``
            a third of the filters for each camera (the others weighted 0.1), ``independent`` new random filters.
        norm: ``bn``; ``frozen_bn``, whose statistics and weights never change; ``gn``, groups of 16 channels.

    Raises:
        UserError: no such tag or file, weights of another network, ``in_channels`` not a multiple of 3, or pretrained
            weights for ``gn``, whose statistics they do not hold.
    """

    def __init__(
        self,
        output_dim: int = 256,
        pretrained: str | Path | None = None,
        in_channels: int = 9,
        conv1_init: Conv1Init = "independent",
        norm: Norm = "bn",
    ) -> None:
        super().__init__()
        if in_channels < 3 or in_channels % 3:
            raise UserError(f"in_channels must be a multiple of 3, not {in_channels}: each camera is RGB")
        if pretrained and norm == "gn":
            raise UserError("norm gn has no place for the statistics of pretrained weights; take bn or frozen_bn")
        layer = {"bn": nn.BatchNorm2d, "frozen_bn": FrozenBatchNorm2d, "gn": _group_norm}[norm]
        resnet = torchvision.models.resnet18(norm_layer=layer)
        if pretrained:
            _load(resnet, pretrained)
        if in_channels != 3:
            resnet.conv1 = _widened(resnet.conv1, in_channels, conv1_init)
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
        check_range("images", images, _may_look(self, images), -_LARGEST, _LARGEST, "about -2..3", _NORMALISE)
        return self.fc(self.resnet(images).flatten(1))


class ImageJointEncoder(nn.Module):
    """Three views and the joints -> one feature [B, fusion_dim], not negative.

    With the default dimensions and 16 joints, design ``nine`` has 11,755,840 parameters, ``three`` 34,139,200.

    Args:
        joint_dim: joint states; they come normalised.
        image_feature_dim: numbers in the feature of the views, and of the joints; with ``three`` and ``shared``, half
            as many for each view.
        fusion_dim: numbers in the result.
        pretrained, conv1_init, norm: see `ResNet18Encoder`.
        design: see the top of this module.
        extras: further inputs by name: (D,) for vectors, (P, C) for grids of P patches, which are pooled by attention.
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
        design: Design = "nine",
        conv1_init: Conv1Init = "independent",
        norm: Norm = "bn",
        extras: dict[str, tuple[int, ...]] | None = None,
    ) -> None:
        super().__init__()
        self.design: Design = design
        self.joint_dim = joint_dim
        width, stacked = image_feature_dim, design in ("nine", "images_only")
        per_view = width if stacked else width // 2
        if design != "joints_only":
            count, channels = (VIEWS if design == "three" else 1), (3 * VIEWS if stacked else 3)
            self.image_encoders = nn.ModuleList(
                ResNet18Encoder(per_view, pretrained, channels, conv1_init, norm) for _ in range(count)
            )
        views = {"joints_only": 0, "three": VIEWS * per_view, "shared": VIEWS * per_view}.get(design, width)
        joints = 0 if design == "images_only" else width if design in ("nine", "joints_only") else width // 2
        if joints:
            self.joint_fc = nn.Sequential(nn.Linear(joint_dim, 128), nn.ReLU(), nn.Linear(128, joints), nn.ReLU())
        self.extras = nn.ModuleDict({name: ExtraInput(shape, width) for name, shape in sorted((extras or {}).items())})
        entering = views + joints + width * len(self.extras)
        self.fusion_fc = nn.Sequential(nn.Linear(entering, 512), nn.ReLU(), nn.Linear(512, fusion_dim), nn.ReLU())
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(3, 1, 1))

    def forward(
        self,
        left_img: Tensor,
        right_img: Tensor,
        global_img: Tensor,
        joint: Tensor,
        extras: dict[str, Tensor] | None = None,
        hidden: dict[str, Tensor] | None = None,
    ) -> Tensor:
        """Views [B, 3, H, W], in [0, 1] or uint8, and joints [B, joint_dim] of any real type -> [B, fusion_dim].

        ``extras`` may lack any of the further inputs. ``hidden``, bool [B] by name, hides one from some samples. A
        learned vector replaces what is missing or hidden.

        Raises:
            UserError: views or joints, where the design takes them, of another layout, type or range, see
                `sightline.core.tensors`.
        """
        parts = []
        if self.design != "joints_only":
            for name, view in (("left_img", left_img), ("right_img", right_img), ("global_img", global_img)):
                check_layout(name, view, 3)
                check_pixels(name, view, _may_look(self, view))
            parts.append(self._encode([self._normalised(view) for view in (left_img, right_img, global_img)]))
        if self.design != "images_only":
            check_joints("joint", joint, self.joint_dim)
            parts.append(self.joint_fc(joint.to(self.mean.dtype)))
        for name, module in self.extras.items():
            parts.append(module((extras or {}).get(name), (hidden or {}).get(name), len(joint)))
        return self.fusion_fc(torch.cat(parts, dim=1))

    def _normalised(self, view: Tensor) -> Tensor:
        values = view.to(self.mean.dtype)  # before the division, which half precision rounds
        values = values / 255 if view.dtype == torch.uint8 else values
        return (values - self.mean) / self.std

    def _encode(self, views: list[Tensor]) -> Tensor:
        fast = torch.channels_last
        if self.design == "shared":
            features = self.image_encoders[0](torch.cat(views).contiguous(memory_format=fast))
            return torch.cat(features.chunk(VIEWS), dim=1)
        if self.design == "three":
            pairs = zip(self.image_encoders, views, strict=True)
            return torch.cat([encode(view.contiguous(memory_format=fast)) for encode, view in pairs], dim=1)
        return self.image_encoders[0](torch.cat(views, dim=1).contiguous(memory_format=fast))


class ExtraInput(nn.Module):
    """A precomputed feature -> [B, width]; a learned vector where it is missing.

    Args:
        shape: (D,), or (P, C) with P patches of a square, pooled by attention with one learned query.
        width: numbers in the result.
    """

    positions: Tensor

    def __init__(self, shape: tuple[int, ...], width: int) -> None:
        super().__init__()
        self.enter = nn.Linear(shape[-1], width)
        self.missing = nn.Parameter(torch.zeros(width))
        self.query = nn.Parameter(torch.randn(width) / width**0.5) if len(shape) == 2 else None
        if self.query is not None:
            self.register_buffer("positions", _positions(shape[0], width))

    def forward(self, values: Tensor | None, hidden: Tensor | None, batch: int) -> Tensor:
        if values is None:
            return self.missing.expand(batch, -1)
        feature = self.enter(values.to(self.enter.weight.dtype))
        if self.query is not None:
            patches = feature + self.positions  # (B, P, width)
            attention = (patches @ self.query / len(self.query) ** 0.5).softmax(dim=1)
            feature = (attention[..., None] * patches).sum(dim=1)
        return feature if hidden is None else torch.where(hidden[:, None], self.missing, feature)


def _positions(patches: int, width: int) -> Tensor:
    """Sines and cosines of row and column, [P, width] (Vaswani et al. 2017, in two dimensions)."""
    side = round(patches**0.5)
    if side * side != patches:
        raise UserError(f"a grid of {patches} patches is not square")
    frequencies = 100.0 ** -torch.linspace(0, 1, width // 4)
    angles = torch.arange(side)[:, None] * frequencies  # (side, width / 4)
    waves = torch.cat([angles.sin(), angles.cos()], dim=1)
    rows, columns = waves[:, None].expand(-1, side, -1), waves[None].expand(side, -1, -1)
    return torch.cat([rows, columns], dim=2).reshape(patches, -1)


def _group_norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(channels // 16, channels)


def _widened(conv1: nn.Conv2d, in_channels: int, init: Conv1Init) -> nn.Conv2d:
    """A first convolution for ``in_channels``, whose filters come from those for three."""
    wide = nn.Conv2d(in_channels, 64, kernel_size=7, stride=2, padding=3, bias=False)
    nn.init.kaiming_normal_(wide.weight, mode="fan_out", nonlinearity="relu")  # as torchvision does
    if init == "independent":
        return wide
    cameras = in_channels // 3
    weight = conv1.weight.detach().repeat(1, cameras, 1, 1)
    if init == "copy_mean":
        weight = weight / cameras
    if init == "block":
        owner = torch.arange(64)[:, None] % cameras == torch.arange(in_channels)[None] // 3  # (64, in_channels)
        weight = weight * torch.where(owner, 1.0, _OTHERS)[..., None, None]
    wide.weight.data.copy_(weight)
    return wide


def _may_look(module: nn.Module, images: Tensor) -> bool:
    """Whether to look at the numbers: on a GPU, only outside training."""
    return not module.training or images.device.type == "cpu"


def _load(resnet: nn.Module, source: str | Path) -> None:
    path = Path(source)
    try:
        if path.is_file():
            is_torch = path.suffix != ".safetensors"
            state = torch.load(path, map_location="cpu", weights_only=True) if is_torch else load_file(path)
        else:
            weights = torchvision.models.get_weight(f"ResNet18_Weights.{source}")
            state = weights.get_state_dict(check_hash=True)
    except (ValueError, KeyError):
        tags = ", ".join(torchvision.models.ResNet18_Weights.__members__)
        raise UserError(f"{source}: neither a file nor a tag of torchvision's ResNet18 ({tags})") from None
    except (OSError, RuntimeError, EOFError, SafetensorError, ModuleNotFoundError) as error:
        reason = " ".join(str(error).split())[:150]
        raise UserError(f"{source}: weights cannot be had ({reason}); name a file, or leave pretrained out") from None
    except Exception as error:  # what unpickling refuses to run
        raise UserError(f"{source}: holds more than tensors ({type(error).__name__}), and is not loaded") from None
    weights = _weights_in(source, state)
    check_finite(path, weights)
    expected = {name: tensor for name, tensor in resnet.state_dict().items() if not name.startswith("fc.")}
    _check_names(source, set(expected), set(weights))
    for name, tensor in weights.items():
        wanted = expected.get(name, tensor)
        if tensor.shape != wanted.shape or tensor.is_floating_point() != wanted.is_floating_point():
            raise UserError(
                f"{source}: {name} is {tensor.dtype} {list(tensor.shape)}, but {list(wanted.shape)} in torchvision's "
                "ResNet18; take weights of that network, for three channels"
            )
    resnet.load_state_dict(weights, strict=False)  # without fc, and in old files without num_batches_tracked


def _weights_in(source: str | Path, content: Any) -> dict[str, Tensor]:
    """The tensors of a state dict, which may lie under a key, by the names that they have without wrappers; no fc."""
    content = content if isinstance(content, dict) else {}
    state = next((content[key] for key in _STATE_KEYS if isinstance(content.get(key), dict)), content)
    weights: dict[str, Tensor] = {}
    for name, tensor in state.items():
        plain = unwrapped_name(name)
        if isinstance(tensor, Tensor) and not plain.startswith("fc."):
            if plain in weights:
                raise UserError(f"{source}: holds {plain} twice, with a prefix and without; keep one set of weights")
            weights[plain] = tensor
    return weights


def _check_names(source: str | Path, expected: set[str], names: set[str]) -> None:
    """Raise `UserError` where a weight of the network is missing, or there is one that it has not."""
    missing, more = (
        sorted(name for name in left if not name.endswith("num_batches_tracked"))
        for left in (expected - names, names - expected)
    )
    if not (missing or more):
        return
    lacks = f"lacks {len(missing)} of its weights, such as {missing[0]}" if missing else ""
    holds = f"holds {len(more)} that it has not, such as {more[0]}" if more else ""
    reason = " and ".join(filter(None, (lacks, holds)))
    raise UserError(
        f"{source}: not the state dict of torchvision's ResNet18: {reason}; rename them, or take another file"
    )
