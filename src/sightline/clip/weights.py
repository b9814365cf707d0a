"""Image towers of open_clip models (github.com/mlfoundations/open_clip): weights, and what they were trained on."""

import difflib
import hashlib
import json
import logging
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sightline.clip.checkpoints import Checkpoint, read_checkpoint
from sightline.clip.params import RANDOM, GridParams
from sightline.clip.pretraining import OPENAI_MEAN, OPENAI_STD, Pretraining, pretraining_of
from sightline.core.errors import UserError
from sightline.core.weights_file import check_sha256, weights_path
from sightline.training.processes import rank

SEED = 0  # of random weights
NO_TEXT = {"context_length": 1, "vocab_size": 1, "width": 8, "heads": 1, "layers": 1}


@dataclass(frozen=True)
class ImageTower:
    """A CLIP model's vision transformer, in evaluation mode, and what its weights expect."""

    visual: Any  # open_clip's VisionTransformer, a module; calling it gives `encode_image`
    sha256: str  # of the file of weights; of the weights themselves where they are random
    random: bool
    quick_gelu: bool
    image_size: int  # side of the square input, pixels
    rows: int  # patches along a side
    positions: str  # random, as trained, or interpolated from which grid
    width: int  # numbers in a token
    projected_width: int  # numbers in a token after the projection to text space
    mean: tuple[float, ...]  # of RGB in [0, 1]
    std: tuple[float, ...]
    resize_mode: str  # shortest (then a central crop), squash, longest
    interpolation: str


def load_image_tower(params: GridParams) -> ImageTower:
    """Build the image tower that ``params`` name, with its weights, on the CPU, in float32.

    ``params.model`` is an open_clip model whose image tower is a vision transformer with a class token;
    ``params.pretrained`` a tag of open_clip (downloaded where it is not in open_clip's cache), a file of weights (see
    `sightline.clip.checkpoints`) or an installed package that has one, or "random".

    Raises:
        UserError: no such model, tag or file, weights of another model, no network; an activation that the weights
            were not trained with; a size that is no multiple of the patch size; a file of weights of which it is not
            known what they were trained with, see `sightline.clip.pretraining`.
    """
    import open_clip  # takes two seconds

    model, pretrained = params.model, params.pretrained
    config = open_clip.get_model_config(model)
    if config is None:
        close = difflib.get_close_matches(model, open_clip.list_models(), 4) or ["ViT-B-16"]
        raise UserError(
            f"{params.key('model')}: open_clip has no model {model!r}; some that it has: {', '.join(close)}"
        )
    _check_architecture(params, config["vision_cfg"])
    tag = open_clip.get_pretrained_cfg(model, pretrained)
    if not tag and pretrained != RANDOM:
        return _from_file(params, config)
    _check_activation(params, tag, config)
    quick_gelu, random = bool(params.quick_gelu or config.get("quick_gelu")), not tag
    with quiet(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        try:
            clip = open_clip.create_model(
                model,
                pretrained=None if random else pretrained,
                force_image_size=params.image_size,
                force_quick_gelu=quick_gelu,
                weights_only=True,
            )
        except Exception as error:  # whatever torch, the network or a hub may raise
            raise UserError(
                f"{params.key('pretrained')}: the weights {pretrained!r} of {model} cannot be downloaded "
                f"({reason(error)}); download them where there is a network, or name a file"
            ) from None
    visual, expected = clip.visual, open_clip.get_model_preprocess_cfg(clip)
    trained = config["vision_cfg"].get("image_size", 224) // config["vision_cfg"]["patch_size"]
    said = Pretraining(
        quick_gelu, expected["mean"], expected["std"], expected["resize_mode"], expected["interpolation"]
    )
    if not random:
        _tell_of_changes(params, said)
    path = "" if random else open_clip.download_pretrained(tag)  # from open_clip's cache
    expected, key = params.sha256, params.key("sha256")
    if random and expected:
        raise UserError(f"{key}: {params.key('pretrained')} is random, no file; leave it null")
    sha256 = check_sha256(Path(path), expected, key) if path else state_sha256(visual)
    return _tower(visual, sha256, _settled(params, said), None if random else trained)


def _from_file(params: GridParams, config: dict[str, Any]) -> ImageTower:
    """The tower of a file of weights, trained as the file, those beside it, or the parameters say."""
    import open_clip
    from open_clip.model import resize_pos_embed

    model, path, vision = params.model, weights_path(params.pretrained, params.key("pretrained")), config["vision_cfg"]
    if not path.is_file():
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(model)) or "none"
        raise UserError(
            f"{params.key('pretrained')}: {params.pretrained!r} is neither a file nor a tag of {model} (its tags: "
            f"{tags}); untrained weights are asked for by `random`"
        )
    sha256 = check_sha256(path, params.sha256, params.key("sha256"))
    checkpoint = read_checkpoint(path)
    said = pretraining_of(checkpoint, params, vision)
    by_name = model.endswith("-quickgelu")
    if by_name and said.quick_gelu is None:
        said = replace(said, quick_gelu=True)
    _tell_of_changes(params, said)
    settled = _settled(params, said)
    _ask_for_missing(params, checkpoint, settled)
    if by_name and not settled.quick_gelu:
        right = model.removesuffix("-quickgelu")
        raise UserError(f"{params.key('model')}: {path} was trained without QuickGELU; set it to {right}")
    state = checkpoint.as_open_clip()
    if "proj" not in state and params.source == "projected":
        raise UserError(f"{params.key('tokens')}: {path} has no projection to text space; set it to ln_post or raw")
    # the positions tell the size that it was trained with
    rows, patch = _rows(path, state), vision["patch_size"]
    described = settled.image_size or rows * patch
    if params.image_size is None and described // patch != rows:
        raise UserError(
            f"{params.key('image_size')}: {path} has positions for {rows * patch} pixels, but its images are described "
            f"as of {described}; set the one to compute with"
        )
    size = params.image_size or described
    # an image tower of that size; of the text tower, which we do not need, next to nothing
    with quiet(), torch.random.fork_rng(devices=[]):
        clip = open_clip.create_model(
            model, force_image_size=size, quick_gelu=settled.quick_gelu, text_cfg=NO_TEXT, pretrained_text=False
        )
    if "proj" not in state:
        clip.visual.proj = None
    if size // patch != rows:
        positions = {"visual.positional_embedding": state["positional_embedding"]}
        resize_pos_embed(positions, clip)
        state["positional_embedding"] = positions["visual.positional_embedding"]
    _check_fit(path, params, clip.visual.state_dict(), state)
    clip.visual.load_state_dict(state)
    return _tower(clip.visual, sha256, settled, rows)


