"""The report: everything that stages measured, on a page that needs nothing else."""

import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from closure import ROOT
from conftest import default_params, only_error_line
from PIL import Image

from sightline.core.errors import UserError
from sightline.report.__main__ import metrics_files, write_report
from sightline.report.figures import tables
from sightline.report.overview import overview, read_parameters, settings
from sightline.report.page import page as whole_page
from sightline.report.parts import section_of
from sightline.training.comparison import comparison, direction, format_cell

HOSTILE = "</td></main><script>alert(1)</script>'\""
FIGURES = {
    "nmse": 0.5, "l1_mean": 0.1, "frames": 160, "part": "test", "interval": [0.25, 0.75],
    "baselines": {"mean": {"nmse": 1.0, "l1_mean": 0.2}, "hold": {"nmse": 0.4, "l1_mean": 0.3}},
    "classes": {HOSTILE: {"dice": 0.5}, "ball": {"dice": None}},
    "use": {"shuffled_views": 0.001, "shuffled_joints": 0.9},
}  # fmt: skip


class Page(HTMLParser):
    """Tags, texts and addresses of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []
        self.texts: list[str] = []
        self.addresses: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.addresses += [value for name, value in attributes if name in ("src", "href", "action", "data")]
        if tag not in ("meta", "img", "line", "path", "rect", "polyline"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in ("line", "path", "rect", "polyline"):
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


@pytest.fixture
def metrics(tmp_path) -> Path:
    folder = tmp_path / "metrics/evaluate_fusion/actions/stacked"
    folder.mkdir(parents=True)
    (folder / "metrics.json").write_text(json.dumps(FIGURES))
    (folder / "curves.csv").write_text("epoch,lr,train_loss,val_loss\n0,1e-3,3.0,4.0\n1,1e-4,1.0,2.0\n")
    (folder / "per_class.csv").write_text(f'class,dice\n"{HOSTILE.replace(chr(34), "")}",0.5\n')
    Image.fromarray(np.zeros((4, 6, 3), np.uint8)).save(folder / "actions.png")
    return folder


def written(folders: list[Path]) -> str:
    return whole_page("Report", [section_of(f"Fusion {HOSTILE}", folders)])


def test_a_model_stands_beside_its_baselines():
    compared = comparison(FIGURES)
    assert compared.rows == {"model": (0.5, 0.1), "mean": (1.0, 0.2), "hold": (0.4, 0.3)}
    codes = {"codes": {"autoencoder": {"psnr": 33.0}, "dct": {"psnr": 30.0}}, "frames": 3}
    assert list(comparison(codes).rows) == ["autoencoder", "dct"]
    assert comparison({"frames": 3, "val": {"mae": 1.0}}) is None


def test_every_figure_is_in_a_table():
    shown = {(table.title, name, cell) for table in tables(FIGURES) for name, row in table.rows.items() for cell in row}
    assert ("", "frames", 160) in shown
    assert ("", "interval", "0.25, 0.75") in shown
    assert ("use", "shuffled_joints", 0.9) in shown
    assert ("classes", "ball", None) in shown
    (numbered,) = tables({"l1": {"10": 1.0, "2": 2.0}})
    assert list(numbered.rows) == ["2", "10"]
    assert not any(name == "nmse" for title, name, _ in shown if title == "")  # it is in the comparison


def test_names_tell_which_way_is_better():
    assert [direction(name) for name in ("val.rmse_mm", "r2", "dice_mean", "frames")] == [-1, 1, 1, 0]
    assert [format_cell(value) for value in (0.123456, 12345, 12345.6, None, True, 2.5e-6)] == [
        "0.1235", "12,345", "12,346", "–", "yes", "2.5e-06",  # noqa: RUF001
    ]  # fmt: skip


def test_the_best_value_is_bold(tmp_path, metrics):
    text = written([metrics])
    row = re.search(r"<tr><th>hold</th>(.*?)</tr>", text)[1]
    assert row == '<td class="best">0.4</td><td>0.3</td>'


def test_a_page_needs_nothing_else_and_escapes_what_data_name(tmp_path, metrics):
    page = Page(written([metrics]))
    assert not page.open
    assert "script" not in page.tags
    assert any(HOSTILE in text for text in page.texts)
    assert page.tags.count("polyline") == 3  # lr; loss of training and validation
    assert page.addresses
    assert all(address.startswith(("data:image/png;base64,", "#")) for address in page.addresses)


def test_figures_tell_their_file(metrics):
    (metrics / "more.json").write_text('{"frames": 3}')
    text = written([metrics])
    assert "more.json" in text
    assert "metrics.json" in text


def test_the_same_metrics_give_the_same_bytes(tmp_path, metrics):
    assert written([metrics]) == written([metrics])


def test_random_weights_are_announced_once(tmp_path, metrics):
    assert 'class="banner"' not in written([metrics])
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.json").write_text('{"random_weights": 1}')
    assert written([tmp_path / "a", tmp_path / "b"]).count('class="banner"') == 1


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("metrics.json", "[1]", "metrics.json: expected an object of figures, got list"),
        ("metrics.json", "{", "metrics.json: cannot be read as JSON"),
        ("curves.csv", "epoch,loss\n1\n", "curves.csv: line 2 has 1 values, the header 2"),
    ],
)
def test_broken_metrics_are_named_in_one_line(metrics, name, content, message):
    (metrics / name).write_text(content)
    with pytest.raises(UserError, match=message) as error:
        section_of("Part", [metrics])
    assert "\n" not in str(error.value)


# --- the whole report


def small_project(root: Path, change: str = "") -> Path:
    """A project's parameters, pipeline, recording.json and frame index."""
    text = default_params()
    for line in filter(None, change.split(";")):
        name, value = line.split("=")
        text, count = re.subn(rf"^  {name}:.*\n(?:  - .*\n)*", f"  {name}: {value}\n", text, flags=re.MULTILINE)
        assert count == 1
    (root / "demo").mkdir(parents=True)
    (root / "params.yaml").write_text(text)
    for file in ("dvc.yaml", "demo/dvc.yaml"):
        (root / file).write_text((ROOT / file).read_text())
    info = {"fps": 10, "cameras": ["left_wrist"], "joints": ["a", "b"], "classes": ["background", HOSTILE]}
    (root / "data/demo").mkdir(parents=True)
    (root / "data/demo/recording.json").write_text(json.dumps(info))
    (root / "data/index").mkdir()
    frames = pa.table({"episode": [0, 0, 1, 2], "split": ["train", "train", "val", "test"]})
    pq.write_table(frames, root / "data/index/frames.parquet")
    return root


