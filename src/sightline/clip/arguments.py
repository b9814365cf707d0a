"""Which photographs `clip_grids` encodes and where to: by our arguments, or by those of document 004."""

from argparse import Action, ArgumentParser, Namespace
from pathlib import Path
from typing import Any

from sightline.core.errors import UserError


class _ClipModel(Action):
    """``--clip-model NAME`` is a model of OpenAI with its weights, unless ``--pretrained`` names others."""

    def __call__(self, parser: ArgumentParser, namespace: Namespace, value: Any, option: str | None = None) -> None:
        model = f"{value.replace('/', '-')}-quickgelu"  # as open_clip calls OpenAI's networks
        namespace.set = ["grids.pretrained=openai", *namespace.set, f"grids.model={model}"]


def add_photographs(parser: ArgumentParser) -> None:
    """Add the arguments that `take_photographs` reads."""
    parser.add_argument(
        "paths", type=Path, nargs="*", metavar="PATH",
        help="folders of photographs, then the file to write (*.hdf5), or a folder of shards of grids.shard_frames",
    )  # fmt: skip
    option = parser.add_argument_group("the same in other words, in place of PATH").add_argument
    option("--image-root", "--image_root", type=Path, help="folder that holds folders of photographs")
    option("--split", help="the one of them to encode, such as train2014 (default: --image-root itself)")
    option("--output-path", "--output_path", type=Path, help="file to write")
    option("--clip-model", "--clip_model", action=_ClipModel, help="OpenAI's model, such as ViT-B/16, with its weights")


def take_photographs(args: Namespace) -> tuple[list[Path], Path]:
    """Folders of photographs, and the output.

    Raises:
        UserError: neither way of naming them, or both.
    """
    options = args.image_root, args.split, args.output_path
    if any(options) and args.paths:
        raise UserError(f"{args.paths[0]}: leave it out, or --image-root, --split and --output-path")
    if any(options):
        if args.image_root is None or args.output_path is None:
            raise UserError("--image-root and --output-path go together: name both")
        return [args.image_root / args.split if args.split else args.image_root], args.output_path
    if len(args.paths) < 2:
        raise UserError(
            "name one or more folders of photographs, then the file to write; or --image-root and --output-path"
        )
    return args.paths[:-1], args.paths[-1]
