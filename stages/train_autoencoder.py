"""Train the depth autoencoder on normalised depth; keep the epoch that is best on the validation frames."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from sightline.core.cli import add_shorthands, run_stage
from sightline.core.memory import keep_freed_memory
from sightline.core.params import Section, Seed
from sightline.depth.folder import SHORTHANDS, add_training_folder, take_training_folder
from sightline.depth.training import TrainParams, train_autoencoder
from sightline.training.by_hand import ByHand
from sightline.training.processes import join_srun


class Params(Section):
    seed: Seed = 0
    train: TrainParams = TrainParams()


def main(args: Namespace, params: Params) -> None:
    join_srun()
    keep_freed_memory()
    args = take_training_folder(args)
    files, named = (args.data, args.weights, args.metrics_dir), {"frames": args.frames, "perceptual_weights": args.vgg}
    train_autoencoder(*files, params.train, params.seed, **named, by_hand=ByHand.of(args))


parser = ArgumentParser(description=__doc__)
parser.add_argument("data", type=Path, nargs="?", help="HDF5 file of normalised depth")
parser.add_argument("weights", type=Path, nargs="?", help="safetensors file to write")
parser.add_argument("--metrics-dir", type=Path, help="folder for metrics.json and curves.csv")
parser.add_argument("--frames", type=Path, help="frames.parquet; inverse dynamics learns from its joints")
parser.add_argument(
    "--perceptual-weights", dest="vgg", type=Path, help="torchvision's VGG-16, for train.perceptual_weight"
)
add_training_folder(parser)
ByHand.add_options(parser)
add_shorthands(parser, SHORTHANDS)
if __name__ == "__main__":
    run_stage(parser, Params, main)
