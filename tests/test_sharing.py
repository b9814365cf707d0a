"""A team of clones: what is pushed, pulled, run again, caught and shown, through real remotes and real stages."""

import getpass
import hashlib
import importlib.metadata
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from copy import copy
from pathlib import Path
from typing import IO

import numpy as np
import pandas as pd
import pytest
from closure import ROOT
from conftest import depth_folder
from dvc.utils.hydra import apply_overrides
from pages import block
from test_definition import unread_parameters
from test_pipeline import Clone

from sightline.core.params import parse_yaml

SMALLER = {"stages.images": "[depth,rgb/left_wrist,rgb/right_wrist,rgb/global]", "stages.designs": "[joints_only]",
           "stages.masks": "[]", "stages.fusion_with.features": "[grids/efficientnet/global]",
           "stages.grids.names": "[efficientnet]", "evaluate.baselines": "[mean_image]"}  # fmt: skip
GRIDS, EMBEDDINGS = "data/grids/efficientnet/global/000000-000001.hdf5", "data/embeddings/depth.hdf5"
SHARED = [
    EMBEDDINGS, GRIDS, "data/grids/efficientnet/global/shards.json",
    "metrics/clip_grids/efficientnet/global/details.json", "metrics/clip_grids/efficientnet/global/metrics.json",
    "metrics/embed/depth/details.json", "metrics/embed/depth/metrics.json",
]  # fmt: skip
FUSION = [
    f"{stage}_fusion{rest}" for rest in ("@actions-joints_only", "_with@actions-joints_only-grids/efficientnet/global")
    for stage in ("train", "evaluate")
]  # fmt: skip
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

    def start(self, command: tuple[str, ...], log: IO[str]) -> subprocess.Popen:
        """Start DVC in a process group of its own."""
        environment = self.environment()
        return subprocess.Popen(
            ["dvc", *command], cwd=self.root, env=environment, stdout=log, stderr=log, start_new_session=True
        )


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


@pytest.mark.slow
@pytest.mark.parametrize("where", ["workspace", "temp", "worktree"])
def test_an_experiment_with_one_stage_on_another_recording_is_recorded(member, tmp_path, where):
    """Also where no output of the other stages is: metrics of stages that did not run must not be asked for."""
    recording, count = tmp_path / "recording", 16
    depth_folder(recording / "depth", count)
    steps = np.tile(np.arange(4), 4)
    table = {"frame_id": range(count), "episode": np.arange(4).repeat(4), "step": steps, "time_s": steps / 10}
    pd.DataFrame(table).to_parquet(recording / "frames.parquet")
    depth = {"unit_mm": 1.0, "invalid": [0], "height_range": [500, 1500]}
    (recording / "recording.json").write_text(json.dumps({"fps": 10, "cameras": [], "joints": [], "depth": depth}))
    place = copy(member)
    if where == "worktree":
        place.root = tmp_path / "worktree"
        member.run("git", "worktree", "add", "-q", str(place.root))
    changes = {
        "data.root": recording,
        "stages.images": "[depth]",
        "stages.grids.cameras": "[]",
        "stages.demonstrations": "[]",
        "stages.pack.views": "[]",
    }
    options = [word for name, value in changes.items() for word in ("-S", f"{name}={value}")]
    place.run("dvc", "exp", "run", *(["--temp"] if where == "temp" else []), *options, "normalize@depth")
    (name,) = place.run("dvc", "exp", "list", "--name-only").stdout.split()
    shown = json.loads(place.run("dvc", "exp", "show", "--json").stdout)
    (revision,) = (e["revs"][0] for commit in shown for e in commit["experiments"] or [])
    assert revision["name"] == name
    assert revision["data"]["metrics"]["metrics/normalize/depth/metrics.json"]["data"]["images"] == count


@pytest.mark.slow
def test_an_experiment_of_a_teammate_pulls_direct_inputs_only(member):
    ran = member.ran("exp", "run", "--pull", "--allow-missing", "-S", "fusion.lr=2e-3")
    assert [stage for stage in ran if stage in FUSION] == FUSION
    assert {*ran} <= {*FUSION, "rollout@actions-joints_only"}
    folders = {"/".join(name.split("/")[:2]) for name in member.data()}
    made = {f"{folder}{rest}" for folder in ("models/fusion", "metrics/train_fusion", "metrics/evaluate_fusion")
            for rest in ("", "_with")}  # fmt: skip
    assert folders == {"data/fusion", "data/grids", "metrics/rollout", *made}


