"""The whole pipeline at small size, in a clone of its own, through DVC."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import h5py
import pytest
import yaml
from closure import ROOT
from conftest import default_params
from dvc.utils.hydra import apply_overrides

from sightline.core.files import file_sha256

SMALL = {
    "simulate.episodes": 2, "simulate.steps": 4, "render.global_size": 48, "render.wrist_size": 24,
    "data.split.test": 0, "train.epochs": 1, "train.batch_size": 4, "train.latent_dim": 128, "train.width": 16,
    "evaluate.part": "val", "evaluate.baselines": "[mean_image,pca,dct]",
    "grids.clip.model": "ViT-S-16", "grids.clip.image_size": 32, "grids.clip.grid": 2, "verify_clip_grids.sample": 2,
    "grids.efficientnet.image_size": 64, "grids.efficientnet.grid": 2,
    "fusion.epochs": 1, "views.image_size": 32, "fusion.chunk": 2, "fusion.batch_size": 4,
    "evaluate_fusion.part": "val", "evaluate_segmentation.part": "val",
    "segmentation.image_size": "[32,32]", "segmentation.crop": "[16,16]", "segmentation.epochs": 1,
    "segmentation.steps_per_epoch": 1, "rollout.scenes": 1,
}  # fmt: skip
NETWORKS = ("efficientnet", "clip")
FUSION = {"pack_views@actions"} | {
    f"{stage}@actions-{design}"
    for stage in ("train_fusion", "evaluate_fusion", "rollout") for design in ("stacked", "joints_only")
}  # fmt: skip
SEGMENTATION = {f"{stage}_segmentation{rest}" for stage in ("train", "evaluate")
                for rest in ("@masks", "_with@masks-grids/efficientnet/global")}  # fmt: skip
OF_EMBEDDINGS, OF_GRIDS = (
    {f"{stage}_fusion_with@actions-joints_only-{feature}" for stage in ("train", "evaluate")}
    for feature in ("embeddings/depth.hdf5", "grids/efficientnet/global")
)
VALIDATED = {f"validate_images@{name}" for name in (
    "depth", "masks", "rgb/left_wrist", "rgb/right_wrist", "rgb/global")}  # fmt: skip
DEPTH_CHAIN = ["embed@depth", "evaluate@depth", "extract_encoder@depth", "train_autoencoder@depth"]


class Clone:
    """A copy of the project as git would give it, without recordings that were added; small parameters committed."""

    def __init__(self, root: Path) -> None:
        self.root = root
        listing = ["git", "-C", ROOT, "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
        listed = self._run(listing, Path.cwd())
        for name in filter(None, listed.stdout.split("\0")):
            if (ROOT / name).is_file() and not name.endswith("dvc.lock") and not name.startswith("data/"):
                (root / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / name, root / name)
        (root / "params.yaml").write_text(default_params())
        apply_overrides(root / "params.yaml", [f"{key}={value}" for key, value in SMALL.items()])
        self.run("git", "init", "-q")
        self.commit()

    def commit(self) -> None:
        self.run("git", "add", "-A")
        self.run("git", "-c", "user.name=t", "-c", "user.email=t@t", "commit", "-qm", "small")

    def run(self, *command: str, ok: bool = True) -> subprocess.CompletedProcess:
        """Run a command in the clone, with the clone's own library."""
        result = self._run(command, self.root)
        assert (result.returncode == 0) == ok, result.stdout + result.stderr
        return result

    def ran(self, *command: str) -> list[str]:
        """Run DVC, and return the stages that it ran."""
        return re.findall(r"Running stage '(.+)':", self.run("dvc", *command).stdout)

    def environment(self) -> dict[str, str]:
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("DVC_")}
        return inherited | {"PATH": path, "PYTHONPATH": str(self.root / "src")}

    def _run(self, command, cwd: Path) -> subprocess.CompletedProcess:
        return subprocess.run(command, cwd=cwd, env=self.environment(), capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def clone(tmp_path_factory) -> Clone:
    clone = Clone(tmp_path_factory.mktemp("clone"))
    ran = clone.ran("repro")
    assert ran[:3] == ["demo/dvc.yaml:simulate", "demo/dvc.yaml:render", "check"]  # data.root points to the demo
    assert set(ran[ran.index("normalize@depth") + 1 :]) >= set(DEPTH_CHAIN)
    for name in ("efficientnet-global", "clip-global"):
        assert ran.index(f"clip_grids@{name}") < ran.index(f"verify_clip_grids@{name}")
    clone.commit()
    return clone


def test_it_ends_in_embeddings_of_every_frame(clone):
    with h5py.File(clone.root / "data/embeddings/depth.hdf5") as file:
        assert file["embeddings"].shape == (8, 128)
        assert file["frame_id"][:].tolist() == list(range(8))
    shown = json.loads(clone.run("dvc", "metrics", "show", "--json").stdout)[""]["data"]
    figures = {path.removesuffix("/metrics.json"): file["data"] for path, file in shown.items()}
    assert figures["metrics/embed/depth"]["images"] == 8
    assert figures["metrics/validate"]["episodes"] == 2
    assert figures["metrics/evaluate_fusion/actions/stacked"]["nmse"] > 0
    assert figures["metrics/clip_grids/clip/global"]["random_weights"] == 1
    assert figures["metrics/clip_grids/efficientnet/global"]["random_weights"] == 0
    assert len({name for of in figures.values() for name in of}) <= 28, "columns of dvc metrics show, without the path"
    for name, shape in (("clip", (4, 384)), ("efficientnet", (4, 320))):
        with h5py.File(clone.root / f"data/grids/{name}/global/000000-000001.hdf5") as file:
            assert file["7_grids"].shape == shape


def test_a_second_repro_runs_nothing_and_leaves_git_clean(clone):
    assert clone.ran("repro") == []
    assert clone.run("git", "status", "--porcelain").stdout == ""


@pytest.mark.slow
def test_an_experiment_runs_what_follows_from_the_change_and_is_applied_to_the_workspace(clone):
    ran = clone.ran("exp", "run", "-S", "train.lr=3e-4")
    assert sorted(ran) == sorted([*DEPTH_CHAIN, *OF_EMBEDDINGS])
    assert "lr: 0.0003" in (clone.root / "params.yaml").read_text()
    assert clone.run("git", "diff", "--numstat", "params.yaml").stdout.split()[:2] == ["1", "1"]
    clone.run("dvc", "exp", "run", "-S", "train.lr=1e-4")
    table = clone.run("dvc", "exp", "show", "--only-changed", "--csv").stdout.splitlines()
    assert len(table[0].split(",")) <= 25
    assert len(table) == 5  # names, workspace, commit and two experiments
    assert (clone.root / "data/demo/depth/000000.png").is_file()
    clone.run("git", "checkout", "-q", ".")
    clone.run("dvc", "checkout")
    assert clone.ran("repro") == []


@pytest.mark.slow
def test_a_change_of_colours_neither_simulates_nor_trains_again(clone):
    ran = clone.ran("exp", "run", "-S", "render.rgb_noise=2.0")
    assert ran[0] == "demo/dvc.yaml:render"
    cameras = ("left_wrist", "right_wrist", "global")
    checked = {f"validate_images@rgb/{camera}" for camera in cameras}
    followed = {f"{stage}@{name}-global" for stage in ("clip_grids", "verify_clip_grids") for name in NETWORKS}
    assert set(ran[1:]) == {*checked, *followed, *FUSION, *SEGMENTATION, *OF_EMBEDDINGS, *OF_GRIDS}
    clone.run("git", "checkout", "-q", ".")
    clone.run("dvc", "checkout")


@pytest.mark.slow
def test_other_grids_run_only_what_reads_them(clone):
    """The plain trainings, and those with embeddings, do not run again; nor does a feature that is left out."""
    ran = clone.ran("exp", "run", "-S", "grids.efficientnet.resize=squash")
    grids = {"clip_grids@efficientnet-global", "verify_clip_grids@efficientnet-global"}
    read = {name for name in SEGMENTATION if "_with@" in name}
    assert set(ran) == {*grids, *OF_GRIDS, *read}
    folder = clone.root / "metrics/evaluate_fusion_with/actions/joints_only/grids/efficientnet/global"
    assert "shuffled_grid" in json.loads((folder / "evaluation_results.json").read_text())["use"]
    clone.run("git", "checkout", "-q", ".")
    clone.run("dvc", "checkout")
    added = "stages.fusion_with.designs=[joints_only,shared]"
    ran = clone.ran("exp", "run", "-S", added, "-S", "stages.fusion_with.features=[grids/efficientnet/global]")
    new = {f"{stage}_fusion_with@actions-shared-grids/efficientnet/global" for stage in ("train", "evaluate")}
    assert set(ran) == {"check", *new}
    clone.run("git", "checkout", "-q", ".")
    clone.run("dvc", "checkout")


@pytest.mark.slow
def test_new_recordings_are_held_against_a_committed_reference(clone):
    for folder in ("validate", "validate_images"):
        shutil.copytree(clone.root / "metrics" / folder, clone.root / "reference" / folder)
    clone.commit()
    assert set(clone.ran("repro", "validate", "validate_images")) == {"validate", *VALIDATED}
    clone.commit()
    dark = clone.run("dvc", "exp", "run", "-S", "render.lamp=0.2", "validate", "validate_images")
    said = [line for line in (dark.stdout + dark.stderr).splitlines() if line.startswith("warning: data/demo/rgb")]
    assert len(said) == 3
    assert all(re.search(r": brightness .* of reference/validate_images/rgb/\w+/summary.json; 8 of 8", s) for s in said)
    shown = json.loads((clone.root / "metrics/validate_images/rgb/global/metrics.json").read_text())
    assert shown["outside_range"] == 8
    clone.run("git", "reset", "-q", "--hard", "HEAD~2")
    clone.run("dvc", "checkout")
    assert clone.ran("repro") == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param("train.epochs=many", r"params.yaml .*train.epochs: .*integer, got 'many'", marks=pytest.mark.slow),
        ("train.lr=-1", r"train.lr: .*greater than 0, got -1"),
        pytest.param("+train.epoch=1", r"train.epoch: unknown key; known here: .*epochs, ", marks=pytest.mark.slow),
        ("trian.lr=1", r"Key 'trian' is not in struct"),
    ],
)
def test_a_mistaken_parameter_is_refused_in_one_line_and_nothing_is_lost(clone, change, message):
    result = clone.run("dvc", "exp", "run", "-S", change, ok=False)
    assert re.search(message, result.stdout + result.stderr)
    assert "Traceback" not in result.stderr
    clone.run("git", "checkout", "-q", ".")
    clone.run("dvc", "checkout")
    assert clone.ran("repro") == []


