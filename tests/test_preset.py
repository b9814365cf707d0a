"""Presets of parameters: each key is there, and each value is allowed; the tool prints them as options."""

import runpy

import pytest
from conftest import ROOT

from sightline.core.params import parse_yaml
from sightline.depth.embedding import EmbedParams
from sightline.depth.training import TrainParams
from sightline.fusion.training import FusionParams
from sightline.segmentation.training import SegmentationParams

CLASSES = {"train": TrainParams, "embed": EmbedParams, "fusion": FusionParams, "segmentation": SegmentationParams}


@pytest.mark.parametrize("path", sorted((ROOT / "params").glob("*.yaml")), ids=lambda path: path.stem)
def test_a_preset_is_allowed_and_printed_as_options(path):
    preset = parse_yaml(path.read_text(), str(path))
    for section, values in preset.items():
        CLASSES[section].model_validate(values, strict=False)
    words = list(runpy.run_path(str(ROOT / "tools/preset.py"))["options"](preset))
    assert len(words) == sum(map(len, preset.values()))
    assert "-S train.batch_size=256" in words
