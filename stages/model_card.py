"""Write the card of a trained model: what it is, what it takes, its data, its figures beside baselines, its limits."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from sightline.core.cli import run_stage
from sightline.core.params import Section
from sightline.report.cards import write_card


class Params(Section):
    """No parameters: everything is in the files."""


def main(args: Namespace, _: Params) -> None:
    write_card(args.model, args.output, args.metrics, args.index)


parser = ArgumentParser(description=__doc__)
parser.add_argument("model", type=Path, help="safetensors file of this project")
parser.add_argument("output", type=Path, help="name without suffix; .json and .md are written")
parser.add_argument("--metrics", type=Path, nargs="+", required=True, help="folders of metrics, the evaluation's first")
parser.add_argument("--index", type=Path, required=True, help="frame index with the split of the training data")

if __name__ == "__main__":
    run_stage(parser, Params, main)
