"""The sections about what stages measured: all figures, curves and pictures of their metrics folders."""

from pathlib import Path
from typing import Any

from sightline.report import page
from sightline.report.figures import read_csv, read_json, tables
from sightline.training.comparison import Table


def section_of(title: str, folders: list[Path]) -> str:
    """A section about the ``folders`` of one stage: figures of JSON files, curves of CSV files, PNG pictures.

    Raises:
        UserError: a file that cannot be read, naming it.
    """
    parts: list[str] = []
    for folder in folders:
        if len(folders) > 1:
            parts.append(page.paragraph(folder.as_posix(), "note"))
        for path in sorted(folder.glob("*.json")):
            figures = read_json(path)
            parts += [page.paragraph(page.RANDOM_GRIDS, "banner")] if figures.get("random_weights") else []
            parts += [page.paragraph(path.name, "note"), page.tables(tables(figures))]
        parts += [_curves(path) for path in sorted(folder.glob("*.csv"))]
        parts += [page.picture(path) for path in sorted(folder.glob("*.png"))]
    return page.section(title, *parts)


def _curves(path: Path) -> str:
    """Charts of a CSV file over its first column; a table where that is no number."""
    header, rows = read_csv(path)
    if not rows:
        return ""
    columns: dict[str, list[Any]] = {name: [row[i] for row in rows] for i, name in enumerate(header)}
    if not all(isinstance(value, float) for value in columns[header[0]]):
        cells = {str(row[0]): tuple(row[1:]) for row in rows}
        return page.tables([Table(path.stem, tuple(header[1:]), cells)])
    numeric = [name for name in header[1:] if all(isinstance(value, float) for value in columns[name])]
    by_kind: dict[str, list[str]] = {}
    for name in numeric:
        split = any(other.startswith("train_") for other in numeric)
        kind = name.removeprefix("train_").removeprefix("val_") if split else path.stem.replace("_", " ")
        by_kind.setdefault(kind, []).append(name)
    charts = [
        page.chart(kind, header[0], columns[header[0]], {name: columns[name] for name in names})
        for kind, names in by_kind.items()
    ]
    return f'<div class="charts">{"".join(charts)}</div>'
