"""Batches on their way to the device: made in turn, or ahead by a thread, and sent from pinned memory.

A copy from ordinary memory makes the host wait for the GPU. From pinned memory, of which torch keeps what it once took,
the copy runs beside what both do.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only
from torch.utils.data import DataLoader, Dataset

AHEAD = 4  # batches that wait


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """``tensor`` on ``device``; a GPU gets it without waiting."""
    return pinned(tensor).to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def pinned(batch: Any) -> Any:
    """A batch, or a tensor, whose tensors on the host lie in pinned memory."""
    return tree_map_only(Tensor, lambda x: x.pin_memory() if x.device.type == "cpu" else x, batch)


def loader(data: Dataset, order: Any, device: torch.device, resident: bool) -> Iterable[Any]:
    """Batches ``data[draw]`` of the draws in ``order``.

    Args:
        device: where they are needed.
        resident: ``data`` lies there and makes its batches there, in turn; of other data, a thread makes them ahead.
    """
    if device.type == "cuda" and not resident:
        return Ahead(data, order, device)
    return DataLoader(data, sampler=order, batch_size=None, collate_fn=pinned if device.type == "cuda" else None)


class Ahead:
    """The same batches in the same order, pinned, made by a thread before they are asked for.

    It is one thread, so that files need no locks; reading and copying run beside Python.
    """

    batch_sampler = None  # for Lightning, which takes what has a sampler for a DataLoader

    def __init__(self, data: Dataset, order: Any, device: torch.device) -> None:
        self.data, self.sampler, self.device = data, order, device  # the trainer calls ``sampler.set_epoch``

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[Any]:
        waiting: deque[Future] = deque()
        # memory is pinned by way of the thread's GPU, which is the first unless it is told
        pool = ThreadPoolExecutor(1, initializer=torch.cuda.set_device, initargs=(self.device,))
        try:
            for draw in self.sampler:
                waiting.append(pool.submit(lambda draw: pinned(self.data[draw]), draw))
                if len(waiting) > AHEAD:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)
