"""A store of a million images, opened and read in shuffled batches by a process of its own.

Nothing is written into the rows, so that they take no room on the disk. `benchmarks/scale.py` runs it.
"""

import os
import sys
import time
from pathlib import Path

import numpy as np
from costs import anonymous_mib, measured

from sightline.cache import digest
from sightline.clip.store import write_store
from sightline.grid_store import GridStore

SHAPE, BATCH = (49, 768), 150
ATTRIBUTES = {"model": "ViT-B-16", "tokens": "ln_post", "grid": 7, "dtype": "float16"}


def million(room: Path, images: int) -> dict[str, float]:
    """A store of ``images`` grids whose rows take no room on the disk, opened and read by a process of its own."""
    start, path = time.perf_counter(), room / "many.hdf5"
    write_store(path, np.arange(images), [b"0" * 32] * images, [], iter(()), SHAPE, ATTRIBUTES, False, "none")
    made = time.perf_counter() - start
    costs = measured([sys.executable, __file__, str(path)], room)
    opened, batch = (float(word) for word in (room / "served").read_text().split())
    size = path.stat().st_size / 1e9
    path.unlink()
    return {"images": images, "gb": size, "make_s": made, "open_ms": 1e3 * opened, "batch_ms": 1e3 * batch} | costs


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


def store_table(store: dict[str, float]) -> str:
    """Markdown: the store of a million images."""
    return (
        f"| images | file | made in | opened in | shuffled batch of {BATCH} | memory |\n|---|---|---|---|---|---|\n"
        f"| {store['images']:,} | {store['gb']:.1f} GB, sparse | {store['make_s']:.1f} s | {store['open_ms']:.0f} ms | "
        f"{store['batch_ms']:.1f} ms | {store['anonymous_mib']:.0f} MiB |"
    )


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
