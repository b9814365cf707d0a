"""Render the demo recording: colour pictures of three cameras, depth images and masks of what was simulated."""

import argparse
from pathlib import Path

from sightline.core.cli import run_stage
from sightline.core.params import Section
from sightline.demo.render import RenderParams, render_demo


class Params(Section):
    render: RenderParams = RenderParams()


def main(args: argparse.Namespace, params: Params) -> None:
    render_demo(params.render, args.states, args.out, args.processes, args.only_depth)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--states", type=Path, required=True, metavar="HDF5", help="states written by simulate.py")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="root of the recording to write")
    parser.add_argument("--processes", type=int, metavar="N", help="episodes at a time (default: one per CPU)")
    parser.add_argument("--only-depth", action="store_true", help="no colour pictures and masks")
    run_stage(parser, Params, main)
