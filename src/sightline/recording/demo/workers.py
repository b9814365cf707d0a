"""Episodes over processes, with one progress bar."""

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from tqdm import tqdm

from sightline.errors import UserError

Job = TypeVar("Job")
Result = TypeVar("Result")


def over_episodes(
    work: Callable[[Job], Result], jobs: Sequence[Job], frames: int, processes: int | None, name: str
) -> Iterator[Result]:
    """Yield ``work(job)`` for every job (one episode of ``frames`` frames each), in order.

    Processes are spawned, so that ``work`` must be a function of a module; MuJoCo's rays hold the interpreter lock,
    so that threads would not help. One process means this one.

    Args:
        processes: how many; None means one per CPU. The results do not depend on it.
        name: what the progress bar is called; it counts frames.

    Raises:
        UserError: fewer than one process, or a worker that was killed.
    """
    processes = (os.cpu_count() or 1) if processes is None else processes
    if processes < 1:
        raise UserError(f"--processes {processes}: must be at least 1")
    with tqdm(total=len(jobs) * frames, desc=name, unit="frame") as bar:
        for result in _results(work, jobs, min(processes, len(jobs))):
            bar.update(frames)
            yield result


def _results(work: Callable[[Job], Result], jobs: Sequence[Job], processes: int) -> Iterator[Result]:
    if processes <= 1:
        yield from map(work, jobs)
        return
    context = multiprocessing.get_context("spawn")
    try:
        with ProcessPoolExecutor(processes, mp_context=context, initializer=_ignore_interrupt) as executor:
            yield from executor.map(work, jobs)
    except BrokenProcessPool:
        raise UserError("a worker process was killed (out of memory?); run again with fewer --processes") from None


def _ignore_interrupt() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which cancels the episodes that wait
