"""How the demo looks: colours, wood, light and camera placement of an episode, and the shading of ray hits.

Colours are display values from 0 to 1, RGB. Light is added up in their squares: a gamma of 2, because the square root
is exact on every processor, and other powers are not.
"""

import colorsys
from dataclasses import dataclass

import numpy as np

from sightline.demo.camera import Hits, Pinhole, Pose, World, dot, look_at, norm
from sightline.demo.headless import mujoco

CLASSES = ("background", "robot", "box", "cylinder", "ball", "plate")
SURFACES = {  # material: (class, colour; None where it is drawn per object or painted by a pattern, gloss)
    "table": ("background", None, 0.08),
    "floor": ("background", None, 0.0),
    "wall": ("background", (0.62, 0.65, 0.66), 0.0),
    "shell": ("robot", (0.93, 0.93, 0.95), 0.3),
    "dark": ("robot", (0.20, 0.20, 0.22), 0.3),
    "pad": ("robot", (0.35, 0.35, 0.37), 0.1),
    "accent_left": ("robot", (0.20, 0.45, 0.75), 0.3),
    "accent_right": ("robot", (0.80, 0.42, 0.15), 0.3),
    "plate": ("plate", (0.88, 0.84, 0.30), 0.3),
    "box": ("box", None, 0.3),
    "cylinder": ("cylinder", None, 0.3),
    "ball": ("ball", None, 0.3),
}
TYPICAL_HUE = {"box": 0.97, "cylinder": 0.30, "ball": 0.55}
SKY = 0.58
CONTRAST = 0.06  # display values; pixels that differ more than this from a neighbour are split into several rays


@dataclass(frozen=True)
class Look:
    """The look of one episode. Tables per geom have one more row, the last: index -1 is what meets nothing."""

    colour: np.ndarray  # [geoms + 1, 3]
    gloss: np.ndarray  # [geoms + 1]
    class_id: np.ndarray  # uint8 [geoms + 1]
    table: np.ndarray  # bool [geoms + 1]
    floor: np.ndarray  # bool [geoms + 1]
    wood: np.ndarray  # [3]
    grain_phase: float
    light: np.ndarray  # position [3], m
    lamp: float  # its strength
    global_camera: Pose


def draw_look(world: World, rng: np.random.Generator, lamp: float = 1.0, camera_shift_m: float = 0.0) -> Look:
    """Draw the look of an episode; a geom's material decides what it may look like.

    Args:
        lamp: strength of the lamp; 1 is the usual.
        camera_shift_m: how far the global camera is moved to the robots' left; it turns to see the same place.
    """
    model = world.model
    light = np.array([0.1, 0.0, 1.7]) + rng.uniform(-0.5, 0.5, 3) * [1, 1, 0.3]
    position = np.array([0.66, camera_shift_m, 0.72]) + rng.uniform(-0.03, 0.03, 3)
    camera = look_at(position, np.array([0.05, 0.0, 0.04]), up=np.array([0.0, 0.0, 1.0]))
    wood, phase = np.array([0.72, 0.55, 0.38]) * rng.uniform(0.8, 1.15), float(rng.uniform(0, 6))
    materials = [
        mujoco.mj_id2name(model, mujoco.mjtObj.mjOBJ_MATERIAL, material) if material >= 0 else None
        for material in model.geom_matid
    ]
    colour, gloss = np.full((len(materials) + 1, 3), SKY), np.zeros(len(materials) + 1)
    class_id = np.zeros(len(materials) + 1, np.uint8)
    for geom, material in enumerate(materials):
        if material is None:
            continue  # it touches, but cameras do not see it
        class_name, paint, gloss[geom] = SURFACES[material]
        class_id[geom] = CLASSES.index(class_name)
        colour[geom] = paint or (_draw_object_colour(material, rng) if material in TYPICAL_HUE else SKY)
    table, floor = (np.array([material == name for material in [*materials, None]]) for name in ("table", "floor"))
    return Look(colour, gloss, class_id, table, floor, wood, phase, light, lamp, camera)


def _draw_object_colour(kind: str, rng: np.random.Generator) -> tuple[float, float, float]:
    """Colour only hints at the class: two objects of five have a random hue."""
    typical = (TYPICAL_HUE[kind] + rng.uniform(0, 0.2)) % 1
    hue, hinted = rng.random(), rng.random() < 0.6
    saturation, value = rng.uniform(0.5, 0.95, 2)
    return colorsys.hsv_to_rgb(typical if hinted else hue, saturation, value)


