"""Rendering without OpenGL as MuJoCo's documentation offers it: `mj_ray`, one pixel at a time.

A ray to the scene, and for pictures another to the lamp; no colours, no antialiasing, no noise.
"""

from typing import Any

import numpy as np

from sightline.demo.camera import VISIBLE_GROUPS, Pinhole, Pose
from sightline.demo.headless import mujoco


def depth_image(model: Any, data: Any, pose: Pose, sensor: Pinhole) -> np.ndarray:
    """Distances [height, width] in lengths of the rays, -1 where nothing is met."""
    rays, geom = pose.to_world(sensor.rays(sensor.all_pixels())), np.zeros(1, np.int32)
    found = [mujoco.mj_ray(model, data, pose.position, ray, VISIBLE_GROUPS, 1, -1, geom) for ray in rays]
    return np.array(found).reshape(sensor.height, sensor.width)


def shadow_image(model: Any, data: Any, pose: Pose, sensor: Pinhole, light: np.ndarray) -> np.ndarray:
    """Whether a pixel's surface is in the shade, bool [height, width]."""
    rays, geom = pose.to_world(sensor.rays(sensor.all_pixels())), np.zeros(1, np.int32)
    dark = []
    for ray in rays:
        distance = mujoco.mj_ray(model, data, pose.position, ray, VISIBLE_GROUPS, 1, -1, geom)
        to_light = light - (pose.position + distance * ray)
        start = light - 0.995 * to_light  # off the surface, lest it shadow itself
        blocked = mujoco.mj_ray(model, data, start, to_light, VISIBLE_GROUPS, 1, -1, geom)
        dark.append(distance >= 0 and 0 <= blocked < 0.995)
    return np.array(dark).reshape(sensor.height, sensor.width)
