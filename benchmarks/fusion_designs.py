"""The designs of the fusion model beside simple predictors, over seeds, on one file of views.

    python benchmarks/fusion_designs.py run VIEWS RUNS --design stacked --seed 0 [--label NAME] [--set key=value ...]
    python benchmarks/fusion_designs.py run VIEWS RUNS --design joints_only --label told --truth frames.parquet COLUMN
    python benchmarks/fusion_designs.py table RUNS --name demo [--write docs/results.md]

VIEWS is written by stages/pack_views.py. ``run`` trains and evaluates by the stages' own scripts, with params.yaml and
what is set beside it; NAME (the design, if none is given) tells runs of one design apart. ``--truth`` gives the model a
column of the frames table as a further input, never hidden: what could be gained by views that are understood. A run
that is interrupted continues when it is started again, a run that is done is left as it is. ``table`` prints Markdown,
or replaces what stands between the marks "fusion NAME" in the file that it is given.
"""

import json
import os
import statistics
from argparse import ArgumentParser
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
from running import ROOT, put, stage

USES = ("shuffled_views", "swapped_first_two", "shuffled_joints")


def run(
    views: Path, runs: Path, design: str, label: str, settings: dict[str, object], truth: tuple[str, str] | None = None
) -> None:
    """Train a design and evaluate it, where that is not done."""
    os.environ["DVC_ROOT"] = str(runs.resolve())  # scratch state goes there, not into the project
    place, params = runs / label / f"seed{settings['seed']}", ROOT / "params.yaml"
    weights, further = place / "fusion.safetensors", ()
    if truth:
        settings = settings | {"fusion.extra_dropout": 0}
        further = ("--feature", write_column(*truth, place / "truth.hdf5"))
    if not weights.exists():
        named = ("--design", design, "--metrics-dir", place, *further)
        stage("train_fusion", views.resolve(), weights.resolve(), *named, settings=settings, params=params)
    if not (place / "evaluation/evaluation_results.json").exists():
        stage("evaluate_fusion", weights.resolve(), views.resolve(), place / "evaluation", *further, params=params)


def write_column(table: str, column: str, path: Path) -> Path:
    """Write a column of a frames table, standardised, as the file of a further input."""
    frames = pd.read_parquet(table, columns=["frame_id", column])
    values = np.stack(frames[column].tolist())
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file["embeddings"] = ((values - values.mean(0)) / values.std(0)).astype(np.float32)
        file["frame_id"] = frames["frame_id"].to_numpy(np.int64)
    return path.resolve()


def table(runs: Path) -> str:
    """Markdown: a row for each simple predictor and each label, with the figures of its seeds."""
    by_label: dict[str, list[dict[str, Any]]] = {}
    for path in sorted(runs.glob("*/seed*/evaluation/evaluation_results.json")):
        by_label.setdefault(path.parents[2].name, []).append(json.loads(path.read_text(encoding="utf-8")))
    if not by_label:
        raise SystemExit(f"{runs}: no runs in it; make some with the command run")
    columns = ("model", "NMSE of the seeds", "mean", "R2", "views of other frames", "first two cameras swapped",
               "joints of other frames")  # fmt: skip
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for name, figures in next(iter(by_label.values()))[0]["baselines"].items():
        lines.append(f"| {name.replace('_', ' ')} | | {figures['nmse']:.3f} |" + " |" * 4)
    by_error = sorted(by_label.items(), key=lambda item: statistics.mean(one["nmse"] for one in item[1]))
    for label, results in by_error:
        errors = [result["nmse"] for result in results]
        uses = (_range([result["use"].get(use) for result in results]) for use in USES)
        cells = (
            f"**{label}**",
            ", ".join(f"{error:.3f}" for error in errors),
            f"{statistics.mean(errors):.3f}",
            f"{statistics.mean(result['r2'] for result in results):.3f}",
            *uses,
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _range(values: list[float | None]) -> str:
    numbers = [value for value in values if value is not None]
    low, high = (f"{function(numbers):+.2f}" if numbers else "" for function in (min, max))
    return low if low == high else f"{low} to {high}"


def main() -> None:
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("run", help="train and evaluate one design with one seed")
    one.add_argument("views", type=Path)
    one.add_argument("runs", type=Path)
    one.add_argument("--design", required=True)
    one.add_argument("--seed", type=int, default=0)
    one.add_argument("--label")
    one.add_argument("--truth", nargs=2, metavar=("FRAMES", "COLUMN"), help="frames.parquet and one of its columns")
    one.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="settings")
    all_ = commands.add_parser("table", help="the figures of all runs, as Markdown")
    all_.add_argument("runs", type=Path)
    all_.add_argument("--name", required=True, help="of the table, in the marks")
    all_.add_argument("--write", type=Path, metavar="FILE", help="Markdown file with the marks for the table")
    args = parser.parse_args()
    if args.command == "run":
        settings = dict(setting.split("=", 1) for setting in args.settings) | {"seed": args.seed}
        run(args.views, args.runs, args.design, args.label or args.design, settings, args.truth)
    else:
        put(table(args.runs), f"fusion {args.name}", args.write)


if __name__ == "__main__":
    main()
