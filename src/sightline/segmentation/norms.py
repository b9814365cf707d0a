"""Instance normalisation of images and volumes in channels-last order, in which convolutions on a CPU are fastest.

PyTorch's own first copies such images to the other order, and its result back: two copies for each norm of a network,
forwards and backwards. This one stays in the order of its input. The arithmetic is the same: Ulyanov et al., "Instance
normalization" (2016), with the biased variance.

Shapes: B images, C channels, N pixels.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}  # by the number of axes


class InstanceNorm(nn.InstanceNorm2d):
    """`torch.nn.InstanceNorm2d` with weight and bias, without copies for float32 images on a CPU in channels-last."""

    def forward(self, x: Tensor) -> Tensor:
        is_ours = x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64) and x.ndim == 4
        is_traced = torch.compiler.is_compiling() or torch.jit.is_tracing()  # for an export, PyTorch's own
        if is_traced or not is_ours or torch.is_autocast_enabled("cpu"):
            return super().forward(x)
        if not x.is_contiguous(memory_format=torch.channels_last):
            return super().forward(x)
        return _Normalise.apply(x, self.weight, self.bias, self.eps)


class InstanceNorm3d(nn.InstanceNorm3d):
    """`torch.nn.InstanceNorm3d` with weight and bias, without copies for volumes on a CPU in channels-last.

    It is PyTorch's batch normalisation, which knows that order, of one volume at a time: there are few in a batch.
    """

    def forward(self, x: Tensor) -> Tensor:
        is_traced = torch.compiler.is_compiling() or torch.jit.is_tracing()  # for an export, PyTorch's own
        if is_traced or x.device.type != "cpu" or not x.is_contiguous(memory_format=torch.channels_last_3d):
            return super().forward(x)
        return torch.cat([
            F.batch_norm(one, None, None, self.weight, self.bias, training=True, eps=self.eps) for one in x.split(1)
        ])  # fmt: skip


def replace_norms(module: nn.Module) -> None:
    """Put ours, with weights of the same names, in the place of PyTorch's."""
    for name, child in module.named_children():
        if isinstance(child, nn.InstanceNorm2d | nn.InstanceNorm3d):
            kind = InstanceNorm if isinstance(child, nn.InstanceNorm2d) else InstanceNorm3d
            setattr(module, name, kind(child.num_features, affine=True))
        replace_norms(child)


class _Normalise(torch.autograd.Function):
    """Zero mean and unit variance over the pixels of each image and channel, then weight and bias."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        x_BNC = _pixels(x)
        mean_B1C = _sum(x_BNC) / x_BNC.shape[1]
        # The variance from differences, not from squares, of which large numbers would cancel.
        variance_B1C = _sum((x_BNC - mean_B1C).square()) / x_BNC.shape[1]
        rate_B1C = (variance_B1C + eps).rsqrt()
        scale_B1C = rate_B1C * weight
        y = torch.empty_like(x, memory_format=torch.channels_last)
        torch.addcmul(bias - mean_B1C * scale_B1C, x_BNC, scale_B1C, out=_pixels(y))
        ctx.save_for_backward(x, weight, mean_B1C, rate_B1C)
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        x, weight, mean_B1C, rate_B1C = ctx.saved_tensors
        x_BNC, g_BNC = _pixels(x), _pixels(gradient.contiguous(memory_format=torch.channels_last))
        of_g_B1C = _sum(g_BNC)
        of_gx_B1C = (_sum(g_BNC * x_BNC) - mean_B1C * of_g_B1C) * rate_B1C  # with the normalised image
        scale_B1C, pixels = rate_B1C * weight, x_BNC.shape[1]
        slope_B1C = -scale_B1C * rate_B1C * of_gx_B1C / pixels
        dx = torch.empty_like(x, memory_format=torch.channels_last)
        shift_B1C = -scale_B1C * of_g_B1C / pixels - slope_B1C * mean_B1C
        torch.addcmul(shift_B1C, g_BNC, scale_B1C, out=_pixels(dx))
        _pixels(dx).addcmul_(x_BNC, slope_B1C)
        return dx, of_gx_B1C.sum((0, 1)), of_g_B1C.sum((0, 1)), None


def _pixels(x: Tensor) -> Tensor:
    """A view of [B, C, H, W] in channels-last order as [B, N, C]."""
    return x.permute(0, 2, 3, 1).view(len(x), -1, x.shape[1])


def _sum(x_BNC: Tensor) -> Tensor:
    """[B, N, C] -> [B, 1, C], as a product of matrices, which a CPU does several times faster than a sum."""
    return torch.bmm(x_BNC.new_ones(len(x_BNC), 1, x_BNC.shape[1]), x_BNC)
