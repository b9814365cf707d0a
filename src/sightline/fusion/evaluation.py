"""Evaluate a fusion model on unseen episodes, compare it with simple baselines, and measure which inputs it uses.

`evaluate_fusion` writes ``metrics.json`` (the headline figures), ``evaluation_results.json``, ``error_by_step.csv`` and
``actions.png``. Errors are of whole chunks; steps beyond the end of an episode, and actions that do not move in
training, do not count. In ``evaluation_results.json``:

    nmse            squared error in units of the training actions' variance; ``r2`` is 1 - nmse / that of the mean
    nmse_interval   95 % interval over episodes, by bootstrap
    l1              mean absolute error of each action, data units
    baselines       ``mean`` of the training actions, ``hold`` the present joints (where there is an action for each),
                    ``linear``, ridge regression from the joints, ``previous_action``
    use             how much larger nmse becomes when the views come from other frames, one camera shows its mean image,
                    the first two cameras are swapped, or the joints or a further input (depth images, too) come from
                    other frames
    feature         effective rank, share of numbers that are always 0, linear probes (R2) of actions and later joints
    cvae            KL divergence, active units, error of the posterior's mean against that at z = 0
"""

import csv
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure
from pydantic import Field
from torch import Tensor
from tqdm import tqdm

from sightline.core.errors import UserError
from sightline.core.figures import write_figures
from sightline.core.files import atomic_output, rounded
from sightline.core.params import Section
from sightline.fusion.chunks import Chunks, read_features
from sightline.fusion.heads import CvaeHead, kl_divergence
from sightline.fusion.linear import fit_linear
from sightline.fusion.policy import FusionPolicy, check_views, load_policy
from sightline.fusion.views import Views
from sightline.grids.features import check_features
from sightline.training import probing
from sightline.training.order import in_order
from sightline.training.precision import exact_float32
from sightline.training.processes import process_device

ACTIVE = 0.01  # variance of a latent's posterior mean above which it is used (Burda et al. 2016)
_RESAMPLES, _SHOWN = 1000, 2  # bootstrap; actions of an episode in the picture


class EvaluateFusionParams(Section):
    """The fusion model on episodes that it was not trained on."""

    part: Literal["val", "test"] = Field("test", description="part of the split to evaluate on: val or test")
    batch_size: int = Field(32, ge=1, description="frames at a time")
    probe_frames: int = Field(500, ge=2, description="training frames at most for the linear probes")
    seed: int = Field(0, ge=0, description="draws the frames whose inputs are swapped, and the bootstrap")


@exact_float32()
def evaluate_fusion(
    weights: Path, data: Path, output: Path, params: EvaluateFusionParams, features: Sequence[Path] = ()
) -> dict[str, Any]:
    """Write figures and the picture to the folder ``output``; return what ``evaluation_results.json`` holds.

    Args:
        weights: file of a fusion model.
        data: file of views with its split.
        features: files of the further inputs that the model was trained with.

    Raises:
        UserError: files of another kind, other cameras, joints or actions than in training, no held-out frames,
            held-out episodes that the model was trained on, other further inputs than in training.
    """
    views = Views.open(data)
    policy = load_policy(weights)
    check_views(policy.config, weights, views, data)
    if (actions := views.actions.shape[1]) != policy.config.actions:
        raise UserError(f"{data}: actions: {actions}, but {weights} was trained with {policy.config.actions}")
    rows = views.rows(params.part)
    if not len(rows):
        raise UserError(f"{data}: no frames in part {params.part}; set evaluate_fusion.part to the other one")
    seen = set(policy.config.train_episodes) & set(views.episode[rows].tolist())
    if seen:
        raise UserError(f"{weights}: was trained on episode {min(seen)} of part {params.part}; train it on this split")
    further = read_features(features, views)
    check_features(further, policy.config.extras, policy.config.makers, weights)
    run = _Run(
        policy.to(process_device()), views, Chunks(views, policy.config.steps, policy.config.stride, further), params
    )
    plain = run.predict(rows)
    error = run.error(plain, rows)
    nmse, mean_nmse = error.nmse(), run.error(run.constant(rows), rows).nmse()
    baselines = {name: run.error(chunk, rows) for name, chunk in run.baselines(rows).items()}
    figures: dict[str, Any] = {
        "part": params.part,
        "frames": len(rows),
        "episodes": len(np.unique(views.episode[rows])),
        "steps": policy.config.steps,
        "stride": policy.config.stride,
        "nmse": nmse,
        "r2": 1 - nmse / mean_nmse,
        "nmse_interval": error.interval(views.episode[rows], params.seed),
        "l1": dict(zip(map(str, np.flatnonzero(run.moves)), error.l1().tolist(), strict=True)),
        "l1_mean": float(error.l1().mean()),
        "baselines": {name: {"nmse": e.nmse(), "l1_mean": float(e.l1().mean())} for name, e in baselines.items()},
        "use": {name: run.error(run.predict(rows, c), rows).nmse() - nmse for name, c in run.changes(rows).items()},
        "feature": run.feature_health(rows),
        "by_episode": error.by_episode(views.episode[rows]),
    }
    if isinstance(policy.head, CvaeHead):
        figures["cvae"] = run.latent_health(rows)
    figures = rounded(figures)
    write_figures(output, _headline(figures), figures, "evaluation_results.json")
    _write_steps(output / "error_by_step.csv", {"model": error, **baselines})
    _draw_actions(output / "actions.png", run, rows, plain, figures["by_episode"])
    return figures


