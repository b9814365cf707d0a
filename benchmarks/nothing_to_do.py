"""`dvc repro` where nothing has changed, against a shell script whose scripts each find out that nothing has.

    python benchmarks/nothing_to_do.py [--quick]

The peer starts the script of every stage with ``--help``: Python, its imports, its arguments, no work (every twelfth is
timed, and counted twelve times). The bound is starting DVC. The real size is this checkout's pipeline, which has to be
up to date; the quick one a stage of its own.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

from measuring import Bench, Row, command, in_turn
from running import ROOT


def _run(root: Path, *arguments: str) -> str:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("DVC_")} | {"PATH": path}
    done = subprocess.run(arguments, cwd=root, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(arguments)} failed in {root}:\n{done.stderr}")
    return done.stdout


def _own_project(root: Path) -> Path:
    root.mkdir()
    script = ROOT / "stages/normalize.py"
    (root / "dvc.yaml").write_text(f"stages:\n  help: {{cmd: python {script} --help > out, outs: [out]}}\n")
    _run(root, "dvc", "init", "--no-scm", "--quiet")
    _run(root, "dvc", "repro")
    return root


def rows(bench: Bench) -> list[Row]:
    """One row, or none where the pipeline is not up to date."""
    root = _own_project(bench.room / "project") if bench.quick else ROOT
    if "up to date" not in _run(root, "dvc", "repro", "--dry"):
        print("left out: dvc repro with nothing to do; the pipeline is not up to date, run dvc repro", file=sys.stderr)
        return []
    stages = re.findall(r"stages/(\w+)\.py", _run(root, "dvc", "repro", "--dry", "--force"))
    scripts = [str(ROOT / f"stages/{name}.py") for name in stages]
    few = scripts[:: bench.size(12, 1)]
    seconds = in_turn(
        {
            "repro": lambda: _run(root, "dvc", "repro", "--dry"),
            "scripts": lambda: [_run(root, "python", script, "--help") for script in few],
            "start": lambda: _run(root, "dvc", "root"),
        },
        bench.size(3, 1),
        warm=False,
    )
    peer = [value * len(scripts) / len(few) for value in seconds["scripts"]]
    work, between = (
        f"dvc repro with nothing to do, {len(scripts)} stages",
        "reading dvc.yaml and dvc.lock, looking at files",
    )
    return [Row(work, "s", seconds["repro"], peer, "starting each script", seconds["start"], "dvc root", between)]


if __name__ == "__main__":
    command(__doc__, rows)
