"""The designs of the fusion model beside simple predictors, over seeds, on one file of views.

    python benchmarks/fusion_designs.py run VIEWS RUNS --design stacked --seed 0 [--label NAME] [--set key=value ...]
    python benchmarks/fusion_designs.py run VIEWS RUNS --design joints_only --label told \
        --truth frames.parquet COLUMN [COLUMN ...]
    python benchmarks/fusion_designs.py table RUNS --name demo [--write docs/results.md]

VIEWS is written by stages/pack_views.py. ``run`` trains and evaluates by the stages' own scripts, with params.yaml and
what is set beside it; NAME (the design, if none is given) tells runs of one design apart. ``--truth`` gives the model
columns of the frames table as a further input, never hidden: what could be gained by views that are understood.
``--feature FILE`` is a further input that stages have made. ``--episodes N`` trains on the first N training episodes
alone. ``--scenes N`` lets the model drive the simulated robot in N scenes. A run that is interrupted continues when it
is started again, a run that is done is left as it is. ``table`` prints Markdown, or replaces what stands between the
marks "fusion NAME" in the file that it is given. Intervals are of 95 %: of NMSE over episodes, by bootstrap of the mean
of the seeds; of success over scenes, of the mean of the seeds (Wilson's).
"""

import json
import os
import statistics
from argparse import ArgumentParser
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
from running import ROOT, put, stage
from tqdm import tqdm

from sightline.core.files import atomic_output, write_json
from sightline.core.params import Section, load_params
from sightline.demo.render import RenderParams
from sightline.demo.simulate import SimulateParams
from sightline.fusion.acting import Policy
from sightline.rollout.driving import Scene, drive
from sightline.rollout.rollouts import FIRST_SCENE, RolloutParams, wilson_interval

BLOCK = 512  # frames copied at a time
USES = ("shuffled_views", "swapped_first_two", "shuffled_joints")


def run(
    views: Path, runs: Path, design: str, label: str, settings: dict[str, object], truth: Sequence[str] = (),
    scenes: int = 0, features: Sequence[Path] = (),
) -> None:  # fmt: skip
    """Train a design, evaluate it and let it act, where that is not done."""
    os.environ["DVC_ROOT"] = str(runs.resolve())  # scratch state goes there, not into the project
    place, params = runs / label / f"seed{settings['seed']}", ROOT / "params.yaml"
    weights, further = place / "fusion.safetensors", list[object]()
    for path in features:
        further += ["--feature", path.resolve()]
    if truth:
        settings = settings | {"fusion.extra_dropout": 0}
        further += ["--feature", write_columns(Path(truth[0]), truth[1:], place / "truth.hdf5")]
    if not weights.exists():
        named = ("--design", design, "--metrics-dir", place, *further)
        stage("train_fusion", views.resolve(), weights.resolve(), *named, settings=settings, params=params)
    if not (place / "evaluation/evaluation_results.json").exists():
        stage("evaluate_fusion", weights.resolve(), views.resolve(), place / "evaluation", *further, params=params)
    if not scenes or (place / "rollout/details.json").exists():
        return
    if truth:
        roll_out_told(weights, truth[1:], place / "truth.hdf5", scenes, place / "rollout/details.json")
    else:
        stage(
            "rollout", weights.resolve(), views.resolve(), place / "rollout",
            settings={"rollout.scenes": scenes}, params=params,
        )  # fmt: skip


def of_fewer_episodes(views: Path, runs: Path, count: int) -> Path:
    """A file of views with the first ``count`` training episodes, and all others."""
    path = runs / f"views_of_{count}.hdf5"
    if path.exists():
        return path
    runs.mkdir(parents=True, exist_ok=True)
    with h5py.File(views) as file, atomic_output(path) as temporary, h5py.File(temporary, "w") as fewer:
        is_train, episode = file["split"][:] == b"train", file["episode"][:]
        kept = ~is_train | np.isin(episode, np.unique(episode[is_train])[:count])
        fewer.attrs.update(file.attrs)
        for name, values in file.items():
            rows = fewer.create_dataset(name, (kept.sum(), *values.shape[1:]), values.dtype)
            for start in range(0, len(rows), BLOCK):
                some = np.flatnonzero(kept)[start : start + BLOCK]
                rows[start : start + BLOCK] = values[some]
    return path


def write_columns(table: Path, columns: Sequence[str], path: Path) -> Path:
    """Write columns of a frames table, standardised, as the file of a further input."""
    frames = pd.read_parquet(table, columns=["frame_id", *columns])
    values = np.concatenate([np.stack(frames[column].tolist()) for column in columns], axis=1)
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file["embeddings"] = ((values - values.mean(0)) / values.std(0)).astype(np.float32)
        file["frame_id"] = frames["frame_id"].to_numpy(np.int64)
        file["mean"], file["std"] = values.mean(0), values.std(0)
    return path.resolve()


class Acting(Section):
    """What stages/rollout.py reads of params.yaml."""

    rollout: RolloutParams = RolloutParams()
    simulate: SimulateParams = SimulateParams()
    render: RenderParams = RenderParams()


class Told:
    """A scene whose observations hold the truth, standardised as in ``path``: columns that a simulation has, too."""

    def __init__(self, scene: Scene, name: str, columns: Sequence[str], path: Path) -> None:
        self.simulation, self.distance_mm = scene.simulation, scene.distance_mm
        self._scene, self._name, self._columns = scene, name, columns
        with h5py.File(path) as file:
            self._mean, self._std = file["mean"][:], file["std"][:]

    def observe(self) -> dict[str, object]:
        """What the scene shows, and the truth under the name of the further input."""
        values = np.concatenate([getattr(self.simulation, column) for column in self._columns])
        return {**self._scene.observe(), self._name: (values - self._mean) / self._std}


