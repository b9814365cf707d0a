"""A training loop as one writes it first: PNG files decoded in a DataLoader, float32, default memory format."""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from sightline.depth.network import Autoencoder, NetworkConfig
from sightline.depth.preprocessing import Preprocessing, preprocess
from sightline.recording.images import read_depth
from sightline.recording.names import list_frames


class DecodedImages(Dataset[dict[str, Tensor]]):
    """One PNG file at a time, decoded and normalised when it is asked for."""

    def __init__(self, folder: Path, preprocessing: Preprocessing) -> None:
        self.paths, self.preprocessing = list(list_frames(folder).values()), preprocessing

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        depth, valid = preprocess(read_depth(self.paths[index])[None], self.preprocessing)
        turns = int(torch.randint(4, ()))
        return {
            name: torch.from_numpy(np.rot90(a, turns, (1, 2)).copy())
            for name, a in (("depth", depth), ("valid", valid))
        }


def batches(folder: Path, preprocessing: Preprocessing, batch_size: int) -> Iterator[dict[str, Tensor]]:
    """Shuffled batches without end."""
    images = DecodedImages(folder, preprocessing)
    loader = DataLoader(images, batch_size, shuffle=True, drop_last=True, num_workers=os.cpu_count() or 1)
    while True:
        yield from loader


def steps(folder: Path, preprocessing: Preprocessing, batch_size: int) -> Iterator[None]:
    """Train the autoencoder, one step for each time that the next is asked for."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network = Autoencoder(NetworkConfig()).to(device)
    optimizer = torch.optim.AdamW(network.parameters(), 1e-4)
    for batch in batches(folder, preprocessing, batch_size):
        depth, valid = batch["depth"].to(device), batch["valid"].to(device)
        error = (network(depth)[0] - depth)[valid]
        loss = error.square().mean() + 0.1 * error.abs().mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        yield
