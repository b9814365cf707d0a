"""Presets of parameters: each key is there, each value is allowed, and by hand and in DVC they are the same."""

import runpy

import pytest
from conftest import ROOT, default_params
from dvc.utils.hydra import apply_overrides

from sightline.core.params import Section, load_params, parse_yaml
from sightline.depth.embedding import EmbedParams
from sightline.depth.training import TrainParams
from sightline.fusion.training import FusionParams
from sightline.segmentation.params import PostprocessParams
from sightline.segmentation.training import SegmentationParams


class Params(Section):
    train: TrainParams = TrainParams()
    embed: EmbedParams = EmbedParams()
    fusion: FusionParams = FusionParams()
    segmentation: SegmentationParams = SegmentationParams()
    postprocess: PostprocessParams = PostprocessParams()


@pytest.mark.parametrize("path", sorted((ROOT / "params").glob("*.yaml")), ids=lambda path: path.stem)
def test_a_preset_is_allowed_and_the_same_by_hand_and_in_dvc(path, tmp_path):
    preset, by_hand = parse_yaml(path.read_text(), str(path)), load_params(Params, path)
    assert set(preset) <= set(Params.model_fields), "a section that no training reads"
    words = list(runpy.run_path(str(ROOT / "tools/preset.py"))["options"](preset))
    assert all(word.startswith("-S ") and " " not in word[3:] for word in words), "a shell parts words at spaces"
    (tmp_path / "params.yaml").write_text(default_params())
    apply_overrides(tmp_path / "params.yaml", [word[3:] for word in words])
    changed = parse_yaml((tmp_path / "params.yaml").read_text(), "params.yaml")
    assert Params.model_validate({name: changed[name] for name in Params.model_fields}, strict=False) == by_hand
    assert by_hand != Params()
