"""Grids of timm's networks for checking: a network built apart, its own forward pass, images by timm's own transform.

Where `sightline.clip.networks` asks the network for one map, this module runs all of it, to the classes, and keeps what
the last stage gave on the way. Weights are read from the file once more, and given to the network layer by layer.
"""

from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from sightline.clip.checkpoints import read_tensors
from sightline.clip.params import RANDOM, TIMM, GridParams
from sightline.clip.weights import SEED, quiet
from sightline.core.errors import UserError
from sightline.core.weights_file import weights_path
from sightline.recording.images import read_rgb

_FAR = 10.0  # how many times as much the inputs of a batch norm may vary as in the training of the weights


class TimmReference:
    """Grids as the network's own forward pass gives them, in float32.

    Args:
        params: those that the grids were made with, which `sightline.clip.networks` has accepted.
        device: where it computes.
    """

    whose = "timm's own"

    def __init__(self, params: GridParams, device: torch.device) -> None:
        self.params, self.device = params, device
        with quiet(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(SEED)
            network: Any = timm.create_model(params.model.removeprefix(TIMM), pretrained=False)
        if params.pretrained != RANDOM:
            _fill(network, read_tensors(weights_path(params.pretrained, params.key("pretrained"))))
        self.network = network.eval().requires_grad_(False).to(device)
        said = timm.data.resolve_model_data_config(network)
        self.transform = timm.data.create_transform(
            (3, *(params.image_size or said["input_size"][-1],) * 2),
            interpolation=params.interpolation or said["interpolation"],
            mean=params.mean or said["mean"],
            std=params.std or said["std"],
            crop_pct=1.0,  # nothing is cut off but what makes a square
            crop_mode="squash" if params.resize == "squash" else "center",
        )
        self._map = torch.empty(0)
        last_stage = network.get_submodule(list(network.feature_info)[-1]["module"])
        last_stage.register_forward_hook(self._keep)

    def _keep(self, _: nn.Module, __: object, output: Tensor) -> None:
        self._map = output

    def image(self, path: Path) -> Tensor:
        return self.transform(Image.fromarray(read_rgb(path))).to(self.device)

    @torch.inference_mode()
    def grid(self, path: Path) -> np.ndarray:
        """float32 [P, C]."""
        self.network(self.image(path)[None])
        side = self._map.shape[-1] // self.params.grid
        return functional.avg_pool2d(self._map, side)[0].flatten(1).T.cpu().numpy()

    @torch.inference_mode()
    def probe(self, paths: list[Path]) -> dict[str, float]:
        """Check that weights and network belong together -> figures.

        Batch norm remembers how its inputs varied in the training. On photographs they vary as much now (0.8 to 1.1
        times); if layers had each other's weights, or images the range 0 to 255, one would vary 12 or 100 times as
        much. Pictures of little contrast vary less, rightly.
        """
        ratios: list[float] = []

        def compare(norm: Any, inputs: tuple[Tensor]) -> None:
            now = inputs[0].std((0, 2, 3))
            ratios.append(float((now.log() - 0.5 * norm.running_var.clamp_min(1e-12).log()).median().exp()))

        norms = [module for module in self.network.modules() if isinstance(module, nn.BatchNorm2d)]
        hooks = [norm.register_forward_pre_hook(compare) for norm in norms]
        self.network(torch.stack([self.image(path) for path in paths]))
        for hook in hooks:
            hook.remove()
        if not ratios or self.params.pretrained == RANDOM:
            return {}
        if not max(ratios) <= _FAR:
            raise UserError(
                f"{self.params.model}: a layer sees inputs {max(ratios):.2g} times as varied as in the training of its "
                f"weights (limit {_FAR:g}): weights or preprocessing are not its own"
            )
        return {"variation_of_inputs": float(f"{max(ratios):.3g}")}


def _fill(network: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Weights into a network: by name, or, where the names are others, into one layer after the other."""
    if set(network.state_dict()) & set(tensors):
        shapes = {name: tensor.shape for name, tensor in network.state_dict().items()}
        fitting = {name: tensor for name, tensor in tensors.items() if tensor.shape == shapes.get(name)}
        network.load_state_dict(fitting, strict=False)  # but for a classifier of other classes
        return
    rest = iter(tensors.values())
    with torch.no_grad():
        for module in network.modules():
            for own in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
                own.copy_(next(rest))
