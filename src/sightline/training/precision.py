"""Which arithmetic the hardware has."""

from typing import Literal

import torch

Precision = Literal["auto", "fp32", "bf16"]


def use_bf16(precision: Precision) -> bool:
    """Whether to train in bfloat16: "auto" takes it where the GPU or the CPU has instructions for it.

    Decided by what the hardware says, not by a timing, so that the same machine always decides the same.
    """
    if precision != "auto":
        return precision == "bf16"
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