def _stored(owner: Owner, path: str, cache: Path) -> Path:
    """The file of ``cache`` that holds a file of the owner's workspace."""
    md5 = hashlib.md5((owner.root / path).read_bytes()).hexdigest()
    return cache / "files/md5" / md5[:2] / md5[2:]


def _damage(path: Path) -> None:
    """Change bytes in place, which root can do although the file is read-only."""
    path.chmod(0o644)
    with open(path, "r+b") as file:
        file.seek(3000)
        file.write(b"damage")
    path.chmod(0o444)


def test_a_file_damaged_in_the_remote_is_refused_and_comes_again_once_pushed_again(owner, member):
    stored = _stored(owner, EMBEDDINGS, owner.root / "../sightline-storage")
    _damage(stored)
    result = member.run("dvc", "pull", "embed", ok=False)
    assert "Checkout failed" in result.stderr
    assert EMBEDDINGS in result.stderr
    assert EMBEDDINGS not in member.data()
    owner.run("dvc", "push", "embed")
    member.run("dvc", "pull", "embed", ok=False)  # DVC takes a read-only file of a folder for whole
    stored.chmod(0o644)
    member.run("dvc", "pull", "embed", ok=False)
    assert not stored.exists(), "what can be written is hashed, and deleted where it is damaged"
    owner.run("dvc", "push", "embed")
    member.run("dvc", "pull", "embed")
    assert (member.root / EMBEDDINGS).read_bytes() == (owner.root / EMBEDDINGS).read_bytes()


def test_a_file_damaged_in_the_cache_is_found_named_and_fetched_again(owner, member):
    member.run("dvc", "pull", "clip_grids", "embed")
    verify = (sys.executable, "tools/verify_cache.py")
    assert member.run(*verify).stdout == "8 files in the cache, all whole\n"
    whole = (owner.root / GRIDS).read_bytes()
    _damage(_stored(owner, GRIDS, member.root / ".dvc/cache"))
    assert (member.root / GRIDS).read_bytes() != whole, "the cache is linked into the workspace"
    member.run("dvc", "pull", "--force", "clip_grids")
    assert (member.root / GRIDS).read_bytes() != whole, "DVC does not look: that is why we do"
    message = member.run(*verify, ok=False).stderr
    assert re.fullmatch(
        r"verify_cache: error: .*1 file.* removed; now: dvc pull --force data/grids/efficientnet/global\n", message
    )
    member.run("dvc", "pull", "--force", "data/grids/efficientnet/global")
    assert (member.root / GRIDS).read_bytes() == whole


@pytest.mark.slow
def test_what_somebody_has_run_and_shared_nobody_runs_again(owner, member):
    """The run cache is in the remote, with the outputs of what the owner had in the workspace when sharing."""
    owner.run("dvc", "exp", "run", "-S", "evaluate_fusion.seed=3")
    owner.run("dvc", "push", "--run-cache")
    owner.run("git", "checkout", "-q", ".")
    owner.run("dvc", "checkout")
    result = member.run("dvc", "exp", "run", "--pull", "--allow-missing", "-S", "evaluate_fusion.seed=3")
    assert "Running stage" not in result.stdout
    assert re.search(r"Stage 'evaluate_fusion@\S+' is cached - skipping run", result.stdout)


def test_a_lock_that_does_not_belong_to_the_commit_fails_in_ci(member):
    check = ("dvc", "repro", "--dry", "--allow-missing")
    member.run(*check)
    apply_overrides(member.root / "params.yaml", ["fusion.lr=0.5"])
    member.run(*check, ok=False)
    member.run("git", "checkout", "-q", ".")
    (member.root / "src/sightline/clip/tokens.py").write_text("# changed\n")
    member.run(*check, ok=False)


