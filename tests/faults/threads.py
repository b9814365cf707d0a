"""How far the figures of a training move with the number of threads: ``python tests/faults/threads.py``."""

import csv
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kill import outputs
from world import ROOT, command_line, copy_world, make_world

TRAININGS = ("train_autoencoder", "train_fusion", "train_segmentation")
HEAD = """| training | one thread, twice | one and two threads |
|---|---:|---:|
"""


def rows(world: Path) -> str:
    """A row of the table for each training: the largest relative difference of its metrics, in two comparisons."""
    return "".join(_row(command, world) for command in TRAININGS)


def _row(command: str, world: Path) -> str:
    with tempfile.TemporaryDirectory() as folder:
        runs = {name: copy_world(world, Path(folder) / name) for name in ("first", "again", "two")}
        for name, place in runs.items():
            program, *arguments = command_line(command)
            threads = {"SIGHTLINE_THREADS": "2" if name == "two" else "1", "DVC_ROOT": str(place)}
            line = [sys.executable, ROOT / program, *arguments]
            subprocess.run(line, cwd=place, env=os.environ | threads, capture_output=True, check=True)
        again, two = (_compare(runs["first"], runs[name]) for name in ("again", "two"))
    return f"| {command} | {again} | {two} |\n"


def _compare(one: Path, other: Path) -> str:
    weights = [[sha for name, sha in outputs(run).items() if "metrics" not in name] for run in (one, other)]
    pairs = [(a, b) for a, b in zip(_figures(one), _figures(other), strict=True) if a != b]
    if not pairs and weights[0] == weights[1]:
        return "the same bytes"
    most = max((abs(a - b) / max(abs(a), abs(b)) for a, b in pairs), default=0.0)
    return f"{most:.1g}" if pairs else "0 in six digits; other weights"


def _figures(world: Path) -> list[float]:
    """Every number in details.json and curves.csv."""
    with open(world / "out/metrics/curves.csv", encoding="utf-8") as file:
        curves = [float(value) for row in csv.DictReader(file) for value in row.values()]
    figures = json.loads((world / "out/metrics/details.json").read_text())
    del figures["threads"]
    return [*_leaves(figures), *curves]


def _leaves(value: Any) -> Iterator[float]:
    if isinstance(value, dict | list):
        for child in value.values() if isinstance(value, dict) else value:
            yield from _leaves(child)
    elif isinstance(value, int | float):
        yield value


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as root:
        print(HEAD + rows(make_world(Path(root) / "world")), end="")
