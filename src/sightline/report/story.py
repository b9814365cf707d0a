"""The chapters of the report: what each part of the pipeline measured, in verdicts, charts, pictures and tables."""

import re
from itertools import groupby
from pathlib import Path
from typing import Any

import pandas as pd

from sightline.report import charts
from sightline.report.project import Part, read_csv
from sightline.report.verdicts import MEASURES, Score, Verdict, judge, judge_embedding, judge_grids, scores, words

CHAPTERS = {  # title -> which stages it has, what its model is called; a stage is in the first that fits
    "Policy": (r"fusion|rollout|pack_views", "The policy"),
    "Segmentation": (r"segment", "The segmentation"),
    "Features of images": (r"clip|grids", "The grids"),
    "Depth": (r"autoencoder|evaluate|encoder|embed|normalize", "The autoencoder"),
    "Recording": (r"", "The recording"),
}
JOINTS_ALONE = "joints_only"
Experiments = dict[str, dict[Path, pd.DataFrame]]


def chapters(parts: list[Part], experiments: Experiments) -> list[dict[str, Any]]:
    """Each chapter with its ``title``, ``verdicts``, ``charts``, ``pictures`` and what is ``missing``."""
    told = []
    for title, (_, noun) in CHAPTERS.items():
        own = [
            part
            for part in parts
            if next(t for t, (stages, _) in CHAPTERS.items() if re.search(stages, part.stage)) == title
        ]
        here = [part for part in own if part.folder.is_dir()]
        verdicts, compared = _compare(noun, here)
        pictures = {
            f"{words(path.stem)}: {_label(part, own)}".removesuffix(": "): charts.picture(path)
            for part in here
            for path in [*part.files("png"), *part.files("gif")]
        }
        told.append({
            "title": title, "verdicts": verdicts, "pictures": pictures, "missing": [p for p in own if p not in here],
            "charts": compared + [spec for part in here for spec in _charts(part, _label(part, own), experiments)],
        })  # fmt: skip
    return told


def _label(part: Part, among: list[Part]) -> str:
    """The name of an instance, without what all of the chapter share: nine, or clip/global."""
    targets = {other.path.parts[2] for other in among if len(other.path.parts) > 2}
    return "/".join(part.path.parts[3 if len(targets) == 1 else 2 :])


def _compare(noun: str, parts: list[Part]) -> tuple[list[Verdict], list[charts.Spec]]:
    """Verdicts on all that was evaluated, and a chart for each measure of each target, of models and baselines."""
    verdicts, rows = [], []
    for part in parts:
        figures, label = part.figures(), _label(part, parts)
        of_rollouts = "In rollouts, the policy" if part.stage == "rollout" else noun
        design = words(label) if label.startswith(JOINTS_ALONE) else label.replace("_", " ")
        subject = f"{of_rollouts} “{design}”" if label else of_rollouts
        measure, given = scores(figures)
        if given:
            sibling = part.folder.parent / JOINTS_ALONE
            if part.folder.name != JOINTS_ALONE and sibling.is_dir():
                alone = scores(Part(part.stage, part.path.parent / JOINTS_ALONE, part.root).figures())[1]
                given += [Score(JOINTS_ALONE, alone[0].value)] if alone else []
            verdicts.append(judge(subject, measure, given))
            rows += [((measure, part.path.parts[2]), s, design) for s in given if s.name != JOINTS_ALONE]
        verdicts += judge_embedding(subject, figures.get("embedding", {}))
        verdicts += filter(None, [judge_grids(subject, figures)])
    specs = []
    for (measure, _), of in groupby(sorted(rows, key=lambda row: row[0]), key=lambda row: row[0]):
        named = {(s.is_model, design if s.is_model and design else words(s.name)): s for _, s, design in of}
        shown = [
            Score(name, s.value, s.interval, own) for (own, name), s in sorted(named.items(), key=lambda n: not n[0][0])
        ]
        noun_, unit, higher = MEASURES[measure]
        axis = f"{noun_}{',' + unit if unit else ''}: {'higher' if higher else 'lower'} is better"
        specs.append(charts.bars("Model and baselines", axis, shown))
    return verdicts, specs


def _charts(part: Part, label: str, experiments: Experiments) -> list[charts.Spec]:
    """What one instance has: curves over epochs or steps, values of classes, what its inputs are worth."""
    specs = []
    of = f": {label}" if label else ""
    for path in part.files("csv"):
        table = read_csv(path)
        if path.stem == "curves":
            runs = {"here": table} | {name: of[part.path] for name, of in experiments.items() if part.path in of}
            specs += _curves(f"{words(part.stage)}{of}", runs)
        elif table[table.columns[0]].dtype.kind in "if":
            x, *ys = [name for name in table.columns if name not in ("share", "mean_confidence")]
            specs.append(charts.lines(f"{words(path.stem)}{of}", words(x), "value", _long(table, x, ys)))
    figures = part.figures()
    for key, axis in (
        ("use", "added error when this input is replaced"),
        ("dice_lost", "Dice lost without this input"),
    ):
        if figures.get(key):
            used = [Score(words(name), value) for name, value in figures[key].items()]
            specs.append(charts.bars(f"What it uses{of}", axis, used))
    if classes := {name: values.get("dice") for name, values in figures.get("classes", {}).items()}:
        given = [Score(name, dice) for name, dice in classes.items() if dice is not None]
        specs.append(charts.bars(f"Each class{of}", "Dice: higher is better", given))
    return specs


def _curves(title: str, runs: dict[str, pd.DataFrame]) -> list[charts.Spec]:
    table = pd.concat(
        [
            _long(t, "epoch", [n for n in ("train_loss", "val_loss") if n in t]).assign(run=name)
            for name, t in runs.items()
        ]
    )
    return [charts.lines(title, "epoch", "loss", table if len(runs) > 1 else table.drop(columns="run"))]


def _long(table: pd.DataFrame, x: str, ys: list[str]) -> pd.DataFrame:
    long = table.melt(x, ys, "line", "value").dropna().rename(columns={x: "x"})
    return long.assign(line=long["line"].map(words))
