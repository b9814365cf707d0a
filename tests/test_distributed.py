"""Two processes do what one does: the same stores, byte for byte, the same training; one that is killed ends all."""

import csv
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import test_fusion_training
import torch
from conftest import ROOT, depth_folder, photo_folder
from safetensors.torch import load_file
from test_fusion_training import pack, write_recording

from sightline.clip import GridParams
from sightline.clip.extraction import extract_grids
from sightline.depth.embedding import EmbedParams, embed_depth
from sightline.depth.network import Autoencoder, NetworkConfig
from sightline.depth.normalize import NormalizeParams, normalize_depth
from sightline.depth.store import DepthStore
from sightline.depth.weights import Header, save_weights
from sightline.fusion.training import FusionParams, train_fusion
from sightline.recording.split import SplitParams
from sightline.training.order import share_of

ONE_HOST = ("--standalone", "--nproc-per-node=2")
FOUR = ("--standalone", "--nproc-per-node=4")
# runs a stage, but process 1 is killed when it calls a function for the second time
KILLED = """
import importlib, os, runpy, signal, sys
script, module, holder, name = sys.argv[1:5]
owner = importlib.import_module(module)
owner = getattr(owner, holder) if holder else owner
whole, calls = getattr(owner, name), []
def dying(*arguments):
    calls.append(1)
    if os.environ["RANK"] == "1" and len(calls) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return whole(*arguments)
setattr(owner, name, dying)
sys.argv[:] = [script, *sys.argv[5:]]
runpy.run_path(script, run_name="__main__")
"""


def launched(folder: Path, options: tuple[str, ...], *command: object) -> subprocess.Popen:
    """Start a command under torchrun in ``folder``."""
    words = [sys.executable, "-m", "torch.distributed.run", *options, *map(str, command)]
    return subprocess.Popen(words, cwd=folder, env=os.environ, stdout=-1, stderr=-1, text=True)


def run(folder: Path, *command: object, options: tuple[str, ...] = ONE_HOST) -> tuple[int, str, str]:
    """Exit status, output and errors of a command with two processes, or as ``options`` say."""
    process = launched(folder, options, *command)
    output, errors = process.communicate(timeout=300)
    return process.returncode, output, errors


def settings(section: str, params: dict[str, object]) -> list[str]:
    return [word for key, value in params.items() for word in ("--set", f"{section}.{key}={value}")]


def files_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - {".scratch"}


@pytest.mark.filterwarnings("ignore:grids.pretrained is random")
def test_two_hosts_that_meet_over_tcp_write_the_grids_of_one_process(tmp_path):
    small = {"model": "ViT-S-16", "image_size": 32, "grid": 2, "precision": "fp32", "shard_frames": 3}
    photos = photo_folder(tmp_path / "photos", range(1, 8))
    (photos / "notes.txt").touch()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        endpoint = f"127.0.0.1:{free.getsockname()[1]}"
    meeting = ("--rdzv-backend=c10d", "--rdzv-id=1", f"--rdzv-endpoint={endpoint}", "--local-addr=127.0.0.1")
    stage = (ROOT / "stages/clip_grids.py", "photos", "two", *settings("grids", small))
    hosts = [launched(tmp_path, ("--nnodes=2", "--nproc-per-node=1", *meeting), *stage) for _ in range(2)]
    said = [host.communicate(timeout=300) for host in hosts]
    assert [host.returncode for host in hosts] == [0, 0], said
    assert sum(output.count('"images": 7') for output, _ in said) == 1  # one process reports
    assert sum(errors.count("ignored, not images: photos/notes.txt") for _, errors in said) == 1
    shutil.rmtree(tmp_path / ".scratch")
    (photos / "notes.txt").unlink()
    extract_grids([photos], tmp_path / "one", GridParams(**small))
    written = {path.name: path.read_bytes() for path in (tmp_path / "one").iterdir()}
    assert {path.name: path.read_bytes() for path in (tmp_path / "two").iterdir()} == written
    assert len(written) == 4  # three shards and their list


