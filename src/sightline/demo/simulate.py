"""Physics of the demo: episodes of reaching, grasping and lifting, written as frames and states.

An episode depends only on (seed, episode number), not on other episodes or on the number of processes. To give the same
trajectories on every processor, the state is rounded after every control step: that removes last-bit differences
between mathematics libraries before contacts can magnify them.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from sightline.core.files import atomic_output
from sightline.core.parallel import unordered_map
from sightline.core.params import Section
from sightline.demo.control import HOME_RAD, Arm, Policy, draw_task
from sightline.demo.headless import mujoco
from sightline.demo.scene import FINGER_TRAVEL_M, JOINTS_PER_ARM, PHYSICS_STEP_S, SIDES, draw_objects, scene_xml
from sightline.demo.states import EpisodeStates, write_states

FPS = 10
PHYSICS_STEPS = round(1 / (FPS * PHYSICS_STEP_S))  # per control step
JOINTS = tuple(
    f"{side}_{joint}" for side in SIDES for joint in (*(f"joint_{i}" for i in range(1, JOINTS_PER_ARM + 1)), "gripper")
)
ENCODER_NOISE_RAD = 5e-4
LIFTED_M, HELD_M = 0.06, 0.07  # success: the object ends this much higher, and this near to the fingers


class SimulateParams(Section):
    """What happens in the simulated recording; it is made only while data.root is data/demo."""

    seed: int = Field(0, ge=0, description="scenes, tasks and joint noise")
    episodes: int = Field(24, ge=1, le=100_000, description="number of episodes")
    steps: int = Field(40, ge=1, le=10_000, description="frames per episode, at 10 Hz; a lift needs about 40")
    miss_rate: float = Field(0.4, ge=0, le=1, description="share of episodes whose aim is off, so that some fail")
    aim_error_m: float = Field(0.045, ge=0, le=0.5, description="sigma of that error on each axis, metres")


@dataclass(frozen=True)
class Episode:
    """What one simulated episode leaves: per frame [steps, ...], and whether the object was lifted."""

    mjcf: str
    qpos: np.ndarray  # [steps, nq]
    joints: np.ndarray  # [steps, 16], rad, grippers 0 (closed) to 1 (open)
    actions: np.ndarray  # [steps, 16], commanded joints, same units
    object_position: np.ndarray  # [steps, 3], m, world frame: centre of the object that is reached for
    reward: np.ndarray  # [steps]
    success: bool


def simulate_demo(params: SimulateParams, frames_path: Path, states_path: Path, processes: int | None = None) -> None:
    """Simulate all episodes; the files' bytes depend on ``params`` alone.

    Args:
        frames_path: parquet file to write, one row per frame, as a recording has it.
        states_path: HDF5 file to write, for `sightline.demo.render`.
        processes: how many episodes to simulate at a time; None means one per CPU.

    Raises:
        UserError: fewer than one process, or a path that cannot be written.
    """
    jobs = [((params, number), params.steps) for number in range(params.episodes)]
    frames = params.episodes * params.steps
    done = unordered_map(_simulate_job, jobs, total=frames, unit="frame", title="simulate", processes=processes)
    episodes = [episode for _, episode in sorted(done, key=lambda numbered: numbered[0])]
    frame_ids = np.arange(frames).reshape(params.episodes, params.steps)
    states = [EpisodeStates(e.mjcf, ids, e.qpos) for e, ids in zip(episodes, frame_ids, strict=True)]
    with atomic_output(frames_path) as frames_file, atomic_output(states_path) as states_file:
        pq.write_table(_frames_table(episodes, frame_ids), frames_file)
        write_states(states_file, states, FPS, JOINTS)


def _simulate_job(job: tuple[SimulateParams, int]) -> tuple[int, Episode]:
    params, number = job
    return number, simulate_episode(params, number)


def simulate_episode(params: SimulateParams, number: int) -> Episode:
    """Simulate episode ``number`` of the recording that ``params`` describe."""
    # draw the scene and the task
    rng, noise = (np.random.default_rng([params.seed, number, stream]) for stream in (0, 1))
    objects = draw_objects(rng)
    mjcf = scene_xml(objects)
    model = mujoco.MjModel.from_xml_string(mjcf)
    data = mujoco.MjData(model)
    arms = {side: Arm(model, side) for side in SIDES}
    start = {side: HOME_RAD + rng.normal(0, 0.06, JOINTS_PER_ARM) for side in SIDES}
    task = draw_task(rng, objects, params.miss_rate, params.aim_error_m)
    _settle(model, data, arms, start)

    # in each step: measure, decide, record, and move the physics on
    policy = Policy(model, task, arms, start, params.steps)
    target = mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_BODY, f"object{task.target}")
    start_height = float(data.xpos[target, 2])
    qpos, joints, actions, positions, rewards = [], [], [], [], []
    lifted = away = 0.0
    for step in range(params.steps):
        mujoco.mj_forward(model, data)  # poses lag behind after a physics step
        qpos.append(data.qpos.copy())
        joints.append(_measure_joints(data, arms, noise))
        positions.append(data.xpos[target].copy())
        command = policy.command(step, data.xpos[target].copy())
        actions.append(np.concatenate([_with_relative_gripper(command[side]) for side in SIDES]))
        for side, arm in arms.items():
            data.ctrl[arm.actuators] = command[side]
        _advance(model, data, PHYSICS_STEPS)
        lifted = float(data.xpos[target, 2]) - start_height
        away = math.dist(data.site_xpos[arms[task.side].tcp], data.xpos[target]) - task.grasp_above_centre_m
        rewards.append(5 * min(max(lifted, 0), 0.2) - away)  # near is good, high is better
    # judged by the end of the episode
    success = lifted > LIFTED_M and away < HELD_M
    return Episode(
        mjcf, np.stack(qpos), np.stack(joints), np.stack(actions), np.stack(positions), np.array(rewards), success
    )


def _settle(model: Any, data: Any, arms: dict[str, Arm], start_rad: dict[str, np.ndarray]) -> None:
    """Put the arms at their start with open grippers, and let the objects come to rest."""
    for side, arm in arms.items():
        data.qpos[arm.qpos] = start_rad[side]
        data.qpos[arm.finger : arm.finger + 2] = FINGER_TRAVEL_M
        data.ctrl[arm.actuators] = np.append(start_rad[side], FINGER_TRAVEL_M)
    _advance(model, data, 100)
    mujoco.mj_forward(model, data)


def _advance(model: Any, data: Any, physics_steps: int) -> None:
    mujoco.mj_step(model, data, physics_steps)
    data.qpos, data.qvel, data.qacc_warmstart = np.round(data.qpos, 7), np.round(data.qvel, 6), 0


def _measure_joints(data: Any, arms: dict[str, Arm], noise: np.random.Generator) -> np.ndarray:
    """Joint states [16] as encoders read them (rad), each arm's gripper last: 0 closed, 1 open."""
    parts = []
    for arm in arms.values():
        angles = data.qpos[arm.qpos] + noise.normal(0, ENCODER_NOISE_RAD, JOINTS_PER_ARM)
        parts.append(_with_relative_gripper(np.append(angles, data.qpos[arm.finger])))
    return np.concatenate(parts)


