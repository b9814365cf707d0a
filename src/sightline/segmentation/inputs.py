"""The command-line options that name what to segment."""

from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path

from sightline.core.errors import UserError
from sightline.grids.features import add_features
from sightline.recording.split import SplitParams
from sightline.segmentation.frames import SegmentationFrames
from sightline.segmentation.params import FrameParams
from sightline.segmentation.volumes import frames_of_volumes

OPTIONS = {
    "--recording": "folder of a recording, with --index",
    "--index": "folder of indices written by sightline validate",
    "--images": "any folder of images, with --masks",
    "--masks": "folder of masks of some of the images, paired by their names",
    "--arrays": ".npz of 2-D slices, or a folder of train.npz, val.npz, test.npz",
    "--volumes": "file of volumes written by sightline import_volumes",
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
        arrays=args.arrays, volumes=args.volumes, depth=args.depth, features=args.feature,
    )  # fmt: skip


def open_frames(
    params: FrameParams,
    split: SplitParams,
    *,
    recording: Path | None = None,
    index: Path | None = None,
    images: Path | None = None,
    masks: Path | None = None,
    arrays: Path | None = None,
    volumes: Path | None = None,
    depth: Path | None = None,
    features: Sequence[Path] = (),
) -> SegmentationFrames:
    """Frames of one source: recording and index, images and masks, arrays, or a file of volumes.

    Raises:
        UserError: none or several of them, a half of a pair, further inputs without a recording, and what
            `SegmentationFrames` raises.
    """
    sources = sum(source is not None for source in (recording, images, arrays, volumes))
    if sources != 1 or (index is None) != (recording is None) or (masks is None) != (images is None):
        raise UserError("give one source: --recording with --index, --images with --masks, or --arrays or --volumes")
    if (depth or features) and recording is None:
        raise UserError("--depth and --feature: further inputs need --recording, whose frame ids they go by")
    if recording and index:
        return SegmentationFrames.from_recording(recording, index, params, depth, features)
    if images and masks:
        return SegmentationFrames.from_folders(images, masks, params, split)
    if volumes:
        return frames_of_volumes(volumes, params, split)
    assert arrays is not None
    return SegmentationFrames.from_arrays(arrays, params, split)