def _headline(figures: dict[str, Any]) -> dict[str, Any]:
    baselines = [baseline["nmse"] for baseline in figures["baselines"].values()]
    use = {"shuffled_views": figures["use"]["shuffled_views"]} if "shuffled_views" in figures["use"] else {}
    return {"nmse": figures["nmse"], "best_baseline_nmse": min(baselines), **use}


Change = Callable[[dict[str, Tensor], np.ndarray], dict[str, Tensor]]  # batch and its rows -> changed batch


class _Error:
    """Errors of predicted chunks [M, H, A], data units."""

    def __init__(self, predicted: np.ndarray, actual: np.ndarray, inside: np.ndarray, scale: np.ndarray) -> None:
        self.absolute, self.inside = np.abs(predicted.astype(np.float64) - actual), inside  # (M, H, A), (M, H)
        self.squares = (np.square(self.absolute / scale).mean(2) * inside).astype(np.float64)  # (M, H)

    def nmse(self) -> float:
        return float(self.squares.sum() / self.inside.sum())

    def by_step(self) -> np.ndarray:
        return self.squares.sum(0) / np.maximum(self.inside.sum(0), 1)

    def l1(self) -> np.ndarray:
        return (self.absolute * self.inside[..., None]).sum((0, 1)) / self.inside.sum()

    def by_episode(self, episode_M: np.ndarray) -> dict[str, float]:
        ids = np.unique(episode_M)
        return {str(i): float(self.squares[episode_M == i].sum() / self.inside[episode_M == i].sum()) for i in ids}

    def interval(self, episode_M: np.ndarray, seed: int) -> list[float]:
        """95 % interval of nmse, by drawing episodes with replacement; of one episode, nmse twice."""
        ids, index = np.unique(episode_M, return_inverse=True)
        sums, counts = (np.bincount(index, weights=values.sum(1)) for values in (self.squares, self.inside))
        drawn = np.random.default_rng(seed).integers(len(ids), size=(_RESAMPLES, len(ids)))
        return np.quantile(sums[drawn].sum(1) / counts[drawn].sum(1), [0.025, 0.975]).tolist()


