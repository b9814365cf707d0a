"""Write the page about the data, the parameters and the versions of the libraries."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from sightline.cli import run_stage
from sightline.params import Section
from sightline.report.overview import write_overview


class Params(Section):
    """No parameters: the page shows the whole file of them, which is a dependency itself."""


def main(args: Namespace, _: Params) -> None:
    write_overview(args.output, args.recording, args.index, args.parameters)


parser = ArgumentParser(description=__doc__)
parser.add_argument("output", type=Path, help="HTML file to write")
parser.add_argument("--recording", type=Path, required=True, help="recording.json")
parser.add_argument("--index", type=Path, required=True, help="frame index written by stages/validate.py")
parser.add_argument("--parameters", type=Path, required=True, help="params.yaml")

if __name__ == "__main__":
    run_stage(parser, Params, main)
