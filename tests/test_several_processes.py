"""What processes that train together must agree on: validation figures, where to go on from, and banks of their own."""

import csv
import os
from pathlib import Path

import pytest
import test_fusion_training as fusion
import test_segmentation_training as segmentation
import torch
from conftest import depth_folder
from safetensors.torch import load_file
from several import several
from test_segmentation_frames import write_recording

from sightline.depth.normalize import NormalizeParams, normalize_depth
from sightline.depth.training import TrainParams, train_autoencoder
from sightline.fusion.training import FusionParams, train_fusion
from sightline.recording.split import SplitParams
from sightline.segmentation.prototypes import ContrastivePrototypeManager
from sightline.segmentation.training import train_segmentation
from sightline.training import fitting

SMALL = FusionParams(chunk=4, epochs=2, batch_size=4, lr=1e-3, precision="fp32")


@pytest.fixture
def data(tmp_path) -> Path:
    return fusion.pack(fusion.write_recording(tmp_path / "recording"))


def train(rank: int, data: Path, name: str, params: FusionParams = SMALL, apart: bool = False) -> str:
    """Train on joints alone; ``apart``: each process has a scratch folder of its own."""
    if apart:
        os.environ["DVC_ROOT"] += f"/{rank}"
    weights = data.parent / f"{name}.safetensors"
    train_fusion(data, weights, data.parent / name, params, 0, design="joints_only")
    return "trained"


def changed(**changes: object) -> FusionParams:
    return SMALL.model_copy(update=changes)


def curves(folder: Path) -> list[dict[str, float]]:
    with open(folder / "curves.csv", encoding="utf-8") as file:
        return [
            {key: float(value) for key, value in row.items() if key.startswith("val")} for row in csv.DictReader(file)
        ]


def difference(data: Path, one: str, other: str) -> float:
    """Largest difference of two trained weights."""
    first, second = (load_file(data.parent / f"{name}.safetensors") for name in (one, other))
    return max(float((first[name].double() - second[name].double()).abs().max()) for name in first)


# --- figures


@pytest.mark.parametrize("processes", [2, 3])
def test_validation_figures_of_uneven_shares_are_those_of_one_process(data, processes):
    still = {"lr": 1e-12, "chunk": 7}  # at the end of an episode, most steps of a chunk do not count
    assert several(processes, train, data, "several", changed(batch_size=4, **still)) == ["trained"] * processes
    train(0, data, "one", changed(batch_size=4 * processes, **still))
    for row, expected in zip(curves(data.parent / "several"), curves(data.parent / "one"), strict=True):
        assert row == pytest.approx(expected, rel=1.1e-6)  # written with six digits


def test_validation_figures_of_depth_are_pooled_over_the_pixels_of_all_processes(tmp_path):
    depth_folder(tmp_path / "in", 20)
    params, data = NormalizeParams(height_range=(500, 1500)), tmp_path / "depth.hdf5"
    normalize_depth(tmp_path / "in", data, params, split=SplitParams(guard=0), processes=1)

    def learn(rank: int, name: str, size: int) -> str:
        small = TrainParams(epochs=1, batch_size=size, latent_dim=64, scene_dim=0, lr=1e-12, precision="fp32")
        train_autoencoder(data, tmp_path / f"{name}.safetensors", tmp_path / name, small, 0)
        return "trained"

    assert several(2, learn, "two", 4) == ["trained"] * 2
    learn(0, "one", 8)
    assert curves(tmp_path / "two")[0] == pytest.approx(curves(tmp_path / "one")[0], rel=1.1e-6)


# --- where to go on from


def stop_after(epochs: int) -> None:
    """End the next training of this process by Ctrl-C after so many epochs."""
    keep = fitting._Keeper.on_train_epoch_end

    def stop(keeper: fitting._Keeper, *hook: object) -> None:
        keep(keeper, *hook)
        if len(keeper.history) == epochs:
            raise KeyboardInterrupt

    fitting._Keeper.on_train_epoch_end = stop


def interrupted(rank: int, *arguments: object) -> str:
    """Train, until Ctrl-C after an epoch."""
    stop_after(1)
    return train(rank, *arguments)


def test_processes_whose_state_is_not_shared_do_not_go_on_each_from_its_own(data, tmp_path):
    answers = several(2, interrupted, data, "two", SMALL, True)
    assert answers == ["KeyboardInterrupt: 1 of 2 epochs are kept"] * 2
    first, other = several(2, train, data, "two", SMALL, True)
    assert first.startswith("UserError: ")
    assert "last.ckpt: process 1 lacks this state of the interrupted run" in first
    assert "\n" not in first
    assert other == "SystemExit: 0"
    assert not (tmp_path / "two.safetensors").exists()
    (state,) = (tmp_path / "0/.scratch/train_fusion").glob("*/last.ckpt")
    state.unlink()
    assert several(2, train, data, "two", SMALL, True) == ["trained"] * 2  # anew, all of them


def test_processes_that_share_the_state_go_on_together(data):
    several(2, interrupted, data, "two")
    assert several(2, train, data, "two") == ["trained"] * 2
    assert several(2, train, data, "whole") == ["trained"] * 2
    assert difference(data, "two", "whole") == 0


def test_processes_with_other_data_are_refused(data):
    def learn(rank: int) -> str:
        return train(rank, data, "two", changed(lr=1e-3 * (1 + rank)))

    first, other = several(2, learn)
    assert first.startswith("UserError: process 1 has other data, parameters, code or versions than process 0")
    assert other == "SystemExit: 0"


# --- what is each process's own, and what is not


def learn_with_bank(rank: int, root: Path, name: str, epochs: int = 0) -> list[bool]:
    """Train a segmentation with a bank -> whether the bank at each step was what the step before left."""
    if epochs:
        stop_after(epochs)
    left: list[torch.Tensor] = []
    same, compute = [], ContrastivePrototypeManager.update_and_compute_losses

    def watched(manager: ContrastivePrototypeManager, *arguments: object) -> object:
        same.extend([torch.equal(left[-1], manager.memory)] if left else [])
        losses = compute(manager, *arguments)
        left.append(manager.memory.clone())
        return losses

    ContrastivePrototypeManager.update_and_compute_losses = watched
    params = segmentation.changed(method="ss_net", epochs=2, steps_per_epoch=2, batch_size=2, unlabelled_batch_size=2)
    frames = segmentation.frames_of(root, params)
    train_segmentation(frames, root.parent / f"{name}.safetensors", root.parent / name, params, 0)
    return same


def test_each_process_keeps_its_own_bank(tmp_path):
    root = write_recording(tmp_path / "r")
    first, other = several(2, learn_with_bank, root, "two")
    assert first == other == [True] * 3


@pytest.mark.slow
def test_banks_of_all_processes_go_on_as_they_were(tmp_path):
    root = write_recording(tmp_path / "r")
    several(2, learn_with_bank, root, "two", 1)
    assert several(2, learn_with_bank, root, "two") == [[True]] * 2
    several(2, learn_with_bank, root, "whole")
    assert (tmp_path / "two.safetensors").read_bytes() == (tmp_path / "whole.safetensors").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize(("changes", "most"), [({"ema": 0.9}, 1e-5), ({"precision": "bf16"}, 3e-3)])
def test_averages_and_bf16_of_two_processes_are_those_of_one(data, changes, most):
    several(2, train, data, "two", changed(**changes))
    train(0, data, "one", changed(batch_size=8, **changes))
    assert difference(data, "two", "one") < most
