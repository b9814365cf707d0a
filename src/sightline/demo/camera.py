"""Pinhole cameras and a depth sensor by ray casting: geometry only, no colours.

Only elementwise arithmetic and square roots: matrix products go through BLAS, whose last bits differ between
processors. Camera frames have x to the right, y up, z towards the viewer; world lengths are metres.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from sightline.demo.headless import mujoco

FAR_M = 8.0  # rays end here
VISIBLE_GROUPS = np.array([1, 1, 1, 0, 0, 0], np.uint8)  # the others touch, but are never seen


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

    def rays(self, pixels: np.ndarray, split: int = 1) -> np.ndarray:
        """Rays through pixels, in the camera's frame, whose z is -1: a ray's length is then its depth.

        Args:
            pixels: indices of pixels in reading order, [N].
            split: rays per pixel edge.

        Returns:
            [N * split * split, 3], the rays of one pixel next to each other.
        """
        focal = 0.5 * self.height / math.tan(math.radians(self.field_of_view_deg) / 2)  # pixels
        row, column = np.divmod(pixels, self.width)
        inner = (np.arange(split) + 0.5) / split  # places inside a pixel, 0 to 1
        x = (column[:, None, None] + inner[None, None, :] - self.width / 2) / focal
        y = (row[:, None, None] + inner[None, :, None] - self.height / 2) / focal
        x, y = np.broadcast_arrays(x, y)  # (N, split, split)
        return np.stack([x.ravel(), -y.ravel(), np.full(x.size, -1.0)], axis=1)

    def all_pixels(self) -> np.ndarray:
        """Indices of all pixels in reading order, [height * width]."""
        return np.arange(self.height * self.width)


@dataclass(frozen=True)
class Hits:
    """What N rays from one point met first."""

    origin: np.ndarray  # [3]
    rays: np.ndarray  # [N, 3]
    geom: np.ndarray  # int32 [N], -1 where nothing was met
    distance: np.ndarray  # [N], in lengths of the ray; -1 where nothing was met
    normal: np.ndarray  # [N, 3], unit vectors out of the surface; 0 where nothing was met

    def points(self) -> np.ndarray:
        """World positions of the hits, [N, 3] (of nothing: one ray's length away)."""
        return self.origin + self.rays * np.where(self.geom >= 0, self.distance, 1.0)[:, None]

    def facing(self) -> np.ndarray:
        """Cosine between surface normal and the way back to the origin, [N]; 0 at grazing incidence."""
        return np.abs(dot(self.normal, self.rays)) / norm(self.rays)


class World:
    """A compiled scene in one state, at which rays can be cast."""

    def __init__(self, mjcf: str) -> None:
        self.model: Any = mujoco.MjModel.from_xml_string(mjcf)
        self._data: Any = mujoco.MjData(self.model)

    def place(self, qpos: np.ndarray) -> None:
        """Move everything to the generalised positions ``qpos`` [nq]."""
        self._data.qpos[:] = qpos
        mujoco.mj_kinematics(self.model, self._data)

    def body_pose(self, name: str) -> Pose:
        """World pose of a body."""
        body = mujoco.mj_name2id(self.model, mujoco.mjtObj.mjOBJ_BODY, name)
        return Pose(self._data.xpos[body].copy(), self._data.xmat[body].reshape(3, 3).copy())

    def cast(self, origin: np.ndarray, rays: np.ndarray) -> Hits:
        """First hits of ``rays`` [N, 3] from ``origin`` [3] with what can be seen."""
        count = len(rays)
        geom, distance, normal = np.full(count, -1, np.int32), np.full(count, -1.0), np.zeros((count, 3))
        if count:
            mujoco.mj_multiRay(
                self.model, self._data, origin, np.ascontiguousarray(rays).reshape(-1), VISIBLE_GROUPS, True, -1,
                geom, distance, normal.reshape(-1), count, FAR_M,
            )  # fmt: skip
        return Hits(origin, rays, geom, distance, normal)

    def view(self, pose: Pose, sensor: Pinhole) -> Hits:
        """One ray through the middle of every pixel; ``distance`` is then the depth in metres."""
        return self.cast(pose.position, pose.to_world(sensor.rays(sensor.all_pixels())))


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
