"""The contrastive memory bank against a plain way: numpy memories, the whole matrix of pairs, class after class.

    python benchmarks/prototypes.py [--pixels 200000] [--dim 256] [--classes 4] [--elements 32] [--device cpu]

Both fill the bank from the correctly predicted foreground rows, compute the contrastive loss of all rows, and its
gradients, in float32, with and without learned selectors; the manager computes its intra and inter losses besides. The
plain way keeps the rows that `select_elements` names, so that both hold the same. Seconds are the best of ``--repeats``
in turn; on a GPU, memory is the peak beyond the features.
"""

import copy
import time
from argparse import ArgumentParser
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from sightline.segmentation import ContrastivePrototypeManager


def plain_step(manager: ContrastivePrototypeManager, features: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
    """SS-Net's bank and loss as its definition reads."""
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


def measure(step: Callable[[Tensor], Tensor], features: Tensor) -> tuple[float, float, float]:
    """Seconds, peak MiB on a GPU, and the loss."""
    x = features.clone().requires_grad_()
    cuda = features.is_cuda
    if cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    start = time.perf_counter()
    loss = step(x)
    loss.backward()
    value = loss.item()  # waits for the device
    seconds = time.perf_counter() - start
    return seconds, (torch.cuda.max_memory_allocated() - before) / 2**20 if cuda else 0.0, value


def main() -> None:
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pixels", type=int, default=200_000)
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("--classes", type=int, default=4)
    parser.add_argument("--elements", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    torch.manual_seed(0)
    labels = torch.randint(args.classes, (args.pixels,), device=args.device)
    features = torch.randn(args.pixels, args.dim, device=args.device)
    logits = F.one_hot((labels + (torch.rand_like(features[:, 0]) < 0.2)) % args.classes, args.classes).float()
    print(f"{args.pixels} x {args.dim}, {args.classes} classes, {args.elements} rows each, {args.device}")
    for learned in (False, True):
        ours = ContrastivePrototypeManager(args.classes, args.dim, args.elements, learned).to(args.device)
        reference = copy.deepcopy(ours)
        results: dict[str, list[tuple[float, float, float]]] = {"plain": [], "manager": []}
        for _ in range(args.repeats + 1):
            results["plain"].append(measure(lambda x, m=reference: plain_step(m, x, logits, labels), features))
            results["manager"].append(
                measure(lambda x, m=ours: m.update_and_compute_loss(x, logits, labels, True, 1, 0, 0)[0], features)
            )
        for name, rows in results.items():
            seconds, memory = min(row[0] for row in rows[1:]), max(row[1] for row in rows[1:])  # the first warms up
            faster = min(row[0] for row in results["plain"][1:]) / seconds
            peak = f", {memory:.0f} MiB" if features.is_cuda else ""
            selectors = "learned selectors" if learned else "no selectors"
            print(f"{selectors}, {name}: {seconds:.3f} s ({faster:.1f}x){peak}, loss {rows[-1][2]:.6f}")


if __name__ == "__main__":
    main()
