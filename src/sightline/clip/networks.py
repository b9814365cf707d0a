"""Image networks of timm (github.com/huggingface/pytorch-image-models): their last feature map is a grid of features.

The grid covers the picture as CLIP's does: timm's own transform would first cut the border off (``crop_pct``), after
which a grid could not be laid over the image that it is of.
"""

import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sightline.clip.checkpoints import read_tensors
from sightline.clip.params import RANDOM, TIMM, GridParams
from sightline.clip.weights import SEED, quiet, state_sha256
from sightline.core.errors import UserError
from sightline.core.weights_file import check_finite, check_sha256, weights_path

_PREPARED = ("input_size", "mean", "std", "interpolation")  # what a training decides, of timm's configurations


@dataclass(frozen=True)
class FeatureNetwork:
    """A network of timm in evaluation mode, and what its weights expect."""

    network: Any  # timm's model
    sha256: str  # of the file of weights; of the weights themselves where they are random
    random: bool
    image_size: int  # side of the square input, pixels
    rows: int  # of the last feature map, and its columns
    width: int  # channels of the last feature map
    mean: tuple[float, ...]  # of RGB in [0, 1]
    std: tuple[float, ...]
    resize_mode: str  # shortest (then a central square), squash
    interpolation: str


def load_feature_network(params: GridParams) -> FeatureNetwork:
    """Build the network that ``params`` name, with its weights, on the CPU, in float32.

    ``params.model`` is ``timm:NAME``, or ``timm:NAME.TAG`` where there are weights of several trainings, which want
    different images; ``params.pretrained`` a file of its weights, an installed package that has one, or "random".

    Raises:
        UserError: no such network or training, a network without a square map, or of another size of images; no such
            file or package, weights of another network.
    """
    import timm  # takes a second

    name = _known(params)
    config = timm.data.resolve_data_config(pretrained_cfg=_config(params, name), use_test_size=False)
    size = params.image_size or config["input_size"][-1]
    with quiet(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        network = timm.create_model(name, pretrained=False).eval().requires_grad_(False)
    random = params.pretrained == RANDOM
    if random and params.sha256:
        raise UserError(f"{params.key('sha256')}: {params.key('pretrained')} is random, no file; leave it null")
    sha256 = state_sha256(network) if random else _load(network, params)
    shape = _shape_of_map(network, params, size)
    return FeatureNetwork(
        network=network,
        sha256=sha256,
        random=random,
        image_size=size,
        rows=shape[-1],
        width=shape[0],
        mean=params.mean or config["mean"],
        std=params.std or config["std"],
        resize_mode="shortest" if params.resize == "weights" else params.resize,
        interpolation=params.interpolation or config["interpolation"],
    )


def last_map(network: Any, images: Tensor) -> Tensor:
    """The output of the last stage for normalised ``images`` [B, 3, S, S]: [B, C, rows, columns]."""
    images = images.contiguous(memory_format=torch.channels_last)  # convolutions on a CPU are then twice as fast
    (features,) = network.forward_intermediates(images, indices=1, intermediates_only=True)
    return features


def _known(params: GridParams) -> str:
    """The name without ``timm:``."""
    import timm

    name = params.model.removeprefix(TIMM)
    if not timm.is_model(name):
        close = difflib.get_close_matches(name, timm.list_models(), 4) or ["tf_efficientnet_lite0"]
        raise UserError(f"{params.key('model')}: timm has no network {name!r}; some that it has: {', '.join(close)}")
    return name


def _config(params: GridParams, name: str) -> dict[str, Any]:
    """What timm knows of the images that the weights were trained on. Nothing is assumed where trainings differ."""
    from timm.models import get_arch_pretrained_cfgs, split_model_name_tag

    architecture, tag = split_model_name_tag(name)
    trainings = {known.rpartition(".")[2]: vars(cfg) for known, cfg in get_arch_pretrained_cfgs(architecture).items()}
    if not trainings:
        raise UserError(f"{params.key('model')}: timm does not know how to prepare images for {name}; take another")
    if tag and tag not in trainings:
        raise UserError(f"{params.key('model')}: {architecture} has no training {tag!r}; it has {', '.join(trainings)}")
    if not tag and params.pretrained != RANDOM and _differ(params, list(trainings.values())):
        raise UserError(
            f"{params.key('model')}: the weights of {name} were trained in different ways; say which these are, as in "
            f"{TIMM}{name}.{next(iter(trainings))}; there are {', '.join(trainings)}"
        )
    return trainings[tag or next(iter(trainings))]


def _differ(params: GridParams, trainings: list[dict[str, Any]]) -> bool:
    said = {"input_size": params.image_size, "mean": params.mean, "std": params.std}
    open_keys = [key for key in _PREPARED if (said | {"interpolation": params.interpolation})[key] is None]
    return len({str([training[key] for key in open_keys]) for training in trainings}) > 1


def _load(network: Any, params: GridParams) -> str:
    """Load the weights -> the SHA-256 of their file."""
    key = params.key("pretrained")
    path = weights_path(params.pretrained, key)
    if not path.is_file():
        wrong = "is a folder" if path.is_dir() else "no such file"
        raise UserError(f"{key}: {path}: {wrong}; name a file of weights, package:NAME, or random: untrained")
    sha256 = check_sha256(path, params.sha256, params.key("sha256"))
    state = fitted(path, network, read_tensors(path), params)
    network.load_state_dict(state, strict=False)  # but for the classifier, all are there
    return sha256


def fitted(path: Path, network: Any, tensors: dict[str, Tensor], params: GridParams) -> dict[str, Tensor]:
    """The weights under the network's names, without its classifier.

    Where a file has other names throughout (the network was ported), they are matched in their order; then every one,
    the classifier among them, must have the same shape, and the same last part of the name.

    Raises:
        UserError: weights of another network, or that are not finite.
    """
    check_finite(path, {name: tensor for name, tensor in tensors.items() if tensor.is_floating_point()})
    ours = network.state_dict()
    if not set(ours) & set(tensors) and len(ours) == len(tensors):
        renamed = dict(zip(ours, tensors, strict=True))
        if all(_last(name) == _last(theirs) for name, theirs in renamed.items()):
            tensors = {name: tensors[theirs] for name, theirs in renamed.items()}
    classifier = network.pretrained_cfg.get("classifier") or ()
    head = tuple(f"{name}." for name in ([classifier] if isinstance(classifier, str) else classifier))
    for name in (name for name in {**ours, **tensors} if not name.startswith(head)):
        theirs, own = (list(state[name].shape) if name in state else "none" for state in (tensors, ours))
        if theirs != own:
            raise UserError(
                f"{path}: not weights of {params.model}: {name} is {theirs} there, {own} in the network; set "
                f"{params.key('model')} to the network that they were saved from"
            )
    return {name: tensor for name, tensor in tensors.items() if not name.startswith(head)}


def _last(name: str) -> str:
    return name.rpartition(".")[2]


def _shape_of_map(network: Any, params: GridParams, size: int) -> tuple[int, int, int]:
    """Channels, rows and columns of the last feature map for images of ``size`` pixels."""
    key, seen = params.key("model"), list[tuple[int, ...]]()
    last_stage = network.get_submodule(list(network.feature_info)[-1]["module"])
    hook = last_stage.register_forward_hook(lambda _, __, output: seen.append(tuple(output.shape[1:])))
    try:
        with torch.inference_mode():
            shape = tuple(last_map(network, torch.zeros(1, 3, size, size)).shape[1:])
    except (AssertionError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{key}: {params.model} takes no images of {size} pixels ({reason}); take another") from None
    hook.remove()
    if seen != [shape] or len(shape) != 3 or shape[1] != shape[2]:
        raise UserError(f"{key}: the last stage of {params.model} gives no square map; take a convolutional network")
    return shape