def _with_relative_gripper(arm_state: np.ndarray) -> np.ndarray:
    """[8] with the last number a finger opening in metres -> the same with an opening from 0 to 1."""
    return np.append(arm_state[:-1], arm_state[-1] / FINGER_TRAVEL_M)


def _frames_table(episodes: list[Episode], frame_ids: np.ndarray) -> pa.Table:
    """One row per frame; ``frame_ids`` [episodes, steps]."""
    count, steps = frame_ids.shape

    def vectors(values: list[np.ndarray]) -> pa.Array:
        flat = np.concatenate(values).astype(np.float32).ravel()
        return pa.FixedSizeListArray.from_arrays(pa.array(flat), values[0].shape[1])

    return pa.table(
        {
            "frame_id": frame_ids.ravel(),
            "episode": np.repeat(np.arange(count), steps),
            "step": np.tile(np.arange(steps), count),
            "time_s": np.tile(np.arange(steps) / FPS, count),
            "joints": vectors([episode.joints for episode in episodes]),
            "actions": vectors([episode.actions for episode in episodes]),
            "object_position": vectors([episode.object_position for episode in episodes]),
            "reward": np.concatenate([episode.reward for episode in episodes]).astype(np.float32),
            "success": np.repeat([episode.success for episode in episodes], steps),
        }
    )
