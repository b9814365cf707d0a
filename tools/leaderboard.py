"""``python tools/leaderboard.py``: the experiments, what was changed in them, and the figures that matter.

`dvc exp show` has a column for each of hundreds of figures, under names of up to 80 letters; this is its short form.
Name columns as the table does, or by a part of the name: `--sort rmse`, `--where lr=3e-4`, `--where "nmse<0.5"`.
"""

import argparse
import json
import operator
import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pandas as pd

from sightline.core.errors import UserError

# heading (groups of the pattern filled in; which way is better) -> pattern of "metrics file:key"
FIGURES = {
    r"{0} rmse mm ↓": r"metrics/evaluate/(.+)/metrics\.json:rmse_mm",
    r"{0} nmse ↓": r"metrics/evaluate_fusion(?:_with)?/\w+/(.+)/metrics\.json:nmse",
    r"{0} success ↑": r"metrics/rollout/\w+/(.+)/metrics\.json:success_rate",
    r"{0} dice ↑": r"metrics/evaluate_segmentation(?:_with)?/(.+)/metrics\.json:dice",
    r"{0} shuffled views": r"metrics/evaluate_fusion(?:_with)?/\w+/(.+)/metrics\.json:shuffled_views",
}
WIDTH = 24  # of a value at most
PARAM, FIGURE = 2, 3
NAME, STATE = (0, 0, "experiment"), (1, 0, "state")
COMPARE = {"<=": operator.le, ">=": operator.ge, "<": operator.lt, ">": operator.gt, "!=": operator.ne,
           "=": operator.eq}  # fmt: skip
NOTHING = (
    "No figures yet: metrics/ is empty here, and so are the experiments. `dvc pull` fetches what others have measured, "
    "`dvc repro` measures, `dvc exp run -S train.lr=3e-4` makes an experiment."
)
Row = dict[tuple[int, int, str], str]  # columns by group, rank and heading: the order in which they are shown


def leaderboard(commits: list[dict[str, Any]]) -> pd.DataFrame:
    """A row for the workspace, each commit and experiment of ``dvc exp show --json``.

    Columns: name, state where some have not succeeded, parameters that are not the same in all rows, figures.
    """
    rows = []
    for commit in commits:
        rows.append(_row(commit, commit["name"] or commit["rev"], "Success"))
        for experiment in commit["experiments"] or []:
            state = (experiment["executor"] or {}).get("state", "success").capitalize()
            revision = experiment["revs"][0]
            rows.append(_row(revision, f"  {revision['name'] or revision['rev'][:7]}", state))
    columns = {column for row in rows for column in row}
    shown = sorted(
        column for column in columns if column[0] != PARAM or len({row.get(column, "-") for row in rows}) > 1
    )
    if all(row[STATE] == "Success" for row in rows):
        shown.remove(STATE)
    return pd.DataFrame([[row.get(column, "-") for column in shown] for row in rows], columns=[c[-1] for c in shown])


def select(table: pd.DataFrame, where: list[str], sort: str | None, top: int | None) -> pd.DataFrame:
    """The rows for which all conditions hold, the best first by a column, at most ``top``; rows without a value last.

    Raises:
        UserError: no such column or several, or a condition that is none.
    """
    for condition in where:
        match = re.fullmatch(r"(.+?)(<=|>=|!=|=|<|>)(.*)", condition)
        if not match:
            raise UserError(f"--where {condition}: expected COLUMN=VALUE, or one of != < > <= >=")
        name, sign, value = (part.strip() for part in match.groups())
        cells = table[_column(table, name)]
        numbers = pd.to_numeric(cells, errors="coerce")
        try:
            keep = COMPARE[sign](numbers, float(value)) & numbers.notna()
        except ValueError:  # a text, which is only ever equal or not
            if sign not in ("=", "!="):
                raise UserError(f"--where {condition}: {value or 'nothing'} is no number") from None
            keep = COMPARE[sign](cells.str.strip(), value)
        table = table[keep]
    if sort:
        column = _column(table, sort.removeprefix("-"))
        numbers = pd.to_numeric(table[column], errors="coerce")
        ascending = column.endswith("↑") == sort.startswith("-")
        key = numbers if numbers.notna().any() else table[column]
        table = table.loc[key.sort_values(ascending=ascending, na_position="last", kind="stable").index]
    return table.head(top) if top else table


def _column(table: pd.DataFrame, name: str) -> str:
    columns = list(table.columns)
    matching = [c for c in columns if c == name] or [c for c in columns if name.lower() in c.lower()]
    if len(matching) != 1:
        raise UserError(f"{name}: {len(matching)} columns have this in their name; there are: {', '.join(columns)}")
    return matching[0]


def _row(revision: dict[str, Any], name: str, state: str) -> Row:
    row: Row = {NAME: name, STATE: state}
    data = revision["data"] or {}
    for file in (data.get("params") or {}).values():
        row |= {(PARAM, 0, key): _short(value) for key, value in _leaves(file.get("data") or {})}
    for path, file in (data.get("metrics") or {}).items():
        for key, value in _leaves(file.get("data") or {}):
            for rank, (heading, pattern) in enumerate(FIGURES.items()):
                if match := re.fullmatch(pattern, f"{path}:{key}"):
                    row[FIGURE, rank, heading.format(*match.groups())] = _short(value)
    return row


def _leaves(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted name and value of everything in ``tree`` that is no dictionary itself."""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _short(value: Any) -> str:
    text = f"{value:.5g}" if isinstance(value, float) else str(value)
    return text if len(text) <= WIDTH else text[: WIDTH - 1] + "…"


def show(arguments: argparse.Namespace) -> str:
    """The table of the project around the working directory. Raises `UserError` where DVC cannot show it."""
    command = [sys.executable, "-m", "dvc", "exp", "show", "--json", *(["--all-commits"] if arguments.all else [])]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        raise UserError(" ".join(result.stderr.split()))
    table = leaderboard(json.loads(result.stdout))
    if not any(re.search(r"[↓↑]$", column) for column in table.columns):
        return NOTHING
    table = select(table, arguments.where, arguments.sort, arguments.top)
    if table.empty:
        return f"No experiment has {' and '.join(arguments.where)}."
    names = table["experiment"]
    table = table.assign(experiment=names.str.ljust(names.str.len().max()))
    return table.to_string(index=False)


parser = argparse.ArgumentParser(description=__doc__.replace("``", ""), formatter_class=argparse.RawTextHelpFormatter)
parser.add_argument("--sort", metavar="COLUMN", help="best first, by the arrow of the column; -COLUMN: worst first")
parser.add_argument("--where", metavar="CONDITION", action="append", default=[], help="rows to show; may be repeated")
parser.add_argument("--top", metavar="N", type=int, help="the first N rows only")
parser.add_argument("--all", action="store_true", help="experiments of all commits, not of the latest alone")

if __name__ == "__main__":
    try:
        print(show(parser.parse_args()))
    except UserError as error:
        print(f"leaderboard: error: {error}", file=sys.stderr)
        raise SystemExit(1) from None
