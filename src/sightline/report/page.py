"""A page of HTML that needs nothing but itself. Every text is escaped here, so callers pass plain texts."""

import base64
import re
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from sightline.training.comparison import Cell, Table, direction, format_cell

STYLE = """
:root { color-scheme: light; }
body { margin: 0; background: #fff; color: #1c2330; font: 16px/1.55 system-ui, "Segoe UI", "DejaVu Sans", sans-serif; }
header, main { max-width: 68rem; margin: 0 auto; padding: 0 1.25rem; }
header { padding-top: 2rem; }
h1 { font-size: 1.8rem; line-height: 1.2; margin: 0 0 .5rem; }
h2 { font-size: 1.35rem; line-height: 1.25; margin: 0 0 .75rem; overflow-wrap: anywhere; }
h3 { font-size: 1rem; margin: 1.5rem 0 .4rem; color: #475066; overflow-wrap: anywhere; }
section { border-top: 1px solid #d9dee7; padding: 1.75rem 0; }
nav ul { list-style: none; margin: 0 0 1.5rem; padding: 0; display: flex; flex-wrap: wrap; gap: .35rem .6rem; }
nav a { display: block; padding: .15rem .6rem; border: 1px solid #d9dee7; border-radius: 1rem; text-decoration: none; }
a { color: #1b5faa; }
p, li { max-width: 46rem; overflow-wrap: anywhere; }
.note { color: #475066; font-size: .9rem; }
.banner { background: #fff4d6; border-left: 4px solid #d89b00; padding: .6rem 1rem; max-width: none; }
.wide { overflow-x: auto; }
.tables { display: flex; flex-wrap: wrap; gap: 0 2.5rem; align-items: flex-start; }
.tables > div { max-width: 100%; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: .22rem .8rem .22rem 0; border-bottom: 1px solid #eceff4; vertical-align: top; }
th:first-child { text-align: left; font-weight: 500; white-space: normal; }
thead th { color: #475066; font-weight: 600; border-bottom: 1px solid #b9c1ce; }
th, td { white-space: nowrap; }
td.text { text-align: left; white-space: normal; max-width: 26rem; overflow-wrap: anywhere; }
td.best { font-weight: 700; }
figure { margin: 1.25rem 0 0; }
figcaption { color: #475066; font-size: .9rem; overflow-wrap: anywhere; }
img { max-width: 100%; height: auto; display: block; }
.charts { display: flex; flex-wrap: wrap; gap: 0 1.5rem; }
.charts figure { flex: 0 1 22rem; min-width: 0; }
svg { display: block; max-width: 100%; height: auto; }
svg text { font: 12px system-ui, "Segoe UI", "DejaVu Sans", sans-serif; fill: #1c2330; }
"""
RANDOM_GRIDS = (
    "Some grids come from random weights (random_weights is 1): they carry no meaning and serve only to try the "
    "pipeline. Name real weights with grids.<name>.pretrained."
)
COLOURS = ("#1b5faa", "#d1660a", "#2b8a5b", "#a03a8a", "#6b7280", "#b8860b")  # of the lines of a chart
_HEADING = re.compile(r'<section id="([^"]*)">\n<h2>(.*?)</h2>')
_BANNER = re.compile(r'<p class="banner">.*?</p>', re.DOTALL)


def page(title: str, sections: Iterable[str]) -> str:
    """A whole page of sections, their banners before them, each once; where there are several, with links to them."""
    body = "\n".join(sections)
    links = [f'<li><a href="#{anchor}">{name}</a></li>' for anchor, name in _HEADING.findall(body)]
    banners = "\n".join(dict.fromkeys(_BANNER.findall(body)))
    contents = f"<nav><ul>{''.join(links)}</ul></nav>\n" if len(links) > 1 else ""
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>{escape(title)}</title>\n'
        f"<style>{STYLE}</style>\n</head>\n<body>\n<header>\n<h1>{escape(title)}</h1>\n{contents}</header>\n"
        f"<main>\n{banners}\n{_BANNER.sub('', body)}</main>\n</body>\n</html>\n"
    )


def section(title: str, *parts: str) -> str:
    """A part of a page, with an anchor made of its title."""
    anchor = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")
    return f'<section id="{anchor}">\n<h2>{escape(title)}</h2>\n' + "\n".join(filter(None, parts)) + "\n</section>\n"


def paragraph(text: str, kind: str = "") -> str:
    """A paragraph; ``kind`` is "", "note" or "banner"."""
    return f'<p class="{kind}">{escape(text)}</p>' if kind else f"<p>{escape(text)}</p>"


