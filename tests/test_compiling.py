"""Compiled trainings learn what the others learn; where a step begins is told to CUDA graphs."""

import functools
from pathlib import Path

import pytest
import test_fusion_training as fusion
import test_segmentation_training as segmentation
import torch
from safetensors.torch import load_file
from test_segmentation_frames import write_recording

from sightline.fusion.training import FusionParams, train_fusion
from sightline.segmentation.training import train_segmentation
from sightline.training.compiling import CompileParams, compiled


@pytest.fixture
def traced(monkeypatch) -> list[str | None]:
    """Networks are traced and differentiated as when they are compiled, but not translated, which takes minutes.

    Holds the modes that were asked for.
    """
    modes: list[str | None] = []
    trace = functools.partial(torch.compile, backend="aot_eager")

    def record(function, mode=None):
        modes.append(mode)
        return trace(function)

    monkeypatch.setattr(torch, "compile", record)
    return modes


def same(folder: Path, most: float, free: str = "nothing") -> None:
    one, other = (load_file(folder / f"{name}.safetensors") for name in ("True", "False"))
    for name in one:
        if name.endswith(free):
            continue
        torch.testing.assert_close(one[name], other[name], rtol=1e-3, atol=most, msg=name)


def test_nothing_is_compiled_unless_it_is_asked_for(traced):
    assert compiled(len, CompileParams()) is len
    assert compiled(len, CompileParams(compile=True)) is not len
    compiled(len, CompileParams(compile=True, cuda_graphs=True))
    assert traced == [None, "reduce-overhead"]


@pytest.mark.slow
def test_a_compiled_fusion_learns_the_same(tmp_path, traced):
    data = fusion.pack(fusion.write_recording(tmp_path / "recording"))
    for compile_ in (True, False):
        params = FusionParams(chunk=4, epochs=1, batch_size=8, lr=1e-4, precision="fp32", compile=compile_)
        train_fusion(data, tmp_path / f"{compile_}.safetensors", tmp_path / "m", params, 0)
    assert traced == [None]
    same(tmp_path, 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["unimatch", "ss_net"])
def test_a_compiled_segmentation_learns_the_same(tmp_path, traced, method):
    root = write_recording(tmp_path / "r")
    for compile_ in (True, False):
        params = segmentation.changed(method=method, lr=1e-4, compile=compile_)
        frames = segmentation.frames_of(root, params)
        train_segmentation(frames, tmp_path / f"{compile_}.safetensors", tmp_path / "m", params, 0)
    assert traced == [None, None]
    same(tmp_path, 1e-5, free="conv.bias")  # a norm takes it away: its gradient is rounding, of which AdamW makes steps
