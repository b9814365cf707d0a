"""Tensors that other code hands to a model: whether they are images of the layout, type and range that it takes.

Layout and type are checked at every call. The numbers are not in a training on a GPU, where a look at them would wait
for all computations: there, a model that learns from another range is refused at the first look outside training.
"""

import torch
from torch import Tensor

from sightline.core.errors import UserError


def check_layout(name: str, images: Tensor, channels: int, axes: int = 2) -> None:
    """Raise `UserError` unless ``images`` is a tensor [B, channels, ...] with so many spatial axes."""
    if not isinstance(images, Tensor):
        raise UserError(f"{name} must be a tensor, not {type(images).__name__}; torch.from_numpy makes one of an array")
    if images.ndim == axes + 2 and images.shape[1] == channels:
        return
    expected = ", ".join(["B", str(channels), *"DHW"[-axes:]])
    hint = ""
    if images.ndim == axes + 2 and images.shape[-1] == channels:
        order = ", ".join(map(str, (0, axes + 1, *range(1, axes + 1))))
        hint = f"; the channels are last: bring them forward with {name}.permute({order})"
    elif images.ndim == axes + 1 and images.shape[0] == channels:
        hint = f"; add the batch axis with {name}.unsqueeze(0)"
    raise UserError(f"{name} must be [{expected}], not {list(images.shape)}{hint}")


def check_pixels(name: str, images: Tensor, look: bool) -> None:
    """Raise `UserError` unless ``images`` is uint8, or floating point in 0..1, with some room for overshoot.

    Args:
        look: whether to look at the numbers of floating point.
    """
    if images.dtype == torch.uint8:
        return
    if not images.is_floating_point():
        raise UserError(
            f"{name} must be uint8 0..255 or floating point 0..1, not {images.dtype}; for 0..255 use "
            f"{name}.to(torch.uint8)"
        )
    check_range(name, images, look, -0.5, 1.5, "0..1", "divide 0..255 by 255, and do not subtract a mean")


def check_range(name: str, x: Tensor, look: bool, low: float, high: float, expected: str, advice: str) -> None:
    """Raise `UserError` where a number of ``x`` is outside ``low``..``high``; NaN is not.

    Never looks while a program is compiled, traced or captured, in which a branch on numbers has no place.
    """
    is_recorded = torch.compiler.is_compiling() or torch.jit.is_tracing()
    if not look or is_recorded or x.device.type == "meta" or x.numel() == 0:
        return
    if x.is_cuda and torch.cuda.is_current_stream_capturing():
        return
    least, most = (float(number) for number in torch.stack(x.detach().aminmax()))
    if least < low or most > high:
        raise UserError(f"{name} must be floating point in {expected}, not {least:g}..{most:g}; {advice}")


def check_joints(name: str, joints: Tensor, count: int) -> None:
    """Raise `UserError` unless ``joints`` is a tensor of real numbers [B, count]."""
    if not isinstance(joints, Tensor):
        raise UserError(f"{name} must be a tensor, not {type(joints).__name__}; torch.from_numpy makes one of an array")
    if joints.dtype == torch.bool or joints.is_complex():
        raise UserError(f"{name} must be real numbers, not {joints.dtype}")
    if joints.ndim != 2 or joints.shape[1] != count:
        hint = f"; add the batch axis with {name}.unsqueeze(0)" if list(joints.shape) == [count] else ""
        raise UserError(f"{name} must be [B, {count}], not {list(joints.shape)}{hint}")
