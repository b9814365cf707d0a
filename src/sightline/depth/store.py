"""The file of normalised depth: HDF5, written by `normalize`, read by everything after it.

    depth     float32 [N, 128, 128]   -1 = near end of the height range, +1 = far end, holes filled;
                                      [N, 3, 128, 128] where RGB images were normalised in place of depth
    valid     bool    [N, 128, 128]   True where the sensor measured
    frame_id  int64   [N]             ascending
    episode   int64   [N]             -1 for a bare folder of images
    split     S5      [N]             train, val, test, or guard (left out between blocks of a bare folder)
    time_ns   int64   [N]             optional: the time stamps that name the images of a bare folder, nanoseconds

The root attribute ``preprocessing`` is the JSON of `sightline.depth.preprocessing.Preprocessing`; ``recording``, where
the frames are a recording's, tells it from others (`sightline.recording.frames.recording_key`).
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydantic import ValidationError

from sightline.core.errors import UserError
from sightline.core.hdf5 import create_contiguous, open_hdf5, open_rows, require
from sightline.depth.preprocessing import IMAGE_SIZE, Preprocessing


@dataclass(frozen=True)
class DepthStore:
    """An opened file of normalised depth; images are memory-mapped, so its size does not matter."""

    path: Path
    depth: np.ndarray  # float32 [N, 128, 128] or [N, 3, 128, 128], memory map
    valid: np.ndarray  # bool [N, 128, 128], memory map
    frame_id: np.ndarray  # int64 [N]
    episode: np.ndarray  # int64 [N]
    split: np.ndarray  # str [N]
    preprocessing: Preprocessing
    time_ns: np.ndarray | None = None  # int64 [N], where the images are named by time stamps
    recording: str = ""  # "" for a bare folder

    @classmethod
    def open(cls, path: Path) -> "DepthStore":
        """Open for reading. Raises `UserError` where ``path`` is not a file that `normalize` wrote."""
        with open_hdf5(path, "the file that sightline normalize makes of it") as file:
            if not {"depth", "valid", "frame_id", "episode", "split"} <= set(file) or "preprocessing" not in file.attrs:
                raise UserError(f"{path}: not a file of normalised depth; write one with sightline normalize")
            frame_id, episode, split = file["frame_id"][:], file["episode"][:], file["split"][:].astype(str)
            time_ns = file["time_ns"][:] if "time_ns" in file else None
            try:
                preprocessing = Preprocessing.model_validate_json(file.attrs["preprocessing"])
            except ValidationError as error:
                raise UserError(f"{path}: attribute preprocessing: {error.errors()[0]['msg']}") from None
            depth, valid = file.rows("depth"), file.rows("valid")
            recording = str(file.attrs.get("recording", ""))
        one, three = (IMAGE_SIZE, IMAGE_SIZE), (3, IMAGE_SIZE, IMAGE_SIZE)
        require(path, {
            "frame_id": (frame_id, "i", 1), "episode": (episode, "i", 1), "split": (split, "U", 1),
            "depth": (depth, "f", 4 if depth.shape[1:] == three else 3), "valid": (valid, "b", 3),
            **({} if time_ns is None else {"time_ns": (time_ns, "i", 1)}),
        })  # fmt: skip
        if depth.shape[1:] not in (one, three) or valid.shape[1:] != one or depth.dtype != np.float32:
            raise UserError(f"{path}: images of {list(depth.shape[1:])}; write it again with sightline normalize")
        return cls(path, depth, valid, frame_id, episode, split, preprocessing, time_ns, recording)

    @property
    def channels(self) -> int:
        """Channels of an image: 1 for depth, 3 for RGB."""
        return 1 if self.depth.ndim == 3 else self.depth.shape[1]

    def require_preprocessing(self, expected: Preprocessing, weights: Path) -> None:
        """Raise `UserError` unless the images are normalised as those that ``weights`` was trained on."""
        if self.preprocessing != expected:
            raise UserError(
                f"{self.path}: normalised with {self.preprocessing.model_dump(mode='json')}, but {weights} was trained "
                f"on {expected.model_dump(mode='json')}; normalise the data in the same way"
            )

    def images(self, rows: np.ndarray | slice) -> np.ndarray:
        """Copy of the images at ``rows``, float32 [M, C, 128, 128]."""
        return np.array(self.depth[rows]).reshape(-1, self.channels, IMAGE_SIZE, IMAGE_SIZE)

    def rows(self, *parts: str) -> np.ndarray:
        """Row numbers of the frames in these ``parts`` of the split, int64 [M], ascending."""
        return np.flatnonzero(np.isin(self.split, parts))


def create_depth_store(
    path: Path,
    columns: Mapping[str, np.ndarray],
    preprocessing: Preprocessing,
    channels: int = 1,
    recording: str = "",
) -> None:
    """Create a file whose ``depth`` and ``valid`` are to be filled through `open_depth_rows`.

    Args:
        columns: the other data sets by name, see the top of this module.
        recording: the attribute; "" for none.
    """
    count = len(columns["frame_id"])
    shape = (count, IMAGE_SIZE, IMAGE_SIZE)
    images = shape if channels == 1 else (count, channels, IMAGE_SIZE, IMAGE_SIZE)
    create_contiguous(
        path,
        empty={"depth": (images, np.float32), "valid": (shape, np.bool_)},
        filled=columns,
        attributes={
            "preprocessing": json.dumps(preprocessing.model_dump(mode="json"), sort_keys=True),
            **({"recording": recording} if recording else {}),
        },
    )


def open_depth_rows(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Writable memory maps of ``depth`` and ``valid``."""
    return open_rows(path, "depth", "r+"), open_rows(path, "valid", "r+")
