"""This process among those that a launcher (torchrun, or srun, see `sightline.core.cli`) started for one command."""

import os
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed

T = TypeVar("T")


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
