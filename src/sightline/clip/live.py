"""Grids for a training, read from a store or computed on demand, with the same values."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from sightline.clip.params import GridParams
from sightline.clip.photographs import list_photographs, prepare
from sightline.clip.tokens import GridEncoder
from sightline.grids.store import GridStore, MissingImageError, whole_numbers
from sightline.recording.names import BY_NAME, Naming
from sightline.training.processes import process_device


class LiveGrids:
    """Computes grids of photographs each time they are read, with the interface of `GridStore`.

    For a quick trial of another model: a training from a store is several times as fast.

    Args:
        folders: folders of photographs.
        params: one of the section ``grids``.
        device: where the model runs; None takes the GPU where there is one.
        naming: how files are named.

    Raises:
        UserError: see `sightline.clip.tokens.GridEncoder` and `sightline.clip.photographs.list_photographs`.
    """

    def __init__(
        self,
        folders: Sequence[Path],
        params: GridParams,
        device: torch.device | str | None = None,
        naming: Naming = BY_NAME,
    ) -> None:
        self.paths = list_photographs([Path(folder) for folder in folders], naming=naming).paths
        self.encoder = GridEncoder(params, torch.device(device) if device else process_device())
        self.image_ids = np.array(list(self.paths), np.int64)
        self.attributes: dict[str, Any] = self.encoder.attributes()
        self.shape: tuple[int, int, int] = (len(self.paths), *self.encoder.shape)
        self.dtype = np.dtype(params.dtype)

    def __len__(self) -> int:
        return len(self.paths)

    def __contains__(self, image_id: int) -> bool:
        return image_id in self.paths

    def __getitem__(self, image_id: int) -> np.ndarray:
        """Grid of one image, [P, C]. Raises `MissingImageError`, or `UserError` where the image cannot be read."""
        return self.read([image_id])[0]

    def read(self, image_ids: Sequence[int] | np.ndarray) -> np.ndarray:
        """Grids of ``image_ids`` in their order, [B, P, C]. Raises as for one."""
        return self._encode(image_ids).cpu().numpy()

    def read_tensor(self, image_ids: Sequence[int] | np.ndarray, device: torch.device | str = "cpu") -> Tensor:
        """`read`, as a tensor on ``device``."""
        return self._encode(image_ids).to(device)

    def close(self) -> None:
        """Do nothing; a `GridStore` closes its file here."""

    def __enter__(self) -> "LiveGrids":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _encode(self, image_ids: Sequence[int] | np.ndarray) -> Tensor:
        wanted = whole_numbers(image_ids).tolist()
        for image_id in wanted:
            if image_id not in self.paths:
                raise MissingImageError(f"no image {image_id} among the {len(self)} photographs")
        with warnings.catch_warnings(action="ignore"):  # Pillow's, on files that it reads all the same
            photographs = [prepare(self.paths[image_id], self.encoder.preparation) for image_id in wanted]
        return self.encoder.encode(torch.stack(photographs))


def open_grids(
    features: Literal["stored", "live"], store: Path | str, folders: Sequence[Path], params: GridParams
) -> GridStore | LiveGrids:
    """Open what a training reads grids from: ``store``, checked against ``params``, or ``folders`` and the live model.

    On a CPU both give the same bits.

    Raises:
        UserError: see `GridStore` and `LiveGrids`.
    """
    if features == "live":
        return LiveGrids(folders, params)
    return GridStore(store, model=params.model, tokens=params.source, grid=params.grid)
