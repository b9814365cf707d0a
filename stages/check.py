"""Check that the parameters fit the recording, and list those that do not, before anything else runs."""

import json
from argparse import ArgumentParser, Namespace
from pathlib import Path

from sightline.core.cli import run_stage
from sightline.core.figures import DETAILS
from sightline.core.files import write_json
from sightline.core.params import Section
from sightline.recording.layout import StageLists
from sightline.validation.parameters import MaskCamera, ViewCameras, check_parameters


class Params(Section):
    stages: StageLists = StageLists()
    segmentation: MaskCamera = MaskCamera()
    views: ViewCameras = ViewCameras()


def main(args: Namespace, params: Params) -> None:
    uses = check_parameters(args.recording, params.stages, params.segmentation.camera, params.views.cameras)
    if args.metrics_dir:
        write_json(args.metrics_dir / DETAILS, uses)
    else:
        print(json.dumps(uses, indent=2))


parser = ArgumentParser(description=__doc__)
parser.add_argument("recording", type=Path, help="folder with recording.json, frames.parquet and folders of images")
parser.add_argument("--metrics-dir", type=Path, help="folder for details.json (default: print what stages will run on)")

if __name__ == "__main__":
    run_stage(parser, Params, main)
