"""What a stage measured: a few headline figures for ``dvc metrics show``, and everything in a file beside them."""

import json
from pathlib import Path
from typing import Any

from sightline.core.files import write_json

HEADLINE, DETAILS = "metrics.json", "details.json"


def write_figures(folder: Path, headline: dict[str, Any], figures: dict[str, Any], details: str = DETAILS) -> None:
    """Write ``headline``, flat and short, to ``metrics.json`` and all ``figures`` to the file ``details``.

    DVC shows a column for each name in any ``metrics.json``: use a name that another stage has where it means the same.
    """
    write_json(folder / HEADLINE, headline)
    write_json(folder / details, figures)


def report(figures: dict[str, Any], headline: dict[str, Any], folder: Path | None) -> None:
    """Write figures as `write_figures` does; without a folder, print all of them."""
    if folder:
        write_figures(folder, headline, figures)
    else:
        print(json.dumps(figures, indent=2))