def take_picture(world: World, look: Look, pose: Pose, sensor: Pinhole, split: int) -> tuple[np.ndarray, np.ndarray]:
    """A colour picture, and the geom at the middle of every pixel.

    Pixels that differ from a neighbour, about one in eight, are averaged over ``split`` by ``split`` rays: smooth
    edges for a fraction of what splitting all would cost.

    Returns:
        display values float [H, W, 3]; int32 [H, W], -1 where there is nothing.
    """
    hits = world.view(pose, sensor)
    colours = shade(world, look, hits)  # (H * W, 3)
    if split > 1:
        pixels = np.flatnonzero(_busy(colours.reshape(sensor.height, sensor.width, 3)))
        rays = pose.to_world(sensor.rays(pixels, split))
        fine = shade(world, look, world.cast(pose.position, rays)).reshape(len(pixels), split * split, 3)
        colours[pixels] = sum(fine[:, i] for i in range(split * split)) / (split * split)
    return colours.reshape(sensor.height, sensor.width, 3), hits.geom.reshape(sensor.height, sensor.width)


def _busy(image: np.ndarray) -> np.ndarray:
    """Pixels [H, W] that differ from a neighbour."""
    busy = np.zeros(image.shape[:2], bool)
    across = np.abs(np.diff(image, axis=1)).max(2) > CONTRAST
    down = np.abs(np.diff(image, axis=0)).max(2) > CONTRAST
    busy[:, 1:] |= across
    busy[:, :-1] |= across
    busy[1:] |= down
    busy[:-1] |= down
    return busy


def shade(world: World, look: Look, hits: Hits) -> np.ndarray:
    """Display values [N, 3] of ray hits: ambient light, one lamp with shadows, and its highlights."""
    points, normal = hits.points(), hits.normal
    colour = _paint(look, hits.geom, points)
    from_light = points + normal * 2e-3 - look.light  # just off the surface, so that it does not shadow itself
    distance = norm(from_light)
    to_light, to_eye = -from_light / distance[:, None], -hits.rays / norm(hits.rays)[:, None]
    lambert = np.clip(dot(normal, to_light), 0, 1)
    lit = _lit(world, look.light, from_light, np.flatnonzero(lambert > 0))

    halfway = to_light + to_eye
    shine = np.clip(dot(normal, halfway / (norm(halfway)[:, None] + 1e-9)), 0, 1)
    for _ in range(5):
        shine = shine * shine  # to the power of 32
    ambient = 0.36 + 0.16 * normal[:, 2] + 0.12 * np.clip(dot(normal, to_eye), 0, 1)
    diffuse = lit * lambert * (2.4 * look.lamp) / (0.6 + distance * distance)
    light = (
        colour * colour * (ambient + diffuse)[:, None]
        + (0.6 * look.lamp * lit * shine * look.gloss[hits.geom])[:, None]
    )
    nothing = hits.geom < 0
    light[nothing] = colour[nothing] * colour[nothing]
    return np.sqrt(np.clip(light, 0, 1))


def _lit(world: World, light: np.ndarray, from_light: np.ndarray, candidates: np.ndarray) -> np.ndarray:
    """1.0 where nothing stands between the lamp and the point, else 0.0, [N]; others than ``candidates`` are 0."""
    lit = np.zeros(len(from_light))
    distance = world.cast(light, from_light[candidates]).distance
    lit[candidates] = (distance < 0) | (distance > 0.995)  # the point itself is at 1
    return lit


def _paint(look: Look, geom: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Colour of the surface at the points, [N, 3]: wood on the table, tiles on the floor."""
    colour = look.colour[geom]
    on_table = look.table[geom]
    x, y = points[on_table, 0], points[on_table, 1]
    bend = 0.014 * _wave(1.1 * y + look.grain_phase) + 0.004 * _wave(4.9 * y)
    grain = 0.5 + 0.5 * _wave(9.5 * (x + bend) + 0.3 * _wave(1.1 * x))
    plank = (np.floor(x / 0.14) * 0.618 + look.grain_phase) % 1
    colour[on_table] = look.wood * (0.80 + 0.13 * grain + 0.14 * plank)[:, None]
    on_floor = look.floor[geom]
    tile = np.floor(points[on_floor, 0] / 0.3) + np.floor(points[on_floor, 1] / 0.3)
    colour[on_floor] = np.where(tile % 2 > 0, 0.50, 0.42)[:, None] * np.array([1, 0.98, 0.94])
    return colour


def _wave(turns: np.ndarray) -> np.ndarray:
    """Like a sine of ``turns`` (1 is a full turn), -1 to 1, of parabolas: the same on every processor."""
    place = turns - np.floor(turns)
    half = 2 * place - np.floor(2 * place)
    return np.where(place < 0.5, 1.0, -1.0) * 4 * half * (1 - half)
