"""Train a segmentation model from few masks and many images; keep the epoch that is best on the validation part."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from sightline.core.cli import run_stage
from sightline.core.params import Section, Seed
from sightline.recording.split import DataParams
from sightline.segmentation.frames import open_frames
from sightline.segmentation.training import SegmentationParams, train_segmentation


class Params(Section):
    seed: Seed = 0
    data: DataParams = DataParams()
    segmentation: SegmentationParams = SegmentationParams()


def main(args: Namespace, params: Params) -> None:
    frames = open_frames(
        params.segmentation, params.data.split, recording=args.recording, index=args.index, images=args.images,
        masks=args.masks, arrays=args.arrays, depth=args.depth, grids=args.clip_grids)  # fmt: skip
    options = {"output_dir": args.output_dir, "resume": args.resume}
    train_segmentation(frames, args.weights, args.metrics_dir, params.segmentation, params.seed, **options)


parser = ArgumentParser(description=__doc__)
parser.add_argument("weights", type=Path, help="safetensors file to write")
parser.add_argument("--recording", type=Path, help="folder of a recording, with --index")
parser.add_argument("--index", type=Path, help="folder of indices written by stages/validate.py")
parser.add_argument("--images", type=Path, help="any folder of images, with --masks")
parser.add_argument("--masks", type=Path, help="folder of masks of some of the images, by name or number")
parser.add_argument("--arrays", type=Path, help=".npz of 2-D slices, or a folder of train.npz, val.npz, test.npz")
parser.add_argument("--depth", type=Path, help="folder of depth images of the recording, as a further input")
parser.add_argument("--clip-grids", type=Path, help="written by stages/clip_grids.py, as a further input")
parser.add_argument("--metrics-dir", type=Path, required=True, help="folder for metrics.json and curves.csv")
parser.add_argument("--output-dir", type=Path, help="folder for checkpoints and TensorBoard logs")
parser.add_argument("--resume", type=Path, help="checkpoint of an earlier run by hand to go on from")
if __name__ == "__main__":
    run_stage(parser, Params, main)