def test_metrics_of_two_commits_are_compared_without_data(owner, member):
    text = (ROOT / ".github/workflows/ci.yml").read_text()
    command = re.search(r"sed -n .* \| xargs dvc fetch", text)[0]
    member.run("bash", "-o", "pipefail", "-c", command)
    compared = json.loads(member.run("dvc", "metrics", "diff", "--all", "--json", "HEAD", "HEAD").stdout)
    assert compared["metrics/embed/depth/metrics.json"]["images"] == {"old": 8, "new": 8, "diff": 0}
    assert member.data() == []


@pytest.fixture
def s3_server(monkeypatch):
    """URL of moto's S3 server with an empty bucket ``team``."""
    boto3, server = pytest.importorskip("boto3"), pytest.importorskip("moto.server")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    running = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    url = "http://{}:{}".format(*running.get_host_and_port())
    boto3.client("s3", endpoint_url=url, region_name="us-east-1").create_bucket(Bucket="team")
    yield url
    running.stop()


@pytest.fixture
def ssh_server(tmp_path):
    """Port, key file and user of an OpenSSH server."""
    sshd = shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin")
    if not sshd:
        pytest.skip("sshd is not installed (Debian: openssh-server)")
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # sshd demands it of root
    for name in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / name], check=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = {"Port": port, "ListenAddress": "127.0.0.1", "HostKey": tmp_path / "host", "PidFile": "none",
               "AuthorizedKeysFile": tmp_path / "user.pub", "StrictModes": "no", "UsePAM": "no",
               "PermitRootLogin": "yes", "Subsystem": "sftp internal-sftp"}  # fmt: skip
    (tmp_path / "sshd_config").write_text("".join(f"{key} {value}\n" for key, value in options.items()))
    with subprocess.Popen([sshd, "-D", "-e", "-f", tmp_path / "sshd_config"], stderr=subprocess.PIPE) as server:
        _wait(lambda: socket.socket().connect_ex(("127.0.0.1", port)) == 0)
        yield {"USER@HOST:22": f"{getpass.getuser()}@127.0.0.1:{port}", "~/.ssh/id_ed25519": str(tmp_path / "user")}
        server.terminate()


