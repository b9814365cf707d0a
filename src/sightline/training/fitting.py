"""Fit a module with Lightning: precision, clipping, early stopping, curves, and resuming that changes nothing.

State is saved after every epoch in a scratch folder whose name is a fingerprint of parameters, code and data. A killed
run that is started again continues after its last whole epoch and, on one CPU machine, ends with the same weights, bit
for bit, as a run that was never killed; a run with any other parameter never sees that state.
"""

import csv
import inspect
import math
import os
import pickle
import shutil
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import lightning
import numpy as np
import torch
from lightning.fabric.plugins.environments import LightningEnvironment, TorchElasticEnvironment
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.callbacks import Callback, EarlyStopping
from pydantic import Field
from torch import Tensor, nn
from torch.utils.data import Dataset

from sightline.core.errors import UserError
from sightline.core.figures import write_figures
from sightline.core.files import (
    atomic_output,
    claim,
    discard,
    file_sha256,
    fingerprint,
    require_file,
    scratch_folder,
    write_json,
)
from sightline.training.by_hand import ByHand
from sightline.training.compiling import CompileParams, StepBegins
from sightline.training.gradients import Gradients
from sightline.training.live import is_terminal, loggers, quiet, watchers, write_run
from sightline.training.loading import loader
from sightline.training.precision import Precision, computed_in, exact_float32, use_bf16
from sightline.training.processes import exchange, process_device, rank, world_size

WARM_UP = 0.05  # share of the steps in which the learning rate rises
DIVERGED = 1000  # a validation loss so many times that of the first epoch will not come back
SECOND = 0.3  # highest learning rate of the second part of a training in two, in shares of the first's


class TrainerParams(CompileParams):
    """Parameters that every training has."""

    epochs: int = Field(8, ge=1, description="most passes over the training frames")
    batch_size: int = Field(32, ge=2, description="frames in a step")
    accumulate: int = Field(1, ge=1, description="batches whose gradients are added up for one step")
    optimizer: Literal["AdamW", "Adam", "SGD"] = Field("AdamW", description="AdamW, Adam, or SGD (momentum 0.9)")
    scheduler: Literal["CosineAnnealingLR", "constant"] = Field(
        "CosineAnnealingLR", description="CosineAnnealingLR (to 0) or constant, after a warm-up over 5 % of the steps"
    )
    lr: float = Field(1e-3, gt=0, description="highest learning rate")
    weight_decay: float = Field(1e-4, ge=0, description="decay (AdamW) or L2 penalty (Adam, SGD)")
    gradient_clip: float = Field(1.0, ge=0, description="largest norm of the gradient; 0 switches clipping off")
    patience: int = Field(20, ge=1, description="epochs without a better validation loss before stopping")
    precision: Precision = "auto"
    deterministic: bool = Field(
        False,
        description="GPU: the same bits in each run, more slowly; torch warns where it cannot; a CPU always gives them",
    )


def configure_optimizer(
    parameters: Iterable[Any], params: TrainerParams, steps: int, restart: float = 0.0
) -> dict[str, Any]:
    """Optimizer and course of the learning rate, as Lightning takes them from ``configure_optimizers``.

    Args:
        steps: optimizer steps of the whole training (``trainer.estimated_stepping_batches``).
        restart: share of the steps after which the course starts again, up to a lower rate: for a training in two
            parts, the second of which also goes on with what the first has learnt.
    """
    optimizer: torch.optim.Optimizer
    if params.optimizer == "SGD":
        optimizer = torch.optim.SGD(parameters, params.lr, momentum=0.9, weight_decay=params.weight_decay, fused=True)
    else:
        kind = torch.optim.AdamW if params.optimizer == "AdamW" else torch.optim.Adam
        optimizer = kind(parameters, params.lr, weight_decay=params.weight_decay, fused=True)
    first = round(steps * restart)

    def factor(step: int) -> float:
        done, length = (step, first) if step < first else (step - first, steps - first)
        highest = SECOND if first and step >= first else 1.0
        rise = max(1, round(length * WARM_UP))
        if done < rise:
            return highest * (done + 1) / rise
        if params.scheduler == "constant":
            return highest
        return highest * 0.5 * (1 + math.cos(math.pi * (done - rise) / max(1, length - rise)))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def parameter_groups(
    module: nn.Module, params: TrainerParams, apart: Iterable[Tensor], lr_apart: float
) -> list[dict[str, Any]]:
    """Groups for `configure_optimizer`: parameters ``apart`` learn at ``lr_apart``; biases and norms do not decay."""
    is_apart = {id(parameter) for parameter in apart}
    groups: dict[tuple[bool, bool], list[Tensor]] = {}
    for parameter in module.parameters():
        if parameter.requires_grad:
            groups.setdefault((id(parameter) in is_apart, parameter.ndim > 1), []).append(parameter)
    return [
        {"params": some, "lr": lr_apart if own else params.lr, "weight_decay": params.weight_decay if decays else 0.0}
        for (own, decays), some in groups.items()
    ]


