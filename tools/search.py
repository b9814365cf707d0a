"""``python tools/search.py -n 20``: search parameters with Optuna, each trial an experiment of DVC.

An example to change: SPACE names what to try, METRIC what to make small. A trial runs the stages that its parameters
change, and is kept as an experiment (`make leaderboard`). TPE (Bergstra et al. 2011) proposes the next from all before.
Trials are stored in ``runs/search.db``: run it again to go on.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import optuna

METRIC = ("metrics/evaluate/depth/metrics.json", "rmse_mm")  # file and key; on test frames: choose by val instead
TARGET = "evaluate@depth"  # the last stage that a trial runs
SPACE: dict[str, Callable[[optuna.Trial, str], object]] = {
    "train.lr": lambda trial, name: trial.suggest_float(name, 1e-4, 1e-2, log=True),
    "train.weight_decay": lambda trial, name: trial.suggest_float(name, 1e-6, 1e-2, log=True),
    "train.batch_size": lambda trial, name: trial.suggest_categorical(name, [16, 32, 64]),
}


def run_trial(trial: optuna.Trial) -> float:
    """Run one experiment -> its metric. A trial that fails is pruned: the search goes on without it."""
    changes = [f"{name}={suggest(trial, name)}" for name, suggest in SPACE.items()]
    settings = [part for change in changes for part in ("--set-param", change)]
    command = [sys.executable, "-m", "dvc", "exp", "run", "--name", f"trial-{trial.number}", "--force", *settings]
    if subprocess.run([*command, TARGET], check=False).returncode:
        raise optuna.TrialPruned
    path, key = METRIC
    return float(json.loads(Path(path).read_text(encoding="utf-8"))[key])


def main(trials: int) -> None:
    Path("runs").mkdir(exist_ok=True)
    study = optuna.create_study(
        study_name=TARGET, storage="sqlite:///runs/search.db", load_if_exists=True,
        sampler=optuna.samplers.TPESampler(seed=0),
    )  # fmt: skip
    study.optimize(run_trial, n_trials=trials)
    print(f"best: trial-{study.best_trial.number}, {METRIC[1]} {study.best_value:.5g}, {study.best_params}")


parser = argparse.ArgumentParser(description=__doc__.replace("``", ""), formatter_class=argparse.RawTextHelpFormatter)
parser.add_argument("-n", "--trials", type=int, default=20, help="experiments to run (20)")

if __name__ == "__main__":
    main(parser.parse_args().trials)
