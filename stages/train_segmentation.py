"""Train a segmentation model from few masks and many images; keep the epoch that is best on the validation part."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from sightline.core.cli import run_stage
from sightline.core.params import Section, Seed
from sightline.recording.split import DataParams
from sightline.segmentation.inputs import add_inputs, open_inputs
from sightline.segmentation.training import SegmentationParams, train_segmentation


class Params(Section):
    seed: Seed = 0
    data: DataParams = DataParams()
    segmentation: SegmentationParams = SegmentationParams()


def main(args: Namespace, params: Params) -> None:
    frames = open_inputs(args, params.segmentation, params.data.split)
    options = {"output_dir": args.output_dir, "resume": args.resume}
    train_segmentation(frames, args.weights, args.metrics_dir, params.segmentation, params.seed, **options)


parser = ArgumentParser(description=__doc__)
parser.add_argument("weights", type=Path, help="safetensors file to write")
add_inputs(parser)
parser.add_argument("--metrics-dir", type=Path, required=True, help="folder for figures and curves.csv")
parser.add_argument("--output-dir", type=Path, help="folder for checkpoints and TensorBoard logs")
parser.add_argument("--resume", type=Path, help="checkpoint of an earlier run by hand to go on from")

if __name__ == "__main__":
    run_stage(parser, Params, main)