@dataclass(frozen=True)
class Batches:
    """What a training reads: data sets that make a batch of a draw, and the draws of an epoch."""

    train: Dataset
    train_order: Any  # a sampler with ``set_epoch``
    val: Dataset
    val_order: Any
    frame_id: np.ndarray  # int64 [N], of the rows that are drawn: errors name the frames of a batch
    resident: bool = False  # the data lie on the GPU


@dataclass(frozen=True)
class FitResult:
    """What a fit leaves behind."""

    best_weights: dict[str, Tensor]  # state dict of the epoch with the lowest val_loss; empty but at the first process
    best: dict[str, float]  # that epoch's row of the history
    history: list[dict[str, float]]  # one row per epoch: epoch, lr and everything the module logged
    scratch: Path  # to be deleted, by `report`, when the outputs are written
    runs: Path  # folder of the logs
    seconds: float  # of this process: of a run that was resumed, since then

    def best_weights_of(self, part: str) -> dict[str, Tensor]:
        """Those of the module's attribute ``part``, under its own names."""
        prefix = f"{part}."
        return {name.removeprefix(prefix): v for name, v in self.best_weights.items() if name.startswith(prefix)}

    def report(self, metrics_dir: Path, headline: dict[str, Any], figures: dict[str, Any]) -> None:
        """Write the figures and, to curves.csv, the history; delete the state that a resumed run would start from.

        The number of threads is among the figures: with another one, sums differ in their last digits.
        """
        best_epoch = {"best_epoch": int(self.best["epoch"])}
        of_run = {"epochs": len(self.history), "threads": torch.get_num_threads(), **best_epoch}
        write_figures(metrics_dir, best_epoch | headline, of_run | figures)
        names, curves = list(dict.fromkeys(name for row in self.history for name in row)), metrics_dir / "curves.csv"
        with atomic_output(curves) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, names)
            writer.writeheader()
            writer.writerows({name: f"{value:.6g}" for name, value in row.items()} for row in self.history)
        write_run(self.runs, metrics_dir, len(self.history), self.seconds)
        discard(self.scratch)


