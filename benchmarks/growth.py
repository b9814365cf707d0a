"""Stages on 1, 4 and 16 times the data: the time is linear, the memory is flat.

Time is processor time of a stage's command and all its processes, so that a busy machine tells the same. Memory is the
most anonymous memory of all its processes together: what they need, without files that are mapped and can be dropped.
`benchmarks/scale.py` runs it.
"""

import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from costs import measured
from matplotlib import style
from matplotlib.figure import Figure
from PIL import Image
from running import ROOT

from sightline.depth.network import Autoencoder, NetworkConfig
from sightline.depth.store import DepthStore
from sightline.depth.weights import Header, save_weights
from sightline.recording.layout import DepthInfo, RecordingInfo, write_recording_info

CAMERAS, TIMES, EPISODE = ("left_wrist", "right_wrist", "global"), (1, 4, 16), 4  # frames in an episode
FRAMES = {"embed": 0.25, "train_autoencoder": 1, "clip_grids": 1}  # of the smallest size; others have 4 times as many


def write_recording(root: Path, frames: int, size: tuple[int, int] = (48, 64)) -> Path:
    """A recording of small pictures that all differ."""
    rng, step = np.random.default_rng(0), np.arange(frames) % EPISODE
    joints = np.stack([step / EPISODE, rng.uniform(size=frames)], axis=1)
    columns = {"frame_id": np.arange(frames), "episode": np.arange(frames) // EPISODE, "step": step}
    columns |= {"time_s": step / 10, "joints": list(joints), "actions": list(joints), "reward": step / EPISODE}
    root.mkdir(parents=True)
    pd.DataFrame(columns).to_parquet(root / "frames.parquet")
    depth = DepthInfo(unit_mm=1.0, invalid=(0,), height_range=(500, 1300))
    info = RecordingInfo(fps=10.0, cameras=CAMERAS, joints=("lift", "turn"), depth=depth)
    write_recording_info(root / "recording.json", info)
    for folder in (*(f"rgb/{camera}" for camera in CAMERAS), "depth"):
        (root / folder).mkdir(parents=True)
        for i in range(frames):
            pixels = rng.integers(600, 1200, size) if folder == "depth" else rng.integers(0, 256, (*size, 3))
            kind = np.uint16 if folder == "depth" else np.uint8
            Image.fromarray(pixels.astype(kind)).save(root / folder / f"{i:06d}.png", compress_level=1)
    return root


def stage_growth(room: Path, frames: int) -> list[dict[str, Any]]:
    """Costs of every stage that grows with the data; ``frames`` is the smallest size of those in the middle."""
    found: list[dict[str, Any]] = []
    encoder = Autoencoder(NetworkConfig(latent_dim=64)).eval().encoder
    for count in sorted({int(frames * n * part) for n in TIMES for part in (0.25, 1, 4)}):
        home = room / str(count)
        root = write_recording(home / "recording", count)
        for name, arguments in _commands(root).items():
            first = int(frames * FRAMES.get(name, 4))
            wanted = count in [first * n for n in TIMES]
            if name == "embed" and wanted:
                preprocessing = DepthStore.open(home / "depth.hdf5").preprocessing
                header = Header(kind="encoder", network=encoder.config, preprocessing=preprocessing)
                save_weights(home / "encoder.safetensors", encoder, header)
            if wanted or name in ("validate", "normalize"):  # which the others need
                costs = measured([sys.executable, str(ROOT / f"stages/{name}.py"), *map(str, arguments)], home)
            if wanted:
                found.append({"stage": name, "times": count // first, "frames": count} | costs)
        shutil.rmtree(home)
    return sorted(found, key=lambda row: (list(_commands(room)).index(row["stage"]), row["times"]))


def _commands(root: Path) -> dict[str, tuple[object, ...]]:
    autoencoder = {"patch_share": 1.0, "epochs": 1, "latent_dim": 64, "batch_size": 8}
    clip, fusion = {"model": "ViT-S-16", "image_size": 32, "grid": 2}, {"epochs": 1, "chunk": 2}
    info, index = root / "recording.json", Path("index")
    return {
        "validate": (root, index),
        "normalize": (root / "depth", "depth.hdf5", "--index", index / "depth.parquet", "--recording", info),
        "train_autoencoder": ("depth.hdf5", "a.safetensors", "--metrics-dir", "m1", *_set("train", autoencoder)),
        "embed": ("encoder.safetensors", "depth.hdf5", "embeddings.hdf5", *_set("embed", {"batch_size": 8})),
        "clip_grids": (root / "rgb/global", "c.hdf5", "--index", index / "rgb/global.parquet", *_set("clip", clip)),
        "pack_views": (root, "views.hdf5", "--index", index, *_set("fusion", {"image_size": 32})),
        "train_fusion": (
            "views.hdf5", "f.safetensors", "--design", "joints_only", "--metrics-dir", "m2", *_set("fusion", fusion),
        ),
    }  # fmt: skip


def _set(section: str, values: dict[str, object]) -> list[str]:
    return [word for key, value in values.items() for word in ("--set", f"{section}.{key}={value}")]


def growth_table(found: list[dict[str, Any]]) -> str:
    """Markdown: a row for each stage."""
    lines = [
        "| stage | frames | processor time | a frame, 1x to 4x | a frame, 4x to 16x | memory |",
        "|---|---|---|---|---|---|",
    ]
    for name in dict.fromkeys(row["stage"] for row in found):
        small, middle, large = (row for row in found if row["stage"] == name)
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


def draw(found: list[dict[str, Any]], path: Path) -> None:
    """Time and memory over the multiples of the data."""
    with style.context("seaborn-v0_8-whitegrid"):
        figure = Figure(figsize=(8, 3), layout="constrained")
        for axes, key, label in zip(
            figure.subplots(1, 2), ("cpu_s", "anonymous_mib"), ("processor time, s", "memory, MiB"), strict=True
        ):
            for name in dict.fromkeys(row["stage"] for row in found):
                rows = [row for row in found if row["stage"] == name]
                axes.plot([row["times"] for row in rows], [row[key] for row in rows], "o-", label=name, markersize=3)
            axes.set(xlabel="times the data", ylabel=label, ylim=(0, None), xticks=TIMES)
        figure.legend(*axes.get_legend_handles_labels(), loc="outside right center", fontsize=7)
        figure.savefig(path, dpi=80, metadata={"Software": None})
