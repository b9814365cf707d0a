"""A sample of the kill matrix: killed commands that are run again end with the bytes of a run that was left alone."""

import subprocess
import sys

from world import ROOT


def test_a_few_kills_lose_nothing(world):
    command = [sys.executable, ROOT / "tests/faults/kill.py", "--world", world, "--kills", "3", "--seed", "1"]
    stages = ["--only", "normalize"]
    done = subprocess.run([*command, *stages], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert [line.split(" | ")[1] for line in done.stdout.splitlines()] == ["3 / 3"]
