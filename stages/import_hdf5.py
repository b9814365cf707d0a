"""Import demonstrations in HDF5, ALOHA/ACT episode files or a robomimic file, as a recording: table and pictures."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from sightline.core.cli import run_stage
from sightline.core.params import Section
from sightline.importers.demonstrations import ImportOptions
from sightline.importers.episodes import import_hdf5


def main(args: Namespace, _: Section) -> None:
    options = ImportOptions(args.camera, args.joints, args.actions, args.skip, args.size, args.processes)
    print(import_hdf5(args.source, args.recording, options, args.fps, args.bgr))


parser = ArgumentParser(description=__doc__)
parser.add_argument("source", type=Path, help="folder of episode_<i>.hdf5 files, or a robomimic file")
parser.add_argument("recording", type=Path, help="folder to write: new or empty")
parser.add_argument(
    "--camera", action="append", default=[], metavar="KEY[=NAME]",
    help="import this camera, as NAME; repeat for more (default: all, named by the last part of their keys)",
)  # fmt: skip
KEYS = {"action": "append", "default": [], "metavar": "KEY"}
parser.add_argument("--joints", **KEYS, help="joint states, e.g. observations/qpos; repeat to join several data sets")
parser.add_argument("--actions", **KEYS, help="actions, e.g. action; repeat to join several data sets")
parser.add_argument("--skip", type=int, action="append", default=[], metavar="N", help="leave episode N out; repeat")
parser.add_argument("--size", type=int, default=ImportOptions.size, help="shorter side, pixels; 0: as is (%(default)s)")
parser.add_argument("--fps", type=float, help="frames per second (default: 50, or robomimic's control_freq)")
parser.add_argument("--bgr", action="store_true", help="exchange red and blue: look at a picture if in doubt")
parser.add_argument("--processes", type=int, help="episodes read at a time (default: one per core)")

if __name__ == "__main__":
    run_stage(parser, Section, main)
