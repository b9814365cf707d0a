"""Train a policy (the fusion model) on demonstrations; keep the epoch that is best on the validation episodes."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from sightline.core.cli import run_stage
from sightline.core.params import Section, Seed
from sightline.fusion.training import FusionParams, train_fusion
from sightline.grids.features import add_features
from sightline.training.by_hand import ByHand
from sightline.training.processes import join_srun


class Params(Section):
    seed: Seed = 0
    fusion: FusionParams = FusionParams()


def main(args: Namespace, params: Params) -> None:
    join_srun()
    train_fusion(
        args.views, args.weights, args.metrics_dir, params.fusion, params.seed, design=args.design,
        features=args.feature, by_hand=ByHand.of(args),
    )  # fmt: skip


parser = ArgumentParser(description=__doc__)
parser.add_argument("views", type=Path, help="HDF5 file written by sightline pack_views")
parser.add_argument("weights", type=Path, help="safetensors file to write")
parser.add_argument("--design", default="stacked", help="stacked, separate, shared, images_only, joints_only (stacked)")
parser.add_argument("--metrics-dir", type=Path, required=True, help="folder for metrics.json and curves.csv")
add_features(parser)
ByHand.add_options(parser)

if __name__ == "__main__":
    run_stage(parser, Params, main)
