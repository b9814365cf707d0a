"""Show everything that the pipeline has measured on one page: ``python -m sightline.report``.

It reads ``metrics/`` as it lies there and has a section for each stage, after the data and the graph, and before the
parameters and the versions.
"""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from sightline.core.cli import run_stage
from sightline.core.errors import UserError
from sightline.core.figures import HEADLINE
from sightline.core.files import atomic_output
from sightline.core.params import Section
from sightline.report import page
from sightline.report.overview import overview, read_parameters, settings
from sightline.report.parts import section_of
from sightline.report.pipeline import draw_graph, read_stages


def write_report(root: Path, output: Path) -> tuple[int, list[str]]:
    """Write the page of the project ``root`` -> how many folders of metrics it shows, and which are not here.

    Raises:
        UserError: no metrics are here, or a file that cannot be read.
    """
    params, stages = read_parameters(root / "params.yaml"), read_stages(root)
    folders: dict[str, list[Path]] = {}
    missing = []
    for stage in stages:
        for out in stage.outs:
            if out.endswith(f"/{HEADLINE}"):
                folder = root / Path(out).parent
                if folder.is_dir():
                    folders.setdefault(stage.name, []).append(folder)
                else:
                    missing.append(out)
    if not folders:
        raise UserError(
            f"{root / 'metrics'}: holds no metrics yet; make them with `dvc repro`, or fetch them with `dvc pull`"
        )
    note = "An arrow that others imply is left out; a number says how many of a stage there are."
    drawn = f'<div class="wide graph">{draw_graph(stages)}</div>'
    graph = page.section("Pipeline", page.paragraph(note, "note"), drawn)
    first = overview(params, root / params["data"]["root"] / "recording.json", root / "data/index/frames.parquet")
    parts = [section_of(name, those) for name, those in folders.items()]
    absent = [page.section("Not in this report", *(page.paragraph(path) for path in missing))] if missing else []
    with atomic_output(output) as temporary:
        sections = [first, graph, *parts, *absent, *settings(params)]
        temporary.write_text(page.page("Sightline report", sections), encoding="utf-8")
    return sum(map(len, folders.values())), missing


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
