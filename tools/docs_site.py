"""Hooks of mkdocs (`make docs`): README.md and CONTRIBUTING.md become pages; links into the repository lead there."""

import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
PAGES = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md"}


def on_files(files: Files, config: MkDocsConfig, **_: Any) -> Files:
    """Add the pages that lie in the root of the repository; their links are as from a page of docs/."""
    for source, page in PAGES.items():
        text = re.sub(r"\]\((?!\w+://|#)", "](../", (ROOT / source).read_text(encoding="utf-8"))
        files.append(File.generated(config, page, content=text.replace("](../docs/", "](")))
    return files


def on_page_markdown(markdown: str, config: MkDocsConfig, **_: Any) -> str:
    """Lead links to files outside docs/ to the repository, and put in whole docstrings for their first lines."""
    for source, page in PAGES.items():
        markdown = re.sub(rf"\]\(\.\./{source}(?=[)#])", f"]({page}", markdown)
    markdown = re.sub(r"[^\n]*\n\n<!-- api: ([\w.]+) -->", r"::: \1", markdown)  # in place of the first line
    if config.repo_url:
        return re.sub(r"\]\(\.\./", f"]({config.repo_url.rstrip('/')}/blob/main/", markdown)
    return re.sub(r"\[([^\]]+)\]\(\.\./[^)]*\)", r"\1", markdown)  # not published: the words without the link
