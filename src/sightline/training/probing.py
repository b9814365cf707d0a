"""What a code is good for besides reconstruction: finding a moment again, telling the joints and the object."""

import numpy as np

NEAR, EXCLUDED = 5, 1  # steps: a hit lies at most NEAR away; frames at most EXCLUDED away are not candidates
ALPHAS = tuple(10.0**k for k in range(-6, 4))  # ridge penalties, in units of the mean variance of a feature


def steps_in_episodes(episode_N: np.ndarray) -> np.ndarray:
    """Number of each frame within its episode, int64 [N], for frames sorted by frame id."""
    steps = np.empty(len(episode_N), np.int64)
    for episode in np.unique(episode_N):
        rows = np.flatnonzero(episode_N == episode)
        steps[rows] = np.arange(len(rows))
    return steps


def retrieval(codes_ND: np.ndarray, mean_D: np.ndarray, episode_N: np.ndarray, step_N: np.ndarray) -> dict[str, float]:
    """Recall@1 of frames that are near in time, among held-out frames, by cosine similarity of centred codes.

    Each frame is a query. Candidates are all other held-out frames of all episodes, except those of its own episode at
    most `EXCLUDED` steps away, which are nearly the same picture. It is a hit if the most similar candidate lies in the
    same episode at most `NEAR` steps away. Frames without any such candidate are no queries. ``chance`` is the hit
    rate of a candidate drawn at random, ``same_episode`` the share whose most similar candidate is of the same
    episode. Codes are centred by ``mean_D``, the mean code of training frames: without that, all cosines are near 1.

    Args:
        codes_ND: codes of the held-out frames.
        episode_N, step_N: their episode, and their step in it.
    """
    centred = codes_ND.astype(np.float64) - mean_D
    centred /= np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-12)
    hits, same_episode, chances = [], [], []
    for start in range(0, len(centred), 512):
        query = slice(start, start + 512)
        together = episode_N[query, None] == episode_N
        distance = np.abs(step_N[query, None] - step_N)
        candidate = ~(together & (distance <= EXCLUDED))
        near = candidate & together & (distance <= NEAR)
        best = np.where(candidate, centred[query] @ centred.T, -np.inf).argmax(axis=1)
        asked = near.any(axis=1)
        rows = np.arange(len(best))
        hits.append(near[rows, best][asked])
        same_episode.append((candidate & together)[rows, best][asked])
        chances.append((near.sum(axis=1) / np.maximum(candidate.sum(axis=1), 1))[asked])
    count = sum(map(len, hits))
    if not count:
        return {"queries": 0}
    return {
        "queries": count,
        "recall_at_1": float(np.concatenate(hits).mean()),
        "same_episode": float(np.concatenate(same_episode).mean()),
        "chance": float(np.concatenate(chances).mean()),
    }


def effective_rank(codes_ND: np.ndarray) -> tuple[float, np.ndarray]:
    """`effective_rank_of` the codes, and their variances [D], largest first."""
    centred = codes_ND.astype(np.float64) - codes_ND.mean(axis=0, dtype=np.float64)
    variances = np.zeros(codes_ND.shape[1])
    values = np.linalg.svd(centred, compute_uv=False) ** 2 / len(centred)
    variances[: len(values)] = values[: len(variances)]
    return effective_rank_of(variances), variances


def effective_rank_of(variances: np.ndarray) -> float:
    """Exponential of the entropy of the shares of variance: the number of directions that are really used.

    Roy & Vetterli, "The effective rank" (2007), of the covariance: ``variances`` are those of principal directions.
    """
    share = variances / max(variances.sum(), 1e-30)
    share = share[share > 0]
    return float(np.exp(-(share * np.log(share)).sum()))


class Ridge:
    """Ridge regression in closed form, for every penalty of `ALPHAS` from one eigendecomposition.

    Features are centred and share one scale, so that large numbers of a code stay more important than small ones.

    Args:
        x_ND: features; y_NJ: targets.
    """

    def __init__(self, x_ND: np.ndarray, y_NJ: np.ndarray) -> None:
        self._x_mean, self._y_mean = x_ND.mean(axis=0, dtype=np.float64), y_NJ.mean(axis=0)
        x = x_ND - self._x_mean
        self._scale = max(np.sqrt(np.square(x).mean()), 1e-12)
        x /= self._scale
        y = y_NJ - self._y_mean
        if len(x) < x.shape[1]:  # the weights lie in the span of the features: N directions instead of D
            self._values, inner = np.linalg.eigh(x @ x.T / len(x))
            self._vectors = x.T @ inner / np.sqrt(len(x) * self._values.clip(1e-12))
            self._vectors *= self._values > 1e-10 * self._values[-1]
        else:
            self._values, self._vectors = np.linalg.eigh(x.T @ x / len(x))
        self._projected = self._vectors.T @ (x.T @ y) / len(x)

    def predict(self, x_ND: np.ndarray, alpha: float) -> np.ndarray:
        """Targets [N, J] by the regression with penalty ``alpha``."""
        shrunk = self._projected / (self._values.clip(0) + alpha)[:, None]
        return (x_ND - self._x_mean) / self._scale @ (self._vectors @ shrunk) + self._y_mean


def r_squared(predicted_NJ: np.ndarray, y_NJ: np.ndarray) -> float:
    """Coefficient of determination over all targets together; 0 where none of them varies.

    Pooled, because the R^2 of a target that hardly varies on these frames means nothing.
    """
    total = np.square(y_NJ - y_NJ.mean(axis=0)).sum()
    return float(1 - np.square(predicted_NJ - y_NJ).sum() / total) if total > 1e-12 else 0.0


def linear_probe(
    fit: tuple[np.ndarray, np.ndarray], choose: tuple[np.ndarray, np.ndarray], held_out: tuple[np.ndarray, np.ndarray]
) -> dict[str, float]:
    """R^2 on held-out frames of a linear map from code to targets, such as joints.

    Each pair is (codes [N, D], targets [N, J]). The regression is fitted on ``fit``, its penalty is the one that is
    best on ``choose``. Targets count in units of their spread on ``fit``, so that radians and metres can be pooled;
    those that do not move there are left out.
    """
    spread_J = fit[1].std(axis=0)
    moving = spread_J > 1e-6
    y_fit, y_choose, y_held_out = (y[:, moving] / spread_J[moving] for _, y in (fit, choose, held_out))
    ridge = Ridge(fit[0], y_fit)
    scores = [r_squared(ridge.predict(choose[0], alpha), y_choose) for alpha in ALPHAS]
    alpha = ALPHAS[int(np.argmax(scores))]
    return {
        "r2": r_squared(ridge.predict(held_out[0], alpha), y_held_out),
        "alpha": alpha,
        "targets": int(moving.sum()),
    }
