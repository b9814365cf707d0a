"""This process among those that a launcher (torchrun, or SLURM's srun) started for one command."""

import atexit
import functools
import os
import re
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed

from sightline.core.errors import UserError

T = TypeVar("T")


def join_srun() -> None:
    """Where srun started several of this command, set the variables that torchrun would have set; for commands alone.

    Raises:
        UserError: the machines have different numbers of tasks.
    """
    slurm = os.environ
    if "RANK" in slurm or int(slurm.get("SLURM_STEP_NUM_TASKS", "1")) == 1:
        return
    each = re.fullmatch(r"(\d+)(\(x\d+\))?", slurm["SLURM_STEP_TASKS_PER_NODE"])  # "4(x2)": four on each of two
    if not each:
        raise UserError(
            f"srun: {slurm['SLURM_STEP_TASKS_PER_NODE']} tasks on the machines; give each as many, --ntasks-per-node"
        )
    nodes = slurm["SLURM_STEP_NODELIST"]  # "gpu[03-05,9],other"
    first = re.sub(r"\[(\w+)[^]]*\]", r"\1", re.split(r",(?![^[]*\])", nodes)[0])
    job, step = int(slurm["SLURM_JOB_ID"]), int(slurm["SLURM_STEP_ID"])
    slurm |= {
        "RANK": slurm["SLURM_PROCID"], "WORLD_SIZE": slurm["SLURM_STEP_NUM_TASKS"],
        "LOCAL_RANK": slurm["SLURM_LOCALID"], "LOCAL_WORLD_SIZE": each[1], "GROUP_RANK": slurm["SLURM_NODEID"],
        "MASTER_ADDR": first, "MASTER_PORT": str(15000 + (16 * job + step) % 10000),
    }  # fmt: skip


def rank() -> int:
    """Number of this process, 0 for the one that writes outputs."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """Number of processes that share the work."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def process_device() -> torch.device:
    """Where this process computes: its own GPU where there are some, else the CPU."""
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    return torch.device("cuda", local_rank) if torch.cuda.is_available() else torch.device("cpu")


def log_weight(count: int) -> int:
    """``batch_size`` of ``count`` samples for Lightning's ``log`` of what processes share.

    Lightning takes the mean of the processes' sums of these weights, cut to a whole number; of such multiples nothing
    is cut, so that shares of any size give what one process would.
    """
    return count * world_size()


def exchange(value: T) -> list[T]:
    """What every process gives, in the order of their numbers, at every process.

    The processes stay connected, for a training: on GPUs by NCCL, beside which these values go by gloo.
    """
    if world_size() == 1:
        return [value]
    values = [value] * world_size()
    torch.distributed.all_gather_object(values, value, _by_gloo())
    return values


@functools.cache
def _by_gloo() -> Any:
    """The group of all processes for what is not on a GPU; connects them, as Lightning would."""
    device = process_device()
    on_gpu = device.type == "cuda"
    if not torch.distributed.is_initialized():
        if on_gpu:
            torch.cuda.set_device(device)
            atexit.register(torch.distributed.destroy_process_group)
        torch.distributed.init_process_group("nccl" if on_gpu else "gloo")
    return torch.distributed.new_group(backend="gloo") if on_gpu else None  # None: all processes, by gloo already


def gather(value: T) -> list[T] | None:
    """What every process gives, in the order of their numbers, at the first process; None at the others.

    Returns when every process has come here, however long the slowest takes.
    """
    if world_size() == 1:
        return [value]
    patience = timedelta(days=30)
    values: list[T] | None = [value] * world_size() if rank() == 0 else None
    torch.distributed.init_process_group("gloo", timeout=patience)
    torch.distributed.gather_object(value, values)
    torch.distributed.monitored_barrier(timeout=patience)  # after it, none needs another to be alive
    torch.distributed.destroy_process_group()
    return values
