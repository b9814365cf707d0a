"""Which arithmetic the hardware has."""

from typing import Annotated, Literal

import torch
from pydantic import Field

Precision = Annotated[
    Literal["auto", "fp32", "bf16"], Field(description="bf16, fp32, or auto: bf16 where the hardware has it")
]


def use_bf16(precision: Precision) -> bool:
    """Whether to train in bfloat16: "auto" takes it where the GPU or the CPU has instructions for it.

    Decided by what the hardware says, not by a timing, so that the same machine always decides the same.
    """
    if precision != "auto":
        return precision == "bf16"
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
