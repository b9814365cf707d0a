"""Weights files of the depth branch, which carry the network's shape and the preprocessing.

Sightline writes safetensors, whose header is one JSON entry, ``sightline``:
{"kind": "autoencoder" | "encoder", "network": ..., "preprocessing": ..., "latent": {"patches": [0, 704], "scene":
[704, 768]}}; ``latent`` says which numbers of a latent are which, first and behind the last. Files of versions in which
the latent was the sum of both parts have no such entry, and are read as well.

An encoder can also be written as a torch file (``.pth``), for codes that read this dictionary:

    encoder_state_dict  {name: tensor}
    model_config        {input_channels: int, latent_dim: int, model_type: str, network: dict, preprocessing: dict}
    extracted_from      str, name of the file that it was extracted from
    extraction_info     {total_params: int, trainable_params: int, num_weights: int}

Torch files are read too, only ever with ``weights_only=True``: that dictionary, a training's checkpoint
(``state_dict`` or ``model_state_dict``, with ``model_config`` and ``preprocessing`` beside it), or a state dict alone.
Their tensors may have the prefixes that wrappers leave behind (``module.``, ``_orig_mod.``, ``network.``, ``model.``),
and say themselves what the file leaves out of the network's shape.
"""

import io
import json
import pickle
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field, ValidationError, field_validator
from torch import Tensor, nn

from sightline.core import weights_file
from sightline.core.errors import UserError, first_fault
from sightline.core.files import atomic_output
from sightline.core.params import Section
from sightline.depth.network import POSITIONS, Autoencoder, Encoder, NetworkConfig
from sightline.depth.preprocessing import Preprocessing, preprocess

Kind = Literal["autoencoder", "encoder"]
TORCH_SUFFIXES = (".pth", ".pt")
_KEY = "sightline"  # in the header of the file
_OF_TRAINING = ("summary.", "inverse_dynamics.")  # heads of a training, which its checkpoints have


class Header(Section):
    """What a weights file says of itself."""

    kind: Kind
    network: NetworkConfig
    preprocessing: Preprocessing
    latent: dict[str, list[int]] = Field(default_factory=lambda data: _latent_of(data["network"]))

    @field_validator("network", mode="before")
    @classmethod
    def _of_any_version(cls, network: Any) -> Any:
        return _as_now(network) if isinstance(network, dict) else network


def _latent_of(network: NetworkConfig) -> dict[str, list[int]]:
    """Part -> its first number in a latent, and the one behind its last."""
    if network.parts == "added":
        return {"sum": [0, network.latent_dim]}
    return {"patches": [0, network.patch_dim], "scene": [network.patch_dim, network.latent_dim]}


def _as_now(network: dict[str, Any]) -> dict[str, Any]:
    """The fields of `NetworkConfig`, where a version wrote them in which the latent was a sum."""
    if "scene_dim" in network:
        return network
    path = network.get("patch_path", "refined")
    of_old = {"scene_dim": network.get("latent_dim", 768), "parts": "added", "has_patches": path != "none"}
    return network | of_old | {"patch_path": "linear" if path == "linear" else "refined"}


@dataclass(frozen=True)
class Weights:
    """Content of a weights file."""

    header: Header
    tensors: dict[str, Tensor]

    def build(self, path: Path) -> Autoencoder | Encoder:
        """The network with these weights, in eval mode. Raises `UserError` naming ``path`` where they do not fit."""
        return weights_file.load_network(path, self.new_network, self.tensors)

    def new_network(self) -> Autoencoder | Encoder:
        """The network that the header describes, with initial weights."""
        return (Autoencoder if self.header.kind == "autoencoder" else Encoder)(self.header.network)


def save_weights(path: Path, network: nn.Module, header: Header) -> None:
    """Write the weights of ``network`` with ``header``, atomically and with the same bytes for the same values."""
    weights_file.save_model_file(path, network, _KEY, header)


def save_encoder(path: Path, encoder: nn.Module, header: Header, extracted_from: str) -> None:
    """Write the weights of an encoder: the documented dictionary where ``path`` ends in .pth or .pt, else safetensors.

    Atomically, and with the same bytes for the same values. ``extracted_from`` goes into the dictionary.
    """
    with atomic_output(path) as temporary:
        temporary.write_bytes(_encoder_bytes(path.suffix, encoder, header, extracted_from))


def load_weights(path: Path, kind: Kind) -> Weights:
    """Read a weights file, safetensors or torch, onto the CPU.

    Warns where a torch file does not tell the preprocessing, and takes the default for it.

    Raises:
        UserError: no such file, not such a file, one that holds more than data, or one of the other kind.
    """
    script = {"autoencoder": "train_autoencoder", "encoder": "extract_encoder"}[kind]
    if _is_torch(path):
        weights = _read_torch(path)
        weights_file.check_finite(path, weights.tensors)
    else:
        model = f"a depth {kind}, safetensors or torch"
        weights = Weights(*weights_file.read_model_file(path, _KEY, Header, model, script))
    if "decoder.refine_patches.scene.weight" in weights.tensors:  # a version gave the scene as it is
        weights.tensors.setdefault("decoder.refine_patches.scene_scale", torch.ones(()))
    if weights.header.kind != kind:
        raise UserError(f"{path}: holds an {weights.header.kind}, not an {kind}; write one with sightline {script}")
    weights_file.check_fit(path, weights.new_network, weights.tensors)
    return weights


