"""The generated documents are those that their commands write, and what documents name is there."""

import hashlib
import importlib.util
import json
import re
from types import ModuleType

import pytest
from closure import ROOT

from sightline.clip.params import GridParams
from sightline.core.errors import UserError
from sightline.core.params import parse_yaml


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / f"tools/{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


api, glance, parameters, pipeline = map(script, ("api", "glance", "parameters", "pipeline"))


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


def test_the_page_of_the_library_is_up_to_date():
    """Else run python tools/api.py."""
    assert (ROOT / "docs/api.md").read_text() == api.write_page()


def test_the_results_in_the_readme_are_of_the_outputs_that_the_commit_names():
    """Else run python tools/glance.py where the outputs are (`dvc pull`). Where they are, the figures are theirs."""
    readme = (ROOT / "README.md").read_text()
    assert glance.BEGIN.format(glance.digest()) in readme
    if all((ROOT / path).is_file() for path in glance.locked()):
        assert glance.with_table(readme, glance.table(ROOT / "metrics")) == readme


def test_results_are_read_from_the_outputs_of_the_commit_alone(tmp_path, monkeypatch):
    """A table of made-up figures: which baseline is the best, which way is better, and what is refused."""
    probe = {"autoencoder": {"r2": 0.5}, "dct": {"r2": 0.6}}
    columns = ("gripper_position", "object_position", "goal_position", "contact")
    depth = {"codes": {"autoencoder": {"rmse_mm": 20.0}, "dct": {"rmse_mm": 25.0}, "pca": {"rmse_mm": 30.0}},
             "embedding": {"probe": dict.fromkeys(columns, probe)}}  # fmt: skip
    baselines = {"expert": {"success_rate": 1.0}, "hold": {"success_rate": 0.0}, "replay": {"success_rate": 0.25}}
    scenes = {name: dict.fromkeys("abcd") for name in baselines}
    figures = {
        "evaluate/depth": depth,
        "evaluate_fusion": {"nmse": 0.3, "baselines": {"linear": {"nmse": 0.4}, "mean": {"nmse": 1.0}}},
        "rollout": {"success_rate": 0.5, "baselines": baselines, "by_scene": scenes},
        "segmentation": {"dice_mean": 0.4, "baselines": {"mean_mask": {"dice_mean": 0.3}}},
    }
    outs = []
    for row in glance.ROWS:
        (content,) = (of for name, of in figures.items() if name in row.file)
        path = tmp_path / "metrics" / row.file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))
        outs.append({"path": f"metrics/{row.file}", "md5": hashlib.md5(path.read_bytes()).hexdigest()})
    monkeypatch.setattr(glance, "ROOT", tmp_path)
    (tmp_path / "dvc.lock").write_text(json.dumps({"stages": {"all": {"outs": outs}}}))
    lines = glance.table(tmp_path / "metrics").splitlines()[2:]
    assert lines[0].endswith("| 20 mm | a cosine transform: 25 mm | better |")
    assert lines[1].endswith("| 0.5 | a cosine transform: 0.6 | worse |")
    assert lines[6].endswith(
        "| 2 of 4 scenes | replaying a demonstration: 1 of 4; the scripted expert: 4 of 4 | better |"
    )
    path.write_text("{}")
    with pytest.raises(UserError, match="is not the output that"):
        glance.table(tmp_path / "metrics")
    path.unlink()
    with pytest.raises(UserError, match="is not here; `dvc pull` fetches it"):
        glance.table(tmp_path / "metrics")
    (tmp_path / "dvc.lock").write_text(json.dumps({"stages": {"all": {"outs": outs[:-1]}}}))
    with pytest.raises(UserError, match=r"dvc.lock: has no output metrics/evaluate_segmentation_with"):
        glance.digest()


def test_the_graph_in_the_readme_has_the_stages_of_the_pipeline():
    graph = re.search(r"```mermaid\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)[1]
    stages = set(parse_yaml((ROOT / "dvc.yaml").read_text(), "dvc.yaml")["stages"])
    named = set(re.findall(r"[a-z]+(?:_[a-z]+)*", graph.replace("-- features -->", ""))) - {
        "flowchart", "recording"}  # fmt: skip
    packs = {name for name in stages if name.startswith("pack_")}
    by_volumes = {"train_volumes", "evaluate_volumes"}
    assert named - {"pack_views"} == stages - packs - by_volumes


def test_every_script_and_page_that_is_named_is_there():
    named, links = (
        re.compile(r"\b((?:benchmarks|docs|examples|stages|tests|tools)/[\w/]+\.(?:py|sh|md))\b"),
        re.compile(r"\]\(([^)#:]+)[)#]"),
    )
    pages = [
        ROOT / "README.md",
        ROOT / "CONTRIBUTING.md",
        *(ROOT / "docs").glob("*.md"),
        *ROOT.glob("benchmarks/*.*"),
        ROOT / "Makefile",
    ]
    missing = set()
    for page in pages:
        text = page.read_text()
        missing |= {(page.name, name) for name in named.findall(text) if not (ROOT / name).exists()}
        if page.suffix == ".md":
            missing |= {(page.name, name) for name in links.findall(text) if not (page.parent / name).exists()}
    missing.discard(("CONTRIBUTING.md", "stages/measure_depth.py"))  # the stage that its reader makes
    assert missing == set()
