"""The names that the branches offer: documented, loaded when they are used, seen by type checkers."""

import importlib

import pytest

NAMES = {
    "clip": ["GridParams", "GridStore", "LiveGrids", "open_grids"],
    "depth": ["ModelEvaluator", "SemanticEncoder", "create_semantic_encoder"],
    "fusion": ["FusionPolicy", "ImageJointEncoder", "Policy", "ResNet18Encoder", "load_policy"],
    "segmentation": [
        "ContrastivePrototypeManager", "SegmentationConfig", "SegmentationFrames", "SegmentationModel", "load_model",
        "virtual_adversarial_loss",
    ],
}  # fmt: skip


@pytest.mark.parametrize("branch", NAMES)
def test_public_names_load(branch):
    package = importlib.import_module(f"sightline.{branch}")
    assert package.__all__ == NAMES[branch]
    assert all(getattr(package, name).__name__ == name for name in NAMES[branch])
    with pytest.raises(AttributeError, match=f"module 'sightline.{branch}' has no attribute 'nothing'"):
        package.nothing  # noqa: B018
