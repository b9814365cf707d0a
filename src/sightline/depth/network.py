"""The depth autoencoder: a ResNet encoder with self-attention, a 768-d latent, a transposed-convolution decoder.

Residual blocks: He et al., "Deep Residual Learning" (2016). Self-attention on a feature map, as a residual that starts
at zero: Zhang et al., "Self-Attention Generative Adversarial Networks" (2019). Kernel 4 with stride 2 in the transposed
convolutions, so that each output pixel sees the same number of inputs: Odena et al., "Deconvolution and Checkerboard
Artifacts" (2016). A linear path around a compressing network, so that the network learns only what a linear code
misses: Chen et al., "Deep Compression Autoencoder" (2025). Without it, global average pooling leaves no position in the
latent, and a plain cosine transform of the same size reconstructs better. Decoding that path by convolutions at the
lowest resolution whose channels become pixels: Shi et al., "Real-Time Single Image Super-Resolution Using an Efficient
Sub-Pixel Convolutional Neural Network" (2016).
"""

import itertools
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from sightline.core.params import Section

WIDTHS = (64, 128, 256, 512)  # channels of layer1..layer4, at 64, 32, 16 and 8 pixels
PATCH = 16  # pixels on an edge of a patch of the linear path
GRID = 8  # positions on an edge of the lowest resolution, and patches on an edge of the image
POSITIONS = GRID * GRID
PatchPath = Literal["none", "linear", "refined"]


class NetworkConfig(Section):
    """What fixes the shape of the network; stored in every weights file."""

    input_channels: int = Field(default=1, ge=1)
    latent_dim: int = Field(default=768, ge=1)
    head: Literal["gap", "flat"] = "gap"  # average over positions and project, or keep the 8x8 positions
    # the linear code of patches around the network: none, decoded linearly, or also by sub-pixel convolutions
    patch_path: PatchPath = "refined"

    @model_validator(mode="after")
    def _divisible(self) -> "NetworkConfig":
        if (self.patch_path != "none" or self.head == "flat") and self.latent_dim % POSITIONS:
            which = f"patch_path {self.patch_path}" if self.patch_path != "none" else "head flat"
            raise ValueError(f"latent_dim must be a multiple of {POSITIONS} with {which}, not {self.latent_dim}")
        largest = POSITIONS * PATCH * PATCH * self.input_channels
        if self.latent_dim > largest:
            raise ValueError(f"latent_dim must be at most {largest}, the pixels of an image, not {self.latent_dim}")
        return self


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
        y = F.relu(self.norm1(self.conv1(x)), inplace=True)
        return F.relu(self.shortcut(x) + self.norm2(self.conv2(y)), inplace=True)


