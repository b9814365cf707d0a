"""Encoder weights and embeddings: the same numbers from the whole autoencoder, the file, the cache, any batch."""

import h5py
import numpy as np
import pytest
import torch
from conftest import depth_folder

from sightline.core.cache import ArrayCache, digest
from sightline.core.errors import UserError
from sightline.core.files import file_sha256
from sightline.depth import embedding
from sightline.depth.embedding import EmbedParams, embed_depth
from sightline.depth.network import Autoencoder, NetworkConfig
from sightline.depth.normalize import NormalizeParams, normalize_depth
from sightline.depth.store import DepthStore
from sightline.depth.weights import Header, extract_encoder, load_weights, save_weights
from sightline.recording.split import SplitParams


@pytest.fixture(scope="module")
def autoencoder() -> Autoencoder:
    torch.manual_seed(0)
    network = Autoencoder(NetworkConfig(latent_dim=128, width=16))
    torch.nn.init.normal_(network.encoder.head.weight, std=0.1)  # so that the network's part of the latent counts too
    return network.eval()


@pytest.fixture
def files(tmp_path, autoencoder):
    folder = depth_folder(tmp_path / "in", 11)
    params = NormalizeParams(height_range=(500, 1500))
    normalize_depth(folder, tmp_path / "depth.hdf5", params, split=SplitParams(guard=0), processes=1)
    store = DepthStore.open(tmp_path / "depth.hdf5")
    header = Header(kind="autoencoder", network=autoencoder.config, preprocessing=store.preprocessing)
    save_weights(tmp_path / "autoencoder.safetensors", autoencoder, header)
    extract_encoder(tmp_path / "autoencoder.safetensors", tmp_path / "encoder.safetensors")
    return tmp_path


def embed(files, output="e.hdf5", batch_size=4):
    return embed_depth(
        files / "encoder.safetensors", files / "depth.hdf5", files / output, EmbedParams(batch_size=batch_size)
    )


def test_the_extracted_encoder_gives_the_latents_of_the_autoencoder(files, autoencoder):
    encoder = load_weights(files / "encoder.safetensors", "encoder").build(files / "encoder.safetensors")
    images = torch.tensor(DepthStore.open(files / "depth.hdf5").depth[:3])[:, None]
    with torch.inference_mode():
        assert torch.equal(encoder(images), autoencoder(images)[1])


def test_one_file_with_a_row_per_frame_that_names_encoder_and_data(files, autoencoder):
    figures = embed(files)
    store = DepthStore.open(files / "depth.hdf5")
    with h5py.File(files / "e.hdf5") as file, torch.inference_mode():
        assert (file["embeddings"].shape, file["embeddings"].dtype) == ((11, 128), np.float32)
        assert file["frame_id"][:].tolist() == store.frame_id.tolist()
        assert file.attrs["encoder_sha256"] == file_sha256(files / "encoder.safetensors")
        assert file.attrs["data_sha256"] == file_sha256(files / "depth.hdf5")
        expected = autoencoder.encoder(torch.tensor(store.depth[:])[:, None]).numpy()
        np.testing.assert_allclose(file["embeddings"][:], expected, rtol=1e-4, atol=1e-4)
        spread = file["embeddings"][:].astype(float).std(axis=0)
    assert figures["images"] == 11
    assert figures["spread"] == pytest.approx(np.sqrt((spread**2).sum()), rel=1e-3)
    assert 1 < figures["effective_rank"] <= 10


def test_what_was_computed_once_is_not_computed_again_and_the_bytes_stay(files, monkeypatch):
    embed(files, "first.hdf5")
    computed = []

    def counting(network, depth, *rest):
        computed.append(len(depth))
        return encode(network, depth, *rest)

    encode = embedding.encode_batch
    monkeypatch.setattr(embedding, "encode_batch", counting)
    embed(files, "second.hdf5")
    assert computed == []
    depth_folder(files / "in", 14, seed=0)  # three more; the first eleven are the same
    params = NormalizeParams(height_range=(500, 1500))
    normalize_depth(files / "in", files / "depth.hdf5", params, split=SplitParams(guard=0), processes=1)
    embed(files, "third.hdf5")
    assert computed == [3]
    assert (files / "first.hdf5").read_bytes() == (files / "second.hdf5").read_bytes()
    with h5py.File(files / "first.hdf5") as first, h5py.File(files / "third.hdf5") as third:
        assert (first["embeddings"][:] == third["embeddings"][:11]).all()


def test_an_interrupted_embedding_continues_and_ends_with_the_same_bytes(files, monkeypatch, scratch_root):
    embed(files, "whole.hdf5")
    (cache,) = (scratch_root / "cache").glob("*/arrays.bin")
    cache.write_bytes(cache.read_bytes()[: 5 * (16 + 4 * 128) + 100])  # five vectors, and a sixth cut short
    embed(files, "resumed.hdf5")
    assert (files / "resumed.hdf5").read_bytes() == (files / "whole.hdf5").read_bytes()


def test_the_cache_returns_what_it_was_given_and_shares_with_others(tmp_path):
    vectors = np.arange(12, dtype=np.float32).reshape(3, 4)
    keys = [digest(row) for row in vectors]
    mine, other = ArrayCache("model", (4,)), ArrayCache("model", (4,))
    mine.append(keys[:2], vectors[:2])
    other.append(keys[2:], vectors[2:])
    assert (mine.get(keys[::-1]) == vectors[::-1]).all()
    assert keys[0] not in ArrayCache("another", (4,))
    with pytest.raises(UserError, match=r"arrays.bin: lacks 1 of 2 results .*one .scratch folder"):
        mine.get([b"0" * 16, keys[0]])


def test_a_folder_is_never_replaced_by_a_file(files):
    with pytest.raises(UserError, match=r"in: is a folder; name the file to write"):
        embed(files, "in")
    assert len(list((files / "in").iterdir())) == 11
