"""Train the depth autoencoder on normalised depth; keep the epoch that is best on the validation frames."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from sightline.core.cli import add_shorthands, run_stage
from sightline.core.memory import keep_freed_memory
from sightline.core.params import Section, Seed
from sightline.depth.training import TrainParams, train_autoencoder

SHORTHANDS = {
    "num_epochs": "train.epochs", "learning_rate": "train.lr", "augment": "train.augment=full",
    "no_augment": "train.augment=none", "use_perceptual_loss": "train.perceptual_weight=0.1",
} | {key: f"train.{key}" for key in (
    "batch_size", "latent_dim", "optimizer", "scheduler", "gradient_clip", "weight_decay", "patience")}  # fmt: skip


class Params(Section):
    seed: Seed = 0
    train: TrainParams = TrainParams()


def main(args: Namespace, params: Params) -> None:
    keep_freed_memory()
    by_hand = {name: getattr(args, name) for name in ("output_dir", "checkpoint_every", "resume", "perceptual_weights")}
    train_autoencoder(args.data, args.weights, args.metrics_dir, params.train, params.seed, **by_hand)


parser = ArgumentParser(description=__doc__)
parser.add_argument("data", type=Path, help="HDF5 file of normalised depth")
parser.add_argument("weights", type=Path, help="safetensors file to write")
parser.add_argument("--metrics-dir", type=Path, required=True, help="folder for metrics.json and curves.csv")
parser.add_argument("--output-dir", "--output_dir", type=Path, help="folder for checkpoints and TensorBoard logs")
parser.add_argument("--checkpoint-every", type=int, default=10, help="epochs between numbered checkpoints (10)")
parser.add_argument("--resume", type=Path, help="checkpoint of another run with an output folder to start from")
parser.add_argument("--perceptual-weights", type=Path, help="state dict of torchvision's VGG-16")
add_shorthands(parser, SHORTHANDS)

if __name__ == "__main__":
    run_stage(parser, Params, main)
