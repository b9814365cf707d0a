"""The states file: all that the renderer must know of what happened, one HDF5 group per episode.

    attributes                                    format, fps (frames per second), steps (per episode), joints (names)
    episode_000000/mjcf     uint8    [bytes]      the scene, MJCF text; materials say what a geom is made of
    episode_000000/qpos     float64  [steps, nq]  MuJoCo's positions at every frame: m, rad, unit quaternions
    episode_000000/frame_id int64    [steps]

`sightline.demo.scene.scene_xml` documents the order of ``qpos``, and so where each object is.
"""

from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from sightline.core.errors import UserError
from sightline.core.hdf5 import open_hdf5, require

FORMAT = "sightline demo states 1"


@dataclass(frozen=True)
class EpisodeStates:
    """One episode: its scene (MJCF text), and for every frame its id [steps] and ``qpos`` [steps, nq]."""

    mjcf: str
    frame_id: np.ndarray
    qpos: np.ndarray


def write_states(path: Path, episodes: list[EpisodeStates], fps: float, joints: tuple[str, ...]) -> None:
    """Write the states file: the same bytes for the same episodes."""
    with h5py.File(
        "states", "w", driver="core", backing_store=False
    ) as file:  # in memory: a full disk would crash HDF5
        file.attrs["format"], file.attrs["fps"] = np.bytes_(FORMAT), fps
        file.attrs["joints"], file.attrs["steps"] = np.array(joints, dtype="S"), len(episodes[0].qpos)
        for number, episode in enumerate(episodes):
            group = file.create_group(f"episode_{number:06d}")
            group["mjcf"] = np.frombuffer(episode.mjcf.encode(), np.uint8)
            group["frame_id"], group["qpos"] = episode.frame_id, episode.qpos
        file.flush()
        path.write_bytes(file.id.get_file_image())


class StatesFile:
    """Reader of a states file.

    Attributes:
        fps: frames per second.
        steps: frames per episode.
        joints: names of the joint states.
        names: names of the episodes, in order.

    Raises:
        UserError: missing file, or another kind of file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with open_hdf5(path) as file:
            if file.attrs.get("format") != np.bytes_(FORMAT):
                raise UserError(f"{path}: not a states file of sightline simulate (expected format {FORMAT!r})")
            self.fps, self.steps = float(file.attrs["fps"]), int(file.attrs["steps"])
            self.joints = tuple(name.decode() for name in file.attrs["joints"])
            self.names = sorted(file)

    def episode(self, name: str) -> EpisodeStates:
        """Read the episode called ``name``."""
        with open_hdf5(self.path) as file:
            mjcf, frame_id, qpos = (file[f"{name}/{part}"][:] for part in ("mjcf", "frame_id", "qpos"))
            text = mjcf.tobytes().decode()
        require(self.path, {f"{name}/qpos": (qpos, "f", 2), f"{name}/frame_id": (frame_id, "i", 1)})
        if "file=" in text:  # scenes of the demo read no meshes or textures
            raise UserError(f"{self.path}: {name}: its scene reads other files; write it again with sightline simulate")
        return EpisodeStates(text, frame_id, qpos)
