"""Extract grid features (CLIP or timm) from photographs into HDF5; run again, compute only what is new or changed."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from sightline.core.cli import add_shorthands, run_stage  # isort: skip
from sightline.clip.arguments import add_photographs, take_photographs
from sightline.clip.extraction import extract_grids
from sightline.clip.params import RENAMED, SHORTHANDS, GridParams
from sightline.core.figures import report
from sightline.core.params import Section
from sightline.recording.names import add_naming, naming
from sightline.recording.split import DataParams
from sightline.training.processes import join_srun


class Params(Section):
    data: DataParams = DataParams()
    grids: GridParams = GridParams()
    renamed = RENAMED


def main(args: Namespace, params: Params) -> None:
    join_srun()
    (images, output), on_error = take_photographs(args), params.data.on_error
    figures = extract_grids(images, output, params.grids, on_error, args.index, args.previous, naming(args))
    if figures:  # of several processes, the first one reports
        report(figures, {name: figures[name] for name in ("images", "random_weights")}, args.metrics_dir)


parser = ArgumentParser(description=__doc__)
add_photographs(parser)
parser.add_argument("--index", type=Path, help="frame index; only its frames are encoded")
parser.add_argument("--previous", type=Path, help="older one of the same settings; unchanged images are taken from it")
parser.add_argument("--metrics-dir", type=Path, help="folder for metrics.json (default: print the figures)")
add_naming(parser)
add_shorthands(parser, SHORTHANDS)

if __name__ == "__main__":
    run_stage(parser, Params, main)
