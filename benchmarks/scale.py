"""What grows with the data, measured, and what 100 million images would cost, computed from measured rates.

    python benchmarks/scale.py [--write PROJECT] [--frames 64] [--images 1000000]
    python benchmarks/scale.py --computed PROJECT       # only the computed tables, from the figures of both runs

``--write`` puts the tables between their marks in ``docs/scale.md`` of a project, and the figures in
``docs/growth.png`` and ``benchmarks/growth.json``. The computed ones also take the rates of ``benchmarks/cpu.json``
(`make bench`).
"""

import json
import statistics
import tempfile
from argparse import ArgumentParser
from pathlib import Path
from typing import Any

import torch
from dvc_costs import dvc_costs, dvc_table
from growth import draw, growth_table, stage_growth
from large_store import SHAPE, index_bytes, million, store_table
from running import put
from torch.utils.flop_counter import FlopCounterMode

from sightline.clip import GridParams
from sightline.clip.weights import load_image_tower
from sightline.core.files import write_json
from sightline.depth.network import Encoder, NetworkConfig

IMAGES = 100_000_000
GPUS = (8, 64)
# assumed, because nothing here could measure them
GPU_FLOP_PER_S, CORES_PER_GPU, PHOTOGRAPH_BYTES = 200e12, 16, 100_000
REMOTE_BYTES_PER_S = WRITTEN_BYTES_PER_S = 1e9  # the remote, and a shared file system as one process writes to it
SHARD = GridParams().shard_frames
GRID_BYTES, DEPTH_BYTES = 2 * SHAPE[0] * SHAPE[1], 128 * 128 * 5  # float16; float32 and a byte for each pixel
# what a team would not put up with
STATUS_S, PROCESS_BYTES, HOUR = 600, 16e9, 3600


def rates(cpu: dict[str, Any], growth: dict[str, Any]) -> dict[str, float]:
    """Measured seconds and bytes for each image."""

    def seconds(work: str) -> float:
        row = next(row for row in cpu["rows"] if row["work"].startswith(work))
        return statistics.median(row["ours"]) / 1e3

    return {
        "decode": seconds("decode and resize a photograph"),
        "status": growth["dvc"]["status_ms_per_file"] / 1e3,
        "add": growth["dvc"]["add_ms_per_file"] / 1e3,
        "hash": GRID_BYTES / (1e6 * growth["dvc"]["md5_mb_per_s"]),
        "index": growth["index_bytes"]["paths"] + growth["index_bytes"]["digests"],
        "grid": growth["dvc"]["shards_bytes"] / growth["dvc"]["grids"],
    }


def flop_of(network: torch.nn.Module, *shape: int) -> int:
    """Floating-point operations of a forward pass."""
    torch.backends.mha.set_fastpath_enabled(False)  # whose attention is not counted
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.zeros(1, *shape))
    torch.backends.mha.set_fastpath_enabled(True)
    return counter.get_total_flops()


