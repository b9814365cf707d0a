"""The leaderboard of experiments: what it shows, sorts and filters, and what it says where there is nothing."""

import runpy
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from closure import ROOT
from conftest import default_params, only_error_line

from sightline.core.errors import UserError

SCRIPT = ROOT / "tools/leaderboard.py"
leaderboard, select = (runpy.run_path(str(SCRIPT))[name] for name in ("leaderboard", "select"))


def revision(name: str, lr: float, rmse: float | None, dice: float) -> dict:
    metrics = {"metrics/evaluate_segmentation/masks/metrics.json": {"data": {"dice": dice}}}
    if rmse is not None:
        metrics["metrics/evaluate/depth/metrics.json"] = {"data": {"rmse_mm": rmse, "joints_r2": 0.2}}
    params = {"params.yaml": {"data": {"train": {"lr": lr, "epochs": 20}}}}
    return {"name": name, "rev": "0" * 40, "data": {"params": params, "metrics": metrics}}


@pytest.fixture
def table() -> pd.DataFrame:
    given = [("slow", 1e-4, 30.0, 0.8), ("fast", 1e-2, 9.5, 0.6), ("broken", 1.0, None, 0.7)]
    experiments = [{"executor": None, "revs": [revision(*one)]} for one in given]
    return leaderboard([revision("main", 1e-3, 20.0, 0.5) | {"experiments": experiments}])


def names(table: pd.DataFrame) -> list[str]:
    return [name.strip() for name in table["experiment"]]


def test_what_was_changed_and_what_it_did(table):
    assert list(table.columns) == ["experiment", "train.lr", "depth rmse mm ↓", "masks dice ↑"]
    assert list(table.iloc[2]) == ["  fast", "0.01", "9.5", "0.6"]


def test_it_sorts_by_number_the_best_first(table):
    assert names(select(table, [], "rmse", None)) == ["fast", "main", "slow", "broken"]
    assert names(select(table, [], "dice", 2)) == ["slow", "broken"]
    assert names(select(table, [], "-dice", None)) == ["main", "fast", "broken", "slow"]
    assert names(select(table, [], "experiment", 1)) == ["broken"]


def test_it_filters_by_values(table):
    assert names(select(table, ["lr<=1e-3", "rmse<25"], None, None)) == ["main"]
    assert names(select(table, ["experiment!=slow", "dice>0.55"], "dice", None)) == ["broken", "fast"]
    assert names(select(table, ["rmse>0"], None, None)) == ["main", "slow", "fast"]  # not what has none


@pytest.mark.parametrize(
    ("where", "sort", "message"),
    [
        (["lr"], None, "--where lr: expected COLUMN=VALUE"),
        (["lr<little"], None, "--where lr<little: little is no number"),
        ([], "loss", "loss: 0 columns have this in their name; there are: experiment, train.lr"),
        ([], "r", "r: 3 columns have this in their name"),
    ],
)
def test_a_wrong_question_is_answered_in_one_line(table, where, sort, message):
    with pytest.raises(UserError, match=message):
        select(table, where, sort, None)


@pytest.fixture
def clone(tmp_path) -> Path:
    """A project that was just cloned."""
    (tmp_path / "params.yaml").write_text(default_params())
    (tmp_path / "dvc.yaml").write_text((ROOT / "dvc.yaml").read_text())
    for command in (
        "git init -q .", f"{sys.executable} -m dvc init -q", "git add -A",
        "git -c user.name=t -c user.email=t@t commit -qm first",
    ):  # fmt: skip
        subprocess.run(command.split(), cwd=tmp_path, check=True)
    return tmp_path


def run(where: Path, *arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, SCRIPT, *arguments], cwd=where, capture_output=True, text=True, check=False)


def test_a_fresh_clone_is_told_how_to_get_figures(clone):
    done = run(clone)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("No figures yet: ")
    assert "dvc pull" in done.stdout


def test_help_helps_and_a_folder_without_dvc_is_one_line(tmp_path):
    assert '--where "nmse<0.5"' in run(tmp_path, "--help").stdout
    assert "leaderboard: error: " in only_error_line(run(tmp_path))
