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


def test_the_parameters_and_their_page_are_what_the_classes_say():
    """Else run python tools/parameters.py."""
    text = (ROOT / "params.yaml").read_text()
    assert text == parameters.write_params()
    assert (ROOT / "docs/parameters.md").read_text() == parameters.write_page()
    for name, field in parameters.sections().items():
        default = field.default if name == "seed" else field.default.model_dump(mode="json")
        assert parse_yaml(text, "params.yaml")[name] == default


def test_the_page_of_the_pipeline_is_up_to_date():
    """Else run python tools/pipeline.py."""
    page = (ROOT / "docs/pipeline.md").read_text()
    assert page == pipeline.write_page()
    assert "- reads: `models/<depth>/encoder.safetensors`, `data/normalized/<depth>.hdf5`\n" in page


def test_every_parameter_has_words_and_a_range():
    rows = {line.split("`")[1]: line for line in parameters.write_page().splitlines() if line.startswith("| `")}
    for name, field in parameters.leaves(parameters.sections()):
        assert field.description, name
        assert rows[name].count(" | ") == 3
    assert "| `0.001` | highest learning rate | number, > 0 |" in rows["train.lr"]
    assert "`bc`, `cvae`" in rows["fusion.objective"]
    assert "`auto`, `fp32`, `bf16`" in rows["clip.precision"]
    assert "&lt;image_id>" in rows["clip.keyed"]


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
