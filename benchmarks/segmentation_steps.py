"""A step of the segmentation, against a plain loop of MONAI with the same network: its time, and the memory it needs.

    python benchmarks/segmentation_steps.py [--quick]

A step of `bcp`: labelled and unlabelled images, augmented, a teacher's labels, copy-paste, forward, backward,
optimizer, average. Of images 8 and 8 at 64x64; of volumes 2 and 2 patches of 112x112x80, which papers train with
on the left atrium. Ours and the plain loop have a process each; memory is the most that its process ever held.
"""

import copy
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from measuring import Bench, Elsewhere, Row, command, in_turn, per
from peers import copy_paste_loop

from sightline.core.memory import keep_freed_memory
from sightline.recording.split import SplitParams
from sightline.segmentation.augmentation import CROP_CHANCES, WEAK_CHANCES
from sightline.segmentation.batches import FrameBatches, StepBatches
from sightline.segmentation.frames import SegmentationFrames
from sightline.segmentation.methods import Step, Unlabelled, bcp, unlabelled_chances
from sightline.segmentation.model import SegmentationConfig, SegmentationModel
from sightline.segmentation.patches import VolumeBatches, Volumes
from sightline.segmentation.training import VOLUME_CHANCES, SegmentationParams
from sightline.segmentation.views import viewed
from sightline.training.averaging import move_average
from sightline.training.gradients import clip_gradients
from sightline.training.precision import use_bf16
from sightline.training.processes import process_device

VOLUMES, SLICES = 4, 88


def steps(file: Path, params: SegmentationParams) -> Iterator[None]:
    """One step for each time that the next is asked for."""
    keep_freed_memory()
    device, frames = process_device(), SegmentationFrames.from_arrays(file, params, SplitParams())
    rows = np.arange(len(frames.frame_id))
    data = FrameBatches.read(frames, rows, rows, rows[:0])
    of_volumes = VolumeBatches(data, Volumes(frames), rows, params, 1) if params.dims == 3 else None
    drawn = np.arange(VOLUMES) if of_volumes else rows
    taken = VOLUME_CHANCES if of_volumes else WEAK_CHANCES + CROP_CHANCES
    order = StepBatches(
        drawn, drawn, steps=10_000, sizes=(params.batch_size, params.unlabelled_batch_size),
        chances=(taken, taken + unlabelled_chances(params.dims)), seed=0,
    )  # fmt: skip
    config = SegmentationConfig(
        classes=("background", "a"), image_channels=1, image_size=frames.image_size, spatial_dims=params.dims,
        window=params.crop, norm=params.norm, channels=params.channels,
    )  # fmt: skip
    model = SegmentationModel(config).to(device)
    teacher = copy.deepcopy(model).requires_grad_(False).eval()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, fused=True)
    generator = torch.Generator(device).manual_seed(0)
    for draw in order:
        batch = {
            kind: {name: values.to(device) for name, values in some.items()}
            for kind, some in (of_volumes or data)[draw].items()
        }
        labelled, labels, _ = viewed(batch["labelled"], params)[:3]
        more = Unlabelled(*viewed(batch["unlabelled"], params))
        with torch.autocast(device.type, torch.bfloat16, enabled=use_bf16("auto")):
            learnt = bcp(Step(model, teacher, params, 0.9, generator, None, labelled, labels, {}), more)
        optimizer.zero_grad()
        torch.stack(list(learnt.losses.values())).sum().backward()
        clip_gradients(model.parameters(), 1.0)
        optimizer.step()
        move_average(teacher, model, 0.01)
        yield


def rows(bench: Bench) -> list[Row]:
    """Steps of images and of volumes."""
    side, crop = bench.size(128, 40), (112, 112, 80) if not bench.quick else (32, 32, 16)
    images = SegmentationParams(image_size=(64, 64), crop=None, method="bcp")
    volumes = SegmentationParams(
        image_size=(side, side), dims=3, crop=crop, method="bcp", batch_size=2, unlabelled_batch_size=2
    )
    return [*_rows(bench, "8+8 images of 64x64", 64, images), *_rows(bench, "2+2 patches of 112x112x80", side, volumes)]


def _rows(bench: Bench, what: str, side: int, params: SegmentationParams) -> list[Row]:
    rounds, count = bench.size(3, 1), bench.size(8 if params.dims == 2 else 1, 1)
    file = bench.room / f"drawn_{params.dims}.npz"
    slices, masks = _draw(file, side, bench.size(SLICES, 20))
    plain_data = [
        list(drawn.reshape(-1, 1, side, side) if params.dims == 2 else drawn.transpose(0, 2, 3, 1)[:, None])
        for drawn in (slices, masks)
    ]
    crop = params.crop or (side, side)
    with (
        Elsewhere(steps, file, params) as ours,
        Elsewhere(copy_paste_loop.steps, *plain_data, crop, params.batch_size) as plain,
    ):
        seconds = in_turn({"ours": lambda: ours(count), "plain": lambda: plain(count)}, rounds)
        memory = [_most_memory(one.process.pid) for one in (ours, plain)]
    work, peer = f"segmentation step, {what}", "plain MONAI loop, fp32"
    return [
        Row(work, "ms", per(seconds["ours"], count), per(seconds["plain"], count), peer),
        Row(f"{work}: memory", "MiB", [memory[0]], [memory[1]], peer),
    ]


def _most_memory(process: int | None) -> float:
    """MiB."""
    status = Path(f"/proc/{process}/status").read_text(encoding="utf-8")
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def _draw(file: Path, side: int, slices: int) -> tuple[np.ndarray, np.ndarray]:
    """Write volumes of noise with a bright ball -> uint8 [V, Z, H, W], and their masks."""
    rng, shape = np.random.default_rng(0), (slices, side, side)
    away = sum((axis / length - 0.5) ** 2 for axis, length in zip(np.mgrid[:slices, :side, :side], shape, strict=True))
    masks = np.stack([(away < 0.05).astype(np.uint8)] * VOLUMES)
    images = (60 * masks + rng.integers(0, 120, (VOLUMES, *shape))).astype(np.uint8)
    volume, flat = np.repeat([f"v{i}" for i in range(VOLUMES)], slices), (-1, side, side)
    np.savez(file, image=images.reshape(flat), label=masks.reshape(flat), group=volume, volume=volume)
    return images, masks


if __name__ == "__main__":
    command(__doc__, rows)
