"""Presets are sets of parameters that a training takes, by hand and as options of DVC."""

import importlib.util
from pathlib import Path

import pytest
from conftest import ROOT, default_params
from dvc.utils.hydra import apply_overrides

from sightline.core.errors import UserError
from sightline.core.params import Section, load_params, parse_yaml
from sightline.segmentation.params import PostprocessParams
from sightline.segmentation.training import SegmentationParams


class Params(Section):
    segmentation: SegmentationParams = SegmentationParams()
    postprocess: PostprocessParams = PostprocessParams()


def options(path: Path) -> list[str]:
    spec = importlib.util.spec_from_file_location("preset", ROOT / "tools/preset.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.options(path)


@pytest.mark.parametrize("path", sorted((ROOT / "params").glob("*.yaml")), ids=lambda path: path.name)
def test_a_preset_is_the_same_by_hand_and_in_dvc(tmp_path, path):
    by_hand = load_params(Params, path)
    assert by_hand != Params()
    words = options(path)
    assert all(word.startswith("-S ") and " " not in word[3:] for word in words)
    (tmp_path / "params.yaml").write_text(default_params())
    apply_overrides(tmp_path / "params.yaml", [word[3:] for word in words])
    changed = parse_yaml((tmp_path / "params.yaml").read_text(), "params.yaml")
    in_dvc = {name: changed[name] for name in ("segmentation", "postprocess")}
    assert Params.model_validate(in_dvc, strict=False) == by_hand


def test_a_value_with_a_space_is_refused(tmp_path):
    (tmp_path / "p.yaml").write_text("segmentation: {camera: top left}")
    with pytest.raises(UserError, match=r"segmentation.camera=top left: a space"):
        options(tmp_path / "p.yaml")
