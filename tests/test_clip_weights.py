"""Files of CLIP weights: whoever wrote them, their grids are the same; what they do not say is asked for."""

import io
import json
import os
import pickle
import zipfile
from itertools import product
from pathlib import Path

import open_clip
import pytest
import torch
from clip_files import (
    MODEL,
    OTHER_MEAN,
    OTHER_STD,
    SIDE,
    add_model,
    hugging_face_configs,
    hugging_face_state,
    open_clip_config,
    openai_archive,
    tiny_clip,
    torchscript_archive,
    write_kind,
)
from conftest import photo_folder
from safetensors.torch import save_file

from sightline.clip import GridParams
from sightline.clip import weights as weights_module
from sightline.clip.checkpoints import read_checkpoint
from sightline.clip.extraction import extract_grids
from sightline.clip.params import VerifyParams
from sightline.clip.pretraining import OPENAI_MEAN, OPENAI_STD
from sightline.clip.tokens import GridEncoder
from sightline.clip.verification import verify_grids
from sightline.clip.weights import load_image_tower
from sightline.core.errors import UserError

SAID = {"mean": OPENAI_MEAN, "std": OPENAI_STD, "resize": "shortest", "interpolation": "bicubic"}
KINDS = (
    "safetensors", "torch", "state_dict", "module", "_orig_mod", "module._orig_mod", "compiled_tower", "half",
    "image_tower", "image_tower_alone", "hugging_face_safetensors", "hugging_face_torch",
)  # fmt: skip

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")


@pytest.fixture(scope="module", autouse=True)
def models(tmp_path_factory):
    add_model(tmp_path_factory.mktemp("models"))


def params(path: Path, **changes) -> GridParams:
    return GridParams(**{"model": MODEL, "pretrained": str(path), "grid": 2, "precision": "fp32"} | changes)


def tower_of(path: Path, **changes):
    return load_image_tower(params(path, **changes))


