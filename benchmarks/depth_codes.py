"""The autoencoder and its variants beside simple codes of the same size, on a sequence of real depth images.

    python benchmarks/depth_codes.py run FOLDER RUNS --variant long_split --fold 0 --seed 0
    python benchmarks/depth_codes.py table RUNS [--write docs/results.md]

FOLDER holds one sequence of uint16 depth images in millimetres (the table was made from 600 consecutive Kinect frames,
640x480). Fold k of 5 holds out the k-th fifth of the sequence as one block, with 10 frames left out on each side; the
end of the rest that is farther from it chooses the epoch. Every variant has the same frames, steps and learning rate,
but for those that are called long, and is trained and measured by the stages' own scripts. A run that is interrupted
continues when it is started again, a run that is done is left as it is. RUNS keeps weights, metrics and pictures of
every run.

``table`` prints Markdown, or replaces what stands between the marks in the file that it is given.
"""

import json
import os
import statistics
from argparse import ArgumentParser
from functools import cache
from pathlib import Path
from typing import Any

import torch
from running import put, stage
from torch.utils.flop_counter import FlopCounterMode

from sightline.depth.network import Autoencoder, NetworkConfig
from sightline.depth.training import TrainParams

FOLDS = 5
NORMALIZE = {"normalize.height_range": "[500,4500]", "normalize.resize": "area", "data.split.val": 0.08}
TRAIN = {
    "train.epochs": 20, "train.batch_size": 8, "train.lr": 1e-3, "train.patience": 1000, "train.augment": "full",
    "train.objective.summary": 0.0,  # so that the scene numbers are for what the patches miss alone
}  # fmt: skip
LONG = {"train.epochs": 80}
VARIANTS: dict[str, dict[str, object]] = {
    "gap": {"train.scene_dim": 768, "train.width": 64},
    "flat": {"train.scene_dim": 768, "train.width": 64, "train.head": "flat"},
    "split": {},
    "split_flat": {"train.head": "flat"},
    "patches_alone": {"train.scene_dim": 0},
    "long_split": LONG,
    "long_split_flat": LONG | {"train.head": "flat"},
    "long_patches_alone": LONG | {"train.scene_dim": 0},
}
CODES = ("dct", "grid", "pca", "nearest_train_frame", "mean_image")


def run(folder: Path, runs: Path, variant: str, fold: int, seed: int) -> None:
    """Normalise a fold where that is not done, train a variant on it, and evaluate."""
    runs.mkdir(parents=True, exist_ok=True)
    os.environ["DVC_ROOT"] = str(runs.resolve())  # scratch state goes there, not into the project
    data, place = runs / f"fold{fold}.hdf5", runs / variant / f"fold{fold}-seed{seed}"
    if not data.exists():
        split = {"data.split.folds": FOLDS, "data.split.fold": fold}
        stage("normalize", folder, data, settings=NORMALIZE | split)
    weights = place / "autoencoder.safetensors"
    if not weights.exists():
        settings = TRAIN | VARIANTS[variant] | {"seed": seed}
        stage("train_autoencoder", data, weights, "--metrics-dir", place, settings=settings)
    if not (place / "evaluation_results.json").exists():
        stage("evaluate", weights, data, place)


