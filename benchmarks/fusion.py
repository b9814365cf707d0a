"""A training step of the nine-channel encoder against the other designs: time, saved activations, weights.

    python benchmarks/fusion.py [--batch-size 32] [--repeats 5] [--compile]

Forward, loss, backward and optimizer step on views of 84x84 in memory. The plain step is what one would write first:
three ResNet-18s in float32, default memory format, unfused optimizer. Ours is in bfloat16 where the hardware has it,
channels last, with a fused optimizer. Saved activations are what autograd keeps between forward and backward, without
weights. Times are the least of several, taken in turn.
"""

import time
from argparse import ArgumentParser

import torch
from torch import Tensor, nn

from sightline.fusion import ImageJointEncoder
from sightline.training.precision import use_bf16
from sightline.training.processes import process_device

DESIGNS = ("nine", "shared", "three")


class Step:
    """One training step of an encoder with a linear head."""

    def __init__(self, design: str, fast: bool, batch: int, device: torch.device, compiled: bool) -> None:
        torch.manual_seed(0)
        self.encoder = ImageJointEncoder(design=design).to(device)  # type: ignore[arg-type]
        if fast:
            self.encoder = self.encoder.to(memory_format=torch.channels_last)
            if compiled:
                self.encoder.compile()
        self.head, self.device = nn.Linear(256, 256).to(device), device
        self.bf16 = fast and use_bf16("auto")
        parameters = [*self.encoder.parameters(), *self.head.parameters()]
        self.optimizer = torch.optim.AdamW(parameters, fused=fast, foreach=False if not fast else None)
        self.views = [torch.rand(batch, 3, 84, 84, device=device) for _ in range(3)]
        self.joints, self.target = torch.randn(batch, 16, device=device), torch.randn(batch, 256, device=device)

    def loss(self) -> Tensor:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            predicted = self.head(self.encoder(*self.views, self.joints))
        return (predicted.float() - self.target).abs().mean()

    def seconds(self) -> float:
        start = time.perf_counter()
        self.loss().backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    def saved_mib(self) -> float:
        """Distinct storages that autograd saves, without the weights."""
        weights = {p.untyped_storage().data_ptr() for p in self.encoder.parameters()}
        kept: dict[int, int] = {}

        def keep(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in weights:
                kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = self.loss()
        total = sum(kept.values())
        del loss
        return total / 2**20


def main() -> None:
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--compile", action="store_true", help="compile the encoders that are not plain")
    args = parser.parse_args()
    device = process_device()
    steps = {
        (design, fast): Step(design, fast, args.batch_size, device, args.compile)
        for fast in (False, True)
        for design in DESIGNS
    }
    seconds: dict[tuple[str, bool], list[float]] = {key: [] for key in steps}
    for step in steps.values():
        step.seconds()  # warm up
    for _ in range(args.repeats):
        for key, step in steps.items():
            seconds[key].append(step.seconds())
    plain = min(seconds["three", False])
    saved = steps["three", False].saved_mib()
    kind = "bf16" if use_bf16("auto") else "fp32"
    print(f"batch {args.batch_size} on {device}, least of {args.repeats}; plain is three ResNet-18s in float32")
    for (design, fast), step in steps.items():
        least, mib = min(seconds[design, fast]), step.saved_mib()
        count = sum(p.numel() for p in step.encoder.parameters()) / 1e6
        name = f"{design}, {f'{kind}, channels last, fused' if fast else 'plain'}"
        print(
            f"  {name:38} {1e3 * least:8.0f} ms  {plain / least:5.2f} times as fast"
            f"  {mib:7.1f} MiB saved ({mib / saved:4.0%})  {count:6.2f} M weights"
        )


if __name__ == "__main__":
    main()
