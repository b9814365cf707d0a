"""Rays against boxes, capsules, cylinders, spheres and planes, and which of them a part of an image can show.

Compiled by numba, number by number: only arithmetic, square roots and comparisons, in the order written (no
``fastmath``), so that the last bits are the same on every processor. Points and rays here are in a geom's own frame,
whose z axis is that of a capsule, a cylinder, or a plane's normal; a ray reaches ``t`` times its length.
"""

import math
from typing import NamedTuple

import numpy as np

from sightline.demo.compiled import compiled, inlined
from sightline.demo.headless import mujoco

PLANE, SPHERE, CAPSULE, CYLINDER, BOX = (
    int(getattr(mujoco.mjtGeom, f"mjGEOM_{name}")) for name in ("PLANE", "SPHERE", "CAPSULE", "CYLINDER", "BOX")
)
KINDS = (PLANE, SPHERE, CAPSULE, CYLINDER, BOX)
NOTHING = math.inf  # t of a ray that misses
TILE = 8  # pixels on an edge of a tile
BEHIND = 1e-3  # m; what is not at least this far in front of a camera has no projection

Vector = tuple[float, float, float]


class Geoms(NamedTuple):
    """The G visible geoms of a scene in one state; lengths in metres, world frame."""

    kind: np.ndarray  # int64 [G]
    size: np.ndarray  # [G, 3], as MuJoCo has it
    position: np.ndarray  # [G, 3]
    axes: np.ndarray  # [G, 3, 3], a geom's axes are the columns


class Tiles(NamedTuple):
    """Which geoms can be met through each tile of an image."""

    geoms: np.ndarray  # int64 [rows, columns, G], ascending
    number: np.ndarray  # int64 [rows, columns], how many of them


@inlined
def entry(geoms: Geoms, g: int, o: Vector, d: Vector) -> float:
    """Where a ray from ``o`` in direction ``d`` enters geom ``g``: t, or `NOTHING`. The origin is outside."""
    kind, radius, half_length = geoms.kind[g], geoms.size[g, 0], geoms.size[g, 1]
    if kind == PLANE:
        return _enter_plane(radius, half_length, o, d)
    if kind == BOX:
        return _enter_box(geoms.size[g, 0], geoms.size[g, 1], geoms.size[g, 2], o, d)
    if kind == SPHERE:
        return _enter_sphere(radius, o, d)
    # capsule and cylinder: first the endless cylinder
    a = d[0] * d[0] + d[1] * d[1]
    b = o[0] * d[0] + o[1] * d[1]
    outside = o[0] * o[0] + o[1] * o[1] - radius * radius
    inside = b * b - a * outside
    if inside < 0 or (a == 0 and outside > 0):
        return NOTHING
    first, last = -math.inf, math.inf
    z = -math.inf if d[2] > 0 else math.inf
    if a > 0:
        root = math.sqrt(inside)
        first, last = (-b - root) / a, (-b + root) / a
        z = o[2] + first * d[2]
    if abs(z) <= half_length:
        return first if first > 0 else NOTHING
    end = half_length if z > 0 else -half_length
    if kind == CAPSULE:
        return _enter_sphere(radius, (o[0], o[1], o[2] - end), d)
    t = (end - o[2]) / d[2] if d[2] != 0 else NOTHING
    return t if first <= t <= last and t > 0 else NOTHING


@inlined
def _enter_plane(half_x: float, half_y: float, o: Vector, d: Vector) -> float:
    if o[2] <= 0 or d[2] >= 0:
        return NOTHING
    t = -o[2] / d[2]
    return t if abs(o[0] + t * d[0]) <= half_x and abs(o[1] + t * d[1]) <= half_y else NOTHING


@inlined
def _enter_sphere(radius: float, o: Vector, d: Vector) -> float:
    a = d[0] * d[0] + d[1] * d[1] + d[2] * d[2]
    b = o[0] * d[0] + o[1] * d[1] + o[2] * d[2]
    inside = b * b - a * (o[0] * o[0] + o[1] * o[1] + o[2] * o[2] - radius * radius)
    if inside < 0:
        return NOTHING
    t = (-b - math.sqrt(inside)) / a
    return t if t > 0 else NOTHING


@inlined
def _enter_box(half_x: float, half_y: float, half_z: float, o: Vector, d: Vector) -> float:
    near_x, far_x = _between(half_x, o[0], d[0])
    near_y, far_y = _between(half_y, o[1], d[1])
    near_z, far_z = _between(half_z, o[2], d[2])
    first, last = max(near_x, near_y, near_z), min(far_x, far_y, far_z)
    return first if 0 < first <= last else NOTHING


@inlined
def _between(half: float, o: float, d: float) -> tuple[float, float]:
    """Where a ray is within ``half`` of the middle, along one axis: from t to t."""
    if d == 0:
        return (-math.inf, math.inf) if abs(o) <= half else (math.inf, -math.inf)
    one, other = (-half - o) / d, (half - o) / d
    return (one, other) if one < other else (other, one)


