"""What the depth latent tells of the world, on 40 held-out episodes, beside simple codes, other objectives, a ceiling.

    (cd demo/probes && dvc repro)                         # the recording: 240 episodes, depth alone
    python benchmarks/depth_probes.py run RUNS --variant long --seed 0
    python benchmarks/depth_probes.py table RUNS [--write docs/results.md]

Every variant is trained and measured by the stages' own scripts. ``supervised`` is the ceiling: the same network,
trained on the answers themselves. A run that is interrupted continues when it is started again, a run that is done is
left as it is; RUNS keeps weights, figures and pictures. ``table`` prints Markdown, the mean over seeds with the least
and the largest, or puts it between the marks in the file that it is given.
"""

import json
import os
import statistics
from argparse import ArgumentParser
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from running import ROOT, put, stage
from torch import Tensor, nn
from torch.nn import functional as F

from sightline.core.files import atomic_output, write_json
from sightline.depth import probes
from sightline.depth.augmentation import CHANCES
from sightline.depth.network import Encoder
from sightline.depth.store import DepthStore
from sightline.depth.training import DepthImages, TrainParams
from sightline.recording.frames import read_frames
from sightline.training.order import EpochBatches
from sightline.training.precision import use_bf16
from sightline.training.processes import process_device

DATA, FRAMES = (ROOT / "demo/probes/data" / name for name in ("normalized.hdf5", "frames.parquet"))
COLUMNS = ("joints", "gripper_position", "object_position", "goal_position", "contact")
LONG = {"train.epochs": 8, "train.batch_size": 16, "train.patience": 1000}
VARIANTS: dict[str, dict[str, object]] = {
    "pipeline": {"train.epochs": 2},  # as many frames as in the pipeline's own minutes
    "long": LONG,
    "long_flat": LONG | {"train.head": "flat"},
    "without_inverse_dynamics": LONG | {"train.objective.inverse_dynamics": 0.0},
    "without_summary": LONG | {"train.objective.summary": 0.0},
    "patches_alone": LONG | {"train.scene_dim": 0},
    "plain": LONG | {"train.scene_dim": 768, "train.width": 64},
    "plain_reconstruction_alone": LONG
    | {
        "train.scene_dim": 768, "train.width": 64,
        "train.objective.inverse_dynamics": 0.0, "train.objective.summary": 0.0,
    },
    "supervised": LONG,
}  # fmt: skip


def run(runs: Path, variant: str, seed: int, data: Path, frames: Path) -> None:
    """Train a variant and measure it."""
    place = runs / variant / f"seed{seed}"
    place.mkdir(parents=True, exist_ok=True)
    os.environ["DVC_ROOT"] = str(runs.resolve())  # scratch state goes there, not into the project
    settings = VARIANTS[variant] | {"seed": seed}
    if (place / "evaluation_results.json").exists():
        return
    if variant == "supervised":
        results = supervise(place, settings, data, frames)
        write_json(place / "evaluation_results.json", results)
        return
    weights = place / "autoencoder.safetensors"
    if not weights.exists():
        files = (data, weights, "--metrics-dir", place, "--frames", frames)
        stage("train_autoencoder", *files, settings=settings)
    stage("evaluate", weights, data, place, "--frames", frames)


