"""Files of CLIP weights as open_clip, OpenAI and Hugging Face write them, of a tiny model that nobody has trained."""

import json
import re
from pathlib import Path

import open_clip
import torch
from safetensors.torch import save_file
from torch import nn

from sightline.clip.pretraining import OPENAI_MEAN, OPENAI_STD

MODEL, SIDE = "ViT-tiny-test", 32  # a model of this name, with 2 x 2 patches, is known to open_clip after `add_model`
OTHER_MEAN, OTHER_STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
_TEXT = {"context_length": 4, "vocab_size": 16, "width": 16, "heads": 1, "layers": 1}
CONFIG = {
    "embed_dim": 24, "text_cfg": _TEXT,
    "vision_cfg": {"image_size": SIDE, "layers": 2, "width": 128, "patch_size": 16},
}  # fmt: skip


def add_model(folder: Path) -> None:
    """Make `MODEL`, and the same with QuickGELU, known to open_clip."""
    for name, more in ((MODEL, {}), (f"{MODEL}-quickgelu", {"quick_gelu": True})):
        (folder / f"{name}.json").write_text(json.dumps(CONFIG | more))
        open_clip.add_model_config(folder / f"{name}.json")


def tiny_clip(quick_gelu: bool = False, image_size: int = SIDE, seed: int = 1) -> nn.Module:
    """The same weights each time, large enough for the activation to count."""
    torch.manual_seed(seed)
    clip = open_clip.create_model(MODEL, quick_gelu=quick_gelu, force_image_size=image_size).eval()
    with torch.no_grad():
        for name, weights in clip.visual.named_parameters():
            if weights.ndim > 1 and "conv1" not in name:
                weights.normal_(std=0.1)
            elif name.endswith(("bias", "class_embedding")):
                weights.normal_(std=0.3)
    return clip


def open_clip_config(folder: Path, quick_gelu: bool | None = None, preprocess: dict | None = None, **vision) -> None:
    """``open_clip_config.json``, as in a repository of open_clip."""
    model = CONFIG | {"vision_cfg": CONFIG["vision_cfg"] | vision}
    model |= {} if quick_gelu is None else {"quick_gelu": quick_gelu}
    content = {"model_cfg": model, "preprocess_cfg": {"mean": OPENAI_MEAN, "std": OPENAI_STD} | (preprocess or {})}
    (folder / "open_clip_config.json").write_text(json.dumps(content))


def hugging_face_configs(folder: Path, activation: str = "quick_gelu", images: dict | None = None, **tower) -> None:
    """``config.json`` and ``preprocessor_config.json``, as in a repository of Hugging Face."""
    tower = {"hidden_act": activation, "num_attention_heads": 2, "image_size": SIDE, "hidden_size": 128} | tower
    (folder / "config.json").write_text(json.dumps({"model_type": "clip", "vision_config": tower}))
    prepared = {
        "image_mean": OPENAI_MEAN, "image_std": OPENAI_STD, "resample": 3, "size": {"shortest_edge": SIDE},
        "crop_size": {"height": SIDE, "width": SIDE}, "do_center_crop": True, "do_normalize": True, "do_resize": True,
        "do_rescale": True, "rescale_factor": 1 / 255,
    }  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps(prepared | (images or {})))


def hugging_face_state(clip: nn.Module) -> dict[str, torch.Tensor]:
    """The image tower under the names of Hugging Face's `CLIPModel`."""
    state: dict[str, torch.Tensor] = {"vision_model.embeddings.position_ids": torch.arange(5)[None]}
    names = {
        "class_embedding": "embeddings.class_embedding", "positional_embedding": "embeddings.position_embedding.weight",
        "conv1.weight": "embeddings.patch_embedding.weight",
    }  # fmt: skip
    for name, tensor in clip.visual.state_dict().items():
        block = re.fullmatch(r"transformer\.resblocks\.(\d+)\.(.*)", name)
        if name == "proj":
            state["visual_projection.weight"] = tensor.T.contiguous()
        elif block and "in_proj" in block[2]:
            for letter, part in zip("qkv", tensor.chunk(3), strict=True):
                kind = block[2].rpartition("_")[2]
                state[f"vision_model.encoder.layers.{block[1]}.self_attn.{letter}_proj.{kind}"] = part.clone()
        elif block:
            inner = block[2].replace("ln_", "layer_norm").replace("attn.", "self_attn.")
            inner = inner.replace("mlp.c_fc", "mlp.fc1").replace("mlp.c_proj", "mlp.fc2")
            state[f"vision_model.encoder.layers.{block[1]}.{inner}"] = tensor
        else:
            name = names.get(name, name.replace("ln_pre", "pre_layrnorm").replace("ln_post", "post_layernorm"))
            state[f"vision_model.{name}"] = tensor
    return state


class _Holder(nn.Module):
    """A module whose state dict is the one that it was made of."""

    def __init__(self, state: dict[str, torch.Tensor]) -> None:
        super().__init__()
        inner: dict[str, dict[str, torch.Tensor]] = {}
        for name, tensor in state.items():
            first, _, rest = name.partition(".")
            if rest:
                inner.setdefault(first, {})[rest] = tensor
            else:
                self.register_buffer(first, tensor)
        for name, part in inner.items():
            self.add_module(name, _Holder(part))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return image * 2


def torchscript_archive(path: Path, state: dict[str, torch.Tensor]) -> None:
    """A program and its tensors, in half precision, as ``torch.jit.save`` writes them."""
    half = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    torch.jit.save(torch.jit.trace(_Holder(half), torch.zeros(1)), path)


def openai_archive(path: Path, clip: nn.Module) -> None:
    """As OpenAI publishes its models."""
    sizes = {"input_resolution": SIDE, "context_length": 4, "vocab_size": 16}
    state = clip.state_dict() | {name: torch.tensor(size) for name, size in sizes.items()}
    torchscript_archive(path, state)


def write_kind(kind: str, folder: Path, clip: nn.Module) -> Path:
    """Write the weights as ``kind`` says -> the file."""
    whole = {name: tensor.contiguous() for name, tensor in clip.state_dict().items()}
    tower = {name: tensor for name, tensor in whole.items() if name.startswith("visual.")}
    if kind.endswith("safetensors"):
        state = hugging_face_state(clip) if kind.startswith("hugging_face") else whole
        path = folder / "weights.safetensors"
        save_file(state, path)
        return path
    path = folder / "weights.pt"
    if kind == "openai":
        openai_archive(path, clip)
        return path
    torch.save(
        {
            "torch": whole,
            "state_dict": {"epoch": 3, "state_dict": whole, "optimizer": {"lr": 0.1}},
            "module": {"state_dict": {f"module.{name}": tensor for name, tensor in whole.items()}},
            "_orig_mod": {f"_orig_mod.{name}": tensor for name, tensor in whole.items()},
            "module._orig_mod": {f"module._orig_mod.{name}": tensor for name, tensor in whole.items()},
            "compiled_tower": {name.replace("visual.", "visual._orig_mod."): tensor for name, tensor in whole.items()},
            "half": {name: tensor.half() for name, tensor in whole.items()},
            "image_tower": tower,
            "image_tower_alone": {name.removeprefix("visual."): tensor for name, tensor in tower.items()},
            "hugging_face_torch": hugging_face_state(clip),
        }[kind],
        path,
    )
    return path
