"""From photographs to grids, for extraction, live use and verification alike."""

import json
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor

from sightline.clip.networks import FeatureNetwork, last_map, load_feature_network
from sightline.clip.params import MAP, GridParams, Pool
from sightline.clip.photographs import Preparation
from sightline.clip.weights import ImageTower, load_image_tower
from sightline.core.errors import UserError
from sightline.training.loading import sent
from sightline.training.precision import computed_in, use_bf16

CPU_BATCH = 4  # more is not faster on a CPU
_PACKAGES = (
    "pillow",
    "torch",
    "torchvision",
)  # whose version may change the numbers, and the model's


class GridEncoder:
    """Turns prepared photographs into grids, as ``params`` say.

    A photograph gives the same grid whatever else is in its batch: batches are padded to a fixed size. (On a GPU
    another ``batch_size`` may change the rounding.)

    Raises:
        UserError: see `sightline.clip.weights.load_image_tower` and `sightline.clip.networks.load_feature_network`; a
            grid that does not divide the model's own; weights that were trained on images of another shape than we can
            prepare.
    """

    def __init__(self, params: GridParams, device: torch.device) -> None:
        self.params, self.device = params, device
        self.tower: ImageTower | FeatureNetwork
        self.tower = tower = load_feature_network(params) if params.source == MAP else load_image_tower(params)
        if tower.rows % params.grid:
            fitting = [str(n) for n in range(tower.rows, 0, -1) if tower.rows % n == 0]
            raise UserError(
                f"{params.key('grid')}: {params.grid} does not divide the {tower.rows} x {tower.rows} patches of "
                f"{params.model} at {tower.image_size} pixels; take one of {', '.join(fitting)}"
            )
        self.preparation = _preparation(tower, params)
        self.bf16 = use_bf16(params.precision)
        self._kind = torch.bfloat16 if self.bf16 else torch.float32
        self._network = (tower.visual if isinstance(tower, ImageTower) else tower.network).to(device, self._kind)
        if isinstance(tower, FeatureNetwork):
            self._network.to(memory_format=torch.channels_last)
        self._mean, self._std = (torch.tensor(rgb, device=device).view(3, 1, 1) for rgb in (tower.mean, tower.std))
        self._batch = params.batch_size if device.type == "cuda" else CPU_BATCH

    @property
    def shape(self) -> tuple[int, int]:
        """Patches and channels of a grid, (P, C)."""
        tower, patches = self.tower, self.params.grid**2
        if isinstance(tower, ImageTower) and self.params.source == "projected":
            return patches, tower.projected_width
        return patches, tower.width

    @torch.inference_mode()
    def encode(self, photographs: Tensor) -> Tensor:
        """Grids of prepared photographs uint8 [B, 3, S, S] -> [B, P, C] on the device, of type ``params.dtype``.

        Patches are in row-major order.
        """
        grids = []
        for part in photographs.split(self._batch):
            if len(part) < self._batch:  # filled up, so that an image's arithmetic is the same in every batch
                part = torch.cat([part, part.new_zeros((self._batch - len(part), *part.shape[1:]))])
            pixels = sent(part, self.device)
            images = ((pixels.float() / 255 - self._mean) / self._std).to(self._kind)
            grids.append(self._features(images).to(getattr(torch, self.params.dtype)))
        return grids[0][: len(photographs)] if len(grids) == 1 else torch.cat(grids)[: len(photographs)]

    def _features(self, images: Tensor) -> Tensor:
        params = self.params
        if params.source == MAP:
            return map_features(self._network, images, params.grid)
        return grid_features(self._network, images, params.source, params.pool or "after_norm", params.grid)

    def attributes(self) -> dict[str, Any]:
        """What the grids were made with: text and numbers, for the attributes of a file."""
        tower, params, of_clip = self.tower, self.params, dict[str, Any]()
        pool = "none" if tower.rows == params.grid else "mean"
        if isinstance(tower, ImageTower):
            of_clip = {"quick_gelu": tower.quick_gelu, "positions": tower.positions}
            pool = (params.pool or "after_norm") if pool != "none" and params.source != "raw" else "none"
        packages = ("open_clip_torch" if of_clip else "timm", *_PACKAGES)
        return of_clip | {
            "model": params.model,
            "pretrained": params.pretrained.rsplit("/", 1)[-1],  # a file's name without its folders
            "weights_sha256": tower.sha256,
            "random_weights": tower.random,
            "tokens": params.source,
            "pool": pool,
            "grid": params.grid,
            "model_grid": tower.rows,
            "image_size": tower.image_size,
            "preprocessing": json.dumps(self.preparation.as_dict() | {"mean": tower.mean, "std": tower.std}),
            "dtype": params.dtype,
            "precision": computed_in(params.precision, self.device),
            "device": self.device.type,
            "versions": json.dumps({name: version(name) for name in sorted(packages)}),
        }


def map_features(network: Any, images: Tensor, grid: int) -> Tensor:
    """The last feature map of timm's ``network`` for normalised ``images`` [B, 3, S, S] -> float32 [B, grid * grid, C].

    A grid smaller than the map averages squares of neighbours.
    """
    return average_patches(last_map(network, images).flatten(2).transpose(1, 2), grid).float()


def grid_features(visual: Any, images: Tensor, tokens: str, pool: Pool, grid: int) -> Tensor:
    """Patch tokens of normalised ``images`` [B, 3, S, S] without the class token -> float32 [B, grid * grid, C].

    ``raw``: the output of the last block. ``ln_post``: the same after the tower's last norm (open_clip's own output
    tokens). ``projected``: these times the matrix that takes the class token to text space (not MaskCLIP's value path).
    A grid smaller than the model's averages squares of neighbours, after the last norm or before it.
    """
    normalised = tokens != "raw" and pool == "after_norm"
    outputs = visual.forward_intermediates(
        images, indices=1, normalize_intermediates=normalised, output_fmt="NLC", intermediates_only=True
    )
    x_BNC = average_patches(outputs["image_intermediates"][0], grid)
    if tokens != "raw" and not normalised:
        x_BNC = visual.ln_post(x_BNC)
    if tokens == "projected":
        x_BNC = x_BNC @ visual.proj
    return x_BNC.float()


def average_patches(x_BNC: Tensor, grid: int) -> Tensor:
    """Average squares of neighbouring patches, so that ``grid`` x ``grid`` are left, in the type of ``x_BNC``."""
    batch, count, channels = x_BNC.shape
    rows = round(count**0.5)
    if rows == grid:
        return x_BNC
    side = rows // grid
    squares = x_BNC.float().view(batch, grid, side, grid, side, channels)
    return squares.mean((2, 4)).view(batch, grid * grid, channels).to(x_BNC.dtype)


def _preparation(tower: ImageTower | FeatureNetwork, params: GridParams) -> Preparation:
    if tower.resize_mode not in ("shortest", "squash"):
        raise UserError(
            f"{params.key('resize')}: {params.model} was trained on padded images, which is not offered; take squash"
        )
    return Preparation(tower.image_size, tower.resize_mode, tower.interpolation)
