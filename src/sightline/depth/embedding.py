"""Depth embeddings of a whole data set, in one HDF5 file.

    embeddings  float32 [N, D]   the latent of each image
    frame_id    int64   [N]      ascending
    time_ns     int64   [N]      optional: time stamps of images that are named by them, nanoseconds

Root attributes: ``encoder_sha256``, ``data_sha256``, ``precision`` (fp32, tf32, bf32 or bf16: what it was computed in,
see `sightline.training.precision.computed_in`), ``preprocessing`` (JSON), ``network`` (JSON), ``torch_version``;
``recording`` as in the normalised file, where that has it.
"""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch import nn
from tqdm import tqdm

from sightline.core.cache import ArrayCache, digest
from sightline.core.errors import UserError
from sightline.core.files import atomic_output, file_sha256, fingerprint
from sightline.core.hdf5 import create_contiguous, open_rows
from sightline.core.params import Section
from sightline.core.threads import threads
from sightline.depth.store import DepthStore
from sightline.depth.weights import load_weights
from sightline.training.precision import Precision, computed_in, exact_float32, use_bf16
from sightline.training.probing import effective_rank_of
from sightline.training.processes import gather, process_device, rank, world_size


class EmbedParams(Section):
    """Embeddings of all depth images."""

    batch_size: int = Field(64, ge=1, description="images encoded at a time")
    precision: Precision = "fp32"


@exact_float32()
def embed_depth(encoder: Path, data: Path, output: Path, params: EmbedParams) -> dict[str, Any] | None:
    """Encode every image of ``data`` with ``encoder``, write ``output``, and return figures about the embeddings.

    Results are kept in a content-addressed cache, so that a later or interrupted run computes only what is new.
    Under a launcher the processes share the images; the first writes the output, the others return None.

    Raises:
        UserError: not an encoder, not normalised depth, an encoder that was trained on other preprocessing, or
            processes that do not share the cache.
    """
    weights, store = load_weights(encoder, "encoder"), DepthStore.open(data)
    header = weights.header
    store.require_preprocessing(header.preprocessing, encoder)
    if header.network.input_channels != store.channels:
        raise UserError(
            f"{data}: images of {store.channels} channel(s), but {encoder} takes {header.network.input_channels}"
        )
    bf16, dim, device = use_bf16(params.precision), header.network.latent_dim, process_device()
    precision = computed_in(params.precision, device)
    network = weights.build(encoder).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    encoder_sha256 = file_sha256(encoder)
    cache = ArrayCache(
        fingerprint(encoder_sha256, precision, params.batch_size, device.type, torch.__version__), (dim,)
    )
    # every n-th of all, not of what is missing: that changes as others append
    rows = range(rank(), len(store.depth), world_size())
    mine = _hashes(store.depth, rows)
    missing = [row for row, key in mine.items() if key not in cache]
    with tqdm(desc="embed", total=len(mine), initial=len(mine) - len(missing), unit="img", mininterval=0.5) as bar:
        for start in range(0, len(missing), params.batch_size):
            part = missing[start : start + params.batch_size]
            cache.append(
                [mine[row] for row in part],
                encode_batch(network, store.images(np.array(part)), params.batch_size, device, bf16),
            )
            bar.update(len(part))
    shares = gather(mine)
    if shares is None:
        return None
    keys = [shares[row % world_size()][row] for row in range(len(store.depth))]
    attributes = {
        "encoder_sha256": encoder_sha256,
        "data_sha256": file_sha256(data),
        "precision": precision,
        "preprocessing": json.dumps(header.preprocessing.model_dump(mode="json"), sort_keys=True),
        "network": json.dumps(header.network.model_dump(mode="json"), sort_keys=True),
        "torch_version": str(torch.__version__),
        **({"recording": store.recording} if store.recording else {}),
    }
    with atomic_output(output) as temporary:
        shape = (len(keys), dim)
        columns = {"frame_id": store.frame_id} | ({} if store.time_ns is None else {"time_ns": store.time_ns})
        create_contiguous(temporary, {"embeddings": (shape, np.float32)}, columns, attributes)
        embeddings = open_rows(temporary, "embeddings", "r+")
        for start in range(0, len(keys), 1024):
            embeddings[start : start + 1024] = cache.get(keys[start : start + 1024])
        return _figures(embeddings, len(keys))


def _hashes(images: np.ndarray, rows: range) -> dict[int, bytes]:
    """The digest of each of ``rows``, by all cores: hashing runs beside Python."""
    found: dict[int, bytes] = {}
    progress = tqdm(desc="hash images", total=len(rows), unit="img", mininterval=0.5)
    with progress as bar, ThreadPoolExecutor(threads()) as pool:
        for start in range(0, len(rows), 1024):
            part = rows[start : start + 1024]
            found |= zip(part, pool.map(lambda row: digest(images[row]), part), strict=True)
            bar.update(len(part))
    return found


@torch.inference_mode()
def encode_batch(
    network: nn.Module, images: np.ndarray, batch_size: int, device: torch.device, bf16: bool
) -> np.ndarray:
    """Encode ``images`` float32 [n, C, 128, 128], n <= batch_size -> float32 [n, D].

    A short batch is filled up, so that the arithmetic of an image does not depend on how many come with it.
    """
    padded = np.zeros((batch_size, *images.shape[1:]), np.float32)
    padded[: len(images)] = images
    batch = torch.from_numpy(padded).to(device, memory_format=torch.channels_last)
    with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
        return network(batch)[: len(images)].float().cpu().numpy()


def _figures(embeddings: np.ndarray, count: int) -> dict[str, Any]:
    """Figures that tell a collapsed encoder: with all embeddings alike, the spread is 0 and the effective rank 1."""
    total, squares = np.zeros(embeddings.shape[1]), np.zeros((embeddings.shape[1],) * 2)
    for start in range(0, count, 1024):
        block = np.asarray(embeddings[start : start + 1024], np.float64)
        if not np.isfinite(block).all():
            raise UserError("the encoder gives embeddings that are not finite; train it again with a smaller train.lr")
        total, squares = total + block.sum(0), squares + block.T @ block
    mean = total / count
    variances = np.clip(np.linalg.eigvalsh(squares / count - np.outer(mean, mean)), 0, None)
    return {
        "images": count,
        "dimensions": embeddings.shape[1],
        "norm_of_mean": float(f"{np.linalg.norm(mean):.4g}"),
        "spread": float(f"{np.sqrt(variances.sum()):.4g}"),
        "effective_rank": float(f"{effective_rank_of(variances):.4g}"),
    }
