"""The contrastive memory bank against a plain way: numpy memories, the whole matrix of pairs, class after class.

    python benchmarks/prototypes.py [--quick]

Both fill the bank from the correctly predicted foreground rows, compute the contrastive loss of all rows, and its
gradients, in float32, with and without learned selectors; the manager computes its intra and inter losses besides. The
plain way keeps the rows that `select_elements` names, so that both hold the same; that the losses agree is checked. The
bound is a copy of the features: reading each once and writing its gradient once.
"""

import copy
from collections.abc import Callable

import torch
from measuring import Bench, Row, command, in_turn, per
from peers import prototype_loop
from torch import Tensor
from torch.nn import functional as F

from sightline.segmentation import ContrastivePrototypeManager
from sightline.training.processes import process_device

CLASSES, ELEMENTS = 4, 32


def rows(bench: Bench) -> list[Row]:
    """Two rows: without and with learned selectors."""
    pixels, dim, device = bench.size(200_000, 500), bench.size(256, 8), process_device()
    torch.manual_seed(0)
    labels = torch.randint(CLASSES, (pixels,), device=device)
    features = torch.randn(pixels, dim, device=device)
    logits = F.one_hot((labels + (torch.rand_like(features[:, 0]) < 0.2)) % CLASSES, CLASSES).float()
    table = []
    for learned in (False, True):
        manager = ContrastivePrototypeManager(CLASSES, dim, ELEMENTS, learned).to(device)
        reference = copy.deepcopy(manager)
        losses: dict[str, float] = {}

        def step(name: str, loss_of: Callable[[Tensor], Tensor], losses: dict[str, float] = losses) -> None:
            x = features.detach().requires_grad_()
            loss = loss_of(x)
            loss.backward()
            losses[name] = loss.item()

        def ours(x: Tensor, manager: ContrastivePrototypeManager = manager) -> Tensor:
            return manager.update_and_compute_loss(x, logits, labels, True, 1, 0, 0)[0]

        def plain(x: Tensor, reference: ContrastivePrototypeManager = reference) -> Tensor:
            return prototype_loop.step(reference, x, logits, labels)

        ways = {"ours": lambda f=ours: step("ours", f), "plain": lambda f=plain: step("plain", f)}
        seconds = in_turn(ways | {"copy": features.clone}, bench.size(5, 1))
        if abs(losses["ours"] - losses["plain"]) > 1e-4 * abs(losses["plain"]):
            raise SystemExit(f"the losses differ, {losses}: the two ways do not do the same")
        work = f"memory bank and its loss, {pixels:,} x {dim}, {'learned' if learned else 'no'} selectors"
        costs = per(seconds["ours"], 1), per(seconds["plain"], 1)
        passes = "choosing the rows of the bank, norms, gradients, each a pass over the features"
        between = f"the selectors' networks on every row, forward and backward; {passes}" if learned else passes
        table.append(Row(work, "ms", *costs, "pairs and numpy", per(seconds["copy"], 1), "a copy", between))
    return table


if __name__ == "__main__":
    command(__doc__, rows)
