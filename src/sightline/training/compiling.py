"""Compiled networks, and CUDA graphs: for steps of many small operations, whose starting takes longer than they do."""

from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch.callbacks import Callback
from pydantic import Field

from sightline.core.params import Section


class CompileParams(Section):
    """Whether a training compiles its network."""

    compile: bool = Field(False, description="compile the network: fewer, larger kernels on a GPU; slower on a CPU")
    cuda_graphs: bool = Field(
        False, description="with compile, on a GPU: start all kernels at once; helps where starting them takes the time"
    )


def compiled(function: Callable[..., Any], params: CompileParams) -> Callable[..., Any]:
    """``function`` as ``params`` ask; its results are the same but for rounding.

    With graphs, what it returns is overwritten in the next step: `StepBegins` tells when that is.
    """
    if not params.compile:
        return function
    return torch.compile(function, mode="reduce-overhead" if params.cuda_graphs else None)  # torch's name for graphs


class StepBegins(Callback):
    """Tells CUDA graphs that nothing of the step before is needed."""

    def on_train_batch_start(self, *_: Any) -> None:
        torch.compiler.cudagraph_mark_step_begin()

    def on_validation_batch_start(self, *_: Any) -> None:
        torch.compiler.cudagraph_mark_step_begin()