def roll_out_told(weights: Path, columns: Sequence[str], truth: Path, scenes: int, output: Path) -> None:
    """Let a model that is told the truth act in the scenes of stages/rollout.py, and write its rate of success."""
    params, policy = load_params(Acting, ROOT / "params.yaml"), Policy.load(weights)
    (name,) = policy.config.extras
    most = round(params.rollout.length * params.simulate.steps)
    successes = 0
    for number in tqdm(range(FIRST_SCENE, FIRST_SCENE + scenes), desc="rollout", unit="scene"):
        scene = Told(Scene(params.simulate, params.render, number), name, columns, truth)
        successes += drive(policy, scene, most).success
    write_json(output, {"scenes": scenes, "success_rate": successes / scenes})


def table(runs: Path) -> str:
    """Markdown: a row for each simple predictor and each label, with the figures of its seeds."""
    by_label: dict[str, list[Path]] = {}
    for path in sorted(runs.glob("*/seed*/evaluation/evaluation_results.json")):
        by_label.setdefault(path.parents[2].name, []).append(path.parents[1])
    if not by_label:
        raise SystemExit(f"{runs}: no runs in it; make some with the command run")
    columns = ("model", "NMSE of the seeds", "mean", "interval", "views of other frames", "first two cameras swapped",
               "joints of other frames", "success of the seeds", "mean, interval")  # fmt: skip
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    results = {label: [_read(place / "evaluation/evaluation_results.json") for place in of_label]
               for label, of_label in by_label.items()}  # fmt: skip
    acted = {label: [_read(place / "rollout/details.json") for place in of_label if (place / "rollout").is_dir()]
             for label, of_label in by_label.items()}  # fmt: skip
    with_drivers = (rollouts[0] for rollouts in acted.values() if rollouts and "baselines" in rollouts[0])
    drivers: dict[str, Any] = next(with_drivers, {"baselines": {}})["baselines"]
    predictors = next(iter(results.values()))[0]["baselines"]
    for name in sorted(predictors | drivers):
        error = f"{predictors[name]['nmse']:.3f}" if name in predictors else ""
        success = _success([drivers[name]]) if name in drivers else ("", "")
        lines.append(f"| {name.replace('_', ' ')} | | {error} |" + " |" * 4 + f" {' | '.join(success)} |")
    for label, of_seeds in sorted(results.items(), key=lambda item: statistics.mean(one["nmse"] for one in item[1])):
        errors = [result["nmse"] for result in of_seeds]
        cells = (
            f"**{label}**",
            ", ".join(f"{error:.3f}" for error in errors),
            f"{statistics.mean(errors):.3f}",
            _interval([result["by_episode"] for result in of_seeds]),
            *(_range([result["use"].get(use) for result in of_seeds]) for use in USES),
            *_success(acted[label]),
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def _interval(by_episode: list[dict[str, float]]) -> str:
    """Of the mean over seeds and episodes."""
    means = np.array([[of_seed[episode] for episode in by_episode[0]] for of_seed in by_episode]).mean(0)
    drawn = np.random.default_rng(0).integers(len(means), size=(2000, len(means)))
    low, high = np.quantile(means[drawn].mean(1), [0.025, 0.975])
    return f"{low:.3f} to {high:.3f}"


def _success(rollouts: list[dict[str, Any]]) -> tuple[str, str]:
    """Shares of the seeds; their mean with its interval."""
    if not rollouts:
        return "", ""
    rates, scenes = [of_seed["success_rate"] for of_seed in rollouts], rollouts[0].get("scenes", 0)
    if not scenes:  # a simple driver
        low, high = rollouts[0]["success_rate_interval"]
        return "", f"{rates[0]:.2f}, {low:.2f} to {high:.2f}"
    mean = statistics.mean(rates)
    low, high = wilson_interval(mean * scenes, scenes)
    return ", ".join(f"{rate:.2f}" for rate in rates), f"{mean:.2f}, {low:.2f} to {high:.2f}"


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
    one.add_argument("--truth", nargs="+", default=[], metavar="FRAMES", help="frames.parquet, and columns of it")
    one.add_argument("--feature", action="append", default=[], type=Path, dest="features", help="a further input")
    one.add_argument("--episodes", type=int, metavar="N", help="train on the first N training episodes (default: all)")
    one.add_argument("--scenes", type=int, default=0, help="scenes in which the model drives the simulated robot")
    one.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="settings")
    all_ = commands.add_parser("table", help="the figures of all runs, as Markdown")
    all_.add_argument("runs", type=Path)
    all_.add_argument("--name", required=True, help="of the table, in the marks")
    all_.add_argument("--write", type=Path, metavar="FILE", help="Markdown file with the marks for the table")
    args = parser.parse_args()
    if args.command == "run":
        settings = dict(setting.split("=", 1) for setting in args.settings) | {"seed": args.seed}
        label = args.label or args.design
        views = of_fewer_episodes(args.views, args.runs, args.episodes) if args.episodes else args.views
        run(views, args.runs, args.design, label, settings, args.truth, args.scenes, args.features)
    else:
        put(table(args.runs), f"fusion {args.name}", args.write)


if __name__ == "__main__":
    main()
