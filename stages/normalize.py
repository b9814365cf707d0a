"""Normalise a folder of uint16 depth images to one HDF5 file of 128x128 values in [-1, 1] with a validity mask."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from sightline.core.cli import run_stage
from sightline.core.figures import report
from sightline.core.params import Section
from sightline.depth.normalize import NormalizeParams, normalize_depth
from sightline.recording.names import add_naming, naming
from sightline.recording.split import DataParams


class Params(Section):
    data: DataParams = DataParams()
    normalize: NormalizeParams = NormalizeParams()


def main(args: Namespace, params: Params) -> None:
    data = params.data
    figures = normalize_depth(
        args.images, args.output, params.normalize, split=data.split, on_error=data.on_error,
        index=args.index, recording=args.recording, naming=naming(args), processes=args.processes,
    )  # fmt: skip
    headline = {"images": figures["images"], "valid_share": figures["valid_share"]["mean"]}
    report(figures, headline, args.metrics_dir)


parser = ArgumentParser(description=__doc__)
parser.add_argument("images", type=Path, help="folder of uint16 PNG or TIFF images, named by number or time")
parser.add_argument("output", type=Path, help="HDF5 file to write")
parser.add_argument("--index", type=Path, help="frame index of the recording (default: every image of the folder)")
parser.add_argument("--recording", type=Path, help="recording.json, for height range, invalid codes and unit")
parser.add_argument("--metrics-dir", type=Path, help="folder for metrics.json (default: print the figures)")
add_naming(parser)
parser.add_argument("--processes", type=int, help="worker processes (default: one per core)")

if __name__ == "__main__":
    run_stage(parser, Params, main)
