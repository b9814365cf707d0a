"""Section ``clip``: which model, which of its tokens, and how they are stored."""

from typing import Literal

from pydantic import Field, field_validator

from sightline.core.params import PartOfSection, Section
from sightline.training.precision import Precision

Tokens = Literal["raw", "ln_post", "projected"]
Pool = Literal["after_norm", "before_norm"]
Compression = Literal["none", "gzip", "blosc2"]
RANDOM = "random"  # the value of ``pretrained`` that asks for untrained weights


class ClipParams(PartOfSection):
    """What decides the grids and the file they are stored in."""

    model: str = Field(default="ViT-B-16", description="an open_clip model: a ViT with a class token")
    pretrained: str = Field(default=RANDOM, description="an open_clip tag, a file of weights, or random (untrained)")
    image_size: int | None = Field(default=None, ge=1, description="side of the input, pixels; None: the model's own")
    resize: Literal["weights", "squash"] = Field(
        default="weights", description="weights: as they were trained (mostly a central crop); squash: all of the image"
    )
    tokens: Tokens = Field(
        default="ln_post",
        description="raw: as the last block gives them; ln_post: normalised; projected: to text space",
    )
    pool: Pool = Field(default="after_norm", description="average patches after the last norm, or before it")
    grid: int = Field(default=7, ge=1, description="rows and columns stored; the model's own are averaged down to it")
    dtype: Literal["float16", "float32"] = Field(default="float16", description="type of the stored numbers")
    precision: Precision = Field(default="auto", description="bf16, fp32, or auto: bf16 where the hardware has it")
    batch_size: int = Field(default=64, ge=1, description="images encoded at a time on a GPU, and read at a time")
    keyed: bool = Field(default=True, description="also one key per image, <image_id>_grids, without a second copy")
    shard_frames: int = Field(default=10_000, ge=1, description="images in a shard at most, where a folder is written")
    compression: Compression = Field(default="none", description="none, gzip, or blosc2 (zstd; needs hdf5plugin)")

    @field_validator("model")
    @classmethod
    def _as_open_clip_writes_it(cls, name: str) -> str:
        return name.replace("/", "-")  # OpenAI writes ViT-B/16


class Verification(Section):
    """Section ``clip.verify``."""

    sample: int = Field(default=24, ge=1, description="images whose stored grids are computed again")
    seed: int = Field(default=0, ge=0, description="which images")
    min_cosine: float = Field(
        default=0.999, ge=0, le=1, description="least cosine of a stored token and the reference's"
    )
    max_relative: float = Field(
        default=0.003, gt=0, description="largest distance from the reference, as a share of its norm, for fp32 grids"
    )
    max_relative_bf16: float = Field(default=0.03, gt=0, description="the same for grids that were computed in bf16")


class VerifyParams(ClipParams):
    """What the verification reads: how the grids should have been made, and its own section."""

    verify: Verification = Verification()
