"""Image towers for checking grids: built apart from the extractor, from the same weights and what is known of them.

Where `sightline.clip.weights` converts, assumes or derives something, this module reads it once more in another way:
tags by open_clip alone; files of open_clip and OpenAI by open_clip's model and its own reading of configurations; those
of Hugging Face by their transformer, written out for their own names.
"""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import open_clip
import torch
from open_clip.transform import PreprocessCfg, merge_preprocess_dict
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from sightline.clip.checkpoints import Checkpoint, read_checkpoint
from sightline.clip.params import RANDOM, GridParams
from sightline.clip.weights import NO_TEXT, SEED, quiet


class ReferenceTower:
    """An image tower in float32, and how it wants its images.

    Args:
        params: those that the grids were made with, which `sightline.clip.weights` has accepted.
        device: where it computes.
    """

    def __init__(self, params: GridParams, device: torch.device) -> None:
        config = open_clip.get_model_config(params.model)
        from_tag = params.pretrained == RANDOM or open_clip.get_pretrained_cfg(params.model, params.pretrained)
        checkpoint = None if from_tag else read_checkpoint(Path(params.pretrained))
        said = {} if checkpoint is None else _said(checkpoint)
        activations = (params.quick_gelu, said.get("quick_gelu"), config.get("quick_gelu", False))
        quick_gelu = next(bool(one) for one in activations if one is not None)
        self._tower: _OpenClip | _HuggingFace
        if checkpoint is not None and checkpoint.is_hugging_face:
            vision = config["vision_cfg"]
            heads = said.get("heads") or vision.get("width", 768) // vision.get("head_width", 64)
            self._tower = _HuggingFace(checkpoint, quick_gelu, heads, params.image_size)
        else:
            self._tower = _OpenClip(params, checkpoint, quick_gelu, params.image_size or said.get("size"))
            said = self._tower.said | said
        self._tower.to(device)
        self.mean, self.std = params.mean or said.get("mean"), params.std or said.get("std")
        self.interpolation = params.interpolation or said.get("interpolation")
        self.resize_mode = said.get("resize_mode") if params.resize == "weights" else params.resize
        self.positions: Tensor = self._tower.positions  # [1 + P, C], of the class token and the patches
        self.patch: int = self._tower.patch  # side of a patch, pixels
        self.rows = round((len(self.positions) - 1) ** 0.5)  # patches along a side
        self.image_size: int = params.image_size or said.get("size") or self.rows * self.patch

    def raw(self, images: Tensor) -> Tensor:
        """Tokens after the last block, class token first: [B, 3, S, S] -> [B, 1 + P, C]."""
        return self._tower.raw(images)

    def norm(self, tokens: Tensor) -> Tensor:
        """The last norm."""
        return self._tower.norm(tokens)

    def project(self, tokens: Tensor) -> Tensor:
        """To text space, where the weights have a projection."""
        return tokens if self._tower.projection is None else tokens @ self._tower.projection

    def encode_image(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The tower's own outputs for ``images``: [B, D], and normalised tokens of the patches [B, P, C]."""
        return self._tower.encode_image(images)


class _OpenClip:
    """open_clip's own model and its forward pass."""

    def __init__(self, params: GridParams, checkpoint: Checkpoint | None, quick_gelu: bool, size: int | None) -> None:
        tag = params.pretrained if checkpoint is None and params.pretrained != RANDOM else None
        if checkpoint is not None:
            rows = round((len(checkpoint.tensors["positional_embedding"]) - 1) ** 0.5)
            size = size or rows * checkpoint.tensors["conv1.weight"].shape[-1]
        with quiet(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(SEED)
            clip = open_clip.create_model(
                params.model, pretrained=tag, force_image_size=size, quick_gelu=quick_gelu, weights_only=True,
                **({} if tag else {"text_cfg": NO_TEXT}),
            )  # fmt: skip
        self.said: dict[str, Any] = open_clip.get_model_preprocess_cfg(clip)
        if checkpoint is not None:
            self.said = {}  # open_clip's defaults are not the file's
            wanted = {f"visual.{name}": tensor for name, tensor in checkpoint.tensors.items()}
            open_clip.model.resize_pos_embed(wanted, clip)
            if "visual.proj" not in wanted:
                clip.visual.proj = None
            clip.visual.load_state_dict({name.removeprefix("visual."): tensor for name, tensor in wanted.items()})
        self.visual = clip.visual.eval().requires_grad_(False)
        self.visual.output_tokens = True  # makes its forward pass return the tokens after the last norm, too
        self._raw = torch.empty(0)
        self.visual.transformer.register_forward_hook(self._keep)

    def _keep(self, _: nn.Module, __: object, raw: Tensor) -> None:
        self._raw = raw

    def to(self, device: torch.device) -> None:
        self.visual.to(device)

    @property
    def positions(self) -> Tensor:
        return self.visual.positional_embedding

    @property
    def patch(self) -> int:
        return self.visual.patch_size[0]

    @property
    def projection(self) -> Tensor | None:
        return self.visual.proj

    def norm(self, tokens: Tensor) -> Tensor:
        return self.visual.ln_post(tokens)

    def raw(self, images: Tensor) -> Tensor:
        self.visual(images)
        return self._raw

    def encode_image(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return self.visual(images)


class _HuggingFace:
    """Hugging Face's `CLIPVisionModel`, written out: three matrices for attention, norms before each half."""

    def __init__(self, checkpoint: Checkpoint, quick_gelu: bool, heads: int, image_size: int | None) -> None:
        self._weights = {name.removeprefix("vision_model."): tensor for name, tensor in checkpoint.tensors.items()}
        self._quick_gelu, self._heads = quick_gelu, heads
        self._layers = len({name.split(".")[2] for name in self._weights if name.startswith("encoder.layers.")})
        self.patch = self._weights["embeddings.patch_embedding.weight"].shape[-1]
        self.positions = self._weights["embeddings.position_embedding.weight"]
        if image_size:
            resized = {"visual.positional_embedding": self.positions}
            grid = SimpleNamespace(grid_size=(image_size // self.patch, image_size // self.patch))
            open_clip.model.resize_pos_embed(resized, SimpleNamespace(visual=grid))
            self.positions = resized["visual.positional_embedding"]

    def to(self, device: torch.device) -> None:
        self._weights = {name: tensor.to(device) for name, tensor in self._weights.items()}
        self.positions = self.positions.to(device)

    @property
    def projection(self) -> Tensor | None:
        weight = self._weights.get("visual_projection.weight")  # [D, C]
        return None if weight is None else weight.T

    def norm(self, tokens: Tensor) -> Tensor:
        return self._norm("post_layernorm", tokens)

    def raw(self, images: Tensor) -> Tensor:
        x = functional.conv2d(images, self._weights["embeddings.patch_embedding.weight"], stride=self.patch)
        x = x.flatten(2).transpose(1, 2)  # (B, P, C)
        token = self._weights["embeddings.class_embedding"].expand(len(x), 1, -1)
        x = self._norm("pre_layrnorm", torch.cat([token, x], 1) + self.positions)  # (B, 1 + P, C)
        for i in range(self._layers):
            layer = f"encoder.layers.{i}"
            x = x + self._attention(f"{layer}.self_attn", self._norm(f"{layer}.layer_norm1", x))
            hidden = self._linear(f"{layer}.mlp.fc1", self._norm(f"{layer}.layer_norm2", x))
            hidden = hidden * torch.sigmoid(1.702 * hidden) if self._quick_gelu else functional.gelu(hidden)
            x = x + self._linear(f"{layer}.mlp.fc2", hidden)
        return x

    def encode_image(self, images: Tensor) -> tuple[Tensor, Tensor]:
        tokens = self.norm(self.raw(images))
        pooled = tokens[:, 0]
        return pooled if self.projection is None else pooled @ self.projection, tokens[:, 1:]

    def _attention(self, name: str, x: Tensor) -> Tensor:
        q, k, v = (  # (B, heads, 1 + P, C / heads)
            self._linear(f"{name}.{letter}_proj", x).unflatten(-1, (self._heads, -1)).transpose(1, 2)
            for letter in "qkv"
        )
        weights = (q @ k.transpose(2, 3) / q.shape[-1] ** 0.5).softmax(-1)
        return self._linear(f"{name}.out_proj", (weights @ v).transpose(1, 2).flatten(2))

    def _linear(self, name: str, x: Tensor) -> Tensor:
        return functional.linear(x, self._weights[f"{name}.weight"], self._weights[f"{name}.bias"])

    def _norm(self, name: str, x: Tensor) -> Tensor:
        return functional.layer_norm(x, x.shape[-1:], self._weights[f"{name}.weight"], self._weights[f"{name}.bias"])


def _said(checkpoint: Checkpoint) -> dict[str, Any]:
    """What the file, or those beside it, say; unchecked, and without what they do not say."""
    if checkpoint.is_openai:
        mean, std = open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD
        return {"quick_gelu": True, "mean": mean, "std": std, "resize_mode": "shortest", "interpolation": "bicubic"}
    paths = [checkpoint.path.with_name(name) for name in checkpoint.config_names]
    contents = [json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {} for path in paths]
    if checkpoint.is_hugging_face:
        return _said_by_hugging_face(*contents)
    (content,) = contents
    images, model = content.get("preprocess_cfg"), content.get("model_cfg", content)
    said = {} if images is None else merge_preprocess_dict(PreprocessCfg(), images)
    if not {"mean", "std"} <= set(images or {}):
        said.pop("mean", None), said.pop("std", None)
    said.pop("size", None)
    if content:
        said |= {"quick_gelu": model.get("quick_gelu", False), "size": model["vision_cfg"].get("image_size")}
    return said


def _said_by_hugging_face(config: dict[str, Any], images: dict[str, Any]) -> dict[str, Any]:
    said: dict[str, Any] = {"mean": images.get("image_mean"), "std": images.get("image_std")}
    if config:
        tower = config.get("vision_config", config) | (config.get("vision_config_dict") or {})
        said |= {"quick_gelu": tower.get("hidden_act") != "gelu", "heads": tower.get("num_attention_heads", 12)}
    if "resample" in images:
        said["interpolation"] = Image.Resampling(images["resample"]).name.lower()
    if "size" in images:
        said["resize_mode"] = "squash" if "height" in str(images["size"]) else "shortest"
    return said
