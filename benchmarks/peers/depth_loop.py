"""Normalising depth as one writes it first: Pillow and numpy, one image after the other."""

from pathlib import Path

import numpy as np
from PIL import Image

NEAR, FAR = 500, 4500  # millimetres


def normalize_folder(folder: Path, target: Path) -> None:
    """Read every image, mask what was not measured, resize, scale to [-1, 1], and save one array."""
    images, masks = [], []
    for path in sorted(folder.iterdir()):
        depth = np.array(Image.open(path)).astype(np.float32)
        valid = (depth > 0) & (depth < 65535)
        depth[~valid] = depth[valid].mean()
        scaled = np.clip(2 * (depth - NEAR) / (FAR - NEAR) - 1, -1, 1)
        images.append(np.array(Image.fromarray(scaled).resize((128, 128), Image.Resampling.NEAREST)))
        masks.append(np.array(Image.fromarray(valid).resize((128, 128), Image.Resampling.NEAREST)))
    np.savez(target, depth=np.stack(images), valid=np.stack(masks))
