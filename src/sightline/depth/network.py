"""The depth autoencoder: a latent of 768 numbers in two parts, patches and scene.

The patches are a linear code of 16x16 patches: the cosine transform at first, then trained. Convolutions refine what is
decoded from them, at the lowest resolution, whose channels become pixels: Shi et al., "Real-Time Single Image and Video
Super-Resolution Using an Efficient Sub-Pixel Convolutional Neural Network" (2016). A linear path beside a compressing
network, so that the network learns what a linear code misses: Chen et al., "Deep Compression Autoencoder" (2025).

The scene numbers come from a ResNet with self-attention, averaged over positions. They have a scale of their own, so
that distances see them beside the many numbers of the patches. That they are averaged is no obstacle: convolutions
with borders know where they are, and a network that is trained to tell where things are puts it into the channels.

With all numbers in the scene part, this is the plain autoencoder: its decoder is transposed convolutions. Residual
blocks: He et al., "Deep Residual Learning" (2016). Self-attention on a feature map, as a residual that starts at zero:
Zhang et al., "Self-Attention Generative Adversarial Networks" (2019). Kernel 4 with stride 2 in the transposed
convolutions, so that each output pixel sees the same number of inputs: Odena et al., "Deconvolution and Checkerboard
Artifacts" (2016).
"""

import itertools
from typing import Literal, NamedTuple

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from sightline.core.params import Section

PATCH = 16  # pixels on an edge of a patch
GRID = 8  # positions on an edge of the lowest resolution, and patches on an edge of the image
POSITIONS = GRID * GRID
PatchPath = Literal["linear", "refined"]
LEAST = 256  # channels of the refinement in a narrow network, where it is cheap beside the encoder
MOMENTUM = 0.1  # of the running statistics of the scene numbers
MOST_SPREAD, MOST_SHIFT = 3.0, 5.0  # corrections of a batch, as in the paper
Head = Literal["gap", "flat"]


class Parts(NamedTuple):
    """The two parts of a latent."""

    patches: Tensor  # [B, patch_dim]
    scene: Tensor  # [B, scene_dim]


class NetworkConfig(Section):
    """What fixes the shape of the network; stored in every weights file.

    The first ``patch_dim`` numbers of a latent are its patches, the last ``scene_dim`` its scene.
    """

    input_channels: int = Field(default=1, ge=1)
    latent_dim: int = Field(default=768, ge=1)
    scene_dim: int = Field(default=64, ge=0)
    width: int = Field(default=64, ge=16, multiple_of=16)  # channels of layer1; 2, 4, 8 times as many follow
    head: Head = "gap"  # of the scene numbers: average over positions and project, or keep the 8x8 positions
    patch_path: PatchPath = "refined"  # how patches are decoded: linearly, or also by sub-pixel convolutions
    # added: as older versions had it, patches and scene are latent_dim numbers each, and the latent is their sum
    parts: Literal["beside", "added"] = "beside"
    has_patches: bool = True  # False in files of older versions alone, that have none

    @property
    def patch_dim(self) -> int:
        """Numbers of the patches; 0 where there are none."""
        if self.parts == "added":
            return self.latent_dim if self.has_patches else 0
        return self.latent_dim - self.scene_dim

    @property
    def widths(self) -> tuple[int, int, int, int]:
        """Channels of layer1..layer4, at 64, 32, 16 and 8 pixels."""
        return self.width, 2 * self.width, 4 * self.width, 8 * self.width

    @model_validator(mode="after")
    def _divisible(self) -> "NetworkConfig":
        if self.scene_dim > self.latent_dim:
            raise ValueError(f"scene_dim must be at most latent_dim, {self.latent_dim}, not {self.scene_dim}")
        for what, numbers in (("scene_dim", self.scene_dim if self.head == "flat" else 0), *self._patches()):
            if numbers % POSITIONS:
                why = " with head flat" if what == "scene_dim" else ", the positions of the patches"
                raise ValueError(f"{what} must be a multiple of {POSITIONS}{why}, not {numbers}")
        largest = POSITIONS * PATCH * PATCH * self.input_channels
        if self.latent_dim > largest:
            raise ValueError(f"latent_dim must be at most {largest}, the pixels of an image, not {self.latent_dim}")
        return self

    def _patches(self) -> list[tuple[str, int]]:
        return [("latent_dim - scene_dim" if self.parts == "beside" else "latent_dim", self.patch_dim)]


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
    """Average over the positions, and project: [B, C, 8, 8] -> [B, D], of rank C at most."""

    def __init__(self, channels: int, numbers: int) -> None:
        super().__init__(channels, numbers)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.mean(dim=(2, 3)))


