"""Grids of pooled pixels, in place of a network's: what a grid is worth without any network.

    python benchmarks/pixel_grids.py data/grids/efficientnet/global data/demo/rgb/global PIXELS.hdf5

Each of the P patches of the stored grids becomes the mean colours of its four quarters, 12 numbers in [0, 1]; the file
is a store of the same images, for ``--feature`` of fusion_designs.py and segmentation.py.
"""

import sys
from pathlib import Path

import h5py
import numpy as np
from PIL import Image
from tqdm import tqdm

from sightline.core.files import atomic_output
from sightline.grids.store import GridStore


def main(stored: Path, images: Path, output: Path) -> None:
    with GridStore(stored) as store, atomic_output(output) as temporary, h5py.File(temporary, "w") as file:
        names = store.image_names
        side = round(len(store[int(store.image_ids[0])]) ** 0.5)
        grids = np.empty((len(names), side * side, 12), np.float16)
        for row, name in enumerate(tqdm(names, unit="img")):
            with Image.open(images / f"{name}.png") as image:
                small = np.asarray(image.convert("RGB").resize((2 * side, 2 * side), Image.Resampling.BOX)) / 255
            quarters = small.reshape(side, 2, side, 2, 3).transpose(0, 2, 1, 3, 4)
            grids[row] = quarters.reshape(side * side, 12)
        file["grids"], file["image_ids"], file["content_hash"] = grids, store.image_ids, store.content_hash
        file["image_names"], file["skipped_ids"] = np.array(names, "S"), np.zeros(0, np.int64)
        file.attrs["model"], file.attrs["random_weights"] = "pixels", False
        file.attrs["recording"] = store.recording


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    main(*map(Path, sys.argv[1:]))
