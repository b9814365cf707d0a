"""Import closure of a stage script, read from the syntax trees: which files of the project it loads."""

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def import_closure(script: Path) -> set[str]:
    """Paths, relative to the project, of ``script`` and of every first-party file that its imports reach."""
    found, waiting = set(), [script]
    while waiting:
        path = waiting.pop()
        if path in found:
            continue
        found.add(path)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{path}: relative import"
                names = [str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)]
            else:
                continue
            for name in names:
                waiting += _files_of(name)
    return {str(path.relative_to(ROOT)) for path in found}


def _files_of(module: str) -> list[Path]:
    """The module's file and the ``__init__`` of each package on the way to it."""
    parts = module.split(".")
    if parts[0] != "sightline":
        return []
    places = [ROOT / "src" / Path(*parts[: n + 1]) for n in range(len(parts))]
    files = [place / "__init__.py" for place in places] + [places[-1].with_suffix(".py")]
    return [file for file in files if file.is_file()]
