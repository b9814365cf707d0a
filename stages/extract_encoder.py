"""Extract the encoder from the weights of a trained depth autoencoder."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from sightline.cli import run_stage
from sightline.depth.weights import extract_encoder
from sightline.params import Section


class Params(Section):
    """No parameters: everything is in the weights file."""


def main(args: Namespace, _: Params) -> None:
    output = args.output or args.checkpoint.with_name("encoder.safetensors")
    figures = extract_encoder(args.checkpoint, output)
    print(f"{output}: encoder with {figures['parameters']:,} parameters")


parser = ArgumentParser(description=__doc__)
parser.add_argument("checkpoint", type=Path, help="weights file written by stages/train_autoencoder.py")
parser.add_argument("--output", type=Path, help="weights file to write (default: encoder.safetensors beside it)")

if __name__ == "__main__":
    run_stage(parser, Params, main)