def table(content: Table) -> str:
    """A table with its title; the best value of a row or column is bold where its name says which way is better."""
    if len(content.columns) > len(content.rows) and len(content.columns) > 3:
        content = content.by_figure()
    rows = []
    for name, cells in content.rows.items():
        shown = [f"<td{_kind(content, name, i)}>{escape(format_cell(cell))}</td>" for i, cell in enumerate(cells)]
        rows.append(f"<tr><th>{escape(_arrow(name, cells))}</th>{''.join(shown)}</tr>")
    head = ""
    if content.columns != ("value",):
        columns = zip(content.columns, zip(*content.rows.values(), strict=True), strict=True)
        head = "".join(f"<th>{escape(_arrow(column, cells))}</th>" for column, cells in columns)
        head = f"<thead><tr><th></th>{head}</tr></thead>"
    body = f"<table>{head}<tbody>{''.join(rows)}</tbody></table>"
    return f'<div><h3>{escape(content.title or "figures")}</h3><div class="wide">{body}</div></div>'


def tables(contents: Iterable[Table]) -> str:
    """Several tables, side by side where there is room."""
    shown = "".join(table(content) for content in contents)
    return f'<div class="tables">{shown}</div>' if shown else ""


def picture(path: Path) -> str:
    """A PNG picture, inside the page."""
    data = base64.b64encode(path.read_bytes()).decode()
    name = escape(path.stem.replace("_", " "))
    return f'<figure><figcaption>{name}</figcaption><img alt="{name}" src="data:image/png;base64,{data}"></figure>'


def chart(title: str, x_name: str, x: Sequence[float], lines: dict[str, Sequence[float]]) -> str:
    """Lines over ``x``, as SVG, on a linear scale from the least to the largest value."""
    width, height, left, right, top, bottom = 360, 220, 64, 10, 10, 34
    values = [y for line in lines.values() for y in line]
    low, high, start, end = min(values), max(values), min(x), max(x)
    span, reach = (high - low) or 1.0, (end - start) or 1.0
    place = [left + (width - left - right) * (value - start) / reach for value in x]
    parts = []
    for share in (0.0, 0.5, 1.0):
        y = height - bottom - (height - bottom - top) * share
        label = format_cell(float(f"{low + span * share:.3g}")) if high > low or share == 0 else ""
        parts.append(f'<line x1="{left}" x2="{width - right}" y1="{y:.1f}" y2="{y:.1f}" stroke="#e3e7ee"/>')
        parts.append(f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{label}</text>')
    axis = height - bottom + 16
    parts.append(f'<text x="{left}" y="{axis}">{format_cell(start)}</text>')
    parts.append(f'<text x="{width - right}" y="{axis}" text-anchor="end">{format_cell(end)}</text>')
    parts.append(f'<text x="{(left + width - right) / 2}" y="{axis}" text-anchor="middle">{escape(x_name)}</text>')
    key = []
    for i, (name, line) in enumerate(lines.items()):
        colour = COLOURS[i % len(COLOURS)]
        heights = (height - bottom - (height - bottom - top) * (y - low) / span for y in line)
        points = " ".join(f"{px:.1f},{py:.1f}" for px, py in zip(place, heights, strict=True))
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.8"/>')
        key.append(f'<span style="color:{colour}">&#9644;</span>&nbsp;{escape(name)}')
    svg = f'<svg viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img">{"".join(parts)}</svg>'
    return f"<figure><figcaption>{escape(title)}: {' '.join(key)}</figcaption>{svg}</figure>"


def _arrow(name: str, cells: Sequence[Cell]) -> str:
    """``name``, and which way is better where there are numbers of it."""
    numeric = any(isinstance(cell, float | int) for cell in cells)
    return name + {1: "\u00a0↑", -1: "\u00a0↓", 0: ""}[direction(name) if numeric else 0]


def _kind(content: Table, name: str, column: int) -> str:
    """The class of a cell: text, or the best of what it is compared with."""
    cells = content.rows[name]
    beside_text = content.columns == ("value",) and any(isinstance(row[0], str) for row in content.rows.values())
    if beside_text or isinstance(cells[column], str):
        return ' class="text"'
    if direction(name):
        way, compared = direction(name), cells
    else:
        way, compared = direction(content.columns[column]), tuple(row[column] for row in content.rows.values())
    numbers = [cell for cell in compared if isinstance(cell, float | int)]
    best = way and len(numbers) > 1 and cells[column] == (max if way > 0 else min)(numbers)
    return ' class="best"' if best else ""
