"""Export a trained encoder for programs that have PyTorch, but not Sightline: ``python -m sightline.depth.export``.

The file is a `torch.export` program (.pt2) of float32 [N, C, 128, 128] -> [N, D] for any N. Raw images have to be
normalised first, as `sightline.depth.preprocessing` says; the settings travel in the file as ``preprocessing.json``:

    extra = {"preprocessing.json": ""}
    encoder = torch.export.load("encoder.pt2", extra_files=extra).module()
"""

import io
import json
import math
import warnings
from argparse import ArgumentParser, Namespace
from pathlib import Path

import torch

from sightline.core.cli import run_stage
from sightline.core.errors import UserError
from sightline.core.files import atomic_output
from sightline.core.params import Section
from sightline.depth.preprocessing import IMAGE_SIZE
from sightline.depth.weights import load_weights

TOLERANCE = 1e-5  # largest distance of the embeddings, as a share of their norm


def export_encoder(weights: Path, output: Path) -> float:
    """Write the encoder in ``weights`` as a program to ``output`` -> how far its embeddings are from the encoder's.

    That is measured on random images, on another number of images than it was traced with, from the written file.

    Raises:
        UserError: not an encoder, another suffix than .pt2, or embeddings that differ; then nothing is written.
    """
    if output.suffix != ".pt2":
        raise UserError(f"{output}: an exported program's name ends in .pt2")
    loaded = load_weights(weights, "encoder")
    encoder, channels = loaded.build(weights), loaded.header.network.input_channels
    generator = torch.Generator().manual_seed(0)
    images = 2 * torch.rand(5, channels, IMAGE_SIZE, IMAGE_SIZE, generator=generator) - 1
    count = torch.export.Dim("images", min=1)
    with torch.inference_mode(False), torch.no_grad():
        program = torch.export.export(encoder, (images[:2],), dynamic_shapes=({0: count},))
    settings = json.dumps(loaded.header.preprocessing.model_dump(mode="json"), sort_keys=True)
    with atomic_output(output) as temporary:
        written = temporary.with_suffix(".pt2")
        try:
            archive = io.BytesIO()  # on a full disk, torch's own writing ends the process
            torch.export.save(program, archive, extra_files={"preprocessing.json": settings})
            written.write_bytes(archive.getvalue())
            with torch.no_grad(), warnings.catch_warnings():
                warnings.filterwarnings("ignore", "The given buffer is not writable")  # nobody writes to it
                expected, exported = encoder(images), torch.export.load(written).module()(images)
            difference = float((expected - exported).norm() / expected.norm())
            if not math.isfinite(difference) or difference > TOLERANCE:
                raise UserError(
                    f"{output}: its embeddings differ from those of {weights} by {difference:.2g} of their norm"
                )
            written.rename(temporary)
        finally:
            written.unlink(missing_ok=True)
    return difference


class Params(Section):
    """No parameters: everything is in the weights file."""


def main(args: Namespace, _: Params) -> None:
    difference = export_encoder(args.encoder, args.output)
    print(f"{args.output}: embeddings differ by {difference:.1e} of their norm")


parser = ArgumentParser(prog="python -m sightline.depth.export", description="Export a trained depth encoder.")
parser.add_argument("encoder", type=Path, help="weights file written by stages/extract_encoder.py")
parser.add_argument("output", type=Path, help="file to write, .pt2")

if __name__ == "__main__":
    run_stage(parser, Params, main)
