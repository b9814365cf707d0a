"""``python tools/leaderboard.py``: the experiments, what was changed in them, and the figures that matter.

`dvc exp show` has a column for each of hundreds of figures, under names of up to 80 letters; this is its short form.
"""

import json
import re
import subprocess
import sys
from typing import Any

import pandas as pd

from sightline.core.errors import UserError
from sightline.report.overview import leaves

# heading (groups of the pattern filled in; which way is better) -> pattern of "metrics file:key"
FIGURES = {
    r"{0} rmse mm ↓": r"metrics/evaluate/(.+)/metrics\.json:rmse_mm",
    r"{0} nmse ↓": r"metrics/evaluate_fusion(?:_with)?/\w+/(.+)/metrics\.json:nmse",
    r"{0} dice ↑": r"metrics/evaluate_segmentation(?:_with)?/(.+)/metrics\.json:dice",
    r"{0} shuffled views": r"metrics/evaluate_fusion(?:_with)?/\w+/(.+)/metrics\.json:shuffled_views",
}
WIDTH = 24  # of a value at most
PARAM, FIGURE = 2, 3
NAME, STATE = (0, 0, "experiment"), (1, 0, "state")
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


def _row(revision: dict[str, Any], name: str, state: str) -> Row:
    row: Row = {NAME: name, STATE: state}
    data = revision["data"] or {}
    for file in (data.get("params") or {}).values():
        row |= {(PARAM, 0, key): _short(value) for key, value in leaves(file.get("data") or {})}
    for path, file in (data.get("metrics") or {}).items():
        for key, value in leaves(file.get("data") or {}):
            for rank, (heading, pattern) in enumerate(FIGURES.items()):
                if match := re.fullmatch(pattern, f"{path}:{key}"):
                    row[FIGURE, rank, heading.format(*match.groups())] = _short(value)
    return row


def _short(value: Any) -> str:
    text = f"{value:.5g}" if isinstance(value, float) else str(value)
    return text if len(text) <= WIDTH else text[: WIDTH - 1] + "…"


def main() -> None:
    """Print the table of the project around the working directory. Raises `UserError` where DVC cannot show it."""
    command = [sys.executable, "-m", "dvc", "exp", "show", "--json"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        raise UserError(" ".join(result.stderr.split()))
    table = leaderboard(json.loads(result.stdout))
    names = table["experiment"]
    table["experiment"] = names.str.ljust(names.str.len().max())
    print(table.to_string(index=False))


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        print(f"leaderboard: error: {error}", file=sys.stderr)
        raise SystemExit(1) from None
