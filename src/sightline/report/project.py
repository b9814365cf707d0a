"""What the report is about: the stages of the pipeline, what they measured, experiments, the recording."""

import json
import subprocess
from contextlib import suppress
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import pandas as pd

from sightline.core.errors import UserError
from sightline.core.figures import HEADLINE
from sightline.core.params import parse_yaml
from sightline.recording.layout import read_recording_info
from sightline.recording.split import PARTS


@dataclass(frozen=True)
class Part:
    """What an instance of a stage measured."""

    stage: str  # without the instance
    path: Path  # of its folder, below the root
    root: Path

    @property
    def folder(self) -> Path:
        return self.root / self.path

    @property
    def name(self) -> str:
        """Of the instance, such as actions/nine; "" where a stage has only one."""
        return "/".join(self.path.parts[2:])

    def figures(self) -> dict[str, Any]:
        """Everything that its JSON files hold."""
        return {key: value for path in self.files("json") for key, value in read_json(path).items()}

    def jsons(self) -> list[Path]:
        """Paths of its JSON files, below the root."""
        return [path.relative_to(self.root) for path in self.files("json")]

    def files(self, suffix: str) -> list[Path]:
        return sorted(self.folder.glob(f"*.{suffix}"))


def read_pipeline(root: Path) -> tuple[list[Part], list[tuple[str, str]]]:
    """The stages that measure something, and which stage needs which: (needed, needs).

    Raises:
        UserError: DVC cannot read the pipelines of the project ``root``.
    """
    from dvc.exceptions import DvcException  # takes a second to load, which no page of help should wait for
    from dvc.repo import Repo

    try:
        index = Repo(str(root), uninitialized=True).index
        stages, edges = index.stages, index.graph.edges
    except DvcException as error:
        raise UserError(f"{root}: DVC cannot read its pipelines ({' '.join(str(error).split())})") from None
    parts = [
        Part(stage.name.split("@")[0], Path(out.fs_path).relative_to(root.resolve()).parent, root)
        for stage in stages
        for out in stage.outs
        if stage.name and out.protocol == "local" and Path(out.fs_path).name == HEADLINE  # a file that was added: None
    ]
    named = [(a.name, b.name) for b, a in edges if a.name and b.name]
    return parts, sorted({(a.split("@")[0], b.split("@")[0]) for a, b in named} - {(a, a) for a, _ in named})


def read_json(path: Path) -> dict[str, Any]:
    """Read an object of JSON. Raises `UserError` naming the file where it is none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as JSON ({error})") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: expected an object of figures, got {type(value).__name__}")
    return value


def read_csv(path: Path) -> pd.DataFrame:
    """Read a table. Raises `UserError` naming the file where it is none."""
    try:
        return pd.read_csv(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as CSV ({' '.join(str(error).split())})") from None


def read_parameters(path: Path) -> dict[str, Any]:
    """Everything in ``params.yaml``. Raises `UserError` where it cannot be read."""
    try:
        params = parse_yaml(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from None
    if not isinstance(params, dict):
        raise UserError(f"{path}: expected sections (`train:` ...), got {type(params).__name__}")
    return params


def read_experiments(root: Path, names: list[str], parts: list[Part]) -> dict[str, dict[Path, pd.DataFrame]]:
    """Curves of DVC experiments (or any revisions) by their name: folder -> table.

    Raises:
        UserError: there is no such experiment, or it has no curves here.
    """
    from dvc.api import DVCFileSystem

    curves: dict[str, dict[Path, pd.DataFrame]] = {name: {} for name in names}
    for name, found in curves.items():
        try:
            files = DVCFileSystem(str(root), rev=name)
            for part in parts:
                with suppress(FileNotFoundError):  # not in that experiment, or not fetched
                    found[part.path] = pd.read_csv(StringIO(files.read_text(f"/{part.path}/curves.csv")))
        except Exception as error:  # DVC, its file systems and git have no common one
            raise UserError(f"experiment {name}: cannot be read ({' '.join(str(error).split())})") from None
        if not found:
            raise UserError(f"experiment {name}: no curves are here; fetch them with `dvc exp pull` or `dvc fetch`")
    return curves


def commit_of(root: Path) -> str:
    """The commit that is checked out, and whether tracked files differ from it."""

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=False)
        return done.stdout.strip()

    commit = git("log", "-1", "--format=%h of %cs, %s")
    changed = commit and git("status", "--porcelain", "--untracked-files=no")
    return (commit or "not under git") + (", with changes that are not committed" if changed else "")


def read_trainings(root: Path) -> list[dict[str, Any]]:
    """What the logs of this machine say of its trainings: metrics (the folder), epochs, seconds, machine."""
    runs = sorted((root / "runs").glob("*/*/run.json"), key=lambda path: path.stat().st_mtime)
    latest = {run["metrics"]: run for run in map(read_json, runs)}
    return [latest[name] for name in sorted(latest)]


def read_recording(root: Path, params: dict[str, Any]) -> dict[str, Any]:
    """A sentence on the recording (``text``), and ``samples`` of a held-out frame, with masks if any has some.

    Raises:
        UserError: a file that is there but cannot be read, naming it.
    """
    from sightline.report.charts import samples

    name, index = params["data"]["root"], root / "data/index/frames.parquet"
    data = root / name
    if not (data / "recording.json").is_file() or not index.is_file():
        return {"text": f"The recording {name} or its index is not here.", "samples": {}}
    info = read_recording_info(data / "recording.json")
    try:
        frames = pd.read_parquet(index)
    except (OSError, ValueError) as error:
        raise UserError(f"{index}: not a frame index ({' '.join(str(error).split())})") from None
    counts, episodes = frames["split"].value_counts(), frames.groupby("split")["episode"].nunique()
    split = ", ".join(f"{counts[part]:,} {part} ({episodes[part]} episodes)" for part in PARTS if part in counts)
    text = (
        f"{name}: {len(frames):,} frames at {info.fps:g} per second ({len(frames) / info.fps:,.0f} s), split by whole "
        f"episodes: {split}. Cameras: {', '.join(info.cameras)}. {len(info.joints)} joints."
    )
    ids = frames.loc[(frames["split"] == "test") | ("test" not in counts), "frame_id"].tolist()
    ids = [i for i in ids if (data / f"masks/{i:06d}.png").is_file()] or ids
    frame = ids[len(ids) // 2]
    return {"text": text, "frame": frame, "samples": samples(data, info, frame, params["segmentation"]["camera"])}
