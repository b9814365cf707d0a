"""Pictures of a scene, ray by ray: what a camera sees, and how it is lit. Compiled by numba, see `primitives`.

Colours are display values from 0 to 1, RGB. Light is added up in their squares: a gamma of 2, because the square root
is exact on every processor, and other powers are not.
"""

import math
from typing import NamedTuple

import numpy as np

from sightline.demo.compiled import compiled, inlined
from sightline.demo.primitives import (
    NOTHING,
    PLANE,
    TILE,
    Geoms,
    Tiles,
    Vector,
    entry,
    outward,
    seen_from,
    tile_image,
    to_local,
    to_world,
)

WOOD, CHECKS = 1, 2  # patterns
CONTRAST = 0.06  # display values; pixels that differ more than this from a neighbour are split into several rays
LIGHT_TILES, LIGHT_REACH = 64, 1.5  # the lamp's image of the table: tiles on an edge, and half its width at 1 m


class Camera(NamedTuple):
    """A pinhole camera: ``axes`` [1, 3, 3] has its directions right, up, back as columns."""

    position: np.ndarray  # [3], m
    axes: np.ndarray
    focal: float  # pixels
    height: int
    width: int


class Surfaces(NamedTuple):
    """How geoms look. The tables have one more row, the last, for what meets nothing."""

    colour: np.ndarray  # [G + 1, 3]
    gloss: np.ndarray  # [G + 1]
    pattern: np.ndarray  # int64 [G + 1]: WOOD, CHECKS, or 0
    wood: np.ndarray  # [3]
    grain_phase: float
    lamp: float  # its strength; 1 is the usual


class Lamp(NamedTuple):
    """A point of light, and what can stand in its way."""

    position: np.ndarray  # [3], m
    local: np.ndarray  # [G, 3]: the position in the frame of every geom
    tiles: Tiles
    focal: float


class View(NamedTuple):
    """What a camera can see of a scene in one state."""

    local: np.ndarray  # [G, 3]: the camera's position in the frame of every geom
    tiles: Tiles


@compiled
def open_view(geoms: Geoms, camera: Camera) -> View:
    """Find out which geoms each tile of the camera's image can show."""
    tiles = tile_image(geoms, camera.position, camera.axes, camera.focal, camera.height, camera.width, True)
    return View(seen_from(geoms, camera.position), tiles)


@compiled
def place_lamp(geoms: Geoms, position: np.ndarray) -> Lamp:
    """The lamp at ``position`` [3], which looks straight down."""
    size = LIGHT_TILES * TILE
    focal = size / 2 / LIGHT_REACH
    tiles = tile_image(
        geoms, position, np.eye(3).reshape(1, 3, 3), focal, size, size, False
    )  # floor and wall have everything on one side
    return Lamp(position, seen_from(geoms, position), tiles, focal)


@inlined
def nearest(geoms: Geoms, view: View, row: int, column: int, x: float, y: float, z: float) -> tuple[int, float]:
    """The geom that a ray (x, y, z) through a pixel enters first, or -1, and where: t."""
    row, column = row // TILE, column // TILE
    first, met = NOTHING, -1
    for i in range(view.tiles.number[row, column]):
        g = view.tiles.geoms[row, column, i]
        origin = (view.local[g, 0], view.local[g, 1], view.local[g, 2])
        t = entry(geoms, g, origin, to_local(geoms.axes, g, (x, y, z)))
        if t < first:
            first, met = t, g
    return met, first


@inlined
def normal_at(geoms: Geoms, view: View, g: int, t: float, x: float, y: float, z: float) -> Vector:
    """The world's normal where the ray (x, y, z) enters geom ``g``."""
    a, b, c = to_local(geoms.axes, g, (x, y, z))
    point = (view.local[g, 0] + t * a, view.local[g, 1] + t * b, view.local[g, 2] + t * c)
    return to_world(geoms.axes, g, outward(geoms, g, point))


