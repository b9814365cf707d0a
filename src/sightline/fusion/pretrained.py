"""Weights for torchvision's ResNet-18, as torchvision and training codes save them."""

from pathlib import Path
from typing import Any

import torch
import torchvision
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from sightline.core.errors import UserError
from sightline.core.weights_file import check_finite, unwrapped_name

_STATE_KEYS = ("state_dict", "model_state_dict")  # under which training codes save it


def load_resnet18(resnet: nn.Module, source: str | Path) -> None:
    """Load ``source``, a torchvision tag or a file, see `sightline.fusion.network.ResNet18Encoder`.

    Raises:
        UserError: no such tag or file, more than tensors in it, or weights of another network.
    """
    path = Path(source)
    try:
        if path.is_file():
            is_torch = path.suffix != ".safetensors"
            state = torch.load(path, map_location="cpu", weights_only=True) if is_torch else load_file(path)
        else:
            weights = torchvision.models.get_weight(f"ResNet18_Weights.{source}")
            state = weights.get_state_dict(check_hash=True)
    except (ValueError, KeyError):
        tags = ", ".join(torchvision.models.ResNet18_Weights.__members__)
        raise UserError(f"{source}: neither a file nor a tag of torchvision's ResNet18 ({tags})") from None
    except (OSError, RuntimeError, EOFError, SafetensorError, ModuleNotFoundError) as error:
        reason = " ".join(str(error).split())[:150]
        raise UserError(f"{source}: could not load the weights ({reason}); name a file, or omit pretrained") from None
    except Exception as error:  # what unpickling refuses to run
        raise UserError(f"{source}: holds more than tensors ({type(error).__name__}), and is not loaded") from None
    weights = _weights_in(source, state)
    check_finite(path, weights)
    expected = {name: tensor for name, tensor in resnet.state_dict().items() if not name.startswith("fc.")}
    _check_names(source, set(expected), set(weights))
    for name, tensor in weights.items():
        wanted = expected.get(name, tensor)
        if tensor.shape != wanted.shape or tensor.is_floating_point() != wanted.is_floating_point():
            raise UserError(
                f"{source}: {name} is {tensor.dtype} {list(tensor.shape)}, but {list(wanted.shape)} in torchvision's "
                "ResNet18; take weights of that network, for three channels"
            )
    resnet.load_state_dict(weights, strict=False)  # without fc, and in old files without num_batches_tracked


def _weights_in(source: str | Path, content: Any) -> dict[str, Tensor]:
    """The tensors of a state dict, which may lie under a key, by the names that they have without wrappers; no fc."""
    content = content if isinstance(content, dict) else {}
    state = next((content[key] for key in _STATE_KEYS if isinstance(content.get(key), dict)), content)
    weights: dict[str, Tensor] = {}
    for name, tensor in state.items():
        plain = unwrapped_name(name)
        if isinstance(tensor, Tensor) and not plain.startswith("fc."):
            if plain in weights:
                raise UserError(f"{source}: holds {plain} twice, with a prefix and without; keep one set of weights")
            weights[plain] = tensor
    return weights


def _check_names(source: str | Path, expected: set[str], names: set[str]) -> None:
    """Raise `UserError` where a weight of the network is missing, or there is one that it has not."""
    missing, more = (
        sorted(name for name in left if not name.endswith("num_batches_tracked"))
        for left in (expected - names, names - expected)
    )
    if not (missing or more):
        return
    lacks = f"lacks {len(missing)} of its weights, such as {missing[0]}" if missing else ""
    holds = f"holds {len(more)} that it has not, such as {more[0]}" if more else ""
    reason = " and ".join(filter(None, (lacks, holds)))
    raise UserError(
        f"{source}: not the state dict of torchvision's ResNet18: {reason}; rename them, or take another file"
    )
