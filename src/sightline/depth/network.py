"""The depth autoencoder: a ResNet encoder with self-attention, a 768-d latent, a transposed-convolution decoder.

Residual blocks: He et al., "Deep Residual Learning" (2016). Self-attention on a feature map, as a residual that starts
at zero: Zhang et al., "Self-Attention Generative Adversarial Networks" (2019). Kernel 4 with stride 2 in the transposed
convolutions, so that each output pixel sees the same number of inputs: Odena et al., "Deconvolution and Checkerboard
Artifacts" (2016).
"""

import itertools

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from sightline.params import Section

WIDTHS = (64, 128, 256, 512)  # channels of layer1..layer4, at 64, 32, 16 and 8 pixels


class NetworkConfig(Section):
    """What fixes the shape of the network; stored in every weights file."""

    input_channels: int = Field(default=1, ge=1)
    latent_dim: int = Field(default=768, ge=1)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut: [B, C_in, S, S] -> [B, C_out, S / stride, S / stride]."""

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(out_channels)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            projection = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)
            self.shortcut = nn.Sequential(projection, nn.BatchNorm2d(out_channels))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.shortcut(x) + self.norm2(self.conv2(y)))


class SelfAttention2d(nn.Module):
    """Every position attends to every other: [B, C, S, S] -> same shape. Starts as the identity."""

    def __init__(self, channels: int, heads: int = 8) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.BatchNorm2d(channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.project = nn.Conv2d(channels, channels, 1)
        nn.init.zeros_(self.project.weight)
        nn.init.zeros_(self.project.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        B, C, H, W = x.shape
        qkv = self.qkv(self.norm(x)).reshape(B, 3, self.heads, C // self.heads, H * W)
        q, k, v = qkv.transpose(-1, -2).unbind(1)  # each (B, heads, H * W, C / heads)
        y = F.scaled_dot_product_attention(q, k, v)
        return x + self.project(y.transpose(-1, -2).reshape(B, C, H, W))


class Encoder(nn.Module):
    """Depth image [B, C, 128, 128] in [-1, 1] -> latent [B, latent_dim]."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        self.stem = nn.Sequential(
            nn.Conv2d(config.input_channels, WIDTHS[0], 7, 2, 3, bias=False), nn.BatchNorm2d(WIDTHS[0]), nn.ReLU()
        )  # (B, 64, 64, 64)
        self.layer1 = _stage(WIDTHS[0], WIDTHS[0], stride=1)
        self.layer2 = _stage(WIDTHS[0], WIDTHS[1], stride=2)
        self.layer3 = _stage(WIDTHS[1], WIDTHS[2], stride=2)
        self.layer4 = _stage(WIDTHS[2], WIDTHS[3], stride=2)  # (B, 512, 8, 8)
        self.attention = SelfAttention2d(WIDTHS[3])
        self.head = nn.Linear(WIDTHS[3], config.latent_dim)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer4(self.layer3(self.layer2(self.layer1(self.stem(x)))))
        x = self.attention(x)
        return self.head(x.mean(dim=(2, 3)))


class Decoder(nn.Module):
    """Latent [B, latent_dim] -> depth image [B, C, 128, 128] in [-1, 1]."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.expand = nn.Linear(config.latent_dim, WIDTHS[3] * 8 * 8)
        widths = (WIDTHS[3], 256, 128, 64, 32)
        self.upsample = nn.Sequential(*(_up(a, b) for a, b in itertools.pairwise(widths)))
        self.output = nn.Conv2d(widths[-1], config.input_channels, 3, 1, 1)

    def forward(self, z: Tensor) -> Tensor:
        x = self.upsample(self.expand(z).reshape(-1, WIDTHS[3], 8, 8))  # (B, 32, 128, 128)
        with torch.autocast(x.device.type, enabled=False):  # bfloat16 resolves 4 mm of 4000 mm here: too coarse
            return torch.tanh(self.output(x.float()))


class Autoencoder(nn.Module):
    """`Encoder` and `Decoder` in a row: [B, C, 128, 128] -> (reconstruction [B, C, 128, 128], latent [B, D])."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        z = self.encoder(x)
        return self.decoder(z), z


def _stage(in_channels: int, out_channels: int, stride: int) -> nn.Sequential:
    return nn.Sequential(ResidualBlock(in_channels, out_channels, stride), ResidualBlock(out_channels, out_channels))


def _up(in_channels: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.ConvTranspose2d(in_channels, out_channels, 4, 2, 1, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(),
        ResidualBlock(out_channels, out_channels),
    )