def extract_encoder(
    checkpoint: Path,
    output: Path,
    *,
    input_channels: int | None = None,
    latent_dim: int | None = None,
    verify: bool = False,
) -> dict[str, Any]:
    """Write the encoder of an autoencoder's weights file to its own file.

    A stage of its own: what needs the encoder does not depend on the three times larger autoencoder.

    Args:
        checkpoint: weights file written by ``sightline train_autoencoder``, or a torch checkpoint of an autoencoder.
        output: .safetensors, or .pth for the documented dictionary.
        input_channels, latent_dim: what the checkpoint is expected to hold; None takes it as it is.
        verify: compare the file with the autoencoder before it appears, see `verify_encoder`.

    Returns:
        ``parameters`` of the encoder, and with ``verify`` the figures of `verify_encoder`.

    Raises:
        UserError: not an autoencoder, not the expected one, or a verification that fails; nothing is written.
    """
    weights = load_weights(checkpoint, "autoencoder")
    if output.resolve() == checkpoint.resolve():
        raise UserError(f"{output}: is the checkpoint itself; choose another output")
    check_shape(checkpoint, weights.header.network, input_channels, latent_dim)
    autoencoder = weights.build(checkpoint)
    assert isinstance(autoencoder, Autoencoder)
    header = weights.header.model_copy(update={"kind": "encoder"})
    figures: dict[str, Any] = {"parameters": sum(p.numel() for p in autoencoder.encoder.parameters())}
    with atomic_output(output) as temporary:
        temporary.write_bytes(_encoder_bytes(output.suffix, autoencoder.encoder, header, checkpoint.name))
        if verify:
            figures |= verify_encoder(autoencoder, header.preprocessing, temporary)
    return figures


def verify_encoder(autoencoder: Autoencoder, preprocessing: Preprocessing, encoder: Path) -> dict[str, Any]:
    """Compare the file ``encoder`` with the autoencoder that it was extracted from, on `synthetic_depth`.

    Returns:
        ``weights``, how many names both have, and ``max_difference`` = max |z_autoencoder - z_extracted| = 0.0.

    Raises:
        UserError: names that only one of them has, or latents that differ at all.
    """
    weights = load_weights(encoder, "encoder")
    expected = {name.removeprefix("encoder.") for name in autoencoder.state_dict() if name.startswith("encoder.")}
    differing = sorted(expected ^ set(weights.tensors))
    if differing:
        raise UserError(f"verification failed: {len(differing)} names of weights differ, first {differing[0]}")
    channels = weights.header.network.input_channels
    raw_NHW = synthetic_depth(4 * channels, preprocessing)
    images = torch.from_numpy(preprocess(raw_NHW, preprocessing.model_copy(update={"depth_encoding": "raw"}))[0])
    images = images.reshape(4, channels, *images.shape[1:])
    with torch.inference_mode():
        difference = float((autoencoder.eval()(images)[1] - weights.build(encoder)(images)).abs().max())
    if difference != 0:  # also where it is not a number
        raise UserError(f"verification failed: the latents differ by up to {difference:g}")
    return {"weights": len(expected), "max_difference": difference}


def synthetic_depth(count: int, preprocessing: Preprocessing) -> np.ndarray:
    """Raw depth like a sensor's, the same every time: a tilted floor, two boxes, noise, holes of code 0.

    Returns:
        uint16 [count, 120, 160], raw counts within the height range.
    """
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[0:1:120j, 0:1:160j]
    depth_NHW = np.stack([0.9 - a * rows - b * columns for a, b in rng.uniform(0, 0.3, (count, 2))])
    for depth_HW in depth_NHW:
        for top, left in rng.integers(0, 80, (2, 2)):
            depth_HW[top : top + 40, left : left + 60] = rng.uniform(0.1, 0.4)
    depth_NHW += rng.normal(0, 0.005, depth_NHW.shape)
    near, far = preprocessing.height_range
    raw_NHW = np.round(near + (far - near) * depth_NHW.clip(0, 1)).astype(np.uint16)
    raw_NHW[:, 50:70, 70:95] = 0
    return raw_NHW


def check_shape(path: Path, network: NetworkConfig, input_channels: int | None, latent_dim: int | None) -> None:
    """Raise `UserError` where the network in ``path`` has other numbers than these; None takes any."""
    for name, wanted in (("input_channels", input_channels), ("latent_dim", latent_dim)):
        held = getattr(network, name)
        if wanted not in (None, held):
            raise UserError(
                f"{path}: {name} is {held} in the file, but {wanted} was asked for; leave it out or say {held}"
            )


