"""Work spread over processes, with one progress bar."""

import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from typing import TypeVar

from tqdm import tqdm

from sightline.core.errors import UserError
from sightline.core.threads import threads

J = TypeVar("J")
R = TypeVar("R")


def unordered_map(
    function: Callable[[J], R],
    jobs: Iterable[tuple[J, int]],
    *,
    total: int,
    unit: str,
    title: str,
    processes: int | None,
) -> Iterator[R]:
    """Yield ``function(job)`` as the jobs finish, in any order.

    Processes are spawned, so that a job sees nothing but its arguments. A worker gets its next job when it is free, so
    memory does not grow with the number of jobs.

    Args:
        function: a module-level function.
        jobs: pairs of a job and the number of units it counts in the progress bar.
        total: number of units in all, including those done before (``total`` minus the sum over ``jobs``).
        unit: what is counted ("frame").
        title: text before the progress bar.
        processes: number of processes; None takes as many as `threads`.

    Raises:
        UserError: ``processes`` below 1, or a worker that died (usually for lack of memory).
    """
    if processes is not None and processes < 1:
        raise UserError(f"--processes {processes}: at least 1 is needed")
    jobs = list(jobs)
    processes = min(processes or threads(), max(1, len(jobs)))
    remaining = sum(units for _, units in jobs)
    with tqdm(desc=title, total=total, initial=total - remaining, unit=unit, mininterval=0.5) as bar:
        if processes == 1:
            for job, units in jobs:
                yield function(job)
                bar.update(units)
            return
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(processes, mp_context=context, initializer=_start_worker) as pool:
            try:
                waiting = iter(jobs)
                running = {pool.submit(function, job): units for job, units in islice(waiting, 2 * processes)}
                while running:
                    finished, _ = wait(running, return_when=FIRST_COMPLETED)
                    for future in finished:
                        bar.update(running.pop(future))
                        for job, units in islice(waiting, 1):
                            running[pool.submit(function, job)] = units
                        yield future.result()
            except BrokenProcessPool:
                raise UserError(
                    f"{title}: a worker process died, often for lack of memory; try fewer --processes"
                ) from None
            finally:
                pool.shutdown(wait=False, cancel_futures=True)


def _start_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to answer
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Without this, the workers of a killed command wait for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    multiprocessing.connection.wait([parent.sentinel])
    os._exit(1)
