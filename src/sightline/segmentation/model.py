"""The segmentation model as a whole: normalisation and network, and the file they travel in.

The file is safetensors; its header holds a `SegmentationConfig`, from which the model is built and its training data
are read again.
"""

from pathlib import Path
from typing import Any, Literal

import torch
from monai.inferers import sliding_window_inference
from pydantic import Field, PositiveInt, SerializerFunctionWrapHandler, model_serializer, model_validator
from torch import Tensor, nn

from sightline.core.hub import HubModel
from sightline.core.tensors import check_layout, check_pixels, may_look
from sightline.core.weights_file import load_network, read_model_file, save_model_file
from sightline.grids.features import Extras
from sightline.recording.volumes import Intake
from sightline.segmentation.augmentation import Inputs, Window
from sightline.segmentation.network import Norm, Output, SegmentationNetwork
from sightline.segmentation.norms import CHANNELS_LAST
from sightline.segmentation.params import FrameParams
from sightline.segmentation.vnet import VNetwork

_KEY = "sightline_segmentation"  # in the header of the file
_OF_VOLUMES = ("network", "slice_step")  # entries that the header of a model of images does not have
NetworkName = Literal["unet", "vnet"]


class SegmentationConfig(FrameParams):
    """What a segmentation model is, and what it was trained on."""

    image_channels: int = 3  # 3, or 1 for grey images
    channels: tuple[int, ...] = (16, 16, 32, 64, 128, 16)  # see `SegmentationNetwork`
    spatial_dims: Literal[2, 3] = 2
    network: NetworkName = "unet"
    slice_step: PositiveInt = 1  # of volumes: how many slices are averaged to one that the network sees
    norm: Norm = "batch"
    feature_stride: int = 1
    # further inputs: depth (2, H, W), embedding (D,), grid (P, C); and what made the last two
    extras: Extras = Field(default={})
    makers: dict[str, str] = Field(default={})
    # rows, columns and, of volumes, slices of the parts that it was trained on; None: whole images
    window: tuple[PositiveInt, ...] | None = None
    intake: Intake | None = None  # how volumes became slices; None: trained on other images
    method: str = "supervised"
    train_groups: tuple[str, ...] = ()  # whose images it has seen, so that an evaluation can refuse to test on them
    labeled_groups: tuple[str, ...] = ()  # those of them whose masks it has seen
    seed: int = 0

    @model_validator(mode="after")
    def _has_classes(self) -> "SegmentationConfig":
        if len(self.classes) < 2:
            raise ValueError("a model has at least two classes")
        if self.window is not None and len(self.window) != self.spatial_dims:
            raise ValueError(f"window must be {self.spatial_dims} numbers, not {list(self.window)}")
        if self.network == "vnet" and self.spatial_dims != 3:
            raise ValueError("network vnet is for volumes")
        return self

    @model_serializer(mode="wrap")
    def _without_volumes(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        entries = dump(self)
        return entries if self.spatial_dims == 3 else {k: v for k, v in entries.items() if k not in _OF_VOLUMES}


class SegmentationModel(HubModel, nn.Module):
    """Images and further inputs -> logits of each pixel.

    Buffers hold mean and standard deviation of each channel of the training images, in [0, 1].
    """

    mean: Tensor
    std: Tensor

    def __init__(self, config: SegmentationConfig) -> None:
        super().__init__()
        self.config = config
        self.network = _network(config)
        shape = (config.image_channels, *[1] * config.spatial_dims)
        self.register_buffer("mean", torch.full(shape, 0.5))
        self.register_buffer("std", torch.full(shape, 0.25))
        if config.network == "unet":
            order = CHANNELS_LAST[config.spatial_dims + 2]
            self.network.to(memory_format=order)  # type: ignore[call-overload]

    def write_weights(self, path: Path) -> None:
        """`save_model`."""
        save_model(path, self)

    @classmethod
    def read_weights(cls, path: Path) -> "SegmentationModel":
        """`load_model`."""
        return load_model(path)

    def fit_normalisation(self, images: Tensor, rows: Tensor | None = None) -> None:
        """Take mean and standard deviation of each channel from uint8 images [N, channels, ...].

        Args:
            rows: int64, of the images that count; None: all. They are read a block at a time.
        """
        rows = torch.arange(len(images), device=images.device) if rows is None else rows
        counts = torch.zeros(images.shape[1], 256, dtype=torch.float64, device=images.device)
        for part in rows.split(256):
            pixels = images[part].movedim(1, 0).flatten(1)
            counts += torch.stack([torch.bincount(channel.int(), minlength=256) for channel in pixels])
        values, total = torch.arange(256, device=images.device).double() / 255, counts.sum(dim=1)
        mean = counts @ values / total
        variance = counts @ values.square() / total - mean.square()
        self.mean.copy_(mean.view(self.mean.shape))
        self.std.copy_(variance.clamp_min(0).sqrt().clamp_min(1e-2).view(self.std.shape))

    def forward(
        self, images: Tensor, extras: dict[str, Tensor] | None = None, hidden: dict[str, Tensor] | None = None
    ) -> Tensor:
        """Images [B, channels, ...], uint8 or in [0, 1] -> logits [B, C, ...].

        Args:
            extras: further inputs, by name: ``depth`` [B, 2, H, W] (see `SegmentationFrames.depth`), ``embedding``
                [B, D] and ``grid`` [B, P, C]; any may be missing.
            hidden: bool [B] by name: the images from which a further input is hidden.

        Raises:
            UserError: images of another layout, type or range, see `sightline.core.tensors`.
        """
        check_layout("images", images, self.config.image_channels, self.config.spatial_dims)
        check_pixels("images", images, may_look(self, images))
        return self.decode(self.encode(images, extras, hidden), images.shape[2:]).logits

    def encode(
        self, images: Tensor, extras: dict[str, Tensor] | None = None, hidden: dict[str, Tensor] | None = None
    ) -> list[Tensor]:
        """The same images -> maps of the encoder, finest first; see `SegmentationNetwork.encode`."""
        # without a look at the numbers: a teacher, in evaluation mode, is part of a training's steps
        check_layout("images", images, self.config.image_channels, self.config.spatial_dims)
        check_pixels("images", images, look=False)
        extras, hidden = extras or {}, hidden or {}
        values = images.float() / 255 if images.dtype == torch.uint8 else images
        values = (values - self.mean) / self.std
        if "depth" in self.config.extras:
            depth = extras.get("depth")
            if depth is None:
                depth = values.new_zeros((len(values), 2, *values.shape[2:]))
            elif "depth" in hidden:
                depth = depth * ~hidden["depth"][:, None, None, None]
            values = torch.cat([values, depth.to(values.dtype)], dim=1)
        if self.config.network == "unet":
            values = values.contiguous(memory_format=CHANNELS_LAST[values.ndim])
        return self.network.encode(values, extras, hidden)

    def decode(self, levels: list[Tensor], size: torch.Size | tuple[int, ...]) -> Output:
        """Maps of `encode` -> logits of ``size`` [B, C, ...], and features [B, F, ...] at the feature stride."""
        return self.network.decode(levels, size)

    @torch.no_grad()
    def probabilities(
        self, images: Tensor, extras: Inputs | None = None, windows: bool = True, overlap: float = 0.5
    ) -> Tensor:
        """The same images -> probabilities of the classes [B, C, ...].

        For a model trained on parts, this is the mean of two predictions: of the whole image, over which its norms take
        other means than in training, and of windows as large as the parts, half a window apart, which do not see what
        is around them (windows alone: nnU-Net, Isensee et al., 2021). Volumes are predicted from windows alone.

        Args:
            windows: False predicts from the whole image alone.
            overlap: of windows of volumes, as a share of their sides.

        Raises:
            UserError: as `forward`.
        """
        check_layout("images", images, self.config.image_channels, self.config.spatial_dims)
        check_pixels("images", images, look=True)
        images = images.float() / 255 if images.dtype == torch.uint8 else images
        size, whole = self.config.window, images.shape[2:]
        if size is not None and len(size) == 3 and windows:
            found = sliding_window_inference(
                images, size, 1, lambda part: self(part).float().softmax(dim=1), overlap, "gaussian",
                padding_mode="replicate",
            )  # fmt: skip
            assert isinstance(found, Tensor)
            return found
        of_whole = self(images, extras).float().softmax(dim=1)
        if not windows or size is None or any(part > side for part, side in zip(size, whole, strict=True)):
            return of_whole
        inputs = {"image": images, **(extras or {})}

        def of_parts(_: Tensor, places: list[list[slice]]) -> Tensor:
            first = torch.tensor([[axis.start or 0 for axis in place] for place in places], device=images.device)
            parts = Window(first[:, 2:], size).of_inputs({name: all_[first[:, 0]] for name, all_ in inputs.items()})
            return self(parts.pop("image"), parts).float().softmax(dim=1)

        of_windows = sliding_window_inference(images, size, len(images), of_parts, overlap=0.5, with_coord=True)
        return (of_whole + of_windows) / 2


def _network(config: SegmentationConfig) -> SegmentationNetwork | VNetwork:
    channels, classes = config.image_channels + (2 if "depth" in config.extras else 0), len(config.classes)
    if config.network == "vnet":
        return VNetwork(channels, classes, feature_stride=config.feature_stride)
    grid, vector = config.extras.get("grid"), config.extras.get("embedding")
    return SegmentationNetwork(
        channels, classes, config.channels, spatial_dims=config.spatial_dims, norm=config.norm,
        feature_stride=config.feature_stride, grid=(grid[0], grid[1]) if grid else None,
        vector=vector[0] if vector else None,
    )  # fmt: skip


def save_model(path: Path, model: SegmentationModel) -> None:
    """Write ``model`` as safetensors, whole or not at all."""
    save_model_file(path, model, _KEY, model.config)


def load_model(path: Path | str) -> SegmentationModel:
    """Read a segmentation model, in evaluation mode, on the CPU.

    Raises:
        UserError: not a file of a segmentation model.
    """
    path = Path(path)
    config, weights = read_model_file(path, _KEY, SegmentationConfig, "a segmentation model", "train_segmentation")
    return load_network(path, lambda: SegmentationModel(config), weights)