def expected_grids(clip, pixels, mean=OPENAI_MEAN, std=OPENAI_STD):
    """What open_clip's own forward pass gives for uint8 [B, 3, S, S]."""
    clip.visual.output_tokens = True
    images = (pixels / 255 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    with torch.inference_mode():
        return clip.visual(images)[1]


def some_pixels(size=SIDE):
    return torch.randint(0, 256, (2, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def apart(encoder: GridEncoder, expected: torch.Tensor, size=SIDE) -> float:
    return float((encoder.encode(some_pixels(size)) - expected).norm() / expected.norm())


# ---------------------------------------------------------------- kinds of files


@pytest.mark.parametrize(("kind", "quick_gelu"), [*product(KINDS, [True, False]), ("openai", True)])
def test_every_kind_of_file_gives_the_grids_of_the_model_that_was_saved(kind, quick_gelu, tmp_path):
    clip, other = tiny_clip(quick_gelu), tiny_clip(not quick_gelu)
    if kind in ("half", "openai"):  # what a file in half precision still holds
        clip.half().float(), other.half().float()
    path = write_kind(kind, tmp_path, clip)
    if kind.startswith("hugging_face"):
        hugging_face_configs(tmp_path, "quick_gelu" if quick_gelu else "gelu")
    elif kind != "openai":
        open_clip_config(tmp_path, quick_gelu)
    encoder = GridEncoder(params(path, dtype="float32"), torch.device("cpu"))
    assert apart(encoder, expected_grids(clip, some_pixels())) < 1e-5
    assert apart(encoder, expected_grids(other, some_pixels())) > 5e-3
    attributes = encoder.attributes()
    assert (attributes["quick_gelu"], attributes["positions"], attributes["pretrained"]) == (
        quick_gelu, "as trained", path.name,
    )  # fmt: skip
    assert (attributes["random_weights"], attributes["image_size"]) == (False, SIDE)


@pytest.mark.parametrize("tokens", ["raw", "projected"])
@pytest.mark.parametrize("kind", ["image_tower_alone", "hugging_face_torch"])
def test_a_tower_without_a_projection_gives_all_tokens_but_projected_ones(kind, tokens, tmp_path):
    path = write_kind(kind, tmp_path, tiny_clip())
    state = torch.load(path)
    del state["proj" if "alone" in kind else "visual_projection.weight"]
    torch.save(state, path)
    changes = SAID | {"quick_gelu": False, "tokens": tokens}
    if tokens == "raw":
        assert tower_of(path, **changes).visual(torch.zeros(1, 3, SIDE, SIDE)).shape == (1, 128)
        return
    with pytest.raises(UserError, match=r"weights.pt has no projection to text space; set it to ln_post or"):
        tower_of(path, **changes)


@pytest.mark.parametrize("spoil", ["rename", "drop", "width"])
@pytest.mark.parametrize("kind", ["torch", "hugging_face_torch", "openai"])
def test_weights_of_another_model_are_refused_in_one_line(kind, spoil, tmp_path):
    path = write_kind(kind, tmp_path, tiny_clip())
    state = dict(torch.jit.load(path).state_dict()) if kind == "openai" else torch.load(path)
    name = next(name for name in state if "mlp" in name and name.endswith("weight") and "vis" in name)
    tensor = state.pop(name)
    if spoil != "drop":
        state[f"{name}2" if spoil == "rename" else name] = tensor if spoil == "rename" else tensor[:, :-1]
    torchscript_archive(path, state) if kind == "openai" else torch.save(state, path)
    with pytest.raises(
        UserError, match=rf"weights.pt: not weights of {MODEL}: \S*mlp\S* is .*; set grids.model"
    ) as error:
        tower_of(path, **SAID, quick_gelu=True)
    assert "\n" not in str(error.value)


class Hostile:
    """What a file of a stranger may hold: unpickled, it runs a command."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return os.system, (f"touch {self.mark}",)


def hostile_archive(path: Path, mark: Path) -> None:
    """An archive of OpenAI whose table of tensors runs a command."""
    openai_archive(path, tiny_clip())
    entries = {}
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            entries[name] = archive.read(name)
    (table,) = (name for name in entries if name.endswith("/data.pkl"))
    entries[table] = pickle.dumps(Hostile(mark), protocol=2)
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in entries.items():
            archive.writestr(name, content)


def packed_archive(path: Path) -> None:
    """An archive whose tensors are compressed: a few bytes could ask for terabytes."""
    openai_archive(path, tiny_clip())
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)


def test_files_that_are_no_weights_are_refused_and_nothing_in_them_is_run(tmp_path):
    mark = tmp_path / "ran"
    hostile_archive(tmp_path / "archive.pt", mark)
    torch.save(Hostile(mark), tmp_path / "pickle.pt")
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(Hostile(mark), protocol=2))
    (tmp_path / "newer.pt").write_bytes(pickle.dumps(Hostile(mark)))
    torch.save(torch.nn.Linear(1, 1), tmp_path / "module.pt")
    torch.save({"a": torch.zeros(1)}, tmp_path / "other.pt")
    torch.save(3, tmp_path / "number.pt")
    torch.jit.save(torch.jit.script(torch.nn.Linear(1, 1)), tmp_path / "program.pt")
    packed_archive(tmp_path / "packed.pt")
    (tmp_path / "text.safetensors").write_text("hello")
    (tmp_path / "empty.pt").touch()
    (tmp_path / "pointer.pt").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    save_file({"a": torch.zeros(3)}, tmp_path / "cut.safetensors")
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "cut.safetensors").read_bytes()[:-4])
    openai_archive(tmp_path / "short.pt", tiny_clip())
    (tmp_path / "short.pt").write_bytes((tmp_path / "short.pt").read_bytes()[:-400])
    program = (
        "holds a program, not only tensors, and is not run; where you trust it, save its state_dict as safetensors"
    )
    for name, message in {
        "archive.pt": r"its table of tensors cannot be read \(posix.system is none of what weights need\)",
        "packed.pt": "its table of tensors cannot be read .*has not the size that the table says",
        "pickle.pt": program,
        "plain.pt": program,
        "newer.pt": "not a readable file of weights; name one of safetensors or torch",
        "module.pt": program,
        "other.pt": r"holds no image tower of CLIP, such as visual.\* or vision_model.\*; its first tensor is a$",
        "number.pt": r"holds no image tower of CLIP, such as visual.\* or vision_model.\*$",
        "program.pt": "holds no image tower of CLIP, such as .*; its first tensor is weight$",
        "text.safetensors": "not a readable file of weights; name one of safetensors or torch",
        "pointer.pt": "a git-LFS pointer, not the weights; run `git lfs pull` where it comes from",
        "empty.pt": "not a readable file of weights; name one of safetensors or torch",
        "cut.safetensors": "not readable safetensors .*; copy it again",
        "short.pt": "not a readable file of weights; name one of safetensors or torch",
    }.items():
        with pytest.raises(UserError, match=f"{name}: {message}") as error:
            tower_of(tmp_path / name)
        assert "\n" not in str(error.value)
    assert not mark.exists()


def test_weights_that_are_no_numbers_are_refused(tmp_path):
    clip = tiny_clip()
    clip.visual.ln_post.weight.data[3] = torch.nan
    with pytest.raises(UserError, match=r"weights.pt: ln_post.weight holds NaN or infinity"):
        read_checkpoint(write_kind("torch", tmp_path, clip))


# ---------------------------------------------------------------- what they were trained with


def test_everything_that_a_file_does_not_say_is_asked_for_at_once(tmp_path):
    path = write_kind("torch", tmp_path, tiny_clip())
    with pytest.raises(UserError) as error:
        tower_of(path)
    assert str(error.value) == (
        f"grids.quick_gelu, grids.mean, grids.std, grids.resize, grids.interpolation: not known from {path}; put the "
        "open_clip_config.json that came with it beside it, or set them (weights of OpenAI: grids.quick_gelu=true; "
        "grids.mean=[0.48145466,0.4578275,0.40821073]; grids.std=[0.26862954,0.26130258,0.27577711]; "
        "grids.resize=shortest; grids.interpolation=bicubic; others: as their authors say)"
    )
    for name in ("quick_gelu", *SAID):
        known = {key: value for key, value in (SAID | {"quick_gelu": False}).items() if key != name}
        with pytest.raises(UserError, match=rf"^grids.{name}: not known from .*weights.pt; put"):
            tower_of(path, **known)
    tower = tower_of(path, **SAID | {"quick_gelu": False, "mean": OTHER_MEAN, "resize": "squash"})
    assert (tower.quick_gelu, tower.mean, tower.resize_mode) == (False, OTHER_MEAN, "squash")


def test_hugging_face_files_ask_for_their_own_configurations(tmp_path):
    path = write_kind("hugging_face_torch", tmp_path, tiny_clip())
    open_clip_config(tmp_path)  # of other weights
    with pytest.raises(UserError, match=r"^grids.quick_gelu, .*put the config.json and preprocessor_config.json that"):
        tower_of(path)
    hugging_face_configs(tmp_path, "gelu")
    (tmp_path / "preprocessor_config.json").unlink()
    with pytest.raises(UserError, match=r"^grids.mean, grids.std, grids.resize, grids.interpolation: not known"):
        tower_of(path)
    hugging_face_configs(tmp_path, "gelu")
    (tmp_path / "config.json").unlink()
    with pytest.raises(UserError, match=r"^grids.quick_gelu: not known"):
        tower_of(path)


@pytest.mark.parametrize(
    ("preprocess", "expected"),
    [
        ({}, ("shortest", "bicubic", OPENAI_MEAN)),  # older ones say no more, and mean this
        ({"resize_mode": "squash", "interpolation": "bilinear"}, ("squash", "bilinear", OPENAI_MEAN)),
        ({"mean": OTHER_MEAN}, ("shortest", "bicubic", OTHER_MEAN)),
    ],
)
def test_an_open_clip_configuration_is_read_as_open_clip_reads_it(tmp_path, preprocess, expected):
    path = write_kind("safetensors", tmp_path, tiny_clip())
    open_clip_config(tmp_path, preprocess=preprocess)
    tower = tower_of(path)
    assert (tower.resize_mode, tower.interpolation, tower.mean) == expected
    assert not tower.quick_gelu
    path.rename(tmp_path / "open_clip_model.safetensors")  # the name that open_clip looks for
    theirs = open_clip.get_model_preprocess_cfg(open_clip.create_model(f"local-dir:{tmp_path}"))
    assert (theirs["resize_mode"], theirs["interpolation"], tuple(theirs["mean"])) == expected


@pytest.mark.parametrize(
    ("images", "expected"),
    [
        ({"size": SIDE, "crop_size": SIDE}, ("shortest", "bicubic")),  # as older versions write them
        ({"size": {"height": SIDE, "width": SIDE}, "do_center_crop": False, "resample": 2}, ("squash", "bilinear")),
    ],
)
def test_a_hugging_face_configuration_says_how_images_are_resized(tmp_path, images, expected):
    path = write_kind("hugging_face_safetensors", tmp_path, tiny_clip())
    hugging_face_configs(tmp_path, images=images)
    tower = tower_of(path)
    assert (tower.resize_mode, tower.interpolation) == expected


@pytest.mark.parametrize(
    ("images", "asked"),
    [
        ({"do_normalize": False}, "grids.mean, grids.std"),
        ({"rescale_factor": 1}, "grids.mean, grids.std"),
        ({"image_std": None}, "grids.std"),
        ({"resample": 0}, "grids.interpolation"),
        ({"do_resize": False}, "grids.resize"),
        ({"size": {"shortest_edge": 40}}, "grids.resize"),  # and then a crop of 32
        ({"do_center_crop": False}, "grids.resize"),  # images that are no squares
    ],
    ids=str,
)
def test_what_a_hugging_face_configuration_leaves_open_is_asked_for(tmp_path, images, asked):
    path = write_kind("hugging_face_safetensors", tmp_path, tiny_clip())
    hugging_face_configs(tmp_path, images=images)
    with pytest.raises(UserError, match=rf"^{asked}: not known from"):
        tower_of(path)


def test_configurations_of_other_models_are_refused(tmp_path):
    ours, theirs = write_kind("safetensors", tmp_path, tiny_clip()), tmp_path / "hf.safetensors"
    save_file(hugging_face_state(tiny_clip()), theirs)
    open_clip_config(tmp_path, head_width=32)
    with pytest.raises(UserError, match=r"grids.model: .* has the head_width 64 in its image tower, .* one with 32"):
        tower_of(ours)
    (tmp_path / "open_clip_config.json").write_text("{")
    with pytest.raises(UserError, match=r"open_clip_config.json: not readable as JSON"):
        tower_of(ours)
    (tmp_path / "open_clip_config.json").write_text("{}")
    with pytest.raises(UserError, match=r"open_clip_config.json: has no vision_cfg, so it describes no CLIP model"):
        tower_of(ours)
    open_clip_config(tmp_path, preprocess={"mean": [123.7, 116.3, 103.5]})
    with pytest.raises(UserError, match=r"open_clip_config.json: mean: \[123.7.* are not three numbers for RGB in"):
        tower_of(ours)
    for changes, message in (
        ({"num_attention_heads": 4}, f"grids.model: {MODEL} has 2 heads, .*config.json describes 4; name another"),
        ({"layer_norm_eps": 1e-6}, "config.json: hidden_act quick_gelu, layer_norm_eps 1e-06: .* and 1e-05"),
        ({"activation": "gelu_new"}, "config.json: hidden_act gelu_new"),
    ):
        hugging_face_configs(tmp_path, **changes)
        with pytest.raises(UserError, match=message):
            tower_of(theirs)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "siglip"}))
    with pytest.raises(UserError, match=r"config.json: describes a model of type siglip, not of clip"):
        tower_of(theirs)


def test_the_name_of_the_model_says_quick_gelu_and_must_not_contradict(tmp_path):
    path = write_kind("torch", tmp_path, tiny_clip())
    assert tower_of(path, model=f"{MODEL}-quickgelu", **SAID).quick_gelu
    with pytest.warns(UserWarning, match="grids.quick_gelu is false, though"), pytest.raises(UserError) as error:
        tower_of(path, model=f"{MODEL}-quickgelu", quick_gelu=False, **SAID)
    assert str(error.value) == f"grids.model: {path} was trained without QuickGELU; set it to {MODEL}"
    open_clip_config(tmp_path)
    with pytest.raises(UserError, match=rf"weights.pt was trained without QuickGELU; set it to {MODEL}$"):
        tower_of(path, model=f"{MODEL}-quickgelu")


def test_parameters_win_and_a_contradiction_is_told(tmp_path):
    path = write_kind("openai", tmp_path, tiny_clip())
    with pytest.warns(UserWarning, match=r"grids.mean is \[0.5, 0.4, 0.3\], though the weights were trained with"):
        tower = tower_of(path, mean=OTHER_MEAN)
    assert (tower.mean, tower.std, tower.quick_gelu) == (OTHER_MEAN, OPENAI_STD, True)


def test_an_archive_that_is_not_one_of_openai_is_asked_like_others(tmp_path):
    path = tmp_path / "traced.pt"
    torchscript_archive(path, tiny_clip().state_dict())
    with pytest.raises(UserError, match=r"^grids.quick_gelu, grids.mean, .*: not known from .*traced.pt; put the"):
        tower_of(path)


def test_random_weights_take_what_is_set():
    tower = load_image_tower(GridParams(model=MODEL, quick_gelu=True, mean=OTHER_MEAN, image_size=64))
    assert (tower.quick_gelu, tower.mean, tower.std, tower.positions) == (True, OTHER_MEAN, OPENAI_STD, "random")
    with pytest.raises(UserError, match=f"grids.quick_gelu is false, .* computes with it; set it to {MODEL}$"):
        load_image_tower(GridParams(model=f"{MODEL}-quickgelu", quick_gelu=False))


def test_a_tag_is_certain_of_its_activation():
    with pytest.raises(UserError, match=r"grids.quick_gelu: the weights 'openai' were trained with QuickGELU; leave"):
        load_image_tower(GridParams(model="ViT-B-16-quickgelu", pretrained="openai", quick_gelu=False))


# ---------------------------------------------------------------- size of the input


def test_positions_are_interpolated_only_where_the_size_is_set(tmp_path):
    path, clip = write_kind("torch", tmp_path, tiny_clip(image_size=64)), tiny_clip(image_size=64)
    said = SAID | {"quick_gelu": False, "dtype": "float32"}
    encoder = GridEncoder(params(path, grid=4, **said), torch.device("cpu"))
    assert (encoder.tower.image_size, encoder.attributes()["positions"]) == (64, "as trained")
    assert apart(encoder, expected_grids(clip, some_pixels(64)), 64) < 1e-5
    smaller = GridEncoder(params(path, image_size=SIDE, **said), torch.device("cpu"))
    theirs = open_clip.create_model(MODEL, pretrained=str(path)).eval()  # it interpolates without a word
    assert (smaller.tower.image_size, smaller.attributes()["positions"]) == (SIDE, "interpolated from 4x4")
    assert apart(smaller, expected_grids(theirs, some_pixels())) < 1e-5


def test_a_size_that_contradicts_the_positions_is_asked_for(tmp_path):
    path = write_kind("torch", tmp_path, tiny_clip(image_size=64))
    open_clip_config(tmp_path)  # of 32 pixels
    with pytest.raises(UserError, match=r"^grids.image_size: .*weights.pt has positions for 64 pixels, .* as of 32"):
        tower_of(path)
    assert tower_of(path, image_size=64).positions == "as trained"
    state = torch.load(path)
    state["visual.positional_embedding"] = torch.zeros(7, 128)
    torch.save(state, path)
    with pytest.raises(UserError, match=r"weights.pt: has no positions of a class token and a square of patches"):
        tower_of(path)


# ---------------------------------------------------------------- verification


@pytest.fixture
def photos(tmp_path) -> Path:
    return photo_folder(tmp_path / "photos", range(3))


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("openai", {}),
        ("safetensors", {"tokens": "projected"}),
        ("image_tower_alone", {"image_size": 64, "grid": 4}),
        ("hugging_face_safetensors", {}),
        ("hugging_face_torch", {"image_size": 64, "tokens": "projected"}),
        ("hugging_face_safetensors", {"tokens": "raw", "resize": "squash", "interpolation": "bilinear"}),
        ("torch", {"mean": OTHER_MEAN, "quick_gelu": False}),
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore:clip.*though the weights were trained")
def test_grids_of_every_kind_pass_their_verification(kind, changes, tmp_path, photos):
    path = write_kind(kind, tmp_path, tiny_clip(True))
    open_clip_config(tmp_path, True, {"interpolation": "bilinear", "std": OTHER_STD})
    hugging_face_configs(tmp_path, images={"image_mean": OTHER_MEAN})
    extract_grids([photos], tmp_path / "g.hdf5", params(path, **changes))
    figures = verify_grids(tmp_path / "g.hdf5", [photos], params(path, **changes), VerifyParams())
    assert figures["reference"]["min_cosine"] > 0.9999


@pytest.mark.parametrize("kind", ["safetensors", "openai", "hugging_face_safetensors"])
@pytest.mark.parametrize(
    "wrong", [{"quick_gelu": False}, {"mean": OTHER_MEAN}, {"std": OTHER_STD}, {"resize_mode": "squash"}], ids=str
)
def test_a_wrong_reading_of_the_extractor_is_found(kind, wrong, tmp_path, photos, monkeypatch):
    path = write_kind(kind, tmp_path, tiny_clip(True))
    open_clip_config(tmp_path, True)
    hugging_face_configs(tmp_path)
    right = weights_module.pretraining_of
    monkeypatch.setattr(
        weights_module, "pretraining_of", lambda *what: weights_module.replace(right(*what), **wrong)
    )  # in the extraction and in its repetition
    extract_grids([photos], tmp_path / "g.hdf5", params(path))
    with pytest.raises(UserError, match="its grids differ from open_clip's own"):
        verify_grids(tmp_path / "g.hdf5", [photos], params(path), VerifyParams())


@pytest.mark.parametrize("kind", ["safetensors", "hugging_face_safetensors"])
def test_a_wrong_conversion_of_the_extractor_is_found(kind, tmp_path, photos, monkeypatch):
    path = write_kind(kind, tmp_path, tiny_clip(True))
    open_clip_config(tmp_path, True)
    hugging_face_configs(tmp_path)
    checkpoint = type(read_checkpoint(path))
    right = checkpoint.as_open_clip

    def swapped(self):
        state = right(self)
        name = "transformer.resblocks.0.attn.in_proj_weight"
        query, key, value = state[name].chunk(3)
        return state | {name: torch.cat([query, value, key])}

    monkeypatch.setattr(checkpoint, "as_open_clip", swapped)
    extract_grids([photos], tmp_path / "g.hdf5", params(path))
    with pytest.raises(UserError, match="its grids differ from open_clip's own"):
        verify_grids(tmp_path / "g.hdf5", [photos], params(path), VerifyParams())


def test_the_parts_of_an_archive_are_read_as_torch_reads_them(tmp_path):
    """Half and whole numbers, shared and strided tensors, buffers beside parameters."""
    whole = torch.arange(24.0).view(4, 6)
    state = {"visual.conv1.weight": whole[:, ::2], "visual.class_embedding": whole[1], "visual.n": torch.arange(3)}
    torchscript_archive(tmp_path / "a.pt", state)
    read = read_checkpoint(tmp_path / "a.pt").tensors
    theirs = torch.jit.load(io.BytesIO((tmp_path / "a.pt").read_bytes())).state_dict()
    assert read.keys() == {"conv1.weight", "class_embedding", "n"}
    assert all(torch.equal(read[name.removeprefix("visual.")], theirs[name].float()) for name in theirs)
