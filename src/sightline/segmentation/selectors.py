"""The small networks of the memory bank, which rows are stored, and how rows are weighed."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def selector(dim: int) -> nn.Sequential:
    """Row [N, D] -> score [N, 1] before the sigmoid."""
    return nn.Sequential(nn.Linear(dim, dim), nn.BatchNorm1d(dim), nn.LeakyReLU(0.2, inplace=True), nn.Linear(dim, 1))


def head(in_dim: int, out_dim: int) -> nn.Sequential:
    """Row [N, in_dim] -> [N, out_dim]."""
    return nn.Sequential(nn.Linear(in_dim, out_dim), nn.BatchNorm1d(out_dim), nn.ReLU(), nn.Linear(out_dim, out_dim))


def scores(selector: nn.Module, rows_ND: Tensor) -> Tensor:
    """Scores in 0..1, [N], in the precision of the rows, at least float32."""
    return _before_sigmoid(selector, rows_ND).sigmoid()


def weights_of(selector: nn.Module, rows_ND: Tensor) -> Tensor:
    """Scores divided by their mean, [N].

    By way of logarithms: scores of rows as long as half precision allows are all 0 in float32, and so is their sum.
    """
    return F.logsigmoid(_before_sigmoid(selector, rows_ND)).softmax(dim=0) * len(rows_ND)


def _before_sigmoid(selector: nn.Module, rows_ND: Tensor) -> Tensor:
    with torch.autocast(rows_ND.device.type, enabled=False):
        weight = next(selector.parameters())
        return selector(rows_ND.to(weight.dtype)).squeeze(1).to(torch.promote_types(rows_ND.dtype, torch.float32))


def in_eval_mode(module: nn.Module, rows: Tensor) -> Tensor:
    """Output of ``module`` in evaluation mode; its own mode is restored afterwards."""
    training = module.training
    module.eval()
    try:
        return module(rows)
    finally:
        module.train(training)


def rows_by_class(classes_N: Tensor, counts: list[int]) -> list[Tensor]:
    """Indices of the rows of each class, ``counts`` of them, in their order; class numbers from C on are skipped."""
    return list(classes_N.argsort(stable=True)[: sum(counts)].split(counts))


def evenly_spaced(count: int, most: int, device: torch.device) -> Tensor:
    """Of the places 0..count-1, ``most`` evenly spaced ones; all of them where there are fewer."""
    number = min(count, most)
    return torch.arange(number, device=device) * count // max(number, 1)


def feature_weights(
    selectors: nn.ModuleList, features_ND: Tensor, classes_N: Tensor, counts: list[int], takes_part: list[bool]
) -> Tensor:
    """Scores of the feature selectors, with a mean of 1 in each class: [N]; 1 where a class takes no part.

    Args:
        counts: rows of each class.
    """
    weights_N = features_ND.new_ones(len(features_ND))
    if not any(takes_part):
        return weights_N
    places, weights = [], []
    for class_id, rows in enumerate(rows_by_class(classes_N, counts)):
        if takes_part[class_id]:
            places.append(rows)
            weights.append(weights_of(selectors[class_id], features_ND[rows]))
    return weights_N.index_put((torch.cat(places),), torch.cat(weights))


def weigh_memory(
    selectors: nn.ModuleList, memory_CKD: Tensor, counts: list[int], takes_part: list[bool], live: bool
) -> Tensor:
    """Stored rows at length one, times the memory selectors' weights with a mean of 1 in each class -> [C, K, D].

    Without ``live``, the weights are 1, but the running statistics of the selectors' normalisation still move.
    """
    weighted = list(memory_CKD)
    for class_id, count in enumerate(counts):
        if not takes_part[class_id]:
            continue
        rows_kD = memory_CKD[class_id, :count]
        with torch.set_grad_enabled(torch.is_grad_enabled() and live):
            weights_k = weights_of(selectors[class_id], rows_kD)
        if live:
            rows_kD = rows_kD * weights_k[:, None]
            weighted[class_id] = F.pad(rows_kD, (0, 0, 0, memory_CKD.shape[1] - count))
    return torch.stack(weighted)
