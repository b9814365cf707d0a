"""The chapters of the report: what each part of the pipeline measured, in verdicts, charts, pictures and tables."""

import re
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from sightline.report import charts
from sightline.report.project import Part, read
from sightline.report.verdicts import MEASURES, OTHERS, WORDS, Score, Verdict, compared, judge, judge_grids, words

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
    """Each chapter with its ``title``, ``verdicts``, ``charts``, ``pictures`` by caption, and what is ``missing``."""
    told, left = [], parts
    for title, (stages, noun) in CHAPTERS.items():
        own = [part for part in left if re.search(stages, part.stage)]
        left = [part for part in left if part not in own]
        here = [part for part in own if part.folder.is_dir()]
        verdicts, specs = _compare(noun, here)
        pictures = {}
        for part in here:
            label = _label(part, here)
            specs += _curves(part, label, experiments) + _shares(part.figures(), label)
            for path in [*part.files("png"), *part.files("gif")]:
                pictures[_of(words(path.stem), label)] = charts.picture(path)
        missing = [part for part in own if part not in here]
        told.append({"title": title, "verdicts": verdicts, "charts": specs, "pictures": pictures, "missing": missing})
    return told


def _of(title: str, label: str) -> str:
    return f"{title}: {label}" if label else title


def _label(part: Part, among: list[Part]) -> str:
    """The name of an instance in words, without what all of the chapter share: joints alone with clip/global."""
    targets = {other.path.parts[2] for other in among if len(other.path.parts) > 2}
    design, *more = part.path.parts[3 if len(targets) == 1 else 2 :] or ("",)
    if not part.stage.endswith("_with"):
        return "/".join([words(design), *more])
    return f"with {'/'.join([design, *more])}" if "segment" in part.stage else f"{words(design)} with {'/'.join(more)}"


def _compare(noun: str, parts: list[Part]) -> tuple[list[Verdict], list[charts.Spec]]:
    """Verdicts on all that was evaluated, and a chart for each measure of each target, of models and baselines."""
    verdicts, shown = [], defaultdict[tuple[str, str], dict[str, Score]](dict)
    for part in parts:
        figures, label = part.figures(), _label(part, parts)
        alone = Part(part.stage, part.path.parent / JOINTS_ALONE, part.root)
        beside = compared(alone.figures()) if alone != part else {}
        for measure, given in compared(figures).items():
            more = [Score(JOINTS_ALONE, score.value) for score in beside.get(measure, [])[:1]]
            subject = f"{OTHERS.get(measure, noun)} {label}".strip()
            verdicts.append(judge(subject, measure, given + more))
            named = {label if score.is_model and label else words(score.name): score for score in given}
            shown[measure, part.path.parts[2]] |= named
        verdicts += judge_grids(f"{noun} {label}".strip(), figures)
    specs = []
    for (measure, _), named in shown.items():
        what, unit, higher = MEASURES[measure]
        title = f"{what[0].upper()}{what[1:]}: {'higher' if higher else 'lower'} is better"
        in_order = sorted(named.items(), key=lambda item: not item[1].is_model)  # baselines are the same for all
        axis = unit.strip() or what.split("(")[-1].rstrip(")")
        specs.append(charts.bars(title, axis, [replace(score, name=name) for name, score in in_order]))
    return verdicts, specs


def _curves(part: Part, label: str, experiments: Experiments) -> list[charts.Spec]:
    """What one instance has over epochs, steps or bins, from its tables."""
    specs = []
    for path in part.files("csv"):
        table = read(path)
        x, *ys = (name for name in table.columns if name not in ("share", "mean_confidence"))
        runs, axis = {"here": table}, {"error_by_step": "NMSE", "curves": "loss"}.get(path.stem, ys[0])
        if path.stem == "curves":
            runs |= {name: of[part.path] for name, of in experiments.items() if part.path in of}
            ys = ["train_loss", "val_loss"]
        if table[x].dtype.kind in "if":
            tables = [
                table.melt(x, table.columns.intersection(ys), "line").assign(run=run) for run, table in runs.items()
            ]
            long = pd.concat(tables).dropna().rename(columns={x: "x"})
            specs.append(charts.lines(_of(words(path.stem), label), x, axis, long.replace({"line": WORDS})))
    return specs


def _shares(figures: dict[str, Any], label: str) -> list[charts.Spec]:
    """What the inputs of one instance are worth, and values of classes."""
    specs = []
    for key, axis in (("use", "added error without this input"), ("dice_lost", "Dice lost without this input")):
        if figures.get(key):
            used = [Score(words(name), value) for name, value in figures[key].items()]
            specs.append(charts.bars(_of("What it uses", label), axis, used))
    dice = {name: values.get("dice") for name, values in figures.get("classes", {}).items()}
    if given := [Score(name, value) for name, value in dice.items() if value is not None]:
        specs.append(charts.bars(_of("Each class", label), "Dice: higher is better", given))
    return specs
