"""Model cards: what the training writes about a model, and what its evaluation adds."""

import json
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import ModelCard
from safetensors.numpy import save_file

from sightline.core.errors import UserError
from sightline.depth.card import about_autoencoder
from sightline.depth.network import NetworkConfig
from sightline.depth.preprocessing import Preprocessing
from sightline.depth.weights import Header
from sightline.fusion.card import about_policy
from sightline.fusion.policy import PolicyConfig
from sightline.segmentation.card import about_segmentation
from sightline.segmentation.model import SegmentationConfig
from sightline.training.card import About, read_card, write_card, write_measured_card

SPLIT, EPISODE = np.array(["train", "train", "test"]), np.array([0, 0, 7])
FIGURES = {
    "nmse": 0.5, "l1_mean": 0.1,
    "baselines": {"mean": {"nmse": 1.0, "l1_mean": 0.2}, "hold": {"nmse": 0.4, "l1_mean": 0.3}},
    "use": {"shuffled_views": 0.001, "shuffled_joints": 0.9},
}  # fmt: skip
POLICY = PolicyConfig(
    cameras=("left", "right", "global"), image_size=84, joint_names=("a|b",), actions=2, steps=16, stride=3,
    extras={"depth": (64,)},
)  # fmt: skip


@pytest.fixture
def model(tmp_path) -> Path:
    path = tmp_path / "nine.safetensors"
    save_file({"weight": np.zeros((3, 4), np.float32), "batches": np.array(1)}, path)
    return path


def card_of(model: Path, about: About, configuration: dict) -> dict:
    write_card(model, about, configuration, SPLIT, EPISODE)
    return json.loads(model.with_suffix(".card.json").read_text())


def test_a_card_of_an_autoencoder_tells_units_and_ranges(model):
    preprocessing = Preprocessing(height_range=(100, 500), invalid=(0,), unit_mm=2.0)
    header = Header(kind="autoencoder", network=NetworkConfig(latent_dim=128, width=16), preprocessing=preprocessing)
    card = card_of(model, about_autoencoder(header, inverse_dynamics=True), header.model_dump(mode="json"))
    assert "counts 100 to 500 (200 to 1000 mm), [0] mean no reading" in card["inputs"][0]
    assert card["outputs"] == [
        "embeddings float32 [N, 128], no unit, not of unit length; the first 64 are a linear code of patches, "
        "the last 64 the scene's"
    ]
    assert "by reconstruction and by inverse dynamics" in card["what"]
    assert card["parameters"] == 12
    assert card["training_data"] == {"train": {"frames": 2, "groups": 1}, "test": {"frames": 1, "groups": 1}}
    assert card["use"].startswith(f"python stages/extract_encoder.py {model}")


def test_an_evaluation_adds_its_figures_and_the_limits_that_follow_from_them(model, tmp_path):
    card = card_of(model, about_policy(POLICY), POLICY.model_dump(mode="json"))
    assert read_card(model) == card
    write_measured_card(tmp_path / "nine.card.md", card, FIGURES)
    text = (tmp_path / "nine.card.md").read_text()
    assert "On held-out frames, hold is better: nmse 0.4 against 0.5." in text
    assert "mean is better" not in text
    assert text.count("hardly uses") == 1  # of the views
    assert "| nmse | 0.5 | 1 | 0.4 |" in text
    assert "a\\|b" in text
    assert card["use"].endswith(f"act {model} RECORDING actions.parquet --feature PATH")
    assert "depth float32 \\[B, 64\\]" in text


def test_a_card_is_one_of_hugging_face(model, tmp_path):
    card = card_of(model, about_policy(POLICY), POLICY.model_dump(mode="json"))
    write_measured_card(tmp_path / "nine.card.md", card, FIGURES)
    read = ModelCard.load(tmp_path / "nine.card.md")
    assert read.data.license == "unknown"  # the model's owner knows
    assert read.data.pipeline_tag == "robotics"
    assert read.data.tags == ["sightline", "imitation-learning", "bc"]
    assert read.data.metrics == ["nmse", "l1_mean"]
    assert [(result.metric_type, result.metric_value) for result in read.data.eval_results] == [
        ("nmse", 0.5), ("l1_mean", 0.1),
    ]  # fmt: skip
    assert read.text.lstrip().startswith(f"# {model}")
    for name in ("depth", "segmentation"):  # and with nothing to compare with
        write_measured_card(tmp_path / f"{name}.card.md", card, {})
        assert ModelCard.load(tmp_path / f"{name}.card.md").data.eval_results is None


def test_a_card_leaves_out_what_is_no_measure_of_quality(model, tmp_path):
    codes = {"numbers": 768, "rmse": 0.1, "rmse_mm": 20.0, "rmse_per_image_mm": 21.0, "valid_share": 0.9, "psnr": 30.0}
    write_measured_card(tmp_path / "a.md", card_of(model, about_policy(POLICY), {}), {"codes": {"autoencoder": codes}})
    assert ModelCard.load(tmp_path / "a.md").data.metrics == ["rmse_mm", "psnr"]


def test_a_card_of_a_segmentation_names_its_further_inputs(model):
    extras = {"depth": (2, 8, 8), "grid": (4, 6)}
    config = SegmentationConfig(classes=("background", "ball"), image_size=(8, 8), extras=extras)
    card = card_of(model, about_segmentation(config), config.model_dump(mode="json"))
    assert card["use"].endswith("--recording RECORDING --index INDEX --depth FOLDER --feature PATH")
    assert card["inputs"][1:] == ["depth float32 [B, 2, 8, 8]", "grid float32 [B, 4, 6]"]


def test_a_card_of_a_segmentation_names_its_classes(model):
    config = SegmentationConfig(classes=("background", "ball"), image_size=(8, 8))
    card = card_of(model, about_segmentation(config), config.model_dump(mode="json"))
    assert card["outputs"] == ["a class of each pixel: 0 background, 1 ball"]
    assert card["configuration"]["classes"] == ["background", "ball"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda card: card.unlink(), "cannot be read as a card"),
        (lambda card: card.write_text("{"), "cannot be read as a card"),
        (lambda card: card.write_text('{"sha256": "0"}'), "is about other weights than .*nine.safetensors"),
    ],
)
def test_figures_never_stand_beside_another_model(model, change, message):
    card_of(model, about_policy(POLICY), {})
    change(model.with_suffix(".card.json"))
    with pytest.raises(UserError, match=rf"nine\.card\.json: {message}") as error:
        read_card(model)
    assert "\n" not in str(error.value)
