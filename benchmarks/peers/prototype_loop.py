"""SS-Net's memory bank and loss as its definition reads: numpy memories, the whole matrix of pairs, class by class."""

import torch
from torch import Tensor
from torch.nn import functional as F

from sightline.segmentation import ContrastivePrototypeManager


def step(manager: ContrastivePrototypeManager, features: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
    """Fill the bank, with the rows that ``manager`` would choose, and return the loss."""
    feature_selectors, memory_selectors = manager.get_selectors()
    correct = logits.argmax(dim=1) == labels
    memory = [None] + [
        manager.select_elements(features[correct & (labels == c)], c).cpu().numpy()
        for c in range(1, manager.num_classes)
    ]
    loss = features.new_zeros(())
    for class_id, stored in enumerate(memory):
        rows = features[labels == class_id]
        if stored is None or len(stored) < 2 or len(rows) < 2:
            continue
        units = F.normalize(torch.from_numpy(stored).to(features.device), dim=1)
        distances = 1 - F.normalize(rows, dim=1) @ units.T
        if feature_selectors is not None and memory_selectors is not None:
            scores = feature_selectors[class_id](rows.detach()).sigmoid()
            distances = distances * (len(rows) / scores.sum(dim=0) * scores).repeat(1, len(units))
            weights = memory_selectors[class_id](units).sigmoid().permute(1, 0)
            distances = distances * (weights / weights.sum(dim=0)).repeat(len(rows), 1)
        loss = loss + distances.mean()
    return loss / manager.num_classes
