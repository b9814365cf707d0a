"""A training step of the nine-channel encoder against three ResNet-18s: time, and activations that are kept.

    python benchmarks/fusion.py [--quick]

Forward, loss, backward and optimizer step on views of 84x84 in memory. The plain step is what one would write first:
three of torchvision's ResNet-18s in float32, default memory format, unfused optimizer. Ours is in bfloat16 where the
hardware has it, channels last, with a fused optimizer. Kept activations are what autograd saves between forward and
backward, without weights.
"""

import torch
from measuring import Bench, Multiplication, Row, command, in_turn, per
from peers.three_resnets import ThreeResNets
from torch import Tensor, nn
from train import step_flop

from sightline.fusion import ImageJointEncoder
from sightline.training.precision import use_bf16
from sightline.training.processes import process_device


class Step:
    """One training step of an encoder with a linear head."""

    def __init__(self, encoder: nn.Module, fast: bool, batch: int) -> None:
        device = process_device()
        self.encoder, self.head = encoder.to(device), nn.Linear(256, 256).to(device)
        if fast:
            self.encoder = self.encoder.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.device, self.bf16 = device, fast and use_bf16("auto")
        parameters = [*self.encoder.parameters(), *self.head.parameters()]
        self.optimizer = torch.optim.AdamW(parameters, fused=fast)
        self.inputs = [torch.rand(batch, 3, 84, 84, device=device) for _ in range(3)]
        self.inputs.append(torch.randn(batch, 16, device=device))
        self.target = torch.randn(batch, 256, device=device)

    def loss(self) -> Tensor:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            predicted = self.head(self.encoder(*self.inputs))
        return (predicted.float() - self.target).abs().mean()

    def __call__(self) -> None:
        self.loss().backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def saved_mib(self) -> float:
        """Distinct storages that autograd saves, without the weights."""
        weights = {p.untyped_storage().data_ptr() for p in self.encoder.parameters()}
        sizes: dict[int, int] = {}

        def keep(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in weights:
                sizes[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = self.loss()
        total = sum(sizes.values())
        del loss
        return total / 2**20


def rows(bench: Bench) -> list[Row]:
    """Two rows: the time of a step, and what it keeps."""
    batch = bench.size(32, 2)
    ours, plain = Step(ImageJointEncoder(), True, batch), Step(ThreeResNets(), False, batch)
    multiply = Multiplication(bench, torch.bfloat16 if ours.bf16 else torch.float32)
    seconds = in_turn({"nine": ours, "three": plain, "bound": multiply}, bench.size(5, 1))
    flop = batch * step_flop(ImageJointEncoder(), *(x[:2].cpu() for x in ours.inputs)) / 2
    least = multiply.least_ms(seconds["bound"], flop)
    work, peer = f"nine-channel step, batch {batch}", "three ResNet-18s, fp32"
    between = "convolutions of small maps, norms, the optimizer of 11.8 M weights"
    return [
        Row(work, "ms", per(seconds["nine"], 1), per(seconds["three"], 1), peer, least, "peak arithmetic", between),
        Row(f"{work}: activations", "MiB", [ours.saved_mib()], [plain.saved_mib()], peer),
    ]


if __name__ == "__main__":
    command(__doc__, rows)
