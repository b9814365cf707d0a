"""The report: what the figures mean, in words first, on a page that needs nothing else."""

import json
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from closure import ROOT
from conftest import default_params, only_error_line, recording_folder
from PIL import Image

from sightline.core.errors import UserError
from sightline.recording.frames import write_index
from sightline.report.__main__ import write_report
from sightline.report.project import read_pipeline, read_trainings
from sightline.report.verdicts import Score, compared, judge, words

HOSTILE = "</td></main><script>alert(1)</script>'\""
NUMBERS = {"nmse": 0.5, "l1_mean": 0.1}
FUSION = {
    **NUMBERS, "nmse_interval": [0.45, 0.55], "frames": 160, "part": "test",
    "baselines": {"mean": {"nmse": 1.0, "l1_mean": 0.2}, "linear": {"nmse": 0.6, "l1_mean": 0.3}},
    "use": {"shuffled_views": 0.001, "shuffled_joints": 0.9}, HOSTILE: 1,
}  # fmt: skip
SEGMENTATION = {
    "dice_mean": 0.8, "dice_mean_interval": [0.7, 0.85], "baselines": {"mean_mask": {"dice_mean": 0.75}},
    "classes": {"background": {"dice": 0.9}, HOSTILE: {"dice": 0.7}, "ball": {"dice": None}},
}  # fmt: skip
DEPTH = {
    "codes": {"autoencoder": {"rmse_mm": 20.0}, "dct": {"rmse_mm": 24.0}, "mean_image": {"rmse_mm": 120.0}},
    "embedding": {
        "retrieval": {"autoencoder": {"recall_at_1": 0.725}, "dct": {"recall_at_1": 0.719}},
        "probe": {"object_position": {"autoencoder": {"r2": -0.1}, "dct": {"r2": -0.2}}},
    },
}


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
        if tag not in ("meta", "img", "path", "rect"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in ("path", "rect"):
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


# --- verdicts


def test_a_model_is_judged_beside_the_best_baseline_with_the_interval_that_is_stored():
    ((measure, given),) = compared(FUSION).items()
    verdict = judge("The policy", measure, given)
    assert verdict.result == "better"
    assert verdict.text.startswith("The policy beats a linear map of the joints by 17%, 95 % interval 8% to 25% (")
    worse = judge("It", measure, [Score("model", 0.7, (0.65, 0.75)), Score("linear", 0.6)])
    assert worse.result == "worse"
    assert "is worse than a linear map of the joints by 17%, 95 % interval -25% to -8%" in worse.text


def test_an_interval_that_holds_the_baseline_proves_nothing():
    verdict = judge("The segmentation", *compared(SEGMENTATION).popitem())
    assert verdict.result == "undecided"
    assert (
        "may be no better than the most frequent mask: 5 points better, 95 % interval -5 to 10 points" in verdict.text
    )


def test_without_an_interval_that_is_said_and_little_counts_as_nothing():
    measured = compared(DEPTH)
    assert measured["rmse_mm"][0] == Score("autoencoder", 20.0, None, True)
    verdict = judge("The autoencoder", "rmse_mm", measured["rmse_mm"])
    assert verdict.text.startswith("The autoencoder beats a cosine transform by 17% (")
    assert verdict.text.endswith("20 mm against 24 mm). No interval is stored.")
    retrieval, objects = (judge("It", measure, measured[measure]) for measure in ("retrieval", "object_position"))
    assert retrieval.text.startswith("It is no better than a cosine transform: 1 points better (finding another frame")
    assert objects.result == "no better"
    assert objects.text.startswith(
        "It is of no use, and neither are simple ones (telling where the object is (R²) -0.1"
    )
    single = FUSION | {"nmse_interval": [0.5, 0.5]}  # of a single episode
    assert judge("It", *compared(single).popitem()).text.endswith("No interval is stored.")


def test_rollouts_are_judged_beside_other_drivers_but_not_the_expert():
    rates = {"expert": 1.0, "hold": 0.0, "linear": 0.2}
    drivers = {name: {"success_rate": rate, "success_rate_interval": [0.0, rate]} for name, rate in rates.items()}
    figures = {"success_rate": 0.6, "success_rate_interval": [0.3, 0.6], "baselines": drivers}
    ((measure, given),) = compared(figures).items()
    assert [score.name for score in given] == ["model", "expert", "hold", "linear"]
    text = judge("In rollouts, the policy", measure, given).text
    start = "In rollouts, the policy beats a linear map of the joints by 40 points, 95 % interval 10 to 40 points"
    assert text.startswith(start)
    none = figures | {"success_rate": 0.2, "success_rate_interval": [0.1, 0.4]}
    assert judge("It", *compared(none).popitem()).text.startswith(
        "It is no better than a linear map of the joints: it has the same"
    )
    assert compared({"frames": 3}) == {}


def test_keys_have_words():
    assert words("joints_only") == "joints alone"
    assert words("some_other_key") == "some other key"


# --- the page


def small_project(root: Path, change: str = "", epochs: int = 3) -> Path:
    """A project with its pipeline, a recording, and what a few stages have measured."""
    text = default_params()
    for line in filter(None, change.split(";")):
        name, value = line.split("=")
        text, count = re.subn(rf"^  {name}:.*\n(?:  - .*\n)*", f"  {name}: {value}\n", text, flags=re.MULTILINE)
        assert count == 1
    (root / "demo").mkdir(parents=True)
    (root / "params.yaml").write_text(text)
    for file in ("dvc.yaml", "demo/dvc.yaml"):
        (root / file).write_text((ROOT / file).read_text())
    recording_folder(root / "data/demo", ("left_wrist", "global"))
    (root / "data/index").mkdir()
    frames = pd.read_parquet(root / "data/demo/frames.parquet").assign(split=["train"] * 4 + ["test"] * 2)
    write_index(root / "data/index/frames.parquet", frames)
    for stage, figures in (("evaluate", DEPTH), ("evaluate_fusion", FUSION), ("evaluate_segmentation", SEGMENTATION)):
        for part in read_pipeline(root)[0]:
            if part.stage == stage:
                part.folder.mkdir(parents=True)
                (part.folder / "evaluation_results.json").write_text(json.dumps(figures))
                (part.folder / "metrics.json").write_text("{}")
                Image.fromarray(np.zeros((40, 60, 3), np.uint8)).save(part.folder / "actions.png")
            elif part.stage == {"evaluate": "train_autoencoder"}.get(stage, stage.replace("evaluate", "train")):
                part.folder.mkdir(parents=True)
                curves = {"epoch": range(epochs), "train_loss": np.ones(epochs), "val_loss": np.full(epochs, 0.5)}
                pd.DataFrame(curves).to_csv(part.folder / "curves.csv", index=False)
    film = [Image.fromarray(np.full((20, 30), 90 * i, np.uint8)) for i in range(3)]
    (evaluated,) = [p for p in read_pipeline(root)[0] if p.path.name == "joints_only" and p.stage == "evaluate_fusion"]
    film[0].save(evaluated.folder / "episodes.gif", save_all=True, append_images=film[1:], duration=80)
    steps = {"step": [1, 2, 3], "model": [0.1, 0.2, 0.3], "hold": [0.2, 0.4, 0.6]}
    pd.DataFrame(steps).to_csv(evaluated.folder / "error_by_step.csv", index=False)
    return root


def written(root: Path) -> str:
    write_report(root, root / "report.html", [])
    return (root / "report.html").read_text()


def charts_of(text: str) -> list[dict]:
    return json.loads(re.search(r"const charts = (\[.*\]), dark", text)[1])


def test_the_page_tells_the_story_in_words_first_and_needs_nothing_else(tmp_path):
    text = written(small_project(tmp_path))
    without_script = re.sub(r'<script type="module">.*?</script>', "", text, flags=re.DOTALL)
    page = Page(without_script)
    assert not page.open
    assert "script" not in page.tags
    assert HOSTILE not in without_script
    assert all(address.startswith(("data:image/webp;base64,", "#")) for address in page.addresses)
    headings = re.findall(r"<h2>(.*?)</h2>", without_script)
    assert headings == [
        "Verdicts", "What the robot sees", "Policy", "Segmentation", "Depth", "The pipeline", "Not here", "All figures",
    ]  # fmt: skip
    said = re.findall(r"<li class=\"[\w-]+\"><b>(.*?)</b><span>(.*?)</span>", text)
    assert ("Better", "The policy joints alone beats a linear map of the joints by 17%, 95 % interval 8% to 25% "
            "(error of the actions (NMSE) 0.5 against 0.6, 95 % interval 0.45 to 0.55).") in said  # fmt: skip
    captions = {text for text in page.texts if "global" in text or "depth" in text}
    assert {"left wrist", "global", "global, outlined: cup"} & {*page.texts} == {"left wrist", "global",
                                                                                "global, outlined: cup"}  # fmt: skip
    assert any(re.fullmatch(r"depth, 500 \(blue\) to 1500 mm \(yellow\); red: no reading", text) for text in captions)
    assert "6 frames at 10 per second" in without_script
    assert "not under git" in without_script
    expected = ("Error of the actions (NMSE): lower is better", "Learning curve", "Each class",
                "Error by step of the chunk: joints alone")  # fmt: skip
    assert {*expected} <= {spec["description"] for spec in charts_of(text)}


def test_a_film_stays_one(tmp_path):
    import base64
    import io

    text = written(small_project(tmp_path))
    address = re.search(r'alt="Rollouts: joints alone" src="data:image/webp;base64,(.*?)"', text)[1]
    with Image.open(io.BytesIO(base64.b64decode(address))) as film:
        assert film.n_frames == 3
        film.load()
        assert film.info["duration"] == 80


def test_charts_stand_in_for_models_once_and_baselines_once(tmp_path):
    (policy,) = [s for s in charts_of(written(small_project(tmp_path))) if "(NMSE)" in s["description"]]
    (rows,) = policy["datasets"].values()
    kinds = [(row["name"], row["kind"], row["low"]) for row in rows]
    assert kinds == sorted(kinds, key=lambda row: row[1] != "model")
    assert ("joints alone", "model", 0.45) in kinds
    assert ("a linear map of the joints", "baseline", None) in kinds


def test_the_same_files_give_the_same_bytes(tmp_path):
    small_project(tmp_path)
    assert written(tmp_path) == written(tmp_path)


def test_a_clone_without_outputs_gets_a_page_that_names_what_is_missing(tmp_path):
    small_project(tmp_path)
    shutil.rmtree(tmp_path / "metrics")
    shutil.rmtree(tmp_path / "data")
    command = [sys.executable, "-m", "sightline.report", "--root", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert f"{tmp_path}/metrics/report.html: 0 parts" in done.stdout
    assert "left out: metrics/evaluate/depth is not here; `dvc repro` makes it, `dvc pull " in done.stdout
    text = (tmp_path / "metrics/report.html").read_text()
    assert "Nothing was evaluated here yet." in text
    assert "The recording data/demo or its index is not here." in text
    assert "<code>metrics/evaluate/depth</code>" in text


def test_a_list_that_is_empty_leaves_nothing_missing(tmp_path):
    parts, graph = read_pipeline(small_project(tmp_path, "depth=[]"))
    assert "train_autoencoder" not in {part.stage for part in parts}
    assert ("train_fusion", "evaluate_fusion") in graph["edges"]
    assert not any("train_autoencoder" in edge for edge in graph["edges"])
    column = {stage: i for i, stages in enumerate(graph["columns"]) for stage in stages}
    assert all(column[needed] < column[stage] for needed, stage in graph["edges"])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("metrics.json", "[1]", "metrics.json: expected an object .*, got list"),
        ("metrics.json", "{", "metrics.json: cannot be read as JSON"),
        ("curves.csv", "epoch,loss\n1,2,3\n1,2\n3,4,5,6,7\n", "curves.csv: cannot be read as CSV"),
    ],
)
def test_broken_metrics_are_named_in_one_line(tmp_path, name, content, message):
    (small_project(tmp_path) / "metrics/evaluate/depth" / name).write_text(content)
    with pytest.raises(UserError, match=message) as error:
        written(tmp_path)
    assert "\n" not in str(error.value)


