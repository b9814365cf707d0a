"""Image towers of open_clip models (github.com/mlfoundations/open_clip): weights, and what they were trained on."""

import difflib
import hashlib
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sightline.clip.params import RANDOM
from sightline.core.errors import UserError
from sightline.core.files import file_sha256

SEED = 0  # of random weights


@dataclass(frozen=True)
class ImageTower:
    """A CLIP model's vision transformer, in evaluation mode, and what its weights expect."""

    visual: Any  # open_clip's VisionTransformer, a module; calling it gives `encode_image`
    sha256: str  # of the file of weights; of the weights themselves where they are random
    random: bool
    quick_gelu: bool
    image_size: int  # side of the square input, pixels
    rows: int  # patches along a side
    width: int  # numbers in a token
    projected_width: int  # numbers in a token after the projection to text space
    mean: tuple[float, ...]  # of RGB in [0, 1]
    std: tuple[float, ...]
    resize_mode: str  # shortest (then a central crop), squash, longest
    interpolation: str


def load_image_tower(model: str, pretrained: str, image_size: int | None = None) -> ImageTower:
    """Build the image tower of ``model`` with its weights, on the CPU, in float32.

    Args:
        model: name of an open_clip model whose image tower is a vision transformer with a class token.
        pretrained: a tag of open_clip (downloaded where it is not in open_clip's cache), a file (safetensors, or a
            torch file that holds nothing but tensors), or "random".
        image_size: side of the input; the positions are interpolated to it. None takes the model's own.

    Raises:
        UserError: no such model, tag or file, weights of another model, no network, an activation that the weights
            were not trained with, a size that is no multiple of the patch size.
    """
    import open_clip  # takes two seconds

    config = open_clip.get_model_config(model)
    if config is None:
        close = difflib.get_close_matches(model, open_clip.list_models(), 4) or ["ViT-B-16"]
        raise UserError(f"clip.model: open_clip has no model {model!r}; some that it has: {', '.join(close)}")
    _check_architecture(model, config["vision_cfg"], image_size)
    random, from_file = pretrained == RANDOM, False
    if not random:
        tag = open_clip.get_pretrained_cfg(model, pretrained)
        from_file = not tag
        _check_source(open_clip, model, pretrained, tag, config)
    with _quiet(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        try:
            clip = open_clip.create_model(
                model, pretrained=None if random else pretrained, force_image_size=image_size, weights_only=True
            )
        except Exception as error:  # whatever torch, the network or a hub may raise
            raise UserError(_explain(model, pretrained, from_file, error)) from None
    visual, expected = clip.visual.eval().requires_grad_(False), open_clip.get_model_preprocess_cfg(clip)
    path = "" if random else pretrained if from_file else open_clip.download_pretrained(tag)  # from open_clip's cache
    return ImageTower(
        visual=visual,
        sha256=file_sha256(Path(path)) if path else _state_sha256(visual),
        random=random,
        quick_gelu=bool(config.get("quick_gelu", False)),
        image_size=visual.image_size[0],
        rows=visual.grid_size[0],
        width=visual.conv1.out_channels,
        projected_width=visual.output_dim,
        mean=tuple(expected["mean"]),
        std=tuple(expected["std"]),
        resize_mode=expected["resize_mode"],
        interpolation=expected["interpolation"],
    )


def _check_architecture(model: str, vision: dict[str, Any], image_size: int | None) -> None:
    pooled = vision.get("attentional_pool") or vision.get("pool_type", "tok") != "tok"
    if not isinstance(vision.get("layers"), int) or "patch_size" not in vision or pooled:
        raise UserError(f"clip.model: {model} is not a vision transformer with a class token; take one like ViT-B-16")
    patch, size = vision["patch_size"], image_size or vision["image_size"]
    if image_size and size % patch:
        raise UserError(f"clip.image_size: {size} is no multiple of the {patch} pixels of a patch of {model}")


def _check_source(open_clip: Any, model: str, pretrained: str, tag: dict[str, Any], config: dict[str, Any]) -> None:
    if not tag and not Path(pretrained).is_file():
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(model)) or "none"
        raise UserError(
            f"clip.pretrained: {pretrained!r} is neither a file nor a tag of {model} (its tags: {tags}); "
            "untrained weights are asked for by `random`"
        )
    wanted = bool(tag.get("quick_gelu", False))
    if tag and wanted != bool(config.get("quick_gelu", False)):
        right = f"{model}-quickgelu" if wanted else model.removesuffix("-quickgelu")
        raise UserError(
            f"clip.model: the weights {pretrained!r} were trained {'with' if wanted else 'without'} QuickGELU, "
            f"{model} computes {'without' if wanted else 'with'} it; set clip.model to {right}"
        )


def _explain(model: str, pretrained: str, from_file: bool, error: Exception) -> str:
    reason = (" ".join(str(error).split()) or type(error).__name__)[:200]
    if not from_file and pretrained != RANDOM:
        return (
            f"clip.pretrained: the weights {pretrained!r} of {model} cannot be downloaded ({reason}); download them "
            "where there is a network, or name a file"
        )
    if "TorchScript" in reason or "weights_only" in reason.lower() or "Weights only" in reason:
        return (
            f"{pretrained}: holds a program, not only tensors, and is not run; name an open_clip tag (openai, for the "
            "files that OpenAI published), or save its state_dict as safetensors"
        )
    return f"{pretrained}: not weights of {model} ({reason})"


def _state_sha256(module: nn.Module) -> str:
    state = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        state.update(name.encode())
        state.update(value.contiguous().numpy().data)
    return state.hexdigest()


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence open_clip: what it logs, we report ourselves, as an error, an attribute of the file or a warning."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logging.disable(before)
