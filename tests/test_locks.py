"""A file system that has no locks is no reason to stop, nor to say that another process holds one."""

import errno
import fcntl
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from conftest import only_error_line, photo_folder, write_grids

from sightline.core.cache import ArrayCache, digest
from sightline.core.errors import UserError
from sightline.core.files import claim, discard

SMALL = [f"--set=grids.{value}" for value in ("model=ViT-S-16", "image_size=32", "grid=2", "precision=fp32")]
REFUSING = """
#include <errno.h>
int flock(int file, int operation) { (void)file; (void)operation; errno = ENOLCK; return -1; }
"""


@pytest.fixture
def no_locks(monkeypatch):
    """This process's file system refuses locks, except those of HDF5."""

    def refuse(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    monkeypatch.setattr(fcntl, "lockf", refuse)


@pytest.fixture
def no_locks_for_commands(tmp_path, monkeypatch):
    """The commands that the test starts find no locks, HDF5 neither."""
    compiler = shutil.which("cc")
    if compiler is None or sys.platform != "linux":
        pytest.skip("needs a C compiler, and a loader that takes LD_PRELOAD")
    (tmp_path / "refuse.c").write_text(REFUSING)
    build = [compiler, "-shared", "-fPIC", "-o", tmp_path / "refuse.so", tmp_path / "refuse.c"]
    subprocess.run(build, check=True)
    monkeypatch.setenv("LD_PRELOAD", str(tmp_path / "refuse.so"))
    monkeypatch.delenv("HDF5_USE_FILE_LOCKING", raising=False)


def said_by(code: str) -> str:
    """What a Python program prints, and its error, if any."""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    return result.stdout + result.stderr


def test_grids_are_written_and_read_without_locks(no_locks_for_commands, tmp_path, stage, monkeypatch):
    photo_folder(tmp_path / "photos", range(4))
    made = stage("clip_grids", "photos", "g.hdf5", *SMALL)
    assert made.returncode == 0, made.stderr
    checked = stage("verify_clip_grids", "g.hdf5", "photos", *SMALL)
    assert checked.returncode == 0, checked.stderr
    monkeypatch.delenv("LD_PRELOAD")
    shutil.rmtree(tmp_path / ".scratch")
    assert stage("clip_grids", "photos", "with_locks.hdf5", *SMALL).returncode == 0
    assert (tmp_path / "g.hdf5").read_bytes() == (tmp_path / "with_locks.hdf5").read_bytes()


def test_locks_that_are_asked_for_in_vain_are_one_line(no_locks_for_commands, tmp_path, stage, monkeypatch):
    monkeypatch.setenv("HDF5_USE_FILE_LOCKING", "TRUE")
    photo_folder(tmp_path / "photos", range(2))
    line = only_error_line(stage("clip_grids", "photos", "g.hdf5", *SMALL))
    assert line.endswith(": its file system has no locks; set HDF5_USE_FILE_LOCKING=FALSE")
    assert not list(tmp_path.glob("*g.hdf5*"))
    write_grids(tmp_path / "other.hdf5", [1], np.zeros((1, 4, 6), np.float16))
    read = f"from sightline.grids.store import GridStore; GridStore({str(tmp_path / 'other.hdf5')!r})"
    assert said_by(read).endswith(
        "UserError: " + str(tmp_path / "other.hdf5: its file system has no locks; set HDF5_USE_FILE_LOCKING=FALSE\n")
    )


def test_a_file_is_opened_twice_without_locks(no_locks_for_commands, tmp_path):
    with h5py.File(tmp_path / "a.hdf5", "w") as file:
        file["x"] = [1, 2, 3]
    code = (
        "from pathlib import Path; from sightline.core.hdf5 import open_hdf5\n"
        f"one, two = (open_hdf5(Path({str(tmp_path / 'a.hdf5')!r})) for _ in range(2))\n"
        "print(one['x'][1], two['x'][2])"
    )
    assert said_by(code) == "2 3\n"


def test_without_locks_no_process_writes_over_the_results_of_another(no_locks, tmp_path, monkeypatch):
    vectors = np.arange(24, dtype=np.float32).reshape(6, 4)
    keys = [digest(row) for row in vectors]
    mine, other = ArrayCache("model", (4,)), ArrayCache("model", (4,))
    for turn in range(3):
        here = slice(turn * 2, turn * 2 + 1)
        mine.append(keys[here], vectors[here])
        with monkeypatch.context() as elsewhere:
            elsewhere.setattr(os, "getpid", lambda: 2**22 + 1)
            there = slice(turn * 2 + 1, turn * 2 + 2)
            other.append(keys[there], vectors[there])
    assert (mine.get(keys[::-1]) == vectors[::-1]).all()
    monkeypatch.undo()  # locks again, in the same folder
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    later = ArrayCache("model", (4,))
    later.append([digest(b"new")], vectors[:1])
    assert (later.get([keys[3], digest(b"new"), keys[0]]) == vectors[[3, 0, 0]]).all()


def test_a_folder_is_claimed_by_name_where_there_are_no_locks(no_locks, tmp_path):
    folder, host = tmp_path / "work", socket.gethostname()
    assert claim(folder) == folder
    assert claim(folder) == folder  # one's own
    assert (folder / "owner").read_text() == f"{os.getpid()} {host}"
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    for owner, words in (
        (f"{os.getppid()} {host}", rf"\({os.getppid()}, on {host}\)"),
        ("12 another-machine", r"\(12, on another-machine\)"),
        ("", r"\(it has just begun, on some machine\)"),
    ):
        (folder / "owner").write_text(owner)
        with pytest.raises(UserError, match=rf"work: another process is doing the same work {words}; wait for it, or "):
            claim(folder)
    (folder / "owner").write_text(f"{ended.pid} {host}")  # as a killed process leaves it
    claim(folder)
    assert (folder / "owner").read_text() == f"{os.getpid()} {host}"
    discard(folder)
    assert list(tmp_path.iterdir()) == []


def test_another_error_of_a_lock_is_not_taken_for_a_missing_one(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(fcntl, "flock", fail)
    monkeypatch.setattr(fcntl, "lockf", fail)
    with pytest.raises(OSError, match="Input/output"):
        claim(Path(tmp_path / "work"))
    with pytest.raises(OSError, match="Input/output"):
        ArrayCache("model", (1,)).append([digest(b"")], np.zeros((1, 1)))