@inlined
def outward(geoms: Geoms, g: int, p: Vector) -> Vector:
    """The unit normal of the surface of geom ``g`` at its point ``p``."""
    kind, radius, half_length = geoms.kind[g], geoms.size[g, 0], geoms.size[g, 1]
    x, y, z = p
    if kind == PLANE:
        return 0.0, 0.0, 1.0
    if kind == BOX:
        dx, dy, dz = abs(x) - geoms.size[g, 0], abs(y) - geoms.size[g, 1], abs(z) - geoms.size[g, 2]
        if dx >= dy and dx >= dz:
            return math.copysign(1.0, x), 0.0, 0.0
        return (0.0, math.copysign(1.0, y), 0.0) if dy >= dz else (0.0, 0.0, math.copysign(1.0, z))
    if kind == CYLINDER and half_length - abs(z) < radius - math.sqrt(x * x + y * y):
        return 0.0, 0.0, math.copysign(1.0, z)
    if kind == CYLINDER:
        z = 0.0
    elif kind == CAPSULE:
        z -= min(max(z, -half_length), half_length)
    length = math.sqrt(x * x + y * y + z * z)
    return x / length, y / length, z / length


@inlined
def to_local(axes: np.ndarray, g: int, v: Vector) -> Vector:
    """A direction of the world, in the frame of geom ``g``, whose axes are in [G, 3, 3]."""
    return (
        axes[g, 0, 0] * v[0] + axes[g, 1, 0] * v[1] + axes[g, 2, 0] * v[2],
        axes[g, 0, 1] * v[0] + axes[g, 1, 1] * v[1] + axes[g, 2, 1] * v[2],
        axes[g, 0, 2] * v[0] + axes[g, 1, 2] * v[1] + axes[g, 2, 2] * v[2],
    )


@inlined
def to_world(axes: np.ndarray, g: int, v: Vector) -> Vector:
    """The reverse of `to_local`."""
    return (
        axes[g, 0, 0] * v[0] + axes[g, 0, 1] * v[1] + axes[g, 0, 2] * v[2],
        axes[g, 1, 0] * v[0] + axes[g, 1, 1] * v[1] + axes[g, 1, 2] * v[2],
        axes[g, 2, 0] * v[0] + axes[g, 2, 1] * v[1] + axes[g, 2, 2] * v[2],
    )


@compiled
def seen_from(geoms: Geoms, position: np.ndarray) -> np.ndarray:
    """``position`` [3] in the frame of every geom, [G, 3]."""
    local = np.empty((len(geoms.kind), 3))
    for g in range(len(geoms.kind)):
        offset = (
            position[0] - geoms.position[g, 0], position[1] - geoms.position[g, 1], position[2] - geoms.position[g, 2]
        )  # fmt: skip
        local[g, 0], local[g, 1], local[g, 2] = to_local(geoms.axes, g, offset)
    return local


@compiled
def tile_image(
    geoms: Geoms, position: np.ndarray, axes: np.ndarray, focal: float, height: int, width: int, planes: bool
) -> Tiles:
    """Sort the geoms into the tiles of an image, ``height`` by ``width`` pixels, that their bounding boxes touch.

    What lies beyond an edge of the image counts to the tiles at that edge: a point of the world outside the image can
    be looked up at the nearest one. Planes, which have no box, go to all tiles, or to none.
    """
    rows, columns, count = (height + TILE - 1) // TILE, (width + TILE - 1) // TILE, len(geoms.kind)
    tiles = Tiles(np.empty((rows, columns, count), np.int64), np.zeros((rows, columns), np.int64))
    for g in range(count):
        if geoms.kind[g] == PLANE and not planes:
            continue
        top, bottom, left, right = _bounds(geoms, g, position, axes, focal, height, width)
        for row in range(min(max(top // TILE, 0), rows - 1), min(max(bottom // TILE, 0), rows - 1) + 1):
            for column in range(min(max(left // TILE, 0), columns - 1), min(max(right // TILE, 0), columns - 1) + 1):
                tiles.geoms[row, column, tiles.number[row, column]] = g
                tiles.number[row, column] += 1
    return tiles


@inlined
def _bounds(
    geoms: Geoms, g: int, position: np.ndarray, axes: np.ndarray, focal: float, height: int, width: int
) -> tuple[int, int, int, int]:
    """First and last row, first and last column that a geom's bounding box projects to; everything where in doubt."""
    kind, size = geoms.kind[g], geoms.size[g]
    low_u, high_u, low_v, high_v = math.inf, -math.inf, math.inf, -math.inf
    x, y = (size[0], size[1]) if kind == BOX else (size[0], size[0])
    z = size[2] if kind == BOX else size[0] if kind == SPHERE else size[1] + (size[0] if kind == CAPSULE else 0.0)
    behind = 0
    for corner in range(8):
        inner = (x if corner & 1 else -x, y if corner & 2 else -y, z if corner & 4 else -z)
        a, b, c = to_world(geoms.axes, g, inner)
        offset = geoms.position[g] - position
        right, up, back = to_local(axes, 0, (a + offset[0], b + offset[1], c + offset[2]))
        if back > -BEHIND:
            behind += 1
            continue
        u, v = width / 2 - focal * right / back, height / 2 + focal * up / back
        low_u, high_u, low_v, high_v = min(low_u, u), max(high_u, u), min(low_v, v), max(high_v, v)
    if kind == PLANE or behind > 0:
        return 0, height - 1, 0, width - 1
    limit = 1e6  # of what an integer holds
    return (
        math.floor(max(low_v - 0.01, -limit)),
        math.floor(min(high_v + 0.01, limit)),
        math.floor(max(low_u - 0.01, -limit)),
        math.floor(min(high_u + 0.01, limit)),
    )
