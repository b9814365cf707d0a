"""Several processes that train together, as a launcher starts them, but forked: what is loaded is not loaded again."""

import multiprocessing
import os
import socket
import traceback
from collections.abc import Callable
from typing import Any

import torch


def several(count: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """``function(rank, *arguments)`` in so many processes -> what each returned, or its error as a text."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    fork, pipes, processes = multiprocessing.get_context("fork"), [], []
    for rank in range(count):
        here, there = fork.Pipe(duplex=False)
        process = fork.Process(target=_run, args=(there, rank, count, port, function, arguments))
        process.start()
        there.close()
        pipes.append(here)
        processes.append(process)
    try:
        return [pipe.recv() if pipe.poll(300) else "no answer" for pipe in pipes]
    finally:
        for process in processes:
            process.kill()
            process.join()


def _run(pipe: Any, rank: int, count: int, port: int, function: Callable[..., Any], arguments: tuple) -> None:
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "GROUP_RANK": "0", "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip
    torch.set_num_threads(1)  # the threads of the process that was forked are not there
    try:
        answer = function(rank, *arguments)
    except BaseException as error:
        is_told = str(error) and type(error).__name__ in ("UserError", "KeyboardInterrupt", "SystemExit")
        answer = f"{type(error).__name__}: {error}" if is_told else traceback.format_exc()
    pipe.send(answer)
    pipe.close()
    os._exit(0)  # nothing of pytest's is done twice