@pytest.mark.filterwarnings("ignore:grids.pretrained is random")
def test_tasks_of_srun_write_the_grids_of_one_process(tmp_path):
    small = {"model": "ViT-S-16", "image_size": 32, "grid": 2, "precision": "fp32", "shard_frames": 3}
    photos = photo_folder(tmp_path / "photos", range(1, 8))
    command = [sys.executable, ROOT / "stages/clip_grids.py", "photos", "two", *settings("grids", small)]
    tasks = [started_by_srun(tmp_path, command, task, per_node="1(x2)") for task in (0, 1)]
    said = [task.communicate(timeout=300) for task in tasks]
    assert [task.returncode for task in tasks] == [0, 0], said
    assert sum(output.count('"images": 7') for output, _ in said) == 1
    shutil.rmtree(tmp_path / ".scratch")
    extract_grids([photos], tmp_path / "one", GridParams(**small))
    one, two = ({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("one", "two"))
    assert one == two


def test_machines_with_different_numbers_of_tasks_are_refused(tmp_path):
    command = [sys.executable, ROOT / "stages/clip_grids.py", "photos", "two"]
    _, errors = started_by_srun(tmp_path, command, 0, per_node="2,1").communicate(timeout=60)
    line = errors.splitlines()[-1]
    assert line == "clip_grids.py: error: srun: 2,1 tasks on the machines; give each as many, --ntasks-per-node"


def started_by_srun(folder: Path, command: list[object], task: int, per_node: str) -> subprocess.Popen:
    """Start a command with what srun of SLURM 22.05 sets for a task of two, on two nodes of one task each."""
    told = {
        "SLURM_JOB_ID": str(os.getpid()), "SLURM_STEP_ID": "3", "SLURM_NTASKS": "2", "SLURM_STEP_NUM_TASKS": "2",
        "SLURM_STEP_TASKS_PER_NODE": per_node, "SLURM_STEP_NODELIST": "localhost,gpu[03-05]",
        "SLURM_PROCID": str(task), "SLURM_LOCALID": "0", "SLURM_NODEID": str(task),
    }  # fmt: skip
    words = list(map(str, command))
    return subprocess.Popen(words, cwd=folder, env=os.environ | told, stdout=-1, stderr=-1, text=True)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:grids.pretrained is random")
def test_four_processes_write_the_shards_of_one_though_a_folder_is_there(tmp_path):
    small = {"model": "ViT-S-16", "image_size": 32, "grid": 2, "precision": "fp32", "shard_frames": 4}
    photos = photo_folder(tmp_path / "photos", range(1, 11))
    for output in ("one", "four"):
        extract_grids([photos], tmp_path / output, GridParams(**small))
    photo_folder(photos, range(11, 15))
    extract_grids([photos], tmp_path / "one", GridParams(**small))
    shutil.rmtree(tmp_path / ".scratch")
    stage = (ROOT / "stages/clip_grids.py", "photos", "four", *settings("grids", small))
    status, _, errors = run(tmp_path, *stage, options=FOUR)
    assert status == 0, errors
    one, four = ({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("one", "four"))
    assert one == four
    assert len(one) == 5


def test_an_embedding_whose_process_is_killed_ends_without_output_and_goes_on(tmp_path):
    depth_folder(tmp_path / "in", 11)
    params = NormalizeParams(height_range=(500, 1500))
    normalize_depth(tmp_path / "in", tmp_path / "depth.hdf5", params, split=SplitParams(guard=0), processes=1)
    torch.manual_seed(0)
    encoder = Autoencoder(NetworkConfig(latent_dim=128, width=16)).eval().encoder
    header = Header(
        kind="encoder", network=encoder.config, preprocessing=DepthStore.open(tmp_path / "depth.hdf5").preprocessing
    )
    save_weights(tmp_path / "encoder.safetensors", encoder, header)
    (tmp_path / "killed.py").write_text(KILLED)
    before, stage = files_in(tmp_path), ROOT / "stages/embed.py"
    arguments = ("encoder.safetensors", "depth.hdf5", "two.hdf5", *settings("embed", {"batch_size": 2}))
    status, _, errors = run(tmp_path, "killed.py", stage, "sightline.depth.embedding", "", "encode_batch", *arguments)
    assert status != 0
    assert "Signal 9 (SIGKILL) received" in errors
    assert files_in(tmp_path) == before
    status, output, errors = run(tmp_path, stage, *arguments)
    assert status == 0, errors
    assert output.count('"images": 11') == 1
    assert "embed:  40%" in errors  # the killed one had embedded two of its five
    shutil.rmtree(tmp_path / ".scratch")
    files = (tmp_path / name for name in ("encoder.safetensors", "depth.hdf5", "one.hdf5"))
    embed_depth(*files, EmbedParams(batch_size=2))
    assert (tmp_path / "two.hdf5").read_bytes() == (tmp_path / "one.hdf5").read_bytes()


TRAINING = {"chunk": 4, "epochs": 2, "lr": 1e-3, "precision": "fp32"}


def training(data: Path, name: str, batch_size: int) -> list[object]:
    """Arguments of a training without batch normalisation."""
    named = [data, f"{name}.safetensors", "--design", "joints_only", "--metrics-dir", name]
    return [*named, *settings("fusion", TRAINING | {"batch_size": batch_size})]


def curves(folder: Path) -> list[dict[str, float]]:
    with open(folder / "curves.csv", encoding="utf-8") as file:
        return [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]


def test_two_processes_train_like_one_with_the_same_frames_in_a_step(tmp_path):
    data = pack(write_recording(tmp_path / "recording"))
    status, _, errors = run(tmp_path, ROOT / "stages/train_fusion.py", *training(data, "two", 4))
    assert status == 0, errors
    params = FusionParams(**TRAINING, batch_size=8)
    train_fusion(data, tmp_path / "one.safetensors", tmp_path / "one", params, 0, design="joints_only")
    one, two = (load_file(tmp_path / f"{name}.safetensors") for name in ("one", "two"))
    for name in one:
        np.testing.assert_allclose(two[name], one[name], rtol=1e-4, atol=1e-5, err_msg=name)
    assert len(curves(tmp_path / "two")) == 2
    for row, other in zip(curves(tmp_path / "one"), curves(tmp_path / "two"), strict=True):
        assert other == pytest.approx(row, rel=1e-4)


@pytest.mark.slow
def test_a_training_whose_process_is_killed_ends_without_output_and_goes_on(tmp_path):
    data = pack(write_recording(tmp_path / "recording"))
    (tmp_path / "killed.py").write_text(KILLED)
    stage = ROOT / "stages/train_fusion.py"
    killing = ("killed.py", stage, "sightline.training.fitting", "_Keeper", "on_train_epoch_end")
    status, _, errors = run(tmp_path, *killing, *training(data, "two", 4))
    assert status != 0
    assert "Signal 9 (SIGKILL) received" in errors
    assert not (tmp_path / "two.safetensors").exists()
    alone = [sys.executable, stage, *map(str, training(data, "alone", 4))]
    said = subprocess.run(alone, cwd=tmp_path, capture_output=True, text=True, check=True).stderr
    assert "continuing" not in said  # one process does not go on from the state of two
    status, _, errors = run(tmp_path, stage, *training(data, "two", 4))
    assert status == 0, errors
    assert "train_fusion: continuing an interrupted run" in errors
    status, _, errors = run(tmp_path, stage, *training(data, "whole", 4))
    assert status == 0, errors
    assert (tmp_path / "two.safetensors").read_bytes() == (tmp_path / "whole.safetensors").read_bytes()


@pytest.fixture
def two_hosts():
    """Two network namespaces joined by a cable, each with an address of its own: names and addresses."""
    names = [f"sightline-{os.getpid()}-{number}" for number in (1, 2)]
    addresses = ["10.77.0.1", "10.77.0.2"]
    commands = [f"netns add {name}" for name in names]
    commands.append(f"link add cable netns {names[0]} type veth peer name cable netns {names[1]}")
    for name, address in zip(names, addresses, strict=True):
        commands += [f"-n {name} addr add {address}/24 dev cable", f"-n {name} link set cable up"]
        commands.append(f"-n {name} link set lo up")
    try:
        for words in commands:
            if not shutil.which("ip") or subprocess.run(["ip", *words.split()], capture_output=True).returncode:
                pytest.skip("needs the command ip, and the right to make network namespaces")
        yield list(zip(names, addresses, strict=True))
    finally:
        for name in names if shutil.which("ip") else ():
            subprocess.run(["ip", "netns", "del", name], capture_output=True)


@pytest.mark.slow
def test_a_training_on_two_hosts_ends_with_the_process_of_one_and_goes_on(two_hosts, tmp_path):
    data = pack(write_recording(tmp_path / "recording"))
    (tmp_path / "killed.py").write_text(KILLED)
    stage = ROOT / "stages/train_fusion.py"

    def on_both(*command: object) -> tuple[list[int], str]:
        started = []
        for number, (name, address) in enumerate(two_hosts):
            options = ["--nnodes=2", "--nproc-per-node=1", "--rdzv-backend=c10d", "--rdzv-id=1"]
            options += [f"--rdzv-endpoint={two_hosts[0][1]}:29500", f"--local-addr={address}"]
            options += [f"--rdzv-conf=is_host={number == 0}"]  # the name of this machine is not that of the host
            words = ["ip", "netns", "exec", name, sys.executable, "-m", "torch.distributed.run", *options]
            environment = os.environ | {"GLOO_SOCKET_IFNAME": "cable"}
            started.append(
                subprocess.Popen(
                    [*words, *map(str, command)], cwd=tmp_path, env=environment, stdout=-1, stderr=-1, text=True
                )
            )
        said = [process.communicate(timeout=300)[1] for process in started]
        return [process.returncode for process in started], "".join(said)

    killing = ("killed.py", stage, "sightline.training.fitting", "_Keeper", "on_train_epoch_end")
    statuses, errors = on_both(*killing, *training(data, "two", 4))
    assert 0 not in statuses, errors
    assert "Signal 9 (SIGKILL) received" in errors
    assert "train_fusion.py: error: another process of this run has ended" in errors
    assert not (tmp_path / "two.safetensors").exists()
    statuses, errors = on_both(stage, *training(data, "two", 4))
    assert statuses == [0, 0], errors
    assert "train_fusion: continuing an interrupted run" in errors
    statuses, errors = on_both(stage, *training(data, "whole", 4))
    assert statuses == [0, 0], errors
    assert (tmp_path / "two.safetensors").read_bytes() == (tmp_path / "whole.safetensors").read_bytes()


@pytest.mark.parametrize(("frames", "processes"), [(1, 1), (3, 4), (4, 4), (9, 4)])
def test_no_process_is_without_validation_frames(frames, processes):
    shares = [share_of(np.arange(frames), rank, processes) for rank in range(processes)]
    assert all(len(share) for share in shares)
    assert np.bincount(np.concatenate(shares)).tolist() == [1 if frames >= processes else processes] * frames


@pytest.mark.slow
def test_processes_that_are_more_than_the_validation_frames_train_like_one(tmp_path, monkeypatch):
    monkeypatch.setattr(test_fusion_training, "STEPS", 3)  # frames of each episode, of which one is for validation
    data = pack(write_recording(tmp_path / "recording"))
    short = settings("fusion", {"chunk": 2})
    status, _, errors = run(tmp_path, ROOT / "stages/train_fusion.py", *training(data, "four", 3), *short, options=FOUR)
    assert status == 0, errors
    params = FusionParams(**TRAINING | {"chunk": 2}, batch_size=12)
    train_fusion(data, tmp_path / "one.safetensors", tmp_path / "one", params, 0, design="joints_only")
    for row, other in zip(curves(tmp_path / "one"), curves(tmp_path / "four"), strict=True):
        assert other == pytest.approx(row, rel=1e-4)