def supervise(place: Path, settings: dict[str, object], data: Path, frames: Path) -> dict[str, Any]:
    """Train the network to tell the columns themselves, and measure what it tells of the held-out episodes."""
    values = {key.removeprefix("train."): value for key, value in settings.items() if key.startswith("train.")}
    params, seed, device = TrainParams.model_validate(values), int(str(settings["seed"])), process_device()
    store = DepthStore.open(data)
    table = read_frames(frames).set_index("frame_id").loc[store.frame_id]
    train, held_out = store.rows("train"), store.rows("test")
    columns = {name: np.array(table[name].tolist(), np.float64).reshape(len(table), -1) for name in COLUMNS}
    spread = {name: values[train].std(axis=0) for name, values in columns.items()}
    columns = {name: values[:, spread[name] > 1e-6] for name, values in columns.items()}
    scaled = {name: (y - y[train].mean(axis=0)) / y[train].std(axis=0) for name, y in columns.items()}
    together = torch.from_numpy(np.concatenate(list(scaled.values()), axis=1).astype(np.float32))
    torch.manual_seed(seed)
    network = nn.Sequential(Encoder(params.network(1)), nn.Linear(params.latent_dim, together.shape[1])).to(device)
    order = EpochBatches(train, params.batch_size, seed, CHANCES)
    optimizer = torch.optim.AdamW(network.parameters(), params.lr, weight_decay=params.weight_decay)
    rates = torch.optim.lr_scheduler.OneCycleLR(optimizer, params.lr, total_steps=params.epochs * len(order) + 1)
    for epoch in _epochs(params.epochs, place / "supervised.pt", network=network, optimizer=optimizer, rates=rates):
        order.set_epoch(epoch)
        network.train()
        images = DepthImages(store, params.augment)
        for draw in order:
            with torch.autocast(device.type, torch.bfloat16, enabled=use_bf16(params.precision)):
                told = network(images[draw]["depth"].to(device))
            loss = F.smooth_l1_loss(told.float(), together[torch.from_numpy(draw.rows)].to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            rates.step()
    told_MJ = _tell(network.eval(), store, held_out, device)
    ends = np.cumsum([y.shape[1] for y in scaled.values()])[:-1]
    bootstrap = probes.Bootstrap(len(np.unique(store.episode[held_out])))
    found: dict[str, Any] = {"probe": {}}
    for (name, y), told_of in zip(scaled.items(), np.split(told_MJ, ends, axis=1), strict=True):
        told_sums = probes.Told.of(told_of, y[held_out], store.episode[held_out])
        found["probe"][name] = {"supervised": bootstrap.r2(told_sums)}
    return {"codes": {}, "embedding": found}


def _epochs(count: int, state: Path, **parts: Any) -> Iterator[int]:
    """The epochs that are still to do; after each, the state of ``parts`` is kept."""
    done = 0
    if state.exists():
        kept = torch.load(state, weights_only=True)
        done = kept.pop("epochs")
        for name, part in parts.items():
            part.load_state_dict(kept[name])
    for epoch in range(done, count):
        yield epoch
        with atomic_output(state) as temporary:
            torch.save({name: part.state_dict() for name, part in parts.items()} | {"epochs": epoch + 1}, temporary)


@torch.no_grad()
def _tell(network: nn.Module, store: DepthStore, rows: np.ndarray, device: torch.device) -> np.ndarray:
    starts = range(0, len(rows), 64)
    parts: list[Tensor] = [
        network(torch.from_numpy(store.images(rows[start : start + 64])).to(device)).cpu() for start in starts
    ]
    return torch.cat(parts).double().numpy()


def table(runs: Path) -> str:
    """Markdown: R2 of each code by column, of the simple codes once; then the gains with their intervals."""
    results: dict[str, list[dict[str, Any]]] = {}
    for path in sorted(runs.glob("*/seed*/evaluation_results.json")):
        results.setdefault(path.parent.parent.name, []).append(json.loads(path.read_text(encoding="utf-8")))
    if not results:
        raise SystemExit(f"{runs}: no runs in it; make some with the command run")
    heads = ("code", "RMSE mm", "MAE mm", *(f"R2 {column.replace('_', ' ')}" for column in COLUMNS), "k-NN R2 joints")
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    first = next((of for name, of in results.items() if name != "supervised"), [])
    simple = [name for name in (first[0]["embedding"]["probe"]["joints"] if first else ()) if name != "autoencoder"]
    lines += [_row(name, [of for of in first if name in of["embedding"]["probe"]["joints"]], name) for name in simple]
    for variant in (name for name in VARIANTS if name in results):
        of = results[variant]
        code = "supervised" if variant == "supervised" else "autoencoder"
        lines.append(_row(f"**{variant}**, {len(of)} seed(s)", of, code))
        lines += [_row(f"{variant}: {part}", of, part, "parts") for part in ("patches", "scene") if _has(of, part)]
    lines += ["", "| variant, seed | column | over | gain in R2, 95 % interval over episodes |", "|---" * 4 + "|"]
    for variant in (name for name in VARIANTS if name in results):
        for seed, of_seed in enumerate(results[variant]):
            for column, gains in of_seed["embedding"].get("gain", {}).items():
                gain = gains["autoencoder"]
                shown = f"{gain['r2_gain']:+.3f} ({_range(gain['r2_gain_interval'])})"
                lines.append(f"| {variant}, {seed} | {column} | {gain['over']} | {shown} |")
    return "\n".join(lines)


def _has(of: list[dict[str, Any]], part: str) -> bool:
    return all(part in result["embedding"].get("parts", {}).get("joints", {}) for result in of)


def _row(label: str, of: list[dict[str, Any]], code: str, kind: str = "probe") -> str:
    errors = [[result["codes"].get(code, {}).get(key) for result in of] for key in ("rmse_mm", "mae_mm")]
    told = [[result["embedding"][kind].get(column, {}).get(code, {}).get("r2") for result in of] for column in COLUMNS]
    near = [result["embedding"][kind]["joints"].get(code, {}).get("knn_r2") for result in of]
    cells = [*(_cell(values, 1) for values in errors), *(_cell(values, 3) for values in told), _cell(near, 3)]
    return f"| {' | '.join((label, *cells))} |"


def _cell(values: list[float | None], digits: int) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return ""
    spread = f" ({min(known):.{digits}f} to {max(known):.{digits}f})" if len(known) > 1 else ""
    return f"{statistics.mean(known):.{digits}f}{spread}"


def _range(interval: list[float] | None) -> str:
    return f"{interval[0]:+.3f} to {interval[1]:+.3f}" if interval else "one episode"


def main() -> None:
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("run", help="train and measure one variant")
    one.add_argument("runs", type=Path)
    one.add_argument("--variant", choices=VARIANTS, required=True)
    one.add_argument("--seed", type=int, default=0)
    one.add_argument("--data", type=Path, default=DATA, help="normalised depth (default: that of demo/probes)")
    one.add_argument("--frames", type=Path, default=FRAMES, help="its frames.parquet")
    all_ = commands.add_parser("table", help="the figures of all runs, as Markdown")
    all_.add_argument("runs", type=Path)
    all_.add_argument("--write", type=Path, metavar="FILE", help="Markdown file with the marks for the table")
    args = parser.parse_args()
    if args.command == "run":
        run(args.runs, args.variant, args.seed, args.data, args.frames)
    else:
        put(table(args.runs), "table of depth probes", args.write)


if __name__ == "__main__":
    main()
