"""What is seen of a training while it runs, and that git and DVC see nothing of it."""

import fcntl
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest
from conftest import ROOT, depth_folder
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from sightline.depth.normalize import NormalizeParams, normalize_depth
from sightline.recording.split import SplitParams

SETTINGS = [
    "train.epochs=3", "train.batch_size=4", "train.precision=fp32", "train.latent_dim=128", "train.width=16",
    "train.objective.inverse_dynamics=0", "train.objective.summary=0",
]  # fmt: skip


@pytest.fixture
def project(tmp_path) -> Path:
    """A DVC project with nothing to commit, and normalised depth."""
    for command in ("git init -q .", f"{sys.executable} -m dvc init -q"):
        subprocess.run(command.split(), cwd=tmp_path, check=True)
    (tmp_path / ".gitignore").write_text((ROOT / ".gitignore").read_text() + "/in/\n/m/\n*.card.json\n")
    (tmp_path / ".dvcignore").write_text((ROOT / ".dvcignore").read_text())
    depth_folder(tmp_path / "in", 12)
    params = NormalizeParams(height_range=(500, 1500))
    normalize_depth(tmp_path / "in", tmp_path / "depth.hdf5", params, split=SplitParams(guard=0), processes=1)
    for command in ("git add -A", "git -c user.name=t -c user.email=t@t commit -qm first"):
        subprocess.run(command.split(), cwd=tmp_path, check=True)
    return tmp_path


def command(*more: str) -> list[str]:
    settings = [part for setting in SETTINGS for part in ("--set", setting)]
    script = str(ROOT / "stages/train_autoencoder.py")
    return [sys.executable, script, "depth.hdf5", "a.safetensors", "--metrics-dir", "m", *settings, *more]


def test_without_a_terminal_there_is_a_line_per_epoch_and_files_that_git_and_dvc_ignore(project):
    done = subprocess.run(command(), cwd=project, capture_output=True, text=True, check=True)
    assert done.stdout == ""
    lines = [line for line in done.stderr.splitlines() if line.startswith("train_autoencoder: ")]
    assert re.fullmatch(r"train_autoencoder: first step: train_loss [\d.e-]+", lines[1])
    assert len(lines) == 2 + 3  # the first tells where the parameters are from
    shown = r"train_autoencoder: epoch 3 of 3, [\d.]+ s: train_loss [\d.e-]+, val_loss [\d.e-]+, val_mse .*"
    assert re.fullmatch(shown, lines[-1])
    assert "\r" not in done.stderr

    (folder,) = (project / "runs/train_autoencoder").iterdir()
    events = EventAccumulator(str(folder)).Reload()
    assert events.Scalars("step_loss")[0].step == 1
    assert len(events.Scalars("val_loss")) == 3
    assert (folder / "dvclive/plots/metrics/step_loss.tsv").read_text().startswith("step\tstep_loss\n1\t")
    assert len((folder / "dvclive/plots/metrics/val/loss.tsv").read_text().splitlines()) == 4
    assert json.loads((folder / "run.json").read_text()).keys() == {"epochs", "machine", "metrics", "seconds"}
    for status in (["git", "status", "--porcelain"], ["git", "diff", "HEAD"], ["git", "stash", "list"]):
        assert subprocess.run(status, cwd=project, capture_output=True, text=True, check=True).stdout == ""
    assert not list((project / ".dvc").glob("**/DVCLIVE*"))
    curves = (project / "m/curves.csv").read_text().splitlines()
    assert curves[0] == "epoch,lr,gradient_norm,train_l1,train_loss,train_mse,val_l1,val_loss,val_mse"


def test_outside_a_dvc_project_none_is_made(project, tmp_path_factory):
    bare = tmp_path_factory.mktemp("bare")
    (bare / "depth.hdf5").write_bytes((project / "depth.hdf5").read_bytes())
    subprocess.run(["git", "init", "-q", "."], cwd=bare, check=True)
    environment = os.environ | {"DVC_ROOT": str(bare)}
    subprocess.run(command(), cwd=bare, env=environment, capture_output=True, check=True)
    (folder,) = (bare / "runs/train_autoencoder").iterdir()
    assert {path.name.split(".")[0] for path in folder.iterdir()} == {"events", "hparams", "run"}
    assert not (bare / ".dvc").exists()


def test_a_terminal_shows_a_bar_with_the_loss_and_then_the_validation(project):
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 160, 0, 0))
    process = subprocess.Popen(command(), cwd=project, stdout=theirs, stderr=subprocess.PIPE, text=True)
    os.close(theirs)
    said = b""
    try:
        while part := os.read(ours, 4096):
            said += part
    except OSError:  # the other end is closed
        pass
    assert process.wait() == 0
    text = said.decode()
    assert re.search(r"Epoch 1 of 3: .*train_loss=[\d.e-]+\]", text)
    assert re.search(r"Epoch 3 of 3: .*train_loss=[\d.e-]+, val_loss=[\d.e-]+", text)
    assert "epoch 1 of 3" not in process.stderr.read()
