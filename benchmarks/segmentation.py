"""Methods of semi-supervised segmentation on the same labelled groups: train each, measure on the test part, compare.

    python benchmarks/segmentation.py run RUNS --recording data/demo --index data/index \
        --methods supervised unimatch bcp --labelled 1 2 4 all --seeds 0 1 2 [--set segmentation.epochs=12 ...]
    python benchmarks/segmentation.py run RUNS ... --variant bcp_bank segmentation.method=bcp \
        segmentation.contrastive.weight=0.1 --variant bcp_grid segmentation.method=bcp grid --feature FILE
    python benchmarks/segmentation.py table RUNS [--name NAME] [--write docs/results.md] [--picture FILE.png]

Frames are a recording with its index, ``--images`` with ``--masks``, ``--arrays`` or ``--volumes``. ``--labelled``
counts groups (episodes, patients); a number with a point is a share of them. The labelled groups follow from the seed:
for one number of them and one seed, every method has the same. ``--variant`` names settings of its own; the words
``depth`` and ``grid`` among them give it that further input, which methods without a name of their own do not have.

RUNS keeps a folder for each run. One that is done is left as it is, one that was interrupted continues; several
commands may work on the same RUNS side by side. A run that was made with other settings is an error. Decoded images
stay in memory.
"""

import fcntl
import json
import os
import re
import statistics
import sys
import time
import warnings
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import style
from matplotlib.figure import Figure
from running import ROOT, put

from sightline.core.errors import UserError
from sightline.core.files import atomic_output, write_json
from sightline.core.params import Section, load_params
from sightline.recording.split import DataParams
from sightline.segmentation.evaluation import EvaluateSegmentationParams, evaluate_segmentation
from sightline.segmentation.frames import SegmentationFrames
from sightline.segmentation.inputs import open_frames
from sightline.segmentation.model import load_model
from sightline.segmentation.training import SegmentationParams, train_segmentation

FIGURES = {"dice_mean": "Dice, pooled", "dice_per_image_mean": "Dice per image", "hd95_mean": "HD95"}
BASELINES = ("mean_mask", "mean_colour")  # of those that an evaluation has
DECODED: dict[tuple[str, int], np.ndarray] = {}  # see `remembering`


class Params(Section):
    """What a run is made with."""

    seed: int = 0
    data: DataParams = DataParams()
    segmentation: SegmentationParams = SegmentationParams()
    evaluate_segmentation: EvaluateSegmentationParams = EvaluateSegmentationParams()


def work(args: Namespace) -> None:
    """Do, one after the other, what is neither done nor being done."""
    variants = {name: [f"segmentation.method={name}"] for name in args.methods or ()}
    variants |= {name: assignments for name, *assignments in args.variant or ()}
    if not variants:
        raise UserError("name --methods or a --variant")
    args.runs.mkdir(parents=True, exist_ok=True)
    os.environ["DVC_ROOT"] = str(args.runs.resolve())  # scratch state goes there, not into the project
    for seed in args.seeds:
        for labelled in args.labelled:
            for name, settings in variants.items():
                place = args.runs / f"{name}-{labelled}-seed{seed}"
                with locked(place / ".lock") as is_mine:
                    if is_mine:
                        run(args, place, name, labelled, seed, settings)


