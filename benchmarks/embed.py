"""The embed stage against the bare encoder on the same images in memory, in one run.

python benchmarks/embed.py [--images 512] [--repeats 3] [--precision fp32]
"""

import os
import shutil
import statistics
import tempfile
import time
from argparse import ArgumentParser
from pathlib import Path

import numpy as np
import torch

from sightline.depth.embedding import EmbedParams, embed_depth
from sightline.depth.network import Encoder, NetworkConfig
from sightline.depth.preprocessing import Preprocessing
from sightline.depth.store import create_depth_store, open_depth_rows
from sightline.depth.weights import Header, pick_device, save_weights
from sightline.training.precision import use_bf16

BATCH = 64


@torch.inference_mode()
def bare_encoder(encoder: Encoder, images: torch.Tensor, bf16: bool) -> None:
    for start in range(0, len(images), BATCH):
        with torch.autocast(images.device.type, torch.bfloat16, enabled=bf16):
            encoder(images[start : start + BATCH])
    if images.is_cuda:
        torch.cuda.synchronize()


def main() -> None:
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--precision", choices=["fp32", "bf16", "auto"], default="fp32")
    args = parser.parse_args()
    room = Path(tempfile.mkdtemp())
    os.environ["DVC_ROOT"] = str(room)
    parts = np.full(args.images, "train")
    create_depth_store(room / "depth.hdf5", np.arange(args.images), np.zeros(args.images, int), parts, Preprocessing())
    depth, valid = open_depth_rows(room / "depth.hdf5")
    depth[:], valid[:] = np.random.default_rng(0).uniform(-1, 1, depth.shape), True
    device, bf16 = pick_device(), use_bf16(args.precision)
    encoder = Encoder(NetworkConfig()).eval()
    header = Header(kind="encoder", network=encoder.config, preprocessing=Preprocessing())
    save_weights(room / "encoder.safetensors", encoder, header)
    encoder = encoder.to(device, memory_format=torch.channels_last)
    images = torch.tensor(depth)[:, None].to(device, memory_format=torch.channels_last)
    bare_encoder(encoder, images[:BATCH], bf16)  # warm up
    bare, stage = [], []
    params = EmbedParams(batch_size=BATCH, precision=args.precision)
    for _ in range(args.repeats):  # in turn, so that a busy minute hits both
        start = time.perf_counter()
        bare_encoder(encoder, images, bf16)
        bare.append(time.perf_counter() - start)
        start = time.perf_counter()
        embed_depth(room / "encoder.safetensors", room / "depth.hdf5", room / "embeddings.hdf5", params)
        stage.append(time.perf_counter() - start)
        shutil.rmtree(room / ".scratch")  # or the next turn would find everything in the cache
    rate_bare, rate_stage = args.images / statistics.median(bare), args.images / statistics.median(stage)
    print(f"{args.images} images on {device}, batch {BATCH}, {args.precision}, median of {args.repeats}")
    print(f"  bare encoder {rate_bare:7.1f} img/s")
    print(f"  embed        {rate_stage:7.1f} img/s   {rate_stage / rate_bare:5.1%} of the bare encoder")
    shutil.rmtree(room)


if __name__ == "__main__":
    main()
