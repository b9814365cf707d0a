"""Physics of the demo: episodes in which an arm puts a ball on a plate, written as frames and states.

An episode depends only on (seed, episode number), not on other episodes or on the number of processes. To give the same
trajectories on every processor, the state is rounded after every control step: that removes last-bit differences
between mathematics libraries before contacts can magnify them.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from sightline.core.errors import UserError
from sightline.core.files import atomic_output
from sightline.core.parallel import unordered_map
from sightline.core.params import Section
from sightline.demo.control import HOME_RAD, Arm, Policy, draw_task
from sightline.demo.headless import mujoco
from sightline.demo.scene import (
    FINGER_TRAVEL_M,
    JOINTS_PER_ARM,
    PHYSICS_STEP_S,
    PLATE_RADIUS_M,
    SIDES,
    draw_scene,
    scene_xml,
)
from sightline.demo.states import EpisodeStates, write_states

FPS = 10
PHYSICS_STEPS = round(1 / (FPS * PHYSICS_STEP_S))  # per control step
JOINTS = tuple(
    f"{side}_{joint}" for side in SIDES for joint in (*(f"joint_{i}" for i in range(1, JOINTS_PER_ARM + 1)), "gripper")
)
ENCODER_NOISE_RAD = 5e-4
MEMORY = 0.7  # share of the noise of a command that the next step keeps
TASK = "put the ball on the plate"
REST_M_S, OPEN, ON_PLATE_M = 0.02, 0.9, 0.01  # success: slower, wider open, and not higher above the plate than this


class SimulateParams(Section):
    """What happens in the simulated recording; it is made only while data.root is data/demo."""

    seed: int = Field(0, ge=0, description="scenes, tasks and joint noise")
    episodes: int = Field(96, ge=1, le=100_000, description="number of episodes")
    steps: int = Field(50, ge=1, le=10_000, description="frames per episode, at 10 Hz; the task needs about 50")
    miss_rate: float = Field(
        0.1, ge=0, le=1, description="share of episodes with an aim that is off, so that some fail"
    )
    aim_error_m: float = Field(0.045, ge=0, le=0.5, description="sigma of that error on each axis, metres")
    action_noise_rad: float = Field(
        0.015, ge=0, le=0.5, description="sigma of noise on what the arms execute, not on the recorded actions, rad"
    )


@dataclass(frozen=True)
class Episode:
    """What one simulated episode leaves: per frame [steps, ...], and whether the ball ended on the plate."""

    mjcf: str
    qpos: np.ndarray  # [steps, nq]
    joints: np.ndarray  # float32 [steps, 16], rad, grippers 0 (closed) to 1 (open)
    actions: np.ndarray  # float32 [steps, 16], commanded joints, same units
    object_position: np.ndarray  # [steps, 3], m, world frame: centre of the ball
    goal_position: np.ndarray  # [3], m, world frame: centre of the plate
    gripper_position: np.ndarray  # [steps, 3], m, world frame: between the fingers of the arm that works
    contact: np.ndarray  # bool [steps]: whether a finger of that arm touches the ball
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
    """Simulate episode ``number`` of the recording that ``params`` describe, with the scripted policy."""
    simulation, disturbances = Simulation(params, number), _disturbances(params, number)
    qpos, joints, actions, positions, grippers, contacts, rewards = [], [], [], [], [], [], []
    for _ in range(params.steps):
        qpos.append(simulation.qpos())
        joints.append(simulation.measure())
        positions.append(simulation.object_position)
        grippers.append(simulation.gripper_position)
        contacts.append(simulation.contact())
        actions.append(simulation.expert())
        simulation.apply(actions[-1] + next(disturbances))
        rewards.append(simulation.reward())
    return Episode(
        simulation.mjcf, np.stack(qpos), np.stack(joints), np.stack(actions), np.stack(positions),
        simulation.goal_position, np.stack(grippers), np.array(contacts), np.array(rewards), simulation.success(),
    )  # fmt: skip


def _disturbances(params: SimulateParams, number: int) -> Iterator[np.ndarray]:
    """What is added to the commands of each control step, [16]: smooth noise on the arms, none on the grippers.

    So the recording shows how to come back to the path from beside it (Laskey et al., "DART: Noise Injection for Robust
    Imitation Learning", 2017, arXiv:1703.09327).
    """
    rng, of_arms = np.random.default_rng([params.seed, number, 2]), np.tile([1.0] * JOINTS_PER_ARM + [0.0], len(SIDES))
    share = np.sqrt(1 - MEMORY**2)
    noise = rng.normal(0, params.action_noise_rad, len(JOINTS))
    while True:
        yield noise * of_arms
        noise = MEMORY * noise + share * rng.normal(0, params.action_noise_rad, len(JOINTS))


class Simulation:
    """One episode, step by step: `measure`, decide (`expert`, or any other policy), `apply`.

    The scene and the start depend on ``(params.seed, number)`` alone; what follows, on the actions: the same ones lead
    through the same states, bit for bit.

    Args:
        params: what the recording is like.
        number: of the episode.
        miss_rate: probability that `expert` misses; None takes that of ``params``. It changes nothing else.

    Attributes:
        mjcf: the scene, MJCF text.
        steps: of an episode.
        goal_position: [3], m, world frame: centre of the plate.
    """

    def __init__(self, params: SimulateParams, number: int, miss_rate: float | None = None) -> None:
        rng, self._noise = (np.random.default_rng([params.seed, number, stream]) for stream in (0, 1))
        scene = draw_scene(rng)
        self.mjcf, self.steps = scene_xml(scene), params.steps
        self._model = mujoco.MjModel.from_xml_string(self.mjcf)
        self._data = mujoco.MjData(self._model)
        self._arms = {side: Arm(self._model, side) for side in SIDES}
        start = {side: HOME_RAD + rng.normal(0, 0.06, JOINTS_PER_ARM) for side in SIDES}
        misses = params.miss_rate if miss_rate is None else miss_rate
        task = draw_task(rng, scene, misses, params.aim_error_m)
        self.goal_position, self._side, self._ball_radius = task.plate, task.side, scene.objects[0].radius
        self._ball = mujoco.mj_name2id(self._model, mujoco.mjtObj.mjOBJ_BODY, "object0")
        self._expert = Policy(self._model, task, self._arms, start, params.steps)
        self._settle(start)

    def qpos(self) -> np.ndarray:
        """MuJoCo's positions of everything, [nq]."""
        return np.array(self._data.qpos)

    @property
    def object_position(self) -> np.ndarray:
        """Centre of the ball, [3], m, world frame."""
        return np.array(self._data.xpos[self._ball])

    @property
    def gripper_position(self) -> np.ndarray:
        """The point between the fingers of the arm that works, [3], m, world frame."""
        return np.array(self._data.site_xpos[self._arms[self._side].tcp])

    def contact(self) -> bool:
        """Whether a finger of the arm that works touches the ball."""
        fingers = [
            mujoco.mj_name2id(self._model, mujoco.mjtObj.mjOBJ_JOINT, f"{self._side}_finger_{n}") for n in (1, 2)
        ]
        pairs = self._model.geom_bodyid[self._data.contact.geom]  # (contacts, 2)
        with_ball = pairs[(pairs == self._ball).any(axis=1)]
        return bool(np.isin(with_ball, self._model.jnt_bodyid[fingers]).any())

    def measure(self) -> np.ndarray:
        """Joint states as encoders read them, float32 [16]: rad, grippers 0 (closed) to 1 (open), with new noise."""
        parts = []
        for arm in self._arms.values():
            angles = self._data.qpos[arm.qpos] + self._noise.normal(0, ENCODER_NOISE_RAD, JOINTS_PER_ARM)
            parts.append(np.append(angles, self._data.qpos[arm.finger] / FINGER_TRAVEL_M))
        return np.concatenate(parts).astype(np.float32)

    def expert(self) -> np.ndarray:
        """The scripted policy's action for its next step, float32 [16]; call it once in a control step."""
        command = self._expert.command(self.object_position, self.gripper_position)
        parts = [np.append(command[side][:-1], command[side][-1] / FINGER_TRAVEL_M) for side in SIDES]
        return np.concatenate(parts).astype(np.float32)

    def apply(self, action: np.ndarray) -> None:
        """Command joints [16] (rad, grippers 0 to 1; what exceeds a limit is clipped), and pass one control step.

        Numbers are first rounded to float32, the precision of a recording.

        Raises:
            UserError: another number of values, or one that is not finite.
        """
        action = np.asarray(action, np.float32).astype(np.float64)
        if action.shape != (len(JOINTS),) or not np.isfinite(action).all():
            raise UserError(f"an action of the demo is {len(JOINTS)} finite numbers, not {action.tolist()}")
        for command, arm in zip(np.split(action, len(SIDES)), self._arms.values(), strict=True):
            opening = np.clip(command[-1], 0, 1) * FINGER_TRAVEL_M
            self._data.ctrl[arm.actuators] = np.append(np.clip(command[:-1], *arm.limits), opening)
        self._advance(PHYSICS_STEPS)

    def reward(self) -> float:
        """1 on the plate; elsewhere below 0, the nearer the better: the fingers to the ball, the ball to the plate."""
        if self.success():
            return 1.0
        ball = self.object_position
        return -math.dist(ball, self.goal_position) - 0.5 * math.dist(self.gripper_position, ball)

    def success(self) -> bool:
        """Whether the ball now lies on the plate, at rest, and both grippers are open."""
        x, y, height = self.object_position - self.goal_position
        velocity = self._data.qvel[self._model.body_dofadr[self._ball] :][:3]
        opening = min(self._data.qpos[arm.finger] for arm in self._arms.values())
        return bool(
            math.hypot(x, y) < PLATE_RADIUS_M
            and height - self._ball_radius < ON_PLATE_M
            and math.hypot(*velocity) < REST_M_S
            and opening > OPEN * FINGER_TRAVEL_M
        )

    def _settle(self, start_rad: dict[str, np.ndarray]) -> None:
        """Put the arms at their start with open grippers, and let the objects come to rest."""
        for side, arm in self._arms.items():
            self._data.qpos[arm.qpos] = start_rad[side]
            self._data.qpos[arm.finger : arm.finger + 2] = FINGER_TRAVEL_M
            self._data.ctrl[arm.actuators] = np.append(start_rad[side], FINGER_TRAVEL_M)
        self._advance(100)

    def _advance(self, physics_steps: int) -> None:
        data = self._data
        mujoco.mj_step(self._model, data, physics_steps)
        data.qpos, data.qvel, data.qacc_warmstart = np.round(data.qpos, 7), np.round(data.qvel, 6), 0
        mujoco.mj_forward(self._model, data)  # poses lag behind after a physics step


def _frames_table(episodes: list[Episode], frame_ids: np.ndarray) -> pa.Table:
    """One row per frame; ``frame_ids`` [episodes, steps]."""
    count, steps = frame_ids.shape

    def vectors(values: list[np.ndarray]) -> pa.Array:
        flat = np.concatenate(values).astype(np.float32).ravel()
        return pa.FixedSizeListArray.from_arrays(pa.array(flat), values[0].shape[1])

    goals = [np.repeat(episode.goal_position[None], steps, 0) for episode in episodes]

    return pa.table(
        {
            "frame_id": frame_ids.ravel(),
            "episode": np.repeat(np.arange(count), steps),
            "step": np.tile(np.arange(steps), count),
            "time_s": np.tile(np.arange(steps) / FPS, count),
            "joints": vectors([episode.joints for episode in episodes]),
            "actions": vectors([episode.actions for episode in episodes]),
            "object_position": vectors([episode.object_position for episode in episodes]),
            "goal_position": vectors(goals),
            "gripper_position": vectors([episode.gripper_position for episode in episodes]),
            "contact": np.concatenate([episode.contact for episode in episodes]),
            "task": pa.array([TASK] * frame_ids.size),
            "reward": np.concatenate([episode.reward for episode in episodes]).astype(np.float32),
            "success": np.repeat([episode.success for episode in episodes], steps),
        }
    )
