"""Every stage on a pretended GPU: tensors stay on one device, and the steps of a training wait seldom."""

import json
import re

import numpy as np
import pandas as pd
import pytest
import test_fusion_training as fusion
import test_segmentation_frames as frames
import test_segmentation_training as segmentation
import torch
from conftest import depth_folder, photo_folder
from pretended_gpu import CUDA, Gpu, pretended_gpu
from volume_files import write_hearts

from sightline.clip import GridParams
from sightline.clip.extraction import extract_grids
from sightline.depth.embedding import EmbedParams, embed_depth
from sightline.depth.evaluation import EvaluateParams, evaluate_autoencoder
from sightline.depth.normalize import NormalizeParams, normalize_depth
from sightline.depth.training import TrainParams, train_autoencoder
from sightline.depth.weights import extract_encoder
from sightline.fusion.evaluation import EvaluateFusionParams, evaluate_fusion
from sightline.fusion.training import FusionModule, FusionParams, train_fusion
from sightline.importers.volumes import ImportVolumesParams, import_volumes
from sightline.predict import segment
from sightline.recording.split import SplitParams
from sightline.segmentation.census import read
from sightline.segmentation.evaluation import EvaluateSegmentationParams, evaluate_segmentation
from sightline.segmentation.training import train_segmentation
from sightline.segmentation.volumes import frames_of_volumes
from sightline.training.precision import computed_in, exact_float32

STEPS = 3


@pytest.fixture(autouse=True)
def seldom_shown(monkeypatch):
    """Losses are shown, for which the host waits, after the first step alone."""
    monkeypatch.setattr("sightline.training.live.PERIOD", np.inf)


def waits_of(gpu: Gpu) -> list[str]:
    """Of the step that waits most, but the first, in which gradients are checked and a loss is shown."""
    assert len(gpu.steps) >= STEPS
    return [str(wait) for wait in max(gpu.steps[1:STEPS], key=len)]


# --- the helper


def test_tensors_of_two_devices_do_not_meet():
    host = torch.ones(3)
    with pretended_gpu():
        device = host.cuda()
        assert device.device == torch.device("cuda", 0)
        assert (device * 2 + torch.tensor(1.0)).tolist() == [3.0, 3.0, 3.0]
        for meets in (lambda: device + host, lambda: torch.cat([device, host]), lambda: host @ device):
            with pytest.raises(RuntimeError, match="same device"):
                meets()
        with pytest.raises(RuntimeError, match="generator"):
            torch.rand(3, device=device.device, generator=torch.Generator())
        with pytest.raises(TypeError, match="numpy"):
            device.numpy()


def test_waits_are_told_with_their_places():
    waiting = [
        lambda x: x[0].item(), lambda x: bool(x[0] > 0), lambda x: x.tolist(), lambda x: x.cpu(),
        lambda x: x + x.new_tensor([1.0, 2.0, 3.0]), lambda x: x[x > 0], lambda x: x[torch.tensor([0, 1])],
        lambda x: x.nonzero(), lambda x: x.copy_(torch.ones(3)), lambda x: torch.ones(3).to(x.device),
    ]  # fmt: skip
    going_on = [
        lambda x: torch.where(x > 0, x, 0.0), lambda x: torch.ones(3).to(x.device, non_blocking=True),
        lambda x: x[torch.arange(2, device=x.device)], lambda x: x.to("cpu", non_blocking=True),
        lambda x: torch.nn.utils.get_total_norm([x, x]),
    ]  # fmt: skip
    for number, call in enumerate(waiting + going_on):
        with pretended_gpu() as gpu:
            call(torch.ones(3).to("cuda", non_blocking=True))
        assert len(gpu.waits) == (number < len(waiting)), (number, gpu.waits)
    with pretended_gpu() as gpu:
        read(torch.ones(2, device="cuda"))
    assert re.fullmatch(r"sightline/segmentation/census.py:\d+ read: tolist", str(gpu.waits[0]))


def test_gradients_and_autocast_are_those_of_cuda():
    layer, x = torch.nn.Linear(4, 2), torch.rand(3, 4)
    expected = torch.autograd.grad(layer(x).square().sum(), layer.weight)[0]
    with pretended_gpu():
        layer.cuda()
        with torch.autocast("cuda", torch.bfloat16):
            assert layer(x.cuda()).dtype == torch.bfloat16
        layer(x.cuda()).square().sum().backward()
        torch.testing.assert_close(layer.weight.grad.cpu(), expected)


# --- settings


def test_float32_is_exact_where_it_is_asked_for():
    with pretended_gpu():
        before = torch.backends.cudnn.conv.fp32_precision, torch.get_float32_matmul_precision()
        assert computed_in("fp32", CUDA) == "tf32"  # of convolutions, as torch starts
        with exact_float32():
            assert computed_in("fp32", CUDA) == "fp32"
        assert (torch.backends.cudnn.conv.fp32_precision, torch.get_float32_matmul_precision()) == before


@pytest.mark.parametrize("deterministic", [False, True])
def test_a_training_repeats_its_bits_on_a_gpu_only_where_it_is_asked_to(tmp_path, monkeypatch, deterministic):
    data, seen = fusion.pack(fusion.write_recording(tmp_path / "recording")), []

    def look(module: FusionModule) -> None:
        seen.append((torch.are_deterministic_algorithms_enabled(), not torch.backends.cudnn.benchmark))
        seen.append((not torch.utils.deterministic.fill_uninitialized_memory,) * 2)
        seen.append((computed_in("fp32", CUDA) == "fp32",) * 2)

    monkeypatch.setattr(FusionModule, "on_train_end", look)
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    params = FusionParams(chunk=4, epochs=1, batch_size=8, precision="fp32", deterministic=deterministic)
    with pretended_gpu():
        train_fusion(data, tmp_path / "f.safetensors", tmp_path / "m", params, 0, design="joints_only")
    assert seen == [(deterministic,) * 2, (deterministic,) * 2, (True, True)]
    assert json.loads((tmp_path / "f.card.json").read_text())["precision"] == "fp32"  # not tf32