def test_a_pipeline_that_dvc_cannot_read_is_named(tmp_path):
    root = small_project(tmp_path)
    (root / "dvc.yaml").write_text("stages: {a: {cmd: 'echo ${nothing}'}}")
    with pytest.raises(UserError, match=r"DVC cannot read its pipelines .*nothing"):
        read_pipeline(root)


def test_trainings_of_this_machine_have_their_duration(tmp_path):
    small_project(tmp_path)
    run = {"metrics": "metrics/train_autoencoder/depth", "epochs": 3, "seconds": 120.0, "machine": "x86_64, 2 cores"}
    (tmp_path / "runs/train_autoencoder/a").mkdir(parents=True)
    (tmp_path / "runs/train_autoencoder/a/run.json").write_text(json.dumps(run))
    text = written(tmp_path)
    assert "Trainings on this machine took 2 minutes." in text
    assert "x86_64, 2 cores" in text


def test_curves_of_experiments_lie_over_those_that_are_here(tmp_path):
    small_project(tmp_path)
    for command in (
        "git init -q .", f"{sys.executable} -m dvc init -q", "git add -A",
        "git -c user.name=t -c user.email=t@t commit -qm first", "git tag faster",
    ):  # fmt: skip
        subprocess.run(command.split(), cwd=tmp_path, check=True)
    curves = tmp_path / "metrics/train_autoencoder/depth/curves.csv"
    curves.write_text("epoch,train_loss,val_loss\n0,9,9\n")
    write_report(tmp_path, tmp_path / "report.html", ["faster"])
    *_, chart = [s for s in charts_of((tmp_path / "report.html").read_text()) if s["description"] == "Learning curve"]
    (rows,) = chart["datasets"].values()
    assert {(row["run"], row["x"], row["value"]) for row in rows if row["line"] == "validation loss"} == {
        ("here", 0, 9), ("faster", 0, 0.5), ("faster", 1, 0.5), ("faster", 2, 0.5),
    }  # fmt: skip
    assert "with changes that are not committed" in (tmp_path / "report.html").read_text()
    command = [sys.executable, "-m", "sightline.report", "--root", str(tmp_path), "--exp", "slower"]
    line = only_error_line(subprocess.run(command, capture_output=True, text=True, check=False))
    assert "experiment slower: cannot be read" in line


def test_of_several_logs_of_a_training_the_latest_counts(tmp_path):
    for i, seconds in enumerate((30, 10, 20)):
        path = tmp_path / f"runs/train_fusion/{'cab'[i]}/run.json"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps({"metrics": "metrics/train_fusion", "seconds": seconds}))
        os.utime(path, (i, i))
    assert read_trainings(tmp_path) == {"metrics/train_fusion": {"seconds": 20}}
