"""The demo recording: the same bytes from any number of processes, honest layout, plausible physics and sensors."""

import hashlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import only_error_line
from PIL import Image

from sightline.core.errors import UserError
from sightline.demo import render as render_module
from sightline.demo.camera import DepthSensor
from sightline.demo.control import solve
from sightline.demo.render import FOLDERS, RenderParams, render_demo
from sightline.demo.simulate import SimulateParams, simulate_demo, simulate_episode
from sightline.demo.states import StatesFile
from sightline.recording.images import read_depth, read_mask, read_rgb
from sightline.recording.layout import read_recording_info
from sightline.recording.names import list_frames

ROOT = Path(__file__).parent.parent
SIMULATE = SimulateParams(episodes=2, steps=3)
RENDER = RenderParams()
SMALL = RenderParams(wrist_size=16, global_size=32, depth_height=16, depth_width=16)


@pytest.fixture(autouse=True)
def _own_scratch(tmp_path, monkeypatch):
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))


@pytest.fixture(scope="module")
def demo(tmp_path_factory) -> Path:
    """A recording of two short episodes, made in this process."""
    root = tmp_path_factory.mktemp("demo")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DVC_ROOT", str(root))
        simulate_demo(SIMULATE, root / "frames.parquet", root / "states.hdf5", processes=1)
        render_demo(RENDER, root / "states.hdf5", root, processes=1)
    assert list((root / ".scratch" / "render").iterdir()) == []  # nothing is left behind
    return root


def hashes(root: Path) -> dict[str, str]:
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def pixels(root: Path, folder: str) -> np.ndarray:
    return np.stack([np.asarray(Image.open(path)) for path in list_frames(root / folder).values()])


def test_bytes_do_not_depend_on_processes(demo, tmp_path):
    root = tmp_path / "again"
    simulate_demo(SIMULATE, root / "frames.parquet", root / "states.hdf5", processes=2)
    render_demo(RENDER, root / "states.hdf5", root, processes=2)
    assert hashes(root) == hashes(demo)


def test_another_seed_is_another_recording(demo, tmp_path):
    simulate_demo(SIMULATE.model_copy(update={"seed": 1}), tmp_path / "frames.parquet", tmp_path / "states.hdf5", 1)
    ours, theirs = hashes(tmp_path), hashes(demo)
    assert ours["frames.parquet"] != theirs["frames.parquet"]
    assert ours["states.hdf5"] != theirs["states.hdf5"]


def test_an_episode_does_not_depend_on_the_others():
    alone = simulate_episode(SIMULATE, 1)
    among_many = simulate_episode(SIMULATE.model_copy(update={"episodes": 9}), 1)
    np.testing.assert_array_equal(alone.qpos, among_many.qpos)


def test_frames_table(demo):
    table = pq.read_table(demo / "frames.parquet")
    vector = pa.list_(pa.float32(), 16)
    assert dict(zip(table.schema.names, table.schema.types, strict=True)) == {
        "frame_id": pa.int64(), "episode": pa.int64(), "step": pa.int64(), "time_s": pa.float64(),
        "joints": vector, "actions": vector, "object_position": pa.list_(pa.float32(), 3),
        "goal_position": pa.list_(pa.float32(), 3), "gripper_position": pa.list_(pa.float32(), 3),
        "contact": pa.bool_(), "task": pa.string(), "reward": pa.float32(), "success": pa.bool_(),
    }  # fmt: skip
    columns = table.to_pydict()
    assert columns["frame_id"] == [0, 1, 2, 3, 4, 5]
    assert columns["episode"] == [0, 0, 0, 1, 1, 1]
    assert columns["step"] == [0, 1, 2, 0, 1, 2]
    assert columns["time_s"] == pytest.approx([0, 0.1, 0.2] * 2)
    assert set(columns["task"]) == {"put the ball on the plate"}
    assert len({tuple(goal) for goal in columns["goal_position"]}) == 2  # one for each episode
    assert np.isfinite(columns["joints"]).all()
    np.testing.assert_allclose(np.array(columns["joints"])[::3, [7, 15]], 1, atol=0.05)  # both grippers begin open


def test_depth_alone_is_the_depth_of_everything(demo, tmp_path):
    render_demo(RENDER, demo / "states.hdf5", tmp_path / "alone", 1, only_depth=True)
    assert sorted(path.name for path in (tmp_path / "alone").iterdir()) == ["depth", "recording.json"]
    for path in (demo / "depth").iterdir():
        assert (tmp_path / "alone/depth" / path.name).read_bytes() == path.read_bytes()
    assert read_recording_info(tmp_path / "alone/recording.json").cameras == ()


