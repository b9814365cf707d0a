"""Rollouts: every driver meets the same scenes, the same results from any number of processes, clear refusals."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, only_error_line
from PIL import Image

from sightline.core.errors import UserError
from sightline.demo.render import RenderParams, render_demo
from sightline.demo.simulate import JOINTS, SimulateParams, simulate_demo
from sightline.fusion.acting import ActionQueue, Policy
from sightline.fusion.policy import FusionPolicy, PolicyConfig, save_policy
from sightline.fusion.views import ViewParams, Views, pack_views
from sightline.recording.split import DataParams, SplitParams
from sightline.rollout import rollouts
from sightline.rollout.baselines import Expert, Hold, Linear, Replay, fit_to
from sightline.rollout.driving import Outcome, Scene, drive
from sightline.rollout.film import write_film
from sightline.rollout.rollouts import FIRST_SCENE, RolloutParams, roll_out, wilson_interval
from sightline.validation.validation import validate_recording

SIMULATE = SimulateParams(episodes=3, miss_rate=0)
RENDER = RenderParams(wrist_size=12, global_size=24, depth_height=8, depth_width=8, antialias=1)
CAMERAS = ("left_wrist", "global")
SET = (
    "--set", "simulate.episodes=3", "--set", "simulate.miss_rate=0", "--set", "render.wrist_size=12",
    "--set", "render.global_size=24", "--set", "render.antialias=1",
)  # fmt: skip
TWO = RolloutParams(scenes=2, length=1.0)

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """A folder with ``views.hdf5`` of three simulated episodes, and ``policy.safetensors`` with random weights."""
    root = tmp_path_factory.mktemp("rollout")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DVC_ROOT", str(root))
        simulate_demo(SIMULATE, root / "demo/frames.parquet", root / "states.hdf5", 1)
        render_demo(RENDER, root / "states.hdf5", root / "demo", 1)
        data = DataParams(split=SplitParams(val=0.3, test=0.0))
        validate_recording(root / "demo", root / "index", data, processes=1)
        views = ViewParams(cameras=CAMERAS, image_size=16)
        pack_views(root / "demo", root / "index", root / "views.hdf5", views, processes=1)
    save(root / "policy.safetensors")
    return root


def save(path: Path, **changes: object) -> Path:
    torch.manual_seed(0)
    config = {"cameras": CAMERAS, "image_size": 16, "joint_names": JOINTS, "actions": 16, "steps": 4, "stride": 2}
    save_policy(path, FusionPolicy(PolicyConfig(**config | {"target": "absolute"} | changes)))
    return path


def run(world: Path, output: Path, params: RolloutParams = TWO, processes: int | None = 1) -> dict:
    return roll_out(
        world / "policy.safetensors", world / "views.hdf5", output, params, SIMULATE, RENDER, processes=processes
    )


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_stage_writes_rates_with_intervals_and_a_film(world, tmp_path, stage):
    arguments = (world / "policy.safetensors", world / "views.hdf5", "out", "--processes", 2)
    done = stage("rollout", *arguments, *SET, "--set", "rollout.scenes=2", "--set", "rollout.length=1.0")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[:2] == [
        "policy    0.00 success, 95 % interval 0.00 to 0.66", "expert    1.00 success, 95 % interval 0.34 to 1.00"
    ]  # fmt: skip
    headline = json.loads((tmp_path / "out/metrics.json").read_text())
    assert headline == {
        "success_rate": 0.0, "success_low": 0.0, "success_high": 0.65762, "best_baseline_success": 0.0
    }  # fmt: skip
    details = json.loads((tmp_path / "out/details.json").read_text())
    assert list(details["baselines"]) == ["expert", "hold", "linear", "replay"]
    of_expert = details["by_scene"]["expert"]
    assert list(of_expert) == [str(FIRST_SCENE), str(FIRST_SCENE + 1)]
    assert all(scene["success"] and scene["frames"] < 50 and scene["distance_mm"] < 60 for scene in of_expert.values())
    assert details["by_scene"]["hold"][str(FIRST_SCENE)]["frames"] == 50
    film = Image.open(tmp_path / "out/episodes.gif")
    assert (film.format, film.size, film.info["duration"]) == ("GIF", (160, 164), 100)
    assert film.n_frames > 5  # equal frames are one, shown for longer
    assert (tmp_path / "out/episodes.gif").stat().st_size < 1e6
    assert list((tmp_path / ".scratch/rollout").iterdir()) == []
    assert contents(tmp_path / "out") == contents_of_a_run_in_one_process(world, tmp_path / "again")


def contents_of_a_run_in_one_process(world: Path, output: Path) -> dict[str, bytes]:
    run(world, output)
    return contents(output)


def test_an_interrupted_run_continues_with_the_same_result(world, tmp_path, monkeypatch):
    expected = contents_of_a_run_in_one_process(world, tmp_path / "whole")
    real, driven = rollouts.drive, []

    def interrupted(driver, scene, most_frames):
        if len(driven) == 3:
            driven.append("interrupt")
            raise KeyboardInterrupt
        driven.append(type(driver).__name__)
        return real(driver, scene, most_frames)

    monkeypatch.setattr(rollouts, "drive", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(world, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    run(world, tmp_path / "out")
    twice = [name for name in ("Policy", "Expert", "Linear", "Replay", "Hold") for _ in range(2)]
    assert driven == [*twice[:3], "interrupt", *twice[3:]]
    assert contents(tmp_path / "out") == expected


def test_other_weights_do_not_continue_an_interrupted_run(world, tmp_path, monkeypatch):
    driven, arguments = [], (world / "views.hdf5", tmp_path / "out", TWO, SIMULATE, RENDER, 1)

    def interrupted(driver, *_):
        driven.append(type(driver).__name__)
        if driven == ["Policy", "Policy"]:
            raise KeyboardInterrupt
        return Outcome(success=True, frames=1, distance_mm=1.0, qpos=[])

    monkeypatch.setattr(rollouts, "drive", interrupted)
    monkeypatch.setattr(rollouts, "_film", lambda *_: None)
    with pytest.raises(KeyboardInterrupt):
        roll_out(world / "policy.safetensors", *arguments)
    roll_out(save(tmp_path / "other.safetensors", design="joints_only"), *arguments)
    assert driven.count("Policy") == 4


def test_another_seed_means_other_scenes(world):
    setting = rollouts.Setting(RolloutParams(scenes=3, seed=2), SIMULATE, RENDER, world, world, (), world)
    assert list(setting.scenes) == [120_000, 120_001, 120_002]
    assert min(setting.scenes) > SimulateParams.model_fields["episodes"].metadata[1].le


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),  # Newcombe 1998, table I, method 3
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_the_interval_is_wilsons(successes, trials, low, high):
    assert wilson_interval(successes, trials) == pytest.approx((low, high), abs=5e-5)
    assert wilson_interval(trials - successes, trials) == pytest.approx((1 - high, 1 - low), abs=5e-5)


def test_the_expert_succeeds_and_who_holds_still_does_not():
    for number in range(FIRST_SCENE, FIRST_SCENE + 4):
        scene = Scene(SIMULATE, RENDER, number)
        assert drive(Expert(scene.simulation), scene, 75).success
        held = drive(Hold(), Scene(SIMULATE, RENDER, number), 10)
        assert (held.success, held.frames, len(held.qpos)) == (False, 10, 11)
        np.testing.assert_allclose(held.qpos[-1][:16], held.qpos[0][:16], atol=0.02)


def test_replay_knows_the_episode_that_begins_alike(world):
    """In the scene of a training episode that is the episode itself, which ends as it was recorded."""
    views = Views.open(world / "views.hdf5")
    replay, train = Replay(views), np.unique(views.episode[views.split == "train"])
    assert len(train) == 2
    for number in train:
        outcome = drive(replay, Scene(SIMULATE, RENDER, int(number)), 75)
        np.testing.assert_array_equal(replay._actions, views.actions[views.episode == number])
        assert outcome.success


def test_the_linear_driver_follows_its_map(world):
    views = Views.open(world / "views.hdf5")
    chunks = fit_to(views, 4, 2)
    driver = Linear(chunks, ActionQueue(4, 2, replan_every=7))
    driver.reset()
    first = chunks(views.joints[:1])[0]
    for frame, expected in enumerate([first[0], (first[0] + first[1]) / 2, first[1]]):
        np.testing.assert_allclose(driver.act({"joints": views.joints[frame]}), expected, rtol=1e-5, atol=1e-6)


def test_pictures_are_rendered_only_for_a_driver_that_looks(world, monkeypatch):
    rendered = []
    scene = Scene(SIMULATE, RENDER, 5)
    views = scene._cameras.views
    monkeypatch.setattr(scene._cameras, "views", lambda qpos: rendered.append(qpos) or views(qpos))
    drive(Policy.load(world / "policy.safetensors", replan_every=4), scene, 12)
    assert len(rendered) == 3
    assert list(scene.observe()["images"]) == ["left_wrist", "right_wrist", "global"]


def test_the_example_drives_the_robot(world):
    command = [sys.executable, str(ROOT / "examples/robot_loop.py"), str(world / "policy.safetensors"), "--frames", "3"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "3 frames; the ball is not on the plate"


def test_the_film_shows_both_ends_and_waits_for_the_longer(tmp_path):
    rng = np.random.default_rng(0)
    short, long = ([rng.integers(0, 256, (20, 30, 3)).astype(np.uint8) for _ in range(n)] for n in (2, 5))
    write_film(tmp_path / "film.gif", [(short, True), (long, False)], fps=10)
    film = Image.open(tmp_path / "film.gif")
    assert (film.size, film.n_frames) == ((60, 24), 5)
    film.seek(4)
    last = np.asarray(film.convert("RGB")).astype(int)
    assert last[0, 0, 1] > last[0, 0, 0] + 50  # green
    assert last[0, 59, 0] > last[0, 59, 1] + 50  # red
    film.seek(1)
    np.testing.assert_array_equal(last[4:, :30], np.asarray(film.convert("RGB"))[4:, :30])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"joint_names": ("a", "b"), "actions": 2}, r"policy.safetensors: of another robot than the simulated one \(2 "
         r"joints, 2 actions, cameras left_wrist, global\); set stages.rollouts to \[\]"),
        ({"cameras": ("left_wrist", "chest")}, r"of another robot .* cameras left_wrist, chest\)"),
        ({"cameras": ("global",)}, "views.hdf5: cameras: left_wrist, global, but .* was trained with global"),
        ({"extras": {"depth": (4,)}}, "policy.safetensors: trained with depth beside views and joints, which no "
         "rollout computes; give a model without"),
    ],
)  # fmt: skip
def test_models_that_cannot_drive_the_simulated_robot_are_refused(world, tmp_path, changes, message):
    weights = save(tmp_path / "policy.safetensors", **changes)
    with pytest.raises(UserError, match=message):
        roll_out(weights, world / "views.hdf5", tmp_path / "out", TWO, SIMULATE, RENDER)
    assert not (tmp_path / "out").exists()


def test_mistakes_on_the_command_line_are_one_line(world, stage, tmp_path):
    arguments = (world / "policy.safetensors", world / "views.hdf5", "out")
    line = only_error_line(stage("rollout", *arguments, "--set", "rollout.replan_every=8"))
    assert "rollout.replan_every must be 1..7, not 8" in line
    line = only_error_line(stage("rollout", *arguments, "--set", "rollout.scenes=0"))
    assert "rollout.scenes" in line
    assert not (tmp_path / "out").exists()
