"""How the demo looks: colours, wood, light and camera placement of an episode, and pictures of it.

Colours are display values from 0 to 1, RGB.
"""

import colorsys
from dataclasses import dataclass

import numpy as np

from sightline.demo.camera import Pinhole, Pose, World, look_at
from sightline.demo.primitives import Geoms
from sightline.demo.scene import KINDS
from sightline.demo.tracing import CHECKS, WOOD, Lamp, Surfaces, busy_pixels, look_through, open_view

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
PATTERNS = {"table": WOOD, "floor": CHECKS}
TYPICAL_HUE = {"box": 0.96, "cylinder": 0.27}  # and up to 0.12 more
# The ball's blue and the plate's yellow are nothing else's: the task is to see where they are, not what they are.
BALL_HUE, OTHER_HUES = (0.55, 0.62), ((0.70, 1.09), (1.22, 1.47))
SKY = 0.58


@dataclass(frozen=True)
class Look:
    """The look of one episode. ``class_id`` has one more entry, the last: index -1 is what meets nothing."""

    surfaces: Surfaces
    class_id: np.ndarray  # uint8 [G + 1]
    light: np.ndarray  # the lamp's position [3], m
    global_camera: Pose


def draw_look(world: World, rng: np.random.Generator, lamp: float = 1.0, camera_shift_m: float = 0.0) -> Look:
    """Draw the look of an episode; a geom's material decides what it may look like.

    Args:
        lamp: strength of the lamp; 1 is the usual.
        camera_shift_m: how far the global camera is moved to the robots' left; it turns to see the same place.
    """
    light = np.array([0.1, 0.0, 1.7]) + rng.uniform(-0.5, 0.5, 3) * [1, 1, 0.3]
    position = np.array([0.66, camera_shift_m, 0.72]) + rng.uniform(-0.01, 0.01, 3)
    camera = look_at(position, np.array([0.05, 0.0, 0.04]), up=np.array([0.0, 0.0, 1.0]))
    wood, phase = np.array([0.72, 0.55, 0.38]) * rng.uniform(0.8, 1.15), float(rng.uniform(0, 6))
    count = len(world.materials)
    colour, gloss = np.full((count + 1, 3), SKY), np.zeros(count + 1)
    class_id, pattern = np.zeros(count + 1, np.uint8), np.zeros(count + 1, np.int64)
    for geom, material in enumerate(world.materials):
        class_name, paint, gloss[geom] = SURFACES[material]
        class_id[geom], pattern[geom] = CLASSES.index(class_name), PATTERNS.get(material, 0)
        colour[geom] = paint or (_draw_object_colour(material, rng) if material in KINDS else SKY)
    return Look(Surfaces(colour, gloss, pattern, wood, phase, float(lamp)), class_id, light, camera)


def _draw_object_colour(kind: str, rng: np.random.Generator) -> tuple[float, float, float]:
    """The ball is blue; of the others, colour only hints at the class: two of five have a random hue."""
    saturation, value = rng.uniform(0.6, 0.95, 2)
    if kind == "ball":
        return colorsys.hsv_to_rgb(rng.uniform(*BALL_HUE), saturation, value)
    typical, hinted = TYPICAL_HUE[kind] + rng.uniform(0, 0.12), rng.random() < 0.6
    hue = rng.uniform(*OTHER_HUES[rng.integers(len(OTHER_HUES))])
    return colorsys.hsv_to_rgb((typical if hinted else hue) % 1, saturation, value)


def take_picture(
    geoms: Geoms, look: Look, lamp: Lamp, sensor: Pinhole, pose: Pose, split: int
) -> tuple[np.ndarray, np.ndarray]:
    """A colour picture, and the geom at the middle of every pixel.

    Pixels that differ from a neighbour, about one in ten, are averaged over ``split`` by ``split`` rays: smooth edges
    for a fraction of what splitting all would cost.

    Returns:
        display values [H, W, 3]; int64 [H, W], -1 where there is nothing.
    """
    camera = sensor.at(pose)
    view, (rows, columns) = open_view(geoms, camera), sensor.centres()
    colours, met = look_through(geoms, look.surfaces, lamp, camera, view, rows, columns)
    shape = (sensor.height, sensor.width)
    if split > 1:
        pixels = np.flatnonzero(busy_pixels(colours.reshape(*shape, 3)))
        inner = (np.arange(split) + 0.5) / split - 0.5  # places inside a pixel, from its middle
        down, right = (steps.ravel() for steps in np.meshgrid(inner, inner, indexing="ij"))  # (split * split)
        fine_rows, fine_columns = rows[pixels, None] + down, columns[pixels, None] + right
        fine, _ = look_through(geoms, look.surfaces, lamp, camera, view, fine_rows.ravel(), fine_columns.ravel())
        colours[pixels] = sum(fine[i :: split * split] for i in range(split * split)) / (split * split)
    return colours.reshape(*shape, 3), met.reshape(shape)