# --- the stages


@pytest.fixture
def depth(tmp_path):
    """Normalised depth of three episodes, and their table, whose joints move."""
    depth_folder(tmp_path / "in", 18)
    step = np.arange(18) % 6
    table = {"frame_id": range(18), "episode": np.arange(18) // 6, "step": step, "time_s": step / 10}
    pd.DataFrame(table | {"joints": list(np.stack([step**2.0, np.sin(step)], axis=1))}).to_parquet(tmp_path / "frames")
    params = NormalizeParams(height_range=(500, 1500))
    normalize_depth(tmp_path / "in", tmp_path / "depth.hdf5", params, split=SplitParams(guard=0), processes=1)
    return tmp_path / "depth.hdf5"


@pytest.mark.parametrize("free", [2**40, 0], ids=["resident", "sent"])
def test_the_autoencoder_trains_without_waiting(depth, tmp_path, free):
    params = TrainParams(epochs=2, batch_size=3, latent_dim=128, width=16, precision="bf16")
    weights, encoder = tmp_path / "a.safetensors", tmp_path / "e.safetensors"
    with pretended_gpu(free) as gpu:
        train_autoencoder(depth, weights, tmp_path / "m", params, 0, frames=tmp_path / "frames")
        assert waits_of(gpu) == []
        assert "val_inverse_dynamics" in (tmp_path / "m/curves.csv").read_text()
        if free:
            extract_encoder(weights, encoder)
            embed_depth(encoder, depth, tmp_path / "e.hdf5", EmbedParams(batch_size=4))
            evaluate_autoencoder(weights, depth, tmp_path / "e", EvaluateParams(), frames=tmp_path / "frames")


@pytest.mark.parametrize("weights", ["none", "td"])
def test_fusion_trains_without_waiting(tmp_path, weights):
    data = fusion.pack(fusion.write_recording(tmp_path / "recording"))
    objective = "cvae" if weights == "td" else "bc"
    params = FusionParams(
        chunk=4, epochs=1, batch_size=8, shift=2, precision="bf16", weights=weights, objective=objective, ema=0.9
    )
    with pretended_gpu() as gpu:
        train_fusion(data, tmp_path / "f.safetensors", tmp_path / "m", params, 0)
        assert waits_of(gpu) == []
        evaluate_fusion(tmp_path / "f.safetensors", data, tmp_path / "e", EvaluateFusionParams())


@pytest.mark.parametrize(
    ("method", "changes", "most"),
    [("supervised", {}, 0), ("bcp", {}, 0), ("bcp", {"bcp": {"pretrain": 0.0, "largest_part": True}}, 1),
     ("unimatch", {}, 0), ("ss_net", {}, 2), ("ss_net", {"contrastive": {"weight": 0.0}}, 0), ("semiseg", {}, 2)],
)  # fmt: skip
def test_segmentation_trains_and_waits_seldom(tmp_path, method, changes, most):
    root = frames.write_recording(tmp_path / "r")
    settings = {"precision": "bf16", "bcp": {"pretrain": 0.0}, "epochs": 1, "steps_per_epoch": STEPS} | changes
    params = segmentation.changed(method=method, **settings)
    data = segmentation.frames_of(root, params)
    weights = tmp_path / "s.safetensors"
    with pretended_gpu() as gpu:
        train_segmentation(data, weights, tmp_path / "m", params, 0)
        assert len(waits := waits_of(gpu)) <= most, waits
        if method == "supervised":
            evaluate_segmentation(weights, data, tmp_path / "e", EvaluateSegmentationParams())


@pytest.mark.filterwarnings("ignore:grids.pretrained is random")
def test_grids_are_extracted(tmp_path):
    small = GridParams(model="ViT-S-16", image_size=32, grid=2, batch_size=4)
    with pretended_gpu() as gpu:
        extract_grids([photo_folder(tmp_path / "photos", range(1, 8))], tmp_path / "g.hdf5", small)
    assert gpu.operations


@pytest.mark.parametrize(("method", "most"), [("supervised", 0), ("bcp", 1), ("ss_net", 2), ("unimatch", 0)])
def test_segmentation_of_volumes_trains_and_waits_seldom(tmp_path, method, most):
    import_volumes(write_hearts(tmp_path / "h"), tmp_path / "h.hdf5", ImportVolumesParams())
    params = segmentation.changed(
        dims=3, image_size=(20, 20), crop=(16, 16, 6), batch_size=2, unlabelled_batch_size=2, epochs=1,
        steps_per_epoch=STEPS, method=method, bcp={"pretrain": 0.0, "largest_part": True}, slice_step=2,
    )  # fmt: skip
    data, weights = frames_of_volumes(tmp_path / "h.hdf5", params, SplitParams()), tmp_path / "s.safetensors"
    with pretended_gpu() as gpu:
        train_segmentation(data, weights, tmp_path / "m", params, 0)
        assert len(waits := waits_of(gpu)) <= most, waits
        if method == "supervised":
            evaluate_segmentation(weights, data, tmp_path / "e", EvaluateSegmentationParams())
            segment(weights, tmp_path / "h.hdf5", tmp_path / "masks")