def _encoder_bytes(suffix: str, encoder: nn.Module, header: Header, extracted_from: str) -> bytes:
    if suffix.lower() not in TORCH_SUFFIXES:
        return weights_file.model_bytes(encoder, _KEY, header)
    tensors = weights_file.weights_of(encoder)
    counts = [(p.numel(), p.requires_grad) for p in encoder.parameters()]
    content = {
        "encoder_state_dict": tensors,
        "model_config": {
            "input_channels": header.network.input_channels,
            "latent_dim": header.network.latent_dim,
            "model_type": "SemanticEncoder",
            "network": header.network.model_dump(mode="json"),
            "preprocessing": header.preprocessing.model_dump(mode="json"),
        },
        "extracted_from": extracted_from,
        "extraction_info": {
            "total_params": sum(count for count, _ in counts),
            "trainable_params": sum(count for count, trainable in counts if trainable),
            "num_weights": len(tensors),
        },
    }
    archive = io.BytesIO()  # to a path, torch.save would put the temporary file's name inside
    torch.save(content, archive)
    return archive.getvalue()


def _is_torch(path: Path) -> bool:
    if not path.is_file():
        return False
    with open(path, "rb") as file:
        start = file.read(9)  # of safetensors, eight bytes of length and the brace of a JSON header
    return start.startswith((b"PK", b"\x80")) and not start.endswith(b"{")  # a zip archive, or an old pickle


def _read_torch(path: Path) -> Weights:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise UserError(
            f"{path}: holds more than tensors, numbers and texts, and is not loaded, because it could run code"
        ) from None
    except (RuntimeError, EOFError, ValueError, KeyError, OSError) as error:
        raise UserError(f"{path}: not a readable torch file ({' '.join(str(error).split())[:100]})") from None
    content = content if isinstance(content, dict) else {}
    names = ("encoder_state_dict", "model_state_dict", "state_dict")
    state = next((content[name] for name in names if isinstance(content.get(name), dict)), content)
    tensors = {_plain_name(name): value for name, value in state.items() if isinstance(value, Tensor)}
    tensors = {name: value for name, value in tensors.items() if not name.startswith(_OF_TRAINING)}
    kind: Kind = "autoencoder" if any(name.startswith("decoder.") for name in tensors) else "encoder"
    encoder = {
        name.removeprefix("encoder."): tensor for name, tensor in tensors.items() if not name.startswith("decoder.")
    }
    network = [encoder[name].ndim for name in ("stem.0.weight", "head.weight") if name in encoder]
    patches = [encoder[name].ndim for name in ("patch_path.weight",) if name in encoder]
    if network not in ([4, 2], [4, 4]) and (network, patches) != ([], [4]):
        raise UserError(f"{path}: a torch file, but without the weights of a depth encoder")
    config = content.get("model_config")
    config = config if isinstance(config, dict) else {}
    stated = {name: value for name, value in config.items() if name in NetworkConfig.model_fields}
    stated |= config["network"] if isinstance(config.get("network"), dict) else {}
    stated = _as_now(stated) if "patch_path" in stated else stated
    preprocessing = content.get("preprocessing") or config.get("preprocessing")
    if preprocessing is None:
        warnings.warn(
            f"{path}: does not tell how its depth was normalised; taken as raw counts 0..65535 mapped to [-1, 1]",
            stacklevel=3,
        )
    try:
        header = Header.model_validate_json(
            json.dumps(
                {"kind": kind, "network": _shape_of(encoder, tensors) | stated, "preprocessing": preprocessing or {}},
                default=str,
            )
        )
    except ValidationError as error:
        raise UserError(f"{path}: {first_fault(error)}") from None
    return Weights(header, tensors if kind == "autoencoder" else encoder)


def _plain_name(name: str) -> str:
    """The name of a weight without what `DataParallel`, `torch.compile` and modules around the network put into it."""
    plain = weights_file.unwrapped_name(name)
    while plain.startswith(("network.", "model.")):
        plain = plain.partition(".")[2]
    return plain


def _shape_of(encoder: dict[str, Tensor], tensors: dict[str, Tensor]) -> dict[str, Any]:
    """The fields of `NetworkConfig` that the weights tell, of the encoder and of all."""
    first = encoder["stem.0.weight" if "stem.0.weight" in encoder else "patch_path.weight"]
    patches = POSITIONS * len(encoder["patch_path.weight"]) if "patch_path.weight" in encoder else 0
    shape: dict[str, Any] = {"input_channels": first.shape[1], "latent_dim": patches, "scene_dim": 0}
    # how patches are decoded: an encoder is the same with either
    linear = "decoder.patch_path.weight" in tensors and "decoder.refine_patches.output.weight" not in tensors
    shape["patch_path"] = "linear" if linear else "refined"
    if "decoder.refine_patches.mix.weight" in tensors:
        shape["width"] = len(tensors["decoder.refine_patches.mix.weight"]) // 8
    if "head.weight" not in encoder:
        return shape
    head, flat = encoder["head.weight"], encoder["head.weight"].ndim == 4
    scene = len(head) * (POSITIONS if flat else 1)
    shape |= {"width": len(first), "head": "flat" if flat else "gap", "scene_dim": scene}
    if "scene_norm.scale" in encoder:
        return shape | {"latent_dim": patches + scene}
    return shape | {"latent_dim": scene, "parts": "added", "has_patches": patches > 0}
