"""Rollouts: a trained policy drives the simulated robot in scenes that no recording has, beside simple drivers.

Every driver meets the same scenes. A rollout ends when the task is done, or when time is over. Finished rollouts stay
in the scratch folder until all are done, so that an interrupted stage continues.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import Field

from sightline.core.errors import UserError
from sightline.core.figures import write_figures
from sightline.core.files import claim, discard, file_sha256, fingerprint, rounded, scratch_folder, write_json
from sightline.core.parallel import unordered_map
from sightline.core.params import Section
from sightline.demo.render import CAMERAS, EpisodeCameras, RenderParams
from sightline.demo.simulate import FPS, JOINTS, SimulateParams
from sightline.fusion.acting import ActionQueue, Policy
from sightline.fusion.linear import LinearChunks
from sightline.fusion.policy import PolicyConfig, check_views, load_policy
from sightline.fusion.views import Views
from sightline.rollout.baselines import Expert, Hold, Linear, Replay, fit_to
from sightline.rollout.driving import Driver, Outcome, Scene, drive
from sightline.rollout.film import write_film

FIRST_SCENE, MOST_SCENES = 100_000, 10_000  # simulate.episodes is at most the first: no recording has these scenes
DRIVERS = ("policy", "expert", "linear", "replay", "hold")
FILM_PIXELS = 160


class RolloutParams(Section):
    """Trained policies drive the simulated robot in scenes that are not in the recording."""

    scenes: int = Field(
        10, ge=1, le=MOST_SCENES, description="scenes to try; the interval of the success rate narrows slowly"
    )
    seed: int = Field(0, ge=0, le=10_000, description="which scenes: those of two seeds are all different")
    replan_every: int | None = Field(
        None, ge=1, description="frames between predictions; null: half a chunk, or 1 with temporal_ensembling"
    )
    temporal_ensembling: float | None = Field(
        None,
        ge=0,
        description="decay of the weights of older predictions, 0.01 in ACT; null: only the latest prediction",
    )
    length: float = Field(1.5, ge=1, le=10, description="most frames of a rollout, as a multiple of simulate.steps")


@dataclass(frozen=True)
class Setting:
    """What all rollouts of a run share."""

    rollout: RolloutParams
    simulate: SimulateParams
    render: RenderParams
    weights: Path
    data: Path
    inputs: tuple[str, ...]  # hashes of these two files
    folder: Path  # of the outcomes

    @property
    def scenes(self) -> range:
        """Numbers of the scenes."""
        first = FIRST_SCENE + self.rollout.seed * MOST_SCENES
        return range(first, first + self.rollout.scenes)


@dataclass(frozen=True)
class _Job:
    setting: Setting
    driver: str
    scene: int

    @property
    def file(self) -> Path:
        return self.setting.folder / f"{self.driver}_{self.scene}.json"


def roll_out(
    weights: Path, data: Path, output: Path, params: RolloutParams, simulate: SimulateParams, render: RenderParams,
    processes: int | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Write success rates and a film to the folder ``output``; return what ``details.json`` holds.

    The results depend on the files and parameters alone, not on the number of processes.

    Args:
        weights: file of a fusion model.
        data: file of views that it was trained on.
        simulate, render: what the recording is like that the views come from.
        processes: number of rollouts at a time; None takes one per core.

    Raises:
        UserError: files of another kind, a model of another robot or with further inputs, views of other cameras than
            the model's, no training frames.
    """
    config = load_policy(weights).config
    views = Views.open(data)
    _check_robot(weights, data, config, views)
    try:
        ActionQueue(config.steps, config.stride, params.replan_every, params.temporal_ensembling)
    except UserError as error:
        raise UserError(f"rollout.{error}") from None
    hashes = file_sha256(weights), file_sha256(data)
    sections = [section.model_dump() for section in (params, simulate, render)]
    folder = claim(scratch_folder("rollout", fingerprint(*sections, *hashes, _code())))
    setting = Setting(params, simulate, render, weights, data, hashes, folder)
    jobs = [_Job(setting, driver, scene) for driver in DRIVERS for scene in setting.scenes]
    to_do = [(job, 1) for job in jobs if not job.file.exists()]  # earlier runs did the others
    for _ in unordered_map(_run, to_do, total=len(jobs), unit="rollout", title="rollout", processes=processes):
        pass
    outcomes = {driver: {job.scene: _read(job) for job in jobs if job.driver == driver} for driver in DRIVERS}
    of_drivers = {name: _figures(of) for name, of in outcomes.items()}
    figures = rounded(
        {"scenes": len(setting.scenes), **of_drivers.pop("policy"), "baselines": of_drivers}
        | {"by_scene": {name: _by_scene(of) for name, of in outcomes.items()}}
    )
    write_figures(output, _headline(figures), figures)
    _film(output / "episodes.gif", setting, outcomes["policy"])
    discard(folder)
    return figures


def wilson_interval(successes: int, trials: int, z: float = 1.959964) -> tuple[float, float]:
    """95 % interval of a share (Wilson, "Probable Inference, the Law of Succession, and Statistical Inference", 1927).

    It holds where the normal approximation does not: for few trials, and for shares near 0 and 1.
    """
    share, extent = successes / trials, z * z / trials
    centre = (share + extent / 2) / (1 + extent)
    half = z / (1 + extent) * (share * (1 - share) / trials + extent / (4 * trials)) ** 0.5
    return (0.0 if successes == 0 else centre - half), (1.0 if successes == trials else centre + half)