def test_a_recording_without_depth_runs_only_what_it_can(clone):
    assert clone.ran(
        "exp", "run", "-S", "stages.depth=[]", "-S", "stages.images=[rgb/global]", "-S", "stages.demonstrations=[]",
        "-S", "stages.pack.views=[]", "-S", "stages.masks=[]", "-S", "stages.rollouts=[]",
    ) == ["check"]  # fmt: skip
    listed = clone.run("dvc", "stage", "list", "--name-only").stdout.split()
    of_grids = {f"{stage}@{name}-global" for stage in ("clip_grids", "verify_clip_grids") for name in NETWORKS}
    assert set(listed) == {"check", "validate", "validate_images@rgb/global", *of_grids}
    clone.run("git", "checkout", "-q", ".")
    clone.run("dvc", "checkout")


def test_the_report_shows_every_stage_and_says_what_is_not_here(clone):
    page = "metrics/report.html"
    assert f"{page}: 29 parts" in clone.run("python", "-m", "sightline.report").stdout
    first = (clone.root / page).read_text()
    assert len(first) < 6_000_000
    shutil.rmtree(clone.root / "metrics/evaluate/depth")
    said = clone.run("python", "-m", "sightline.report").stdout
    assert "left out: metrics/evaluate/depth is not here" in said
    clone.run("dvc", "checkout")
    clone.run("python", "-m", "sightline.report")
    assert (clone.root / page).read_text() == first
    assert clone.run("git", "status", "--porcelain").stdout == ""


