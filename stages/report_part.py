"""Write the page of one part of the pipeline: all figures, curves and pictures of its metrics folders."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from sightline.core.cli import run_stage
from sightline.core.params import Section
from sightline.report.part import write_part


class Params(Section):
    """No parameters."""


def main(args: Namespace, _: Params) -> None:
    write_part(args.output, args.title, args.metrics)


parser = ArgumentParser(description=__doc__)
parser.add_argument("output", type=Path, help="HTML file to write")
parser.add_argument("metrics", type=Path, nargs="+", help="folders of metrics")
parser.add_argument("--title", required=True, help="what they are of")

if __name__ == "__main__":
    run_stage(parser, Params, main)
