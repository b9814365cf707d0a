"""How many threads a command computes with. The load never decides it, because sums depend on the number."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

from sightline.core.errors import UserError

_GROUPS, _MEMBERSHIP = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def threads() -> int:
    """``SIGHTLINE_THREADS``; by default `cores`, shared with the processes that torchrun started on this machine.

    Raises:
        UserError: ``SIGHTLINE_THREADS`` is not a whole number above 0.
    """
    text = os.environ.get("SIGHTLINE_THREADS")
    if text is None:  # srun, unlike torchrun, gives each process cores of its own
        sharing = os.environ.get("LOCAL_WORLD_SIZE", "1") if "TORCHELASTIC_RUN_ID" in os.environ else "1"
        return max(1, cores() // int(sharing))
    if not text.isdecimal() or int(text) < 1:
        raise UserError(f"SIGHTLINE_THREADS={text}: set a whole number above 0, or unset it to use every core")
    return int(text)


def set_threads() -> None:
    """Let PyTorch and numpy compute with `threads` threads, unless only ``OMP_NUM_THREADS`` is set: they obey it.

    For commands, before these libraries are loaded: they read the variable then. Worker processes inherit it.
    """
    number = threads()
    if "SIGHTLINE_THREADS" not in os.environ and "OMP_NUM_THREADS" in os.environ:
        return
    os.environ["OMP_NUM_THREADS"] = str(number)
    torch = sys.modules.get("torch")
    if torch and torch.get_num_threads() != number:
        torch.set_num_threads(number)


def cores() -> int:
    """Cores that this process may use: those of its affinity, at most the quota of its control groups, at least 1."""
    free = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, int(min([free, *_quotas()])))


def _quotas() -> Iterator[float]:
    """Cores that each control group around this process grants (versions 1 and 2), where it grants fewer than all."""
    lines = _MEMBERSHIP.read_text().splitlines() if _MEMBERSHIP.is_file() else []
    for _, names, place in (line.split(":", 2) for line in lines):
        if names and "cpu" not in names.split(","):
            continue
        root = _GROUPS / "cpu" if names else _GROUPS
        group = root / place.lstrip("/")  # in a container this may be a path of the host, and only the root exists
        for folder in (group, *group.parents):
            limits = folder / "cpu.max", folder / "cpu.cfs_quota_us", folder / "cpu.cfs_period_us"
            words = " ".join(path.read_text() for path in limits if path.is_file()).split()
            if len(words) == 2 and words[0] not in ("max", "-1"):
                yield int(words[0]) / int(words[1])
            if folder == root:
                break
