"""Train the depth autoencoder on normalised depth; keep the epoch that is best on the validation frames."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from sightline.cli import run_stage
from sightline.depth.training import TrainParams, train_autoencoder
from sightline.params import Section


class Params(Section):
    seed: int = 0
    train: TrainParams = TrainParams()


def main(args: Namespace, params: Params) -> None:
    train_autoencoder(args.data, args.weights, args.metrics_dir, params.train, params.seed)


parser = ArgumentParser(description=__doc__)
parser.add_argument("data", type=Path, help="HDF5 file of normalised depth")
parser.add_argument("weights", type=Path, help="safetensors file to write")
parser.add_argument("--metrics-dir", type=Path, required=True, help="folder for metrics.json and curves.csv")

if __name__ == "__main__":
    run_stage(parser, Params, main)
