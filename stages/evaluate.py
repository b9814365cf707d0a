"""Evaluate the depth autoencoder on held-out frames, beside simple codes of the same size, and draw pictures."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from sightline.core.cli import run_stage
from sightline.core.params import Section
from sightline.depth.accuracy import format_table
from sightline.depth.evaluation import EvaluateParams, evaluate_autoencoder


class Params(Section):
    evaluate: EvaluateParams = EvaluateParams()


def main(args: Namespace, params: Params) -> None:
    results = evaluate_autoencoder(
        args.weights, args.data, args.output, params.evaluate,
        metrics_dir=args.metrics_dir, frames=args.frames, grids=args.grids,
    )  # fmt: skip
    print(format_table(results["codes"]))


parser = ArgumentParser(description=__doc__)
parser.add_argument("weights", type=Path, help="weights file written by stages/train_autoencoder.py")
parser.add_argument("data", type=Path, help="HDF5 file of normalised depth")
parser.add_argument("output", type=Path, help="folder for the pictures")
parser.add_argument("--frames", type=Path, help="frames.parquet, for linear probes of joints and object positions")
parser.add_argument("--grids", type=Path, help="CLIP grids of the same frames, to judge beside the codes")
parser.add_argument("--metrics-dir", type=Path, help="folder for evaluation_results.json (default: output)")

if __name__ == "__main__":
    run_stage(parser, Params, main)
