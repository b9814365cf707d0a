"""The pipeline's definition tells the truth: declared code, parameters and data are what the stages use."""

import functools
import importlib.util
import json
import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from closure import ROOT, import_closure
from conftest import default_params
from dvc.dependency import ParamsDependency
from dvc.repo import Repo
from dvc.repo.reproduce import collect_stages, get_active_graph, plan_repro
from dvc.stage import PipelineStage
from dvc.utils.hydra import apply_overrides

from sightline.core.params import Entry, Excerpt, parse_yaml

PARAMS = parse_yaml(default_params(), "params.yaml")


def _lookup(name: str) -> Any:
    return functools.reduce(lambda section, key: section[key], name.split("."), PARAMS)


def _project(root: Path) -> Path:
    """Both files and the default parameters, as a DVC project."""
    Repo.init(root, no_scm=True)
    (root / "demo").mkdir(parents=True)
    for name in ("dvc.yaml", "demo/dvc.yaml"):
        (root / name).write_text((ROOT / name).read_text())
    (root / "params.yaml").write_text(default_params())
    return root


def _stages() -> dict[str, dict[str, Any]]:
    """Every stage of both files, as DVC sees it: templates filled in, matrix stages once for each value."""
    stages = {}
    with tempfile.TemporaryDirectory() as folder, Repo(_project(Path(folder))) as repo:
        for stage in repo.index.stages:
            if isinstance(stage, PipelineStage):  # the others are tracked files
                of_params = [dep for dep in stage.deps if isinstance(dep, ParamsDependency)]
                stages[stage.name] = {
                    "cmd": stage.cmd,
                    "deps": [dep.def_path for dep in stage.deps if dep not in of_params],
                    "outs": [out.def_path for out in stage.outs],
                    "metrics": [out.def_path for out in stage.outs if out.metric],
                    "plots": [out.def_path for out in stage.outs if out.plot],
                    "params": [name for dep in of_params for name in dep.params],
                    "desc": stage.desc,
                }
    return stages


STAGES = _stages()
SCRIPTS = {name: re.search(r"stages/\w+\.py", stage["cmd"])[0] for name, stage in STAGES.items()}
OUTS = [out for stage in STAGES.values() for out in stage["outs"]]
BY_HAND = (  # make recordings, and take them in
    "stages/import_hdf5.py", "stages/import_lerobot.py", "stages/import_volumes.py", "stages/add_recording.py",
)  # fmt: skip
is_code = re.compile(r"stages/\w+\.py|src/sightline/\w+").fullmatch


@pytest.mark.parametrize("name", STAGES)
def test_declared_code_is_the_script_and_the_folders_that_its_imports_enter(name):
    declared = [dep for dep in STAGES[name]["deps"] if is_code(dep)]
    imported = import_closure(ROOT / SCRIPTS[name]) - {"src/sightline/__init__.py"}  # a docstring
    folders = {str(Path(*Path(path).parts[:3])) for path in imported if path.startswith("src/")}
    assert sorted(declared) == sorted({SCRIPTS[name], *folders})


FLOORS = {"core": set(), "recording": {"core"}, "grids": {"core"}, "training": {"core", "recording"}}
MEETINGS = {
    "rollout": {"demo", "fusion"},
    "export": {"depth", "fusion", "segmentation"},
    "predict": {"depth", "fusion", "segmentation", "importers", "validation"},
}  # folders that use several branches, and which none of them knows
BRANCHES = ("validation", "demo", "importers", "depth", "clip", "fusion", "segmentation", "report")


@pytest.mark.parametrize("folder", [*FLOORS, *BRANCHES, *MEETINGS])
def test_imports_go_down(folder):
    """From branches to floors to the core; branches meet in files, and in the folders above them."""
    allowed = FLOORS.get(folder, {*FLOORS, *MEETINGS.get(folder, ())})
    reached = set().union(*(import_closure(path) for path in (ROOT / "src/sightline" / folder).glob("*.py")))
    assert {Path(path).parts[2] for path in reached} <= {*allowed, folder, "__init__.py"}