def costs_table(rate: dict[str, float]) -> str:
    """Markdown: what `IMAGES` images cost."""

    def hours(seconds: float) -> str:
        return f"{seconds / HOUR:.3g} h"

    clip = flop_of(load_image_tower(GridParams()).visual, 3, 224, 224) / GPU_FLOP_PER_S
    embed = flop_of(Encoder(NetworkConfig()).eval(), 1, 128, 128) / GPU_FLOP_PER_S
    lines = [f"| {IMAGES:,} images | {' | '.join(f'{n} GPUs' for n in GPUS)} | from |", "|---|---|---|---|"]
    for name, each, source in (
        ("CLIP grids, ViT-B/16: arithmetic", clip, f"FLOP counted, {GPU_FLOP_PER_S / 1e12:.0f} TFLOP/s assumed"),
        ("depth embeddings: arithmetic", embed, "the same"),
        ("decoding the photographs", rate["decode"] / CORES_PER_GPU, f"measured, {CORES_PER_GPU} cores a GPU assumed"),
    ):
        lines.append(f"| {name} | {' | '.join(hours(IMAGES * each / n) for n in GPUS)} | {source} |")
    written = f"{WRITTEN_BYTES_PER_S / 1e9:.0f} GB/s assumed"
    for name, each, source in (
        ("writing the store, by the first process", GRID_BYTES / WRITTEN_BYTES_PER_S, written),
        ("DVC: hashing the shards", rate["hash"], "measured, one core"),
        ("DVC: adding the folder of photographs", rate["add"], "measured, a file at a time"),
        ("DVC: `dvc status`, nothing changed", rate["status"], "measured"),
    ):
        lines.append(f"| {name} | {' | '.join([hours(IMAGES * each)] * len(GPUS))} | {source} |")
    remote = hours(IMAGES * (PHOTOGRAPH_BYTES + GRID_BYTES) / REMOTE_BYTES_PER_S)
    cells = " | ".join([remote] * len(GPUS))
    lines.append(f"| pushing photographs and store | {cells} | {REMOTE_BYTES_PER_S / 1e9:.0f} GB/s assumed |")
    lines += ["", f"| {IMAGES:,} images | storage |", "|---|---|"]
    for name, size in (
        (f"photographs, {PHOTOGRAPH_BYTES / 1e3:.0f} kB assumed", PHOTOGRAPH_BYTES),
        ("CLIP grids of one camera", GRID_BYTES),
        ("and as much again in `.scratch/cache`, until `make clean-scratch`", GRID_BYTES),
        ("normalised depth", DEPTH_BYTES),
        ("depth embeddings", 4 * 768),
        ("remote traffic after 1 % of new images: photographs", 0.01 * PHOTOGRAPH_BYTES),
        ("remote traffic after 1 % of new images: shards", rate["grid"] * (0.01 + SHARD / 2 / IMAGES)),
    ):
        lines.append(f"| {name} | {IMAGES * size / 1e12:.3g} TB |")
    return "\n".join(lines)


def limits_table(rate: dict[str, float]) -> str:
    """Markdown: how many images each part bears, the fewest first."""
    limits = [
        (
            STATUS_S / rate["status"],
            f"`dvc status` and `dvc repro` look at every photograph, in {STATUS_S / 60:.0f} minutes",
            "one file for each range of episodes in place of one for each picture",
        ),
        (
            PROCESS_BYTES / rate["index"],
            f"a process of `clip_grids` knows every path and digest, in {PROCESS_BYTES / 1e9:.0f} GB",
            "stages over ranges of episodes, each with its own index",
        ),
        (
            HOUR * WRITTEN_BYTES_PER_S / GRID_BYTES,
            "the first process writes the store of all, in an hour",
            "shards written by all processes",
        ),
        (
            HOUR / rate["hash"],
            "DVC hashes the shards of a camera, on one core, in an hour",
            "more cores: it hashes several shards at once",
        ),
    ]
    lines = ["| images | what ends there | remedy |", "|---|---|---|"]
    return "\n".join(
        lines + [f"| {count / 1e6:.3g} million | {what} | {cure} |" for count, what, cure in sorted(limits)]
    )


def measure(frames: int, images: int) -> dict[str, Any]:
    """Everything that has to be measured."""
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        room = Path(folder)
        return {
            "index_bytes": index_bytes(),  # first, while memory is still in one piece
            "dvc": dvc_costs(room),
            "stores": [million(room, images, shards) for shards in (1, images // SHARD)],
            "stages": stage_growth(room, frames),
        }


def main() -> None:
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", type=Path, metavar="PROJECT", help="put tables and figures there (default: print)")
    parser.add_argument("--frames", type=int, default=64, help="frames of the smallest size")
    parser.add_argument("--images", type=int, default=1_000_000, help="images of the large store")
    parser.add_argument("--computed", type=Path, metavar="PROJECT", help="compute again from what is there")
    args = parser.parse_args()
    project = args.computed or args.write
    page = project and project / "docs/scale.md"
    if not args.computed:
        costs = measure(args.frames, args.images)
        put(growth_table(costs["stages"]), "growth of stages", page)
        put(store_table(costs["stores"]), "a large store", page)
        put(dvc_table(costs["dvc"]), "pushed", page)
        if args.write:
            draw(costs["stages"], args.write / "docs/growth.png")
            write_json(args.write / "benchmarks/growth.json", costs)
    if project:
        figures = [json.loads((project / f"benchmarks/{name}.json").read_text()) for name in ("cpu", "growth")]
        put(costs_table(rates(*figures)), "costs", page)
        put(limits_table(rates(*figures)), "limits", page)


if __name__ == "__main__":
    main()
