"""Decode the views of every frame once, into one HDF5 file with joints, actions and split."""

import os
from argparse import ArgumentParser, Namespace
from pathlib import Path

from sightline.core.cli import run_stage
from sightline.core.figures import report
from sightline.core.params import Section
from sightline.fusion.views import ViewParams, pack_views
from sightline.recording.layout import check_pack


class Params(Section):
    views: ViewParams = ViewParams()


def main(args: Namespace, params: Params) -> None:
    check_pack(os.environ.get("DVC_STAGE", ""), len(params.views.cameras))
    figures = pack_views(args.recording, args.index, args.output, params.views, args.target, args.processes)
    report(figures, {name: figures[name] for name in ("frames", "episodes")}, args.metrics_dir)


parser = ArgumentParser(description=__doc__)
parser.add_argument("recording", type=Path, help="folder of the recording")
parser.add_argument("output", type=Path, help="HDF5 file to write")
parser.add_argument("--index", type=Path, required=True, help="folder of indices written by sightline validate")
parser.add_argument("--target", default="actions", help="column of frames.parquet with the actions (actions)")
parser.add_argument("--metrics-dir", type=Path, help="folder for metrics.json (default: print the figures)")
parser.add_argument("--processes", type=int, help="worker processes (default: one per core)")

if __name__ == "__main__":
    run_stage(parser, Params, main)
