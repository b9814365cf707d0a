"""The number of threads: what decides it, and which outputs keep their bytes with another one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from kill import outputs
from world import ROOT, command_line, copy_world

from sightline.core import threads
from sightline.core.errors import UserError

PRINTS = "from sightline.core.cli import run_stage\nimport torch\nprint(torch.get_num_threads())\n"
PLACES = {  # of what control groups grant
    "of_job": "pod/job/cpu.max", "of_pod": "pod/cpu.max", "of_root": "cpu.max",
    "quota": "cpu/job/cpu.cfs_quota_us", "period": "cpu/job/cpu.cfs_period_us",
}  # fmt: skip


@pytest.fixture
def four_cores(monkeypatch, tmp_path):
    """A machine of four cores; writes what its control groups say."""
    for name in ("SIGHTLINE_THREADS", "LOCAL_WORLD_SIZE", "TORCHELASTIC_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 4, 5})
    monkeypatch.setattr(threads, "_GROUPS", tmp_path)
    monkeypatch.setattr(threads, "_MEMBERSHIP", tmp_path / "membership")

    def write(membership: str, **limits: str) -> None:
        (tmp_path / "membership").write_text(membership)
        for name, text in limits.items():
            path = tmp_path / PLACES[name]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

    return write


def test_the_default_is_what_affinity_and_control_groups_grant(four_cores):
    assert threads.cores() == 4
    four_cores("0::/pod/job\n", of_job="max 100000\n")
    assert threads.cores() == 4
    four_cores("0::/pod/job\n", of_pod="250000 100000\n")
    assert threads.cores() == 2
    four_cores("0::/elsewhere\n", of_root="50000 100000\n")  # in a container the path may be the host's
    assert threads.cores() == 1


def test_the_quota_of_version_1_counts_too(four_cores):
    four_cores("3:cpuset:/\n1:cpu,cpuacct:/job\n", quota="-1", period="100000")
    assert threads.cores() == 4
    four_cores("1:cpu,cpuacct:/job\n", quota="300000")
    assert threads.cores() == 3


def test_the_variable_wins_and_torchrun_shares_the_cores(four_cores, monkeypatch):
    assert threads.threads() == 4
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    assert threads.threads() == 1
    monkeypatch.setenv("SIGHTLINE_THREADS", "2")
    assert threads.threads() == 2
    for wrong in ("", "0", "-1", "two", "1.5"):
        monkeypatch.setenv("SIGHTLINE_THREADS", wrong)
        with pytest.raises(UserError, match=rf"SIGHTLINE_THREADS={wrong}: set a whole number above 0"):
            threads.threads()


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, str(threads.cores())),
        ({"OMP_NUM_THREADS": "1"}, "1"),
        ({"SIGHTLINE_THREADS": "1"}, "1"),
        ({"SIGHTLINE_THREADS": "1", "OMP_NUM_THREADS": "2"}, "1"),
    ],
)
def test_a_command_computes_with_the_number_and_a_program_that_imports_us_does_not(variables, expected, tmp_path):
    assert run(tmp_path / "stages/command.py", variables).stdout.strip() == expected
    if variables == {"SIGHTLINE_THREADS": "1"}:
        assert run(tmp_path / "program.py", variables).stdout.strip() == str(threads.cores())


def test_a_wrong_number_is_one_line(tmp_path):
    done = run(tmp_path / "stages/command.py", {"SIGHTLINE_THREADS": "many"})
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert done.stderr.startswith("command.py: error: SIGHTLINE_THREADS=many: set a whole number above 0")


def run(script: Path, variables: dict[str, str]) -> subprocess.CompletedProcess:
    """A script that imports the command line, and then prints the threads of torch."""
    script.parent.mkdir(exist_ok=True)
    script.write_text(PRINTS)
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"} | variables
    return subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True, check=False)


def with_threads(world: Path, command: str, folder: Path) -> list[dict[str, str]]:
    """Hashes of the outputs with one and two threads."""
    hashes = []
    for number in ("1", "2"):
        place = copy_world(world, folder / number)
        program, *arguments = command_line(command)
        environment = os.environ | {"SIGHTLINE_THREADS": number, "DVC_ROOT": str(place)}
        line = [sys.executable, ROOT / program, *arguments]
        subprocess.run(line, cwd=place, env=environment, capture_output=True, check=True)
        hashes.append(outputs(place))
    return hashes


@pytest.mark.parametrize("command", ["normalize", "pack_views"])
def test_what_is_only_read_and_resized_keeps_its_bytes(command, world, tmp_path):
    one, two = with_threads(world, command, tmp_path)
    assert one == two


@pytest.mark.slow
@pytest.mark.parametrize("command", ["embed", "clip_grids"])
def test_small_embeddings_and_grids_keep_their_bytes(command, world, tmp_path):
    one, two = with_threads(world, command, tmp_path)
    assert one == two


@pytest.mark.slow
@pytest.mark.parametrize("command", ["train_autoencoder", "train_fusion", "train_segmentation"])
def test_trainings_record_the_number_of_threads(command, world, tmp_path):
    with_threads(world, command, tmp_path)
    for number in (1, 2):
        assert json.loads((tmp_path / f"{number}/out/metrics/details.json").read_text())["threads"] == number
