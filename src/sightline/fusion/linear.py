"""A chunk of actions as a linear function of the joints: a baseline, and what a fusion model starts from.

Ridge regression in closed form, separately for each step of the chunk. Where there is an action for each joint, it fits
the difference from the joints, so that the penalty draws towards "stay" and not towards the mean action.
"""

from dataclasses import dataclass

import numpy as np

STRENGTHS = tuple(10.0**k for k in range(-5, 3))  # of the penalty, as a share of the number of chunks


@dataclass(frozen=True)
class LinearChunks:
    """chunk [H, A] = (joints if ``holds``) + (joints - mean) / scale @ weight + bias, in data units.

    Attributes:
        weight: [H, J, A].
        bias: [H, A].
        mean, scale: of the joints in training, [J]; the scale of a joint that does not move is 1, its weights are 0.
        strength: of the penalty.
    """

    weight: np.ndarray
    bias: np.ndarray
    mean: np.ndarray
    scale: np.ndarray
    holds: bool
    strength: float

    def __call__(self, joints_NJ: np.ndarray) -> np.ndarray:
        """Chunks [N, H, A] of joints in data units."""
        chunks_NHA = np.einsum("nj,hja->nha", (joints_NJ - self.mean) / self.scale, self.weight) + self.bias
        return chunks_NHA + joints_NJ[:, None] if self.holds else chunks_NHA


def fit_linear(
    joints_NJ: np.ndarray, actions_NA: np.ndarray, ahead_NH: np.ndarray, inside_NH: np.ndarray, train: np.ndarray,
    val: np.ndarray, strengths: tuple[float, ...] = STRENGTHS,
) -> LinearChunks:  # fmt: skip
    """Fit to the chunks of the rows ``train``, with the penalty whose error on the rows ``val`` is least.

    Errors are squares in units of the training actions' variance, over the steps within an episode.

    Args:
        ahead_NH, inside_NH: see `sightline.fusion.chunks.chunk_rows`.
    """
    joints, actions = joints_NJ.astype(np.float64), actions_NA.astype(np.float64)
    spread = actions[train].std(0)
    unit = np.where(spread > 0, spread, np.inf)  # what does not move does not count
    fits = (_fit(joints, actions, ahead_NH, inside_NH, train, strength) for strength in strengths)

    def error(fit: LinearChunks) -> float:
        squares_VH = np.square((fit(joints[val]) - actions[ahead_NH[val]]) / unit).mean(2)
        return float((squares_VH * inside_NH[val]).sum())

    return min(fits, key=error)


def _fit(
    joints: np.ndarray, actions: np.ndarray, ahead_NH: np.ndarray, inside_NH: np.ndarray, train: np.ndarray,
    strength: float,
) -> LinearChunks:  # fmt: skip
    mean, scale = joints[train].mean(0), joints[train].std(0)
    moves = scale > 1e-3 * scale.max()
    scale = np.where(moves, scale, 1.0)
    holds, steps = joints.shape[1] == actions.shape[1], ahead_NH.shape[1]
    weight, bias = np.zeros((steps, joints.shape[1], actions.shape[1])), np.zeros((steps, actions.shape[1]))
    for step in range(steps):
        rows = train[inside_NH[train, step]]
        if not len(rows):  # no training episode is that long
            weight[step], bias[step] = weight[step - 1], bias[step - 1]
            continue
        seen = np.where(moves, (joints[rows] - mean) / scale, 0.0)
        wanted = actions[ahead_NH[rows, step]] - (joints[rows] if holds else 0.0)
        middle, centre = seen.mean(0), wanted.mean(0)
        seen, wanted = seen - middle, wanted - centre
        penalty = strength * len(rows) * np.eye(len(mean))
        weight[step] = np.linalg.solve(seen.T @ seen + penalty, seen.T @ wanted)
        bias[step] = centre - middle @ weight[step]
    return LinearChunks(weight, bias, mean, scale, holds, strength)
