"""The stages of ``dvc.yaml``: what each reads and writes, and the graph as SVG."""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from sightline.core.errors import UserError

BOX, GAP, RISE = (156, 40), 18, 40  # width and height of a stage; between boxes of a row, and between rows


@dataclass(frozen=True)
class Stage:
    """A stage with its templates filled in; one of a matrix has the stage's name and its own paths."""

    name: str
    deps: tuple[str, ...]
    outs: tuple[str, ...]


def read_stages(root: Path) -> list[Stage]:
    """Every stage of the pipelines of the project ``root``, those of a matrix once for each value, as DVC reads them.

    Raises:
        UserError: DVC cannot read them.
    """
    from dvc.exceptions import DvcException  # takes a second to load, which no page of help should wait for
    from dvc.repo import Repo

    try:
        stages = Repo(str(root), uninitialized=True).index.stages
    except DvcException as error:
        raise UserError(f"{root}: DVC cannot read its pipelines ({' '.join(str(error).split())})") from None
    return [
        Stage(stage.name.split("@")[0], tuple(_paths(stage.deps, root)), tuple(_paths(stage.outs, root)))
        for stage in stages
        if stage.name  # not a file that was added
    ]


def _paths(items: Iterable[Any], root: Path) -> Iterator[str]:
    for item in items:
        if item.protocol == "local":
            yield Path(item.fs_path).relative_to(root.resolve()).as_posix()


def draw_graph(stages: list[Stage]) -> str:
    """An SVG of the stages, top to bottom; an edge that others imply is left out.

    Stages whose outputs nobody reads and that read nobody's are left out too: the demo's, with another recording.
    """
    edges = _reduced(_edges(stages))
    counts = Counter(stage.name for stage in stages)
    names = list(dict.fromkeys(stage.name for stage in stages))
    linked = {name for edge in edges for name in edge}
    names = [name for name in names if name in linked] or names
    rows = _rows(names, edges)
    width = max(len(row) for row in rows) * (BOX[0] + GAP) + GAP
    centre: dict[str, tuple[float, float]] = {}
    for depth, row in enumerate(rows):
        start = (width - len(row) * (BOX[0] + GAP) + GAP) / 2
        for i, name in enumerate(row):
            centre[name] = start + i * (BOX[0] + GAP) + BOX[0] / 2, GAP + depth * (BOX[1] + RISE) + BOX[1] / 2
    parts = [
        '<defs><marker id="arrow" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" '
        'orient="auto"><path d="M0 0 8 4 0 8z" fill="#8792a5"/></marker></defs>'
    ]
    for source, target in sorted(edges):
        (x1, y1), (x2, y2) = centre[source], centre[target]
        y1, y2 = y1 + BOX[1] / 2, y2 - BOX[1] / 2 - 1
        bend = max((y2 - y1) / 2, RISE / 2)
        parts.append(
            f'<path d="M{x1:.0f} {y1:.0f}C{x1:.0f} {y1 + bend:.0f} {x2:.0f} {y2 - bend:.0f} {x2:.0f} {y2:.0f}" '
            'fill="none" stroke="#8792a5" marker-end="url(#arrow)"/>'
        )
    for name in names:
        x, y = centre[name]
        label = name if counts[name] == 1 else f"{name} ×{counts[name]}"  # noqa: RUF001
        parts.append(
            f'<rect x="{x - BOX[0] / 2:.0f}" y="{y - BOX[1] / 2:.0f}" width="{BOX[0]}" height="{BOX[1]}" rx="7" '
            f'fill="#eef3fa" stroke="#9fb3cf"/><text x="{x:.0f}" y="{y + 4:.0f}" text-anchor="middle">'
            f"{escape(label)}</text>"
        )
    height = len(rows) * (BOX[1] + RISE) - RISE + 2 * GAP
    return f'<svg viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img">{"".join(parts)}</svg>'


def _edges(stages: list[Stage]) -> set[tuple[str, str]]:
    written = {out: stage.name for stage in stages for out in stage.outs}
    return {(written[dep], stage.name) for stage in stages for dep in stage.deps if dep in written}


def _reduced(edges: set[tuple[str, str]]) -> set[tuple[str, str]]:
    """The edges without those that a longer way says too."""
    after: dict[str, set[str]] = {}
    for source, target in edges:
        after.setdefault(source, set()).add(target)

    def reach(name: str) -> set[str]:
        return set().union(*({target} | reach(target) for target in after.get(name, set())))

    return {(s, t) for s, t in edges if not any(t in reach(other) for other in after[s] - {t})}


def _rows(names: list[str], edges: set[tuple[str, str]]) -> list[list[str]]:
    """Each stage one row below the lowest that it reads; in a row, below what they read, in the mean."""
    before = {name: {s for s, t in edges if t == name} for name in names}
    depth: dict[str, int] = {}

    def level(name: str) -> int:
        if name not in depth:
            depth[name] = 1 + max((level(source) for source in before[name]), default=-1)
        return depth[name]

    rows: list[list[str]] = [[] for _ in range(1 + max(level(name) for name in names))]
    for name in names:
        rows[depth[name]].append(name)
    place = {name: i / len(row) for row in rows for i, name in enumerate(row)}
    for row in rows[1:]:
        row.sort(key=lambda name: sum(place[s] for s in before[name]) / len(before[name]))
        place |= {name: (i + 0.5) / len(row) for i, name in enumerate(row)}
    return rows