class FlatHead(nn.Conv2d):
    """Some channels for each position: [B, C, 8, 8] -> [B, D]."""

    def __init__(self, channels: int, numbers: int) -> None:
        super().__init__(channels, numbers // POSITIONS, 1)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).flatten(1)


class PooledStart(nn.Linear):
    """The decoder's counterpart of `PooledHead`: [B, D] -> [B, C, 8, 8]."""

    def __init__(self, numbers: int, channels: int) -> None:
        super().__init__(numbers, channels * POSITIONS)

    def forward(self, z: Tensor) -> Tensor:
        return super().forward(z).reshape(z.shape[0], -1, GRID, GRID)


class FlatStart(nn.Conv2d):
    """The decoder's counterpart of `FlatHead`: [B, D] -> [B, C, 8, 8]."""

    def __init__(self, numbers: int, channels: int) -> None:
        super().__init__(numbers // POSITIONS, channels, 1)

    def forward(self, z: Tensor) -> Tensor:
        return super().forward(z.reshape(z.shape[0], -1, GRID, GRID))


class SceneNorm(nn.BatchNorm1d):
    """Give each scene number mean 0 and the spread ``scale`` over the training images: [B, D] -> [B, D], in float32.

    In training, too, by the running statistics, as they will be afterwards: those of a small batch are noise in what is
    to be decoded. Gradients are those of the batch's: Ioffe, "Batch Renormalization" (2017).
    """

    scale: Tensor
    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(self, numbers: int) -> None:
        super().__init__(numbers, affine=False)
        self.register_buffer("scale", torch.ones(()))

    def forward(self, z: Tensor) -> Tensor:
        with torch.autocast(z.device.type, enabled=False):
            z = z.to(self.scale.dtype)
            if not self.training or len(z) == 1:
                return self.scale * F.batch_norm(z, self.running_mean, self.running_var, eps=self.eps)
            spread, shift = self._corrections(z.detach())
            return self.scale * (F.batch_norm(z, None, None, training=True, eps=self.eps) * spread + shift)

    def _corrections(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Follow the batch, and tell what brings numbers that it normalises to those of the running statistics."""
        mean, var = z.mean(dim=0), z.var(dim=0, correction=0)
        self.num_batches_tracked += 1
        share = (1 / self.num_batches_tracked).clamp(min=MOMENTUM)  # at first the mean of all batches
        self.running_mean.lerp_(mean, share)
        self.running_var.lerp_(var, share)
        rate = (self.running_var + self.eps).rsqrt()
        spread, shift = (var + self.eps).sqrt() * rate, (mean - self.running_mean) * rate
        return spread.clamp(1 / MOST_SPREAD, MOST_SPREAD), shift.clamp(-MOST_SHIFT, MOST_SHIFT)


class SubpixelRefinement(nn.Module):
    """What a linear decoding of patches misses, from each patch's code, its neighbours', and the scene: zero at first.

    ([B, D_patches / 64, 8, 8], [B, D_scene]) -> image [B, C, 128, 128]. All convolutions are at the lowest resolution,
    where they cost a tenth of transposed ones.
    """

    scene_scale: Tensor

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        width = max(config.widths[3], LEAST)
        self.expand = nn.Conv2d(config.patch_dim // POSITIONS, width, 3, 1, 1)
        self.scene: PooledStart | FlatStart | None = None
        if config.parts == "beside" and config.scene_dim:
            self.scene = (PooledStart if config.head == "gap" else FlatStart)(config.scene_dim, width)
            _zero(self.scene)  # scenes change while they are learnt: as strong as the codes, they hide those
            self.register_buffer("scene_scale", torch.ones(()))
        self.mix = nn.Conv2d(width, width, 3, 1, 1)
        self.project = nn.Conv2d(width, width, 1)
        self.output = nn.Conv2d(width, config.input_channels * PATCH * PATCH, 1)
        _zero(self.project)
        _zero(self.output)

    def forward(self, codes: Tensor, scene: Tensor) -> Tensor:
        y = self.expand(codes)  # (B, 8 * width, 8, 8), in a narrow network (B, 256, 8, 8)
        if self.scene is not None:
            y = y + self.scene(scene / self.scene_scale)
        y = y + self.project(F.gelu(self.mix(F.gelu(y))))
        return F.pixel_shuffle(self.output(F.gelu(y)), PATCH)


class Encoder(nn.Module):
    """Depth image [B, C, 128, 128] in [-1, 1] -> latent [B, latent_dim]."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        first, second, third, last = config.widths
        if config.scene_dim:
            self.stem = nn.Sequential(
                nn.Conv2d(config.input_channels, first, 7, 2, 3, bias=False),
                nn.BatchNorm2d(first),
                nn.ReLU(inplace=True),
            )  # (B, width, 64, 64)
            self.layer1 = _stage(first, first, stride=1)
            self.layer2 = _stage(first, second, stride=2)
            self.layer3 = _stage(second, third, stride=2)
            self.layer4 = _stage(third, last, stride=2)  # (B, 8 * width, 8, 8)
            self.attention = SelfAttention2d(last)
            self.head = (PooledHead if config.head == "gap" else FlatHead)(last, config.scene_dim)
            if config.parts == "beside":
                self.scene_norm = SceneNorm(config.scene_dim)
        if config.patch_dim:
            channels = config.patch_dim // POSITIONS
            self.patch_path = nn.Conv2d(config.input_channels, channels, PATCH, PATCH, bias=False)
            self.patch_path.weight.data = cosine_basis(channels, config.input_channels)

    def forward(self, x: Tensor) -> Tensor:
        patches, scene = self.parts(x)
        if self.config.parts == "added":
            return patches + scene if self.config.patch_dim else scene
        return torch.cat([patches, scene], dim=1)

    def parts(self, x: Tensor) -> Parts:
        """The same, in its parts; of a part without numbers [B, 0]."""
        nothing = x.new_zeros(x.shape[0], 0)  # len() would fix the batch of an export
        patches = self.patches(x) if self.config.patch_dim else nothing
        scene = self._scene(x) if self.config.scene_dim else nothing
        return Parts(patches, scene)

    def patches(self, x: Tensor) -> Tensor:
        """The patches alone."""
        with torch.autocast(x.device.type, enabled=False):  # float32, because it carries most of the depth
            return self.patch_path(x).flatten(1)  # (B, D / 64, 8, 8) -> (B, D)

    def _scene(self, x: Tensor) -> Tensor:
        y = self.layer4(self.layer3(self.layer2(self.layer1(self.stem(x)))))
        z = self.head(self.attention(y))
        return self.scene_norm(z) if self.config.parts == "beside" else z


class Decoder(nn.Module):
    """Latent [B, latent_dim] -> depth image [B, C, 128, 128] in [-1, 1]."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        refined = config.patch_dim > 0 and config.patch_path == "refined"
        self.upsamples = config.parts == "added" or (config.scene_dim > 0 and not refined)
        if self.upsamples:
            first, second, third, last = config.widths
            self.expand = (PooledStart if config.head == "gap" else FlatStart)(config.scene_dim, last)
            widths = (last, third, second, first, first // 2)
            self.upsample = nn.Sequential(*(_up(a, b) for a, b in itertools.pairwise(widths)))
            self.output = nn.Conv2d(widths[-1], config.input_channels, 3, 1, 1)
        if config.patch_dim:
            channels = config.patch_dim // POSITIONS
            self.patch_path = nn.ConvTranspose2d(channels, config.input_channels, PATCH, PATCH, bias=False)
            self.patch_path.weight.data = cosine_basis(channels, config.input_channels)
            if self.upsamples:
                _zero(self.output)
        if refined:
            self.refine_patches = SubpixelRefinement(config)

    def forward(self, z: Tensor) -> Tensor:
        patches, scene = self._split(z)
        if not self.upsamples:
            return self._decode_patches(patches, scene)
        x = self.upsample(self.expand(scene))  # (B, width / 2, 128, 128)
        if self.config.patch_dim:  # what the network adds is small, and bfloat16 fine enough for it
            return torch.tanh(self.output(x).float() + torch.atanh(self._decode_patches(patches, scene)))
        with torch.autocast(x.device.type, enabled=False):  # bfloat16 resolves 4 mm of 4000 mm here: too coarse
            return torch.tanh(self.output(x.float()))

    def _split(self, z: Tensor) -> Parts:
        if self.config.parts == "added":
            return Parts(z, z)
        return Parts(z[:, : self.config.patch_dim], z[:, self.config.patch_dim :])

    def _decode_patches(self, patches: Tensor, scene: Tensor) -> Tensor:
        """[B, patch_dim] -> [B, C, 128, 128] within [-0.999, 0.999], the sum in float32."""
        codes = patches.reshape(patches.shape[0], -1, GRID, GRID)
        refinement = self.refine_patches(codes, scene) if self.config.patch_path == "refined" else 0
        with torch.autocast(patches.device.type, enabled=False):
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


def cosine_basis(count: int, channels: int) -> Tensor:
    """The lowest frequencies of the 16x16 cosine transform (DCT-II), orthonormal -> [count, channels, 16, 16].

    Several input channels take turns: coefficient k is frequency k // C of channel k % C.
    """
    position, frequency = torch.arange(PATCH, dtype=torch.float64), torch.arange(PATCH, dtype=torch.float64)
    waves = torch.cos(torch.pi / PATCH * frequency[:, None] * (position + 0.5)) * (2 / PATCH) ** 0.5
    waves[0] /= 2**0.5
    order = sorted(itertools.product(range(PATCH), repeat=2), key=lambda uv: (sum(uv), uv))
    basis = torch.zeros(count, channels, PATCH, PATCH)
    for k in range(count):
        u, v = order[k // channels]
        basis[k, k % channels] = torch.outer(waves[u], waves[v])
    return basis


def _zero(layer: nn.Conv2d | nn.Linear) -> None:
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
