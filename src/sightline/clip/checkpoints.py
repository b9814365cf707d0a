"""Image towers in files of CLIP weights, whoever wrote them. Files are read as data, none is run.

    safetensors             as they are
    torch files             with ``weights_only=True``, the weights at the top or under ``state_dict``
    TorchScript archives    OpenAI's files. ``torch.jit.load`` would load the program in them; we read only their table
                            of tensors, with an unpickler that knows no more than tensors and containers

Names are those of open_clip and OpenAI (``visual.conv1.weight``), of an image tower alone (``conv1.weight``), or of
Hugging Face's `CLIPModel` and `CLIPVisionModel` (``vision_model...``); ``module.`` and ``_orig_mod.`` are left out.
"""

import pickle
import re
import warnings
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar
from zipfile import ZIP_STORED, ZipFile, is_zipfile

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from sightline.core.errors import UserError
from sightline.core.weights_file import check_finite

_OPENAI = {"input_resolution", "context_length", "vocab_size"}  # tensors beside the weights in OpenAI's archives
_BROKEN = (OSError, RuntimeError, LookupError, TypeError, ValueError, AttributeError, EOFError, pickle.UnpicklingError)
_UNREADABLE = "not a readable file of weights; name one of safetensors or torch, or copy it again"
_HUGGING_FACE = {  # their names -> open_clip's, but for attention's three matrices, which open_clip stacks
    r"vision_model\.embeddings\.class_embedding": "class_embedding",
    r"vision_model\.embeddings\.patch_embedding\.": "conv1.",
    r"vision_model\.embeddings\.position_embedding\.weight": "positional_embedding",
    r"vision_model\.pre_layrnorm\.": "ln_pre.",  # their spelling
    r"vision_model\.post_layernorm\.": "ln_post.",
    r"vision_model\.encoder\.layers\.(\d+)\.self_attn\.out_proj\.": r"transformer.resblocks.\1.attn.out_proj.",
    r"vision_model\.encoder\.layers\.(\d+)\.layer_norm([12])\.": r"transformer.resblocks.\1.ln_\2.",
    r"vision_model\.encoder\.layers\.(\d+)\.mlp\.fc1\.": r"transformer.resblocks.\1.mlp.c_fc.",
    r"vision_model\.encoder\.layers\.(\d+)\.mlp\.fc2\.": r"transformer.resblocks.\1.mlp.c_proj.",
}
_QUERY = re.compile(r"vision_model\.encoder\.layers\.(\d+)\.self_attn\.q_proj\.(weight|bias)")


@dataclass(frozen=True)
class Checkpoint:
    """The image tower in a file of weights."""

    path: Path
    tensors: dict[str, Tensor]  # float32, under the file's own names without ``visual.``
    is_hugging_face: bool  # whose names the tensors have; else open_clip's
    is_openai: bool  # a TorchScript archive as OpenAI publishes them

    @property
    def config_names(self) -> tuple[str, ...]:
        """Names of the files beside it that may say what it was trained with."""
        return ("config.json", "preprocessor_config.json") if self.is_hugging_face else ("open_clip_config.json",)

    def as_open_clip(self) -> dict[str, Tensor]:
        """The state dict of open_clip's `VisionTransformer`; ``proj`` may be missing. Names we do not know stay."""
        if not self.is_hugging_face:
            return dict(self.tensors)
        state, left = {}, dict(self.tensors)
        for name in self.tensors:
            query = _QUERY.fullmatch(name)
            parts = [name.replace(".q_proj.", f".{letter}_proj.") for letter in "qkv"]
            if query and all(part in left for part in parts):
                stacked = torch.cat([left.pop(part) for part in parts])  # [3 C, C] or [3 C]
                state[f"transformer.resblocks.{query[1]}.attn.in_proj_{query[2]}"] = stacked
        if "visual_projection.weight" in left:
            state["proj"] = left.pop("visual_projection.weight").T.contiguous()
        for name, tensor in left.items():
            for theirs, ours in _HUGGING_FACE.items():
                name = re.sub(f"^{theirs}", ours, name)
            state[name] = tensor
        return state


