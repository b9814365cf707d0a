"""Reading grids in shuffled batches, and training on stored grids against running CLIP in every step.

python benchmarks/clip_reading.py [--quick] [--photographs FOLDER]
"""

import math
import os
from pathlib import Path

import numpy as np
import torch
from measuring import Bench, Row, command, in_turn, per, scratch_in, timed
from peers import gzip_grids
from torch import Tensor, nn

from sightline.clip import GridParams, GridStore, LiveGrids
from sightline.clip.extraction import extract_grids
from sightline.clip.store import Rows, StoreLayout, write_store
from sightline.core.hdf5 import open_rows
from sightline.training.precision import use_bf16
from sightline.training.processes import process_device

BATCH, SHAPE = 150, (49, 768)
ATTRIBUTES = {"model": "ViT-B-16", "tokens": "ln_post", "grid": 7, "dtype": "float16"}


def rows(bench: Bench) -> list[Row]:
    """Rows of reading and of a training step."""
    return [_in_memory(bench), _on_disk(bench), _training(bench)]


def _in_memory(bench: Bench) -> Row:
    count, rng = bench.size(5000, 200), np.random.default_rng(0)
    ids, grids = np.arange(count) * 3 + 1, _random_grids(rng, count)
    _write(bench.room / "read.hdf5", ids, [grids])
    np.save(bench.room / "read.npy", grids)
    gzip_grids.write(bench.room / "gzip.hdf5", ids, grids)
    batches = [rng.permutation(count)[:BATCH] for _ in range(bench.size(40, 2))]
    few = batches[: bench.size(4, 1)]
    mapped = np.asarray(np.load(bench.room / "read.npy", mmap_mode="r"))
    with GridStore(bench.room / "read.hdf5") as store:
        seconds = in_turn(
            {
                "store": lambda: [store.read(ids[batch]).size for batch in batches],  # as a loop, it keeps no batch
                "gzip": lambda: [gzip_grids.read(bench.room / "gzip.hdf5", ids[batch]).size for batch in few],
                "map": lambda: [mapped[batch].size for batch in batches],
            },
            bench.size(15, 1),
        )
    ours, gzip, bare = per(seconds["store"], len(batches)), per(seconds["gzip"], len(few)), seconds["map"]
    work, bound = f"shuffled batch of {BATCH} of {count} grids, in memory", "a memory-mapped array"
    between = "looking the ids up, and whether the file is whole and in memory"
    return Row(work, "ms", ours, gzip, "gzip data set per image", per(bare, len(batches)), bound, between)


def _on_disk(bench: Bench) -> Row:
    """Of a store that is much larger than what is read of it, as one that is larger than memory."""
    count, rng, path = bench.size(20_000, 200), np.random.default_rng(1), bench.room / "large.hdf5"
    ids = np.arange(count)
    _write(path, ids, [_random_grids(rng, count // 4)] * 4)
    batches = rng.permutation(count)[: bench.size(20, 1) * BATCH].reshape(-1, BATCH)

    def store() -> None:
        with GridStore(path) as store:
            for batch in batches:
                store.read(ids[batch])

    def memory_map() -> None:
        grids = open_rows(path, "grids")
        for batch in batches:
            grids.take(batch, axis=0)

    def in_order() -> None:
        with open(path, "rb", buffering=0) as file:
            for _ in batches:
                file.read(BATCH * 2 * math.prod(SHAPE))

    seconds: dict[str, list[float]] = {"store": [], "map": [], "order": []}
    for _ in range(bench.size(7, 1)):
        for name, way in {"store": store, "map": memory_map, "order": in_order}.items():
            _forget(path)
            seconds[name].append(timed(way))
    ours, peer, bound = (per(seconds[name], len(batches)) for name in ("store", "map", "order"))
    work, between = f"shuffled batch of {BATCH} of {count} grids, on disk", "a request for each row"
    return Row(work, "ms", ours, peer, "a memory-mapped array", bound, "as many bytes in their order", between)


def _random_grids(rng: np.random.Generator, count: int) -> np.ndarray:
    return rng.normal(size=(count, *SHAPE)).astype(np.float16)


def _write(path: Path, ids: np.ndarray, blocks: list[np.ndarray]) -> None:
    rows = Rows(ids, [str(i) for i in ids], [b"0" * 32] * len(ids), [])
    write_store(path, rows, iter(blocks), StoreLayout(SHAPE, ATTRIBUTES, ["grids"], "none"))


def _forget(path: Path) -> None:
    """Take a file out of the system's memory, where no process has it mapped."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


class Captioner(nn.Module):
    """Three transformer layers over the grid, three over the words: about 33 million parameters."""

    def __init__(self, channels: int, width: int = 512, words: int = 10_201) -> None:
        super().__init__()
        self.enter, self.words = nn.Linear(channels, width), nn.Embedding(words, width)
        self.transformer = nn.Transformer(width, 8, 3, 3, 2048, batch_first=True)
        self.leave = nn.Linear(width, words)

    def forward(self, grids: Tensor, words: Tensor) -> Tensor:
        return self.leave(self.transformer(self.enter(grids), self.words(words)))


def _training(bench: Bench) -> Row:
    params = GridParams(model="ViT-S-16", image_size=32, grid=2) if bench.quick else GridParams()
    device, batch = process_device(), bench.size(16, 2)
    folder = bench.photograph_folder("captioned", batch)
    with scratch_in(bench.room):
        extract_grids([folder], bench.room / "captioned.hdf5", params)
    stored, live = GridStore(bench.room / "captioned.hdf5"), LiveGrids([folder], params)
    network = Captioner(stored.shape[2]).to(device)
    optimizer = torch.optim.AdamW(network.parameters(), fused=True)
    words, ids = torch.randint(0, 10_201, (batch, 20), device=device), stored.image_ids[:batch]
    held = stored.read_tensor(ids, device)

    def step(grids: Tensor) -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=use_bf16("auto")):
            loss = nn.functional.cross_entropy(network(grids.float(), words).flatten(0, 1), words.flatten())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    seconds = in_turn(
        {
            "stored": lambda: step(stored.read_tensor(ids, device)),
            "live": lambda: step(live.read_tensor(ids, device)),
            "held": lambda: step(held),
        },
        bench.size(3, 1),
    )
    ours, peer, bound = (per(seconds[name], 1) for name in ("stored", "live", "held"))
    work = f"training step of a captioning model, {batch} images, stored grids"
    return Row(work, "ms", ours, peer, "live CLIP in the step", bound, "grids in memory", "reading the batch")


if __name__ == "__main__":
    command(__doc__, rows)
