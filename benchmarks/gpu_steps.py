"""What `gpu.py` measures: generated data, every training as a function of its steps, and steps by hand."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from generated import write_recording
from torch import Tensor, nn

from sightline.depth.augmentation import CHANCES
from sightline.depth.network import Autoencoder, NetworkConfig
from sightline.depth.normalize import NormalizeParams, normalize_depth
from sightline.depth.store import DepthStore
from sightline.depth.training import DepthImages, TrainParams, mean_errors, resident_images, train_autoencoder
from sightline.fusion.training import FusionParams, train_fusion
from sightline.fusion.views import ViewParams, pack_views
from sightline.recording.split import DataParams, SplitParams
from sightline.segmentation.frames import SegmentationFrames
from sightline.segmentation.losses import dice_cross_entropy
from sightline.segmentation.network import SegmentationNetwork
from sightline.segmentation.training import SegmentationParams, train_segmentation
from sightline.training.gradients import clip_gradients
from sightline.training.order import EpochBatches
from sightline.training.precision import exact_float32
from sightline.validation.validation import validate_recording

FRAMES = 2048
PRECISIONS = ("fp32", "tf32", "bf16")
METHODS = ("supervised", "bcp", "unimatch", "ss_net", "semiseg")


def prepared(room: Path, frames: int = FRAMES) -> Path:
    """A recording, its index, normalised depth and views, in ``room``."""
    os.environ["DVC_ROOT"] = str(room)
    recording, index = write_recording(room / "recording", frames), room / "index"
    depth = index / "depth.parquet"
    validate_recording(recording, index, DataParams())
    params = NormalizeParams(height_range=(500, 1300))
    normalize_depth(recording / "depth", room / "depth.hdf5", params, split=SplitParams(), index=depth)
    pack_views(recording, index, room / "views.hdf5", ViewParams())
    return room


def trainings(room: Path, **settings: Any) -> dict[str, Callable[[Path, int], int]]:
    """Each training, as a function of an output and of about how many steps it shall take -> how many it took."""
    rows = DepthStore.open(room / "depth.hdf5").rows("train")

    def autoencoder(output: Path, steps: int) -> int:
        size = max(2, len(rows) // steps)
        params = TrainParams(**{"epochs": 1, "batch_size": size, "width": 64} | settings)
        train_autoencoder(room / "depth.hdf5", output.with_suffix(".safetensors"), output, params, 0)
        return len(EpochBatches(rows, size, 0, only_whole=params.compile))

    def fusion(output: Path, steps: int) -> int:
        params = FusionParams(**{"batch_size": 64, "chunk": 2} | settings)
        in_epoch = len(EpochBatches(rows, params.batch_size, 0, only_whole=params.compile))
        params = params.model_copy(update={"epochs": max(1, round(steps / in_epoch))})
        train_fusion(room / "views.hdf5", output.with_suffix(".safetensors"), output, params, 0)
        return params.epochs * in_epoch

    def segmentation(method: str) -> Callable[[Path, int], int]:
        def train(output: Path, steps: int) -> int:
            params = SegmentationParams.model_validate(
                {"method": method, "epochs": 1, "steps_per_epoch": steps, "bcp": {"pretrain": 0.0}} | settings
            )
            frames = SegmentationFrames.from_recording(room / "recording", room / "index", params)
            train_segmentation(frames, output.with_suffix(".safetensors"), output, params, 0)
            return steps

        return train

    return {"autoencoder": autoencoder, "fusion": fusion} | {f"segmentation {m}": segmentation(m) for m in METHODS}


def autoencoder_steps(room: Path, batch: int, compile: bool) -> Iterator[None]:
    """Steps of the network to reconstruct, as the stage takes them, data on the GPU; one for each that is asked for."""
    device, store = torch.device("cuda"), DepthStore.open(room / "depth.hdf5")
    network = Autoencoder(NetworkConfig()).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    run = torch.compile(network) if compile else network
    data = DepthImages(store, "full", resident_images(store, device))
    order = EpochBatches(store.rows("train"), batch, 0, CHANCES, only_whole=True)
    optimizer = torch.optim.AdamW(network.parameters(), 1e-4, fused=True)
    while True:
        for draw in order:
            images = data[draw]
            with torch.autocast("cuda", torch.bfloat16):
                mse, l1 = mean_errors(run(images["depth"])[0] - images["depth"], images["valid"])
            _update(network, optimizer, mse + 0.1 * l1)
            yield
        order.set_epoch(order.epoch + 1)


def fair_peer(room: Path, batch: int) -> Iterator[None]:
    """A loop as somebody who knows GPUs writes it: bfloat16, channels last, fused AdamW, all images on the GPU."""
    store = DepthStore.open(room / "depth.hdf5")
    images, valid = (torch.from_numpy(x).cuda() for x in (store.images(slice(None)), store.valid[:].copy()))
    network = Autoencoder(NetworkConfig()).cuda().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.AdamW(network.parameters(), 1e-4, fused=True)
    while True:
        rows = torch.randint(len(images), (batch,), device="cuda")
        depth, mask = images[rows].contiguous(memory_format=torch.channels_last), valid[rows][:, None]
        with torch.autocast("cuda", torch.bfloat16):
            error = network(depth)[0] - depth
        error = error.float() * mask
        loss = (error.square().sum() + 0.1 * error.abs().sum()) / mask.sum()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        yield


def segmentation_of_volumes(side: int) -> Iterator[None]:
    """Steps of the U-Net on two volumes of one channel."""
    network = SegmentationNetwork(1, 4, spatial_dims=3, norm="instance").cuda()
    optimizer = torch.optim.AdamW(network.parameters(), 1e-4, fused=True)
    images = torch.rand(2, 1, side, side, side, device="cuda")
    labels = torch.randint(4, (2, side, side, side), device="cuda")
    while True:
        with torch.autocast("cuda", torch.bfloat16):
            logits = network(images)
        _update(network, optimizer, dice_cross_entropy(logits, labels))
        yield


def _update(network: nn.Module, optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    optimizer.zero_grad()
    loss.backward()
    clip_gradients(network.parameters(), 1.0)
    optimizer.step()


def loss_and_norm(room: Path, device: str, precision: str) -> tuple[float, float]:
    """Of the autoencoder with the same weights and eight images, whatever the device."""
    torch.manual_seed(0)
    network, store = Autoencoder(NetworkConfig()), DepthStore.open(room / "depth.hdf5")
    for parameter in network.parameters():  # what starts at zero would hide the rest
        nn.init.normal_(parameter, std=0.02)
    network.to(device)
    depth = torch.from_numpy(store.images(slice(0, 8))).to(device)
    valid = torch.from_numpy(store.valid[:8].copy())[:, None].to(device)

    def compute() -> tuple[float, float]:
        with torch.autocast(device, torch.bfloat16, enabled=precision == "bf16"):
            mse, _ = mean_errors(network(depth)[0] - depth, valid)
        mse.backward()
        return float(mse), float(clip_gradients(network.parameters(), 1.0))

    return compute() if precision == "tf32" else exact_float32()(compute)()


def product_seconds(side: int, rounds: int = 20) -> float:
    """Seconds of a product of two square matrices in bfloat16."""
    a, b = (torch.randn(side, side, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    for number in range(rounds + 5):
        if number == 5:
            start.record()
        a @ b
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3 / rounds