def test_there_are_no_loose_modules():
    assert {path.name for path in (ROOT / "src/sightline").glob("*.py")} == {"__init__.py", "__main__.py"}


def _leaves(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {prefix: value}
    return {
        k: v for key, child in value.items() for k, v in _leaves(child, f"{prefix}.{key}" if prefix else key).items()
    }


def _params_class(script: str) -> type:
    spec = importlib.util.spec_from_file_location(Path(script).stem, ROOT / script)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.Params


def _declared(params: type, cmd: str) -> list[str]:
    """What a stage with this class of parameters declares: sections; of an excerpt, its keys alone; one of entries."""
    names = []
    for name, field in params.model_fields.items():
        kind = field.annotation if isinstance(field.annotation, type) else object
        if issubclass(kind, Entry):
            (entry,) = re.findall(r"--name (\w+)", cmd)
            names.append(f"{name}.{entry}")
        else:
            names += [f"{name}.{key}" for key in kind.model_fields] if issubclass(kind, Excerpt) else [name]
    return names


@pytest.mark.parametrize("name", STAGES)
def test_declared_params_are_the_sections_of_the_params_class(name):
    assert sorted(STAGES[name]["params"]) == sorted(_declared(_params_class(SCRIPTS[name]), STAGES[name]["cmd"]))


def test_the_check_alone_declares_the_lists_of_stages_and_nothing_waits_for_it():
    assert [name for name, stage in STAGES.items() if "stages" in stage["params"]] == ["check"]
    outs = set(STAGES["check"]["outs"])
    assert not [name for name, stage in STAGES.items() if outs & set(stage["deps"])]


def test_the_check_comes_before_all_that_reads_the_recording(tmp_path, monkeypatch):
    """DVC goes through the stages as they stand in the file, and puts before each what it depends on."""
    monkeypatch.chdir(_project(tmp_path))
    with Repo() as repo:
        plan = plan_repro(get_active_graph(repo.index.graph), collect_stages(repo, ["dvc.yaml"]))
    assert [stage.addressing.split(":")[-1] for stage in plan][:3] == ["simulate", "render", "check"]


@pytest.mark.parametrize("name", STAGES)
def test_data_dependencies_are_outs_or_tracked_files(name):
    for dep in STAGES[name]["deps"]:
        assert (
            is_code(dep) or dep in OUTS or (ROOT / f"{dep}.dvc").is_file() or dep == PARAMS["validation"]["reference"]
        ), dep


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
        assert len(stage["metrics"]) == (stem not in ("simulate", "render", "check", "extract_encoder")), name
        assert all(path.startswith(f"metrics/{stem}") for path in stage["metrics"] + stage["plots"]), name


def test_the_definition_is_short():
    lines = [len((ROOT / file).read_text().splitlines()) for file in ("dvc.yaml", "demo/dvc.yaml")]
    assert sum(lines) <= 627


def test_trainings_and_extractions_can_be_launched_on_many_gpus():
    for name in (
        "train_autoencoder@depth", "embed@depth", "clip_grids@efficientnet-global", "clip_grids@clip-global",
        "train_fusion@actions-stacked", "train_segmentation@masks",
        "train_fusion_with@actions-joints_only-grids/efficientnet/global",
        "train_segmentation_with@masks-grids/efficientnet/global",
    ):  # fmt: skip
        assert STAGES[name]["cmd"].startswith("${SIGHTLINE_LAUNCHER:-python} stages/")


@pytest.mark.parametrize("name", ["simulate", "render", "validate", "validate_images", "normalize"])
def test_the_recording_for_the_probes_declares_the_code_and_the_parameters_that_its_stages_use(name):
    stage = yaml.safe_load((ROOT / "demo/probes/dvc.yaml").read_text())["stages"][name]
    script = re.search(r"stages/\w+\.py", stage["cmd"])[0]
    declared = {dep.removeprefix("../../") for dep in stage["deps"] if dep.startswith("../../")}
    imported = import_closure(ROOT / script) - {"src/sightline/__init__.py"}
    assert declared == {script, *(str(Path(*Path(path).parts[:3])) for path in imported if path.startswith("src/"))}
    params = _params_class(script)
    values = parse_yaml((ROOT / "demo/probes/params.yaml").read_text(), "params.yaml")
    assert stage["params"] == list(params.model_fields)
    assert params.model_validate_json(json.dumps({key: values[key] for key in stage["params"]}))


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


@pytest.mark.parametrize(
    ("pins", "ranges"),
    [("requirements.txt", "dependencies"), ("requirements-dev.txt", "dev"), ("requirements-docs.txt", "docs")],
)
def test_every_package_that_the_project_names_is_pinned(pins, ranges):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    named = project.get(ranges) or project["optional-dependencies"][ranges]

    def names(lines: list[str]) -> set[str]:
        found = {re.split(r"[\[=<>~ ;]", line)[0] for line in lines if not line.startswith("#")}
        return {name.lower().replace("_", "-") for name in found}

    assert names(named) <= names((ROOT / pins).read_text().splitlines())


def unread_parameters(params: dict[str, Any]) -> list[str]:
    """Leaves of the parameters that no stage declares and no path or matrix in the definition uses."""
    text = (ROOT / "dvc.yaml").read_text() + (ROOT / "demo/dvc.yaml").read_text()
    read = {*re.findall(r"\$\{([\w.]+)", text), *(param for stage in STAGES.values() for param in stage["params"])}
    return sorted(leaf for leaf in _leaves(params) if not any(f"{leaf}.".startswith(f"{name}.") for name in read))


def test_every_parameter_is_read_by_a_stage():
    assert unread_parameters(PARAMS) == []


def test_every_stage_is_described():
    assert all(stage["desc"] for stage in STAGES.values())


def _resolved(root: Path) -> dict[str, Any]:
    """Every stage as DVC sees it: command, dependencies, values of the declared parameters, outputs."""
    shown = {}
    for stage in Repo(root).index.stages:
        values = [dep.read_params() for dep in stage.deps if isinstance(dep, ParamsDependency)]
        shown[stage.name] = stage.cmd, sorted(map(str, stage.deps)), values, sorted(map(str, stage.outs))
    return shown


def test_a_changed_list_of_stages_makes_no_other_stage_stale(tmp_path):
    """With an entry more in each list, what DVC compares of the stages before is the same; so it is with one fewer.

    But for the check, which reads the lists.
    """
    _project(tmp_path)
    apply_overrides(tmp_path / "params.yaml", ["views.cameras=[left_wrist,right_wrist,global,top]"])  # fits each pack
    before = _resolved(tmp_path)
    assert set(before) == set(STAGES)
    lists = _leaves(PARAMS["stages"])
    longer = [f"stages.{key}={json.dumps([*entries, f'more_{key}'])}" for key, entries in lists.items()]
    apply_overrides(tmp_path / "params.yaml", longer)
    after = _resolved(tmp_path)
    for key in lists:
        assert [name for name in after if f"more_{key}" in name], f"stages.{key} makes no stage"
    assert [name for name in before if after.get(name) != before[name]] == ["check"]


def test_a_stage_with_a_feature_reads_that_feature_alone(tmp_path):
    """Beside it, what the stage without reads; with empty lists there are no such stages, and the others are the same.

    So a changed file of features makes no stage stale but those that read it.
    """
    of_features = {name for name in STAGES if "_with@" in name}
    for name in of_features:
        stem, instance = name.split("_with@")
        *rest, feature = instance.split("-")
        plain = STAGES[f"{stem}@{'-'.join(rest)}"]
        inputs = {dep for dep in STAGES[name]["deps"] if not dep.startswith("models/")}
        assert inputs == {dep for dep in plain["deps"] if not dep.startswith("models/")} | {f"data/{feature}"}
        assert STAGES[name]["params"] == plain["params"]
        assert not set(STAGES[name]["outs"]) & set(plain["outs"])
        assert re.findall(r"--feature (\S+)", STAGES[name]["cmd"]) == [f"data/{feature}"]
    read = {name.split("-")[-1] for name in of_features if name.startswith("train_fusion")}
    assert read == {"embeddings/depth.hdf5", "grids/efficientnet/global"}, "the demo trains with each feature"
    before = _resolved(_project(tmp_path))
    empty = ["stages.fusion_with.features=[]", "stages.segmentation_with=[]"]
    apply_overrides(tmp_path / "params.yaml", empty)
    after = _resolved(tmp_path)
    assert set(before) - set(after) == of_features
    assert [name for name in after if after[name] != before[name]] == ["check"]


def test_a_file_of_volumes_is_learnt_from_by_the_code_and_parameters_of_masks(tmp_path):
    """Beside the recording's chain: no stage but the check becomes stale."""
    before = _resolved(_project(tmp_path))
    apply_overrides(tmp_path / "params.yaml", ["stages.volumes=[hearts]"])
    after = _resolved(tmp_path)
    assert {name for name in before if after[name] != before[name]} == {"check"}
    assert set(after) - set(before) == {"train_volumes@hearts", "evaluate_volumes@hearts"}
    for name in ("train", "evaluate"):
        cmd, deps, values, _ = after[f"{name}_volumes@hearts"]
        of_masks = after[f"{name}_segmentation@masks"]
        assert [dep for dep in deps if is_code(dep)] == [dep for dep in of_masks[1] if is_code(dep)]
        assert values == of_masks[2]
        assert "data/volumes/hearts.hdf5" in deps
        assert "--volumes data/volumes/hearts.hdf5" in cmd


def _lines_of(text: str, leaf: str) -> tuple[list[str], list[str]]:
    """The lines that hold a parameter, the items of a list among them, and all the others."""
    lines, names, first = text.splitlines(), leaf.split("."), 0
    for depth, key in enumerate(names):
        first = next(i for i in range(first, len(lines)) if re.match(rf"{'  ' * depth}{key}:", lines[i]))
    last = first + 1
    while last < len(lines) and re.match(rf"{'  ' * (len(names) - 1)}- ", lines[last]):
        last += 1
    return lines[first:last], lines[:first] + lines[last:]


def test_an_experiment_changes_the_lines_of_its_parameters_alone(tmp_path):
    """DVC writes params.yaml anew for `-S`, and drops or moves what stands behind a list.

    Values of one line are changed together, to spare time; what is a list, or becomes one, is changed by itself.
    """
    text, leaves = default_params(), _leaves(PARAMS)
    others = {bool: "false", str: "other", int: "77", float: "3e-07", type(None): "77"}
    plain = {
        leaf: others[type(value)] for leaf, value in leaves.items() if type(value) in others and value is not False
    }
    plain |= {leaf: "true" for leaf, value in leaves.items() if value is False}
    experiments = [{"train.lr": "3e-4"}, plain]
    experiments += [{leaf: "[7,8]"} for leaf, value in leaves.items() if value in (None, [])]
    for leaf in (leaf for leaf, value in leaves.items() if isinstance(value, list) and value):
        experiments += [{leaf: "[]"}, {leaf: "[7,8,9,10,11,12,13]"}]
    for changes in experiments:
        (tmp_path / "params.yaml").write_text(text)
        apply_overrides(tmp_path / "params.yaml", [f"{leaf}={other}" for leaf, other in changes.items()])
        before, after = text, (tmp_path / "params.yaml").read_text()
        expected = {leaf: parse_yaml(other, "") for leaf, other in changes.items()}
        assert _leaves(parse_yaml(after, "params.yaml")) == leaves | expected
        for leaf in changes:
            assert isinstance(leaves[leaf] or expected[leaf], list) or len(_lines_of(after, leaf)[0]) == 1
            before, after = ("\n".join(_lines_of(lines, leaf)[1]) for lines in (before, after))
        assert after == before
