"""The report: everything of a metrics folder on a page that needs nothing else, and cards of models."""

import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from closure import ROOT
from conftest import only_error_line
from PIL import Image
from safetensors.numpy import save_file

from sightline.core.params import parse_yaml
from sightline.report.__main__ import join_pages
from sightline.report.cards import write_card
from sightline.report.figures import comparison, direction, format_cell, tables
from sightline.report.overview import overview, read_parameters, settings
from sightline.report.part import write_part
from sightline.report.pipeline import draw_graph, read_stages

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
    folder = tmp_path / "metrics/evaluate_fusion/actions/nine"
    folder.mkdir(parents=True)
    (folder / "metrics.json").write_text(json.dumps(FIGURES))
    (folder / "curves.csv").write_text("epoch,lr,train_loss,val_loss\n0,1e-3,3.0,4.0\n1,1e-4,1.0,2.0\n")
    (folder / "per_class.csv").write_text(f'class,dice\n"{HOSTILE.replace(chr(34), "")}",0.5\n')
    Image.fromarray(np.zeros((4, 6, 3), np.uint8)).save(folder / "actions.png")
    return folder


def written(tmp_path: Path, folders: list[Path]) -> str:
    write_part(tmp_path / "page.html", f"Fusion {HOSTILE}", folders)
    return (tmp_path / "page.html").read_text()


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
    text = written(tmp_path, [metrics])
    row = re.search(r"<tr><th>hold</th>(.*?)</tr>", text)[1]
    assert row == '<td class="best">0.4</td><td>0.3</td>'


def test_a_page_needs_nothing_else_and_escapes_what_data_name(tmp_path, metrics):
    page = Page(written(tmp_path, [metrics]))
    assert not page.open
    assert "script" not in page.tags
    assert any(HOSTILE in text for text in page.texts)
    assert page.tags.count("polyline") == 3  # lr; loss of training and validation
    assert page.addresses
    assert all(address.startswith(("data:image/png;base64,", "#")) for address in page.addresses)


def test_figures_of_several_files_tell_their_file(tmp_path, metrics):
    write_part(tmp_path / "one.html", "A part", [metrics])
    (metrics / "more.json").write_text('{"frames": 3}')
    write_part(tmp_path / "two.html", "A part", [metrics])
    one, two = ((tmp_path / name).read_text() for name in ("one.html", "two.html"))
    assert "more.json" in two
    assert "more.json" not in one


def test_the_same_metrics_give_the_same_bytes(tmp_path, metrics):
    assert written(tmp_path, [metrics]) == written(tmp_path, [metrics])


def test_random_weights_are_announced_once(tmp_path, metrics):
    assert 'class="banner"' not in written(tmp_path, [metrics])
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.json").write_text('{"random_weights": 1}')
    assert written(tmp_path, [tmp_path / "a", tmp_path / "b"]).count('class="banner"') == 1


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("metrics.json", "[1]", "metrics.json: expected an object of figures, got list"),
        ("metrics.json", "{", "metrics.json: cannot be read as JSON"),
        ("curves.csv", "epoch,loss\n1\n", "curves.csv: line 2 has 1 values, the header 2"),
    ],
)
def test_broken_metrics_are_named_in_one_line(tmp_path, stage, metrics, name, content, message):
    (metrics / name).write_text(content)
    line = only_error_line(stage("report_part", tmp_path / "page.html", metrics, "--title", "x"))
    assert message in line
    assert not (tmp_path / "page.html").exists()


# --- the whole report


def small_project(root: Path, change: str = "") -> Path:
    """A project's parameters, pipeline, recording.json and frame index."""
    text = (ROOT / "params.yaml").read_text()
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


