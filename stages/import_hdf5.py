"""Import demonstrations (ALOHA/ACT episode files, or a robomimic file) as a recording."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from sightline.core.cli import run_stage
from sightline.core.params import Section
from sightline.importers.episodes import import_hdf5
from sightline.importers.options import add_options, options


def main(args: Namespace, _: Section) -> None:
    print(import_hdf5(args.source, args.recording, options(args), args.fps, args.bgr))


parser = ArgumentParser(description=__doc__)
parser.add_argument("source", type=Path, help="folder of episode_<i>.hdf5 files, or a robomimic file")
parser.add_argument("recording", type=Path, help="folder to write: new or empty")
parser.add_argument("--fps", type=float, help="frames per second (default: 50, or robomimic's control_freq)")
parser.add_argument("--bgr", action="store_true", help="exchange red and blue; look at an imported picture if in doubt")
add_options(parser)

if __name__ == "__main__":
    run_stage(parser, Section, main)
