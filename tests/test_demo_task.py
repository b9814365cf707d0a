"""The task of the demo, in closed loop: the ball ends on the plate, recordings can be played again, cameras agree."""

import numpy as np
import pyarrow.parquet as pq
import pytest

from sightline.core.errors import UserError
from sightline.demo.headless import mujoco
from sightline.demo.render import CAMERAS, FOLDERS, EpisodeCameras, RenderParams, render_demo
from sightline.demo.scene import MIN_SPACING_M, OBJECTS_X_M, OBJECTS_Y_M, PLATE_RADIUS_M, draw_scene
from sightline.demo.simulate import JOINTS, SimulateParams, Simulation, simulate_demo, simulate_episode
from sightline.demo.states import StatesFile
from sightline.recording.images import read_depth, read_mask, read_rgb

PARAMS = SimulateParams()
ARM_JOINTS = [place for place, name in enumerate(JOINTS) if not name.endswith("gripper")]
SMALL = RenderParams(wrist_size=16, global_size=32, depth_height=16, depth_width=16)


def finished(number: int, miss_rate: float = 0.0, params: SimulateParams = PARAMS) -> Simulation:
    """An episode after the scripted policy's last action."""
    simulation = Simulation(params, number, miss_rate)
    for _ in range(simulation.steps):
        simulation.apply(simulation.expert())
    return simulation


def beside_plate_m(simulation: Simulation) -> float:
    return float(np.hypot(*(simulation.object_position - simulation.goal_position)[:2]))


def test_a_scene_has_one_ball_and_a_plate_on_its_side():
    for seed in range(200):
        scene = draw_scene(np.random.default_rng(seed))
        kinds = [thing.kind for thing in scene.objects]
        assert kinds[0] == "ball"
        assert kinds.count("ball") == 1
        assert {"box", "cylinder"} <= set(kinds)
        assert 3 <= len(kinds) <= 5
        places = np.array([scene.plate, *((thing.x, thing.y) for thing in scene.objects)])
        assert places[0, 1] * places[1, 1] > 0
        assert scene.side == ("left" if places[0, 1] > 0 else "right")
        between = np.hypot(*(places[:, None] - places[None]).transpose(2, 0, 1)) + np.eye(len(places))
        assert between.min() > MIN_SPACING_M
        assert ((places >= [OBJECTS_X_M[0], OBJECTS_Y_M[0]]) & (places <= [OBJECTS_X_M[1], OBJECTS_Y_M[1]])).all()


@pytest.mark.parametrize("number", range(6))
def test_the_script_puts_the_ball_on_the_plate(number):
    simulation = finished(number)
    assert simulation.success()
    assert beside_plate_m(simulation) < PLATE_RADIUS_M


def test_a_wide_miss_leaves_the_ball_elsewhere():
    wide = PARAMS.model_copy(update={"aim_error_m": 0.5})
    for number in range(3):
        simulation = finished(number, 1.0, wide)
        assert beside_plate_m(simulation) > PLATE_RADIUS_M
        assert not simulation.success()


def test_a_ball_that_is_held_or_dropped_or_rolls_is_no_success():
    simulation = Simulation(PARAMS, 0, 0.0)
    while beside_plate_m(simulation) > 0.02:
        action = simulation.expert()
        simulation.apply(action)
    for _ in range(5):
        simulation.apply(action)  # wait above the plate
    assert beside_plate_m(simulation) < PLATE_RADIUS_M
    assert simulation.object_position[2] > 0.1
    assert not simulation.success()

    action[[7, 15]] = 1
    simulation.apply(action)
    assert not simulation.success()  # in the air

    simulation = finished(0)
    assert simulation.success()
    velocity = simulation._model.body_dofadr[simulation._ball]
    simulation._data.qvel[velocity] = 0.2
    mujoco.mj_forward(simulation._model, simulation._data)
    assert not simulation.success()


def test_a_closed_gripper_beside_a_delivered_ball_is_no_success():
    simulation = finished(0)
    closed = simulation.expert()
    closed[[7, 15]] = 0
    for _ in range(5):
        simulation.apply(closed)
    assert beside_plate_m(simulation) < PLATE_RADIUS_M
    assert not simulation.success()


