"""Check stored grid features against the photographs, and against the forward pass of open_clip or timm."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from sightline.core.cli import run_stage  # isort: skip
from sightline.clip.params import RENAMED, GridParams, VerifyParams
from sightline.clip.verification import verify_grids
from sightline.core.figures import report
from sightline.core.params import Section
from sightline.recording.names import add_naming, naming


class Params(Section):
    grids: GridParams = GridParams()
    renamed = RENAMED
    verify_clip_grids: VerifyParams = VerifyParams()


def main(args: Namespace, params: Params) -> None:
    limits = params.verify_clip_grids
    figures = verify_grids(args.store, args.images, params.grids, limits, args.index, naming(args))
    headline = {"min_cosine": figures["reference"]["min_cosine"], "relative": figures["reference"]["relative"]}
    report(figures, headline, args.metrics_dir)


parser = ArgumentParser(description=__doc__)
parser.add_argument("store", type=Path, help="file or folder written by sightline clip_grids")
parser.add_argument("images", type=Path, nargs="+", help="the folders of photographs that it was made from")
parser.add_argument("--index", type=Path, help="frame index that it must cover")
parser.add_argument("--metrics-dir", type=Path, help="folder for metrics.json (default: print the figures)")
add_naming(parser)

if __name__ == "__main__":
    run_stage(parser, Params, main)