def run(args: Namespace, place: Path, name: str, labelled: str, seed: int, settings: list[str]) -> None:
    """Train and evaluate in the folder ``place``, where that is not done."""
    inputs = [word for word in settings if "=" not in word]
    if wrong := set(inputs) - {"depth", "grid"}:
        raise UserError(f"--variant {name}: {sorted(wrong)[0]}: expected section.key=value, depth or grid")
    key = "labeled_fraction" if "." in labelled else "labeled_groups"
    other = {"labeled_fraction", "labeled_groups"} - {key}
    amount = "null" if labelled == "all" else labelled
    params = load_params(Params, ROOT / "params.yaml", [
        f"seed={seed}", *(args.set or ()), *(word for word in settings if "=" in word),
        f"segmentation.{key}={amount}", f"segmentation.{other.pop()}=null",
    ])  # fmt: skip
    sources = {"recording": args.recording, "images": args.images, "arrays": args.arrays, "volumes": args.volumes}
    made_with = {"params": params.model_dump(mode="json"), "inputs": sorted(inputs),
                 "source": [str(path) for path in sources.values() if path]}  # fmt: skip
    result = place / "result.json"
    if result.exists():
        if json.loads(result.read_text(encoding="utf-8"))["made_with"] != made_with:
            raise UserError(
                f"{result}: was made with other settings; remove {place}, or name another folder or variant"
            )
        return
    print(f"{place.name}", file=sys.stderr)
    start, weights = time.perf_counter(), place / "model.safetensors"
    if not weights.exists():
        train_segmentation(frames_of(args, params, inputs), weights, place / "train", params.segmentation, params.seed)
        write_json(place / "seconds.json", round(time.perf_counter() - start, 1))
    config = load_model(weights).config
    frames = frames_of(args, params, inputs, config)
    figures = evaluate_segmentation(weights, frames, place / "evaluation", params.evaluate_segmentation)
    groups = len(np.unique(frames.group[frames.rows("train")]))
    write_json(result, {
        "variant": name, "labelled": labelled, "seed": seed, "made_with": made_with, "figures": figures,
        "labeled_groups": len(config.labeled_groups), "groups": groups,
        "seconds": json.loads((place / "seconds.json").read_text(encoding="utf-8")),
    })  # fmt: skip


def frames_of(args: Namespace, params: Params, inputs: list[str], config: Any = None) -> SegmentationFrames:
    """The frames that the arguments name, as the parameters or a model's ``config`` say."""
    for word, file in (("depth", args.depth), ("grid", args.feature)):
        if word in inputs and not file:
            raise UserError(f"a variant has {word} as an input; give --{'feature' if word == 'grid' else word}")
    frames = open_frames(
        config or params.segmentation, params.data.split, recording=args.recording, index=args.index,
        images=args.images, masks=args.masks, arrays=args.arrays, volumes=args.volumes,
        depth=args.depth if "depth" in inputs else None, features=[args.feature] if "grid" in inputs else [],
    )  # fmt: skip
    return replace(
        frames, read_image=remembering(frames.read_image, "image"), read_mask=remembering(frames.read_mask, "mask")
    )


def remembering(read: Callable[[int], np.ndarray], kind: str) -> Callable[[int], np.ndarray]:
    """``read``, which decodes a row but once in this process: all runs of one command have the same frames."""

    def remembered(row: int) -> np.ndarray:
        if (kind, row) not in DECODED:
            DECODED[kind, row] = read(row)
        return DECODED[kind, row]

    return remembered


