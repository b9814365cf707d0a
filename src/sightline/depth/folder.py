"""Train and evaluate straight from a folder of depth images, as the documents' commands do: ``--data-dir FOLDER``."""

from argparse import ArgumentParser, Namespace
from collections.abc import Iterable
from pathlib import Path

from sightline.core.errors import UserError
from sightline.core.figures import HEADLINE
from sightline.core.files import fingerprint, scratch_folder
from sightline.core.params import Section, load_params
from sightline.depth.normalize import NormalizeParams, normalize_depth, resolve_preprocessing, say_folder
from sightline.depth.store import DepthStore
from sightline.depth.weights import load_weights
from sightline.recording.names import image_files
from sightline.recording.split import DataParams
from sightline.training.processes import world_size

_SAME = ("batch_size", "latent_dim", "optimizer", "scheduler", "gradient_clip", "weight_decay", "patience")
SHORTHANDS = {key: f"train.{key}" for key in _SAME} | {
    "num_epochs": "train.epochs", "learning_rate": "train.lr", "augment": "train.augment=full",
    "no_augment": "train.augment=none", "use_perceptual_loss": "train.perceptual_weight=0.1"}  # fmt: skip
OUTPUTS = Path("outputs")  # of a training without --output-dir
PARTS = {  # option of an evaluation -> the files that it asks for
    "eval_dataset": ("evaluation_results.json", HEADLINE),
    "visualize": ("reconstruction_results.png",),
    "analyze_latent": ("latent_analysis.png",),
    "interpolate": ("interpolation.png",),
}


class Params(Section):
    """What decides the normalised images."""

    data: DataParams = DataParams()
    normalize: NormalizeParams = NormalizeParams()


def add_training_folder(parser: ArgumentParser) -> None:
    """Add the options that `take_training_folder` reads."""
    group = parser.add_argument_group("from a folder of images, in place of data, weights and --metrics-dir")
    option = group.add_argument
    option("--data-dir", "--data_dir", type=Path, help="folder of uint16 images; all else goes to --output-dir")
    option("--height-range", "--height_range", nargs=2, type=int, metavar=("NEAR", "FAR"),
           help="raw counts of the nearest and farthest depth of interest (normalize.height_range)")  # fmt: skip


def take_training_folder(args: Namespace) -> Namespace:
    """The arguments with ``data``, ``weights`` and ``metrics_dir``, whichever way they were told.

    Raises:
        UserError: neither way, or both; see `normalize_depth`.
    """
    named = [args.data, args.weights, args.metrics_dir]
    if args.data_dir is None:
        if args.height_range:
            raise UserError("--height-range goes with --data-dir; for a file, set it when you normalise")
        if None in named:
            raise UserError("name DATA, WEIGHTS and --metrics-dir FOLDER; or --data-dir FOLDER, to train from images")
        return args
    if any(named[:2]):
        raise UserError(f"--data-dir {args.data_dir}: leave out DATA and WEIGHTS, or --data-dir")
    if world_size() > 1:
        raise UserError("--data-dir is for one process; make a file with sightline normalize first, and name it")
    output = args.output_dir or OUTPUTS
    sets = [f"normalize.height_range={args.height_range}"] if args.height_range else []
    params = load_params(Params, args.params, sets)
    if args.resume and not args.height_range:
        params = _as_learned(params, args.resume)
    data, metrics = normalized(args.data_dir, params), args.metrics_dir or output / "metrics"
    more = {"data": data, "weights": output / "autoencoder.safetensors", "metrics_dir": metrics, "output_dir": output}
    return Namespace(**vars(args) | more)


def add_evaluation_folder(parser: ArgumentParser) -> None:
    """Add the options that `take_evaluation_folder` reads."""
    group = parser.add_argument_group("from a folder of images, in place of weights, data and output")
    option = group.add_argument
    option("--model-path", "--model_path", type=Path, help="weights file or checkpoint of the autoencoder")
    option("--data-dir", "--data_dir", type=Path, help="folder of uint16 images; its part data.split.test is held out")
    option("--output-dir", "--output_dir", type=Path, help="folder for figures and pictures")
    for name, files in PARTS.items():
        option(*dict.fromkeys((f"--{name.replace('_', '-')}", f"--{name}")), action="store_true",
               help=f"write {' and '.join(files)}, and of the rest only what is asked for")  # fmt: skip


def take_evaluation_folder(args: Namespace) -> Namespace:
    """The arguments with ``weights``, ``data`` and ``output``, whichever way they were told.

    Raises:
        UserError: neither way, or both; see `load_weights` and `normalize_depth`.
    """
    positional, options = [args.weights, args.data, args.output], [args.model_path, args.data_dir, args.output_dir]
    if (any(positional) and any(options)) or (None in positional and None in options):
        raise UserError("name WEIGHTS, DATA and OUTPUT; or --model-path, --data-dir and --output-dir")
    if None not in positional:
        return args
    data = normalized(args.data_dir, _as_learned(load_params(Params, args.params), args.model_path))
    return Namespace(**vars(args) | {"weights": args.model_path, "data": data, "output": args.output_dir})


def keep_asked(args: Namespace) -> None:
    """Remove what an evaluation wrote and nobody asked for; without any of these options, everything is kept."""
    asked = {name for name in PARTS if getattr(args, name)}
    for name in PARTS.keys() - asked if asked else ():
        for file in PARTS[name]:
            (args.output / file).unlink(missing_ok=True)


def normalized(folder: Path, params: Params) -> Path:
    """The normalised images of a folder, in the scratch cache: made once for the same files and settings."""
    data, settings = params.data, resolve_preprocessing(params.normalize, None).model_dump()
    of_data = data.split.model_dump(), data.on_error, params.normalize.channels
    key = fingerprint(str(folder.resolve()), settings, of_data, _stamps(image_files(folder)))
    output = scratch_folder("cache", "normalized", key) / "depth.hdf5"
    if output.is_file():
        store = DepthStore.open(output)
        say_folder(folder, store.preprocessing, store.split)
    else:
        normalize_depth(folder, output, params.normalize, split=data.split, on_error=data.on_error)
    return output


def _as_learned(params: Params, weights: Path) -> Params:
    """With the preprocessing of a file of weights."""
    header = load_weights(weights, "autoencoder").header
    known = header.preprocessing.model_dump() | {"channels": header.network.input_channels}
    return params.model_copy(update={"normalize": NormalizeParams(**known)})


def _stamps(paths: Iterable[Path]) -> list[tuple[str, int, int]]:
    return [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in paths]
