"""This process among those that a launcher (torchrun) started for one command."""

import os

import torch.distributed


def rank() -> int:
    """Number of this process, 0 for the one that writes outputs."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """Number of processes that share the work."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def wait_for_all() -> None:
    """Return when every process has come here."""
    if world_size() > 1:
        if not torch.distributed.is_initialized():
            torch.distributed.init_process_group("gloo")
        torch.distributed.barrier()