@contextmanager
def locked(path: Path) -> Iterator[bool]:
    """Whether this process has ``path`` for itself; a process that ends, however it does, no longer has it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True


Results = dict[tuple[str, str], list[dict[str, Any]]]  # (labelled, variant) -> of each seed


def read_results(runs: Path) -> Results:
    """What is done in ``runs``: few labelled groups first, variants in the order of their names."""
    done = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(runs.glob("*-seed*/result.json"))]
    if not done:
        raise UserError(f"{runs}: no runs in it that are done; make some with the command run")
    results: Results = {}
    for result in sorted(done, key=lambda r: (r["labeled_groups"], r["variant"], r["seed"])):
        results.setdefault((result["labelled"], result["variant"]), []).append(result)
    return results


def table(results: Results) -> str:
    """Markdown: the mean over the seeds and, in brackets, the value of each."""
    columns = ("labelled groups", "method", *FIGURES.values(), "seeds", "minutes of training")
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for labelled in dict.fromkeys(key[0] for key in results):
        here = {variant: runs for (amount, variant), runs in results.items() if amount == labelled}
        some = next(iter(here.values()))
        shown = f"{some[0]['labeled_groups']} of {some[0]['groups']}"
        for name in BASELINES:
            judged = [result["figures"]["baselines"].get(name, {}) for result in some]
            lines.append(_row(shown, name, judged, some, ""))
        for variant, runs in here.items():
            minutes = f"{statistics.mean(result['seconds'] for result in runs) / 60:.1f}"
            lines.append(_row(shown, f"**{variant}**", [result["figures"] for result in runs], runs, minutes))
    return "\n".join(lines)


def _row(shown: str, name: str, figures: list[dict[str, Any]], runs: list[dict[str, Any]], minutes: str) -> str:
    seeds = ", ".join(str(result["seed"]) for result in runs)
    cells = [_cell([one.get(key) for one in figures], 1 if key == "hd95_mean" else 100) for key in FIGURES]
    return f"| {' | '.join((shown, name, *cells, seeds, minutes))} |"


def _cell(values: list[float | None], scale: float) -> str:
    numbers = [scale * value for value in values if value is not None]
    if len(numbers) < len(values) or not numbers:
        return ""
    return f"{statistics.mean(numbers):.1f} ({', '.join(f'{value:.1f}' for value in numbers)})"


def draw(path: Path, results: Results) -> None:
    """Dice against the share of the training groups that is labelled: the mean of the seeds, and each as a point."""
    with style.context("default"):
        figure = Figure(figsize=(7, 4.5), layout="constrained")
        axes = figure.subplots()
        for number, variant in enumerate(dict.fromkeys(sorted(key[1] for key in results))):
            mine = [runs for (_, name), runs in results.items() if name == variant]
            x = [100 * runs[0]["labeled_groups"] / runs[0]["groups"] for runs in mine]
            values = [[100 * result["figures"]["dice_mean"] for result in runs] for runs in mine]
            axes.plot(x, [statistics.mean(some) for some in values], color=f"C{number}", label=variant)
            for place, some in zip(x, values, strict=True):
                axes.plot([place] * len(some), some, ".", color=f"C{number}")
        axes.set(xscale="log", xlabel="labelled training groups, %", ylabel="mean Dice of the test part, pooled, %")
        ticks = sorted({100 * runs[0]["labeled_groups"] / runs[0]["groups"] for runs in results.values()})
        axes.set_xticks(ticks, [f"{tick:.3g}" for tick in ticks])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
        axes.legend()
        with atomic_output(path) as temporary:
            figure.savefig(temporary, format="png", dpi=100, metadata={"Software": None})


def _amount(text: str) -> str:
    if not re.fullmatch(r"all|[1-9]\d*|0?\.\d+|1\.0", text):
        raise ValueError
    return text


def main() -> None:
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    make = commands.add_parser("run", help="train and evaluate what is not done")
    make.add_argument("runs", type=Path)
    for name in ("recording", "index", "images", "masks", "arrays", "volumes", "depth", "feature"):
        make.add_argument(f"--{name}", type=Path, help="as of stages/train_segmentation.py")
    make.add_argument("--methods", nargs="+", metavar="METHOD", help="values of segmentation.method")
    make.add_argument("--variant", nargs="+", action="append", metavar="WORD", help="a name, and what it sets")
    make.add_argument("--labelled", nargs="+", type=_amount, default=["1"], help="groups, shares (0.05), or all")
    make.add_argument("--seeds", nargs="+", type=int, default=[0])
    make.add_argument("--set", action="append", metavar="SECTION.KEY=VALUE", help="for every run")
    show = commands.add_parser("table", help="the figures of all runs, as Markdown")
    show.add_argument("runs", type=Path)
    show.add_argument("--name", default="table of segmentation", help="of the marks in the file of --write")
    show.add_argument("--write", type=Path, metavar="FILE", help="Markdown file with the marks for the table")
    show.add_argument("--picture", type=Path, metavar="FILE", help="PNG to draw Dice against the labelled share in")
    args = parser.parse_args()
    warnings.formatwarning = lambda message, *_, **__: f"warning: {message}\n"
    try:
        if args.command == "run":
            work(args)
        else:
            results = read_results(args.runs)
            put(table(results), args.name, args.write)
            if args.picture:
                draw(args.picture, results)
    except UserError as error:
        raise SystemExit(f"segmentation.py: error: {error}") from None


if __name__ == "__main__":
    main()
