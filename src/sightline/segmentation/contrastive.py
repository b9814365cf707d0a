"""Class-wise contrastive losses on rows of features, as functions of the mean direction of each class.

The loss that pulls the features of a class towards stored features of the same class is, as Alonso et al.,
"Semi-Supervised Semantic Segmentation with Pixel-Level Contrastive Learning from a Class-wise Memory Bank" (ICCV 2021)
and Wu et al., "Exploring Smoothness and Class-Separation for Semi-supervised Medical Image Segmentation" (SS-Net,
MICCAI 2022) compute it, a mean over all pairs of M features f and K stored rows m, each scaled to length one:

    L = mean_ij u_i v_j (1 - f_i . m_j),  with weights u and v whose means are 1

The product is linear in both, so the matrix of pairs is not needed: L = 1 - (mean_i u_i f_i) . (mean_j v_j m_j).
That is O((M + K) D) instead of O(M K D), with the same gradients.

Shapes: N rows (pixels or voxels of all images), D numbers in a row, C classes.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn import functional as F


def class_members(labels_N: Tensor, num_classes: int) -> Tensor:
    """Which row is of which class: whole numbers [N] -> bool [C, N]; a label outside 0..C-1 is of no class."""
    return torch.arange(num_classes, device=labels_N.device)[:, None] == labels_N


def mean_directions(features_ND: Tensor, members_CN: Tensor, eps: float) -> Tensor:
    """Mean over the rows of each class of the rows at length one -> [C, D], each of length 0..1; zero without rows.

    Args:
        features_ND: rows of any length; a row shorter than ``eps`` is divided by ``eps``, so that zeros stay zeros.
        members_CN: from `class_members`.
        eps: smallest length that a row is scaled from. The gradient of a row grows to 1 / eps as it nears zero.
    """
    factors_CN = members_CN.to(features_ND.dtype) / members_CN.sum(dim=1).clamp_min(1)[:, None]
    return _UnitSums.apply(features_ND, factors_CN, eps)


def weighted_and_plain_means(
    features_ND: Tensor, members_CN: Tensor, eps: float, weights_N: Tensor
) -> tuple[Tensor, Tensor]:
    """`mean_directions` with a factor for each row, and without: [C, D] each, in one pass over the rows."""
    factors_CN = members_CN.to(features_ND.dtype) / members_CN.sum(dim=1).clamp_min(1)[:, None]
    weighted_CD, plain_CD = _UnitSums.apply(features_ND, torch.cat([factors_CN * weights_N, factors_CN]), eps).chunk(2)
    return weighted_CD, plain_CD


class _UnitSums(torch.autograd.Function):
    """Factors [R, N] @ rows [N, D] at length one -> [R, D], the same as ``factors @ F.normalize(rows, eps=eps)``.

    The rows at length one, as many numbers as the features, are never written; the backward pass writes the gradient
    and nothing else of that size. Left to autograd, both passes spend most of their time on such matrices.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, features_ND: Tensor, factors_RN: Tensor, eps: float) -> Tensor:
        length_N = torch.linalg.vector_norm(features_ND, dim=1)
        scale_N = 1 / length_N.clamp_min(eps)
        ctx.save_for_backward(features_ND, factors_RN, scale_N, length_N >= eps)
        return (factors_RN * scale_N) @ features_ND

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_RD: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        features_ND, factors_RN, scale_N, scaled_N = ctx.saved_tensors
        with torch.autocast(grad_RD.device.type, enabled=False):
            # features first: the product [R, D] x [D, N] takes several times as long on a CPU
            along_NR = features_ND @ grad_RD.T * scale_N[:, None]  # gradient of the factors
            grad_ND = None
            if ctx.needs_input_grad[0]:
                # what would change the length of a row is taken away; a row shorter than eps keeps its length
                radial_N = (factors_RN.T * along_NR).sum(dim=1) * scale_N * scale_N * scaled_N
                grad_ND = (factors_RN * scale_N).T @ grad_RD
                grad_ND.addcmul_(features_ND, radial_N[:, None], value=-1)
            return grad_ND, along_NR.T if ctx.needs_input_grad[1] else None, None


def attraction(means_CD: Tensor, memory_means_CD: Tensor) -> Tensor:
    """Mean of 1 - cosine over all pairs of a feature and a stored row of each class -> [C], each in 0..2.

    Both arguments are means of rows at length one, weighted or not.
    """
    return 1 - (means_CD * memory_means_CD).sum(dim=1)


def intra_class_loss(means_CD: Tensor, present_C: Tensor) -> Tensor:
    """Mean squared distance of rows at length one from the direction of their class, over the classes: 0..2.

    The direction p of a class is its mean at length one, so mean |f - p|^2 = 2 - 2 |mean f|: 0 where all rows of a
    class point the same way, 2 where they cancel.

    Args:
        means_CD: from `mean_directions`, without weights.
        present_C: bool; the classes that have rows. The loss is 0 without any.
    """
    spread_C = 2 - 2 * torch.linalg.vector_norm(means_CD, dim=1)
    return (spread_C * present_C).sum() / present_C.sum().clamp_min(1)


def inter_class_loss(means_CD: Tensor, present_C: Tensor, margin: float, eps: float) -> Tensor:
    """Mean over the pairs of classes of max(0, margin - distance of their directions)^2.

    Directions have length one, so the distance is 0..2, and long features do not count as separate ones: on raw means
    this term grows lengths and leaves the angles.

    Args:
        means_CD: from `mean_directions`, without weights.
        present_C: bool; the classes that have rows. The loss is 0 with fewer than two.
        margin: distance from which two classes do not repel each other; 1 is 60 degrees.
        eps: smallest length that a mean is scaled from.
    """
    directions_CD = F.normalize(means_CD, dim=1, eps=eps)
    # the root of 2 - 2 cosine has no gradient at 0; the length of a difference has a defined one
    distance_CC = torch.linalg.vector_norm(directions_CD[:, None] - directions_CD[None], dim=2)
    pairs_CC = torch.triu(present_C[:, None] & present_C[None], diagonal=1)
    return ((margin - distance_CC).clamp_min(0).square() * pairs_CC).sum() / pairs_CC.sum().clamp_min(1)
