"""Import a LeRobot data set (format v2.0, v2.1 or v3.0) as a recording: its table, and the pictures of its cameras."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from sightline.core.cli import run_stage
from sightline.core.params import Section
from sightline.importers.demonstrations import ImportOptions
from sightline.importers.lerobot import import_lerobot


def main(args: Namespace, _: Section) -> None:
    options = ImportOptions(args.camera, args.joints, args.actions, args.skip, args.size, args.processes)
    print(import_lerobot(args.source, args.recording, options))


parser = ArgumentParser(description=__doc__)
parser.add_argument("source", type=Path, help="folder of the data set, which holds meta/info.json")
parser.add_argument("recording", type=Path, help="folder to write: new or empty")
parser.add_argument(
    "--camera", action="append", default=[], metavar="KEY[=NAME]",
    help="import this camera, as NAME; repeat for more (default: all, named by the last part of their keys)",
)  # fmt: skip
KEYS = {"action": "append", "default": [], "metavar": "KEY"}
parser.add_argument("--joints", **KEYS, help="feature with joint states; repeat to join several (observation.state)")
parser.add_argument("--actions", **KEYS, help="feature with actions; repeat to join several (action)")
parser.add_argument("--skip", type=int, action="append", default=[], metavar="N", help="leave episode N out; repeat")
parser.add_argument("--size", type=int, default=ImportOptions.size, help="shorter side, pixels; 0: as is (%(default)s)")
parser.add_argument("--processes", type=int, help="episodes read at a time (default: one per core)")

if __name__ == "__main__":
    run_stage(parser, Section, main)
