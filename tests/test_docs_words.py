"""The documentation can be read and followed: short, in plain words, its commands run, its links lead somewhere."""

import re
import subprocess
import sys

import pytest
import textstat
from conftest import ROOT
from pages import COMMANDS, DOCS, GUIDES, blocks, own_words, prose

SENTENCE = re.compile(r"(?<=[.!?])\s+")


def test_every_block_of_commands_is_run_by_a_test_or_says_why_not():
    """A test runs a block by its name: `block("depth-folder")`."""
    marked = [block for block in blocks() if block.language in COMMANDS or block.mark]
    assert [(block.page, block.text) for block in marked if not block.mark] == []
    names = [block.words for block in marked if block.mark == "test"]
    assert len(names) == len(set(names)), "a name is there twice"
    tests = "".join(path.read_text() for path in (ROOT / "tests").glob("test_*.py"))
    assert set(names) == set(re.findall(r'\bblock\(\s*"([\w-]+)"', tests))


@pytest.mark.parametrize("page", GUIDES, ids=lambda page: page.name)
def test_guides_are_easy_to_read(page):
    """Flesch's reading ease is 100 for a child's book and 30 for a paper."""
    sentences = [text for part in prose(page.read_text()) for text in SENTENCE.split(part)]
    words = sum(len(sentence.split()) for sentence in sentences)
    assert words / len(sentences) <= 16
    text = " ".join(sentence.rstrip(":.") + "." for sentence in sentences)
    assert textstat.flesch_reading_ease(text) >= 60


def test_the_documentation_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150
    assert sum(len(own_words(page.read_text()).split()) for page in DOCS) <= 18_000


def test_the_site_is_built_and_every_link_leads_somewhere(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", tmp_path / "site"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "site/api/index.html").read_text()
    assert "encode_numpy" in page, "docstrings are filled in"
    assert "Results at a glance" in (tmp_path / "site/index.html").read_text()
