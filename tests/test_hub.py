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


KINDS = {
    SemanticEncoder: "not a depth encoder, safetensors or torch",
    FusionPolicy: "not a fusion model",
    SegmentationModel: "not a segmentation model",
}  # what the error says of another model


@pytest.mark.parametrize("kind", KINDS)
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


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_is_pushed_as_it_is_saved(kind, monkeypatch):
    """The Hub's own client makes the repository and uploads the folder; here it gets no further than the folder."""
    from huggingface_hub import HfApi

    uploaded = {}

    def upload(self, *, repo_id: str, folder_path: str, **options: object) -> None:
        uploaded[repo_id] = {path.name for path in Path(folder_path).iterdir()}

    monkeypatch.setattr(HfApi, "create_repo", lambda self, repo_id, **options: type("Url", (), {"repo_id": repo_id}))
    monkeypatch.setattr(HfApi, "upload_folder", upload)
    made(kind).push_to_hub("somebody/model")
    assert uploaded == {"somebody/model": {"README.md", "config.json", "model.safetensors"}}


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_such_model_is_one_line(kind, tmp_path, monkeypatch):
    def refused(name: str | Path, words: str, **options: object) -> None:
        with pytest.raises(UserError, match=words) as error:
            kind.from_pretrained(name, **options)
        assert "\n" not in str(error.value)

    for number, other in enumerate(KINDS):
        if other is not kind:
            made(other).save_pretrained(tmp_path / str(number))
            refused(tmp_path / str(number), rf"{number}/model.safetensors: {KINDS[kind]} \(another model\)")
    made(kind).save_pretrained(tmp_path / "own")
    (tmp_path / "own/model.safetensors").write_text("none")
    refused(tmp_path / "own", rf"own/model.safetensors: {KINDS[kind]}")
    (tmp_path / "own/model.safetensors").unlink()
    refused(tmp_path / "own", r"own/model.safetensors: no such file")
    (tmp_path / "own/config.json").write_text(json.dumps([]))
    refused(tmp_path / "own", r"own/model.safetensors: no such file")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    cache = tmp_path / "cache"
    refused("somebody/model", r"somebody/model: neither a folder nor a model of the Hub", cache_dir=cache)
