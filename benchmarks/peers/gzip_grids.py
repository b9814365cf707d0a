"""Grids as captioning codes document them: a compressed data set for each image, the file opened for every sample."""

from pathlib import Path

import h5py
import numpy as np


def write(path: Path, image_ids: np.ndarray, grids_NPC: np.ndarray) -> None:
    """One gzip data set ``<image_id>_grids`` for each image."""
    with h5py.File(path, "w") as file:
        for image_id, grid in zip(image_ids, grids_NPC, strict=True):
            file.create_dataset(f"{image_id}_grids", data=grid, compression="gzip")


def read(path: Path, image_ids: np.ndarray) -> np.ndarray:
    """Grids [B, P, C], each as a data set's ``__getitem__`` reads it."""
    grids = []
    for image_id in image_ids:
        with h5py.File(path, "r") as file:
            grids.append(file[f"{image_id}_grids"][()])
    return np.stack(grids)
