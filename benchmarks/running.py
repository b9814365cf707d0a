"""What the benchmarks that train share: stages as commands, and tables in the documentation."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def stage(
    name: str, *arguments: object, settings: dict[str, object] | None = None, params: Path = Path(os.devnull)
) -> None:
    """Run a stage's script as a command of its own, with ``settings`` over ``params``; its failure ends this one."""
    assignments = [part for key, value in (settings or {}).items() for part in ("--set", f"{key}={value}")]
    command = [sys.executable, str(ROOT / f"stages/{name}.py"), *map(str, arguments)]
    if subprocess.run([*command, "--params", str(params), *assignments], check=False).returncode:
        raise SystemExit(f"{name} failed; nothing is lost, start again to go on")


def put(markdown: str, name: str, target: Path | None) -> None:
    """Print ``markdown``, or put it between the marks called ``name`` of the file ``target``."""
    if target is None:
        print(markdown)
        return
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    text = target.read_text(encoding="utf-8") if target.is_file() else ""
    if begin not in text or end not in text:
        raise SystemExit(f"{target}: lacks the lines {begin} and {end}; put them where the table belongs")
    before, _, rest = text.partition(begin)
    target.write_text(f"{before}{begin}\n{markdown}\n{end}{rest.partition(end)[2]}", encoding="utf-8")
