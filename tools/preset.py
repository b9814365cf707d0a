"""Print a file of parameters as options of DVC: ``dvc exp run $(python tools/preset.py params/slices.yaml)``."""

import json
import sys
from argparse import ArgumentParser
from pathlib import Path
from typing import Any

from sightline.core.errors import UserError
from sightline.core.params import parse_yaml


def options(path: Path) -> list[str]:
    """``-S section.key=value`` for each value of the file; without spaces, which would part the words of a shell.

    Raises:
        UserError: a file that cannot be read, or a value with a space.
    """
    try:
        tree = parse_yaml(path.read_text(encoding="utf-8"), str(path))
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    if not isinstance(tree, dict):
        raise UserError(f"{path}: expected sections (`segmentation:` ...)")
    words = [f"-S {key}={_written(value)}" for key, value in _leaves(tree)]
    for word in words:
        if " " in word[3:]:
            raise UserError(f"{path}: {word[3:]}: a space; give this one to `dvc exp run -S` by hand, quoted")
    return words


def _leaves(tree: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    leaves = []
    for key, value in tree.items():
        inside = isinstance(value, dict) and value and all(isinstance(name, str) for name in value)
        leaves += _leaves(value, f"{prefix}{key}.") if inside else [(f"{prefix}{key}", value)]
    return leaves


def _written(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":")).replace('"', "")


if __name__ == "__main__":
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    try:
        sys.stdout.write(" ".join(options(parser.parse_args().file)) + "\n")
    except UserError as error:
        raise SystemExit(f"preset.py: error: {error}") from None
