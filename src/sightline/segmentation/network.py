"""A U-Net of modest size for images or volumes of any size, with further inputs.

The blocks are MONAI's `BasicUNet` (Falk et al., "U-Net: deep learning for cell counting, detection, and morphometry",
Nature Methods 2019; first Ronneberger et al., MICCAI 2015): five levels of two convolutions each, 3x3 or 3x3x3.

Shapes: B images, ... the two or three spatial axes, C classes, F numbers in a feature.
"""

from typing import Any, Literal, NamedTuple

import torch
from monai.networks.nets.basic_unet import BasicUNet
from torch import Tensor, nn
from torch.nn import functional as F

from sightline.segmentation.norms import replace_norms

Norm = Literal["batch", "instance", "group"]
STRIDE = 16  # sides of what the network sees are multiples of this
FEATURE_STRIDES = (1, 2, 4)
_NORMS: dict[str, Any] = {
    "batch": "batch",
    "instance": ("instance", {"affine": True}),
    "group": ("group", {"num_groups": 4}),
}


Coarse = dict[str, Tensor]  # further inputs of the coarsest level


class Output(NamedTuple):
    """What the decoder gives."""

    logits: Tensor  # [B, C, ...]
    features: Tensor  # [B, F, ...], a map of the decoder, with sides divided by the feature stride, rounded up


