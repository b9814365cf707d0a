"""A model beside its baselines: which figures they share, and which way each is better."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

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


def direction(name: str) -> int:
    """1 where a higher value is better, -1 where a lower one is, 0 where the name does not tell."""
    last = name.rpartition(".")[2]
    return int(last.startswith(HIGHER)) - int(last.startswith(LOWER))


def comparison(figures: dict[str, Any]) -> Table | None:
    """A model (first row) and its baselines, from ``codes``, or from ``baselines`` and the figures beside them."""
    if are_alike(figures.get("codes")):
        return table_of("codes", figures["codes"])
    if are_alike(figures.get("baselines")):
        columns = next(iter(figures["baselines"].values()))
        own = {name: figures.get(name) for name in columns}
        return table_of("baselines", {"model": own, **figures["baselines"]})
    return None


def are_alike(value: Any) -> bool:
    """Whether ``value`` maps names to the same single figures each."""
    if not isinstance(value, dict) or not all(isinstance(child, dict) and child for child in value.values()):
        return False
    keys = [set(child) for child in value.values()]
    flat = not any(isinstance(leaf, dict) for child in value.values() for leaf in child.values())
    return bool(keys) and flat and all(key == keys[0] for key in keys)


def table_of(title: str, things: dict[str, dict[str, Any]]) -> Table:
    """A row for each of ``things``, which have the same figures."""
    columns = tuple(next(iter(things.values())))
    return Table(
        title, columns, {name: tuple(as_cell(thing[key]) for key in columns) for name, thing in things.items()}
    )


def as_cell(value: Any) -> Cell:
    """A single value as it is, a list as text."""
    if isinstance(value, list | tuple):
        return ", ".join(format_cell(as_cell(child)) for child in value) or "none"
    return value if isinstance(value, float | int | str | bool) or value is None else str(value)


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
