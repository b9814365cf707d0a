"""Evaluate a policy on held-out episodes, compare it with simple predictors, and tell which inputs it uses."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from sightline.core.cli import run_stage
from sightline.core.params import Section
from sightline.fusion.evaluation import EvaluateFusionParams, evaluate_fusion
from sightline.grids.features import add_features
from sightline.training.card import read_card, write_measured_card


class Params(Section):
    evaluate_fusion: EvaluateFusionParams = EvaluateFusionParams()


def main(args: Namespace, params: Params) -> None:
    card = read_card(args.weights) if args.card else None
    figures = evaluate_fusion(args.weights, args.views, args.output, params.evaluate_fusion, args.feature)
    if card:
        write_measured_card(args.card, card, figures)
    print(f"{'model':16}{figures['nmse']:8.4f} NMSE, R2 {figures['r2']:.3f}")
    for name, baseline in figures["baselines"].items():
        print(f"{name:16}{baseline['nmse']:8.4f}")


parser = ArgumentParser(description=__doc__)
parser.add_argument("weights", type=Path, help="safetensors file written by sightline train_fusion")
parser.add_argument("views", type=Path, help="HDF5 file written by sightline pack_views")
parser.add_argument("output", type=Path, help="folder for figures, error_by_step.csv and actions.png")
add_features(parser)
parser.add_argument("--card", type=Path, help="Markdown file to write: the card of the model with these figures")

if __name__ == "__main__":
    run_stage(parser, Params, main)