class SegmentationNetwork(nn.Module):
    """Images and further inputs -> logits of each pixel, and features of the decoder.

    Args:
        in_channels: of the image, and of what is concatenated to it (depth and its validity).
        num_classes: C.
        channels: six numbers: of the five levels of the encoder, finest first, and of the decoder's last map.
        spatial_dims: 2 or 3.
        norm: ``batch``, ``instance`` or ``group`` (of a quarter of the channels).
        feature_stride: 1, 2 or 4: which map of the decoder `decode` returns beside the logits.
        grid: (P, G) of grids with P patches of a square, fused by concatenation at the coarsest level; 2-D only.
        vector: D of one vector for each image, repeated over the coarsest level and fused in the same way; 2-D only.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        channels: tuple[int, ...] = (16, 16, 32, 64, 128, 16),
        *,
        spatial_dims: int = 2,
        norm: Norm = "batch",
        feature_stride: int = 1,
        grid: tuple[int, int] | None = None,
        vector: int | None = None,
    ) -> None:
        super().__init__()
        self.feature_stride = feature_stride
        self.feature_dim = {1: channels[5], 2: channels[1], 4: channels[2]}[feature_stride]
        self.unet = BasicUNet(
            spatial_dims, in_channels, num_classes, channels, norm=_NORMS[norm], upsample="nontrainable"
        )
        if norm == "instance":
            replace_norms(self.unet)
        for level in (self.unet.upcat_1, self.unet.upcat_2, self.unet.upcat_3, self.unet.upcat_4):
            level.is_pad = False  # sides are multiples of `STRIDE`; padding by nothing would copy
        self.grid_side = 0
        if grid:
            self.grid_side = round(grid[0] ** 0.5)
            self.grid_projection = _projection(grid[1], channels[4])
            self.missing_grid = nn.Parameter(torch.randn(channels[4]) * 0.02)
            self.grid_fusion = nn.Conv2d(2 * channels[4], channels[4], kernel_size=1)
        self.has_vector = vector is not None
        if vector is not None:
            self.vector_projection = _projection(vector, channels[4])
            self.missing_vector = nn.Parameter(torch.randn(channels[4]) * 0.02)
            self.vector_fusion = nn.Conv2d(2 * channels[4], channels[4], kernel_size=1)

    def forward(self, images: Tensor, coarse: Coarse | None = None, hidden: Coarse | None = None) -> Tensor:
        """Normalised inputs [B, in_channels, ...] -> logits [B, C, ...]; see `encode`."""
        return self.decode(self.encode(images, coarse, hidden), images.shape[2:]).logits

    def encode(self, images: Tensor, coarse: Coarse | None = None, hidden: Coarse | None = None) -> list[Tensor]:
        """Normalised inputs [B, in_channels, ...] -> maps of the five levels, finest first, of padded size.

        Args:
            coarse: ``grid`` [B, P, G] and ``embedding`` [B, D]; a learned vector replaces what is missing.
            hidden: bool [B] by the same names: the images for which that vector replaces it, too.
        """
        coarse, hidden = coarse or {}, hidden or {}
        unet = self.unet
        levels = [unet.conv_0(padded(images))]
        for down in (unet.down_1, unet.down_2, unet.down_3, unet.down_4):
            levels.append(down(levels[-1]))
        if self.grid_side:
            levels[-1] = self._with_grid(levels[-1], coarse.get("grid"), hidden.get("grid"))
        if self.has_vector:
            levels[-1] = self._with_vector(levels[-1], coarse.get("embedding"), hidden.get("embedding"))
        return levels

    def decode(self, levels: list[Tensor], size: torch.Size | tuple[int, ...]) -> Output:
        """Maps of `encode` -> logits of ``size`` and features."""
        unet, (x0, x1, x2, x3, x4) = self.unet, levels
        u3 = unet.upcat_3(unet.upcat_4(x4, x3), x2)
        u2 = unet.upcat_2(u3, x1)
        u1 = unet.upcat_1(u2, x0)
        stride = self.feature_stride
        features = {1: u1, 2: u2, 4: u3}[stride]
        return Output(cropped(unet.final_conv(u1), size), cropped(features, [-(-side // stride) for side in size]))

    def _with_grid(self, coarsest_BFHW: Tensor, grids_BPG: Tensor | None, hidden_B: Tensor | None) -> Tensor:
        count = len(coarsest_BFHW)
        missing_BFHW = self.missing_grid.to(coarsest_BFHW.dtype)[None, :, None, None].expand(count, -1, 1, 1)
        if grids_BPG is None:
            grid_BFHW = missing_BFHW.expand_as(coarsest_BFHW)
        else:
            grid_BFP = self.grid_projection(grids_BPG).transpose(1, 2)
            grid_BFHW = grid_BFP.reshape(count, -1, self.grid_side, self.grid_side)
            if hidden_B is not None:
                grid_BFHW = torch.where(hidden_B[:, None, None, None], missing_BFHW.to(grid_BFHW.dtype), grid_BFHW)
            grid_BFHW = F.interpolate(grid_BFHW, coarsest_BFHW.shape[2:], mode="bilinear", align_corners=False)
        return self.grid_fusion(torch.cat([coarsest_BFHW, grid_BFHW], dim=1))

    def _with_vector(self, coarsest_BFHW: Tensor, vectors_BD: Tensor | None, hidden_B: Tensor | None) -> Tensor:
        vector_BF = self.missing_vector.to(coarsest_BFHW.dtype).expand(len(coarsest_BFHW), -1)
        if vectors_BD is not None:
            seen_BF = self.vector_projection(vectors_BD)
            missing_BF = vector_BF.to(seen_BF.dtype)
            vector_BF = seen_BF if hidden_B is None else torch.where(hidden_B[:, None], missing_BF, seen_BF)
        everywhere = vector_BF[:, :, None, None].expand(-1, -1, *coarsest_BFHW.shape[2:])
        return self.vector_fusion(torch.cat([coarsest_BFHW, everywhere], dim=1))


def _projection(entering: int, leaving: int) -> nn.Sequential:
    return nn.Sequential(nn.LayerNorm(entering), nn.Linear(entering, leaving), nn.GELU())


def padded(x: Tensor) -> Tensor:
    """Sides up to the next multiple of `STRIDE`, of images at least two of it, the border repeated at their ends.

    With two, the coarsest map has more than one pixel, without which instance normalisation has no statistics. Of a
    volume, which may be of few slices, one side with two is enough.
    """
    missing = [max(-side % STRIDE, 2 * STRIDE - side) for side in x.shape[2:]]
    if len(missing) == 3:
        needs_two = max(x.shape[2:]) <= STRIDE
        missing = [-side % STRIDE + STRIDE * (needs_two and axis == 0) for axis, side in enumerate(x.shape[2:])]
    if not any(missing):
        return x
    return F.pad(x, [pad for end in reversed(missing) for pad in (0, end)], mode="replicate")


def cropped(x: Tensor, size: torch.Size | tuple[int, ...] | list[int]) -> Tensor:
    for axis, side in enumerate(size, start=2):
        x = x.narrow(axis, 0, side)
    return x
