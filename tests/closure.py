"""Import closure of a stage script, read from the syntax trees: which files of the project it loads."""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def import_closure(script: Path) -> set[str]:
    """Paths, relative to the project, of ``script`` and of every first-party file that its imports reach.

    Imports for type checkers alone (``if TYPE_CHECKING:``) do not count.
    """
    reached, waiting = set(), [script]
    while waiting:
        path = waiting.pop()
        if path in reached:
            continue
        reached.add(path)
        for node in _run_nodes(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{path}: relative import"
                names = [str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)]
            else:
                continue
            for name in names:
                waiting += _files_of(name)
    return {str(path.relative_to(ROOT)) for path in reached}


def _run_nodes(tree: ast.AST) -> Iterator[ast.AST]:
    """All nodes but those that only a type checker sees."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            yield from (child for part in node.orelse for child in ast.walk(part))
        else:
            yield node
            yield from _run_nodes(node)


def _files_of(module: str) -> list[Path]:
    """The module's file and the ``__init__`` of each package on the way to it."""
    parts = module.split(".")
    if parts[0] != "sightline":
        return []
    places = [ROOT / "src" / Path(*parts[: n + 1]) for n in range(len(parts))]
    files = [place / "__init__.py" for place in places] + [places[-1].with_suffix(".py")]
    return [file for file in files if file.is_file()]