def _check_fit(path: Path, params: GridParams, ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    """Raise `UserError` naming the first of the weights that the model has and the file has not, or the other way."""
    for name in sorted(ours.keys() | theirs.keys()):
        sizes = [list(state[name].shape) if name in state else "none" for state in (ours, theirs)]
        if sizes[0] != sizes[1]:
            raise UserError(
                f"{path}: not weights of {params.model}: {name} is {sizes[1]} there, {sizes[0]} in the model; set "
                f"{params.key('model')} to the model that they were saved from"
            )


def _tell_of_changes(params: GridParams, said: Pretraining) -> None:
    """Warn where the parameters are others than those that the weights were trained with."""
    for name in ("quick_gelu", "mean", "std", "interpolation"):
        ours, theirs = (json.dumps(getattr(source, name)) for source in (params, said))
        if "null" not in (ours, theirs) and ours != theirs and rank() == 0:
            warnings.warn(f"{params.key(name)} is {ours}, though the weights were trained with {theirs}", stacklevel=4)


def _settled(params: GridParams, said: Pretraining) -> Pretraining:
    """What the parameters and the weights say; the parameters win."""
    mode = None if params.resize == "weights" else params.resize
    wanted = {name: getattr(params, name) for name in ("quick_gelu", "mean", "std", "interpolation")}
    wanted["resize_mode"] = mode
    return replace(said, **{name: value for name, value in wanted.items() if value is not None})


def _ask_for_missing(params: GridParams, checkpoint: Checkpoint, settled: Pretraining) -> None:
    """Raise `UserError` naming each parameter that must be set, with the value for weights of OpenAI."""
    of_openai = {
        "quick_gelu": (settled.quick_gelu, "true"),
        "mean": (settled.mean, json.dumps(OPENAI_MEAN)),
        "std": (settled.std, json.dumps(OPENAI_STD)),
        "resize": (settled.resize_mode, "shortest"),
        "interpolation": (settled.interpolation, "bicubic"),
    }
    missing = {params.key(name): theirs for name, (value, theirs) in of_openai.items() if value is None}
    if missing:
        values = "; ".join(f"{name}={value}".replace(" ", "") for name, value in missing.items())
        raise UserError(
            f"{', '.join(missing)}: not known from {checkpoint.path}; put the {' and '.join(checkpoint.config_names)} "
            f"that came with it beside it, or set them (weights of OpenAI: {values}; others: as their authors say)"
        )


def _rows(path: Path, state: dict[str, Tensor]) -> int:
    """Patches along a side of the images that the weights were trained on, from their positions."""
    positions = state.get("positional_embedding", torch.empty(0))
    rows = math.isqrt(max(0, len(positions) - 1))
    if positions.ndim != 2 or not rows or rows**2 + 1 != len(positions):
        raise UserError(f"{path}: has no positions of a class token and a square of patches; take one like ViT-B-16's")
    return rows


def _tower(visual: Any, sha256: str, settled: Pretraining, trained_rows: int | None) -> ImageTower:
    """``trained_rows``: patches along a side that there are trained positions for; None where there are none."""
    rows = visual.grid_size[0]
    trained = "as trained" if trained_rows == rows else f"interpolated from {trained_rows}x{trained_rows}"
    known: dict[str, Any] = {name: getattr(settled, name) for name in ("quick_gelu", "resize_mode", "interpolation")}
    return ImageTower(
        visual=visual.eval().requires_grad_(False),
        sha256=sha256,
        random=trained_rows is None,
        image_size=visual.image_size[0],
        rows=rows,
        positions="random" if trained_rows is None else trained,
        width=visual.conv1.out_channels,
        projected_width=visual.output_dim,
        mean=tuple(settled.mean or ()),
        std=tuple(settled.std or ()),
        **known,
    )


def _check_architecture(params: GridParams, vision: dict[str, Any]) -> None:
    model, image_size = params.model, params.image_size
    pooled = vision.get("attentional_pool") or vision.get("pool_type", "tok") != "tok"
    if not isinstance(vision.get("layers"), int) or "patch_size" not in vision or pooled:
        raise UserError(
            f"{params.key('model')}: {model} is not a vision transformer with a class token; take one like ViT-B-16"
        )
    patch, size = vision["patch_size"], image_size or vision["image_size"]
    if image_size and size % patch:
        raise UserError(
            f"{params.key('image_size')}: {size} is no multiple of the {patch} pixels of a patch of {model}"
        )


def _check_activation(params: GridParams, tag: dict[str, Any], config: dict[str, Any]) -> None:
    """Raise `UserError` where the model or the parameters do not fit the tag, which is certain of its activation."""
    model, wanted = params.model, bool(tag.get("quick_gelu", False))
    words = f"the weights {params.pretrained!r} were trained {'with' if wanted else 'without'} QuickGELU"
    if tag and params.quick_gelu not in (None, wanted):
        raise UserError(f"{params.key('quick_gelu')}: {words}; leave it null")
    if config.get("quick_gelu") and (params.quick_gelu is False or (tag and not wanted)):
        words = words if tag else f"{params.key('quick_gelu')} is false"
        right = model.removesuffix("-quickgelu")
        raise UserError(f"{params.key('model')}: {words}, {model} computes with it; set it to {right}")
    if wanted and not (config.get("quick_gelu") or params.quick_gelu):
        raise UserError(f"{params.key('model')}: {words}, {model} computes without it; set it to {model}-quickgelu")


def reason(error: Exception) -> str:
    return (" ".join(str(error).split()) or type(error).__name__)[:200]


def state_sha256(module: nn.Module) -> str:
    state = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        state.update(name.encode())
        state.update(value.contiguous().numpy().data)
    return state.hexdigest()


@contextmanager
def quiet() -> Iterator[None]:
    """Silence open_clip: what it logs, we report ourselves, as an error, an attribute of the file or a warning."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logging.disable(before)
