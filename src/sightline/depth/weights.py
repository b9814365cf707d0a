"""Weights files of the depth branch: safetensors, whose header carries the network's shape and the preprocessing.

The header is one JSON entry, ``sightline``: {"kind": "autoencoder" | "encoder", "network": ..., "preprocessing": ...}.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from sightline.depth.network import Autoencoder, Encoder, NetworkConfig
from sightline.depth.preprocessing import Preprocessing
from sightline.errors import UserError
from sightline.files import atomic_output
from sightline.params import Section


class Header(Section):
    """What a weights file says of itself."""

    kind: Literal["autoencoder", "encoder"]
    network: NetworkConfig
    preprocessing: Preprocessing


@dataclass(frozen=True)
class Weights:
    """Content of a weights file."""

    header: Header
    tensors: dict[str, Tensor]

    def build(self, path: Path) -> Autoencoder | Encoder:
        """The network with these weights, in eval mode. Raises `UserError` naming ``path`` where they do not fit."""
        network = (Autoencoder if self.header.kind == "autoencoder" else Encoder)(self.header.network)
        try:
            network.load_state_dict(self.tensors)
        except RuntimeError as error:
            raise UserError(
                f"{path}: the weights do not fit the network: {' '.join(str(error).split())[:300]}"
            ) from None
        return network.eval()


def save_weights(path: Path, network: nn.Module, header: Header) -> None:
    """Write the weights of ``network`` with ``header``, atomically and with the same bytes for the same values."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    with atomic_output(path) as temporary:
        save_file(tensors, temporary, {"sightline": json.dumps(header.model_dump(mode="json"), sort_keys=True)})
        temporary.chmod(0o644)  # save_file leaves 0600, which a shared cache could not read


def load_weights(path: Path, kind: Literal["autoencoder", "encoder"]) -> Weights:
    """Read a weights file onto the CPU.

    Raises:
        UserError: no such file, not safetensors, not written by Sightline, or of the other kind.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        with safe_open(path, framework="pt") as file:
            header = Header.model_validate_json((file.metadata() or {})["sightline"])
            tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise UserError(f"{path}: not a safetensors file ({error})") from None
    except (KeyError, ValidationError):
        raise UserError(f"{path}: a safetensors file, but not weights of a depth {kind} written by Sightline") from None
    if header.kind != kind:
        made_by = {"autoencoder": "train_autoencoder.py", "encoder": "extract_encoder.py"}
        raise UserError(f"{path}: holds an {header.kind}, not an {kind}; give a file written by stages/{made_by[kind]}")
    return Weights(header, tensors)


def extract_encoder(checkpoint: Path, output: Path) -> dict[str, int]:
    """Write the encoder of an autoencoder's weights file to its own file, and return its number of parameters.

    A stage of its own: what needs the encoder does not depend on the four times larger autoencoder.
    """
    weights = load_weights(checkpoint, "autoencoder")
    autoencoder = weights.build(checkpoint)
    assert isinstance(autoencoder, Autoencoder)
    header = weights.header.model_copy(update={"kind": "encoder"})
    save_weights(output, autoencoder.encoder, header)
    return {"parameters": sum(p.numel() for p in autoencoder.encoder.parameters())}


def pick_device() -> torch.device:
    """CUDA where there is a GPU, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
