"""Import a LeRobot data set (format v2.0, v2.1 or v3.0) as a recording."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from sightline.core.cli import run_stage
from sightline.core.params import Section
from sightline.importers.lerobot import import_lerobot
from sightline.importers.options import add_options, options


def main(args: Namespace, _: Section) -> None:
    print(import_lerobot(args.source, args.recording, options(args), args.align))


parser = ArgumentParser(description=__doc__)
parser.add_argument("source", type=Path, help="folder of the data set, which holds meta/info.json")
parser.add_argument("recording", type=Path, help="folder to write: new or empty")
parser.add_argument(
    "--align", choices=["time", "count"], default="time",
    help="assign pictures of videos to rows by their times, or by counting (%(default)s)",
)  # fmt: skip
add_options(parser)

if __name__ == "__main__":
    run_stage(parser, Section, main)
