"""A driver and a scene in a loop: observe, decide, act, until the task is done or time is over."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np

from sightline.demo.render import CAMERAS, EpisodeCameras, RenderParams
from sightline.demo.simulate import SimulateParams, Simulation
from sightline.fusion.acting import Observation


class Driver(Protocol):
    """What drives the robot; `sightline.fusion.Policy` is one."""

    def reset(self) -> None:
        """Begin a new episode."""

    def act(self, observation: Observation) -> np.ndarray:
        """The action of this frame."""


class Pictures(Mapping[str, np.ndarray]):
    """Camera -> picture of one frame, rendered when the first is asked for: most frames of most drivers need none."""

    def __init__(self, render: Callable[[], dict[str, np.ndarray]]) -> None:
        self._render, self._pictures = render, dict[str, np.ndarray]()

    def __getitem__(self, camera: str) -> np.ndarray:
        if camera in CAMERAS and not self._pictures:
            self._pictures = self._render()
        return self._pictures[camera]

    def __contains__(self, camera: object) -> bool:
        return camera in CAMERAS

    def __iter__(self) -> Iterator[str]:
        return iter(CAMERAS)

    def __len__(self) -> int:
        return len(CAMERAS)


class Scene:
    """A simulated scene with its cameras, as a driver meets it.

    Args:
        simulate, render: what the recording is like that the driver learnt from.
        number: of the episode; the first that no recording has is `sightline.rollout.rollouts.FIRST_SCENE`.
    """

    def __init__(self, simulate: SimulateParams, render: RenderParams, number: int) -> None:
        self.simulation = Simulation(simulate, number, miss_rate=0.0)
        self._render, self._number = render, number

    @cached_property
    def _cameras(self) -> EpisodeCameras:
        return EpisodeCameras(self._render, self._number, self.simulation.mjcf)

    def observe(self) -> Observation:
        """Pictures and joints of this frame, as `sightline.fusion.Policy.act` takes them."""
        qpos = self.simulation.qpos()
        return {"images": Pictures(lambda: self._cameras.views(qpos)), "joints": self.simulation.measure()}

    def distance_mm(self) -> float:
        """From the ball to the plate, horizontally, between the centres."""
        (x, y, _), (a, b, _) = self.simulation.object_position, self.simulation.goal_position
        return 1e3 * math.hypot(x - a, y - b)


@dataclass(frozen=True)
class Outcome:
    """How a driver fared in a scene.

    Attributes:
        success: the task was done within the time.
        frames: that it took.
        distance_mm: from the ball to the plate at the end.
        qpos: MuJoCo's positions at every frame and after the last, [frames + 1, nq].
    """

    success: bool
    frames: int
    distance_mm: float
    qpos: list[list[float]]


def drive(driver: Driver, scene: Scene, most_frames: int) -> Outcome:
    """Let ``driver`` act in ``scene`` until the task is done, for ``most_frames`` at most."""
    driver.reset()
    simulation, success, frame = scene.simulation, False, 0
    qpos = [simulation.qpos().tolist()]
    while frame < most_frames and not success:
        simulation.apply(driver.act(scene.observe()))
        success, frame = simulation.success(), frame + 1
        qpos.append(simulation.qpos().tolist())
    return Outcome(success, frame, scene.distance_mm(), qpos)