def table(runs: Path) -> str:
    """Markdown of everything that is in ``runs``: one table of all runs, one over the folds of each variant."""
    places = {}
    for path in sorted(runs.glob("*/fold*-seed*/evaluation_results.json")):
        fold, seed = (int("".join(filter(str.isdigit, part))) for part in path.parent.name.split("-"))
        if path.parent.parent.name in VARIANTS:
            places[path.parent.parent.name, fold, seed] = path.parent
    if not places:
        raise SystemExit(f"{runs}: no runs in it; make some with the command run")
    results = {key: json.loads((place / "evaluation_results.json").read_text()) for key, place in places.items()}
    columns = (
        "fold",
        "code",
        "numbers",
        "RMSE mm",
        "MAE mm",
        "edge RMSE mm",
        "AbsRel",
        "recall@1",
        "epochs",
        "TFLOP",
        "made by",
    )
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for fold in range(FOLDS):
        here = {key: result for key, result in results.items() if key[1] == fold}
        for name in CODES if here else ():
            lines.append(_row(fold, name, next(iter(here.values())), "", "", "any run of this fold"))
        for variant in VARIANTS:
            for key in sorted(key for key in here if key[0] == variant):
                epochs, flop = compute(variant, here[key]["train_frames"])
                command = f"`--variant {variant} --fold {fold} --seed {key[2]}`"
                label = f"**{variant}**, seed {key[2]}"
                lines.append(_row(fold, "autoencoder", here[key], epochs, flop, command, label))
    heads = ("variant", "folds", "RMSE / DCT", "MAE / grid", "better in both", "RMSE / 768 patch numbers alone")
    lines += ["", f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for variant in VARIANTS:
        mine = {key: result["codes"] for key, result in results.items() if key[0] == variant}
        if mine:
            alone = "long_patches_alone" if variant.startswith("long") else "patches_alone"
            theirs = {key[1:]: result["codes"] for key, result in results.items() if key[0] == alone}
            lines.append(_summary(variant, mine, theirs))
    return "\n".join(lines)


def compute(variant: str, train_frames: int) -> tuple[str, str]:
    """What a run cost: its epochs, and the 10^12 operations of its steps."""
    every = (TRAIN | VARIANTS[variant]).items()
    params = TrainParams.model_validate({key.split(".")[1]: value for key, value in every if key.count(".") == 1})
    steps = 3 * train_frames * params.epochs * forward_flop(params.network(channels=1))  # backward is twice forward
    return f"{params.epochs}", f"{steps / 1e12:.0f}"


@cache
def forward_flop(config: NetworkConfig) -> int:
    """Floating-point operations of one image through encoder and decoder."""
    network, image = Autoencoder(config).eval(), torch.zeros(1, 1, 128, 128)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(image)
    return int(counter.get_total_flops())


def _row(fold: int, name: str, result: dict[str, Any], epochs: str, flop: str, command: str, label: str = "") -> str:
    figures, retrieval = result["codes"][name], result["embedding"]["retrieval"].get(name, {})
    recall = f"{retrieval['recall_at_1']:.2f}" if retrieval else ""
    errors = (f"{figures[key]:.1f}" for key in ("rmse_mm", "mae_mm", "edge_rmse_mm"))
    cells = (
        fold,
        label or name,
        figures["numbers"],
        *errors,
        f"{figures['abs_rel']:.4f}",
        recall,
        epochs,
        flop,
        command,
    )
    return f"| {' | '.join(map(str, cells))} |"


def _summary(
    variant: str, mine: dict[tuple[str, int, int], dict[str, Any]], alone: dict[tuple[int, int], dict[str, Any]]
) -> str:
    """Ratios to the best of the simple codes, averaged over runs; in how many runs both errors are lower; and the ratio
    to ``alone``, a code of patches fitted alike, of the same folds and seeds.
    """
    rmse = [codes["autoencoder"]["rmse_mm"] / codes["dct"]["rmse_mm"] for codes in mine.values()]
    mae = [codes["autoencoder"]["mae_mm"] / codes["grid"]["mae_mm"] for codes in mine.values()]
    both = sum(
        all(codes["autoencoder"][error] < min(codes[name][error] for name in CODES) for error in ("rmse_mm", "mae_mm"))
        for codes in mine.values()
    )
    pairs = [
        codes["autoencoder"]["rmse_mm"] / alone[key[1:]]["autoencoder"]["rmse_mm"]
        for key, codes in mine.items()
        if key[1:] in alone
    ]
    against = f"{statistics.mean(pairs):.3f} ({min(pairs):.3f} to {max(pairs):.3f})" if pairs else ""
    folds = ", ".join(f"{fold}" for fold in sorted({fold for _, fold, _ in mine}))
    return (
        f"| {variant} | {folds} | {statistics.mean(rmse):.3f} ({min(rmse):.3f} to {max(rmse):.3f}) "
        f"| {statistics.mean(mae):.3f} ({min(mae):.3f} to {max(mae):.3f}) | {both} of {len(mine)} | {against} |"
    )


def main() -> None:
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("run", help="train and evaluate one variant on one fold")
    one.add_argument("folder", type=Path)
    one.add_argument("runs", type=Path)
    one.add_argument("--variant", choices=VARIANTS, required=True)
    one.add_argument("--fold", type=int, choices=range(FOLDS), required=True)
    one.add_argument("--seed", type=int, default=0)
    all_ = commands.add_parser("table", help="the figures of all runs, as Markdown")
    all_.add_argument("runs", type=Path)
    all_.add_argument("--write", type=Path, metavar="FILE", help="Markdown file with the marks for the table")
    args = parser.parse_args()
    if args.command == "run":
        run(args.folder, args.runs, args.variant, args.fold, args.seed)
    else:
        put(table(args.runs), "table of codes", args.write)


if __name__ == "__main__":
    main()
