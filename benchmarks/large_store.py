"""A store of a million images, opened and read in shuffled batches by a process of its own.

Nothing is written into the rows, so that they take no room on the disk. `benchmarks/scale.py` runs it.
"""

import os
import shutil
import sys
import time
from pathlib import Path
from unittest.mock import patch

import numpy as np
from costs import anonymous_mib, measured

from sightline.clip.store import Rows, StoreLayout, shard_ranges, write_shards, write_store
from sightline.core.cache import digest
from sightline.grids.store import GridStore

SHAPE, BATCH = (49, 768), 150
ATTRIBUTES = {"model": "ViT-B-16", "tokens": "ln_post", "grid": 7, "dtype": "float16"}


def write_grids(path: Path, images: int, shard: int, episode: int, sparse: bool = False) -> None:
    """Write a store of random grids: a file where its name ends in .hdf5, else shards of whole episodes.

    Args:
        sparse: the rows are not written, and take no room.
    """

    def write(path: Path, ids: np.ndarray, skipped: list[int]) -> None:
        blocks = (np.random.default_rng(i).normal(size=(1, *SHAPE)).astype(np.float16) for i in ids.tolist())
        rows = Rows(ids, [str(i) for i in ids], [b"0" * 32] * len(ids), skipped)
        layout = StoreLayout(SHAPE, ATTRIBUTES, [] if sparse else ["grids"], "none")
        write_store(path, rows, () if sparse else blocks, layout)

    ids = np.arange(images)
    if path.suffix == ".hdf5":
        write(path, ids, [])
        return
    shutil.rmtree(path, ignore_errors=True)
    write_shards(path, shard_ranges(ids, ids // episode, shard), [], write)


def million(room: Path, images: int, shards: int) -> dict[str, float]:
    """A store of ``images`` grids whose rows take no room on the disk, opened and read by a process of its own."""
    start, path = time.perf_counter(), room / ("many" if shards > 1 else "many.hdf5")
    with patch.object(os, "posix_fallocate", lambda *_: None):  # which would reserve the room
        write_grids(path, images, images // shards, 100, sparse=True)
    made = time.perf_counter() - start
    costs = measured([sys.executable, __file__, str(path)], room)
    opened, batch = (float(word) for word in (room / "served").read_text().split())
    size = sum(file.stat().st_size for file in ([path] if path.is_file() else path.iterdir())) / 1e9
    store = {"images": images, "shards": shards, "gb": size, "make_s": made}
    return store | {"open_ms": 1e3 * opened, "batch_ms": 1e3 * batch} | costs


def serve(path: Path, batches: int = 100) -> None:
    """Open a store, read shuffled batches, and leave the seconds that each takes beside it."""
    start = time.perf_counter()
    store = GridStore(path)
    opened, rng = time.perf_counter() - start, np.random.default_rng(0)
    start = time.perf_counter()
    for _ in range(batches):
        store.read(rng.integers(0, len(store), BATCH))
    (path.parent / "served").write_text(f"{opened} {(time.perf_counter() - start) / batches}")


def index_bytes(count: int = 200_000) -> dict[str, float]:
    """Bytes of memory for each image in what a stage keeps of all of them: paths by id, and rows by digest."""

    def anonymous() -> float:
        return anonymous_mib(os.getpid()) * 2**20

    before = anonymous()
    paths = {i: Path(f"data/recording/rgb/global/{i:09d}.png") for i in range(count)}
    middle = anonymous()
    rows = {digest(str(i).encode()): i for i in range(count)}
    after = anonymous()
    return {"paths": (middle - before) / len(paths), "digests": (after - middle) / len(rows)}


def store_table(stores: list[dict[str, float]]) -> str:
    """Markdown: the store of a million images, as one file and as shards."""
    head = f"| images | files | made in | opened in | shuffled batch of {BATCH} | memory |\n|---|---|---|---|---|---|"
    lines = [
        f"| {store['images']:,} | {store['shards']}, {store['gb']:.1f} GB, sparse | {store['make_s']:.1f} s | "
        f"{store['open_ms']:.0f} ms | {store['batch_ms']:.1f} ms | {store['anonymous_mib']:.0f} MiB |"
        for store in stores
    ]
    return "\n".join([head, *lines])


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
