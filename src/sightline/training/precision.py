"""Which arithmetic the hardware has, and which one a result was computed in."""

import platform
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any, Literal

import torch
from pydantic import Field

Precision = Annotated[
    Literal["auto", "fp32", "bf16"], Field(description="bf16, fp32, or auto: bf16 if the hardware has it")
]
Arithmetic = Literal["fp32", "tf32", "bf32", "bf16"]
_AMPERE = (8, 0)  # the first NVIDIA GPUs with TF32


def use_bf16(precision: Precision) -> bool:
    """Whether to train in bfloat16: "auto" takes it where the GPU or the CPU has instructions for it.

    Decided by what the hardware says, not by a timing, so that the same machine always decides the same.
    """
    if precision != "auto":
        return precision == "bf16"
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


@contextmanager
def exact_float32() -> Iterator[None]:
    """Products of float32 are those of float32 on a GPU too, which else rounds the factors of convolutions to 10 bits.

    For what asks for fp32, and for the parts of a network that leave bfloat16 for the sake of their digits. Also a
    decorator. Without a GPU it changes nothing.
    """
    if not torch.cuda.is_available():
        yield
        return
    cudnn, matmul = torch.backends.cudnn, torch.get_float32_matmul_precision()
    rounds = "tf32" in (cudnn.conv.fp32_precision, cudnn.rnn.fp32_precision)  # type: ignore[attr-defined]
    try:
        cudnn.allow_tf32 = False
        torch.set_float32_matmul_precision("highest")
        yield
    finally:
        cudnn.allow_tf32 = rounds
        torch.set_float32_matmul_precision(matmul)


def computed_in(precision: Precision, device: torch.device) -> Arithmetic:
    """What a network computes in on ``device``: for attributes, cards and the keys of caches.

    ``bf16`` where `use_bf16` says so. Else ``fp32``, unless torch may round the factors of products in this process
    (``allow_tf32``, ``fp32_precision``, ``set_float32_matmul_precision``) and the hardware can: ``tf32`` to 10 bits,
    ``bf32`` to the 7 bits of bfloat16, as torch calls it. NVIDIA GPUs since Ampere do the former to convolutions unless
    told otherwise. One of the two switches, of matrix products or of convolutions, is enough; whether a layer makes use
    of it is not known here.
    """
    if use_bf16(precision):
        return "bf16"
    if device.type == "cuda" and torch.cuda.get_device_capability(device) >= _AMPERE:
        return "tf32" if "tf32" in _switches(torch.backends.cuda.matmul, torch.backends.cudnn) else "fp32"
    if device.type == "cpu":
        switches = _switches(torch.backends.mkldnn.matmul, torch.backends.mkldnn)  # type: ignore[attr-defined]
        # by trial, instructions for bfloat16 without tiles (AVX512-BF16 alone) leave products in float32
        if "bf16" in switches and (torch.cpu._is_amx_tile_supported() or platform.machine() == "aarch64"):
            return "bf32"
        if "tf32" in switches and torch.cpu._is_amx_fp16_supported():
            return "tf32"
    return "fp32"


def _switches(matmul: Any, convolutions: Any) -> set[str]:
    return {matmul.fp32_precision, convolutions.conv.fp32_precision}
