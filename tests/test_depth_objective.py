"""What the depth network is trained for: pairs of frames, their joints, and pictures that keep both."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import depth_folder, only_error_line

from sightline.core.errors import UserError
from sightline.depth.augmentation import CHANCES, augment_images
from sightline.depth.normalize import NormalizeParams, normalize_depth
from sightline.depth.pairs import GAPS, read_pairs
from sightline.depth.store import DepthStore
from sightline.depth.training import DepthImages
from sightline.recording.split import SplitParams
from sightline.training.order import Draw

FAST = ("epochs=2", "batch_size=4", "precision=fp32", "latent_dim=128", "width=16")
SETTINGS = [part for setting in FAST for part in ("--set", f"train.{setting}")]


@pytest.fixture
def files(tmp_path):
    """Normalised depth of 12 frames, and their table: two episodes of six; the second joint does not move."""
    depth_folder(tmp_path / "in", 12)
    params = NormalizeParams(height_range=(500, 1500))
    normalize_depth(tmp_path / "in", tmp_path / "depth.hdf5", params, split=SplitParams(guard=0), processes=1)
    step = np.arange(12) % 6
    table = {"frame_id": range(12), "episode": np.arange(12) // 6, "step": step, "time_s": step / 10}
    joints = np.stack([step**2.0, np.ones(12), np.sin(step)], axis=1)
    pd.DataFrame(table | {"joints": list(joints)}).to_parquet(tmp_path / "frames.parquet")
    return tmp_path


def test_a_pair_is_of_one_episode_at_most_four_steps_apart_with_the_change_of_its_joints(files):
    pairs = read_pairs(files / "frames.parquet", DepthStore.open(files / "depth.hdf5"))
    assert pairs.joints == 2
    rows = np.arange(12)
    gaps = set()
    for chance in (0.0, 0.3, 0.6, 0.99):
        partner, change, paired = pairs.draw(rows, np.full(12, chance, np.float32))
        assert (partner // 6 == rows // 6).all()
        assert (paired == (rows % 6 < 5)).all()
        assert ((partner - rows)[paired] >= 1).all()
        assert ((partner - rows)[paired] <= GAPS).all()
        gaps |= set((partner - rows)[paired])
        ratio = change[paired, 0] / ((partner % 6) ** 2 - (rows % 6) ** 2)[paired]
        assert ratio == pytest.approx(np.full(paired.sum(), ratio[0]), rel=1e-5)
    assert gaps == {1, 2, 3, 4}


def test_batches_hold_the_later_frame_and_say_which_have_none(files):
    store = DepthStore.open(files / "depth.hdf5")
    images = DepthImages(store, pairs=read_pairs(files / "frames.parquet", store))
    batch = images[Draw(np.array([0, 5]), np.empty((2, 0), np.float32))]
    assert batch["paired"].tolist() == [True, False]
    assert (batch["later"][0, 0].numpy() == store.depth[3]).all()  # of four gaps the third, where nothing is drawn
    assert (batch["change"][1] == 0).all()


def test_the_table_of_another_recording_and_one_that_lacks_frames_are_refused(files):
    store = DepthStore.open(files / "depth.hdf5")
    table = pd.read_parquet(files / "frames.parquet")
    table[:6].to_parquet(files / "half.parquet")
    with pytest.raises(UserError, match=r"half.parquet: lacks 6 frames of .*depth.hdf5 \(first 6\)"):
        read_pairs(files / "half.parquet", store)
    other = DepthStore(**{**vars(store), "recording": "0" * 32})
    with pytest.raises(UserError, match=r"frames.parquet: the table of another recording than .*depth.hdf5"):
        read_pairs(files / "frames.parquet", other)


def test_a_training_learns_the_joints_where_there_are_some_and_says_where_there_are_none(files, stage, tmp_path):
    command = ["train_autoencoder", "depth.hdf5", "a.safetensors", "--metrics-dir", "m", *SETTINGS]
    frames = ["--frames", "frames.parquet"]

    def run(*more):
        result = stage(*command, *more)
        assert result.returncode == 0, result.stderr
        columns = (tmp_path / "m/curves.csv").read_text().splitlines()[0]
        joints = json.loads((tmp_path / "m/details.json").read_text())["joints"]
        what = json.loads((tmp_path / "a.card.json").read_text())["what"]
        return "val_inverse_dynamics" in columns, joints, "by inverse dynamics" in what, result.stderr

    *told, errors = run(*frames)
    assert told == [True, 2, True]
    assert "without inverse dynamics" not in errors
    for more, said in (
        ([], "train_autoencoder: no --frames with joints: trained without inverse dynamics"),
        ([*frames, "--set", "train.objective.inverse_dynamics=0.0"], ""),
    ):
        *told, errors = run(*more)
        assert told == [False, 0, False]
        assert said in errors
        assert bool(said) == ("without inverse dynamics" in errors)
    pd.read_parquet(files / "frames.parquet").drop(columns="joints").to_parquet(files / "bare.parquet")
    *told, errors = run("--frames", "bare.parquet")
    assert "bare.parquet has no joints that move: trained without inverse dynamics" in errors
    line = only_error_line(stage(*command, *frames, "--set", "train.augment=full"))
    assert "train.augment full turns or mirrors images, but not the joints" in line


def test_the_shift_keeps_where_things_are_and_does_not_count_what_comes_in():
    generator = torch.Generator().manual_seed(0)
    depth = torch.full((32, 1, 128, 128), -0.5)
    depth[:, :, 40:60, 70:80] = 0.25  # a box, above the middle and to the right
    valid = torch.ones(32, 128, 128, dtype=torch.bool)
    chances = torch.rand(32, CHANCES, generator=generator)
    images, masks = augment_images(depth, valid, chances, "shift")
    for image, mask, (zoom, down, right, offset) in zip(images[:, 0], masks[:, 0], 2 * chances[:, :4] - 1, strict=True):
        assert image.min() == pytest.approx(float(-0.5 + 0.1 * offset), abs=1e-6)
        box = (image > image.min() + 0.5).nonzero().float()
        for axis, (centre, move) in enumerate(((49.5, down), (74.5, right))):
            expected = 63.5 + (centre - 63.5 - 128 * 0.06 * move) / (1 + 0.06 * zoom)
            assert float(box[:, axis].mean()) == pytest.approx(float(expected), abs=1)
        outside = abs(128 * 0.06 * float(down)) + 64 * 0.06 * float(zoom)
        assert bool(mask.all()) == (outside <= 0.5 and abs(128 * 0.06 * float(right)) + 64 * 0.06 * float(zoom) <= 0.5)
    still = augment_images(depth, valid, torch.full((32, CHANCES), 0.5), "shift")
    assert torch.equal(still[0], depth)
    assert still[1].all()
