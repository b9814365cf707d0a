"""Check a recording, split it by episode, and write which frames are sound: for the table and for each image folder."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from sightline.cli import run_stage
from sightline.files import write_json
from sightline.params import Section
from sightline.recording.validation import DataPart, validate_recording


class Params(Section):
    seed: int = 0
    data: DataPart = DataPart()


def main(args: Namespace, params: Params) -> None:
    metrics = validate_recording(
        args.recording, args.out_dir, params.data, params.seed, only=args.only, processes=args.processes
    )
    write_json(args.metrics_dir / "metrics.json", metrics) if args.metrics_dir else print(metrics)


parser = ArgumentParser(description=__doc__)
parser.add_argument("recording", type=Path, help="folder with recording.json, frames.parquet and folders of images")
parser.add_argument("out_dir", type=Path, help="folder for frames.parquet, depth.parquet, rgb_<camera>.parquet ...")
parser.add_argument("--metrics-dir", type=Path, help="folder for metrics.json (default: print the figures)")
parser.add_argument("--only", metavar="frames|depth|masks|rgb/CAMERA", help="check one piece (default: all there is)")
parser.add_argument("--processes", type=int, help="worker processes (default: one per core)")

if __name__ == "__main__":
    run_stage(parser, Params, main)
