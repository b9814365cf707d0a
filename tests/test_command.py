"""The command `sightline`: it lists the commands at once, runs them as the scripts run, and explains all parameters."""

import ast
import re
import runpy
import subprocess
import sys
import tomllib

import pytest
from conftest import ROOT, depth_folder
from pages import environment

from sightline import __main__ as command
from sightline.core.params_help import leaves

TOOL = runpy.run_path(str(ROOT / "tools/commands.py"))
STAGES = TOOL["stages"]()


@pytest.fixture
def sightline(tmp_path):
    """Run the command in ``tmp_path``."""

    def run(*arguments: object) -> subprocess.CompletedProcess:
        line = ["sightline", *map(str, arguments)]
        return subprocess.run(
            line, cwd=tmp_path, env=environment(tmp_path), capture_output=True, text=True, check=False
        )

    return run


def loaded_by(code: str) -> set[str]:
    """The packages that are loaded after some lines of Python."""
    lines = f"import sys\ntry:\n    {code}\nexcept SystemExit:\n    pass\nprint('loaded', *sys.modules)"
    done = subprocess.run([sys.executable, "-c", lines], cwd=ROOT, capture_output=True, text=True, check=True)
    return {name.partition(".")[0] for name in done.stdout.rpartition("loaded")[2].split()}


def test_it_lists_every_stage_with_a_sentence(sightline):
    assert set(STAGES) == {path.stem for path in (ROOT / "stages").glob("[a-z]*.py")}
    lines = sightline().stdout.splitlines()
    shown = {line.split()[0]: line.split(maxsplit=1)[1] for line in lines if line.startswith("  ")}
    assert set(shown) == {*STAGES, "predict", "export", "report", "drift"}
    assert all(len(sentence) > 20 for sentence in shown.values())


def test_it_is_installed():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["project"]["scripts"] == {"sightline": "sightline.__main__:main"}
    assert "help/*.txt" in project["tool"]["setuptools"]["package-data"]["sightline"]


def test_the_list_of_commands_loads_nothing_that_takes_time():
    """Half a second is plenty: Python alone, and this module."""
    loaded = loaded_by("sys.argv = ['sightline', '--help']; import sightline.__main__ as m; m.main()")
    assert not loaded & {"torch", "numpy", "pandas", "pydantic", "yaml", "h5py", "lightning", "dvc", "pyarrow", "PIL"}


@pytest.mark.parametrize("name", STAGES)
def test_the_help_of_a_stage_is_what_is_stored_and_names_every_parameter(name):
    """Else run python tools/commands.py."""
    stored = (ROOT / f"src/sightline/help/{name}.txt").read_text()
    assert stored == TOOL["help_of"](name)
    params = runpy.run_path(str(ROOT / f"stages/{name}.py")).get("Params")
    for parameter, field in leaves(params.model_fields, entry="") if params else ():
        assert f"\n  {parameter} = " in stored
        assert field.description


def test_the_page_of_commands_is_up_to_date():
    """Else run python tools/commands.py."""
    assert (ROOT / "docs/commands.md").read_text() == TOOL["write_page"]()


def test_the_help_of_a_stage_loads_no_torch():
    arguments = "sys.argv = ['stages/train_fusion.py', '--help']"
    loaded = loaded_by(f"{arguments}; import runpy; runpy.run_path(sys.argv[0], run_name='__main__')")
    assert "pydantic" in loaded
    assert not loaded & {"torch", "lightning", "pandas"}


def test_a_command_is_the_script(sightline, stage, tmp_path):
    depth_folder(tmp_path / "depth", 3)
    options = ("--set", "normalize.height_range=[500,1500]", "--processes", 1)
    assert sightline("normalize", "depth", "a.hdf5", *options).returncode == 0
    assert stage("normalize", "depth", "b.hdf5", *options).returncode == 0
    assert (tmp_path / "a.hdf5").read_bytes() == (tmp_path / "b.hdf5").read_bytes()
    done = sightline("normalize", "nothing", "c.hdf5")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "sightline normalize: error: nothing: no such folder"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("normalise", "no command 'normalise'; did you mean normalize?"),
        ("clip-grid", "no command 'clip_grid'; did you mean clip_grids?"),
        ("../normalize", "no command '../normalize'; did you mean normalize?"),
        ("zzz", "no command 'zzz'; sightline --help lists all"),
    ],
)
def test_an_unknown_command_is_one_line(sightline, name, message):
    done = sightline(name)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"sightline: error: {message}\n")


def test_a_command_may_have_hyphens(sightline):
    assert sightline("clip-grids", "--help").stdout == (ROOT / "src/sightline/help/clip_grids.txt").read_text()


def test_commands_come_from_the_checkout_or_from_the_installed_stages(tmp_path, monkeypatch):
    assert command.script_of("normalize") == ROOT / "stages/normalize.py"
    (tmp_path / "stages").mkdir()
    monkeypatch.setattr(command, "INSTALLED", tmp_path / "stages")
    assert command.script_of("normalize") == tmp_path / "stages/normalize.py"


def test_messages_name_commands_as_users_type_them():
    for path in sorted((ROOT / "src/sightline").rglob("*.py")) + sorted((ROOT / "stages").glob("[a-z]*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        docs = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        texts = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and id(node) not in docs]
        scripts = [text for text in texts if isinstance(text, str) and re.search(r"stages/\w+\.py", text)]
        assert scripts == [] or path.name == "card.py", f"{path}: write sightline NAME: {scripts}"  # cards are outputs
