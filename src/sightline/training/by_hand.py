"""Options of a training that only runs by hand use: a folder for checkpoints, and a checkpoint to start from."""

from argparse import ArgumentParser, Namespace
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class ByHand:
    """Options of a run by hand.

    ``output_dir`` gets ``config.json``, ``latest_checkpoint.pth`` and ``best_model.pth`` (whole checkpoints),
    ``best_model_weights.pth`` (the state dict alone), ``checkpoint_epoch_<n>.pth`` and the TensorBoard logs.
    """

    output_dir: Path | None = None  # None: no checkpoints
    resume: Path | None = None  # whole checkpoint of another run by hand
    checkpoint_every: int = 10  # epochs between numbered checkpoints

    @classmethod
    def add_options(cls, parser: ArgumentParser) -> None:
        """Add the command-line options that `of` reads."""
        option = parser.add_argument
        option("--output-dir", "--output_dir", type=Path, help="folder for checkpoints and TensorBoard logs")
        option("--resume", type=Path, help="checkpoint to start from, of another run with --output-dir")
        option("--checkpoint-every", type=int, default=10, help="epochs between numbered checkpoints (10)")

    @classmethod
    def of(cls, args: Namespace) -> "ByHand":
        """What the command line asks for."""
        return cls(args.output_dir, args.resume, args.checkpoint_every)


IN_PIPELINE = ByHand()
