"""``python tools/search.py -n 20``: search parameters with Optuna, each trial an experiment of DVC.

An example to change: SPACE names what to try, METRIC what to make small. A trial runs the stages that its parameters
change, and is kept as an experiment (`make leaderboard`). TPE (Bergstra et al. 2011) proposes the next from all before.
Trials are stored in ``runs/search.db``: run it again to go on.
"""

import argparse
import json
import secrets
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import optuna

METRIC = ("metrics/train_autoencoder/depth/metrics.json", "val_rmse_mm")  # file and key; never of the test frames
TARGET = "train_autoencoder@depth"  # the last stage that a trial runs
SPACE: dict[str, Callable[[optuna.Trial, str], object]] = {
    "train.lr": lambda trial, name: trial.suggest_float(name, 1e-4, 1e-2, log=True),
    "train.weight_decay": lambda trial, name: trial.suggest_float(name, 1e-6, 1e-2, log=True),
    "train.batch_size": lambda trial, name: trial.suggest_categorical(name, [16, 32, 64]),
}


def run_trial(trial: optuna.Trial) -> float:
    """Run one experiment -> its metric. A trial that fails is pruned: the search goes on without it."""
    changes = [f"{name}={suggest(trial, name)}" for name, suggest in SPACE.items()]
    settings = [part for change in changes for part in ("--set-param", change)]
    name = f"{trial.study.user_attrs['name']}-{trial.number}"
    command = [sys.executable, "-m", "dvc", "exp", "run", "--name", name, *settings, TARGET]
    if subprocess.run(command, check=False).returncode:
        raise optuna.TrialPruned
    path, key = METRIC
    return float(json.loads(Path(path).read_text(encoding="utf-8"))[key])


def main(trials: int) -> None:
    Path("runs").mkdir(exist_ok=True)
    study = optuna.create_study(
        study_name=TARGET, storage="sqlite:///runs/search.db", load_if_exists=True,
        sampler=optuna.samplers.TPESampler(),  # with a seed, a second call would try the same again
    )  # fmt: skip
    if "name" not in study.user_attrs:
        study.set_user_attr("name", f"search-{secrets.token_hex(2)}")
    study.optimize(run_trial, n_trials=trials)
    if not study.get_trials(states=[optuna.trial.TrialState.COMPLETE]):
        raise SystemExit("search: error: no trial succeeded; DVC says why above")
    best = f"{study.user_attrs['name']}-{study.best_trial.number}"
    print(f"best: {best}, {METRIC[1]} {study.best_value:.5g}, {study.best_params}")


parser = argparse.ArgumentParser(description=__doc__.replace("``", ""), formatter_class=argparse.RawTextHelpFormatter)
parser.add_argument("-n", "--trials", type=int, default=20, help="experiments to run (20)")

if __name__ == "__main__":
    main(parser.parse_args().trials)