def test_reward_is_best_on_the_plate():
    episode = simulate_episode(PARAMS.model_copy(update={"miss_rate": 0.0}), 0)
    assert episode.success
    assert episode.reward[-1] == episode.reward.max() == 1
    put_down = int(np.argmax(episode.reward))
    assert 0 > episode.reward[put_down - 1] > episode.reward[14] > episode.reward[0]  # at the plate, at the ball, far
    carried = episode.object_position[:, 2] > episode.object_position[0, 2] + 0.05  # metres
    assert carried.any()
    assert episode.contact[carried].all()
    assert not episode.contact[[0, -1]].any()
    assert np.linalg.norm(episode.gripper_position - episode.object_position, axis=1)[carried].max() < 0.05


def test_a_recording_without_noise_can_be_played_again(tmp_path):
    params = SimulateParams(episodes=2, steps=20, action_noise_rad=0)
    simulate_demo(params, tmp_path / "frames.parquet", tmp_path / "states.hdf5", processes=1)
    frames, states = pq.read_table(tmp_path / "frames.parquet").to_pandas(), StatesFile(tmp_path / "states.hdf5")
    for number, name in enumerate(states.names):
        rows, simulation = frames[frames["episode"] == number], Simulation(params, number)
        assert simulation.mjcf == states.episode(name).mjcf
        for qpos, (_, row) in zip(states.episode(name).qpos, rows.iterrows(), strict=True):
            np.testing.assert_array_equal(simulation.qpos(), qpos)
            np.testing.assert_array_equal(simulation.measure(), row["joints"])
            np.testing.assert_array_equal(simulation.expert(), row["actions"])
            np.testing.assert_array_equal(simulation.goal_position.astype(np.float32), row["goal_position"])
            simulation.apply(row["actions"])
            assert np.float32(simulation.reward()) == row["reward"]
        assert simulation.success() == rows["success"].iloc[0]


def test_noise_is_executed_and_not_recorded():
    params = PARAMS.model_copy(update={"steps": 4, "action_noise_rad": 0.02})
    quiet, noisy = simulate_episode(params.model_copy(update={"action_noise_rad": 0.0}), 0), simulate_episode(params, 0)
    assert (quiet.actions[:, ARM_JOINTS] == noisy.actions[:, ARM_JOINTS]).all()  # the script keeps to its path,
    strayed = np.abs(quiet.joints - noisy.joints)[1:]
    assert 0.002 < strayed[:, ARM_JOINTS].mean() < 0.03  # which the arms stray from, rad,
    assert strayed[:, [7, 15]].max() < 0.002  # but not the grippers


def test_the_rate_of_misses_changes_the_script_alone():
    one, other = (Simulation(PARAMS, 4, rate) for rate in (0.0, 1.0))
    assert one.mjcf == other.mjcf
    np.testing.assert_array_equal(one.qpos(), other.qpos())
    np.testing.assert_array_equal(one.measure(), other.measure())
    assert (one.expert() != other.expert()).any()


def test_actions_beyond_a_limit_are_clipped():
    far, limit = (Simulation(PARAMS, 0) for _ in range(2))
    low, high = limit._arms["left"].limits
    action = np.concatenate([high, [1], limit._arms["right"].limits[0], [0]])
    limit.apply(action)
    far.apply(action + np.concatenate([np.full(7, 9), [3], np.full(7, -9), [-2]]))
    np.testing.assert_array_equal(far.qpos(), limit.qpos())
    assert (low < high).all()


@pytest.mark.parametrize("action", [np.zeros(15), np.zeros((1, 16)), np.full(16, np.nan)])
def test_what_is_no_action_is_refused(action):
    with pytest.raises(UserError, match="16 finite numbers"):
        Simulation(PARAMS, 0).apply(action)


def test_cameras_see_what_is_rendered(tmp_path, monkeypatch):
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    params = SimulateParams(episodes=2, steps=3, action_noise_rad=0)
    simulate_demo(params, tmp_path / "frames.parquet", tmp_path / "states.hdf5", processes=1)
    render_demo(SMALL, tmp_path / "states.hdf5", tmp_path, processes=1)
    simulation = Simulation(params, 1)
    cameras, full = (EpisodeCameras(SMALL, 1, simulation.mjcf) for _ in range(2))
    readers = dict.fromkeys(FOLDERS, read_rgb) | {"depth": read_depth, "masks": read_mask}
    for frame_id in range(3, 6):
        views, everything = cameras.views(simulation.qpos()), full.everything(simulation.qpos())
        assert tuple(views) == CAMERAS
        for folder, read in readers.items():
            picture = read(tmp_path / folder / f"{frame_id:06d}.png")
            np.testing.assert_array_equal(everything[folder], picture)
            if folder.startswith("rgb/"):
                np.testing.assert_array_equal(views[folder.removeprefix("rgb/")], picture)
        simulation.apply(simulation.expert())
