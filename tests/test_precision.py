"""What a result was computed in: named by the switches of torch and the hardware, in attributes, cards and caches."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import depth_folder
from encoders import save_autoencoder
from safetensors.numpy import save_file

from sightline.core.hdf5 import open_hdf5
from sightline.depth import embedding
from sightline.depth.embedding import EmbedParams, embed_depth
from sightline.depth.normalize import NormalizeParams, normalize_depth
from sightline.depth.store import DepthStore
from sightline.depth.weights import extract_encoder
from sightline.recording.split import SplitParams
from sightline.training.card import About, write_card, write_measured_card
from sightline.training.precision import computed_in

CPU, GPU = torch.device("cpu"), torch.device("cuda:0")


@pytest.fixture
def hopper(monkeypatch):
    """A GPU that has TF32 and bfloat16, as far as torch is asked for it."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))


@pytest.fixture
def tiles(monkeypatch):
    """A CPU with tiles for bfloat16, whose switch is on; afterwards it is off."""
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    monkeypatch.setattr(torch.cpu, "_is_amx_fp16_supported", lambda: False)
    torch.set_float32_matmul_precision("medium")
    yield
    torch.set_float32_matmul_precision("highest")


# --- names


def test_on_a_cpu_the_names_are_those_of_the_parameter():
    assert computed_in("fp32", CPU) == "fp32"
    assert computed_in("bf16", CPU) == "bf16"


def test_switches_of_a_cpu_count_where_it_has_the_instructions(tiles, monkeypatch):
    assert computed_in("fp32", CPU) == "bf32"
    assert computed_in("bf16", CPU) == "bf16"
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    assert computed_in("fp32", CPU) == "fp32"
    torch.set_float32_matmul_precision("high")
    assert computed_in("fp32", CPU) == "fp32"
    monkeypatch.setattr(torch.cpu, "_is_amx_fp16_supported", lambda: True)
    assert computed_in("fp32", CPU) == "tf32"


def test_a_gpu_rounds_convolutions_unless_told_otherwise(hopper, monkeypatch):
    assert computed_in("fp32", GPU) == "tf32"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (7, 5))


SWITCHES = """
import torch
from sightline.training.precision import computed_in
torch.cuda.get_device_capability = lambda device=None: (8, 0)
print(computed_in("fp32", torch.device("cuda", 0)))
torch.backends.cudnn.allow_tf32 = False
print(computed_in("fp32", torch.device("cuda", 0)))
torch.backends.cuda.matmul.allow_tf32 = True
print(computed_in("fp32", torch.device("cuda", 0)))
torch.backends.cuda.matmul.allow_tf32 = False
torch.set_float32_matmul_precision("high")
print(computed_in("fp32", torch.device("cuda", 0)))
torch.set_float32_matmul_precision("highest")
torch.backends.cudnn.conv.fp32_precision = "tf32"  # after this, reading allow_tf32 is an error of torch
print(computed_in("fp32", torch.device("cuda", 0)))
torch.backends.cudnn.conv.fp32_precision = "ieee"
print(computed_in("fp32", torch.device("cuda", 0)))
torch.backends.cuda.matmul.fp32_precision = "tf32"
print(computed_in("fp32", torch.device("cuda", 0)))
"""


def test_each_switch_of_torch_is_followed_the_old_and_the_new_ones():
    """In a process of its own: torch does not go back to what it starts with."""
    said = subprocess.run([sys.executable, "-c", SWITCHES], check=True, capture_output=True, text=True).stdout
    assert said.split() == ["tf32", "fp32", "tf32", "tf32", "tf32", "fp32", "tf32"]


# --- where they are recorded


@pytest.fixture
def files(tmp_path):
    folder, params = depth_folder(tmp_path / "in", 5), NormalizeParams(height_range=(500, 1500))
    normalize_depth(folder, tmp_path / "depth.hdf5", params, split=SplitParams(guard=0), processes=1)
    save_autoencoder(tmp_path / "autoencoder.safetensors", DepthStore.open(tmp_path / "depth.hdf5").preprocessing)
    extract_encoder(tmp_path / "autoencoder.safetensors", tmp_path / "encoder.safetensors")
    return tmp_path


def embed(files, name):
    embed_depth(files / "encoder.safetensors", files / "depth.hdf5", files / name, EmbedParams(batch_size=4))
    with open_hdf5(files / name) as file:
        return file.attrs["precision"]


def test_embeddings_of_another_arithmetic_are_computed_anew_and_named(files, monkeypatch, request):
    assert embed(files, "first.hdf5") == "fp32"
    batches, encode = [], embedding.encode_batch
    monkeypatch.setattr(embedding, "encode_batch", lambda *args: batches.append(args) or encode(*args))
    assert embed(files, "again.hdf5") == "fp32"
    assert not batches
    assert (files / "again.hdf5").read_bytes() == (files / "first.hdf5").read_bytes()
    request.getfixturevalue("tiles")
    assert embed(files, "rounded.hdf5") == "bf32"
    assert len(batches) == 2


def test_a_card_names_what_was_trained_in(tmp_path):
    model, about = tmp_path / "m.safetensors", About("a model", "robotics", (), "use MODEL", (), (), ())
    save_file({"weight": np.zeros(2, np.float32)}, model)
    texts = []
    for recorded in ({}, {"precision": "tf32"}):
        write_card(model, about, {}, np.array(["train"]), np.array([0]), recorded)
        card = json.loads((tmp_path / "m.card.json").read_text())
        assert card.get("precision") == recorded.get("precision")
        write_measured_card(tmp_path / "m.card.md", card, {})
        texts.append((tmp_path / "m.card.md").read_text())
    assert texts[1].replace(", trained in tf32", "") == texts[0] != texts[1]
