"""The scripted policy of the demo: one arm grasps the ball and puts it on the plate, the other sways.

It uses no BLAS and no LAPACK: their last bits differ between processors, and contacts magnify them into other
trajectories. Small matrices are multiplied elementwise, and plain Python solves the six equations.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from sightline.demo.headless import mujoco
from sightline.demo.scene import FINGER_TRAVEL_M, JOINTS_PER_ARM, PLATE_TOP_M, SIDES, Scene

HOME_RAD = np.array([0.0, -0.25, 0.0, -2.2, 0.0, 1.95, 0.785])  # hand in front of the base, fingers down
MAX_TURN_RAD = 0.08  # of a joint per control step
HOVER_M = 0.14  # height above the grasp
FINGER_DEPTH_M = 0.035  # how far an object may rise above the grasp before it meets the palm
LOWEST_GRASP_M = 0.018  # above the table, so that the finger tips clear it


@dataclass(frozen=True)
class Leg:
    """A part of the script: where the fingers go, and when the next part begins."""

    at_plate: bool  # else at the ball
    height_m: float  # above the grasp
    gripper_open: bool
    near_m: float  # the next begins when the fingers are this near,
    steps: int  # or after so many


# No leg waits for a time of its own: what to do next can be told from where the arm, the ball and the plate are.
LEGS = (
    Leg(False, HOVER_M, True, 0.02, 20),
    Leg(False, 0.0, True, 0.008, 12),
    Leg(False, 0.0, False, 0.0, 4),
    Leg(False, HOVER_M, False, 0.03, 12),
    Leg(True, HOVER_M, False, 0.02, 15),
    Leg(True, 0.0, False, 0.01, 12),
    Leg(True, 0.0, True, 0.0, 3),
    Leg(True, HOVER_M, True, 0.0, 10_000),
)


class Arm:
    """Where one arm's numbers are in MuJoCo's arrays."""

    def __init__(self, model: Any, side: str) -> None:
        def joint(name: str) -> int:
            return mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_JOINT, f"{side}_{name}")

        joints = [joint(f"joint_{number}") for number in range(1, JOINTS_PER_ARM + 1)]
        self.qpos = model.jnt_qposadr[joints].copy()  # [7]
        self.dofs = model.jnt_dofadr[joints].copy()  # [7]
        self.limits = model.jnt_range[joints].T.copy()  # rad, [2, 7]
        self.low, self.high = self.limits[0] + 0.02, self.limits[1] - 0.02  # rad, [7], that the script keeps to
        self.finger = int(model.jnt_qposadr[joint("finger_1")])  # the second finger's is the next
        self.tcp = mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_SITE, f"{side}_tcp")
        first = SIDES.index(side) * (JOINTS_PER_ARM + 1)
        self.actuators = slice(first, first + JOINTS_PER_ARM + 1)


@dataclass(frozen=True)
class Task:
    """What one episode is about."""

    side: str  # the arm that works
    grasp_above_centre_m: float  # of the ball
    aim_error_m: np.ndarray  # [2], horizontal
    sway_rad: np.ndarray  # [7], amplitude of the idle arm
    plate: np.ndarray  # [3], m, centre of its flat part


def draw_task(rng: np.random.Generator, scene: Scene, miss_rate: float, aim_error_m: float) -> Task:
    """How the ball is put on the plate; with probability ``miss_rate`` the aim has a normal error of that sigma."""
    error, misses = rng.normal(0, 1, 2) * aim_error_m, rng.random() < miss_rate
    return Task(
        side=scene.side,
        grasp_above_centre_m=max(0.0, scene.objects[0].half_height - FINGER_DEPTH_M),
        aim_error_m=error if misses else np.zeros(2),
        sway_rad=rng.uniform(-0.12, 0.12, JOINTS_PER_ARM),
        plate=np.array([*scene.plate, PLATE_TOP_M]),
    )


class Policy:
    """Commands for both arms, one control step after another.

    Args:
        model: the compiled scene.
        task: what to do.
        arms: side -> `Arm`.
        start_rad: side -> joint angles [7] at the start.
        steps: length of the episode, in which the other arm sways once.
    """

    def __init__(
        self, model: Any, task: Task, arms: dict[str, Arm], start_rad: dict[str, np.ndarray], steps: int
    ) -> None:
        self.model, self.task, self.arms, self.steps = model, task, arms, steps
        self._angles, self._idle = start_rad[task.side], "right" if task.side == "left" else "left"
        self._grasp, self._target = np.zeros(3), np.full(3, np.inf)
        self._scratch = mujoco.MjData(model)  # for kinematics at other angles than the present
        self._step = self._leg = self._leg_steps = 0

    def command(self, ball: np.ndarray, fingers: np.ndarray) -> dict[str, np.ndarray]:
        """Side -> seven joint angles (rad) and one finger opening (m), [8], for ball and fingers seen at [3] (m)."""
        task, leg = self.task, LEGS[self._leg]
        if math.dist(fingers, self._target) < leg.near_m or self._leg_steps == leg.steps:
            self._leg, self._leg_steps = self._leg + 1, 0
            leg = LEGS[self._leg]
        if leg.gripper_open and not leg.at_plate:  # from then on the hand stays where it closed
            height = max(float(ball[2]) + task.grasp_above_centre_m, LOWEST_GRASP_M)
            self._grasp = np.array([*(ball[:2] + task.aim_error_m), height])
        place = np.array([*task.plate[:2], self._grasp[2] + PLATE_TOP_M]) if leg.at_plate else self._grasp
        self._target = place + np.array([0, 0, 0.004 + leg.height_m])
        arm, angles = self.arms[task.side], self._angles
        turn = inverse_kinematics(self.model, self._scratch, arm, angles, self._target) - angles
        self._angles = np.round(angles + turn * min(1.0, MAX_TURN_RAD / (float(np.abs(turn).max()) + 1e-9)), 7)
        idle = np.round(HOME_RAD + task.sway_rad * math.sin(2 * math.pi * self._step / self.steps), 7)
        self._step, self._leg_steps = self._step + 1, self._leg_steps + 1
        opening = FINGER_TRAVEL_M if leg.gripper_open else 0.0
        return {task.side: np.append(self._angles, opening), self._idle: np.append(idle, FINGER_TRAVEL_M)}


def inverse_kinematics(
    model: Any, scratch: Any, arm: Arm, angles: np.ndarray, target: np.ndarray, iterations: int = 10
) -> np.ndarray:
    """Joint angles [7] that bring the fingers to ``target`` [3] (m), pointing down.

    Damped least squares from ``angles``, with a pull towards `HOME_RAD` in the null space of the task.
    """
    jacobian_pos, jacobian_rot = np.zeros((3, model.nv)), np.zeros((3, model.nv))
    wanted_axes = np.diag([1.0, -1.0, -1.0])
    for _ in range(iterations):
        scratch.qpos[arm.qpos] = angles
        mujoco.mj_kinematics(model, scratch)
        mujoco.mj_comPos(model, scratch)
        mujoco.mj_jacSite(model, scratch, jacobian_pos, jacobian_rot, arm.tcp)
        J = np.vstack([jacobian_pos, jacobian_rot])[:, arm.dofs]  # [6, 7]
        axes = scratch.site_xmat[arm.tcp].reshape(3, 3)
        turn = 0.5 * sum(np.cross(axes[:, i], wanted_axes[:, i]) for i in range(3))
        error = np.concatenate([np.clip(target - scratch.site_xpos[arm.tcp], -0.08, 0.08), np.clip(turn, -0.4, 0.4)])
        homing = 0.05 * (HOME_RAD - angles)
        normal_matrix = (J[:, None, :] * J[None, :, :]).sum(2) + 1e-3 * np.eye(6)  # J J^T, damped
        weights = solve(normal_matrix, error - (J * homing).sum(1))  # [6]
        angles = np.clip(angles + (J * weights[:, None]).sum(0) + homing, arm.low, arm.high)
    return angles


def solve(matrix: np.ndarray, vector: np.ndarray) -> np.ndarray:
    """Solve ``matrix`` [n, n] (symmetric, positive definite) times x = ``vector`` [n] by Gaussian elimination."""
    rows = [[*map(float, row), float(value)] for row, value in zip(matrix, vector, strict=True)]
    n = len(rows)
    for i in range(n):
        for k in range(i + 1, n):
            factor = rows[k][i] / rows[i][i]
            rows[k] = [value - factor * pivot for value, pivot in zip(rows[k], rows[i], strict=True)]
    x = [0.0] * n
    for i in reversed(range(n)):
        x[i] = (rows[i][n] - sum(rows[i][c] * x[c] for c in range(i + 1, n))) / rows[i][i]
    return np.array(x)
