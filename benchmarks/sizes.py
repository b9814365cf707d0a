"""What one sample costs each model: arithmetic of a step, saved activations, weights.

    python benchmarks/sizes.py [--write docs/full-size.md]

Arithmetic is counted by PyTorch's own counter (two operations for a multiply-add), forward for what is only applied,
forward and backward for what is trained. Saved activations are what autograd keeps between the two in float32; bfloat16
keeps about half. Nothing is timed, so that the figures are the same on every machine.
"""

from argparse import ArgumentParser
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from running import put
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from sightline.clip import GridParams
from sightline.clip.weights import load_image_tower
from sightline.depth.network import Autoencoder, NetworkConfig
from sightline.fusion import ImageJointEncoder
from sightline.segmentation.network import SegmentationNetwork

SAMPLES = 2  # in a batch: normalisation needs more than one


def trained(name: str, model: nn.Module, forward: Callable[[], Tensor]) -> tuple[str, ...]:
    """A row of the table for a step of training."""
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    sizes: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        if (storage := tensor.untyped_storage()).data_ptr() not in weights:
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    counter = FlopCounterMode(display=False)
    with counter:
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = forward().sum()
        loss.backward()
    saved = sum(sizes.values()) / SAMPLES / 2**20
    count = sum(p.numel() for p in model.parameters())
    return name, f"{counter.get_total_flops() / SAMPLES / 1e9:.2f}", f"{saved:.1f}", f"{count / 1e6:.2f} M"


def applied(name: str, model: nn.Module, forward: Callable[[], Any]) -> tuple[str, ...]:
    """A row of the table for a forward pass."""
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        forward()
    count = sum(p.numel() for p in model.parameters())
    return name, f"{counter.get_total_flops() / SAMPLES / 1e9:.2f}", "", f"{count / 1e6:.2f} M"


def table() -> str:
    """Markdown: a row for each model."""
    depth, views = torch.zeros(SAMPLES, 1, 128, 128), [torch.rand(SAMPLES, 3, 84, 84) for _ in range(3)]
    autoencoder, tower = Autoencoder(NetworkConfig()), load_image_tower(GridParams()).visual
    rows = [
        trained("train_autoencoder, an image of 128x128", autoencoder, lambda: autoencoder(depth)[0]),
        applied("embed, an image of 128x128", autoencoder.encoder, lambda: autoencoder.encoder(depth)),
        applied("clip_grids, ViT-B/16, an image of 224x224", tower, lambda: tower(torch.zeros(SAMPLES, 3, 224, 224))),
    ]
    for design in ("stacked", "separate"):
        encoder = ImageJointEncoder(design=design)  # type: ignore[arg-type]
        rows.append(trained(
            f"train_fusion, {design}, three views of 84x84", encoder,
            lambda encoder=encoder: encoder(*views, torch.zeros(SAMPLES, 16)),  # type: ignore[misc]
        ))  # fmt: skip
    for side in (96, 256):
        network = SegmentationNetwork(3, 5, norm="instance")
        rows.append(trained(
            f"train_segmentation, one view of {side}x{side}", network,
            lambda network=network, side=side: network(torch.zeros(SAMPLES, 3, side, side)),  # type: ignore[misc]
        ))  # fmt: skip
    head = ("a sample of", "GFLOP", "saved activations, MiB", "weights")
    lines = [f"| {' | '.join(cells)} |" for cells in (head, *rows)]
    return "\n".join([lines[0], "|---" * len(head) + "|", *lines[1:]])


def main() -> None:
    torch.backends.mha.set_fastpath_enabled(False)  # its arithmetic is not counted
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", type=Path, metavar="FILE", help="Markdown file with the marks for the table")
    put(table(), "sizes", parser.parse_args().write)


if __name__ == "__main__":
    main()
