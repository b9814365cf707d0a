"""Export a trained model for other programs: ``sightline export MODEL OUT.onnx|OUT.pt2``.

MODEL is an encoder, a policy or a segmentation model. The file takes raw images of any size and number: decoding,
resizing, filling of holes and normalisation are inside. Of a model of volumes, it takes windows of the size that was
trained on. ONNX Runtime or OpenVINO run .onnx, PyTorch runs .pt2.
"""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from sightline.core.cli import run_stage
from sightline.core.params import Section


class Params(Section):
    """No parameters: everything is in the weights file."""


def main(args: Namespace, _: Params) -> None:
    from sightline.export.files import export_model  # loads every branch

    difference = export_model(args.model, args.output, not args.whole)
    print(f"{args.output}: results differ by {difference:.1e} of the largest")


parser = ArgumentParser(prog="sightline export", description="Export a model with its preprocessing inside.")
parser.add_argument("model", type=Path, help="weights file of an encoder, a policy or a segmentation model")
parser.add_argument("output", type=Path, help="file to write, .onnx or .pt2")
parser.add_argument("--whole", action="store_true", help="segmentation: from the whole image alone, without windows")

if __name__ == "__main__":
    run_stage(parser, Params, main)
