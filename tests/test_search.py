"""The example of a search: its names are those of the pipeline, and its trials are experiments of DVC."""

import json
import runpy
import subprocess
import sys

import pytest
import yaml
from closure import ROOT
from conftest import default_params
from pages import block

SCRIPT = ROOT / "tools/search.py"
PIPELINE = """
stages:
  train_autoencoder:
    matrix: {depth: [depth]}
    cmd: python measure.py
    params: [train]
    metrics: ["metrics/train_autoencoder/${item.depth}/metrics.json"]
"""
MEASURE = """
import json, pathlib, yaml
train = yaml.safe_load(open("params.yaml"))["train"]
path = pathlib.Path("metrics/train_autoencoder/depth/metrics.json")
path.parent.mkdir(parents=True, exist_ok=True)
path.write_text(json.dumps({"val_rmse_mm": abs(float(train["lr"]) - 1e-3)}))
"""


def test_its_names_are_those_of_the_pipeline():
    example = runpy.run_path(str(SCRIPT))
    params = yaml.safe_load(default_params())
    for name in example["SPACE"]:
        section, key = name.split(".")
        assert key in params[section]
    stage, instance = example["TARGET"].split("@")
    (metrics,) = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"][stage]["metrics"]
    assert metrics.replace("${item.depth}", instance) == example["METRIC"][0]


@pytest.mark.slow
def test_trials_are_experiments_and_a_second_call_goes_on(tmp_path):
    train = {"lr": 1e-2, "weight_decay": 0.0, "batch_size": 32}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump({"train": train}))
    (tmp_path / "dvc.yaml").write_text(PIPELINE)
    (tmp_path / "measure.py").write_text(MEASURE)
    (tmp_path / ".gitignore").write_text("/runs/\n/metrics/\n")
    for command in ("git init -q .", f"{sys.executable} -m dvc init -q", "git add -A",
                    "git -c user.name=t -c user.email=t@t commit -qm first"):  # fmt: skip
        subprocess.run(command.split(), cwd=tmp_path, check=True)
    python, script, *options, _ = block("search").split()  # as the documentation runs it, with fewer trials
    assert (python, ROOT / script, options) == ("python", SCRIPT, ["--trials"])
    search = [sys.executable, SCRIPT, *options]
    for trials in ("2", "1"):
        done = subprocess.run([*search, trials], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "best: search-" in done.stdout
    shown = [sys.executable, "-m", "dvc", "exp", "show", "--json"]
    commits = json.loads(subprocess.run(shown, cwd=tmp_path, capture_output=True, text=True, check=True).stdout)
    names = {experiment["revs"][0]["name"].rpartition("-")[2] for experiment in commits[1]["experiments"]}
    assert names == {"0", "1", "2"}
