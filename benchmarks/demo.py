"""Rendering the demo recording on one core, against MuJoCo's ray for each pixel, and against its bare batched rays.

    python benchmarks/demo.py [--quick]

The peer casts a ray for each pixel, and another to the lamp for those of the three pictures; the bound casts one for
each and makes nothing of it. Ours adds colours, antialiasing, the sensor's noise, and PNG files.
"""

import numpy as np
from measuring import Bench, Row, command, in_turn, per, scratch_in
from peers import ray_loop

from sightline.demo.appearance import draw_look
from sightline.demo.camera import Pinhole, Pose, World
from sightline.demo.render import (
    GLOBAL_FIELD_OF_VIEW_DEG,
    WRIST_FIELD_OF_VIEW_DEG,
    WRIST_POSE,
    RenderParams,
    render_demo,
)
from sightline.demo.simulate import SimulateParams, simulate_demo
from sightline.demo.states import StatesFile


def rows(bench: Bench) -> list[Row]:
    """One row: a frame of four pictures and masks."""
    steps, small = bench.size(10, 1), {"wrist_size": 12, "global_size": 16, "depth_height": 8, "depth_width": 8}
    params = RenderParams(**(small if bench.quick else {}))
    states = bench.room / "states.hdf5"
    simulate_demo(SimulateParams(episodes=1, steps=steps), bench.room / "frames.parquet", states, processes=1)
    episode = StatesFile(states).episode(StatesFile(states).names[0])
    world = World(episode.mjcf)
    look = draw_look(world, np.random.default_rng(0))
    wrist = Pinhole(params.wrist_size, params.wrist_size, WRIST_FIELD_OF_VIEW_DEG)
    whole = Pinhole(params.global_size, params.global_size, GLOBAL_FIELD_OF_VIEW_DEG)
    depth = Pinhole(params.depth_height, params.depth_width, GLOBAL_FIELD_OF_VIEW_DEG)

    def cameras(qpos: np.ndarray) -> list[tuple[Pose, Pinhole]]:
        world.place(qpos)
        hands = [WRIST_POSE.on(world.body_pose(f"{side}_hand")) for side in ("left", "right")]
        return [*((pose, wrist) for pose in hands), (look.global_camera, whole), (look.global_camera, depth)]

    def ours() -> None:
        with scratch_in(bench.room):
            render_demo(params, states, bench.room / "recording", processes=1)

    def pixel_by_pixel() -> None:
        *pictures, (pose, sensor) = cameras(episode.qpos[0])
        for of_picture in pictures:
            ray_loop.shadow_image(world.model, world._data, *of_picture, look.light)
        ray_loop.depth_image(world.model, world._data, pose, sensor)

    def bare() -> None:
        for qpos in episode.qpos:
            for pose, sensor in cameras(qpos):
                world.view(pose, sensor)

    seconds = in_turn({"ours": ours, "peer": pixel_by_pixel, "bound": bare}, bench.size(3, 1))
    costs = per(seconds["ours"], steps), per(seconds["peer"], 1)
    between = "shadows, antialiasing and colours: more rays, and the arithmetic of each; PNG files"
    bound = per(seconds["bound"], steps)
    return [
        Row(
            "render a demo frame, one core",
            "ms",
            *costs,
            "mj_ray per pixel, shadows",
            bound,
            "mj_multiRay alone",
            between,
        )
    ]


if __name__ == "__main__":
    command(__doc__, rows)