@quiet()
@exact_float32()
def fit(
    module: lightning.LightningModule,
    batches: Batches,
    params: TrainerParams,
    stage: str,
    identity: list[Any],
    by_hand: ByHand,
    *,
    all_learn: bool = False,
) -> FitResult:
    """Train ``module`` until ``params.epochs`` or early stopping, continuing an interrupted run of the same identity.

    The number of processes belongs to it, with which a step takes other frames, and the arithmetic of this machine.
    Whether there is an interrupted run is what the first process finds; the others must have the same state.

    Args:
        module: logs ``val_loss`` (and what else belongs in the curves) with ``on_epoch=True``.
        stage: name of the stage, for the scratch folder and the TensorBoard logs in ``runs/``.
        identity: JSON-serialisable parameters and input hashes that decide the result; the code is added here.
        all_learn: every weight has a gradient in every step; else processes look for those that have none.

    Raises:
        UserError: the gradient or the loss is not finite, or the loss diverges (``latest_checkpoint.pth`` and the
            scratch state are those of the last good epoch); ``by_hand.resume`` is not a checkpoint of this network, or
            ``by_hand.checkpoint_every`` < 1; processes that read other data, or find another state to continue from.
        KeyboardInterrupt: Ctrl-C or SIGTERM; its text says how many epochs are kept.
    """
    if by_hand.checkpoint_every < 1:
        raise UserError(f"checkpoint_every must be at least 1, not {by_hand.checkpoint_every}")
    # A folder for the state of this very run: whatever changes the result changes its name.
    arithmetic = computed_in(params.precision, process_device())
    key = fingerprint(stage, identity, _code_identity(module), world_size(), arithmetic)
    scratch = scratch_folder(stage, key)
    if rank() == 0:
        claim(scratch)
    # Every epoch ends in the keeper, which saves that state, and copies of it for a run by hand.
    keeper, output_dir = _Keeper(scratch, by_hand), by_hand.output_dir
    continues = _continues(keeper.last, key)
    project = scratch.parents[2]
    runs = output_dir / "tensorboard" if output_dir else project / "runs" / stage / key[:12]
    if output_dir:
        write_json(output_dir / "config.json", {"stage": stage, "identity": identity})
    # Lightning's own checkpoints, summary, sampler and clipping are off: ours are above, or in the callbacks.
    local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # processes on this machine, as torchrun says
    several = "ddp" if all_learn else "ddp_find_unused_parameters_true"  # a part may wait for its epochs
    device = process_device()
    repeats = params.deterministic and device.type == "cuda"
    if repeats:
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # nothing reads it
    trainer = lightning.Trainer(
        max_epochs=params.epochs,
        accelerator="auto",
        strategy=several if world_size() > 1 else "auto",
        devices=local,
        num_nodes=world_size() // local,
        precision="bf16-mixed" if use_bf16(params.precision) else "32-true",
        accumulate_grad_batches=params.accumulate,
        callbacks=[
            EarlyStopping("val_loss", patience=params.patience, check_finite=False),
            keeper,
            Gradients(params.gradient_clip, batches.train_order, batches.frame_id),
            *([StepBegins()] if params.compile and params.cuda_graphs else []),
            *watchers(stage),
        ],
        logger=loggers(runs, None if output_dir else project, continues),
        # explicit, because Lightning takes any job of SLURM for one whose processes SLURM has started
        plugins=[_AtomicCheckpoints(), TorchElasticEnvironment() if world_size() > 1 else LightningEnvironment()],
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=is_terminal(),
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        log_every_n_steps=1,
        deterministic="warn" if repeats else None,
        benchmark=device.type == "cuda" and not repeats,
    )
    # The state of an interrupted run goes before a checkpoint that the user names: it is the same run, further on.
    start = by_hand.resume
    if continues:
        start = keeper.last
        if rank() == 0:
            print(f"{stage}: continuing an interrupted run", file=sys.stderr)
    elif start:
        _check_resumable(start, module)
    # Lightning answers Ctrl-C with SystemExit; both leave as the one that `run_stage` reports.
    train = loader(batches.train, batches.train_order, device, batches.resident)
    val = loader(batches.val, batches.val_order, device, batches.resident)
    began = time.monotonic()
    try:
        trainer.fit(module, train, val, ckpt_path=start, weights_only=True)
    except (SystemExit, KeyboardInterrupt):
        raise KeyboardInterrupt(f"{len(keeper.history)} of {params.epochs} epochs are kept") from None
    return keeper.result(runs, time.monotonic() - began)


