"""What is seen of a training while it runs: the losses of its steps and the validation figures of its epochs.

They go to a bar in a terminal, or else to one line per epoch on standard error, and to ``runs/<stage>/<run>/``: for
TensorBoard (``tensorboard --logdir runs``), and in a DVC project as the files of DVCLive, which VS Code shows. git and
DVC ignore that folder; outputs never depend on it.
"""

import logging
import os
import platform
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback, TQDMProgressBar
from lightning.pytorch.loggers import Logger, TensorBoardLogger

from sightline.core.files import write_json

PERIOD = 0.5  # seconds between losses of steps: on a GPU, reading one waits for the step


def loggers(folder: Path, project: Path | None, resumed: bool) -> list[Logger]:
    """What writes to ``folder``.

    Args:
        project: folder of the DVC project; without one, DVCLive is left out, because it would make one.
        resumed: go on with the files that are there.
    """
    made: list[Logger] = [TensorBoardLogger(folder.parent, name="", version=folder.name, flush_secs=5)]
    if project and (project / ".dvc").is_dir():
        from dvclive.lightning import DVCLiveLogger  # it loads DVC, which takes a second

        made.append(DVCLiveLogger(dir=str(folder / "dvclive"), resume=resumed, save_dvc_exp=False, dvcyaml=None))
    return made


class Steps(Callback):
    """Hands the loss and the learning rate of a step to the loggers: of the first one, then every `PERIOD` seconds."""

    def __init__(self, stage: str) -> None:
        self.stage, self.loss, self.due = stage, float("nan"), 0.0

    def on_train_batch_end(
        self, trainer: lightning.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not trainer.is_global_zero or time.monotonic() < self.due:
            return
        self.loss = float(outputs["loss"]) * trainer.accumulate_grad_batches  # Lightning has divided it
        values = {"step_loss": self.loss, "lr": trainer.optimizers[0].param_groups[0]["lr"]}
        for logger in trainer.loggers:
            logger.log_metrics(values, step=trainer.global_step)
            logger.save()
        if not self.due and not is_terminal():
            print(f"{self.stage}: first step: train_loss {self.loss:.4g}", file=sys.stderr)
        self.due = time.monotonic() + PERIOD


class Lines(Callback):
    """A line for each epoch, where there is no terminal that could show a bar."""

    def __init__(self, stage: str) -> None:
        self.stage = stage

    def on_train_epoch_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        self.start = time.monotonic()

    def on_train_epoch_end(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        shown = {"train_loss": trainer.callback_metrics["train_loss"]} | _validation(trainer)  # of all processes
        if trainer.is_global_zero:
            figures = ", ".join(f"{name} {float(value):.4g}" for name, value in shown.items())
            epoch, seconds = f"{trainer.current_epoch + 1} of {trainer.max_epochs}", time.monotonic() - self.start
            print(f"{self.stage}: epoch {epoch}, {seconds:.1f} s: {figures}", file=sys.stderr)


class Bar(TQDMProgressBar):
    """A bar for each epoch: the loss of the last step that was read, and at the end the validation figures."""

    def __init__(self, steps: Steps) -> None:
        super().__init__(leave=True)
        self.steps, self.validated = steps, False

    def on_train_epoch_start(self, trainer: lightning.Trainer, *_: Any) -> None:
        self.validated = False
        super().on_train_epoch_start(trainer, *_)
        self.train_progress_bar.set_description(f"Epoch {trainer.current_epoch + 1} of {trainer.max_epochs}")

    def on_validation_end(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        self.validated = True
        super().on_validation_end(trainer, module)

    def get_metrics(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> dict[str, Any]:
        figures = {"train_loss": self.steps.loss} | (_validation(trainer) if self.validated else {})
        return {name: f"{float(value):.4g}" for name, value in figures.items()}


def is_terminal() -> bool:
    """Whether somebody may look at a bar."""
    return sys.stdout.isatty()


def watchers(stage: str) -> list[Callback]:
    """The callbacks that show a training of ``stage``."""
    steps = Steps(stage)
    return [steps, Bar(steps) if is_terminal() else Lines(stage)]


def write_run(folder: Path, metrics_dir: Path, epochs: int, seconds: float) -> None:
    """Write ``run.json``: which outputs the logs in ``folder`` belong to, how long the training took, and on what."""
    cores = f"{os.cpu_count()} cores, {torch.get_num_threads()} threads"
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{platform.machine()}, {cores}"
    run = {"metrics": metrics_dir.as_posix(), "epochs": epochs, "seconds": round(seconds, 1), "machine": device}
    write_json(folder / "run.json", run)


@contextmanager
def quiet() -> Iterator[None]:
    """Keep Lightning to errors: its hints (more workers, logging intervals) are not the user's to act on here."""
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"lightning\..*")
            warnings.filterwarnings("ignore", module=r"torch\..*", category=UserWarning)
            yield
    finally:
        logger.setLevel(level)


def _validation(trainer: lightning.Trainer) -> dict[str, Any]:
    return {name: value for name, value in trainer.callback_metrics.items() if name.startswith("val_")}