def test_pictures_have_the_layout_of_a_recording(demo):
    info = read_recording_info(demo / "recording.json")
    assert len(info.joints) == 16
    assert info.classes == ("background", "robot", "box", "cylinder", "ball", "plate")
    assert info.depth is not None
    assert (info.depth.unit_mm, info.depth.invalid) == (1.0, (0,))
    for folder in FOLDERS:
        assert [path.name for path in list_frames(demo / folder).values()] == [f"{i:06d}.png" for i in range(6)]
    for camera, size in zip(info.cameras, (84, 84, 224), strict=True):
        assert read_rgb(demo / "rgb" / camera / "000003.png").shape == (size, size, 3)
    assert read_mask(demo / "masks" / "000003.png").shape == (224, 224)
    assert read_depth(demo / "depth" / "000003.png").shape == (128, 128)


def test_masks_show_every_class_and_agree_with_depth(demo, tmp_path):
    assert np.unique(pixels(demo, "masks")).tolist() == [0, 1, 2, 3, 4, 5]
    render_demo(SMALL.model_copy(update={"global_size": 96, "depth_height": 96, "depth_width": 96}),
                demo / "states.hdf5", tmp_path, processes=1)  # fmt: skip
    masks, depth = pixels(tmp_path, "masks"), pixels(tmp_path, "depth")
    things = masks >= 2
    assert np.mean(depth[things] > 0) > 0.7  # only their edges give no return
    in_front = np.median(depth[things & (depth > 0)])
    assert 500 < in_front < 1300


def test_depth_is_in_range_or_missing(demo):
    depth = pixels(demo, "depth")
    assert depth.dtype == np.uint16
    readings = depth[depth > 0]
    assert RENDER.depth_near_mm <= readings.min()
    assert readings.max() <= RENDER.depth_far_mm
    assert 0.005 < np.mean(depth == 0) < 0.2


def test_depth_noise_grows_with_the_square_of_distance():
    sensor = DepthSensor(near_mm=200, far_mm=3000, noise_mm=4.0, dropout=0.0)
    plane, rng = np.ones((100, 100)), np.random.default_rng(0)
    spread = [sensor.measure(plane * metres, plane, rng).std() for metres in (1.0, 2.0)]
    assert spread == pytest.approx([4, 16], rel=0.05)


def test_depth_sensor_faults():
    sensor = DepthSensor(near_mm=300, far_mm=1000, noise_mm=0.0, dropout=0.0)
    rng, straight = np.random.default_rng(0), np.ones((8, 8))
    assert not sensor.measure(straight * 0.2, straight, rng).any()  # too near
    assert not sensor.measure(straight * 1.1, straight, rng).any()  # too far
    assert not sensor.measure(straight * -1, straight, rng).any()  # nothing there
    assert not sensor.measure(straight * 0.5, straight * 0.05, rng).any()  # grazing
    assert (sensor.measure(straight * 0.5, straight, rng) == 500).all()
    step = np.where(np.arange(64) < 32, 0.5, 0.8) * np.ones((64, 1))
    lost = sensor.measure(step, np.ones((64, 64)), rng) == 0
    assert 0.3 < lost[:, 32].mean() < 0.9  # the edge
    assert lost.sum() == lost[:, 32].sum()


def test_another_look_needs_no_simulation(demo, tmp_path):
    before = hashes(demo)
    render_demo(RENDER.model_copy(update={"seed": 1}), demo / "states.hdf5", tmp_path / "seed", processes=1)
    assert hashes(demo) == before
    for folder in FOLDERS:
        assert (pixels(demo, folder) != pixels(tmp_path / "seed", folder)).any()


def test_colour_settings_leave_depth_and_masks_alone(demo, tmp_path):
    changed = RENDER.model_copy(update={"antialias": 1, "rgb_noise": 3.0, "wrist_size": 16})
    render_demo(changed, demo / "states.hdf5", tmp_path, processes=1)
    assert (pixels(demo, "rgb/global") != pixels(tmp_path, "rgb/global")).any()
    for folder in ("depth", "masks"):
        np.testing.assert_array_equal(pixels(demo, folder), pixels(tmp_path, folder))