class _Keeper(Callback):
    """Keeps the history, the best weights and the state to resume from, after every epoch."""

    def __init__(self, scratch: Path, by_hand: ByHand) -> None:
        self.scratch, self.last, self.best, self.by_hand = scratch, scratch / "last.ckpt", scratch / "best.pt", by_hand
        self.history: list[dict[str, float]] = []
        self.start = 0  # rows of the history before this belong to the run that was resumed by hand

    def on_train_epoch_end(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        if not math.isfinite(metrics["val_loss"]):
            raise UserError(
                f"the validation loss is {metrics['val_loss']} in epoch {trainer.current_epoch}; lower the lr"
            )
        if self.history and metrics["val_loss"] > DIVERGED * max(abs(self.history[0]["val_loss"]), 1e-3):
            raise UserError(
                f"the training diverges: the validation loss is {metrics['val_loss']:.3g} in epoch "
                f"{trainer.current_epoch}, it was {self.history[0]['val_loss']:.3g} in epoch 0; lower the lr"
            )
        lr = trainer.optimizers[0].param_groups[0]["lr"]
        self.history.append({"epoch": trainer.current_epoch, "lr": lr, **dict(sorted(metrics.items()))})
        is_best = self._best_row() is self.history[-1]
        if trainer.is_global_zero and is_best:
            with atomic_output(self.best) as temporary, open(temporary, "wb") as file:
                torch.save(module.state_dict(), file)
        trainer.save_checkpoint(self.last)
        if trainer.is_global_zero and self.by_hand.output_dir:
            epoch = trainer.current_epoch + 1
            copies = {"latest_checkpoint.pth": self.last}
            copies |= {"best_model.pth": self.last, "best_model_weights.pth": self.best} if is_best else {}
            copies |= {f"checkpoint_epoch_{epoch}.pth": self.last} if epoch % self.by_hand.checkpoint_every == 0 else {}
            for name, source in copies.items():
                with atomic_output(self.by_hand.output_dir / name) as temporary:
                    shutil.copyfile(source, temporary)

    def state_dict(self) -> dict[str, Any]:
        return {"history": self.history, "start": self.start}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.history = state["history"]
        self.start = state["start"] if self.last.is_file() else len(self.history)

    def result(self, runs: Path, seconds: float) -> FitResult:
        if len(self.history) == self.start:
            raise UserError(f"the checkpoint has {self.start} epochs already; raise the number of epochs to go on")
        best = torch.load(self.best, map_location="cpu", weights_only=True) if rank() == 0 else {}
        return FitResult(best, self._best_row(), self.history, self.scratch, runs, seconds)

    def _best_row(self) -> dict[str, float]:
        return min(self.history[self.start :], key=lambda row: row["val_loss"])


class _AtomicCheckpoints(TorchCheckpointIO):
    """A checkpoint that a kill cannot leave half-written."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        with atomic_output(Path(path)) as temporary, open(temporary, "wb") as file:
            torch.save(checkpoint, file)


def _continues(last: Path, key: str) -> bool:
    """Whether there is a state ``last`` of this run: as the first process finds, and all others must find the same.

    Else one would go on from an epoch, and another begin anew with the weights of the first.

    Raises:
        UserError: at the first process, where another one has not its state, or its ``key``; the others end.
    """
    found = exchange((key, file_sha256(last) if last.is_file() else ""))
    (first_key, first), others = found[0], list(enumerate(found))[1:]
    differ = [number for number, (other, _) in others if other != first_key]
    lack = [number for number, (_, state) in others if first and state != first]
    if (differ or lack) and rank() != 0:
        raise SystemExit(0)  # the first process says why
    if differ:
        raise UserError(
            f"process {differ[0]} has other data, parameters, code or versions than process 0; give all the same files"
        )
    if lack:
        raise UserError(
            f"{last}: process {lack[0]} lacks this state of the interrupted run, or has another; let machines that "
            "train together share the folder .scratch, or copy it; if none has one, the training starts anew"
        )
    return bool(first)


def _check_resumable(path: Path, module: lightning.LightningModule) -> None:
    """Raise `UserError` unless ``path`` is a whole checkpoint of a module with the same weights."""
    require_file(path, "a checkpoint")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError):
        raise UserError(f"{path}: not a checkpoint that can be loaded safely") from None
    if not isinstance(checkpoint, dict) or not {"state_dict", "optimizer_states"} <= set(checkpoint):
        raise UserError(
            f"{path}: not a whole checkpoint; give latest_checkpoint.pth, or best_model.pth of an earlier run"
        )
    shapes = {name: tensor.shape for name, tensor in module.state_dict().items()}
    if shapes != {name: tensor.shape for name, tensor in checkpoint["state_dict"].items()}:
        raise UserError(f"{path}: a checkpoint of another network; train with the parameters in its config.json")


def _code_identity(module: lightning.LightningModule) -> list[str]:
    """Hashes of the code on disk that a training of ``module`` may use, and the version of torch.

    That is the module's own folder, the floors and the core, whichever of their files were imported.
    """
    floors = [Path(__file__).parents[1] / name for name in ("core", "grids", "recording", "training")]
    own = Path(inspect.getfile(type(module))).parent
    files = sorted({path for folder in (own, *floors) for path in folder.glob("*.py")})
    return [*map(file_sha256, files), torch.__version__]
