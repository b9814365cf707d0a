"""Files of exported programs: which model a file of weights holds, and ONNX or `torch.export` with its card inside.

A file of either kind carries one JSON text, as metadata ``sightline`` in ONNX, as file ``sightline.json`` in .pt2:
``kind``, ``inputs``, ``outputs``, ``config`` (the header of the weights), and ``card``, where the weights have one.
"""

import io
import json
import logging
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from sightline.core.errors import UserError
from sightline.core.files import atomic_output
from sightline.depth.weights import load_weights
from sightline.export.programs import EncoderProgram, PolicyProgram, Program, SegmentationProgram, VolumeProgram
from sightline.fusion.policy import load_policy
from sightline.segmentation.model import load_model
from sightline.training.card import SUFFIX, read_card

KEY = "sightline"
# Largest difference of a result, as a share of the largest result. Rounding alone is some 1e-6, and up to 2e-5 where
# norms of few numbers amplify it: then it is PyTorch's float32 that is off, measured against float64.
TOLERANCE = 1e-4
OPSET = 18
SIZES = ((40, 56), (150, 200))  # rows and columns of the images that it is traced with, and checked with


def open_program(weights: Path, windows: bool = True) -> tuple[Program, dict[str, Any]]:
    """The program of a file of weights, in evaluation mode, and what its file says of itself.

    Args:
        windows: see `SegmentationProgram`.

    Raises:
        UserError: not an encoder, a policy or a segmentation model, or one that cannot be exported.
    """
    kind = _kind_of(weights)
    program: Program
    if kind == "policy":
        policy = load_policy(weights)
        program, config = PolicyProgram(policy), policy.config.model_dump(mode="json")
    elif kind == "segmentation":
        model = load_model(weights)
        program = SegmentationProgram(model, windows) if model.config.spatial_dims == 2 else VolumeProgram(model)
        config = model.config.model_dump(mode="json")
    else:
        loaded = load_weights(weights, "encoder")
        encoder: Any = loaded.build(weights)
        program, config = EncoderProgram(encoder, loaded.header.preprocessing), loaded.header.model_dump(mode="json")
    says = {"kind": kind, "inputs": program.inputs, "outputs": program.outputs, "config": config}
    if weights.with_suffix(SUFFIX).is_file():
        says["card"] = read_card(weights)
    return program.eval().requires_grad_(False), says


def _kind_of(weights: Path) -> str:
    try:
        with safe_open(weights, framework="pt") as file:
            keys = file.metadata() or {}
    except (SafetensorError, OSError):  # a torch file, or none: the reader of encoders tells
        keys = {}
    return "policy" if "sightline_fusion" in keys else "segmentation" if "sightline_segmentation" in keys else "encoder"


def export_model(weights: Path, output: Path, windows: bool = True) -> float:
    """Write the program of ``weights`` to ``output`` -> the largest difference of its results, see `TOLERANCE`.

    Raises:
        UserError: as `open_program`; another suffix than .onnx or .pt2, packages that are missing, or results that
            differ. Nothing is written then.
    """
    if output.suffix not in (".onnx", ".pt2"):
        raise UserError(f"{output}: the name of an exported program ends in .onnx or .pt2")
    program, says = open_program(weights, windows)
    if output.suffix == ".onnx":
        _check_onnx()
    text = json.dumps(says)  # in the order of the arguments
    with atomic_output(output) as temporary, torch.no_grad(), _quiet():
        written = temporary.with_suffix(output.suffix)
        try:
            _write(written, program, text)
            difference = _difference(written, program)
            if not difference <= TOLERANCE:
                raise UserError(
                    f"{output}: its results differ from those of {weights} by {difference:.2g} of the largest"
                )
            written.rename(temporary)
        finally:
            written.unlink(missing_ok=True)
    return difference


def _write(path: Path, program: Program, text: str) -> None:
    dims: dict[str, Any] = {}
    shapes = []
    for axes in program.dynamic():
        for name in axes.values():
            dims.setdefault(name, torch.export.Dim(name, min=1, max=None if name in ("batch", "count") else 16384))
        shapes.append({axis: dims[name] for axis, name in axes.items()})
    inputs = program.example(2, SIZES[0])
    given = (tuple(shapes),) if isinstance(program, PolicyProgram) else tuple(shapes)  # *inputs is one argument
    exported = torch.export.export(program, inputs, dynamic_shapes=given, strict=False)
    if path.suffix == ".pt2":
        archive = io.BytesIO()  # on a full disk, torch's own writing ends the process
        torch.export.save(exported, archive, extra_files={f"{KEY}.json": text})
        path.write_bytes(archive.getvalue())
        return
    names: dict[str, Any] = {"input_names": list(program.inputs), "output_names": list(program.outputs)}
    made = torch.onnx.export(exported, dynamo=True, opset_version=OPSET, verbose=False, **names)
    assert made is not None
    model = made.model_proto
    _name_axes(model.graph, program)
    entry = model.metadata_props.add()
    entry.key, entry.value = KEY, text
    path.write_bytes(model.SerializeToString())


def _name_axes(graph: Any, program: Program) -> None:
    """Call the axes that may have any length by their names, where the exporter has numbered them."""
    names = {}
    for value, axes in zip(graph.input, program.dynamic(), strict=True):
        for axis, name in axes.items():
            names[value.type.tensor_type.shape.dim[axis].dim_param] = name
    for value in (*graph.input, *graph.output, *graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param in names:
                dim.dim_param = names[dim.dim_param]


def _difference(path: Path, program: Program) -> float:
    """Largest difference of results from those of ``program``, on another number of images of another size."""
    inputs = program.example(3, SIZES[1])
    expected = program(*inputs)
    if path.suffix == ".pt2":
        results = torch.export.load(path).module()(*inputs)
    else:
        import onnxruntime

        session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
        feed = {name: x.numpy() for name, x in zip(program.inputs, inputs, strict=True)}
        results = [torch.from_numpy(array) for array in session.run(None, feed)]
    pairs = [(expected, results)] if isinstance(expected, Tensor) else list(zip(expected, results, strict=True))
    first, found = pairs[0]
    found = found[0] if isinstance(found, list) else found
    difference = float((first - found).abs().max() / first.abs().max().clamp(min=1e-12))
    return difference if math.isfinite(difference) else math.inf


def _check_onnx() -> None:
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UserError(f"ONNX needs the package {error.name}: run `pip install onnx onnxscript onnxruntime`") from None


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what the exporters say of their own insides."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
