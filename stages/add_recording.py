"""Take a recording into the pipeline: check it whole, track it with DVC, and change params.yaml to it."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from sightline.core.cli import run_stage
from sightline.core.params import Section
from sightline.validation.adding import add_recording


def main(args: Namespace, _: Section) -> None:
    print(add_recording(args.recording, args.mask_camera, args.views, args.processes))


parser = ArgumentParser(description=__doc__)
parser.add_argument("recording", type=Path, help="folder in this project, e.g. data/mine; again when it has grown")
parser.add_argument("--mask-camera", metavar="NAME", help="camera whose images the masks belong to, if there are more")
parser.add_argument(
    "--views", nargs="*", metavar="NAME",
    help="cameras of the fusion model, in order; none: joints alone (default: as before, or all there are)",
)  # fmt: skip
parser.add_argument("--processes", type=int, help="processes that read images (default: one per core)")

if __name__ == "__main__":
    run_stage(parser, Section, main)