@inlined
def is_lit(geoms: Geoms, lamp: Lamp, own: int, x: float, y: float, z: float) -> bool:
    """Whether nothing stands between the lamp and a point of geom ``own`` that is (x, y, z) away from it."""
    row, column, count = 0, 0, len(geoms.kind)
    below = z < 0  # else anything may be in the way
    if below:
        row = int(min(max(lamp.focal * y / z / TILE + LIGHT_TILES / 2, 0.0), LIGHT_TILES - 1.0))
        column = int(min(max(-lamp.focal * x / z / TILE + LIGHT_TILES / 2, 0.0), LIGHT_TILES - 1.0))
        count = lamp.tiles.number[row, column]
    for i in range(count):
        g = lamp.tiles.geoms[row, column, i] if below else i
        if g == own or geoms.kind[g] == PLANE:
            continue  # all shapes are convex: none shadows its own lit side
        origin = (lamp.local[g, 0], lamp.local[g, 1], lamp.local[g, 2])
        if entry(geoms, g, origin, to_local(geoms.axes, g, (x, y, z))) < 0.995:
            return False
    return True


@inlined
def colour_of(
    geoms: Geoms, surfaces: Surfaces, lamp: Lamp, camera: Camera, view: View,
    g: int, t: float, x: float, y: float, z: float,
) -> Vector:  # fmt: skip
    """Display values of what the ray (x, y, z) sees: ambient light, one lamp with shadows, and its highlights."""
    if g < 0:
        return surfaces.colour[-1, 0], surfaces.colour[-1, 1], surfaces.colour[-1, 2]
    px, py, pz = camera.position[0] + t * x, camera.position[1] + t * y, camera.position[2] + t * z
    nx, ny, nz = normal_at(geoms, view, g, t, x, y, z)
    # from the lamp to just off the surface, so that it does not shadow itself
    lx, ly, lz = px + 2e-3 * nx - lamp.position[0], py + 2e-3 * ny - lamp.position[1], pz + 2e-3 * nz - lamp.position[2]
    distance, length = math.sqrt(lx * lx + ly * ly + lz * lz), math.sqrt(x * x + y * y + z * z)
    lambert = -(nx * lx + ny * ly + nz * lz) / distance
    diffuse = shine = 0.0
    if lambert > 0 and is_lit(geoms, lamp, g, lx, ly, lz):
        diffuse = lambert * (2.4 * surfaces.lamp) / (0.6 + distance * distance)
        hx, hy, hz = -lx / distance - x / length, -ly / distance - y / length, -lz / distance - z / length
        shine = (nx * hx + ny * hy + nz * hz) / (math.sqrt(hx * hx + hy * hy + hz * hz) + 1e-9)
        shine = min(max(shine, 0.0), 1.0)
        for _ in range(5):
            shine = shine * shine  # to the power of 32
    ambient = 0.36 + 0.16 * nz + 0.12 * max(-(nx * x + ny * y + nz * z) / length, 0.0)
    light, highlight = ambient + diffuse, 0.6 * surfaces.lamp * shine * surfaces.gloss[g]
    red, green, blue = _paint(surfaces, g, px, py)
    return (
        _display(red * red * light + highlight),
        _display(green * green * light + highlight),
        _display(blue * blue * light + highlight),
    )


@inlined
def _display(light: float) -> float:
    return math.sqrt(min(max(light, 0.0), 1.0))


@inlined
def _paint(surfaces: Surfaces, g: int, x: float, y: float) -> Vector:
    """Colour of the surface of a geom at (x, y): wood on the table, tiles on the floor."""
    if surfaces.pattern[g] == WOOD:
        phase = surfaces.grain_phase
        bend = 0.014 * _wave(1.1 * y + phase) + 0.004 * _wave(4.9 * y)
        grain = 0.5 + 0.5 * _wave(9.5 * (x + bend) + 0.3 * _wave(1.1 * x))
        plank = math.floor(x / 0.14) * 0.618 + phase
        bright = 0.80 + 0.13 * grain + 0.14 * (plank - math.floor(plank))
        return surfaces.wood[0] * bright, surfaces.wood[1] * bright, surfaces.wood[2] * bright
    if surfaces.pattern[g] == CHECKS:
        bright = 0.42 + 0.08 * ((math.floor(x / 0.3) + math.floor(y / 0.3)) % 2)
        return bright, bright * 0.98, bright * 0.94
    return surfaces.colour[g, 0], surfaces.colour[g, 1], surfaces.colour[g, 2]


