"""Simulate the demo recording: an arm puts a ball on a plate; some attempts fail, on purpose."""

import argparse
from pathlib import Path

from sightline.core.cli import run_stage
from sightline.core.params import Section
from sightline.demo.simulate import SimulateParams, simulate_demo


class Params(Section):
    simulate: SimulateParams = SimulateParams()


def main(args: argparse.Namespace, params: Params) -> None:
    simulate_demo(params.simulate, args.frames, args.states, args.processes)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--frames", type=Path, required=True, metavar="PARQUET", help="frame index to write")
    parser.add_argument("--states", type=Path, required=True, metavar="HDF5", help="states to write, for render.py")
    parser.add_argument("--processes", type=int, metavar="N", help="episodes at a time (default: one per CPU)")
    run_stage(parser, Params, main)
