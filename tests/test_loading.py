"""Batches on their way to a GPU: the same ones, in order, ahead, and fast enough for it."""

import time

import numpy as np
import pytest
import torch
from conftest import depth_folder
from pretended_gpu import CUDA, pretended_gpu

from sightline.depth.augmentation import CHANCES
from sightline.depth.normalize import NormalizeParams, normalize_depth
from sightline.depth.store import DepthStore
from sightline.depth.training import DepthImages
from sightline.recording.split import SplitParams
from sightline.training.loading import Ahead, loader
from sightline.training.order import EpochBatches


@pytest.fixture
def store(tmp_path) -> DepthStore:
    params = NormalizeParams(height_range=(500, 1500))
    normalize_depth(depth_folder(tmp_path / "in", 12), tmp_path / "depth.hdf5", params, split=SplitParams(guard=0))
    return DepthStore.open(tmp_path / "depth.hdf5")


def test_batches_made_ahead_are_those_made_in_turn(store):
    order = EpochBatches(np.arange(11), 3, seed=0, chances=CHANCES)
    with pretended_gpu():
        ahead = loader(DepthImages(store, "full", raw=True), order, CUDA, resident=False)
        assert isinstance(ahead, Ahead)
        for epoch in range(2):
            ahead.sampler.set_epoch(epoch)
            made = list(ahead)
            assert len(made) == len(ahead) == 4
            for draw, batch in zip(order, made, strict=True):
                assert np.array_equal(batch["images"], store.images(draw.rows))
                assert np.array_equal(batch["chances"], draw.chances)
    in_turn = loader(DepthImages(store, "full"), order, torch.device("cpu"), resident=False)
    assert [len(batch["depth"]) for batch in in_turn] == [3, 3, 3, 2]


def test_an_error_in_a_batch_is_raised_where_it_is_asked_for():
    class Broken(torch.utils.data.Dataset):
        def __getitem__(self, draw):
            raise ValueError("row 7")

    with pretended_gpu(), pytest.raises(ValueError, match="row 7"):
        list(Ahead(Broken(), EpochBatches(np.arange(4), 2, seed=0), CUDA))


def test_short_last_batches_are_left_out_where_they_would_be_compiled_again():
    whole = EpochBatches(np.arange(11), 4, seed=0, only_whole=True)
    assert [len(draw.rows) for draw in whole] == [4, 4]
    assert [len(draw.rows) for draw in EpochBatches(np.arange(11), 4, seed=0)] == [4, 4, 3]
    assert [len(draw.rows) for draw in EpochBatches(np.arange(3), 4, seed=0, only_whole=True)] == [3]  # the only one


@pytest.mark.slow
def test_the_host_makes_batches_faster_than_a_gpu_takes_them(store):
    """15,000 images/s on two cores; told by the time of the processor, whatever else it does."""
    rows = np.random.default_rng(0).integers(0, len(store.depth), 256 * 20)
    data, order = DepthImages(store, "full", raw=True), EpochBatches(rows, 256, seed=0, chances=CHANCES)
    with pretended_gpu():
        batches = Ahead(data, order, CUDA)
        sum(1 for _ in batches)
        start = time.process_time()
        count = sum(len(batch["images"]) for batch in batches)
    assert count / (time.process_time() - start) > 15_000 / 2
