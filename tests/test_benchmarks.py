"""The benchmarks of speed: what a row tells, that each of them runs, and that the other ways do the same work."""

import importlib
import json
import re
import sys

import numpy as np
import pytest
import torch
from closure import ROOT
from pretended_gpu import pretended_gpu


@pytest.fixture
def load(monkeypatch):
    """Import a module of the benchmarks by its name."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module


def test_ratios_are_taken_within_a_round(load):
    row = load("measuring").Row("w", "ms", [2.0, 4.0, 10.0], [4.0, 16.0, 30.0], "p", [1.0, 1.0, 9.0], "b")
    assert row.ratio == 3
    assert row.share == 0.5
    line = load("measuring").table([row]).splitlines()[-1]
    assert line == "| w | 4 ms | p: 16 ms | 3 | b: 1 ms | 50% |"


def test_the_ways_take_turns(load):
    calls: list[str] = []
    seconds = load("measuring").in_turn({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 2)
    assert "".join(calls) == "ababab"  # the first two warm up
    assert {name: len(values) for name, values in seconds.items()} == {"a": 2, "b": 2}


def test_a_run_puts_its_table_between_the_marks_and_names_what_is_furthest_from_its_bound(load, tmp_path, capsys):
    (tmp_path / "docs").mkdir()
    kind = "gpu" if torch.cuda.is_available() else "cpu"
    begin, end = (f"<!-- benchmarks {kind}: {mark} -->" for mark in ("begin", "end"))
    (tmp_path / "docs/benchmarks.md").write_text(f"Before.\n{begin}\nold\n{end}\nAfter.\n")
    load("bench").main(["--quick", "--only", "prototypes", "normalize", "--write", str(tmp_path)])
    page = (tmp_path / "docs/benchmarks.md").read_text()
    assert page.startswith("Before.\n")
    assert page.endswith("-->\nAfter.\n")
    assert "old" not in page
    found = json.loads((tmp_path / f"benchmarks/{kind}.json").read_text())
    shares = {row["work"]: row["share"] for row in found["rows"]}
    assert re.findall(r"^\| (.*?) \| [\d.e+-]+ ms", page, re.MULTILINE) == list(shares)
    assert re.findall(r"^- \*\*(.*)\*\*", page, re.MULTILINE) == sorted(shares, key=shares.get)
    assert all(cost > 0 for row in found["rows"] for key in ("ours", "peer", "bound") for cost in row[key])
    assert found["machine"]["cores"] >= 1
    kept = [row for row in found["rows"] if row["benchmark"] == "normalize"]
    load("bench").main(["--quick", "--only", "prototypes", "--write", str(tmp_path)])
    again = json.loads((tmp_path / f"benchmarks/{kind}.json").read_text())
    assert [row for row in again["rows"] if row["benchmark"] == "normalize"] == kept
    assert len(again["rows"]) == len(found["rows"])
    assert capsys.readouterr().out == ""


def test_generated_hearts_have_every_class_and_are_the_same_again(load):
    phantom = load("phantom")
    wide, contracted = phantom.patient(np.random.default_rng(3)).values()
    assert wide.image.shape == wide.label.shape == contracted.image.shape
    assert np.unique(wide.label).tolist() == [0, 1, 2, 3]
    assert (wide.label == 3).sum() > (contracted.label == 3).sum() > 0
    assert (phantom.patient(np.random.default_rng(3))["frame01"].image == wide.image).all()
    assert len({phantom.patient(np.random.default_rng(seed))["frame01"].image.shape for seed in range(3)}) > 1
    assert phantom.middle(wide.label).shape[1:] == (128, 128)


def test_a_generated_atrium_is_not_told_by_its_grey_values_alone(load):
    phantom = load("phantom")
    image, label, spacing = phantom.atrium(np.random.default_rng(1002))
    assert (phantom.atrium(np.random.default_rng(1002)).image == image).all()
    assert image.shape == label.shape
    assert spacing == (1.25, 1.25, 1.25)
    low, high = np.percentile(image[label == 1], [5, 95])
    alike = (image > low) & (image < high) & (label == 0)
    assert alike.sum() > 0.2 * label.sum()


@pytest.mark.slow
def test_every_benchmark_runs(load, capsys):
    load("bench").main(["--quick"])
    works = re.findall(r"^\| (.*?) \| [\d.e+-]+ (?:ms|s|MiB) \|", capsys.readouterr().out, re.MULTILINE)
    rendering = sum(work.startswith("render a frame") for work in works)  # only where MuJoCo has OpenGL
    assert len(works) - rendering == len(set(works)) + 1 - rendering == 22  # the extraction is compared twice


def test_the_other_way_of_reading_grids_reads_the_same(load, tmp_path):
    ids, grids = np.array([3, 5, 9]), np.random.default_rng(0).normal(size=(3, 4, 8)).astype(np.float16)
    peer = load("peers.gzip_grids")
    peer.write(tmp_path / "g.hdf5", ids, grids)
    assert (peer.read(tmp_path / "g.hdf5", ids[[2, 0]]) == grids[[2, 0]]).all()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU, which would be measured")
def test_without_a_gpu_one_line_says_that_nothing_is_measured(load, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["gpu.py"])
    load("gpu").main()
    assert capsys.readouterr().out == "make gpu: this machine has no GPU that torch can use; nothing was measured\n"


@pytest.mark.slow
def test_what_is_measured_on_a_gpu_runs_on_a_pretended_one(load, tmp_path):
    steps, items = load("gpu_steps"), load("gpu")
    room = steps.prepared(tmp_path / "room", frames=64)
    with pretended_gpu():
        for name, train in steps.trainings(room).items():
            train(room / name, 2)
            assert (room / f"{name}.safetensors").is_file()
        figures = list(items.agreement(room))
    assert len(figures) == 6
    assert all(value < 0.1 for _, value, _ in figures)
    for folder in ("docs", "benchmarks"):
        (tmp_path / folder).mkdir()
    found = {"agreement": {"ended": "done", "figures": figures}}
    items.write(tmp_path, {"machine": {"gpu": "pretended"}, "items": found})
    assert (tmp_path / "docs/gpu.md").read_text().count("| agreement |") == 6


def test_the_table_of_probes_has_simple_codes_once_parts_and_gains_with_their_intervals(load, tmp_path):
    columns = ("joints", "gripper_position", "object_position", "goal_position", "contact")
    for variant, seed, r2 in (("long", 0, 0.6), ("long", 1, 0.7), ("supervised", 0, 0.9)):
        of = {"r2": r2, "r2_interval": [r2 - 0.1, r2 + 0.1], "knn_r2": 0.5}
        gain = {"over": "pca", "r2_gain": r2 - 0.5, "r2_gain_interval": [r2 - 0.6, r2 - 0.4]}
        codes = {"autoencoder": {"rmse_mm": 20.0 + seed, "mae_mm": 6.0}, "pca": {"rmse_mm": 30.0, "mae_mm": 9.0}}
        embedding = {
            "probe": {column: {"autoencoder": of, "pca": of | {"r2": 0.5}} for column in columns},
            "parts": {column: {"patches": of, "scene": of} for column in columns},
            "gain": {column: {"autoencoder": gain} for column in columns},
        }
        if variant == "supervised":
            codes, embedding = {}, {"probe": {column: {"supervised": of} for column in columns}}
        (tmp_path / f"{variant}/seed{seed}").mkdir(parents=True)
        result = {"codes": codes, "embedding": embedding}
        (tmp_path / f"{variant}/seed{seed}/evaluation_results.json").write_text(json.dumps(result))
    lines = load("depth_probes").table(tmp_path).splitlines()
    assert sum(line.startswith("| pca |") for line in lines) == 1
    (long,) = (line for line in lines if line.startswith("| **long**, 2 seed(s)"))
    assert "| 20.5 (20.0 to 21.0) | 6.0 (6.0 to 6.0) | 0.650 (0.600 to 0.700) |" in long
    assert sum(line.startswith(("| long: patches", "| long: scene")) for line in lines) == 2
    (ceiling,) = (line for line in lines if line.startswith("| **supervised**"))
    assert "|  |  | 0.900 |" in ceiling
    assert "| long, 1 | joints | pca | +0.200 (+0.100 to +0.300) |" in lines
    assert len(lines) == 2 + 1 + 3 + 1 + 3 + 10
