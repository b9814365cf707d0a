"""A team of clones: what is pushed, pulled, run again, caught and shown, through real remotes and real stages."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from closure import ROOT
from dvc.utils.hydra import apply_overrides
from test_pipeline import Clone

SMALLER = {"data.images": "[depth,rgb/left_wrist,rgb/right_wrist,rgb/global]", "fusion.designs": "[joints_only]",
           "evaluate.baselines": "[mean_image]"}  # fmt: skip
SHARED = [
    "data/clip/global.hdf5", "data/embeddings/depth.hdf5",
    "metrics/clip_grids/global/metrics.json", "metrics/embed/depth/metrics.json",
]  # fmt: skip
FUSION = ["train_fusion@actions-joints_only", "evaluate_fusion@actions-joints_only"]
# every stage of the pipeline, in order, as DVC would run it, but with one import of its libraries for all of them
RUN_STAGES = """
import os, runpy, shlex, sys
import networkx
from dvc.repo import Repo
repo = Repo()
for stage in reversed(list(networkx.topological_sort(repo.index.graph))):
    if stage.cmd:
        sys.argv = shlex.split(stage.cmd)[1:]
        os.environ |= {"DVC_STAGE": stage.addressing, "DVC_ROOT": repo.root_dir}
        runpy.run_path(sys.argv[0], run_name="__main__")
"""


class Member(Clone):
    """A team member's clone, made by git."""

    def __init__(self, root: Path, origin: Path) -> None:
        self.root = root
        self._run(["git", "clone", "-q", str(origin), str(root)], root.parent)
        self.configure()

    def configure(self) -> None:
        self.run("git", "config", "user.name", "t")
        self.run("git", "config", "user.email", "t@t")

    def data(self) -> list[str]:
        """Files that are not in git, without DVC's own."""
        listed = self.run("git", "ls-files", "--others").stdout.split("\n")
        return sorted(name for name in listed if re.match(r"(data|metrics|models)/", name))

    def reset(self) -> None:
        """Back to what is committed, data included."""
        self.run("git", "checkout", "-q", ".")
        shutil.rmtree(self.root / ".dvc/tmp/exps", ignore_errors=True)


class Owner(Member):
    """The clone in which the pipeline has been run."""

    def __init__(self, root: Path) -> None:
        Clone.__init__(self, root)
        apply_overrides(root / "params.yaml", [f"{key}={value}" for key, value in SMALLER.items()])
        self.configure()
        self.run(sys.executable, "-c", RUN_STAGES)
        self.run("dvc", "commit", "-f")
        self.commit()


@pytest.fixture(scope="module")
def owner(tmp_path_factory) -> Owner:
    owner = Owner(tmp_path_factory.mktemp("team") / "owner")
    owner.run("mkdir", "../environment")
    owner.run("touch", "../environment/.installed")
    owner.run("make", "share", "VENV=../environment", "RUN=")
    return owner


@pytest.fixture
def member(owner, tmp_path_factory) -> Member:
    """A fresh clone beside the owner's."""
    root = owner.root.parent / "member"
    shutil.rmtree(root, ignore_errors=True)
    return Member(root, owner.root)


def test_a_teammate_gets_exactly_what_is_asked_for_and_then_runs_nothing(member):
    member.run("dvc", "pull", "clip_grids", "embed")
    assert member.data() == SHARED
    assert member.ran("repro", "--pull", "--allow-missing") == []
    assert member.data() == SHARED
    assert member.run("git", "status", "--porcelain").stdout == ""


def test_an_experiment_of_a_teammate_pulls_direct_inputs_only(member):
    assert member.ran("exp", "run", "--pull", "--allow-missing", "-S", "fusion.lr=2e-3") == FUSION
    folders = {"/".join(name.split("/")[:2]) for name in member.data()}
    assert folders == {"data/fusion", "models/fusion", "metrics/train_fusion", "metrics/evaluate_fusion"}
