"""A training step of the autoencoder against the plain loop that one would write first, in one run.

    python benchmarks/train.py FOLDER [--batch-size 32] [--steps 6] [--repeats 3]

FOLDER holds uint16 depth images. The plain loop decodes and normalises PNG files in a DataLoader with one worker per
core and trains in float32; ours reads normalised depth (from the GPU's memory where there is one and it fits) and
trains in bfloat16 where the hardware has it, with channels-last memory, a fused optimizer, and compiled with
``--compile``. Prints images per second, the ratio, and the share of a given peak of arithmetic.
"""

import os
import shutil
import statistics
import tempfile
import time
from argparse import ArgumentParser
from collections.abc import Iterator
from itertools import cycle, islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from sightline.depth.augmentation import CHANCES
from sightline.depth.network import Autoencoder, NetworkConfig
from sightline.depth.normalize import NormalizeParams, normalize_depth
from sightline.depth.preprocessing import Preprocessing, preprocess
from sightline.depth.store import DepthStore
from sightline.depth.training import DepthImages, resident_images
from sightline.depth.weights import pick_device
from sightline.recording.images import list_images, read_depth
from sightline.recording.split import SplitParams
from sightline.training.order import EpochBatches
from sightline.training.precision import use_bf16

GFLOP_PER_IMAGE = 24.5  # forward and backward: three times the multiply-adds of the forward pass, times two


class DecodedImages(Dataset[dict[str, Tensor]]):
    """What the plain loop reads: one PNG at a time."""

    def __init__(self, folder: Path, preprocessing: Preprocessing) -> None:
        self.paths, self.preprocessing = list(list_images(folder).values()), preprocessing

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        depth, valid = preprocess(read_depth(self.paths[index])[None], self.preprocessing)
        turns = int(torch.randint(4, ()))
        return {
            name: torch.from_numpy(np.rot90(a, turns, (1, 2)).copy())
            for name, a in (("depth", depth), ("valid", valid))
        }


def steps_of(batches: Iterator[dict[str, Tensor]], fast: bool, compiled: bool = False) -> Iterator[int]:
    """Train on batch after batch; yield the number of images of each."""
    device = pick_device()
    bf16 = fast and use_bf16("auto")
    layout = torch.channels_last if fast else torch.contiguous_format
    network = Autoencoder(NetworkConfig()).to(device, memory_format=layout)
    optimizer = torch.optim.AdamW(network.parameters(), 1e-4, fused=fast)
    if compiled:
        network.compile()
    for batch in batches:
        depth, valid = batch["depth"].to(device).contiguous(memory_format=layout), batch["valid"].to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            error = (network(depth)[0] - depth)[valid]
            loss = error.square().mean() + 0.1 * error.abs().mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        if device.type == "cuda":
            torch.cuda.synchronize()
        yield len(depth)


def rate(batches: Iterator[dict[str, Tensor]], fast: bool, steps: int, compiled: bool = False) -> float:
    """Images per second over ``steps`` steps after three to warm up."""
    counts = steps_of(batches, fast, compiled)
    list(islice(counts, 3))
    start = time.perf_counter()
    return sum(islice(counts, steps)) / (time.perf_counter() - start)


def main() -> None:
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--compile", action="store_true", help="compile the network of this project's loop")
    parser.add_argument("--peak-tflops", type=float, help="of the device, for the share of its peak")
    args = parser.parse_args()
    room = Path(tempfile.mkdtemp())
    os.environ["DVC_ROOT"] = str(room)
    params = NormalizeParams(height_range=(500, 4500), invalid=(0, 65535))
    normalize_depth(args.folder, room / "depth.hdf5", params, split=SplitParams())
    store = DepthStore.open(room / "depth.hdf5")
    images = DecodedImages(args.folder, store.preprocessing)
    plain_loader = DataLoader(images, args.batch_size, shuffle=True, drop_last=True, num_workers=os.cpu_count() or 1)
    order = EpochBatches(store.rows("train"), args.batch_size, seed=0, chances=CHANCES)
    our_loader = DataLoader(
        DepthImages(store, "full", resident_images(store, pick_device())), sampler=order, batch_size=None
    )
    plain, ours = [], []
    for _ in range(args.repeats):  # in turn, so that a busy minute hits both
        plain.append(rate((batch for loader in cycle([plain_loader]) for batch in loader), False, args.steps))
        ours.append(rate((batch for loader in cycle([our_loader]) for batch in loader), True, args.steps, args.compile))
    a, b = statistics.median(plain), statistics.median(ours)
    print(f"batch {args.batch_size} on {pick_device()}, {args.steps} steps, median of {args.repeats}")
    print(f"  plain float32 loop, PNG files {a:8.1f} img/s")
    print(f"  this project                  {b:8.1f} img/s   {b / a:.2f} times the plain loop")
    if args.peak_tflops:
        print(f"  share of the peak             {b * GFLOP_PER_IMAGE / args.peak_tflops / 1e3:8.1%}")
    shutil.rmtree(room)


if __name__ == "__main__":
    main()
