"""A sample of the kill matrix: killed commands that are run again end with the bytes of a run that was left alone."""

import os
import resource
import signal
import subprocess
import sys

import pytest
from kill import PATIENCE, wait_for
from world import ROOT

from sightline.depth.weights import extract_encoder
from sightline.fusion import load_policy
from sightline.fusion.policy import save_policy
from sightline.segmentation import load_model
from sightline.segmentation.model import save_model

SAVES = {
    "encoder": lambda world, path: extract_encoder(world / "autoencoder.safetensors", path),
    "fusion": lambda world, path: save_policy(path, load_policy(world / "fusion.safetensors")),
    "segmentation": lambda world, path: save_model(path, load_model(world / "segmentation.safetensors")),
}


def test_a_few_kills_lose_nothing(world):
    command = [sys.executable, ROOT / "tests/faults/kill.py", "--world", world, "--kills", "3", "--seed", "1"]
    stages = ["--only", "normalize"]
    done = subprocess.run([*command, *stages], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert [line.split(" | ")[1] for line in done.stdout.splitlines()] == ["3 / 3"]


@pytest.mark.parametrize("becomes", ["", "except KeyboardInterrupt as error: raise ImportError from error"])
def test_ctrl_c_while_libraries_are_loaded_is_one_line(becomes, world, tmp_path):
    """Also where a library makes another error of it."""
    (tmp_path / "h5py.py").write_text(
        f"import os, signal\ntry: os.kill(os.getpid(), signal.SIGINT)\n{becomes or 'finally: pass'}\n"
    )
    command = [sys.executable, ROOT / "stages/normalize.py", world / "recording/depth", tmp_path / "depth.hdf5"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT / "src")])}
    process = subprocess.Popen(command, env=environment, stderr=-1, text=True, preexec_fn=_heed_ctrl_c)
    _, errors = process.communicate(timeout=60)
    assert errors == "normalize.py: interrupted while loading, before it began; run it again\n"
    assert process.returncode == -signal.SIGINT
    assert not (tmp_path / "depth.hdf5").exists()


def _heed_ctrl_c() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it, and so would this


@pytest.mark.parametrize("kind", SAVES)
def test_what_is_left_of_weights_that_were_being_written_goes_with_the_next(kind, world, tmp_path):
    path = tmp_path / "model.safetensors"
    process = os.fork()
    if not process:
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # killed in the middle of writing
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))
        SAVES[kind](world, path)
        os._exit(0)
    assert wait_for(process, PATIENCE) == -signal.SIGXFSZ
    (half,) = tmp_path.iterdir()
    assert half.stat().st_size == 30_000
    SAVES[kind](world, path)
    assert list(tmp_path.iterdir()) == [path]
    assert path.stat().st_mode & 0o044 == 0o044  # a cache may be shared
