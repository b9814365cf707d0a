"""The pages of the documentation: their blocks of commands, which tests run by name, and their prose."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from conftest import ROOT

GENERATED = {f"{name}.md" for name in ("api", "bad-input", "commands", "gpu", "parameters", "pipeline", "reliability")}
FIGURES = {"benchmarks.md", "results.md", "scale.md"}  # pages of measurements
DOCS = sorted(path for path in (ROOT / "docs").glob("*.md") if path.name not in GENERATED)
GUIDES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(path for path in DOCS if path.name not in FIGURES)]
COMMANDS = {"", "sh", "bash", "console", "python"}
_BLOCK = re.compile(r"(?:^<!-- (test|no-test): ([^\n]+) -->\n)?^```(\w*)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_GENERATED_BLOCK = re.compile(r"<!-- ([\w ]+): begin.*?<!-- \1: end -->", re.DOTALL)


class Block(NamedTuple):
    """A fenced block, and what the comment above it says."""

    page: str
    mark: str  # test, no-test, or nothing
    words: str  # the name by which a test runs it, or why none does
    language: str
    text: str


def blocks() -> Iterator[Block]:
    """The blocks of README and guides."""
    for page in GUIDES:
        for mark, words, language, text in _BLOCK.findall(own_words(page.read_text(encoding="utf-8"))):
            yield Block(page.name, mark, words, language, text)


def block(name: str) -> str:
    """The text of the block with this name."""
    (text,) = (block.text for block in blocks() if (block.mark, block.words) == ("test", name))
    return text


def replaced(text: str, **instead: str) -> str:
    """The text with other names, each of which must be there."""
    for name, other in instead.items():
        assert name in text, f"{name} is not in:\n{text}"
        text = text.replace(name, other)
    return text


def environment(place: Path) -> dict[str, str]:
    """Variables with which a shell finds `sightline` of this checkout, python, and scratch space in ``place``."""
    programs = place / ".programs"
    programs.mkdir(exist_ok=True)
    command = programs / "sightline"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m sightline "$@"\n')
    command.chmod(0o755)
    path = f"{programs}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    return os.environ | {"DVC_ROOT": str(place), "PATH": path, "PYTHONPATH": str(ROOT / "src")}


def run(text: str, place: Path, **instead: str) -> str:
    """Run commands in ``place``, with other names; a command that fails ends the test with what it said."""
    command = ["bash", "-euo", "pipefail", "-c", replaced(text, **instead)]
    done = subprocess.run(command, cwd=place, env=environment(place), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def run_python(text: str, place: Path, before: str = "", **instead: str) -> str:
    """Run a block of Python in ``place``, after lines that make what it takes as given."""
    command = [sys.executable, "-c", before + replaced(text, **instead)]
    done = subprocess.run(command, cwd=place, env=environment(place), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def own_words(text: str) -> str:
    """A page without the parts that commands write."""
    return _GENERATED_BLOCK.sub("", text)


def prose(text: str) -> list[str]:
    """The paragraphs and list items of a page: no code, tables, headings or link targets; inline code is "it"."""
    text = re.sub(r"<!--.*?-->", "", _BLOCK.sub("", own_words(text)), flags=re.DOTALL)
    text = re.sub(r"^(\||    |#).*$", "", text, flags=re.MULTILINE)
    text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", text)
    text = re.sub(r"[*_]", "", re.sub(r"`[^`]*`", "it", text))
    parts = (" ".join(part.split()) for part in re.split(r"\n\s*\n|\n(?=\s*(?:-|\d+\.) )", text))
    return [re.sub(r"^(-|\d+\.) ", "", part) for part in parts if part]
