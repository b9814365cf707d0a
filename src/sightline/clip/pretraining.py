"""What weights of CLIP were trained with, and their file may not say: activation, normalisation, resizing, input size.

open_clip and Hugging Face keep it in files beside the weights. Nothing is assumed where neither these files nor the
parameters say it: a wrong activation or mean gives grids that look as good as right ones.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sightline.clip.checkpoints import Checkpoint
from sightline.clip.params import GridParams
from sightline.core.errors import UserError

OPENAI_MEAN, OPENAI_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
Triple = tuple[float, float, float]
RESIZING, INTERPOLATION = ("shortest", "squash", "longest"), ("bicubic", "bilinear")
_NO_MATTER = ("image_size", "patch_dropout", "output_tokens")  # of an image tower's configuration, for its tokens
_WIDTH, _HEAD_WIDTH, _EPSILON = 768, 64, 1e-5  # open_clip's, where a model's configuration has no others


@dataclass(frozen=True)
class Pretraining:
    """What the weights expect; None where it is not known."""

    quick_gelu: bool | None = None
    mean: Triple | None = None  # of RGB in [0, 1]
    std: Triple | None = None
    resize_mode: str | None = None  # shortest (then a central crop), squash, longest
    interpolation: str | None = None
    image_size: int | None = None  # side of the square input, pixels


def pretraining_of(checkpoint: Checkpoint, params: GridParams, vision: dict[str, Any]) -> Pretraining:
    """What the file of weights, or those beside it, say about them.

    Args:
        params: which open_clip model the weights are for.
        vision: the configuration of its image tower.

    Raises:
        UserError: a file beside it that cannot be read, or describes another model, or what we cannot compute.
    """
    if checkpoint.is_openai:
        return Pretraining(True, OPENAI_MEAN, OPENAI_STD, "shortest", "bicubic")
    if checkpoint.is_hugging_face:
        return _of_hugging_face(checkpoint.path, params, vision)
    return _of_open_clip(checkpoint.path, params, vision)


def _of_open_clip(weights: Path, params: GridParams, vision: dict[str, Any]) -> Pretraining:
    """From ``open_clip_config.json``, as open_clip itself reads it: what it leaves out is at open_clip's default."""
    from open_clip import CLIPVisionCfg

    path = weights.with_name("open_clip_config.json")
    content = _read_json(path)
    if content is None:
        return Pretraining()
    config, images = content.get("model_cfg", content), content.get("preprocess_cfg")
    described, images = _part(path, config, "vision_cfg"), images if isinstance(images, dict) else None
    default = asdict(CLIPVisionCfg())
    ours, theirs = default | vision, default | described
    for key in sorted((ours.keys() | theirs.keys()) - {*_NO_MATTER}):
        if ours.get(key) != theirs.get(key):
            raise UserError(
                f"{params.key('model')}: {params.model} has the {key} {ours.get(key)} in its image tower, {path} "
                f"describes one with {theirs.get(key)}; name the model of these weights"
            )
    return Pretraining(
        quick_gelu=bool(config.get("quick_gelu", False)),
        mean=_triple(path, "mean", (images or {}).get("mean")),
        std=_triple(path, "std", (images or {}).get("std")),
        resize_mode=None if images is None else _one_of(RESIZING, images.get("resize_mode", "shortest")),
        interpolation=None if images is None else _one_of(INTERPOLATION, images.get("interpolation", "bicubic")),
        image_size=_side(theirs["image_size"]),
    )


def _of_hugging_face(weights: Path, params: GridParams, vision: dict[str, Any]) -> Pretraining:
    """From ``config.json`` and ``preprocessor_config.json``, whose defaults are those of transformers' classes."""
    path = weights.with_name("config.json")
    config, quick_gelu, size = _read_json(path), None, None
    if config is not None:
        kind = config.get("model_type")
        if kind not in ("clip", "clip_vision_model"):
            raise UserError(f"{path}: describes a model of type {kind}, not of clip; name weights of a CLIP model")
        tower = config
        if kind == "clip":
            older = config.get("vision_config_dict")  # wins, as in transformers
            tower = _part(path, config, "vision_config") | (older if isinstance(older, dict) else {})
        heads = tower.get("num_attention_heads", 12)
        expected = vision.get("width", _WIDTH) // vision.get("head_width", _HEAD_WIDTH)
        if heads != expected:  # fits the weights of any number of heads
            raise UserError(
                f"{params.key('model')}: {params.model} has {expected} heads, {path} describes {heads}; name another"
            )
        activation, epsilon = tower.get("hidden_act", "quick_gelu"), tower.get("layer_norm_eps", _EPSILON)
        ours = (vision.get("norm_kwargs") or {}).get("eps", _EPSILON)
        if activation not in ("quick_gelu", "gelu") or epsilon != ours:
            raise UserError(
                f"{path}: hidden_act {activation}, layer_norm_eps {epsilon}: {params.model} computes with gelu or "
                f"quick_gelu, and {ours}; take weights of such a model"
            )
        quick_gelu, size = activation == "quick_gelu", _side(tower.get("image_size", 224))
    path = weights.with_name("preprocessor_config.json")
    images = _read_json(path)
    if images is None:
        return Pretraining(quick_gelu, image_size=size)
    factor = images.get("rescale_factor", 1 / 255)
    in_range = images.get("do_normalize", True) and images.get("do_rescale", True)
    in_range = in_range and isinstance(factor, int | float) and abs(factor * 255 - 1) < 1e-3
    prepared, cut = images.get("size"), images.get("crop_size") if images.get("do_center_crop", True) else None
    mode, side = None, _side(prepared)
    if images.get("do_resize", True) and side and (cut is None or _side(cut) == side):
        exact = isinstance(prepared, dict) and "height" in prepared
        mode = "squash" if exact else "shortest" if cut else None
    return Pretraining(
        quick_gelu=quick_gelu,
        mean=_triple(path, "image_mean", images.get("image_mean")) if in_range else None,
        std=_triple(path, "image_std", images.get("image_std")) if in_range else None,
        resize_mode=mode,
        interpolation={"2": "bilinear", "3": "bicubic"}.get(str(images.get("resample"))),  # Pillow's numbers
        image_size=_side(cut) or side or size,
    )


def _read_json(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not readable as JSON ({error}); mend or remove it") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: not a configuration of a model; mend or remove it")
    return content


def _part(path: Path, config: Any, key: str) -> dict[str, Any]:
    part = config.get(key) if isinstance(config, dict) else None
    if not isinstance(part, dict):
        raise UserError(f"{path}: has no {key}, so it describes no CLIP model; mend or remove it")
    return part


def _triple(path: Path, key: str, value: Any) -> Triple | None:
    if value is None:
        return None
    of_rgb = isinstance(value, list) and len(value) == 3 and all(isinstance(one, int | float) for one in value)
    if not of_rgb or not all(0 <= one <= 1 for one in value) or ("std" in key and not all(value)):
        raise UserError(f"{path}: {key}: {value} are not three numbers for RGB in [0, 1]; mend it")
    return float(value[0]), float(value[1]), float(value[2])


def _one_of(choices: tuple[str, ...], value: Any) -> str | None:
    return value if value in choices else None


def _side(size: Any) -> int | None:
    """Side of a square that is written as a number, a pair, or by names; None where it is no square."""
    if isinstance(size, dict):
        size = [size.get("height"), size.get("width")] if "height" in size else size.get("shortest_edge")
    if isinstance(size, list):
        size = size[0] if len(size) == 2 and size[0] == size[1] else None
    return size if isinstance(size, int) and size > 0 else None
