"""The V-Net of MONAI for volumes (Milletari et al., "V-Net", 3DV 2016), with the interface of `SegmentationNetwork`.

It has 45 million weights, batch normalisation and dropout: a network for a GPU.
"""

from monai.networks.nets.vnet import VNet
from torch import Tensor, nn

from sightline.segmentation.network import Coarse, Output, cropped, padded


class VNetwork(nn.Module):
    """Volumes -> logits of each voxel, and features of the decoder.

    Args:
        in_channels: of the volume, a divisor of 16.
        num_classes: C.
        feature_stride: 1, 2 or 4: which map of the decoder `decode` returns beside the logits.
    """

    def __init__(self, in_channels: int, num_classes: int, *, feature_stride: int = 1) -> None:
        super().__init__()
        self.feature_stride, self.feature_dim = feature_stride, {1: 32, 2: 64, 4: 128}[feature_stride]
        self.vnet = VNet(3, in_channels, num_classes)

    def forward(self, volumes: Tensor) -> Tensor:
        """Normalised volumes [B, in_channels, ...] -> logits [B, C, ...]."""
        return self.decode(self.encode(volumes), volumes.shape[2:]).logits

    def encode(self, volumes: Tensor, _: Coarse | None = None, __: Coarse | None = None) -> list[Tensor]:
        """Normalised volumes [B, in_channels, ...] -> maps of the five levels, finest first, of padded size."""
        levels = [self.vnet.in_tr(padded(volumes))]
        for down in (self.vnet.down_tr32, self.vnet.down_tr64, self.vnet.down_tr128, self.vnet.down_tr256):
            levels.append(down(levels[-1]))
        return levels

    def decode(self, levels: list[Tensor], size: tuple[int, ...]) -> Output:
        """Maps of `encode` -> logits of ``size`` and features."""
        vnet, (x0, x1, x2, x3, x4) = self.vnet, levels
        u3 = vnet.up_tr128(vnet.up_tr256(x4, x3), x2)
        u2 = vnet.up_tr64(u3, x1)
        u1 = vnet.up_tr32(u2, x0)
        features, stride = {1: u1, 2: u2, 4: u3}[self.feature_stride], self.feature_stride
        return Output(cropped(vnet.out_tr(u1), size), cropped(features, [-(-side // stride) for side in size]))