class _Run:
    """A model on the frames of a file."""

    def __init__(self, policy: FusionPolicy, views: Views, chunks: Chunks, params: EvaluateFusionParams) -> None:
        self.policy, self.views, self.chunks, self.params = policy, views, chunks, params
        self.device, self.train = process_device(), views.rows("train")
        self.moves = policy.actions_moves.cpu().numpy()
        self.scale = policy.actions_scale.cpu().numpy()[self.moves]

    @torch.inference_mode()
    def batches(self, rows: np.ndarray, change: Change | None = None, title: str = "evaluate") -> Any:
        draws = in_order(rows, self.params.batch_size)
        for draw in tqdm(draws, desc=title, unit="batch", mininterval=0.5, leave=False):
            batch = self.chunks[draw]
            batch = change(batch, draw.rows) if change else batch
            yield {name: values.to(self.device) for name, values in batch.items()}

    def _extras(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: batch[name] for name in self.policy.config.extras if name in batch}

    @torch.inference_mode()
    def predict(self, rows: np.ndarray, change: Change | None = None) -> np.ndarray:
        """Chunks [M, H, A] in data units."""
        chunks = [self.policy(b["views"], b["joints"], self._extras(b)) for b in self.batches(rows, change)]
        return torch.cat(chunks).cpu().numpy()

    @torch.inference_mode()
    def features(self, rows: np.ndarray) -> np.ndarray:
        """[M, fusion_dim]."""
        return torch.cat([self._feature(b) for b in self.batches(rows)]).float().cpu().numpy()

    def _feature(self, batch: dict[str, Tensor]) -> Tensor:
        return self.policy.feature(batch["views"], self.policy.normalise_joints(batch["joints"]), self._extras(batch))

    def error(self, predicted: np.ndarray, rows: np.ndarray) -> _Error:
        actual = self.views.actions[self.chunks.ahead[rows]]
        return _Error(predicted[..., self.moves], actual[..., self.moves], self.chunks.inside[rows], self.scale)

    def constant(self, rows: np.ndarray) -> np.ndarray:
        mean = self.policy.actions_mean.cpu().numpy()
        return np.broadcast_to(mean, (len(rows), self.policy.config.steps, len(mean)))

    def baselines(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        shape, views = (len(rows), self.policy.config.steps, self.policy.config.actions), self.views
        chunks = {"mean": self.constant(rows)}
        if views.joints.shape[1] == views.actions.shape[1]:
            chunks["hold"] = np.broadcast_to(views.joints[rows][:, None], shape)
        train, ahead, inside = np.flatnonzero(views.split == "train"), self.chunks.ahead, self.chunks.inside
        linear = fit_linear(views.joints, views.actions, ahead, inside, train, views.rows("val"))
        chunks["linear"] = linear(views.joints[rows])
        before = np.where(views.step[rows] > 0, np.maximum(rows - 1, 0), rows)  # a first frame has its own
        chunks["previous_action"] = np.broadcast_to(views.actions[before][:, None], shape)
        return chunks

    def changes(self, rows: np.ndarray) -> dict[str, Change]:
        """Changes of the inputs by name: the error that each adds shows what the model uses."""
        views, other = self.views, np.arange(len(self.views.step))  # row -> the row whose views or joints it gets
        other[rows] = np.roll(np.random.default_rng(self.params.seed).permutation(rows), 1)
        changes: dict[str, Change] = {}
        if self.policy.config.design != "joints_only" and views.cameras:
            sample = self.train[:: max(1, len(self.train) // 500)]
            mean = torch.from_numpy(views.images[sample].mean(0).round().astype(np.uint8))  # (V, 3, S, S)

            def blank(batch: dict[str, Tensor], _: np.ndarray, camera: int) -> dict[str, Tensor]:
                blanked = batch["views"].clone()
                blanked[:, camera] = mean[camera]
                return batch | {"views": blanked}

            changes["shuffled_views"] = lambda b, some: b | {"views": torch.from_numpy(views.images[other[some]])}
            changes |= {f"blank_{name}": partial(blank, camera=i) for i, name in enumerate(views.cameras)}
            if len(views.cameras) > 1:
                order = [1, 0, *range(2, len(views.cameras))]
                changes["swapped_first_two"] = lambda b, _: b | {"views": b["views"][:, order]}
        if self.policy.config.design != "images_only":
            changes["shuffled_joints"] = lambda b, some: b | {"joints": torch.from_numpy(views.joints[other[some]])}

        def of_others(batch: dict[str, Tensor], some: np.ndarray, name: str) -> dict[str, Tensor]:
            return batch | {name: self.chunks.extras_of(other[some])[name]}

        changes |= {f"shuffled_{name}": partial(of_others, name=name) for name in self.chunks.extras}
        return changes

    def feature_health(self, rows: np.ndarray) -> dict[str, Any]:
        """Effective rank, dead numbers, and what linear probes read from the feature."""
        views, later = self.views, self.chunks.ahead[:, -1]
        fit = self.train[:: max(1, len(self.train) // self.params.probe_frames)]
        fit, choose = np.split(fit, [max(1, len(fit) * 4 // 5)])  # mostly episodes of their own
        choose = choose if len(choose) else fit
        x_fit, x_choose, x_rows = (self.features(part) for part in (fit, choose, rows))
        probes = {
            name: probing.linear_probe((x_fit, values[fit]), (x_choose, values[choose]), (x_rows, values[rows]))["r2"]
            for name, values in (("action_r2", views.actions), ("later_joints_r2", views.joints[later]))
        }
        dead = float((x_rows.max(0) <= 0).mean())
        return {"effective_rank": probing.effective_rank(x_rows)[0], "dead": dead, **probes}

    @torch.inference_mode()
    def latent_health(self, rows: np.ndarray) -> dict[str, float]:
        """Whether the latent of a CVAE carries information."""
        policy, head = self.policy, self.policy.head
        assert isinstance(head, CvaeHead)
        means, kl, at_mean = [], [], []
        for b in self.batches(rows):
            feature = self._feature(b)
            chunk = policy.normalise_actions(b["actions"], b["joints"])
            mean, log_variance = head.posterior(feature, chunk, b["mask"])
            means.append(mean)
            kl.append(kl_divergence(mean, log_variance))
            at_mean.append(policy.restore_actions(head(feature, mean), b["joints"]).cpu().numpy())
        posterior, prior = (self.error(p, rows).nmse() for p in (np.concatenate(at_mean), self.predict(rows)))
        return {
            "kl_nats": float(torch.cat(kl).mean()),
            "active_units": int((torch.cat(means).var(0) > ACTIVE).sum()),
            "latent": head.latent,
            "posterior_nmse": posterior,
            "gap": 1 - posterior / max(prior, 1e-12),
        }


def _write_steps(path: Path, errors: dict[str, _Error]) -> None:
    with atomic_output(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["step", *errors])
        for step, row in enumerate(zip(*(error.by_step() for error in errors.values()), strict=True), 1):
            writer.writerow([step, *(f"{value:.6g}" for value in row)])


def _draw_actions(path: Path, run: _Run, rows: np.ndarray, predicted: np.ndarray, by_episode: dict[str, float]) -> None:
    """True actions of the best, the median and the worst episode, and the chunks predicted on the way, end to end."""
    views, config = run.views, run.policy.config
    order = sorted(by_episode, key=lambda episode: by_episode[episode])
    middle = order[(len(order) - 1) // 2]
    cases = {order[-1]: "worst", middle: "median", order[0]: "best"}  # of few episodes, one may be several: the best
    episode, scale = views.episode[rows], np.where(run.moves, run.policy.actions_scale.cpu().numpy(), np.inf)
    names = views.joint_names if len(views.joint_names) == config.actions else range(config.actions)
    count = min(_SHOWN, config.actions) * len(cases)
    with matplotlib.rc_context({"svg.hashsalt": "sightline"}):
        figure = Figure(figsize=(5.2, 2.1 * count), layout="constrained")  # on 390 pixels, texts are read
        axes = iter(figure.subplots(count, 1, squeeze=False)[:, 0])
        for name, case in reversed(cases.items()):
            own = np.flatnonzero(episode == int(name))
            steps, recorded = views.step[rows[own]], views.actions[rows[own]]
            for number, action in enumerate(np.argsort(-recorded.std(0) / scale)[:_SHOWN]):
                axis = next(axes)
                axis.plot(steps, recorded[:, action], color="#888888", linewidth=3, label="recorded")
                for start in range(0, len(own), config.steps * config.stride):
                    inside = run.chunks.inside[rows[own[start]]]
                    x = steps[start] + config.stride * np.arange(len(inside))[inside]
                    y = predicted[own[start], inside, action]
                    axis.plot(x, y, color="#d55e00", label="predicted" * (start == 0))
                axis.set(ylabel=f"{names[action]}\n(data units)", xlabel="step of the episode (frames)")
                if number == 0:
                    title = f"{case}: episode {name}, NMSE {by_episode[name]:.3g}"
                    axis.set_title(title, loc="left", fontsize="medium")
                    axis.legend(loc="best", fontsize="small")
        with atomic_output(path) as temporary:
            figure.savefig(temporary, format="png", dpi=150, metadata={"Software": None})
