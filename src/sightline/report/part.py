"""The page of one part of the pipeline, such as one model: everything in its metrics folders."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sightline.core.errors import UserError
from sightline.core.files import atomic_output
from sightline.report import page
from sightline.report.figures import Table, read_csv, read_json, tables


def write_part(output: Path, title: str, folders: Sequence[Path]) -> None:
    """Write a page of ``folders``: figures of JSON files, curves of CSV files, PNG pictures, folder by folder.

    Raises:
        UserError: a folder that is not there, or holds nothing of these.
    """
    parts: list[str] = []
    for folder in folders:
        files = sorted(folder.iterdir()) if folder.is_dir() else []
        kinds = {suffix: [path for path in files if path.suffix == suffix] for suffix in (".json", ".csv", ".png")}
        if not any(kinds.values()):
            raise UserError(f"{folder}: no figures, curves or pictures there; make them with dvc repro")
        if len(folders) > 1:
            parts.append(page.paragraph(folder.as_posix(), "note"))
        for path in kinds[".json"]:
            if len(kinds[".json"]) > 1:
                parts.append(page.paragraph(path.name, "note"))
            figures = read_json(path)
            parts += [page.paragraph(page.RANDOM_CLIP, "banner")] if figures.get("random_weights") else []
            parts.append(page.tables(tables(figures)))
        parts += [_curves(path) for path in kinds[".csv"]]
        parts += [page.picture(path) for path in kinds[".png"]]
    with atomic_output(output) as temporary:
        temporary.write_text(page.page("Sightline report", [page.section(title, *parts)]), encoding="utf-8")


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
