"""Join the pages of the report that are here to one: ``python -m sightline.report``.

Which parts there are depends on the recording, but a DVC stage has a fixed list of dependencies, and dvc.yaml cannot be
one of them; a stage that shows all parameters would run, and need its data, in every experiment. So each part is a
stage's output; joining them, with the data, the graph, the parameters and the versions, is a command.
"""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from sightline.core.cli import run_stage
from sightline.core.errors import UserError
from sightline.core.files import atomic_output
from sightline.core.params import Section
from sightline.report import page
from sightline.report.overview import overview, read_parameters, settings
from sightline.report.pipeline import draw_graph, read_stages

FOLDER = "metrics/report/"


def join_pages(root: Path, output: Path) -> tuple[int, list[str]]:
    """Write one page of all that the pipeline of ``root`` makes in metrics/report -> how many, and which are missing.

    The data and the graph of the pipeline come first, parameters and versions last.

    Raises:
        UserError: none of them is there, or a file that cannot be read.
    """
    files = [path for path in (root / "dvc.yaml", root / "demo/dvc.yaml") if path.is_file()]
    params = read_parameters(root / "params.yaml")
    stages = read_stages(files, params)
    pages = [out for stage in stages for out in stage.outs if out.startswith(FOLDER)]
    there = [path for path in pages if (root / path).is_file()]
    missing = [path for path in pages if path not in there]
    if not there:
        raise UserError(
            f"{root / FOLDER}: holds no page yet; make them with `dvc repro`, or fetch them with `dvc pull`"
        )
    note = "An arrow that others imply is left out; a number says how many of a stage there are."
    drawn = draw_graph([stage for stage in stages if not any(out.startswith(FOLDER) for out in stage.outs)])
    graph = page.section("Pipeline", page.paragraph(note, "note"), f'<div class="wide graph">{drawn}</div>')
    first = overview(params, root / params["data"]["root"] / "recording.json", root / "data/index/frames.parquet")
    sections = [section for path in there for section in page.sections_of(root / path)]
    absent = [page.section("Not in this report", *(page.paragraph(path) for path in missing))] if missing else []
    sections = [first, graph, *sections, *absent, *settings(params)]
    with atomic_output(output) as temporary:
        temporary.write_text(page.page("Sightline report", sections), encoding="utf-8")
    return len(there), missing


class Params(Section):
    """No parameters."""


def main(args: Namespace, _: Params) -> None:
    output = args.output or args.root / FOLDER / "report.html"
    count, missing = join_pages(args.root, output)
    for path in missing:
        print(f"left out: {path} is not here; `dvc repro` makes it, `dvc pull {path}` fetches it")
    print(f"{output}: {count} parts")


parser = ArgumentParser(prog="python -m sightline.report", description="Join the pages of the report to one.")
parser.add_argument("--root", type=Path, default=Path(), help="root of the project (the working directory)")
parser.add_argument("--output", type=Path, help="HTML file to write (ROOT/metrics/report/report.html)")

if __name__ == "__main__":
    run_stage(parser, Params, main)
