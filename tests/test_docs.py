"""The generated documents are those that their commands write, and what documents name is there."""

import importlib.util
import re
from types import ModuleType

from closure import ROOT

from sightline.core.params import parse_yaml


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / f"tools/{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


parameters, pipeline = script("parameters"), script("pipeline")


def test_the_list_of_parameters_is_up_to_date():
    """Else run python tools/parameters.py."""
    assert (ROOT / "docs/parameters.md").read_text() == parameters.write_page()


def test_the_page_of_the_pipeline_is_up_to_date():
    """Else run python tools/pipeline.py."""
    page = (ROOT / "docs/pipeline.md").read_text()
    assert page == pipeline.write_page()
    assert "- reads: `models/<depth>/encoder.safetensors`, `data/normalized/<depth>.hdf5`\n" in page


def test_every_parameter_is_listed_with_its_range():
    page = (ROOT / "docs/parameters.md").read_text()
    params = parse_yaml((ROOT / "params.yaml").read_text(), "params.yaml")
    names = [name for name, _ in parameters._leaves(params)]
    rows = {line.split("`")[1]: line for line in page.splitlines() if line.startswith("| `")}
    assert list(rows) == names
    assert "| `0.001` | highest learning rate | number, > 0 |" in rows["train.lr"]
    assert "`bc`, `cvae`" in rows["fusion.objective"]
    assert rows["evaluate.edge_mm"].endswith("| millimetres |")
    assert "&lt;image_id>" in rows["clip.keyed"]


def test_a_changed_default_changes_the_page(tmp_path):
    changed = (ROOT / "params.yaml").read_text().replace("edge_mm: 50.0", "edge_mm: 51.0")
    (tmp_path / "params.yaml").write_text(changed)
    assert "| `evaluate.edge_mm` | `51.0` |" in parameters.write_page(tmp_path / "params.yaml")


def test_every_script_and_page_that_is_named_is_there():
    named, links = (
        re.compile(r"\b((?:benchmarks|docs|examples|stages|tests)/[\w/]+\.(?:py|sh|md))\b"),
        re.compile(r"\]\(([^)#:]+)[)#]"),
    )
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *ROOT.glob("benchmarks/*.*"), ROOT / "Makefile"]
    missing = set()
    for page in pages:
        text = page.read_text()
        missing |= {(page.name, name) for name in named.findall(text) if not (ROOT / name).exists()}
        if page.suffix == ".md":
            missing |= {(page.name, name) for name in links.findall(text) if not (page.parent / name).exists()}
    assert missing == set()
