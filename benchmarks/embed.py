"""The embed stage, against a loop of one image at a time and against the bare encoder on images in memory.

    python benchmarks/embed.py [--quick]

The process keeps freed memory, as the stage does: for the loop and the bare encoder too.
"""

import numpy as np
import torch
from measuring import Bench, Row, command, in_turn, per, scratch_in
from peers import embedding_loop

from sightline.core.memory import keep_freed_memory
from sightline.depth.embedding import EmbedParams, embed_depth
from sightline.depth.network import Encoder, NetworkConfig
from sightline.depth.preprocessing import Preprocessing
from sightline.depth.store import create_depth_store, open_depth_rows
from sightline.depth.weights import Header, save_weights
from sightline.training.processes import process_device

BATCH = 64


@torch.inference_mode()
def _encode(encoder: Encoder, images: torch.Tensor) -> None:
    for start in range(0, len(images), BATCH):
        encoder(images[start : start + BATCH])


def rows(bench: Bench) -> list[Row]:
    """One row: an image embedded."""
    keep_freed_memory()
    device = process_device()
    many = bench.size(128 if device.type == "cpu" else 16384, 4)
    few, data, weights = bench.size(32, 2), bench.room / "embedded.hdf5", bench.room / "encoder.safetensors"
    for name, count in ((data, many), (bench.room / "few.hdf5", few)):
        parts = np.full(count, "train")
        columns = {"frame_id": np.arange(count), "episode": np.zeros(count, int), "split": parts.astype("S5")}
        create_depth_store(name, columns, Preprocessing())
        depth, valid = open_depth_rows(name)
        depth[:], valid[:] = np.random.default_rng(0).uniform(-1, 1, depth.shape), True
    plain, encoder = (Encoder(NetworkConfig()).eval() for _ in range(2))
    header = Header(kind="encoder", network=encoder.config, preprocessing=Preprocessing())
    save_weights(weights, encoder, header)
    encoder = encoder.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    with_channel = torch.from_numpy(np.array(open_depth_rows(data)[0]))[:, None]
    images = with_channel.to(device, memory_format=torch.channels_last)

    def stage() -> None:
        with scratch_in(bench.room):
            embed_depth(weights, data, bench.room / "embeddings.hdf5", EmbedParams(batch_size=min(BATCH, many)))

    seconds = in_turn(
        {
            "stage": stage,
            "loop": lambda: embedding_loop.embed(plain, bench.room / "few.hdf5", bench.room / "few.npy", device),
            "encoder": lambda: _encode(encoder, images),
        },
        bench.size(3, 1),
    )
    ours, loop, bare = per(seconds["stage"], many), per(seconds["loop"], few), per(seconds["encoder"], many)
    between = "hashing, reading, loading the weights, the cache"
    return [Row("embed a depth image", "ms", ours, loop, "one by one, h5py", bare, "encoder, in memory", between)]


if __name__ == "__main__":
    command(__doc__, rows)
