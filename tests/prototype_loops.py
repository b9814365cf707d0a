"""The definition of the memory bank and its loss, row by row and pair by pair, and what its tests draw."""

import itertools
import math

import torch
from torch import nn
from torch.nn import functional as F

from sightline.segmentation import ContrastivePrototypeManager


def make(num_classes=3, feature_dim=5, elements_per_class=4, seed=0, **options):
    """A manager in float64 whose selectors are spread, so that every score counts."""
    torch.manual_seed(seed)
    manager = ContrastivePrototypeManager(num_classes, feature_dim, elements_per_class, **options).double()
    for selectors in manager.get_selectors():
        for selector in selectors or []:
            nn.init.normal_(selector[3].weight, std=2)
    return manager


def draw(count, dim=5, num_classes=3, seed=0):
    """Features, logits and labels, float64."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(count, dim, generator=generator, dtype=torch.float64)
    logits = torch.randn(count, num_classes, generator=generator, dtype=torch.float64)
    return features, logits, torch.randint(num_classes, (count,), generator=generator)


def logits_of(classes, num_classes=3, certainty=9.0):
    """Logits that predict these classes."""
    return F.one_hot(classes, num_classes).double() * certainty


def fill(manager, rows=4, seed=7):
    """Store ``rows`` random rows of every class."""
    for class_id in range(manager.num_classes):
        manager.update_memory({class_id: draw(rows, manager.feature_dim, seed=seed + class_id)[0]})
    return manager


def unit(row, eps=1e-12):
    return row / max(float(row.norm()), eps)


def pairwise_loss(manager, features, labels):
    """SS-Net's loss, with the whole matrix of pairs, class after class. Runs the selectors, as the manager does."""
    feature_selectors, memory_selectors = manager.get_selectors()
    losses = []
    for class_id in range(manager.num_classes):
        rows, memory = features[labels == class_id], manager.memory_rows(class_id)
        if memory is None or len(rows) < 2 or len(memory) < 2:
            continue
        units = torch.stack([row / row.norm().clamp_min(manager.options.eps) for row in rows])
        stored = torch.stack([unit(row, manager.options.eps) for row in memory])
        u, v = torch.ones(len(rows), dtype=rows.dtype), torch.ones(len(memory), dtype=rows.dtype)
        if feature_selectors is not None:
            u = torch.sigmoid(feature_selectors[class_id](rows.detach()))[:, 0]
            u = len(rows) * u / u.sum()
            if manager.options.memory_weights == "live":
                v = torch.sigmoid(memory_selectors[class_id](stored))[:, 0]
                v = len(memory) * v / v.sum()
        pairs = [
            u[i] * v[j] * (1 - units[i] @ stored[j]) for i, j in itertools.product(range(len(rows)), range(len(memory)))
        ]
        losses.append(sum(pairs) / len(pairs))
    if not losses:
        return features.sum() * 0
    return sum(losses) / (manager.num_classes if manager.options.divisor == "num_classes" else len(losses))


def select_rows(manager, rows, class_id):
    """Which rows an update keeps, as a list. Runs the selector, as the manager does."""
    rows, most = list(rows.detach()), manager.options.rows_per_update
    if len(rows) <= most:
        return rows
    selectors, _ = manager.get_selectors()
    if selectors is None:
        return [rows[math.floor(k * len(rows) / most)] for k in range(most)]
    scores = torch.sigmoid(selectors[class_id](torch.stack(rows)))[:, 0].tolist()
    sign = -1 if manager.options.selection_order == "descending" else 1
    return [rows[i] for i in sorted(range(len(rows)), key=lambda i: (sign * scores[i], i))[:most]]


def update_rows(manager, bank, features_dict):
    """The bank, as a list of lists, after an update."""
    bank = [list(rows) for rows in bank]
    for class_id, rows in features_dict.items():
        if len(rows):
            new = select_rows(manager, rows, class_id)
            older = bank[class_id] if manager.options.update == "fifo" else []
            bank[class_id] = (new + older)[: manager.options.elements_per_class]
    return bank


def assert_bank(manager, bank):
    for class_id, rows in enumerate(bank):
        stored = manager.memory_rows(class_id)
        if rows:
            assert torch.equal(stored, torch.stack(rows))
            assert not manager.memory[class_id, len(rows) :].any()
        else:
            assert stored is None
