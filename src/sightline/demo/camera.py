"""The scene in one state, the cameras in it, and the faults of a depth sensor: geometry only, no colours.

Only elementwise arithmetic and square roots: matrix products go through BLAS, whose last bits differ between
processors. Camera frames have x to the right, y up, z towards the viewer; world lengths are metres.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from sightline.core.errors import UserError
from sightline.demo.headless import mujoco
from sightline.demo.primitives import KINDS, Geoms
from sightline.demo.scene import HULL_GROUP
from sightline.demo.tracing import Camera


def dot(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Scalar products of rows, [N, 3] and [N, 3] (or [3]) -> [N]."""
    product = a * b
    return product[:, 0] + product[:, 1] + product[:, 2]


def norm(vectors: np.ndarray) -> np.ndarray:
    """Lengths of rows, [N, 3] -> [N]."""
    return np.sqrt(dot(vectors, vectors))


@dataclass(frozen=True)
class Pose:
    """Where a camera is: its position [3], and its axes (right, up, back) as the columns of [3, 3]."""

    position: np.ndarray
    axes: np.ndarray

    def to_world(self, vectors: np.ndarray) -> np.ndarray:
        """Turn directions [N, 3] from the camera's frame into the world's."""
        return np.stack([dot(vectors, row) for row in self.axes], axis=1)

    def on(self, body: "Pose") -> "Pose":
        """World pose of a camera whose own pose is relative to ``body``."""
        position = body.position + body.to_world(self.position[None])[0]
        return Pose(position, body.to_world(self.axes.T).T)


def look_at(position: np.ndarray, target: np.ndarray, up: np.ndarray) -> Pose:
    """A camera at ``position`` [3] that sees ``target`` [3] in its centre; ``up`` [3] fixes the roll."""

    def unit(vector: np.ndarray) -> np.ndarray:
        return vector / norm(vector[None])

    back = unit(position - target)
    right = unit(np.cross(up, back))
    return Pose(position, np.stack([right, np.cross(back, right), back], axis=1))


@dataclass(frozen=True)
class Pinhole:
    """An image sensor of ``height`` by ``width`` pixels behind a pinhole."""

    height: int
    width: int
    field_of_view_deg: float  # vertical

    def at(self, pose: Pose) -> Camera:
        """The camera with this sensor at ``pose``."""
        focal = 0.5 * self.height / math.tan(math.radians(self.field_of_view_deg) / 2)
        return Camera(pose.position, np.ascontiguousarray(pose.axes)[None], focal, self.height, self.width)

    def centres(self) -> tuple[np.ndarray, np.ndarray]:
        """Rows and columns [H * W] of the middles of all pixels, in reading order."""
        rows, columns = np.mgrid[: self.height, : self.width] + 0.5
        return rows.ravel(), columns.ravel()


class World:
    """A compiled scene in one state, at which cameras can look.

    Attributes:
        materials: name of what each visible geom is made of, [G].
    """

    def __init__(self, mjcf: str) -> None:
        model = self._model = mujoco.MjModel.from_xml_string(mjcf)
        self._data: Any = mujoco.MjData(model)
        self._visible = np.flatnonzero(model.geom_group != HULL_GROUP)
        self._kind = model.geom_type[self._visible].astype(np.int64)
        if not np.isin(self._kind, KINDS).all():
            raise UserError("a scene of the demo is made of planes, boxes, capsules, cylinders and spheres only")
        self.materials = [
            mujoco.mj_id2name(model, mujoco.mjtObj.mjOBJ_MATERIAL, material)
            for material in model.geom_matid[self._visible]
        ]

    def place(self, qpos: np.ndarray) -> None:
        """Move everything to the generalised positions ``qpos`` [nq]."""
        self._data.qpos[:] = qpos
        mujoco.mj_kinematics(self._model, self._data)

    def body_pose(self, name: str) -> Pose:
        """World pose of a body."""
        body = mujoco.mj_name2id(self._model, mujoco.mjtObj.mjOBJ_BODY, name)
        return Pose(self._data.xpos[body].copy(), self._data.xmat[body].reshape(3, 3).copy())

    def geoms(self) -> Geoms:
        """The visible geoms where they are now."""
        visible = self._visible
        axes = self._data.geom_xmat[visible].reshape(-1, 3, 3)
        return Geoms(self._kind, self._model.geom_size[visible], self._data.geom_xpos[visible], axes)


@dataclass(frozen=True)
class DepthSensor:
    """Faults of a depth camera: what it returns for a true depth."""

    near_mm: int
    far_mm: int
    noise_mm: float  # standard deviation at 1 m; grows with the square of the distance
    dropout: float  # share of pixels without a return, anywhere
    edge_mm: float = 25.0  # a jump in depth that often gives no return,
    edge_dropout: float = 0.6  # this often
    grazing: float = 0.12  # nor does a surface seen at a cosine below this

    def measure(self, depth_m: np.ndarray, facing: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Depth as the sensor reads it.

        Args:
            depth_m: true depth [H, W] in metres; not positive where there is nothing.
            facing: cosine of incidence [H, W].

        Returns:
            uint16 [H, W] in millimetres, 0 where there is no return.
        """
        true_mm = np.maximum(depth_m, 0) * 1000
        noise = rng.normal(0, 1, true_mm.shape) * self.noise_mm * (true_mm / 1000) * (true_mm / 1000)
        read_mm = np.rint(true_mm + noise)
        across = np.abs(np.diff(true_mm, axis=1, prepend=true_mm[:, :1]))
        down = np.abs(np.diff(true_mm, axis=0, prepend=true_mm[:1]))
        edge = np.maximum(across, down) > self.edge_mm
        lost = (edge & (rng.random(true_mm.shape) < self.edge_dropout)) | (rng.random(true_mm.shape) < self.dropout)
        lost |= (read_mm < self.near_mm) | (read_mm > self.far_mm) | (facing < self.grazing)
        return np.where(lost, 0, read_mm).astype(np.uint16)