def test_pages_are_joined_and_missing_ones_named(tmp_path, metrics):
    small_project(tmp_path)
    write_part(tmp_path / "metrics/report/fusion/actions/nine.html", "Fusion model: actions, nine", [metrics])
    count, missing = join_pages(tmp_path, tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    page = Page(text)
    assert not page.open
    assert count == 1
    assert "metrics/report/depth/depth.html" in missing
    assert "metrics/report/fusion/actions/nine.html" not in missing
    assert all(path in page.texts for path in missing)
    headings = re.findall(r"<h2>(.*?)</h2>", text)
    assert headings[:3] == ["Data", "Pipeline", "Fusion model: actions, nine"]
    assert headings[-2:] == ["Parameters", "Versions"]
    anchors = [address for address in page.addresses if address.startswith("#")]
    assert len(anchors) == len(headings)
    assert all(f'<section id="{anchor[1:]}">' in text for anchor in anchors)
    assert text.count("fusion.pretrained is null") == 1


def test_joining_is_a_command_that_fails_where_there_is_nothing(tmp_path, metrics):
    small_project(tmp_path)
    page = tmp_path / "metrics/report/fusion/actions/nine.html"
    write_part(page, "Fusion model", [metrics])
    command = [sys.executable, "-m", "sightline.report", "--root", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert f"{tmp_path}/metrics/report/report.html: 1 parts" in done.stdout
    page.unlink()
    line = only_error_line(subprocess.run(command, capture_output=True, text=True, check=False))
    assert "metrics/report: holds no page yet; make them with `dvc repro`" in line


def test_the_graph_has_every_stage_and_no_edge_that_others_imply():
    params = parse_yaml((ROOT / "params.yaml").read_text(), "params.yaml")
    stages = read_stages([ROOT / "dvc.yaml", ROOT / "demo/dvc.yaml"], params)
    text = draw_graph(stages)
    for stage in stages:
        assert f">{stage.name}<" in text or f">{stage.name} ×" in text  # noqa: RUF001
    assert ">train_fusion ×2<" in text  # noqa: RUF001
    small = [s for s in stages if s.name in ("normalize", "train_autoencoder", "extract_encoder", "embed")]
    assert draw_graph(small).count("marker-end") == 3  # not normalize -> embed
    stages = params["stages"] | {"depth": []}
    assert "train_autoencoder" not in draw_graph(read_stages([ROOT / "dvc.yaml"], params | {"stages": stages}))


# --- cards


@pytest.fixture
def index(tmp_path) -> Path:
    pq.write_table(pa.table({"episode": [0, 0, 7], "split": ["train", "train", "test"]}), tmp_path / "index.parquet")
    return tmp_path / "index.parquet"


def save_model(path: Path, kind: str, config: dict) -> Path:
    weights = {"weight": np.zeros((3, 4), np.float32), "batches": np.array(1)}
    save_file(weights, path, {kind: json.dumps(config)})
    return path


ENCODER = {
    "kind": "encoder", "network": {"input_channels": 1, "latent_dim": 64},
    "preprocessing": {"height_range": [100, 500], "invalid": [0], "unit_mm": 2.0},
}  # fmt: skip
POLICY = {
    "cameras": ["left", "right", "global"], "image_size": 84, "joint_names": ["a|b"], "actions": 2, "steps": 16,
    "stride": 3, "extras": {"depth": [64]},
}  # fmt: skip


def test_a_card_of_an_encoder_tells_units_and_ranges(tmp_path, metrics, index):
    model = save_model(tmp_path / "encoder.safetensors", "sightline", ENCODER)
    card = write_card(model, tmp_path / "encoder.card", [metrics], index)
    assert card == json.loads((tmp_path / "encoder.card.json").read_text())
    assert "counts 100 to 500 (200 to 1000 mm), [0] mean no reading" in card["inputs"][0]
    assert card["outputs"] == ["embeddings float32 [N, 64], no unit, not of unit length"]
    assert card["parameters"] == 12
    assert card["training_data"]["train"] == {"frames": 2, "episodes": [0]}
    assert "sightline.predict embed" in card["use"]


def test_a_card_of_a_policy_tells_its_limits(tmp_path, metrics, index):
    model = save_model(tmp_path / "nine.safetensors", "sightline_fusion", POLICY)
    card = write_card(model, tmp_path / "nine.card", [metrics, metrics], index)
    text = (tmp_path / "nine.card.md").read_text()
    assert "On held-out frames, hold is better: nmse 0.4 against 0.5." in card["limits"]
    assert not any("mean is better" in limit for limit in card["limits"])
    assert sum("hardly uses" in limit for limit in card["limits"]) == 1  # of the views
    assert "| nmse | 0.5 | 1 | 0.4 |" in text
    assert "a\\|b" in text
    assert "depth float32 \\[B, 64\\]" in text
    assert card["other_metrics"][metrics.as_posix()]["frames"] == 160


def test_a_file_of_another_kind_has_no_card(tmp_path, stage, metrics, index):
    model = save_model(tmp_path / "other.safetensors", "other", {})
    line = only_error_line(stage("model_card", model, tmp_path / "card", "--metrics", metrics, "--index", index))
    assert "other.safetensors: not a model of this project; its header has other" in line
    assert not list(tmp_path.glob("card*"))


def test_a_card_of_a_segmentation_names_its_classes(tmp_path, metrics, index):
    config = {"image_channels": 3, "classes": ["background", "ball"], "channels": [16, 32]}
    model = save_model(tmp_path / "s.safetensors", "sightline_segmentation", config)
    card = write_card(model, tmp_path / "s.card", [metrics], index)
    assert card["outputs"] == ["a class of each pixel: 0 background, 1 ball"]
    assert card["configuration"] == config
