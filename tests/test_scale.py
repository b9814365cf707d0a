"""The figures about growth: what a command costs, what is computed from rates, and how the data grow."""

import importlib
import re
import sys

import pandas as pd
import pytest
from closure import ROOT

from sightline.importers.demonstrations import ImportOptions
from sightline.importers.episodes import import_hdf5
from sightline.importers.lerobot import import_lerobot
from sightline.recording.split import DataParams, SplitParams
from sightline.validation.validation import validate_recording

RATES = {"decode": 0.01, "status": 1e-4, "add": 1e-3, "hash": 1.5e-4, "index": 400.0, "grid": 75794.5}
MAPPING = "import mmap; f = open('file'); m = mmap.mmap(f.fileno(), 0, access=1); sum(m[::4096])"
WAIT = "import time; time.sleep(0.5)"
HOLDING = "x = b'x' * (40 * 2**20)"


@pytest.fixture
def load(monkeypatch):
    """Import a module of the benchmarks by its name."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module


def test_the_memory_of_a_command_is_that_of_all_its_processes_without_mapped_files(load, tmp_path):
    (tmp_path / "file").write_bytes(bytes(60 * 2**20))
    child = f"import subprocess, sys; {HOLDING}; subprocess.run([sys.executable, '-c', {f'{HOLDING}; {WAIT}'!r}])"
    mapped, held, both = (
        load("costs").measured([sys.executable, "-c", f"{code}; {WAIT}"], tmp_path)["anonymous_mib"]
        for code in (MAPPING, HOLDING, child)
    )
    assert mapped < 30
    assert 40 < held < 70
    assert 80 < both < 110


def test_the_limits_are_sorted_and_computed_from_the_rates(load):
    rows = load("scale").limits_table(RATES).splitlines()[2:]
    counts = [float(re.match(r"\| ([\d.]+) million", row)[1]) for row in rows]
    assert counts == sorted(counts)
    assert counts[0] == 6  # 600 s of looking at files, 0.1 ms each
    assert "dvc status" in rows[0]
    assert 40 in counts  # 16 GB of 400 bytes


def test_the_generated_recording_is_sound(load, tmp_path):
    load("generated").write_recording(tmp_path / "recording", 32)
    data = DataParams(split=SplitParams(val=0.25, test=0.25))
    found = validate_recording(tmp_path / "recording", tmp_path / "index", data, processes=1)
    assert [found["frames"][part]["episodes"] for part in ("train", "val", "test")] == [4, 2, 2]


@pytest.mark.parametrize(("write", "read"), [("write_aloha", import_hdf5), ("write_lerobot", import_lerobot)])
def test_generated_demonstrations_are_imported_whole(load, tmp_path, write, read):
    read(load("generated").__dict__[write](tmp_path / "source", 8), tmp_path / "recording", ImportOptions(processes=1))
    frames = pd.read_parquet(tmp_path / "recording/frames.parquet")
    assert frames["episode"].tolist() == [0] * 4 + [1] * 4
    assert len(list((tmp_path / "recording/rgb").glob("*/*.*"))) == 8
