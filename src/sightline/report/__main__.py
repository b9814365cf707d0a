"""Show everything that the pipeline has measured on one page: ``python -m sightline.report``.

It reads ``metrics/`` as it is on disk. After a section about the data comes one for each stage, then the parameters
and the versions. ``dvc dag`` draws the graph of the stages.
"""

from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from pathlib import Path

from sightline.core.cli import run_stage
from sightline.core.errors import UserError
from sightline.core.figures import HEADLINE
from sightline.core.files import atomic_output
from sightline.core.params import Section
from sightline.report import page
from sightline.report.overview import overview, read_parameters, settings
from sightline.report.parts import section_of


def write_report(root: Path, output: Path) -> tuple[int, list[str]]:
    """Write the page of the project ``root`` -> how many folders of metrics it shows, and which are not here.

    Raises:
        UserError: no metrics are here, or a file that cannot be read.
    """
    params = read_parameters(root / "params.yaml")
    folders: dict[str, list[Path]] = {}
    missing = []
    for stage, path in metrics_files(root):
        if (root / path).parent.is_dir():
            folders.setdefault(stage, []).append((root / path).parent)
        else:
            missing.append(path.as_posix())
    if not folders:
        raise UserError(
            f"{root / 'metrics'}: holds no metrics yet; make them with `dvc repro`, or fetch them with `dvc pull`"
        )
    first = overview(params, root / params["data"]["root"] / "recording.json", root / "data/index/frames.parquet")
    parts = [section_of(name, those) for name, those in folders.items()]
    absent = [page.section("Not in this report", *(page.paragraph(path) for path in missing))] if missing else []
    with atomic_output(output) as temporary:
        sections = [first, *parts, *absent, *settings(params)]
        temporary.write_text(page.page("Sightline report", sections), encoding="utf-8")
    return sum(map(len, folders.values())), missing


def metrics_files(root: Path) -> Iterator[tuple[str, Path]]:
    """The headline figures of each stage: its name (all of a matrix have the same one), and their path below ``root``.

    Raises:
        UserError: DVC cannot read the pipelines of the project ``root``.
    """
    from dvc.exceptions import DvcException  # takes a second to load, which no page of help should wait for
    from dvc.repo import Repo

    try:
        stages = Repo(str(root), uninitialized=True).index.stages
    except DvcException as error:
        raise UserError(f"{root}: DVC cannot read its pipelines ({' '.join(str(error).split())})") from None
    for stage in stages:
        for out in stage.outs:
            path = Path(out.fs_path)
            if stage.name and out.protocol == "local" and path.name == HEADLINE:  # a file that was added has no name
                yield stage.name.split("@")[0], path.relative_to(root.resolve())


class Params(Section):
    """No parameters."""


def main(args: Namespace, _: Params) -> None:
    output = args.output or args.root / "metrics/report.html"
    count, missing = write_report(args.root, output)
    for path in missing:
        print(f"left out: {path} is not here; `dvc repro` makes it, `dvc pull {path}` fetches it")
    print(f"{output}: {count} parts")


parser = ArgumentParser(prog="python -m sightline.report", description="Show what the pipeline measured on one page.")
parser.add_argument("--root", type=Path, default=Path(), help="root of the project (the working directory)")
parser.add_argument("--output", type=Path, help="HTML file to write (ROOT/metrics/report.html)")

if __name__ == "__main__":
    run_stage(parser, Params, main)
