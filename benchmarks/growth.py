"""Stages on 1, 4 and 16 times the data: the time is linear, the memory is flat.

Time is processor time of a stage's command and all its processes, so that a busy machine tells the same. Memory is the
most anonymous memory of all its processes together: what they need, without files that are mapped and can be dropped.
`benchmarks/scale.py` runs it.
"""

import shutil
import sys
from pathlib import Path
from typing import Any

from costs import measured
from generated import EPISODE, write_aloha, write_lerobot, write_recording
from matplotlib import style
from matplotlib.figure import Figure
from running import ROOT

from sightline.depth.network import Autoencoder, NetworkConfig
from sightline.depth.store import DepthStore
from sightline.depth.weights import Header, save_weights

TIMES = (1, 4, 16)
# frames of the smallest size, as a share of those in the middle; of a stage that is not named, 4
FRAMES = {"embed": 0.25} | dict.fromkeys(
    ("simulate", "render", "train_autoencoder", "evaluate", "clip_grids", "verify_clip_grids"), 1
)
NEEDED = ("validate", "normalize")  # by other stages, at all sizes


def stage_growth(room: Path, frames: int) -> list[dict[str, Any]]:
    """Costs of every stage that grows with the data; ``frames`` is the smallest size of those in the middle."""
    rows: list[dict[str, Any]] = []
    encoder = Autoencoder(NetworkConfig(latent_dim=128, width=16)).eval().encoder
    for count in sorted({int(frames * n * part) for n in TIMES for part in (0.25, 1, 4)}):
        home = room / str(count)
        root = write_recording(home / "recording", count)
        for name, arguments in _commands(root, count).items():
            first = int(frames * FRAMES.get(name, 4))
            wanted = count in [first * n for n in TIMES]
            if not wanted and name not in NEEDED:
                continue
            if name == "embed":
                preprocessing = DepthStore.open(home / "depth.hdf5").preprocessing
                header = Header(kind="encoder", network=encoder.config, preprocessing=preprocessing)
                save_weights(home / "encoder.safetensors", encoder, header)
            elif name in SOURCES:
                SOURCES[name](home / name, count)
            costs = measured([sys.executable, str(ROOT / f"stages/{name}.py"), *map(str, arguments)], home)
            if wanted:
                rows.append({"stage": name, "times": count // first, "frames": count} | costs)
        shutil.rmtree(home)
    return sorted(rows, key=lambda row: (list(_commands(room, 0)).index(row["stage"]), row["times"]))


SOURCES = {"import_hdf5": write_aloha, "import_lerobot": write_lerobot}


def _commands(root: Path, count: int) -> dict[str, tuple[object, ...]]:
    simulate = {"episodes": count // EPISODE, "steps": EPISODE}
    render = {"wrist_size": 32, "global_size": 32, "depth_height": 32, "depth_width": 32, "antialias": 1}
    autoencoder = {"epochs": 1, "latent_dim": 128, "width": 16, "batch_size": 8}
    clip, fusion = {"model": "ViT-S-16", "image_size": 32, "grid": 2}, {"epochs": 1, "chunk": 2}
    segmentation = {"image_size": "[32,32]", "crop": "null", "epochs": 1, "steps_per_epoch": 4}
    info, index = root / "recording.json", Path("index")
    masks = ("--recording", root, "--index", index)
    return {
        "simulate": ("--frames", "s.parquet", "--states", "s.hdf5", *_set("simulate", simulate)),
        "render": ("--states", "s.hdf5", "--out", "demo", *_set("render", render)),
        "import_hdf5": ("import_hdf5", "recording_1", "--fps", 10),
        "import_lerobot": ("import_lerobot", "recording_2"),
        "validate": (root, index),
        "normalize": (root / "depth", "depth.hdf5", "--index", index / "depth.parquet", "--recording", info),
        "train_autoencoder": ("depth.hdf5", "a.safetensors", "--metrics-dir", "m1", *_set("train", autoencoder)),
        "evaluate": ("a.safetensors", "depth.hdf5", "e1", "--frames", root / "frames.parquet"),
        "embed": ("encoder.safetensors", "depth.hdf5", "embeddings.hdf5", *_set("embed", {"batch_size": 8})),
        "clip_grids": (root / "rgb/global", "c.hdf5", "--index", index / "rgb/global.parquet", *_set("grids", clip)),
        "verify_clip_grids": (
            "c.hdf5", root / "rgb/global", "--index", index / "rgb/global.parquet", *_set("grids", clip),
        ),
        "pack_views": (root, "views.hdf5", "--index", index, *_set("fusion", {"image_size": 32})),
        "train_fusion": (
            "views.hdf5", "f.safetensors", "--design", "joints_only", "--metrics-dir", "m2", *_set("fusion", fusion),
        ),
        "evaluate_fusion": ("f.safetensors", "views.hdf5", "e2"),
        "train_segmentation": (
            "g.safetensors", *masks, "--metrics-dir", "m3", *_set("segmentation", segmentation),
        ),
        "evaluate_segmentation": ("g.safetensors", "e3", *masks),
    }  # fmt: skip


def _set(section: str, values: dict[str, object]) -> list[str]:
    return [word for key, value in values.items() for word in ("--set", f"{section}.{key}={value}")]


def growth_table(rows: list[dict[str, Any]]) -> str:
    """Markdown: a row for each stage."""
    lines = [
        "| stage | frames | processor time | a frame, 1x to 4x | a frame, 4x to 16x | memory |",
        "|---|---|---|---|---|---|",
    ]
    for name in dict.fromkeys(row["stage"] for row in rows):
        small, middle, large = (row for row in rows if row["stage"] == name)
        slopes = [
            f"{1e3 * (b['cpu_s'] - a['cpu_s']) / (b['frames'] - a['frames']):.3g} ms"
            for a, b in ((small, middle), (middle, large))
        ]
        cells = [
            " ".join(f"{row['frames']}" for row in (small, middle, large)),
            " ".join(f"{row['cpu_s']:.1f}" for row in (small, middle, large)) + " s",
            *slopes,
            " ".join(f"{row['anonymous_mib']:.0f}" for row in (small, middle, large)) + " MiB",
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Time and memory over the multiples of the data."""
    with style.context("seaborn-v0_8-whitegrid"):
        figure = Figure(figsize=(8, 3.5), layout="constrained")
        for axes, key, label in zip(
            figure.subplots(1, 2), ("cpu_s", "anonymous_mib"), ("processor time, s", "memory, MiB"), strict=True
        ):
            for number, name in enumerate(dict.fromkeys(row["stage"] for row in rows)):
                sizes = [row for row in rows if row["stage"] == name]
                line = f"C{number % 10}{('o-', 's--')[number // 10]}"
                axes.plot([row["times"] for row in sizes], [row[key] for row in sizes], line, label=name, markersize=3)
            axes.set(xlabel="times the data", ylabel=label, ylim=(0, None), xticks=TIMES)
        figure.legend(*axes.get_legend_handles_labels(), loc="outside right center", fontsize=7)
        figure.savefig(path, dpi=80, metadata={"Software": None})