def test_a_weaker_lamp_darkens_every_camera_and_nothing_else(demo, tmp_path):
    for name, lamp in (("usual", 1.0), ("dim", 0.3)):
        params = SMALL.model_copy(update={"lamp": lamp})
        render_demo(params, demo / "states.hdf5", tmp_path / name, processes=1)
    for camera in ("left_wrist", "right_wrist", "global"):
        usual, dim = (pixels(tmp_path / name, f"rgb/{camera}").mean((1, 2, 3)) for name in ("usual", "dim"))
        assert (dim < 0.9 * usual).all()
    for folder in ("depth", "masks"):
        np.testing.assert_array_equal(pixels(tmp_path / "usual", folder), pixels(tmp_path / "dim", folder))


def test_a_moved_camera_sees_the_same_place_from_elsewhere(demo, tmp_path):
    for name, shift in (("usual", 0.0), ("moved", 0.2)):
        params = SMALL.model_copy(update={"camera_shift_m": shift})
        render_demo(params, demo / "states.hdf5", tmp_path / name, processes=1)
    for folder in ("rgb/global", "depth", "masks"):
        assert (pixels(tmp_path / "usual", folder) != pixels(tmp_path / "moved", folder)).mean() > 0.1
    for folder in ("rgb/left_wrist", "rgb/right_wrist"):
        np.testing.assert_array_equal(pixels(tmp_path / "usual", folder), pixels(tmp_path / "moved", folder))
    usual, moved = (pixels(tmp_path / name, "depth") for name in ("usual", "moved"))
    assert np.median(moved[moved > 0]) == pytest.approx(np.median(usual[usual > 0]), rel=0.1)


def test_depth_may_have_the_shape_of_a_real_camera(demo, tmp_path):
    params = SMALL.model_copy(update={"depth_height": 240, "depth_width": 320})
    render_demo(params, demo / "states.hdf5", tmp_path, processes=1)
    depth = read_depth(tmp_path / "depth" / "000000.png")
    assert depth.shape == (240, 320)
    assert np.mean(depth > 0) > 0.7


def test_interrupted_rendering_continues(demo, tmp_path, monkeypatch):
    rendered, real = [], render_module._render_episode

    def fails_at_first(job, folder):
        rendered.append(job.number)
        if rendered == [0, 1]:
            raise KeyboardInterrupt
        real(job, folder)

    monkeypatch.setattr(render_module, "_render_episode", fails_at_first)
    with pytest.raises(KeyboardInterrupt):
        render_demo(SMALL, demo / "states.hdf5", tmp_path / "out", processes=1)
    assert not (tmp_path / "out").exists()
    render_demo(SMALL, demo / "states.hdf5", tmp_path / "out", processes=1)
    assert rendered == [0, 1, 1]
    assert len(list_frames(tmp_path / "out" / "masks")) == 6
    assert list((tmp_path / ".scratch" / "render").iterdir()) == []


def test_solve():
    rng = np.random.default_rng(0)
    half, vector = rng.normal(size=(6, 6)), rng.normal(size=6)
    matrix = half @ half.T + np.eye(6)
    np.testing.assert_allclose(matrix @ solve(matrix, vector), vector, atol=1e-9)


@pytest.mark.parametrize(
    ("script", "arguments", "expected"),
    [
        ("simulate", ["--frames", "f", "--states", "s", "--set", "simulate.epsodes=2"], "simulate.epsodes"),
        (
            "simulate",
            ["--frames", "f", "--states", "s", "--set", "simulate.miss_rate=2"],
            "simulate.miss_rate",
        ),
        ("render", ["--states", "missing.hdf5", "--out", "o"], "missing.hdf5"),
        ("render", ["--states", "s", "--out", "o", "--set", "render.depth_near_mm=9000"], "depth_near_mm"),
    ],
)
def test_mistakes_on_the_command_line_are_one_line(script, arguments, expected, tmp_path):
    command = [sys.executable, str(ROOT / "stages" / f"{script}.py"), *arguments]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert expected in only_error_line(done)
    assert not (tmp_path / "f").exists()


def test_mistakes_in_the_library_name_their_file(demo, tmp_path):
    (tmp_path / "notes.txt").write_text("not HDF5")
    with pytest.raises(UserError, match=r"notes\.txt"):
        StatesFile(tmp_path / "notes.txt")
    with pytest.raises(UserError, match=r"notes\.txt: is not a folder"):
        render_demo(SMALL, demo / "states.hdf5", tmp_path / "notes.txt")
    with pytest.raises(UserError, match="--processes 0"):
        simulate_demo(SIMULATE, tmp_path / "f", tmp_path / "s", processes=0)


def test_workers_need_neither_torch_nor_opengl():
    code = (
        "import sys, sightline.demo.render, sightline.demo.simulate;"
        "print([name for name in sys.modules if name.split('.')[0] in ('torch', 'lightning', 'OpenGL', 'glfw')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"
