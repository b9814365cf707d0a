"""Sections ``clip`` and ``verify_clip_grids``: which model, which of its tokens, how they are stored and checked."""

import json
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from sightline.core.params import Section
from sightline.training.precision import Precision

Tokens = Literal["raw", "ln_post", "projected"]
Pool = Literal["after_norm", "before_norm"]
Resize = Literal["weights", "shortest", "squash"]
Share = Annotated[float, Field(ge=0, le=1)]
Key = Literal["grids", "features"]
Compression = Literal["none", "gzip", "blosc2"]
SHORTHANDS = {
    "model": "clip.model", "pretrained": "clip.pretrained", "batch_size": "clip.batch_size", "grid": "clip.grid",
    "tokens": "clip.tokens", "dtype": "clip.dtype", "keyed": "clip.keyed=[grids]", "no_keyed": "clip.keyed=[]",
}  # fmt: skip
RANDOM = "random"  # the value of ``pretrained`` that asks for untrained weights


class ClipParams(Section):
    """Grid features of the colour images: what decides them, and the file they are stored in."""

    model: str = Field("ViT-B-16", description="an open_clip model: a vision transformer with a class token")
    pretrained: str = Field(RANDOM, description="an open_clip tag, a file of weights, or random: untrained, for demos")
    quick_gelu: bool | None = Field(None, description="activation QuickGELU in place of GELU; null: as the weights say")
    mean: tuple[Share, Share, Share] | None = Field(None, description="of RGB in [0, 1]; null: as the weights say")
    std: tuple[Share, Share, Share] | None = Field(None, description="of RGB in [0, 1]; null: as the weights say")
    image_size: int | None = Field(
        None, ge=1, description="side of the input, pixels, to which positions are interpolated; null: the weights'"
    )
    resize: Resize = Field(
        "weights", description="weights: as they say; shortest: a central crop; squash: all of the image"
    )
    interpolation: Literal["bicubic", "bilinear"] | None = Field(
        None, description="of images that are resized; null: as the weights say"
    )
    tokens: Tokens = Field("ln_post", description="raw: last block's; ln_post: normalised; projected: to text space")
    pool: Pool = Field("after_norm", description="average patches after the last norm, or before it")
    grid: int = Field(7, ge=1, description="rows and columns stored; the model's own (14) are averaged down to it")
    dtype: Literal["float16", "float32"] = Field("float16", description="float16 rounds by 0.02 %, in half the space")
    precision: Precision = "auto"
    batch_size: int = Field(64, ge=1, description="images encoded at a time on a GPU, and read at a time")
    keyed: tuple[Key, ...] = Field(
        ("grids",), description="keys per image, <image_id>_grids or _features, for captioning codes; 0.6 % more each"
    )
    shard_frames: int = Field(10_000, ge=1, description="images in a shard at most; new episodes push only the last")
    compression: Compression = Field(
        "none", description="none; gzip saves 13 % and is read 20 times slower; blosc2 15 %, 10 times slower"
    )

    @field_validator("model")
    @classmethod
    def _as_open_clip_writes_it(cls, name: str) -> str:
        return name.replace("/", "-")  # OpenAI writes ViT-B/16

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


class VerifyParams(Section):
    """How closely stored grids must agree with open_clip's own."""

    sample: int = Field(24, ge=1, description="images whose stored grids are computed again")
    seed: int = Field(0, ge=0, description="which images")
    min_cosine: float = Field(0.999, ge=0, le=1, description="least cosine of a stored token and open_clip's own")
    max_relative: float = Field(0.003, gt=0, description="largest relative distance from open_clip's, for fp32 grids")
    max_relative_bf16: float = Field(0.03, gt=0, description="the same for grids in bf16, or rounded as TF32")
