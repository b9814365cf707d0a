"""Embedding a data set as one writes it first: h5py, one image at a time, float32."""

from pathlib import Path

import h5py
import numpy as np
import torch
from torch import nn


@torch.no_grad()
def embed(encoder: nn.Module, data: Path, target: Path, device: torch.device) -> None:
    """Encode image after image of ``data`` and save one array."""
    encoder = encoder.to(device)
    codes = []
    with h5py.File(data) as file:
        for i in range(len(file["depth"])):
            codes.append(encoder(torch.from_numpy(file["depth"][i])[None, None].to(device))[0].cpu().numpy())
    np.save(target, np.stack(codes))
