"""Extract the encoder from a trained depth autoencoder."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from sightline.core.cli import run_stage
from sightline.core.params import Section
from sightline.depth.weights import extract_encoder


class Params(Section):
    """No parameters: everything is in the weights file."""


def main(args: Namespace, _: Params) -> None:
    output = args.output or args.checkpoint.with_name("encoder.safetensors")
    expected = {"input_channels": args.input_channels, "latent_dim": args.latent_dim}
    figures = extract_encoder(args.checkpoint, output, **expected, verify=args.verify)
    print(f"{output}: encoder with {figures['parameters']:,} parameters")
    if args.verify:
        print(f"verified: {figures['weights']} names alike, max |z_autoencoder - z| = {figures['max_difference']}")


parser = ArgumentParser(description=__doc__)
parser.add_argument("checkpoint", type=Path, help="weights of the autoencoder: .safetensors, or a torch checkpoint")
parser.add_argument("--output", type=Path, help="file to write, .safetensors or .pth (default: encoder.safetensors)")
parser.add_argument("--input-channels", "--input_channels", type=int, help="fail unless the checkpoint holds this many")
parser.add_argument("--latent-dim", "--latent_dim", type=int, help="fail unless the checkpoint holds this many")
parser.add_argument("--verify", action="store_true", help="compare the file's latents with the autoencoder's")

if __name__ == "__main__":
    run_stage(parser, Params, main)