class SelfAttention2d(nn.Module):
    """Every position attends to every other: [B, C, S, S] -> same shape. Starts as the identity."""

    def __init__(self, channels: int, heads: int = 8) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.BatchNorm2d(channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.project = nn.Conv2d(channels, channels, 1)
        _zero(self.project)

    def forward(self, x: Tensor) -> Tensor:
        B, C, H, W = x.shape
        qkv = self.qkv(self.norm(x)).reshape(B, 3, self.heads, C // self.heads, H * W)
        q, k, v = qkv.transpose(-1, -2).unbind(1)  # each (B, heads, H * W, C / heads)
        y = F.scaled_dot_product_attention(q, k, v)
        return x + self.project(y.transpose(-1, -2).reshape(B, C, H, W))


class PooledHead(nn.Linear):
    """Average over the positions, and project: [B, 512, 8, 8] -> [B, D], of rank 512 at most. Knows no position."""

    def __init__(self, latent_dim: int) -> None:
        super().__init__(WIDTHS[3], latent_dim)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.mean(dim=(2, 3)))


class FlatHead(nn.Conv2d):
    """Some channels for each position: [B, 512, 8, 8] -> [B, D]."""

    def __init__(self, latent_dim: int) -> None:
        super().__init__(WIDTHS[3], latent_dim // POSITIONS, 1)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).flatten(1)


class PooledStart(nn.Linear):
    """The decoder's counterpart of `PooledHead`: [B, D] -> [B, 512, 8, 8]."""

    def __init__(self, latent_dim: int) -> None:
        super().__init__(latent_dim, WIDTHS[3] * POSITIONS)

    def forward(self, z: Tensor) -> Tensor:
        return super().forward(z).reshape(-1, WIDTHS[3], GRID, GRID)


class FlatStart(nn.Conv2d):
    """The decoder's counterpart of `FlatHead`: [B, D] -> [B, 512, 8, 8]."""

    def __init__(self, latent_dim: int) -> None:
        super().__init__(latent_dim // POSITIONS, WIDTHS[3], 1)

    def forward(self, z: Tensor) -> Tensor:
        return super().forward(z.reshape(len(z), -1, GRID, GRID))


class SubpixelRefinement(nn.Module):
    """What a linear decoding of patches misses, from each patch's code and its neighbours': starts at zero.

    [B, C_in, 8, 8] -> image [B, C_out, 128, 128]. All convolutions are at the lowest resolution, where they cost a
    tenth of the decoder's.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.expand = nn.Conv2d(in_channels, WIDTHS[3], 3, 1, 1)
        self.mix = nn.Conv2d(WIDTHS[3], WIDTHS[3], 3, 1, 1)
        self.project = nn.Conv2d(WIDTHS[3], WIDTHS[3], 1)
        self.output = nn.Conv2d(WIDTHS[3], out_channels * PATCH * PATCH, 1)
        _zero(self.project)
        _zero(self.output)

    def forward(self, codes: Tensor) -> Tensor:
        y = self.expand(codes)  # (B, 512, 8, 8)
        y = y + self.project(F.gelu(self.mix(F.gelu(y))))
        return F.pixel_shuffle(self.output(F.gelu(y)), PATCH)


class Encoder(nn.Module):
    """Depth image [B, C, 128, 128] in [-1, 1] -> latent [B, latent_dim]."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        self.stem = nn.Sequential(
            nn.Conv2d(config.input_channels, WIDTHS[0], 7, 2, 3, bias=False),
            nn.BatchNorm2d(WIDTHS[0]),
            nn.ReLU(inplace=True),
        )  # (B, 64, 64, 64)
        self.layer1 = _stage(WIDTHS[0], WIDTHS[0], stride=1)
        self.layer2 = _stage(WIDTHS[0], WIDTHS[1], stride=2)
        self.layer3 = _stage(WIDTHS[1], WIDTHS[2], stride=2)
        self.layer4 = _stage(WIDTHS[2], WIDTHS[3], stride=2)  # (B, 512, 8, 8)
        self.attention = SelfAttention2d(WIDTHS[3])
        self.head = (PooledHead if config.head == "gap" else FlatHead)(config.latent_dim)
        if config.patch_path != "none":
            channels = config.latent_dim // POSITIONS
            self.patch_path = nn.Conv2d(config.input_channels, channels, PATCH, PATCH, bias=False)
            self.patch_path.weight.data = cosine_basis(config)
            _zero(self.head)

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer4(self.layer3(self.layer2(self.layer1(self.stem(x)))))
        z = self.head(self.attention(y))
        return z + self.encode_patches(x) if self.config.patch_path != "none" else z

    def encode_patches(self, x: Tensor) -> Tensor:
        """The patch path alone: [B, C, 128, 128] -> [B, D], in float32, because it carries most of the depth."""
        with torch.autocast(x.device.type, enabled=False):
            return self.patch_path(x).flatten(1)  # (B, D / 64, 8, 8) -> (B, D)


class Decoder(nn.Module):
    """Latent [B, latent_dim] -> depth image [B, C, 128, 128] in [-1, 1]."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        self.expand = (PooledStart if config.head == "gap" else FlatStart)(config.latent_dim)
        widths = (WIDTHS[3], 256, 128, 64, 32)
        self.upsample = nn.Sequential(*(_up(a, b) for a, b in itertools.pairwise(widths)))
        self.output = nn.Conv2d(widths[-1], config.input_channels, 3, 1, 1)
        if config.patch_path != "none":
            channels = config.latent_dim // POSITIONS
            self.patch_path = nn.ConvTranspose2d(channels, config.input_channels, PATCH, PATCH, bias=False)
            self.patch_path.weight.data = cosine_basis(config)
            _zero(self.output)
        if config.patch_path == "refined":
            self.refine_patches = SubpixelRefinement(channels, config.input_channels)

    def forward(self, z: Tensor) -> Tensor:
        x = self.upsample(self.expand(z))  # (B, 32, 128, 128)
        if self.config.patch_path != "none":  # what the network adds is small, and bfloat16 fine enough for it
            return torch.tanh(self.output(x).float() + torch.atanh(self.decode_patches(z)))
        with torch.autocast(x.device.type, enabled=False):  # bfloat16 resolves 4 mm of 4000 mm here: too coarse
            return torch.tanh(self.output(x.float()))

    def decode_patches(self, z: Tensor) -> Tensor:
        """The patch path alone: [B, D] -> [B, C, 128, 128] within [-0.999, 0.999], the sum in float32."""
        codes = z.reshape(len(z), -1, GRID, GRID)
        refinement = self.refine_patches(codes) if self.config.patch_path == "refined" else 0
        with torch.autocast(z.device.type, enabled=False):
            return (self.patch_path(codes.float()) + refinement).clamp(-0.999, 0.999)


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

    def forward_patches(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The same through the patch path alone; it equals `forward` while the last layers of the network are zero."""
        z = self.encoder.encode_patches(x)
        return self.decoder.decode_patches(z), z


def cosine_basis(config: NetworkConfig) -> Tensor:
    """The lowest frequencies of the 16x16 cosine transform (DCT-II), orthonormal -> [latent_dim / 64, C, 16, 16].

    Several input channels take turns: coefficient k is frequency k // C of channel k % C.
    """
    position, frequency = torch.arange(PATCH, dtype=torch.float64), torch.arange(PATCH, dtype=torch.float64)
    waves = torch.cos(torch.pi / PATCH * frequency[:, None] * (position + 0.5)) * (2 / PATCH) ** 0.5
    waves[0] /= 2**0.5
    order = sorted(itertools.product(range(PATCH), repeat=2), key=lambda uv: (sum(uv), uv))
    basis = torch.zeros(config.latent_dim // POSITIONS, config.input_channels, PATCH, PATCH)
    for k in range(len(basis)):
        u, v = order[k // config.input_channels]
        basis[k, k % config.input_channels] = torch.outer(waves[u], waves[v])
    return basis


def _zero(layer: nn.Linear | nn.Conv2d) -> None:
    """Start a layer at zero: at first the linear path alone decides, and the network learns the rest."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


def _stage(in_channels: int, out_channels: int, stride: int) -> nn.Sequential:
    return nn.Sequential(ResidualBlock(in_channels, out_channels, stride), ResidualBlock(out_channels, out_channels))


def _up(in_channels: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.ConvTranspose2d(in_channels, out_channels, 4, 2, 1, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
        ResidualBlock(out_channels, out_channels),
    )
