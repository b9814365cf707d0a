"""The generated documents are those that their commands write, and what documents name is there."""

import importlib.util
import re
from types import ModuleType

import pytest
from closure import ROOT

from sightline.clip.params import GridParams
from sightline.core.params import parse_yaml


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / f"tools/{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


parameters, pipeline = script("parameters"), script("pipeline")


def layout(text: str) -> list[str]:
    """Keys and comments of params.yaml, line by line, without values, and without networks: those are the user's."""
    text = re.sub(r"^grids:.*?(?=^\w)", "", text, flags=re.MULTILINE | re.DOTALL)
    lines = (line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("- "))
    return [re.sub(r"^( *\w+:).*?( #.*)?$", r"\1\2", line).rstrip() for line in lines]


def is_laid_out(text: str) -> bool:
    """Whether params.yaml has the keys and words of the classes, in their order; own comments may stand between."""
    rest, expected = iter(layout(text)), layout(parameters.write_params())
    keys = [re.findall(r"^ *\w+:", "\n".join(lines), re.MULTILINE) for lines in (layout(text), expected)]
    return keys[0] == keys[1] and all(line in rest for line in expected)


def test_the_parameters_and_their_page_are_what_the_classes_say():
    """Else run python tools/parameters.py. The values in params.yaml are the user's; the page has the defaults."""
    assert is_laid_out((ROOT / "params.yaml").read_text())
    assert (ROOT / "docs/parameters.md").read_text() == parameters.write_page()
    text = parameters.write_params()
    for name, field in parameters.sections().items():
        default = field.default if name == "seed" else field.default.model_dump(mode="json")
        if name == "grids":
            default = {
                entry: GridParams(**values).model_dump(mode="json") for entry, values in GridParams.entries.items()
            }
        assert parse_yaml(text, "params.yaml")[name] == default


@pytest.mark.parametrize(
    ("old", "new", "is_right"),
    [
        ("root: data/demo           #", "root: data/mine           #", True),
        ("  depth:\n  - depth\n", "  depth: []\n", True),
        ("    cameras:\n    - global\n", "    # ours\n    cameras: [front, back]\n", True),
        ("  patience: 100             #", "  patience: 100             # at most", False),
        ("  void:  ", "  voids: ", False),
        ("\n  clip:\n", "\n  dino:\n    model: timm:resnet18\n  clip:\n", True),
        ("  # depth: folders with depth images, depth or depth/<camera>; []: none\n", "", False),
        ("\n  designs:\n", "\n  more: 1\n  designs:\n", False),
    ],
)
def test_own_values_are_no_fault_but_other_keys_and_words_are(old, new, is_right):
    text = parameters.write_params()
    assert text.count(old) == 1
    assert is_laid_out(text.replace(old, new)) is is_right


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
    assert "`auto`, `fp32`, `bf16`" in rows["grids.<name>.precision"]
    assert "&lt;image_id>" in rows["grids.<name>.keyed"]


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
