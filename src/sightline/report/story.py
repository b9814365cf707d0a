"""The chapters of the report: what each part of the pipeline measured, in verdicts, charts, pictures and tables."""

import re
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
    """Each chapter with its ``title``, ``verdicts``, ``charts``, ``pictures`` by caption, and what is ``missing``."""
    told, left = [], parts
    for title, (stages, noun) in CHAPTERS.items():
        own = [part for part in left if re.search(stages, part.stage)]
        left = [part for part in left if part not in own]
        here = [part for part in own if part.folder.is_dir()]
        verdicts, specs = _compare(noun, here)
        pictures = {}
        for part in here:
            specs += _charts(part, _label(part, here), experiments)
            for path in [*part.files("png"), *part.files("gif")]:
                pictures[_of(words(path.stem), _label(part, here))] = charts.picture(path)
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
    verdicts, rows = [], []
    for part in parts:
        figures, label = part.figures(), _label(part, parts)
        subject = " ".join(filter(None, ["In rollouts, the policy" if part.stage == "rollout" else noun, label]))
        measure, given = scores(figures)
        if given:
            sibling = part.folder.parent / JOINTS_ALONE
            if part.folder.name != JOINTS_ALONE and sibling.is_dir():
                alone = scores(Part(part.stage, part.path.parent / JOINTS_ALONE, part.root).figures())[1]
                given += [Score(JOINTS_ALONE, alone[0].value)] if alone else []
            verdicts.append(judge(subject, measure, given))
            rows += [((measure, part.path.parts[2]), s, label) for s in given if s.name != JOINTS_ALONE]
        verdicts += judge_embedding(subject, figures.get("embedding", {}))
        verdicts += filter(None, [judge_grids(subject, figures)])
    specs = []
    for key in dict.fromkeys(key for key, _, _ in rows):
        shown: dict[str, Score] = {}  # models before baselines, which are the same for all
        for _, score, label in sorted((row for row in rows if row[0] == key), key=lambda row: not row[1].is_model):
            name = label if score.is_model and label else words(score.name)
            shown[name] = Score(name, score.value, score.interval, score.is_model)
        noun_, unit, higher = MEASURES[key[0]]
        title = f"{noun_[0].upper()}{noun_[1:]}: {'higher' if higher else 'lower'} is better"
        specs.append(charts.bars(title, unit.strip() or noun_.split("(")[-1].rstrip(")"), shown.values()))
    return verdicts, specs


def _charts(part: Part, label: str, experiments: Experiments) -> list[charts.Spec]:
    """What one instance has: curves over epochs or steps, values of classes, what its inputs are worth."""
    specs = []
    for path in part.files("csv"):
        table = read_csv(path)
        if path.stem == "curves" and {"epoch", "val_loss"} <= {*table.columns}:
            runs = {"here": table} | {name: of[part.path] for name, of in experiments.items() if part.path in of}
            specs.append(charts.lines(_of(words(path.stem), label), "epoch", "loss", _curves(runs)))
        elif table[table.columns[0]].dtype.kind in "if":
            x, *ys = (name for name in table.columns if name not in ("share", "mean_confidence"))
            y = "NMSE" if path.stem == "error_by_step" else ys[0]
            specs.append(charts.lines(_of(words(path.stem), label), x, y, _long(table, x, ys)))
    figures = part.figures()
    for key, axis in (("use", "added error without this input"), ("dice_lost", "Dice lost without this input")):
        if figures.get(key):
            used = [Score(words(name), value) for name, value in figures[key].items()]
            specs.append(charts.bars(_of("What it uses", label), axis, used))
    dice = {name: values.get("dice") for name, values in figures.get("classes", {}).items()}
    if given := [Score(name, value) for name, value in dice.items() if value is not None]:
        specs.append(charts.bars(_of("Each class", label), "Dice: higher is better", given))
    return specs


def _curves(runs: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """Losses of one run or several, as `charts.lines` takes them."""
    losses = [name for name in ("train_loss", "val_loss") if all(name in table for table in runs.values())]
    tables = [_long(table, "epoch", losses).assign(run=name) for name, table in runs.items()]
    return pd.concat(tables) if len(runs) > 1 else tables[0].drop(columns="run")


def _long(table: pd.DataFrame, x: str, ys: list[str]) -> pd.DataFrame:
    long = table.melt(x, ys, "line", "value").dropna().rename(columns={x: "x"})
    return long.assign(line=long["line"].map(words))
