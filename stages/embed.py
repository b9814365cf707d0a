"""Embed every depth image of a data set with the trained encoder."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from sightline.core.cli import run_stage
from sightline.core.figures import report
from sightline.core.memory import keep_freed_memory
from sightline.core.params import Section
from sightline.depth.embedding import EmbedParams, embed_depth
from sightline.training.processes import join_srun


class Params(Section):
    embed: EmbedParams = EmbedParams()


def main(args: Namespace, params: Params) -> None:
    join_srun()
    keep_freed_memory()
    figures = embed_depth(args.encoder, args.data, args.output, params.embed)
    if figures:  # of several processes, the first one reports
        report(figures, {name: figures[name] for name in ("images", "effective_rank")}, args.metrics_dir)


parser = ArgumentParser(description=__doc__)
parser.add_argument("encoder", type=Path, help="weights file written by sightline extract_encoder")
parser.add_argument("data", type=Path, help="HDF5 file of normalised depth")
parser.add_argument("output", type=Path, help="HDF5 file to write")
parser.add_argument("--metrics-dir", type=Path, help="folder for metrics.json (default: print the figures)")

if __name__ == "__main__":
    run_stage(parser, Params, main)
