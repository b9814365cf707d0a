"""Tell on one page what the pipeline has measured: ``sightline report``.

It reads ``metrics/`` as it is on disk: a verdict on each part first, then charts, pictures and curves, tables last.
"""

import platform
from argparse import ArgumentParser, Namespace
from functools import cache
from pathlib import Path

from sightline.core.cli import run_stage
from sightline.core.figures import HEADLINE
from sightline.core.files import atomic_output
from sightline.core.params import Section
from sightline.report import project
from sightline.report.project import Part


def write_report(root: Path, output: Path, experiments: list[str]) -> tuple[int, list[Part]]:
    """Write the page of the project ``root`` -> how many folders of metrics it shows, and which are not here.

    Args:
        experiments: names of DVC experiments (or revisions), whose curves are shown beside those that are here.

    Raises:
        UserError: a file or an experiment that cannot be read.
    """
    import jinja2

    from sightline.report.story import chapters
    from sightline.report.verdicts import words

    params, trainings = project.read(root / "params.yaml"), project.read_trainings(root)
    parts, graph = project.read_pipeline(root)
    here = [part for part in parts if part.folder.is_dir()]
    figures = {str(path.relative_to(root)): project.read(path) for part in here for path in part.files("json")}
    environment = jinja2.Environment(loader=jinja2.PackageLoader("sightline.report", ""), autoescape=True)
    environment.filters["words"] = words
    text = environment.get_template("page.html").render(
        chapters=chapters(parts, {name: project.read_experiment(root, name, parts) for name in experiments}),
        commit=project.commit_of(root),
        machine=f"{platform.system()} {platform.machine()}",
        recording=project.read_recording(root, params),
        minutes=sum(run["seconds"] for run in trainings.values()) / 60,
        graph=graph,
        tables={"trainings on this machine": trainings, "params.yaml": params, **figures},
        params=params,
        script=_script(),
    )
    with atomic_output(output) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return len(here), [part for part in parts if part not in here]


@cache
def _script() -> str:
    """Vega-Lite with all that it needs."""
    import vl_convert

    return vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")


class Params(Section):
    """No parameters."""


def main(args: Namespace, _: Params) -> None:
    output = args.output or args.root / "metrics/report.html"
    count, missing = write_report(args.root, output, args.exp)
    for part in missing:
        print(f"left out: {part.path} is not here; `dvc repro` makes it, `dvc pull {part.path / HEADLINE}` fetches it")
    print(f"{output}: {count} parts")


parser = ArgumentParser(prog="sightline report", description="Tell on one page what the pipeline measured.")
parser.add_argument("--root", type=Path, default=Path(), help="root of the project (the working directory)")
parser.add_argument("--output", type=Path, help="HTML file to write (ROOT/metrics/report.html)")
parser.add_argument("--exp", nargs="*", default=[], metavar="NAME", help="experiments whose curves to show, too")

if __name__ == "__main__":
    run_stage(parser, Params, main)
