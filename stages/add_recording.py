"""Add a recording to the pipeline: check all of it, track it with DVC, and change params.yaml to it."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from sightline.core.cli import run_stage
from sightline.core.params import Section
from sightline.validation.adding import add_recording


def main(args: Namespace, _: Section) -> None:
    print(add_recording(args.recording, args.mask_camera, args.views, args.processes))


parser = ArgumentParser(description=__doc__)
parser.add_argument("recording", type=Path, help="folder here, such as data/mine; run it again after adding episodes")
parser.add_argument("--mask-camera", metavar="NAME", help="camera whose images the masks belong to, if there are more")
parser.add_argument(
    "--views", nargs="*", metavar="NAME",
    help="cameras of the policy, in order; no name: joints alone (default: as before, or all cameras)",
)  # fmt: skip
parser.add_argument("--processes", type=int, help="processes that read images (default: one per core)")

if __name__ == "__main__":
    run_stage(parser, Section, main)
