"""A policy in an ONNX file of `sightline.export`, run by OpenVINO or ONNX Runtime: faster on a CPU than PyTorch."""

import json
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from pydantic import ValidationError

from sightline.core.errors import UserError, first_fault
from sightline.core.files import require_file
from sightline.fusion.policy import PolicyConfig

Runtime = Literal["openvino", "onnxruntime"]
Run = Callable[[dict[str, np.ndarray]], np.ndarray]


class ExportedPolicy:
    """Raw pictures, joints and further inputs -> a chunk of actions.

    Attributes:
        config: what the policy is.
        runtime: what runs it.

    Args:
        path: written by ``sightline export``.
        runtime: None takes OpenVINO where it is installed, else ONNX Runtime.

    Raises:
        UserError: no such file, another model, or neither package.
    """

    def __init__(self, path: Path, runtime: Runtime | None = None) -> None:
        installed: list[Runtime] = [name for name in get_args(Runtime) if find_spec(name)]
        chosen = runtime or (installed[0] if installed else None)
        if chosen not in installed:
            raise UserError(f"{path}: {chosen or 'a program for ONNX'} is not installed; run `pip install onnxruntime`")
        require_file(path, "a file .onnx")
        try:
            text, self._run = (_openvino if chosen == "openvino" else _onnxruntime)(path)
            says = json.loads(text)
            if says["kind"] != "policy":
                raise UserError(f"{path}: a model of kind {says['kind']}, not a policy")
            self.config = PolicyConfig.model_validate_json(json.dumps(says["config"]))
        except ValidationError as error:
            raise UserError(f"{path}: {first_fault(error)}; export the policy again") from None
        except UserError:
            raise
        except Exception as error:  # the packages have no common one
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"{path}: not a policy of `sightline export` ({reason})") from None
        self.runtime = chosen

    def chunk(
        self, pictures: Mapping[str, np.ndarray], joints: np.ndarray, extras: dict[str, np.ndarray]
    ) -> np.ndarray:
        """Actions [H, A] of pictures uint8 [H, W, 3] by camera, joints [J], and further inputs by name."""
        inputs = {f"image_{camera}": picture for camera, picture in pictures.items()}
        feed: dict[str, Any] = inputs | {"joints": joints} | extras
        return self._run({name: np.ascontiguousarray(values)[None] for name, values in feed.items()})[0]


def _onnxruntime(path: Path) -> tuple[str, Run]:
    import onnxruntime

    session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    return session.get_modelmeta().custom_metadata_map["sightline"], lambda feed: session.run(None, feed)[0]


def _openvino(path: Path) -> tuple[str, Run]:
    import openvino

    core = openvino.Core()
    model = core.read_model(path)
    text = model.get_rt_info(["framework", "sightline"]).astype(str)
    hints = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    compiled = core.compile_model(model, "CPU", hints)
    return text, lambda feed: compiled(feed)[0]
