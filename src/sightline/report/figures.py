"""Figures of a metrics folder as tables, whatever stage wrote them.

A stage writes nested JSON. What is the same for several things (codes, baselines, classes) becomes a table of its own,
with the model beside its baselines; all else becomes name and value.
"""

import csv
import json
from pathlib import Path
from typing import Any

from sightline.core.errors import UserError
from sightline.training.comparison import Table, are_alike, as_cell, comparison, table_of


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


def tables(figures: dict[str, Any]) -> list[Table]:
    """Everything in ``figures``: the comparison first, then single values, then what else is the same for several."""
    first = comparison(figures)
    rest = {name: value for name, value in figures.items() if first is None or name != first.title}
    if first is not None and first.title == "baselines":
        rest = {name: value for name, value in rest.items() if name not in first.columns}
    return ([first] if first else []) + _nested(rest, "")


def _nested(figures: dict[str, Any], prefix: str) -> list[Table]:
    plain = {name: as_cell(value) for name, value in _ordered(figures).items() if not isinstance(value, dict)}
    tables_ = [Table(prefix, ("value",), {name: (cell,) for name, cell in plain.items()})] if plain else []
    for name, value in figures.items():
        title = f"{prefix}.{name}" if prefix else name
        if are_alike(value):
            tables_.append(table_of(title, value))
        elif isinstance(value, dict) and value:
            tables_ += _nested(value, title)
    return tables_


def _ordered(figures: dict[str, Any]) -> dict[str, Any]:
    """In their own order, but numbers as names by their value: JSON sorts 10 before 2."""
    if all(name.isdecimal() for name in figures):
        return dict(sorted(figures.items(), key=lambda item: int(item[0])))
    return figures


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text
