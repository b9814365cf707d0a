"""Evaluate a segmentation model on held-out frames, beside what needs no learning."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from sightline.core.cli import run_stage
from sightline.core.params import Section
from sightline.recording.split import DataParams
from sightline.segmentation.evaluation import EvaluateSegmentationParams, evaluate_segmentation, table
from sightline.segmentation.frames import open_frames
from sightline.segmentation.model import load_model


class Params(Section):
    data: DataParams = DataParams()
    evaluate_segmentation: EvaluateSegmentationParams = EvaluateSegmentationParams()


def main(args: Namespace, params: Params) -> None:
    frames = open_frames(
        load_model(args.weights).config, params.data.split, recording=args.recording, index=args.index,
        images=args.images, masks=args.masks, arrays=args.arrays, depth=args.depth, grids=args.clip_grids,
    )  # fmt: skip
    figures = evaluate_segmentation(args.weights, frames, args.output, params.evaluate_segmentation)
    print(table(figures))


parser = ArgumentParser(description=__doc__)
parser.add_argument("weights", type=Path, help="safetensors file written by stages/train_segmentation.py")
parser.add_argument("output", type=Path, help="folder for metrics.json, per_class.csv, confidence.csv, overlays.png")
parser.add_argument("--recording", type=Path, help="folder of a recording, with --index")
parser.add_argument("--index", type=Path, help="folder of indices written by stages/validate.py")
parser.add_argument("--images", type=Path, help="any folder of images, with --masks")
parser.add_argument("--masks", type=Path, help="folder of masks of some of the images, by name or number")
parser.add_argument("--arrays", type=Path, help=".npz of 2-D slices, or a folder of train.npz, val.npz, test.npz")
parser.add_argument("--depth", type=Path, help="the further input that the model was trained with")
parser.add_argument("--clip-grids", type=Path, help="the further input that the model was trained with")

if __name__ == "__main__":
    run_stage(parser, Params, main)
