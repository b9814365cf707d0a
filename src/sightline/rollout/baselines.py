"""Drivers that need no network: what a policy's success is compared with."""

from collections.abc import Callable

import numpy as np

from sightline.demo.simulate import Simulation
from sightline.fusion.acting import ActionQueue, Observation
from sightline.fusion.chunks import chunk_rows
from sightline.fusion.linear import LinearChunks, fit_linear
from sightline.fusion.views import Views, square_view


class Expert:
    """The script that made the demonstrations, without its deliberate misses; it is told where ball and plate are."""

    def __init__(self, simulation: Simulation) -> None:
        self.simulation = simulation

    def reset(self) -> None:
        """Nothing to forget: an expert is of one episode."""

    def act(self, _: Observation) -> np.ndarray:
        """The script's next action."""
        return self.simulation.expert()


class Hold:
    """Stays at the first joints."""

    def reset(self) -> None:
        """Begin a new episode."""
        self._first: np.ndarray | None = None

    def act(self, observation: Observation) -> np.ndarray:
        """The joints of the first frame."""
        if self._first is None:
            self._first = observation["joints"]
        return self._first


class Replay:
    """Repeats the training episode whose first observation is nearest, and then its last action.

    Distances are means over the joints and over the pixels of all views, of squared differences in units of the
    variance between the first observations: each joint in its own, pixels in that of all pixels.
    """

    def __init__(self, views: Views) -> None:
        self._views, train = views, views.rows("train")
        _, places = np.unique(views.episode[train], return_index=True)
        self._firsts = train[places]  # rows of the first frame of each training episode
        self._pictures = views.images[self._firsts].astype(np.float32)  # (E, V, 3, S, S)
        self._joints = views.joints[self._firsts]
        spread, variance = self._joints.var(0), float(self._pictures.var(0).mean()) if views.cameras else 0.0
        self._joint_unit = np.where(spread > 0, spread, np.inf)
        self._pixel_unit = variance if variance > 0 else np.inf

    def reset(self) -> None:
        """Begin a new episode."""
        self._actions: np.ndarray | None = None
        self._frame = 0

    def act(self, observation: Observation) -> np.ndarray:
        """The recorded action of this frame."""
        if self._actions is None:
            first = self._firsts[np.argmin(self._distances(observation))]
            self._actions = self._views.actions[first:][self._views.episode[first:] == self._views.episode[first]]
        action: np.ndarray = self._actions[min(self._frame, len(self._actions) - 1)]
        self._frame += 1
        return action

    def _distances(self, observation: Observation) -> np.ndarray:
        """From the first observation of each training episode, [E]."""
        views = self._views
        of_joints: np.ndarray = (np.square(self._joints - observation["joints"]) / self._joint_unit).mean(1)
        if not views.cameras:
            return of_joints
        size, pictures = views.images.shape[-1], observation["images"]
        seen = np.stack([square_view(pictures[camera], size, views.fit) for camera in views.cameras])
        return of_joints + [np.square(first - seen).mean() / self._pixel_unit for first in self._pictures]


class Linear:
    """A linear map of the joints to a chunk of actions, which becomes actions as a policy's chunks do."""

    def __init__(self, chunks: Callable[[np.ndarray], np.ndarray], queue: ActionQueue) -> None:
        self._chunks, self._queue = chunks, queue

    def reset(self) -> None:
        """Begin a new episode."""
        self._queue.reset()

    def act(self, observation: Observation) -> np.ndarray:
        """The action of this frame."""
        return self._queue.next(lambda: self._chunks(observation["joints"][None])[0].astype(np.float32))


def fit_to(views: Views, steps: int, stride: int) -> LinearChunks:
    """The linear map of the training episodes, as in the evaluation of a fusion model."""
    ahead, inside = chunk_rows(views.episode, steps, stride)
    train = np.flatnonzero(views.split == "train")
    return fit_linear(views.joints, views.actions, ahead, inside, train, views.rows("val"))
