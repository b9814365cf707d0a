"""The pipeline's definition tells the truth: declared code, parameters and data are what the stages use."""

import importlib.util
import itertools
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from closure import ROOT, import_closure
from dvc.utils.hydra import apply_overrides
from pydantic import BaseModel

from sightline.core.params import load_params, parse_yaml

PATHS = ("deps", "outs", "metrics", "plots")
PARAMS = parse_yaml((ROOT / "params.yaml").read_text(), "params.yaml")


def _lookup(name: str) -> Any:
    value = PARAMS
    for key in re.findall(r"\w+", name):
        value = value[int(key) if key.isdigit() else key]
    return value


def _resolve(text: str, item: dict[str, str]) -> str:
    return re.sub(
        r"(?<!\\)\$\{([\w.\[\]]+)\}", lambda m: str(item[m[1][5:]] if m[1].startswith("item.") else _lookup(m[1])), text
    )


def _path(entry: str | dict[str, Any]) -> str:
    return entry if isinstance(entry, str) else next(iter(entry))


def _stages() -> dict[str, dict[str, Any]]:
    """Every stage of both files with templates filled in, matrix stages once for each value."""
    stages = {}
    for file in ("dvc.yaml", "demo/dvc.yaml"):
        for name, stage in yaml.safe_load((ROOT / file).read_text())["stages"].items():
            matrix = {key: _lookup(values[2:-1]) for key, values in stage.get("matrix", {}).items()}
            for chosen in itertools.product(*matrix.values()):
                item = dict(zip(matrix, chosen, strict=True))
                filled = {part: [_resolve(_path(entry), item) for entry in stage.get(part, [])] for part in PATHS}
                filled["outs"] += filled["metrics"] + filled["plots"]
                filled |= {
                    "cmd": _resolve(stage["cmd"], item),
                    "params": stage.get("params", []),
                    "desc": stage["desc"],
                }
                stages[f"{name}@{'-'.join(chosen)}" if chosen else name] = filled
    return stages


STAGES = _stages()
SCRIPTS = {name: re.search(r"stages/\w+\.py", stage["cmd"])[0] for name, stage in STAGES.items()}
OUTS = [out for stage in STAGES.values() for out in stage["outs"]]
BY_HAND = ("stages/import_hdf5.py", "stages/import_lerobot.py")  # make recordings, which the pipeline then reads
is_code = re.compile(r"stages/\w+\.py|src/sightline/\w+").fullmatch


@pytest.mark.parametrize("name", STAGES)
def test_declared_code_is_the_script_and_the_folders_that_its_imports_enter(name):
    declared = [dep for dep in STAGES[name]["deps"] if is_code(dep)]
    imported = import_closure(ROOT / SCRIPTS[name]) - {"src/sightline/__init__.py"}  # a docstring
    folders = {str(Path(*Path(path).parts[:3])) for path in imported if path.startswith("src/")}
    assert sorted(declared) == sorted({SCRIPTS[name], *folders})


@pytest.mark.parametrize("floor", ["core", "recording", "grids", "training"])
def test_the_ground_and_the_floors_import_no_branch(floor):
    """Arrows go down: the core imports nothing above it, and a floor no branch and no other floor but the recording."""
    allowed = {"core", floor} | ({"recording"} if floor != "core" else set())
    reached = set().union(*(import_closure(path) for path in (ROOT / "src/sightline" / floor).glob("*.py")))
    assert {Path(path).parts[2] for path in reached} <= {*allowed, "__init__.py"}


def test_loose_modules_are_the_top_commands_alone():
    assert {path.name for path in (ROOT / "src/sightline").glob("*.py")} == {"__init__.py", "predict.py"}


def _leaves(value: Any, prefix: str) -> set[str]:
    if isinstance(value, BaseModel):
        value = {key: getattr(value, key) for key in type(value).model_fields}
    if isinstance(value, dict):
        return {leaf for key, child in value.items() for leaf in _leaves(child, f"{prefix}.{key}" if prefix else key)}
    return {prefix}


def _params_class(script: str) -> type:
    spec = importlib.util.spec_from_file_location(Path(script).stem, ROOT / script)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.Params


@pytest.mark.parametrize("name", STAGES)
def test_declared_params_are_the_fields_of_the_params_class(name):
    declared = {leaf for param in STAGES[name]["params"] for leaf in _leaves(_lookup(param), param)}
    params = load_params(_params_class(SCRIPTS[name]), ROOT / "params.yaml")
    assert declared == _leaves(params, "")


@pytest.mark.parametrize("name", STAGES)
def test_data_dependencies_are_outs_or_tracked_files(name):
    for dep in STAGES[name]["deps"]:
        assert is_code(dep) or dep in OUTS or (ROOT / f"{dep}.dvc").is_file() or dep == PARAMS["data"]["reference"], dep