def data_of(root: Path) -> str:
    params = read_parameters(root / "params.yaml")
    parts = overview(params, root / "data/demo/recording.json", root / "data/index/frames.parquet")
    return "".join([parts, *settings(params)])


def test_the_data_are_summed_up_and_what_is_not_real_is_said(tmp_path):
    text = data_of(small_project(tmp_path))
    page = Page(text)
    assert f"0 background, 1 {HOSTILE}" in page.texts
    assert "<tr><th>train</th><td>1</td><td>2</td><td>0.2</td></tr>" in text
    assert "<tr><th>all</th><td>3</td><td>4</td><td>0.4</td></tr>" in text
    assert text.count('class="banner"') == 2  # random CLIP weights, fusion model from random weights
    assert "No depth" not in text
    assert np.__version__ in text


def test_what_a_recording_lacks_is_said(tmp_path):
    text = data_of(small_project(tmp_path, "demonstrations=[];depth=[];masks=[]"))
    assert "No depth: stages.depth does not name any. No masks: " in text
    assert "fusion.pretrained" not in text


def test_metrics_are_shown_and_missing_ones_named(tmp_path, metrics):
    small_project(tmp_path)
    count, missing = write_report(tmp_path, tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    page = Page(text)
    assert not page.open
    assert count == 1
    assert "metrics/evaluate/depth/metrics.json" in missing
    assert "metrics/evaluate_fusion/actions/stacked/metrics.json" not in missing
    assert all(path in page.texts for path in missing)
    headings = re.findall(r"<h2>(.*?)</h2>", text)
    assert headings == ["Data", "evaluate_fusion", "Not in this report", "Parameters", "Versions"]
    anchors = [address for address in page.addresses if address.startswith("#")]
    assert len(anchors) == len(headings)
    assert all(f'<section id="{anchor[1:]}">' in text for anchor in anchors)
    assert text.count("fusion.pretrained is null") == 1


def test_the_report_is_a_command_that_fails_where_there_is_nothing(tmp_path, metrics):
    small_project(tmp_path)
    command = [sys.executable, "-m", "sightline.report", "--root", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert f"{tmp_path}/metrics/report.html: 1 parts" in done.stdout
    shutil.rmtree(tmp_path / "metrics")
    line = only_error_line(subprocess.run(command, capture_output=True, text=True, check=False))
    assert "metrics: holds no metrics yet; make them with `dvc repro`" in line


def test_a_list_that_is_empty_makes_no_metrics(tmp_path):
    whole = list(metrics_files(small_project(tmp_path / "whole")))
    assert ("train_autoencoder", Path("metrics/train_autoencoder/depth/metrics.json")) in whole
    without = dict(metrics_files(small_project(tmp_path / "without", "depth=[]")))
    assert "train_autoencoder" not in without
    assert set(without) < {stage for stage, _ in whole}


def test_a_pipeline_that_dvc_cannot_read_is_named(tmp_path):
    root = small_project(tmp_path)
    (root / "dvc.yaml").write_text("stages: {a: {cmd: 'echo ${nothing}'}}")
    with pytest.raises(UserError, match=r"DVC cannot read its pipelines .*nothing"):
        list(metrics_files(root))
