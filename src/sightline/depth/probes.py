"""What codes tell of the world, on episodes that nothing was fitted on: linear probes, neighbours, and their intervals.

The frames of an episode are much alike, so that episodes are what the bootstrap draws: Efron, "Bootstrap Methods"
(1979). Differences of two codes are taken within a draw, because an episode that is hard for one is hard for both.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from sightline.training.probing import ALPHAS, Ridge, r_squared

NEIGHBOURS = 5
DRAWS, INTERVAL = 1000, (0.025, 0.975)
LINEAR = ("dct", "pca", "grid")  # codes without a network
Columns = Mapping[str, np.ndarray]  # column of the frames table -> float64 [N, J]


@dataclass(frozen=True)
class Told:
    """One column as a code tells it, in sums over the held-out frames of each of E episodes."""

    frames: np.ndarray  # [E]
    errors: np.ndarray  # [E], squared errors
    totals: np.ndarray  # [E, J], values
    squares: np.ndarray  # [E], squared values

    @classmethod
    def of(cls, predicted_MJ: np.ndarray, y_MJ: np.ndarray, episode_M: np.ndarray) -> "Told":
        """Sum up predictions and values."""
        episodes = (np.unique(episode_M)[:, None] == episode_M).astype(float)  # (E, M)
        squared, y_MJ = np.square(predicted_MJ - y_MJ).sum(axis=1), y_MJ - y_MJ.mean(axis=0)
        return cls(episodes.sum(axis=1), episodes @ squared, episodes @ y_MJ, episodes @ np.square(y_MJ).sum(axis=1))

    def r2(self, counts_KE: np.ndarray) -> np.ndarray:
        """R2 [K] over all targets together, with each episode as often as a row says; 0 where nothing varies."""
        sums = counts_KE @ self.totals
        variance = counts_KE @ self.squares - np.square(sums).sum(axis=1) / np.maximum(counts_KE @ self.frames, 1)
        varies = variance > 1e-12
        return np.where(varies, 1 - counts_KE @ self.errors / np.where(varies, variance, 1), 0.0)


@dataclass(frozen=True)
class Frames:
    """Frames that a code is judged on: its numbers [N, D], what is to be told of them, and their episodes [N]."""

    code: np.ndarray
    columns: Columns
    episode: np.ndarray


def judge(fit: Frames, choose: Frames, held_out: Frames) -> dict[str, dict[str, Told | float]]:
    """For each column, what the code tells of the held-out frames.

    ``linear``: by ridge regression, fitted on ``fit``, with the penalty that is best on ``choose``, ``alpha``.
    ``neighbours``: the mean of the `NEIGHBOURS` frames of ``fit`` whose centred codes have the largest cosine.
    Targets count in units of their spread on ``fit``; those that do not move there (``targets`` do) are left out.
    """
    scaled: dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]] = {}
    for name, values in fit.columns.items():
        spread = values.std(axis=0)
        moving = spread > 1e-6
        if moving.any():
            all_three = (values, choose.columns[name], held_out.columns[name])
            fitted, chosen, held = (y[:, moving] / spread[moving] for y in all_three)
            scaled[name] = fitted, chosen, held
    if not scaled:
        return {}
    ends = np.cumsum([fitted.shape[1] for fitted, _, _ in scaled.values()])[:-1]
    together = np.concatenate([fitted for fitted, _, _ in scaled.values()], axis=1)
    ridge = Ridge(fit.code, together)  # one decomposition for all columns
    by_alpha = [np.split(ridge.predict(choose.code, alpha), ends, axis=1) for alpha in ALPHAS]
    near = np.split(together[_nearest(fit.code, held_out.code)].mean(axis=1), ends, axis=1)
    judged: dict[str, dict[str, Told | float]] = {}
    for i, (name, (fitted, chosen, held)) in enumerate(scaled.items()):
        best = int(np.argmax([r_squared(predicted[i], chosen) for predicted in by_alpha]))
        told = np.split(ridge.predict(held_out.code, ALPHAS[best]), ends, axis=1)[i]
        judged[name] = {
            "linear": Told.of(told, held, held_out.episode),
            "neighbours": Told.of(near[i], held, held_out.episode),
            "alpha": ALPHAS[best],
            "targets": fitted.shape[1],
        }
    return judged


def copied(values: Columns, held_out: Frames, spread: Columns) -> dict[str, dict[str, Told]]:
    """What is told by copying ``values``, a row for each held-out frame, in units of ``spread`` [J]."""
    judged = {}
    for name, copies in values.items():
        moving = spread[name] > 1e-6
        if moving.any():
            told, held = (y[:, moving] / spread[name][moving] for y in (copies, held_out.columns[name]))
            judged[name] = {"linear": Told.of(told, held, held_out.episode)}
    return judged


class Bootstrap:
    """Intervals of 95 % over episodes; the same draws for all codes. Of one episode there is none."""

    def __init__(self, episodes: int, seed: int = 0) -> None:
        self._all = np.ones((1, episodes))
        self._draws = np.random.default_rng(seed).multinomial(episodes, np.full(episodes, 1 / episodes), DRAWS)

    def r2(self, told: Told) -> dict[str, Any]:
        """``r2`` and ``r2_interval``."""
        return {"r2": float(told.r2(self._all)[0])} | self._interval("r2", told.r2(self._draws))

    def gain(self, told: Told, other: Told) -> dict[str, Any]:
        """How much larger R2 of ``told`` is: ``r2_gain`` and ``r2_gain_interval``."""
        gain = float((told.r2(self._all) - other.r2(self._all))[0])
        return {"r2_gain": gain} | self._interval("r2_gain", told.r2(self._draws) - other.r2(self._draws))

    def _interval(self, name: str, values_K: np.ndarray) -> dict[str, Any]:
        if self._all.shape[1] < 2:
            return {f"{name}_interval": None}
        return {f"{name}_interval": [float(end) for end in np.quantile(values_K, INTERVAL)]}


def report(
    codes: Mapping[str, Mapping[str, Mapping[str, Told | float]]], parts: tuple[str, ...], episodes: int
) -> dict[str, Any]:
    """The figures of `judge` by column and code: ``probe``, of ``parts`` of a code apart as ``parts``, and ``gain``.

    ``knn_r2`` is that of the neighbours. ``gain``: by column, what each network's code has above the best of `LINEAR`.
    """
    bootstrap = Bootstrap(episodes)
    found: dict[str, Any] = {"probe": {}, "parts": {}, "gain": {}}
    for name, judged in codes.items():
        for column, told in judged.items():
            linear, near = told["linear"], told.get("neighbours")
            assert isinstance(linear, Told)
            figures = bootstrap.r2(linear)
            if isinstance(near, Told):
                figures["knn_r2"] = bootstrap.r2(near)["r2"]
            figures |= {key: told[key] for key in ("alpha", "targets") if key in told}
            found["parts" if name in parts else "probe"].setdefault(column, {})[name] = figures
    for column, of in found["probe"].items():
        simple = [name for name in LINEAR if name in of]
        if not simple:
            continue
        best = max(simple, key=lambda name: of[name]["r2"])
        other = codes[best][column]["linear"]
        for name in codes:
            mine = codes[name].get(column, {}).get("linear")
            if name not in LINEAR and isinstance(mine, Told) and isinstance(other, Told):
                gain = {"over": best} | bootstrap.gain(mine, other)
                found["gain"].setdefault(column, {})[name] = gain
    return {key: value for key, value in found.items() if value}


def _nearest(fit_ND: np.ndarray, held_MD: np.ndarray) -> np.ndarray:
    """Rows of the frames with the largest cosine of centred codes, [M, k]."""
    centre = fit_ND.mean(axis=0, dtype=np.float64)
    fit, held = ((code - centre).astype(np.float32) for code in (fit_ND, held_MD))
    fit /= np.maximum(np.linalg.norm(fit, axis=1, keepdims=True), 1e-12)
    count = min(NEIGHBOURS, len(fit))
    blocks = [held[start : start + 512] @ fit.T for start in range(0, len(held), 512)]
    return np.concatenate([np.argpartition(-block, count - 1, axis=1)[:, :count] for block in blocks])
