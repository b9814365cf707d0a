"""The commands of the documentation that need the whole pipeline, at small size, in clones, through DVC."""

import re
import subprocess
from pathlib import Path

import pytest
from conftest import recording_folder
from dvc.utils.hydra import apply_overrides
from pages import block, environment, replaced
from test_pipeline import SMALL, Clone
from test_sharing import Owner
from volume_files import write_hearts

pytestmark = pytest.mark.slow
# no environment is made; tests have one
MAKE = {"make ": "make VENV= "}


@pytest.fixture(scope="module")
def clone(tmp_path_factory) -> Owner:
    """The pipeline at small size, all of it run and committed; its remote is the folder beside it."""
    return Owner(tmp_path_factory.mktemp("documented") / "clone")


@pytest.fixture
def again(clone):
    """The clone as it was, after commands that change it."""
    commit = clone.run("git", "rev-parse", "HEAD").stdout.strip()
    yield clone
    clone.run("git", "reset", "-q", "--hard", commit)
    clone.run("git", "clean", "-fdq")
    clone.run("dvc", "checkout", "-q")


def run(clone: Clone, text: str, **instead: str) -> str:
    """Run a block in the clone -> what it printed."""
    variables = clone.environment()
    variables["PATH"] = environment(clone.root)["PATH"]
    command = ["bash", "-euo", "pipefail", "-c", replaced(text, **instead)]
    done = subprocess.run(command, cwd=clone.root, env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    return done.stdout


def lines_of(name: str, *beginnings: str) -> str:
    """The lines of a block that begin so."""
    chosen = [line for line in block(name).splitlines() if line.startswith(beginnings)]
    assert len(chosen) >= len(beginnings)
    return "\n".join(chosen)


def test_the_first_steps(again):
    said = run(again, block("first-steps"), **MAKE, **{". .venv/bin/activate": "true"})
    assert "Data and pipelines are up to date." in said
    assert (again.root / "metrics/report.html").is_file()
    assert "usage: sightline COMMAND" in said


def test_an_experiment_and_the_figures_that_changed(again):
    said = run(again, block("experiment"), **{"fusion.epochs=1 ": "fusion.lr=0.002 "})
    assert re.search(r"metrics/evaluate_fusion\S* +nmse", said)


def test_a_teammate_gives_and_takes(again, tmp_path):
    again.run("git", "init", "-q", "--bare", str(tmp_path / "origin"))
    again.run("git", "remote", "add", "origin", str(tmp_path / "origin"))
    again.run("git", "config", "push.autoSetupRemote", "true")
    (again.root / "note.txt").write_text("a change\n")
    run(again, block("give"), **MAKE)
    said = run(again, block("take"))
    assert "Running stage 'train_fusion@actions-joints_only'" in said
    again.run("git", "remote", "remove", "origin")


def test_experiments_in_a_queue(again):
    text = block("experiments")
    again.run("dvc", "remote", "modify", "--local", "storage", "url", str(again.root.parent / "sightline-storage"))
    text = text.replace("train.lr", "evaluate_fusion.seed").replace("1e-4,3e-4,1e-3", "1,2").replace("=3e-4", "=3")
    waits = "until [ $(dvc queue status | grep -c Success) = 2 ]; do sleep 1; done; dvc queue status"
    name = "$(dvc exp list --name-only | head -1)"
    others = {"dvc queue status ": f"{waits} ", "lr<1e-3": "seed>=0", "apply NAME": f"apply {name}"}
    said = run(again, text, **MAKE, **others)
    assert said.count("Success") >= 2
    assert "nmse" in said
    assert block("threads").strip() in text, "the same line on another page"


def test_a_preset_and_a_feature_are_experiments(again):
    """What they would run, without running it."""
    run(again, block("preset"), **{"dvc exp run": "dvc exp run --queue"})
    run(again, lines_of("features-as-inputs", "dvc exp run"), **{"dvc exp run": "dvc exp run --queue"})
    run(again, "dvc queue remove --all")


def test_one_camera(again):
    packed = "dvc exp run --single-item pack_one_view@actions"
    said = run(again, block("one-camera"), **{"[front]": "[global]", "dvc exp run": packed})
    assert "Running stage 'pack_one_view@actions'" in said


def test_volumes_are_learned_from_in_the_pipeline(again):
    write_hearts(again.root / "HEARTS")
    run(again, lines_of("volumes", "sightline import_volumes"))
    small = "-S segmentation.steps_per_epoch=1 -S segmentation.epochs=1 -S segmentation.labeled_groups=1"
    text = lines_of("volumes", "dvc exp run") + f" {small} train_volumes"
    run(again, text)
    assert (again.root / "models/volumes/hearts.safetensors").is_file()


def test_an_own_robot(again, tmp_path):
    recording_folder(tmp_path / "recording", ("left_wrist", "right_wrist", "global"), depth=False, masks=False)
    again.run("python", "tools/export_lerobot.py", str(tmp_path / "recording"), str(again.root / "DATA_SET"))
    said = run(again, block("own-robot").replace("\ndvc repro", "\ndvc repro check"))
    assert "stages.demonstrations: [actions]" in said
    again.run("rm", "-rf", "data/mine")
    named = {f"{name}=": f"{camera}=" for name, camera in (
        ("observation.images.left", "observation.images.left_wrist"),
        ("observation.images.right", "observation.images.right_wrist"),
        ("observation.images.top", "observation.images.global"),
    )}  # fmt: skip
    run(again, block("choose-cameras"), **named)


def test_new_recordings_are_compared_in_the_pipeline(again):
    again.run("cp", "-rL", "data/demo", "data/new")
    for path in (again.root / "data/new").rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
    for path in [*(again.root / "data/new/rgb").iterdir(), *(again.root / "data/new").iterdir()]:
        if path.name != "rgb":
            again.run("dvc", "add", "-q", str(path.relative_to(again.root)))
    run(again, block("drift-in-the-pipeline"))
    assert (again.root / "metrics/validate/drift.json").is_file()


def test_a_stage_is_added_by_following_the_page(tmp_path):
    """CONTRIBUTING.md, as it stands."""
    clone = Clone(tmp_path / "clone")
    root = clone.root
    (root / "src/sightline/depth/measure.py").write_text(block("add-library"))
    (root / "stages/measure_depth.py").write_text(block("add-script"))
    definition = root / "dvc.yaml"
    definition.write_text(f"{definition.read_text().rstrip()}\n\n" + block("add-pipeline"))
    edit(root / "src/sightline/__main__.py", r'"embed"\)', '"embed", "measure_depth")')
    edit(root / "tests/test_definition.py", r"sum\(lines\) <= (\d+)", r"sum(lines) - 20 <= \1")
    edit(root / "README.md", "    train_autoencoder --> evaluate\n", r"\g<0>    normalize --> measure_depth\n")
    generate, repro = block("add-generated").splitlines()
    run(clone, generate, **MAKE)
    apply_overrides(root / "params.yaml", [f"{key}={value}" for key, value in SMALL.items()])
    said = run(clone, repro)
    assert "Running stage 'measure_depth@depth'" in said
    assert '"good_share"' in (root / "metrics/measure_depth/depth/metrics.json").read_text()
    assert "least share of measured pixels" in clone.run("python", "stages/measure_depth.py", "--help").stdout
    tests = ("tests/test_definition.py", "tests/test_docs.py", "tests/test_command.py")
    options = (
        "-m",
        "not slow",
        "-p",
        "no:cacheprovider",
        "-k",
        "not results_in_the_readme",
    )  # which are of other outputs
    clone.run("python", "-m", "pytest", "-q", *options, *tests)


def edit(path: Path, pattern: str, text: str) -> None:
    changed, count = re.subn(pattern, text, path.read_text())
    assert count == 1, f"{pattern} in {path}"
    path.write_text(changed)