def _wait(until: Callable[[], bool], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not until():
        assert time.monotonic() < end, "it does not happen"
        time.sleep(0.05)


def _follow_the_docs(clone: Member, language: str, values: dict[str, str]) -> None:
    """Run the lines of docs/sharing.md that set up a kind of remote, but for the installation."""
    installation, *lines = {"s3": block("s3"), "ssh": block("ssh")}[language].splitlines()
    package, version = installation.removeprefix("pip install ").split("==")
    assert importlib.metadata.version(package) == version
    assert len(lines) == 2
    for line in lines:
        for name, value in values.items():
            line = line.replace(name, value)
        clone.run(*line.split())


def _round_trip(owner: Owner, member: Member, language: str, values: dict[str, str]) -> None:
    for clone in (owner, member):
        _follow_the_docs(clone, language, values)
    try:
        owner.run("dvc", "push", "--run-cache", "clip_grids", "embed")
    finally:
        owner.run("git", "checkout", "-q", ".dvc/config")
        (owner.root / ".dvc/config.local").unlink(missing_ok=True)
    member.run("dvc", "pull", "--run-cache", "clip_grids", "embed")
    assert member.data() == SHARED
    assert all((member.root / name).read_bytes() == (owner.root / name).read_bytes() for name in SHARED)
    runs = [path.name for path in (owner.root / ".dvc/cache/runs").glob("*/*/*")]
    assert sorted(path.name for path in (member.root / ".dvc/cache/runs").glob("*/*/*")) == sorted(runs)


def test_a_team_shares_over_s3(owner, member, s3_server):
    _round_trip(owner, member, "s3", {"BUCKET": "team", "https://HOST:9000": s3_server})


def test_a_team_shares_over_ssh(owner, member, ssh_server, tmp_path):
    _round_trip(owner, member, "ssh", ssh_server | {"/srv/sightline": str(tmp_path / "storage")})


@pytest.mark.slow
def test_a_queue_is_worked_off_by_two_and_shown(member):
    member.run("dvc", "remote", "modify", "--local", "storage", "url", str(member.root.parent / "sightline-storage"))
    member.run("dvc", "pull", "train_fusion", "train_fusion_with", "pack_views", "clip_grids", "validate")
    member.run("dvc", "exp", "run", "--allow-missing", "--queue", "-S", "evaluate_fusion.seed=1,2")
    member.run("dvc", "queue", "start", "-j", "2")
    _wait(lambda: member.run("dvc", "queue", "status").stdout.count("Success") == 2)
    table = member.run(sys.executable, "tools/leaderboard.py").stdout.splitlines()
    shown = ["evaluate_fusion.seed", "depth", "rmse", "mm", "↓", "joints_only", "nmse", "↓",
             "joints_only/grids/efficientnet/global", "nmse", "↓", "joints_only", "success", "↑"]  # fmt: skip
    assert table[0].split() == ["experiment", *shown]
    assert sorted(line.split()[1] for line in table[1:]) == ["0", "0", "1", "2"]
    assert max(map(len, table)) <= 145
    assert member.run("git", "status", "--porcelain").stdout == ""


def _interrupt(member: Member, *command: str) -> str:
    """Run until the training has saved an epoch, kill it, and return what it said."""
    checkpoints = member.root / ".scratch/train_fusion"
    log = member.root.parent / "log"
    before = {path: path.stat().st_mtime_ns for path in checkpoints.glob("*/last.ckpt")}
    with open(log, "w") as file:
        process = member.start(command, file)

    def saved() -> bool:
        assert process.poll() is None, log.read_text()
        return any(before.get(path) != path.stat().st_mtime_ns for path in checkpoints.glob("*/last.ckpt"))

    _wait(saved)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return log.read_text()


@pytest.mark.slow
def test_an_interrupted_experiment_goes_on_in_the_workspace_and_in_temp(member):
    member.run("dvc", "pull", "pack_views")
    change = ("-S", "fusion.epochs=300", "-S", "fusion.patience=300")
    options = ("--allow-missing", "--single-item", "train_fusion@actions-joints_only")
    assert "continuing an interrupted run" not in _interrupt(member, "exp", "run", *change, *options)
    member.run("git", "checkout", "-q", ".")
    assert "continuing an interrupted run" in _interrupt(member, "exp", "run", "--temp", *change, *options)
    result = member.run("dvc", "exp", "run", *change, *options)
    assert "continuing an interrupted run" in result.stderr
    assert not list((member.root / ".scratch/train_fusion").glob("*/last.ckpt"))


@pytest.mark.parametrize("change", ["fusion.lrr=1", "grids.clip.gird=7", "data.spilt.seed=1"])
def test_an_experiment_with_a_mistyped_name_is_refused_before_anything_runs(member, change):
    result = member.run("dvc", "exp", "run", "--allow-missing", "-S", change, ok=False)
    assert f"Could not override '{change.split('=')[0]}'" in result.stderr
    assert result.stdout == ""
    assert member.run("git", "status", "--porcelain").stdout == ""
    assert member.run("dvc", "exp", "list").stdout == ""


def test_a_name_forced_into_the_parameters_is_found(member):
    """With ``+`` DVC records an experiment although no stage reads the name; the definition's test tells."""
    assert member.ran("exp", "run", "--allow-missing", "-S", "+stagse.images=1") == []
    params = parse_yaml((member.root / "params.yaml").read_text(), "params.yaml")
    assert unread_parameters(params) == ["stagse.images"]


def test_a_name_forced_into_the_lists_of_stages_is_refused(member):
    result = member.run("dvc", "exp", "run", "--pull", "--allow-missing", "-S", "+stages.imagse=1", ok=False)
    assert "stages.imagse: unknown key; known here: images, depth, " in result.stderr


def test_the_check_of_a_shorter_list_fetches_no_images(member):
    shorter = ("-S", "stages.grids.cameras=[]", "-S", "stages.fusion_with.features=[]")
    assert member.ran("exp", "run", "--pull", "--allow-missing", *shorter) == ["check"]
    fetched = ["data/demo/frames.parquet", "data/demo/recording.json", "metrics/check/details.json"]
    assert member.data() == fetched
