"""A training step of the autoencoder, against a plain float32 loop on PNG files and against the device's arithmetic.

    python benchmarks/train.py [--quick] [--depth FOLDER]

Ours reads normalised depth (from the GPU's memory where there is one and it fits) and trains in bfloat16 where the
hardware has it, with channels-last memory and a fused optimizer, in a process that keeps freed memory, as the stage
does. The plain loop has a process of its own, which gives it back, as a script's does. The bound is the arithmetic of
the convolutions, forward and backward, at the rate of a product of large matrices in the same precision.
"""

from collections.abc import Iterator
from itertools import cycle, islice

import torch
from measuring import Bench, Elsewhere, Multiplication, Row, command, in_turn, per, scratch_in
from peers import autoencoder_loop
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode

from sightline.core.memory import keep_freed_memory
from sightline.depth.augmentation import CHANCES
from sightline.depth.network import Autoencoder, NetworkConfig
from sightline.depth.normalize import NormalizeParams, normalize_depth
from sightline.depth.store import DepthStore
from sightline.depth.training import DepthImages, TrainParams, mean_errors, resident_images
from sightline.recording.split import SplitParams
from sightline.training.gradients import clip_gradients
from sightline.training.order import EpochBatches
from sightline.training.precision import use_bf16
from sightline.training.processes import process_device


def _train(batches: Iterator[dict[str, Tensor]], device: torch.device) -> Iterator[None]:
    """One step for each time that the next is asked for."""
    layout = torch.channels_last
    network = Autoencoder(NetworkConfig()).to(device, memory_format=layout)  # type: ignore[call-overload]
    optimizer = torch.optim.AdamW(network.parameters(), 1e-4, fused=True)
    for batch in batches:
        depth, valid = batch["depth"].to(device).contiguous(memory_format=layout), batch["valid"].to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=use_bf16("auto")):
            mse, l1 = mean_errors(network(depth)[0] - depth, valid)
            loss = mse + 0.1 * l1
        optimizer.zero_grad()
        loss.backward()
        clip_gradients(network.parameters(), 1.0)
        optimizer.step()
        yield


def step_flop(network: nn.Module, *inputs: Tensor) -> int:
    """Floating-point operations of a forward and a backward pass."""
    with FlopCounterMode(display=False) as counter:
        output = network(*inputs)
        (output[0] if isinstance(output, tuple) else output).sum().backward()
    return counter.get_total_flops()


def rows(bench: Bench) -> list[Row]:
    """A training step with a batch for a GPU, and with the default."""
    keep_freed_memory()
    return [_step(bench, 32, "on a GPU"), _step(bench, TrainParams().batch_size, "the default")]


def _step(bench: Bench, batch: int, which: str) -> Row:
    device, shown = process_device(), batch
    batch = bench.size(batch, 2)
    steps = bench.size(max(1, 16 // batch) if device.type == "cpu" else 20, 1)
    # images enough for one epoch: a loader that starts its processes anew makes all memory slow for a while
    rounds = bench.size(9, 1)
    folder = bench.depth_folder(f"trained_{shown}", bench.size(batch * steps * 2 * (rounds + 1), 24))
    with scratch_in(bench.room):
        params = NormalizeParams(height_range=(500, 4500), invalid=(0, 65535))
        normalize_depth(folder, folder.with_suffix(".hdf5"), params, split=SplitParams(guard=0), processes=1)
    store = DepthStore.open(folder.with_suffix(".hdf5"))
    order = EpochBatches(store.rows("train", "val", "test", "guard"), batch, seed=0, chances=CHANCES)
    loader = DataLoader(DepthImages(store, "full", resident_images(store, device)), sampler=order, batch_size=None)
    ours = _train((inputs for loaders in cycle([loader]) for inputs in loaders), device)
    multiply = Multiplication(bench, torch.bfloat16 if use_bf16("auto") else torch.float32)
    with Elsewhere(autoencoder_loop.steps, folder, store.preprocessing, batch) as plain:
        ways = {"ours": lambda: list(islice(ours, steps)), "plain": lambda: plain(steps), "bound": multiply}
        seconds = in_turn(ways, rounds, settle=True)
    flop = batch * step_flop(Autoencoder(NetworkConfig()), torch.zeros(2, 1, 128, 128)) / 2
    work, between = f"autoencoder step, batch {shown} ({which})", "convolutions of few channels, norms, the optimizer"
    bound = multiply.least_ms(seconds["bound"], flop)
    costs = per(seconds["ours"], steps), per(seconds["plain"], steps)
    return Row(work, "ms", *costs, "plain fp32 loop, PNG files", bound, "peak arithmetic", between)


if __name__ == "__main__":
    command(__doc__, rows)
