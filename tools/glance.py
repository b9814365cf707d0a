"""Write the table "Results at a glance" into README.md from the metrics of the pipeline: ``python tools/glance.py``.

It reads ``metrics/`` as `dvc pull` or `dvc repro` left it, and refuses files that are not those of dvc.lock: the README
tells what the commit measures. A digest beside the table says of which outputs it is, so a test notices an old one.
"""

import hashlib
import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from sightline.core.errors import UserError
from sightline.report.verdicts import MEASURES, Score, compared, judge, words

ROOT = Path(__file__).resolve().parents[1]
BEGIN, END = "<!-- results at a glance: begin, of outputs {} -->\n", "<!-- results at a glance: end -->"


class Row(NamedTuple):
    """A line of the table."""

    question: str
    file: str  # under metrics/
    measure: str  # a key of `MEASURES`


DEPTH, RESULTS = "evaluate/depth/evaluation_results.json", "evaluation_results.json"
ROWS = (
    Row("Depth autoencoder: error of the image", DEPTH, "rmse_mm"),
    Row("Depth embedding: where the gripper is (R²)", DEPTH, "gripper_position"),
    Row("Depth embedding: where the ball is (R²)", DEPTH, "object_position"),
    Row("Depth embedding: where the plate is (R²)", DEPTH, "goal_position"),
    Row("Depth embedding: does a finger touch the ball? (R²)", DEPTH, "contact"),
    Row("Policy: error of the actions (NMSE)", f"evaluate_fusion/actions/stacked/{RESULTS}", "nmse"),
    Row("Policy in the simulator: ball on the plate", "rollout/actions/stacked/details.json", "success_rate"),
    Row("Segmentation from few masks (Dice)", f"evaluate_segmentation/masks/{RESULTS}", "dice_mean"),
    Row(
        "The same with stored grid features (Dice)",
        f"evaluate_segmentation_with/masks/grids/efficientnet/global/{RESULTS}",
        "dice_mean",
    ),
)


def locked() -> dict[str, str]:
    """MD5 of each file of the table, as dvc.lock has it.

    Raises:
        UserError: dvc.lock lacks one.
    """
    stages = yaml.safe_load((ROOT / "dvc.lock").read_text(encoding="utf-8"))["stages"]
    outputs = {out["path"]: out["md5"] for stage in stages.values() for out in stage.get("outs", [])}
    files = sorted({f"metrics/{row.file}" for row in ROWS})
    for file in files:
        if file not in outputs:
            raise UserError(f"dvc.lock: has no output {file}; run the pipeline with the default parameters")
    return {file: outputs[file] for file in files}


def digest() -> str:
    """What the table is of, in eight letters."""
    return hashlib.sha256(json.dumps(locked()).encode()).hexdigest()[:8]


def table(metrics: Path) -> str:
    """The table from the figures in a folder ``metrics``.

    Raises:
        UserError: a file is not there, or is another than dvc.lock says.
    """
    lines = ["| on held-out episodes | Sightline | best simple alternative | result |", "|---|---|---|---|"]
    for file, md5 in locked().items():
        path = metrics.parent / file
        if not path.is_file():
            raise UserError(f"{path}: is not here; `dvc pull` fetches it, `dvc repro` makes it")
        if hashlib.md5(path.read_bytes()).hexdigest() != md5:
            raise UserError(f"{path}: is not the output that dvc.lock names; run `dvc repro`, then commit dvc.lock")
    for row in ROWS:
        figures = json.loads((metrics / row.file).read_text(encoding="utf-8"))
        lines.append(_line(row, compared(figures)[row.measure], figures))
    return "\n".join(lines) + "\n"


def _line(row: Row, scores: list[Score], figures: dict[str, Any]) -> str:
    _, unit, higher = MEASURES[row.measure]
    model, *others = scores
    best = (max if higher else min)((s for s in others if s.name != "expert"), key=lambda score: score.value)
    other = f"{words(best.name)}: {best.value:.3g}{unit}"
    own, other = f"{model.value:.3g}{unit}", f"{words(best.name)}: {best.value:.3g}{unit}"
    if "by_scene" in figures:  # shares of so few scenes are read more easily as counts
        scenes = len(next(iter(figures["by_scene"].values())))
        counts = {score.name: f"{round(score.value * scenes)} of {scenes}" for score in scores}
        own = f"{counts[model.name]} scenes"
        other = f"{words(best.name)}: {counts[best.name]}; the scripted expert: {counts['expert']}"
    return f"| {row.question} | {own} | {other} | {judge('', row.measure, scores).result} |"


def with_table(readme: str, text: str) -> str:
    """The README with another table."""
    head, _, rest = readme.partition(BEGIN.partition("{}")[0])
    return head + BEGIN.format(digest()) + text + END + rest.partition(END)[2]


if __name__ == "__main__":
    readme = ROOT / "README.md"
    metrics = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "metrics"
    try:
        readme.write_text(with_table(readme.read_text(encoding="utf-8"), table(metrics)), encoding="utf-8")
    except UserError as error:
        sys.exit(f"glance.py: error: {error}")
    print(f"{readme.name} written", file=sys.stderr)
