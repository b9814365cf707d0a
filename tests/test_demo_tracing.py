"""The demo's ray tracer: MuJoCo's own hits, the same with and without its short cuts, to the last bit."""

import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sightline.core.errors import UserError
from sightline.demo.appearance import draw_look, take_picture
from sightline.demo.camera import Pinhole, Pose, World, look_at
from sightline.demo.headless import mujoco
from sightline.demo.primitives import Tiles, seen_from
from sightline.demo.scene import draw_scene, scene_xml
from sightline.demo.tracing import LIGHT_TILES, View, look_through, measure, open_view, place_lamp

SENSOR = Pinhole(48, 64, 50.0)


def scene(seed: int) -> World:
    """Arms at random angles, so that they cross each other and the picture."""
    rng = np.random.default_rng(seed)
    world = World(scene_xml(draw_scene(rng)))
    model = world._model
    qpos = model.qpos0.copy()
    for joint in range(18):
        qpos[joint] = rng.uniform(*model.jnt_range[joint])
    world.place(qpos)
    return world


def pose(seed: int) -> Pose:
    rng = np.random.default_rng([seed, 1])
    position = np.array([rng.uniform(0.5, 0.9), rng.uniform(-0.6, 0.6), rng.uniform(0.2, 1.2)])
    return look_at(position, rng.uniform(-0.2, 0.2, 3), np.array([0.0, 0.0, 1.0]))


def everything(rows: int, columns: int, geoms: int) -> Tiles:
    """Tiles that leave nothing out."""
    listed = np.broadcast_to(np.arange(geoms), (rows, columns, geoms)).copy()
    return Tiles(listed, np.full((rows, columns), geoms))


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10_000))
def test_hits_are_those_of_mujoco(seed):
    world, camera = scene(seed), SENSOR.at(pose(seed))
    geoms = world.geoms()
    depth, facing, met = measure(geoms, camera, open_view(geoms, camera))

    rows, columns = SENSOR.centres()
    local = np.stack([(columns - 32) / camera.focal, (24 - rows) / camera.focal, np.full(len(rows), -1.0)], 1)
    rays = np.ascontiguousarray(local @ camera.axes[0].T)
    geom, distance, normal = np.full((len(rays), 1), -1, np.int32), np.full(len(rays), -1.0), np.zeros((len(rays), 3))
    seen = np.array([1, 1, 1, 0, 0, 0], np.uint8)
    for i, ray in enumerate(rays):  # one by one: `mj_multiRay` misses some hits of planes
        distance[i] = mujoco.mj_ray(
            world._model, world._data, camera.position, ray, seen, True, -1, geom[i], normal[i]
        )  # fmt: skip
    cosine = np.abs((normal * rays).sum(1)) / np.linalg.norm(rays, axis=1)
    same = np.where(met.ravel() >= 0, world._visible[met.ravel()], -1) == geom[:, 0]
    assert same.mean() > 0.999  # the rest meets two at once
    np.testing.assert_allclose(depth.ravel()[same], distance[same], atol=1e-9)
    np.testing.assert_allclose(facing.ravel()[same], cosine[same], atol=1e-6)
    assert len(np.unique(met)) > 8


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10_000))
def test_short_cuts_change_no_pixel(seed):
    world, camera = scene(seed), SENSOR.at(pose(seed))
    geoms = world.geoms()
    look = draw_look(world, np.random.default_rng(seed))
    view, lamp = open_view(geoms, camera), place_lamp(geoms, look.light)
    count = len(geoms.kind)
    whole = View(seen_from(geoms, camera.position), everything(6, 8, count))
    slow_lamp = lamp._replace(tiles=everything(LIGHT_TILES, LIGHT_TILES, count))
    places = SENSOR.centres()
    colours, met = look_through(geoms, look.surfaces, lamp, camera, view, *places)
    all_colours, all_met = look_through(geoms, look.surfaces, slow_lamp, camera, whole, *places)
    np.testing.assert_array_equal(met, all_met)
    np.testing.assert_array_equal(colours, all_colours)
    assert view.tiles.number.mean() < 0.5 * count  # there was something to leave out


def test_split_pixels_are_the_mean_of_their_rays():
    world = scene(0)
    geoms, look = world.geoms(), draw_look(world, np.random.default_rng(0))
    lamp, where = place_lamp(geoms, look.light), pose(0)
    once, _ = take_picture(geoms, look, lamp, SENSOR, where, 1)
    split, _ = take_picture(geoms, look, lamp, SENSOR, where, 2)
    double, _ = take_picture(geoms, look, lamp, Pinhole(96, 128, 50.0), where, 1)
    mean = double.reshape(48, 2, 64, 2, 3).mean((1, 3))
    changed = (once != split).any(2)
    assert 0.02 < changed.mean() < 0.6
    np.testing.assert_allclose(split[changed], mean[changed], atol=1e-12)


def test_compiled_arithmetic_is_that_of_plain_python(tmp_path):
    """No fused or reordered operations: they would give other bits on other processors."""
    code = (
        "import sys, numpy as np\n"
        "from sightline.demo.render import EpisodeCameras, RenderParams\n"
        "from sightline.demo.simulate import Simulation, SimulateParams\n"
        "simulation = Simulation(SimulateParams(), 0)\n"
        "sizes = dict(wrist_size=12, global_size=24, depth_height=12, depth_width=12)\n"
        "images = EpisodeCameras(RenderParams(**sizes), 0, simulation.mjcf).everything(simulation.qpos())\n"
        "np.savez(sys.argv[1], **{name.replace('/', '_'): image for name, image in images.items()})\n"
    )
    pictures = []
    for disabled in ("0", "1"):
        path = tmp_path / f"{disabled}.npz"
        command = [sys.executable, "-c", code, str(path)]
        subprocess.run(command, check=True, timeout=300, env=os.environ | {"NUMBA_DISABLE_JIT": disabled})
        pictures.append(np.load(path))
    assert len(pictures[0].files) == 5
    for name in pictures[0].files:
        np.testing.assert_array_equal(pictures[0][name], pictures[1][name])


def test_other_shapes_are_refused():
    geom = '<geom type="ellipsoid" size="0.1 0.1 0.2"/>'
    with pytest.raises(UserError, match="made of planes, boxes"):
        World(f"<mujoco><worldbody>{geom}</worldbody></mujoco>")


def test_code_is_compiled_anew_where_it_cannot_be_kept():
    code = (
        "import numpy as np\n"
        "from sightline.demo.tracing import busy_pixels\n"
        "print(busy_pixels(np.eye(3)[..., None].repeat(3, 2)).sum())\n"
    )
    unwritable = {"NUMBA_CACHE_LOCATOR_CLASSES": "UserProvidedCacheLocator", "NUMBA_CACHE_DIR": "/dev/null/no"}
    done = subprocess.run([sys.executable, "-c", code], env=os.environ | unwritable, capture_output=True, text=True)
    assert done.stdout == "7\n", done.stderr
