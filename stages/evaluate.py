"""Evaluate the depth autoencoder on held-out frames, compare it with simple codes of the same size, draw pictures."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from sightline.core.cli import run_stage
from sightline.core.params import Section
from sightline.depth.accuracy import format_table
from sightline.depth.evaluation import EvaluateParams, evaluate_autoencoder
from sightline.depth.folder import add_evaluation_folder, keep_asked, take_evaluation_folder
from sightline.training.card import read_card, write_measured_card


class Params(Section):
    evaluate: EvaluateParams = EvaluateParams()


def main(args: Namespace, params: Params) -> None:
    args = take_evaluation_folder(args)
    card = read_card(args.weights) if args.card else None
    results = evaluate_autoencoder(
        args.weights, args.data, args.output, params.evaluate, frames=args.frames, grids=args.grids
    )
    if card:
        write_measured_card(args.card, card, results)
    keep_asked(args)
    print(format_table(results["codes"]))


parser = ArgumentParser(description=__doc__)
parser.add_argument("weights", type=Path, nargs="?", help="weights file written by sightline train_autoencoder")
parser.add_argument("data", type=Path, nargs="?", help="HDF5 file of normalised depth")
parser.add_argument("output", type=Path, nargs="?", help="folder for figures and pictures")
parser.add_argument("--frames", type=Path, help="frames.parquet, to test what the codes tell about joints and objects")
parser.add_argument("--grids", type=Path, help="grid features of the same frames, to compare with the codes")
add_evaluation_folder(parser)
parser.add_argument("--card", type=Path, help="Markdown file to write: the card of the model with these figures")

if __name__ == "__main__":
    run_stage(parser, Params, main)
