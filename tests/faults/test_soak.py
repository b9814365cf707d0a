"""A sample of `make soak`: trainings in one process leave nothing open, and nothing behind."""

import pytest
from soak import fusion, segmentation, trainings
from world import copy_world


@pytest.mark.parametrize("train", [fusion, segmentation])
def test_trainings_in_a_row_leave_nothing_behind(train, world, tmp_path, monkeypatch):
    monkeypatch.setenv("DVC_ROOT", ".")
    found, faults = trainings(train, 5, copy_world(world, tmp_path / "w"), warm=2)
    assert faults == []
    assert found[5]["scratch"] == 0
