"""Print a preset of parameters as options of DVC: ``dvc exp run $(python tools/preset.py params/gpu.yaml)``."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sightline.core.params import parse_yaml


def options(values: dict[str, Any], place: str = "") -> Iterator[str]:
    """``-S section.key=value`` for each value; lists without spaces, so that a shell keeps them whole."""
    for key, value in values.items():
        if isinstance(value, dict):
            yield from options(value, f"{place}{key}.")
        else:
            yield f"-S {place}{key}={json.dumps(value, separators=(',', ':'))}"


if __name__ == "__main__":
    preset = Path(sys.argv[1])
    print(" ".join(options(parse_yaml(preset.read_text(encoding="utf-8"), str(preset)))))
