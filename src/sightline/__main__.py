"""The command ``sightline``: ``sightline normalize ...`` runs ``stages/normalize.py`` with these arguments.

Nothing is imported but the chosen command, so that the list of commands appears at once.
"""

import ast
import difflib
import sys
from pathlib import Path
from types import ModuleType

PACKAGE = Path(__file__).resolve().parent
INSTALLED, CHECKOUT = PACKAGE / "stages", PACKAGE.parents[1] / "stages"
GROUPS = {
    "Your recording": ("import_lerobot", "import_hdf5", "import_volumes", "validate", "add_recording", "check"),
    "Depth": ("normalize", "train_autoencoder", "evaluate", "extract_encoder", "embed"),
    "Grid features": ("clip_grids", "verify_clip_grids"),
    "Policy": ("pack_views", "train_fusion", "evaluate_fusion", "rollout"),
    "Segmentation": ("train_segmentation", "evaluate_segmentation"),
    "Simulated recording": ("simulate", "render"),
    "Trained models": ("predict", "export", "report", "drift"),
}
MODULES = {name: f"{name}/__main__.py" for name in ("predict", "export", "report")} | {"drift": "validation/drift.py"}


def script_of(name: str) -> Path:
    """The file behind a command: a stage, or a module of the package."""
    stages = INSTALLED if INSTALLED.is_dir() else CHECKOUT
    if name in MODULES:
        return PACKAGE / MODULES[name]
    return stages / f"{name}.py"


def overview() -> str:
    """The commands by what they are for, each with the first sentence of its file."""
    lines = ["usage: sightline COMMAND [ARGUMENT ...]", "", "sightline COMMAND --help explains a command.", ""]
    for group, names in GROUPS.items():
        lines.append(f"{group}:")
        for name in names:
            text = ast.get_docstring(ast.parse(script_of(name).read_text(encoding="utf-8"))) or ""
            sentence = text.partition("\n")[0].partition(": ``")[0].rstrip(".")
            lines.append(f"  {name:22}{sentence}")
        lines.append("")
    return "\n".join(lines)


def run(script: Path, name: str, arguments: list[str]) -> None:
    """Run a script as ``python SCRIPT ARGUMENTS`` does, under the name that the user typed."""
    module = ModuleType("__main__")
    module.__file__ = str(script)  # worker processes load it from there
    sys.modules["__main__"] = module
    sys.argv = [str(script.with_name(f"sightline {name}")), *arguments]  # its last part is what messages begin with
    exec(compile(script.read_bytes(), script, "exec"), vars(module))


def main() -> None:
    """Run the command that the first argument names. An unknown command is one line and exit status 2."""
    name, *rest = sys.argv[1:] or ["--help"]
    if name in ("-h", "--help"):
        print(overview(), end="")
        return
    known = [command for names in GROUPS.values() for command in names]
    name = name.replace("-", "_")
    if name not in known:
        close = difflib.get_close_matches(name, known, 1)
        advice = f"did you mean {close[0]}?" if close else "sightline --help lists all"
        print(f"sightline: error: no command {name!r}; {advice}", file=sys.stderr)
        raise SystemExit(2)
    run(script_of(name), name, rest)


if __name__ == "__main__":
    main()
