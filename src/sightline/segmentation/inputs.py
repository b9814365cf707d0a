"""The command-line options that name what to segment."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from sightline.grids.features import add_features
from sightline.recording.split import SplitParams
from sightline.segmentation.frames import SegmentationFrames, open_frames
from sightline.segmentation.params import FrameParams

OPTIONS = {
    "--recording": "folder of a recording, with --index",
    "--index": "folder of indices written by stages/validate.py",
    "--images": "any folder of images, with --masks",
    "--masks": "folder of masks of some of the images, paired by their names",
    "--arrays": ".npz of 2-D slices, or a folder of train.npz, val.npz, test.npz",
    "--depth": "folder of depth images of the recording, as a further input",
}


def add_inputs(parser: ArgumentParser) -> None:
    """Add the options that name images, masks and further inputs."""
    for option, words in OPTIONS.items():
        parser.add_argument(option, type=Path, help=words)
    add_features(parser)


def open_inputs(args: Namespace, params: FrameParams, split: SplitParams) -> SegmentationFrames:
    """The frames that the options name. Raises `UserError` as `open_frames` does."""
    return open_frames(
        params, split, recording=args.recording, index=args.index, images=args.images, masks=args.masks,
        arrays=args.arrays, depth=args.depth, features=args.feature,
    )  # fmt: skip