def _is_used(path: str, words: list[str]) -> bool:
    """Whether it is named, lies in a folder that is, or is the card of a model that is."""
    return any(path.startswith(word.removesuffix(".safetensors")) for word in words)


@pytest.mark.parametrize("name", STAGES)
def test_commands_use_what_is_declared(name):
    stage = STAGES[name]
    paths = [word for word in stage["cmd"].split() if re.match(r"(data|models|metrics)/|reference$", word)]
    for path in paths:
        declared = [known for known in stage["deps"] + stage["outs"] if known.startswith(path)]
        assert declared, f"{path} is neither a dep nor an out, nor a folder of one"
    for path in stage["deps"] + stage["outs"]:
        assert is_code(path) or _is_used(path, paths), f"{path} is declared, but not used"


def test_no_out_switches_the_run_cache_off():
    text = (ROOT / "dvc.yaml").read_text() + (ROOT / "demo/dvc.yaml").read_text()
    assert not re.search(r"persist|cache:|always_changed|frozen", text)


def test_nothing_at_the_top_level_names_a_camera_or_a_design():
    """Metrics and plots are the stages' own, so that they follow the parameters."""
    assert set(yaml.safe_load((ROOT / "dvc.yaml").read_text())) == {"stages"}
    for name, stage in STAGES.items():
        stem = name.split("@")[0]
        assert len(stage["metrics"]) == (stem not in ("simulate", "render", "extract_encoder")), name
        assert all(path.startswith(f"metrics/{stem}") for path in stage["metrics"] + stage["plots"]), name


def test_the_definition_is_short():
    lines = [len((ROOT / file).read_text().splitlines()) for file in ("dvc.yaml", "demo/dvc.yaml")]
    assert sum(lines) <= 440


def test_trainings_and_extractions_can_be_launched_on_many_gpus():
    for name in (
        "train_autoencoder@depth", "embed@depth", "clip_grids@global", "train_fusion@actions-nine",
        "train_segmentation@masks",
    ):  # fmt: skip
        assert STAGES[name]["cmd"].startswith("\\${SIGHTLINE_LAUNCHER:-python} stages/")


@pytest.mark.parametrize("script", sorted((ROOT / "stages").glob("[a-z]*.py")), ids=lambda path: path.name)
def test_stage_scripts_are_thin_and_used(script):
    assert len(script.read_text().splitlines()) <= 40
    assert f"stages/{script.name}" in {*SCRIPTS.values(), *BY_HAND}


def test_an_installed_library_has_every_folder_and_the_stages():
    """Stages are also modules, which setuptools finds in their folder beside the library's."""
    folders = {path.parent.name for path in (ROOT / "src/sightline").glob("*/__init__.py")}
    setup = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert set(setup["packages"]) == {"sightline", "sightline.stages", *(f"sightline.{name}" for name in folders)}
    command = [sys.executable, "-m", "sightline.stages.extract_encoder", "--help"]
    done = subprocess.run(command, cwd="/", capture_output=True, text=True, check=True)
    assert "Extract the encoder" in done.stdout


def unread_parameters(params: dict[str, Any]) -> list[str]:
    """Leaves of the parameters that no stage declares and no path or matrix in the definition uses."""
    text = (ROOT / "dvc.yaml").read_text() + (ROOT / "demo/dvc.yaml").read_text()
    read = {*re.findall(r"\$\{([\w.]+)", text), *(param for stage in STAGES.values() for param in stage["params"])}
    return sorted(leaf for leaf in _leaves(params, "") if not any(f"{leaf}.".startswith(f"{name}.") for name in read))


def test_every_parameter_is_read_by_a_stage():
    assert unread_parameters(PARAMS) == []


def test_every_stage_is_described():
    assert all(stage["desc"] for stage in STAGES.values())


@pytest.mark.parametrize("leaf", sorted(_leaves(PARAMS, "")))
def test_every_parameter_has_a_comment(leaf):
    name = leaf.split(".")[-1]
    assert re.search(rf"^ *{name}: .*# \w|# .*\b{name}: \w", (ROOT / "params.yaml").read_text(), re.MULTILINE)


def test_the_parameters_survive_an_override(tmp_path):
    """DVC rewrites params.yaml for `-S`; a comment behind the key of a list would break the file."""
    text = (ROOT / "params.yaml").read_text()
    path = tmp_path / "params.yaml"
    path.write_text(text)
    for overrides in (
        ["data.depth=[]", "data.images=[]", "data.masks=[]", "clip.cameras=[]", "fusion.designs=[]"],
        ["normalize.height_range=[1,2]"],
        ["normalize.invalid=[]"],
    ):
        apply_overrides(path, overrides)
    changed = parse_yaml(path.read_text(), "params.yaml")
    assert (changed["data"]["depth"], changed["normalize"]["height_range"]) == ([], [1, 2])
    assert changed["train"] == PARAMS["train"]