def _check_robot(weights: Path, data: Path, config: PolicyConfig, views: Views) -> None:
    """Raise `UserError` unless the model and its data are of the simulated robot."""
    for path, joints, actions, cameras in (
        (weights, config.joint_names, config.actions, config.cameras),
        (data, views.joint_names, views.actions.shape[1], views.cameras),
    ):
        if joints != JOINTS or actions != len(JOINTS) or not set(cameras) <= set(CAMERAS):
            what = f"{len(joints)} joints, {actions} actions, cameras {', '.join(cameras) or 'none'}"
            raise UserError(f"{path}: of another robot than the simulated one ({what}); set stages.rollouts to []")
    check_views(config, weights, views, data)
    if config.extras:
        raise UserError(
            f"{weights}: trained with {', '.join(config.extras)} beside views and joints, which no rollout computes; "
            "give a model without"
        )
    if not len(views.rows("train")):
        raise UserError(f"{data}: no training frames, which the drivers beside the policy need")


def _code() -> list[str]:
    """Hashes of the code that decides the outcomes."""
    here = Path(__file__).parent
    return [
        file_sha256(path)
        for name in ("rollout", "demo", "fusion")
        for path in sorted((here.parent / name).glob("*.py"))
    ]


def _run(job: _Job) -> None:
    """Do one rollout, and write how it went."""
    setting = job.setting
    with _one_thread():
        scene = Scene(setting.simulate, setting.render, job.scene)
        most = round(setting.rollout.length * setting.simulate.steps)
        write_json(job.file, asdict(drive(_driver(job, scene), scene, most)))


def _read(job: _Job) -> Outcome:
    return Outcome(**json.loads(job.file.read_text(encoding="utf-8")))


def _driver(job: _Job, scene: Scene) -> Driver:
    setting, params = job.setting, job.setting.rollout
    if job.driver == "expert":
        return Expert(scene.simulation)
    if job.driver == "hold":
        return Hold()
    if job.driver == "replay":
        return _replay(setting.data, setting.inputs)
    policy = _policy(setting.weights, params.replan_every, params.temporal_ensembling, setting.inputs)
    if job.driver == "policy":
        return policy
    config = policy.config
    queue = ActionQueue(config.steps, config.stride, params.replan_every, params.temporal_ensembling)
    return Linear(_linear(setting.data, config.steps, config.stride, setting.inputs), queue)


# A worker loads and fits once; the hashes of the files are there to tell changed files of the same name apart.


@lru_cache(maxsize=1)
def _policy(weights: Path, replan_every: int | None, decay: float | None, _: tuple[str, ...]) -> Policy:
    return Policy.load(weights, temporal_ensembling=decay, replan_every=replan_every)


@lru_cache(maxsize=1)
def _replay(data: Path, _: tuple[str, ...]) -> Replay:
    return Replay(Views.open(data))


@lru_cache(maxsize=1)
def _linear(data: Path, steps: int, stride: int, _: tuple[str, ...]) -> LinearChunks:
    return fit_to(Views.open(data), steps, stride)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Torch with one thread: rollouts run beside each other, and sums depend on the number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _figures(outcomes: dict[int, Outcome]) -> dict[str, Any]:
    """Of one driver in all scenes."""
    successes, count = sum(outcome.success for outcome in outcomes.values()), len(outcomes)
    distance_mm = sum(outcome.distance_mm for outcome in outcomes.values()) / count
    interval = list(wilson_interval(successes, count))
    return {"success_rate": successes / count, "success_rate_interval": interval, "distance_mm": distance_mm}


def _by_scene(outcomes: dict[int, Outcome]) -> dict[str, dict[str, Any]]:
    """Of one driver in each scene."""
    return {
        str(scene): {"success": of.success, "frames": of.frames, "distance_mm": of.distance_mm}
        for scene, of in outcomes.items()
    }


def _headline(figures: dict[str, Any]) -> dict[str, Any]:
    rates = [baseline["success_rate"] for name, baseline in figures["baselines"].items() if name != "expert"]
    low, high = figures["success_rate_interval"]
    own = {"success_rate": figures["success_rate"], "success_low": low, "success_high": high}
    return own | {"best_baseline_success": max(rates)}


def _film(path: Path, setting: Setting, outcomes: dict[int, Outcome]) -> None:
    """The first success and the first failure of the policy, or the one that there is."""
    small = setting.render.model_copy(update={"rgb_noise": 0.0, "global_size": FILM_PIXELS, "wrist_size": 8})
    rollouts = []
    for success in (True, False):
        scene = next((number for number, outcome in outcomes.items() if outcome.success == success), None)
        if scene is None:
            continue
        cameras = EpisodeCameras(small, scene, Scene(setting.simulate, setting.render, scene).simulation.mjcf)
        rollouts.append(([cameras.views(np.array(qpos))["global"] for qpos in outcomes[scene].qpos], success))
    write_film(path, rollouts, FPS)
