"""The three models in folders as the Hugging Face Hub has them."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from sightline.core.errors import UserError
from sightline.depth.semantic_encoder import SemanticEncoder
from sightline.fusion.policy import FusionPolicy, PolicyConfig, load_policy
from sightline.segmentation.model import SegmentationConfig, SegmentationModel


def made(kind: type) -> nn.Module:
    torch.manual_seed(0)
    if kind is SemanticEncoder:
        return SemanticEncoder(latent_dim=128, device="cpu")
    if kind is FusionPolicy:
        return FusionPolicy(PolicyConfig(cameras=("a",), image_size=16, joint_names=("x",), actions=1, steps=2))
    return SegmentationModel(SegmentationConfig(classes=("a", "b"), channels=(8,) * 6))


@pytest.mark.parametrize("kind", [SemanticEncoder, FusionPolicy, SegmentationModel])
def test_a_model_comes_back_from_a_folder_and_keeps_its_card(kind, tmp_path):
    model = made(kind)
    (tmp_path / "README.md").write_text("its card")
    model.save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"README.md", "config.json", "model.safetensors"}
    assert (tmp_path / "README.md").read_text() == "its card"
    again = kind.from_pretrained(tmp_path)
    assert not again.training
    assert again.config == model.config
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name].cpu())
    first = (tmp_path / "config.json").read_bytes()
    again.save_pretrained(tmp_path / "again")
    assert (tmp_path / "again/config.json").read_bytes() == first
    assert "library_name: sightline" in (tmp_path / "again/README.md").read_text()


def test_the_configuration_is_the_header_and_the_weights_are_a_file_of_the_stages(tmp_path):
    model = made(FusionPolicy)
    model.save_pretrained(tmp_path)
    assert PolicyConfig.model_validate_json((tmp_path / "config.json").read_text()) == model.config
    assert load_policy(tmp_path / "model.safetensors").config == model.config


def test_a_model_is_pushed_as_it_is_saved(tmp_path, monkeypatch):
    """The Hub's own client makes the repository and uploads the folder; here it gets no further than the folder."""
    from huggingface_hub import HfApi

    uploaded = {}

    def upload(self, *, repo_id: str, folder_path: str, **options: object) -> None:
        uploaded[repo_id] = {path.name for path in Path(folder_path).iterdir()}

    monkeypatch.setattr(HfApi, "create_repo", lambda self, repo_id, **options: type("Url", (), {"repo_id": repo_id}))
    monkeypatch.setattr(HfApi, "upload_folder", upload)
    made(SegmentationModel).push_to_hub("somebody/segmentation")
    assert uploaded == {"somebody/segmentation": {"README.md", "config.json", "model.safetensors"}}


def test_what_is_no_such_model_is_one_line(tmp_path, monkeypatch):
    made(FusionPolicy).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"model.safetensors: not a segmentation model \(another model\)"):
        SegmentationModel.from_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"model.safetensors: no such file"):
        FusionPolicy.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps([]))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"somebody/policy: neither a folder nor a model of the Hub") as error:
        FusionPolicy.from_pretrained("somebody/policy", cache_dir=tmp_path / "cache")
    assert "\n" not in str(error.value)
