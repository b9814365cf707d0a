"""What the report is about: the stages of the pipeline, what they measured, experiments, the recording."""

import json
import subprocess
from contextlib import suppress
from dataclasses import dataclass
from graphlib import TopologicalSorter
from io import StringIO
from operator import itemgetter
from pathlib import Path
from typing import Any

import pandas as pd

from sightline.core.errors import UserError
from sightline.core.figures import HEADLINE
from sightline.core.params import parse_yaml
from sightline.recording.frames import read_index
from sightline.recording.layout import read_recording_info
from sightline.recording.split import PARTS


@dataclass(frozen=True)
class Part:
    """What an instance of a stage measured, in the folder ``path`` below ``root``."""

    stage: str  # without the instance
    path: Path
    root: Path

    @property
    def folder(self) -> Path:
        return self.root / self.path

    def files(self, suffix: str) -> list[Path]:
        return sorted(self.folder.glob(f"*.{suffix}"))

    def figures(self) -> dict[str, Any]:
        """Everything that its JSON files hold."""
        return {key: value for path in self.files("json") for key, value in read(path).items()}


def read_pipeline(root: Path) -> tuple[list[Part], dict[str, Any]]:
    """The parts that measure something; and the graph of `dvc dag`: ``edges`` (needed, needs), ``columns`` of stages.

    Each stage stands one column to the right of the last that it needs.

    Raises:
        UserError: DVC cannot read the pipelines of the project ``root``.
    """
    from dvc.exceptions import DvcException  # takes a second to load, which no page of help should wait for
    from dvc.repo import Repo

    try:
        index = Repo(str(root), uninitialized=True).index
        stages, links = index.stages, index.graph.edges
    except DvcException as error:
        raise UserError(f"{root}: DVC cannot read its pipelines ({' '.join(str(error).split())})") from None
    parts = [
        Part(stage.name.split("@")[0], Path(out.fs_path).relative_to(root.resolve()).parent, root)
        for stage in stages
        for out in stage.outs
        if stage.name and out.protocol == "local" and Path(out.fs_path).name == HEADLINE  # a file that was added: None
    ]
    pairs = {(a.name.split("@")[0], b.name.split("@")[0]) for b, a in links if a.name and b.name}
    edges, sorter = sorted((a, b) for a, b in pairs if a != b), TopologicalSorter[str]()
    columns: list[list[str]] = []
    for needed, stage in edges:
        sorter.add(stage, needed)
    sorter.prepare()
    while sorter.is_active():
        columns.append(sorted(sorter.get_ready()))
        sorter.done(*columns[-1])
    return parts, {"edges": edges, "columns": columns}


def read(path: Path) -> Any:
    """A table of CSV, or an object of JSON or YAML. Raises `UserError` naming the file where it is none."""
    kind = path.suffix.removeprefix(".").upper()
    try:
        text = path.read_text(encoding="utf-8")
        if kind == "CSV":
            return pd.read_csv(StringIO(text))
        value = json.loads(text) if kind == "JSON" else parse_yaml(text, str(path))
    except UserError:
        raise
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as {kind} ({' '.join(str(error).split())})") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: expected an object (`train: ...`, figures), got {type(value).__name__}")
    return value


def read_experiment(root: Path, name: str, parts: list[Part]) -> dict[Path, pd.DataFrame]:
    """Curves of a DVC experiment (or any revision): folder -> table.

    Raises:
        UserError: there is no such experiment, or it has no curves here.
    """
    from dvc.api import DVCFileSystem

    curves = {}
    try:
        files = DVCFileSystem(str(root), rev=name)
        for part in parts:
            with suppress(FileNotFoundError):  # not in that experiment, or not fetched
                curves[part.path] = pd.read_csv(StringIO(files.read_text(f"/{part.path}/curves.csv")))
    except Exception as error:  # DVC, its file systems and git have no common one
        raise UserError(f"experiment {name}: cannot be read ({' '.join(str(error).split())})") from None
    if not curves:
        raise UserError(f"experiment {name}: no curves are here; fetch them with `dvc exp pull` or `dvc fetch`")
    return curves


def commit_of(root: Path) -> str:
    """The commit that is checked out, and whether tracked files differ from it."""
    command = ["git", "-C", str(root), "describe", "--always", "--dirty=, with changes that are not committed"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or "not under git"


def read_trainings(root: Path) -> dict[str, dict[str, Any]]:
    """What the logs of this machine say of its latest trainings: folder of metrics -> epochs, seconds, machine."""
    runs = map(read, sorted((root / "runs").glob("*/*/run.json"), key=lambda path: path.stat().st_mtime))
    return dict(sorted(((run.pop("metrics"), run) for run in runs), key=itemgetter(0)))


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
    info, frames = read_recording_info(data / "recording.json"), read_index(index)
    parts = {part: frames[frames["split"] == part] for part in PARTS if (frames["split"] == part).any()}
    split = ", ".join(f"{len(of):,} {part} ({of['episode'].nunique()} episodes)" for part, of in parts.items())
    text = (
        f"{name}: {len(frames):,} frames at {info.fps:g} per second ({len(frames) / info.fps:,.0f} s), split by whole "
        f"episodes: {split}. Cameras: {', '.join(info.cameras)}. {len(info.joints)} joints."
    )
    part, of = list(parts.items())[-1]  # test, where there is one
    ids = of["frame_id"].tolist()
    ids = [i for i in ids if (data / f"masks/{i:06d}.png").is_file()] or ids
    frame = ids[len(ids) // 2]
    pictures = samples(data, info, frame, params["segmentation"]["camera"])
    return {"text": text, "frame": f"{frame} ({part})", "samples": pictures}
