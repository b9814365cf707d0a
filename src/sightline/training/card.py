"""Model cards: what a model is, what it takes, what it was trained on, how good it is, and where it ends.

A training writes ``<model>.card.json`` beside its weights: what the model is, its inputs and outputs, its data and its
configuration. The evaluation reads that, adds what it measured, and writes ``<model>.card.md`` for people.
"""

import json
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from safetensors import safe_open

from sightline.core.errors import UserError
from sightline.core.files import atomic_output, file_sha256, write_json
from sightline.recording.split import PARTS
from sightline.training.comparison import Table, comparison, direction, format_cell

SUFFIX = ".card.json"
LITTLE = 0.05  # an input whose shuffling adds less than this share to the error is hardly used


@dataclass(frozen=True)
class About:
    """What a kind of model is."""

    what: str
    task: str  # as Hugging Face names it
    tags: tuple[str, ...]
    use: str  # a command; MODEL stands for the file
    inputs: tuple[str, ...]  # with shape, unit and range
    outputs: tuple[str, ...]
    limits: tuple[str, ...]


def write_card(
    model: Path,
    about: About,
    configuration: dict[str, Any],
    split: np.ndarray,
    groups: np.ndarray,
    recorded: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Write the card of a model that was just trained to ``<model>.card.json``.

    Args:
        model: safetensors file.
        configuration: what its header says.
        split: part of each frame, str [N].
        groups: episode, patient or block of each frame [N].
        recorded: further entries: ``precision``, from `sightline.training.precision.computed_in`.
    """
    with safe_open(model, framework="np") as file:
        slices = [file.get_slice(name) for name in file.keys()]  # noqa: SIM118  (it is no dictionary)
        numbers = sum(math.prod(part.get_shape()) for part in slices if part.get_dtype().startswith(("F", "BF")))
    counts = Counter(split.tolist())
    card = {
        "file": model.as_posix(),
        "bytes": model.stat().st_size,
        "sha256": file_sha256(model),
        "parameters": numbers,
        **asdict(about),
        "use": about.use.replace("MODEL", model.as_posix()),
        "training_data": {
            part: {"frames": counts[part], "groups": len(np.unique(groups[split == part]))}
            for part in PARTS
            if counts[part]
        },
        **recorded,
        "configuration": configuration,
    }
    write_json(model.with_suffix(SUFFIX), card)


def read_card(model: Path) -> dict[str, Any]:
    """What the training wrote about ``model``.

    Raises:
        UserError: its ``<model>.card.json`` is missing, broken, or about other weights.
    """
    source = model.with_suffix(SUFFIX)
    try:
        card = json.loads(source.read_text(encoding="utf-8"))
        digest = card["sha256"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{source}: cannot be read as a card ({error}); the training writes it, train again") from None
    if digest != file_sha256(model):
        raise UserError(f"{source}: is about other weights than {model}; train again")
    return card


def write_measured_card(output: Path, card: dict[str, Any], evaluation: dict[str, Any]) -> None:
    """Write a ``card`` (`read_card`) with the figures of the evaluation to ``output``, as Hugging Face's model cards.

    The header names no licence: who publishes the model knows what the training data allow.
    """
    from huggingface_hub import EvalResult, ModelCard, ModelCardData  # takes a second to load

    compared = _short(comparison(evaluation))
    own = zip(compared.columns, next(iter(compared.rows.values())), strict=True) if compared else ()
    figures = {name: value for name, value in own if isinstance(value, float)}
    where = {"task_type": card["task"], "dataset_type": "recording", "dataset_name": "held-out frames"}
    results = [EvalResult(**where, metric_type=name, metric_value=value) for name, value in figures.items()]
    header = ModelCardData(
        model_name=Path(card["file"]).stem,
        license="unknown",
        library_name="sightline",
        pipeline_tag=card["task"],
        tags=["sightline", *card["tags"]],
        metrics=list(figures) or None,
        eval_results=results or None,
    )
    text = str(ModelCard(f"---\n{header.to_yaml()}\n---\n\n{_markdown(card, compared, evaluation)}"))
    with atomic_output(output) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def _short(compared: Table | None) -> Table | None:
    """Without what is no measure of quality, means over images, and what is there in millimetres too."""
    if compared is None:
        return None
    names = compared.columns
    kept = [
        i for i, name in enumerate(names) if direction(name) and "_per_image" not in name and f"{name}_mm" not in names
    ]
    rows = {name: tuple(cells[i] for i in kept) for name, cells in compared.rows.items()}
    return Table(compared.title, tuple(names[i] for i in kept), rows)


def _markdown(card: dict[str, Any], compared: Table | None, evaluation: dict[str, Any]) -> str:
    data = ", ".join(f"{part} {of['frames']} ({of['groups']} groups)" for part, of in card["training_data"].items())
    limits = [*card["limits"], *(_worse(compared) if compared else []), *_unused(evaluation)]
    precision = f", trained in {_plain(card['precision'])}" if "precision" in card else ""
    lines = [
        *(f"# {card['file']}", "", card["what"], "", "## Use", "", f"`{card['use']}`", ""),
        *(f"- in: {_plain(text)}" for text in card["inputs"]),
        *(f"- out: {_plain(text)}" for text in card["outputs"]),
        f"- {card['parameters']:,} weights and statistics{precision}; SHA-256 `{card['sha256']}`",
        f"- frames, split by whole groups: {data}",
        f"- configuration: `{Path(card['file']).with_suffix(SUFFIX).name}`",
        *("", "## Measured", ""),
        *(_rows(compared.by_figure()) if compared else ()),
        *("", "## Limits", "", *(f"- {_plain(text)}" for text in limits)),
    ]
    return "\n".join([*lines, ""])


def _worse(compared: Table) -> list[str]:
    """Each baseline that is better in something than the model, which is the first row."""
    (_, own), *baselines = compared.rows.items()
    limits = []
    for name, cells in baselines:
        better = [
            f"{figure} {format_cell(cell)} against {format_cell(mine)}"
            for figure, cell, mine in zip(compared.columns, cells, own, strict=True)
            if isinstance(cell, float) and isinstance(mine, float) and direction(figure) * (cell - mine) > 0
        ]
        if better:
            limits.append(f"On held-out frames, {name} is better: {'; '.join(better)}.")
    return limits


def _unused(evaluation: dict[str, Any]) -> list[str]:
    """The inputs that a fusion model hardly uses."""
    nmse = evaluation.get("nmse", 0)
    return [
        f"It hardly uses an input: {change.replace('_', ' ')} changes the NMSE of {nmse:.4g} by {value:+.2g} only."
        for change, value in evaluation.get("use", {}).items()
        if change.startswith("shuffled") and value < LITTLE * nmse
    ]


def _rows(table: Table) -> list[str]:
    head = [f"| | {' | '.join(map(_plain, table.columns))} |", f"|---|{'---:|' * len(table.columns)}"]
    return head + [f"| {_plain(name)} | {' | '.join(map(format_cell, row))} |" for name, row in table.rows.items()]


def _plain(text: str) -> str:
    """``text`` from data, so that Markdown shows it as it is."""
    return "".join("\\" + c if c in "\\`*[]<>|" else c for c in " ".join(text.split()))