def test_a_tagged_model_leaves_the_project_with_its_card(clone, tmp_path):
    clone.run("git", "-c", "user.name=t", "-c", "user.email=t@t", "tag", "v1.0.0", "-m", "first")
    for path in ("models/depth/encoder.safetensors", "models/fusion/actions/stacked.safetensors"):
        fetched = tmp_path / Path(path).name
        clone.run("dvc", "get", str(clone.root), path, "--rev", "v1.0.0", "-o", str(fetched))
        assert fetched.read_bytes() == (clone.root / path).read_bytes()
    card = json.loads((clone.root / "models/fusion/actions/stacked.card.json").read_text())
    assert card["bytes"] == fetched.stat().st_size
    assert "## Measured" in (clone.root / "models/fusion/actions/stacked.card.md").read_text()


def outputs(root: Path) -> dict[str, str]:
    """Every file that a stage has written, as dvc.lock names them, and its hash."""
    locks = [yaml.safe_load(path.read_text()) for path in (root / "dvc.lock", root / "demo/dvc.lock")]
    outs = [root / out["path"] for lock in locks for stage in lock["stages"].values() for out in stage["outs"]]
    files = [path for out in outs for path in (out.rglob("*") if out.is_dir() else [out]) if path.is_file()]
    return {str(path.relative_to(root)): file_sha256(path) for path in files}


@pytest.mark.slow
def test_a_second_run_elsewhere_writes_the_same_bytes(clone, tmp_path):
    """With a cache of its own, in another folder, later: every file, metrics and pictures among them, is the same."""
    other = Clone(tmp_path)
    assert {*other.ran("repro")} > {*clone.run("dvc", "stage", "list", "--name-only").stdout.split()}  # and the demo's
    first, second = outputs(clone.root), outputs(other.root)
    assert [name for name in sorted(first | second) if first.get(name) != second.get(name)] == []
    assert len([name for name in first if name.endswith("metrics.json")]) > 12


def test_the_graph_is_drawn(clone):
    graph = clone.run("dvc", "dag", "--mermaid").stdout
    assert "train_autoencoder@depth" in graph
    assert "demo/dvc.yaml:render" in graph
