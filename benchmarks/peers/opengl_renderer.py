"""A frame as MuJoCo renders it by itself: `mujoco.Renderer`, OpenGL in software (Mesa, by EGL), no screen.

It needs PyOpenGL and the system's libraries (Debian: libegl1, libgl1-mesa-dri), and MUJOCO_GL=egl in the environment.
"""

from collections.abc import Iterator

import mujoco
import numpy as np

VIEWS = (("left_wrist", 84), ("right_wrist", 84), ("global", 224))
DEPTH_SIZE = 128


def renderers(mjcf: str) -> dict[str, mujoco.Renderer]:
    """One for each kind of picture, of a scene with the cameras left_wrist, right_wrist and global."""
    model = mujoco.MjModel.from_xml_string(mjcf)
    ways = {name: mujoco.Renderer(model, size, size) for name, size in VIEWS}
    ways |= {"masks": mujoco.Renderer(model, 224, 224), "depth": mujoco.Renderer(model, DEPTH_SIZE, DEPTH_SIZE)}
    ways["masks"].enable_segmentation_rendering()
    ways["depth"].enable_depth_rendering()
    return ways


def frame(ways: dict[str, mujoco.Renderer], qpos: np.ndarray) -> dict[str, np.ndarray]:
    """Three colour pictures, ids of geoms (`masks`) and metres (`depth`) at the positions ``qpos``."""
    model = ways["depth"].model
    data = mujoco.MjData(model)
    data.qpos[:] = qpos
    mujoco.mj_forward(model, data)
    pictures = {}
    for name, renderer in ways.items():
        renderer.update_scene(data, camera=name if name.endswith("wrist") else "global")
        pictures[name] = renderer.render()
    return pictures


def frames(mjcf: str, qpos: np.ndarray) -> Iterator[None]:
    """Render one frame after the other of ``qpos`` [N, nq], again and again."""
    ways = renderers(mjcf)
    while True:
        for positions in qpos:
            frame(ways, positions)
            yield


def depth_of(mjcf: str, qpos: np.ndarray) -> np.ndarray:
    """The depth image of one frame, metres [H, W]."""
    return frame(renderers(mjcf), qpos)["depth"]
