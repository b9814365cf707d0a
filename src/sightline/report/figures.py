"""Figures of a metrics folder as tables, whatever stage wrote them.

A stage writes nested JSON. What is the same for several things (codes, baselines, classes) becomes a table of its own,
with the model beside its baselines; all else becomes name and value.
"""

import csv
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sightline.core.errors import UserError

HIGHER = ("psnr", "ssim", "r2", "dice", "iou", "accuracy", "delta", "recall")  # beginnings of names
LOWER = ("rmse", "mae", "abs_rel", "edge_rmse", "l1", "nmse", "hd95", "asd", "calibration_error")
Cell = float | int | str | bool | None


@dataclass(frozen=True)
class Table:
    """Rows of cells, each row with a name; ``title`` is the path of keys that led here."""

    title: str
    columns: tuple[str, ...]
    rows: Mapping[str, tuple[Cell, ...]]

    def by_figure(self) -> "Table":
        """The same with a row for each figure and a column for each thing that is compared."""
        rows = {name: tuple(cells[i] for cells in self.rows.values()) for i, name in enumerate(self.columns)}
        return Table(self.title, tuple(self.rows), rows)


def read_json(path: Path) -> dict[str, Any]:
    """Read an object of JSON. Raises `UserError` naming the file where it is none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as JSON ({error})") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: expected an object of figures, got {type(value).__name__}")
    return value


def read_csv(path: Path) -> tuple[list[str], list[list[float | str]]]:
    """Header and rows of a CSV file, numbers where they are. Raises `UserError` naming the file and line."""
    try:
        with open(path, newline="", encoding="utf-8") as file:
            header, *rows = list(csv.reader(file)) or [[]]
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(f"{path}: cannot be read as CSV ({error})") from None
    for line, row in enumerate(rows, 2):
        if len(row) != len(header):
            raise UserError(f"{path}: line {line} has {len(row)} values, the header {len(header)}")
    return header, [[_number(text) for text in row] for row in rows]


def direction(name: str) -> int:
    """1 where a higher value is better, -1 where a lower one is, 0 where nobody says so."""
    last = name.rpartition(".")[2]
    return int(last.startswith(HIGHER)) - int(last.startswith(LOWER))


def comparison(figures: dict[str, Any]) -> Table | None:
    """A model beside its baselines, from ``codes``, or from ``baselines`` and the figures beside them."""
    if _alike(figures.get("codes")):
        return _table("codes", figures["codes"])
    if _alike(figures.get("baselines")):
        columns = next(iter(figures["baselines"].values()))
        own = {name: figures.get(name) for name in columns}
        return _table("baselines", {"model": own, **figures["baselines"]})
    return None


def tables(figures: dict[str, Any]) -> list[Table]:
    """Everything in ``figures``: the comparison first, then single values, then what else is the same for several."""
    first = comparison(figures)
    rest = {name: value for name, value in figures.items() if first is None or name != first.title}
    if first is not None and first.title == "baselines":
        rest = {name: value for name, value in rest.items() if name not in first.columns}
    return ([first] if first else []) + _nested(rest, "")


def format_cell(value: Cell) -> str:
    """A number at four significant digits, thousands apart; everything else as it is."""
    if value is None:
        return "–"  # noqa: RUF001
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        if not math.isfinite(value):
            return str(value)
        if abs(value) >= 1000:
            return f"{value:,.0f}"
        return f"{value:.4g}"
    return value


def _nested(figures: dict[str, Any], prefix: str) -> list[Table]:
    plain = {name: _cell(value) for name, value in _ordered(figures).items() if not isinstance(value, dict)}
    found = [Table(prefix, ("value",), {name: (cell,) for name, cell in plain.items()})] if plain else []
    for name, value in figures.items():
        title = f"{prefix}.{name}" if prefix else name
        if _alike(value):
            found.append(_table(title, value))
        elif isinstance(value, dict) and value:
            found += _nested(value, title)
    return found


def _ordered(figures: dict[str, Any]) -> dict[str, Any]:
    """In their own order, but numbers as names by their value: JSON sorts 10 before 2."""
    if all(name.isdecimal() for name in figures):
        return dict(sorted(figures.items(), key=lambda item: int(item[0])))
    return figures


def _alike(value: Any) -> bool:
    """Whether ``value`` maps names to the same single figures each."""
    if not isinstance(value, dict) or not all(isinstance(child, dict) and child for child in value.values()):
        return False
    keys = [set(child) for child in value.values()]
    flat = not any(isinstance(leaf, dict) for child in value.values() for leaf in child.values())
    return bool(keys) and flat and all(key == keys[0] for key in keys)


def _table(title: str, things: dict[str, dict[str, Any]]) -> Table:
    columns = tuple(next(iter(things.values())))
    return Table(title, columns, {name: tuple(_cell(thing[key]) for key in columns) for name, thing in things.items()})


def _cell(value: Any) -> Cell:
    if isinstance(value, list | tuple):
        return ", ".join(format_cell(_cell(child)) for child in value) or "none"
    return value if isinstance(value, float | int | str | bool) or value is None else json.dumps(value)


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text
