"""Extractors of grid features in the style of public ones, written from what they are documented to do.

`one_by_one`: a photograph at a time through open_clip's own transform, float32, one compressed npz file for each, as
extractors for captioning do. `by_loader`: batches from a DataLoader over the transform of open_clip or timm, as
clip-retrieval's inference does, float32, and one array at the end.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

Transform = Callable[[Image.Image], Tensor]


def grids_of(tokens_BTC: Tensor, grid: int) -> Tensor:
    """Patch tokens [B, rows * rows, C] -> averaged [B, grid * grid, C]."""
    side = round(tokens_BTC.shape[1] ** 0.5)
    maps = tokens_BTC.transpose(1, 2).reshape(len(tokens_BTC), -1, side, side)
    return nn.functional.avg_pool2d(maps, side // grid).flatten(2).transpose(1, 2)


@torch.inference_mode()
def one_by_one(paths: list[Path], target: Path, visual: Any, transform: Transform, grid: int) -> None:
    """Write a file into the folder ``target`` for each photograph; ``visual`` gives (pooled, tokens)."""
    target.mkdir(exist_ok=True)
    device = next(visual.parameters()).device
    for path in paths:
        with Image.open(path) as image:
            tokens = visual(transform(image).to(device)[None])[1]
        np.savez_compressed(target / f"{path.stem}.npz", features=grids_of(tokens, grid)[0].cpu().numpy())


class LastMap(nn.Module):
    """A network of timm as `visual`: (None, its last map as tokens)."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> tuple[None, Tensor]:
        features = self.network.forward_intermediates(images, indices=1, intermediates_only=True)[0]
        return None, features.flatten(2).transpose(1, 2)


class _Transformed(Dataset[Tensor]):
    def __init__(self, paths: list[Path], transform: Transform) -> None:
        self.paths, self.transform = paths, transform

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor:
        with Image.open(self.paths[index]) as image:
            return self.transform(image)


@torch.inference_mode()
def by_loader(paths: list[Path], target: Path, visual: Any, transform: Transform, grid: int) -> None:
    """Write one array for all photographs."""
    grids, device = [], next(visual.parameters()).device
    for images in DataLoader(_Transformed(paths, transform), 64, num_workers=2):
        grids.append(grids_of(visual(images.to(device))[1], grid).cpu())
    np.save(target, torch.cat(grids).half().numpy())