def read_checkpoint(path: Path) -> Checkpoint:
    """Read the image tower of a file of CLIP weights.

    Raises:
        UserError: not a file of weights, one that only a program could read, one without an image tower of CLIP, or
            weights that are not finite.
    """
    is_archive = is_zipfile(path) and _is_torchscript(path)
    tensors = _plain_names(_archive_tensors(path)) if is_archive else read_tensors(path)
    of_clip = {name.removeprefix("visual."): tensor for name, tensor in tensors.items() if name.startswith("visual.")}
    of_hugging_face = {
        name: tensor
        for name, tensor in tensors.items()
        if name == "visual_projection.weight"
        or (name.startswith("vision_model.") and not name.endswith("embeddings.position_ids"))
    }
    alone = tensors if {"conv1.weight", "class_embedding"} <= set(tensors) else {}
    tower = of_clip or of_hugging_face or alone
    if not tower:
        first = f"; its first tensor is {next(iter(tensors))}" if tensors else ""
        raise UserError(f"{path}: holds no image tower of CLIP, such as visual.* or vision_model.*{first}")
    tower = {name: tensor.float() for name, tensor in tower.items()}
    check_finite(path, tower)
    return Checkpoint(path, tower, not of_clip and bool(of_hugging_face), is_archive and set(tensors) >= _OPENAI)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors or torch file by name, in their order.

    Raises:
        UserError: not a file of weights, or one that only a program could read.
    """
    return _plain_names(_tensors(path))


def _tensors(path: Path) -> dict[str, Tensor]:
    with open(path, "rb") as file:
        head = file.read(24)
    if head.startswith(b"version https://git-lfs"):
        raise UserError(f"{path}: a git-LFS pointer, not the weights; run `git lfs pull` where it comes from")
    if head[8:9] == b"{":  # a header of JSON, after its length
        try:
            return load_file(path)
        except (SafetensorError, *_BROKEN) as error:
            raise UserError(f"{path}: not readable safetensors ({_reason(error)}); copy it again") from None
    try:
        with warnings.catch_warnings(action="ignore"):  # what is not read, we tell
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "unsupported global" not in str(error).lower():
            raise UserError(f"{path}: {_UNREADABLE}") from None
        raise UserError(
            f"{path}: holds a program, not only tensors, and is not run; where you trust it, save its state_dict as "
            "safetensors"
        ) from None
    except _BROKEN:
        raise UserError(f"{path}: {_UNREADABLE}") from None
    if isinstance(loaded, dict) and isinstance(loaded.get("state_dict"), dict):
        loaded = loaded["state_dict"]
    entries = loaded.items() if isinstance(loaded, dict) else ()
    return {str(name): value for name, value in entries if isinstance(value, Tensor)}


def _plain_names(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Without what torch.compile and data parallel training put into the names."""
    plain = {name.replace("_orig_mod.", ""): tensor for name, tensor in tensors.items()}
    while plain and all(name.startswith("module.") for name in plain):
        plain = {name.removeprefix("module."): tensor for name, tensor in plain.items()}
    return plain


def _reason(error: BaseException) -> str:
    return (" ".join(str(error).split()) or type(error).__name__)[:200]


# ---------------------------------------------------------------- TorchScript archives


def _is_torchscript(path: Path) -> bool:
    with ZipFile(path) as archive:
        return any(name.count("/") == 1 and name.endswith("/constants.pkl") for name in archive.namelist())


def _archive_tensors(path: Path) -> dict[str, Tensor]:
    """Every tensor of the module in a TorchScript archive, under the name that its state dict would give it."""
    try:
        with ZipFile(path) as archive:
            (table,) = (name for name in archive.namelist() if re.fullmatch(r"[^/]+/data\.pkl", name))
            with archive.open(table) as file:
                module = _TableReader(file, archive, table.removesuffix(".pkl")).load()
            tensors: dict[str, Tensor] = {}
            _collect(module, "", tensors, set())
            return tensors
    except _BROKEN as error:
        raise UserError(f"{path}: its table of tensors cannot be read ({_reason(error)}); copy it again") from None


class _Object:
    """Stands for a module of the archive, of whatever class: nothing but its attributes."""

    attributes: Any = None

    def __setstate__(self, state: Any) -> None:
        self.attributes = state


def _collect(module: Any, prefix: str, tensors: dict[str, Tensor], seen: set[int]) -> None:
    if not isinstance(module, _Object) or not isinstance(module.attributes, dict) or id(module) in seen:
        return
    seen.add(id(module))
    for name, value in module.attributes.items():
        if isinstance(value, Tensor):
            tensors[f"{prefix}{name}"] = value
        _collect(value, f"{prefix}{name}.", tensors, seen)


def _tensor(storage: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> Tensor:
    return torch.as_strided(storage, size, stride, offset)  # refuses what goes beyond the storage


def _same(value: Any, *_: Any) -> Any:
    return value


class _TableReader(pickle.Unpickler):
    """Unpickler of an archive's table that makes tensors, containers and `_Object`, and refuses everything else."""

    _known: ClassVar[dict[str, Callable[..., Any]]] = {
        "torch._utils._rebuild_tensor_v2": _tensor,
        "collections.OrderedDict": OrderedDict,
        **{
            f"torch.jit._pickle.{name}": _same  # lists and dicts, with their types
            for name in ("build_intlist", "build_tensorlist", "build_doublelist", "build_boollist", "restore_type_tag")
        },
    }
    _storages: ClassVar[dict[str, torch.dtype]] = {
        f"torch.{name}Storage": dtype
        for name, dtype in {
            "Float": torch.float32, "Half": torch.float16, "BFloat16": torch.bfloat16, "Double": torch.float64,
            "Long": torch.int64, "Int": torch.int32, "Short": torch.int16, "Char": torch.int8, "Byte": torch.uint8,
            "Bool": torch.bool,
        }.items()
    }  # fmt: skip

    def __init__(self, file: Any, archive: ZipFile, folder: str) -> None:
        super().__init__(file)
        self._archive, self._folder, self._read = archive, folder, dict[str, Tensor]()

    def find_class(self, module: str, name: str) -> Any:
        full = f"{module}.{name}"
        if module.startswith("__torch__"):
            return _Object
        if full in self._known:
            return self._known[full]
        if full in self._storages:
            return full
        raise pickle.UnpicklingError(f"{full} is none of what weights need")

    def persistent_load(self, saved: Any) -> Tensor:
        """The numbers of a storage, flat; ``saved`` is ("storage", type, key, device, count)."""
        _, kind, key, _, count = saved
        if key not in self._read:
            entry, dtype = self._archive.getinfo(f"{self._folder}/{key}"), self._storages[kind]
            if entry.compress_type != ZIP_STORED or entry.file_size != count * dtype.itemsize:
                raise pickle.UnpicklingError(f"{entry.filename} has not the size that the table says")
            content = bytearray(self._archive.read(entry))
            self._read[key] = torch.frombuffer(content, dtype=dtype) if content else torch.empty(0, dtype=dtype)
        return self._read[key]
