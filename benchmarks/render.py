"""Rendering a frame of the demo (three colour views, a mask, depth), against MuJoCo's renderer without a graphics card.

python benchmarks/render.py [--quick]
"""

import multiprocessing
import os
import re
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from itertools import cycle, islice

import numpy as np
from measuring import Bench, Elsewhere, Row, command, in_turn, per

from sightline.demo.render import (
    GLOBAL_FIELD_OF_VIEW_DEG,
    WRIST_FIELD_OF_VIEW_DEG,
    WRIST_POSE,
    EpisodeCameras,
    RenderParams,
)
from sightline.demo.simulate import SimulateParams, simulate_episode

# MuJoCo's own size of the shadow map, 4096, takes three times as long
VISUAL = '<visual><quality shadowsize="1024" offsamples="4"/></visual>'


def with_cameras(mjcf: str, cameras: EpisodeCameras) -> str:
    """The scene with our cameras and our lamp, as OpenGL needs them."""
    look = cameras.look

    def camera(name: str, position: np.ndarray, axes: np.ndarray, field_of_view_deg: float) -> str:
        place, turn = (" ".join(map(str, numbers)) for numbers in (position, axes.T[:2].ravel()))
        return f'<camera name="{name}" pos="{place}" xyaxes="{turn}" fovy="{field_of_view_deg}"/>'

    lamp = f'<light pos="{" ".join(map(str, look.light))}" dir="0 0 -1" castshadow="true"/>'
    pose = look.global_camera
    fixed = camera("global", pose.position, pose.axes, GLOBAL_FIELD_OF_VIEW_DEG) + lamp
    mjcf = mjcf.replace("<worldbody>", f"{VISUAL}<worldbody>{fixed}", 1)
    for side in ("left", "right"):
        wrist = camera(f"{side}_wrist", WRIST_POSE.position, WRIST_POSE.axes, WRIST_FIELD_OF_VIEW_DEG)
        mjcf = re.sub(rf'(<body name="{side}_hand"[^>]*>)', rf"\1{wrist}", mjcf)
    return mjcf


@contextmanager
def software_opengl() -> Iterator[None]:
    """For processes that begin in here: MuJoCo with EGL, and one thread of Mesa, as ours."""
    before, wanted = dict(os.environ), {"MUJOCO_GL": "egl", "LP_NUM_THREADS": "1"}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name in wanted:
            os.environ.pop(name)
        os.environ.update(before)


def peers_depth(mjcf: str, qpos: np.ndarray) -> np.ndarray | str:
    """The peer's depth of a frame, or one line that says why there is no peer."""
    try:
        from peers import opengl_renderer

        with software_opengl(), ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            return pool.submit(opengl_renderer.depth_of, mjcf, qpos).result()
    except (ImportError, AttributeError, RuntimeError, BrokenProcessPool) as error:
        return f"render: no MuJoCo renderer to compare with ({str(error).splitlines()[0]}); it needs PyOpenGL and EGL"


def rows(bench: Bench) -> list[Row]:
    """One row: a frame, none where MuJoCo cannot render."""
    episode, params = simulate_episode(SimulateParams(), 0), RenderParams()
    cameras, exact = EpisodeCameras(params, 0, episode.mjcf), RenderParams(depth_noise_mm=0, depth_dropout=0)
    mjcf, count = with_cameras(episode.mjcf, cameras), bench.size(25, 2)
    theirs = peers_depth(mjcf, episode.qpos[0])
    if isinstance(theirs, str):
        print(theirs)
        return []
    ours = EpisodeCameras(exact, 0, episode.mjcf).everything(episode.qpos[0])["depth"]
    assert np.median(np.abs(ours - 1000 * theirs)[ours > 0]) < 1, "the peer renders another scene"

    from peers import opengl_renderer

    frames = cycle(episode.qpos)

    def render() -> None:
        for qpos in islice(frames, count):
            cameras.everything(qpos)

    with software_opengl():
        peer = Elsewhere(opengl_renderer.frames, mjcf, episode.qpos)
        peer.__enter__()
    try:
        seconds = in_turn({"ours": render, "peer": lambda: peer(count)}, bench.size(5, 1))
    finally:
        peer.__exit__()
    work = "render a frame of the demo: three views, mask, depth; one core"
    return [Row(work, "ms", per(seconds["ours"], count), per(seconds["peer"], count), "mujoco.Renderer, Mesa")]


if __name__ == "__main__":
    command(__doc__, rows)
