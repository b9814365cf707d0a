"""Evaluate a segmentation model on held-out frames, and compare it with methods that need no learning."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from sightline.core.cli import run_stage
from sightline.core.params import Section
from sightline.recording.split import DataParams
from sightline.segmentation.evaluation import EvaluateSegmentationParams, evaluate_segmentation, table
from sightline.segmentation.inputs import add_inputs, open_inputs
from sightline.segmentation.model import load_model
from sightline.segmentation.params import PostprocessParams
from sightline.training.card import read_card, write_measured_card


class Params(Section):
    data: DataParams = DataParams()
    evaluate_segmentation: EvaluateSegmentationParams = EvaluateSegmentationParams()
    postprocess: PostprocessParams = PostprocessParams()


def main(args: Namespace, params: Params) -> None:
    card = read_card(args.weights) if args.card else None
    frames = open_inputs(args, load_model(args.weights).config, params.data.split)
    measured = params.evaluate_segmentation, params.postprocess
    figures = evaluate_segmentation(args.weights, frames, args.output, *measured)
    if card:
        write_measured_card(args.card, card, figures)
    print(table(figures))


parser = ArgumentParser(description=__doc__)
parser.add_argument("weights", type=Path, help="safetensors file written by sightline train_segmentation")
parser.add_argument("output", type=Path, help="folder for figures, per_class.csv, confidence.csv and overlays.png")
add_inputs(parser)
parser.add_argument("--card", type=Path, help="Markdown file to write: the card of the model with these figures")

if __name__ == "__main__":
    run_stage(parser, Params, main)
