"""Check a recording, split it by episode, and write which frames are sound, for the table and for each image folder."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from sightline.core.cli import run_stage
from sightline.core.figures import report
from sightline.core.params import Section
from sightline.recording.split import DataParams
from sightline.validation.validation import DriftGuard, ValidationParams, headline, validate_recording


class Params(Section):
    data: DataParams = DataParams()
    validation: ValidationParams = ValidationParams()


def main(args: Namespace, params: Params) -> None:
    guard = DriftGuard(params.validation.drift_tolerance, args.reference, args.metrics_dir)
    metrics = validate_recording(args.recording, args.out_dir, params.data, args.only, args.processes, guard)
    report(metrics, headline(metrics), args.metrics_dir)


parser = ArgumentParser(description=__doc__)
parser.add_argument("recording", type=Path, help="folder with recording.json, frames.parquet and folders of images")
parser.add_argument("out_dir", type=Path, help="folder for frames.parquet, depth.parquet, rgb/<camera>.parquet ...")
parser.add_argument("--metrics-dir", type=Path, help="for metrics, summary and drift .json (default: print metrics)")
parser.add_argument(
    "--reference",
    type=Path,
    help="summary.json of the recording that models know, or a folder of them",
)
parser.add_argument("--only", metavar="frames|depth[/CAMERA]|masks|rgb/CAMERA", help="check one piece")
parser.add_argument("--processes", type=int, help="worker processes (default: one per core)")

if __name__ == "__main__":
    run_stage(parser, Params, main)