@inlined
def _wave(turns: float) -> float:
    """Like a sine of ``turns`` (1 is a full turn), -1 to 1, of parabolas: the same on every processor."""
    place = turns - math.floor(turns)
    half = 2 * place - math.floor(2 * place)
    return (4.0 if place < 0.5 else -4.0) * half * (1 - half)


@inlined
def ray_through(camera: Camera, row: float, column: float) -> Vector:
    """The ray through a place in an image, in the world; its length along the camera's axis is 1."""
    x, y = (column - camera.width / 2) / camera.focal, (camera.height / 2 - row) / camera.focal
    return to_world(camera.axes, 0, (x, y, -1.0))


@compiled
def look_through(
    geoms: Geoms, surfaces: Surfaces, lamp: Lamp, camera: Camera, view: View, rows: np.ndarray, columns: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """What is seen at N places of an image, ``rows`` [N] and ``columns`` [N], of which (0, 0) is the first corner.

    Returns:
        display values [N, 3]; geom, or -1 for nothing, int64 [N].
    """
    colours, met = np.empty((len(rows), 3)), np.empty(len(rows), np.int64)
    for i in range(len(rows)):
        x, y, z = ray_through(camera, rows[i], columns[i])
        g, t = nearest(geoms, view, int(rows[i]), int(columns[i]), x, y, z)
        met[i] = g
        colour = colour_of(geoms, surfaces, lamp, camera, view, g, t, x, y, z)
        colours[i, 0], colours[i, 1], colours[i, 2] = colour
    return colours, met


@compiled
def measure(geoms: Geoms, camera: Camera, view: View) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What the middle of every pixel sees, each [H, W].

    Returns:
        depth in metres, -1 where there is nothing; cosine between the surface's normal and the ray; geom or -1.
    """
    depth, facing = np.full((camera.height, camera.width), -1.0), np.zeros((camera.height, camera.width))
    met = np.empty((camera.height, camera.width), np.int64)
    for row in range(camera.height):
        for column in range(camera.width):
            x, y, z = ray_through(camera, row + 0.5, column + 0.5)
            g, t = nearest(geoms, view, row, column, x, y, z)
            met[row, column] = g
            if g >= 0:
                nx, ny, nz = normal_at(geoms, view, g, t, x, y, z)
                depth[row, column] = t
                facing[row, column] = abs(nx * x + ny * y + nz * z) / math.sqrt(x * x + y * y + z * z)
    return depth, facing, met


@compiled
def busy_pixels(colours: np.ndarray) -> np.ndarray:
    """Which pixels of a picture [H, W, 3] differ from a neighbour, bool [H, W]."""
    height, width, _ = colours.shape
    busy = np.zeros((height, width), np.bool_)
    for row in range(height):
        for column in range(width):
            for down, right in ((0, 1), (1, 0)):
                i, j = row + down, column + right
                if i == height or j == width:
                    continue
                for channel in range(3):
                    if abs(colours[row, column, channel] - colours[i, j, channel]) > CONTRAST:
                        busy[row, column] = busy[i, j] = True
    return busy


@compiled
def expose(colours: np.ndarray, draws: np.ndarray, deviates: np.ndarray) -> np.ndarray:
    """Display values [H, W, 3] as an image sensor gives them, uint8.

    Args:
        draws: random numbers, uint8, as many as ``colours``.
        deviates: the noise that each of the 256 stands for, grey levels.
    """
    image = np.empty(colours.shape, np.uint8)
    for i in range(colours.size):
        level = math.floor(colours.flat[i] * 255 + deviates[draws[i]] + 0.5)
        image.flat[i] = min(max(level, 0), 255)
    return image
