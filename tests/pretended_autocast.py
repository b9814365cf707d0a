"""CUDA's autocast for `pretended_gpu`: C++ leaves out tensors whose memory is the host's."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._pytree import tree_map

# of aten/src/ATen/autocast_mode.h, what is called here
_LOWER = {
    F.conv1d, F.conv2d, F.conv3d, F.conv_transpose2d, F.conv_transpose3d, F.linear, torch.conv2d, torch.matmul,
    Tensor.matmul, Tensor.__matmul__, Tensor.__rmatmul__, torch.mm, torch.bmm, torch.addmm, torch.baddbmm,
    torch.einsum, F.scaled_dot_product_attention, F.prelu,
}  # fmt: skip
_FULL = {
    torch.exp, Tensor.exp, torch.log, Tensor.log, torch.reciprocal, torch.rsqrt, torch.pow, Tensor.pow, Tensor.__pow__,
    F.softplus, F.layer_norm, F.group_norm, F.cosine_similarity, F.nll_loss, F.cross_entropy, F.mse_loss, F.l1_loss,
    F.smooth_l1_loss, F.huber_loss, F.interpolate, F.softmax, F.log_softmax, torch.softmax, Tensor.softmax,
    Tensor.log_softmax, torch.log_softmax, Tensor.sum, torch.sum, torch.linalg.vector_norm, torch.norm, Tensor.norm,
    F.normalize, torch.cumsum, Tensor.cumsum,
}  # fmt: skip


def cast_arguments(func: Any, args: Any, kwargs: Any) -> Any:
    """Arguments of ``func`` in the type that autocast gives it on a GPU."""
    wanted = torch.get_autocast_dtype("cuda") if func in _LOWER else torch.float32 if func in _FULL else None
    if wanted is None:
        return args, kwargs

    def cast(x: Any) -> Any:
        fits = isinstance(x, Tensor) and x.is_cuda and x.is_floating_point() and x.dtype not in (wanted, torch.float64)
        with torch._C.DisableTorchFunction():
            return x.to(wanted) if fits else x

    return tree_map(cast, (args, kwargs))
