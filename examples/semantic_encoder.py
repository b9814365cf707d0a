"""The depth encoder in use: extraction, embeddings, freezing, a downstream classifier, saving and loading.

Makes its own data, and takes a few seconds on a CPU:

    python examples/semantic_encoder.py

With the weights of a trained autoencoder, and its embeddings are worth something:

    python examples/semantic_encoder.py models/depth/autoencoder.safetensors
"""

from argparse import ArgumentParser
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch import Tensor, nn

from sightline.depth import SemanticEncoder, create_semantic_encoder
from sightline.depth.network import Autoencoder, NetworkConfig
from sightline.depth.preprocessing import Preprocessing, preprocess
from sightline.depth.weights import Header, extract_encoder, save_weights


def main(autoencoder: Path | None, folder: Path) -> None:
    torch.manual_seed(0)
    if autoencoder is None:
        autoencoder = folder / "autoencoder.safetensors"
        save_untrained(autoencoder)
        print(f"no weights given: {autoencoder.name} is untrained, only its linear path knows something\n")
    weights = folder / "encoder.safetensors"
    depth_NHW, labels_N = make_depth(8)

    print("1. extract the encoder (stages/extract_encoder.py CHECKPOINT --verify does the same)")
    figures = extract_encoder(autoencoder, weights, verify=True)
    print(f"   {figures['parameters']:,} parameters, max |z_autoencoder - z| = {figures['max_difference']}\n")

    print("2. basic use")
    encoder = create_semantic_encoder(weights)
    print(encoder, "\n")

    print("3. embed raw images, normalised tensors, and large batches")
    embeddings = encoder.encode_numpy(depth_NHW, batch_size=4)
    print(f"   encode_numpy: {depth_NHW.dtype} {depth_NHW.shape} -> {embeddings.dtype} {embeddings.shape}")
    images = torch.from_numpy(preprocess(depth_NHW, encoder.preprocessing)[0]).unsqueeze(1)  # (16, 1, 128, 128)
    print(f"   encode: {list(images[:4].shape)} -> {list(encoder.encode(images[:4]).shape)}, with gradients")
    in_batches = encoder.encode_batch(images, batch_size=4).cpu().numpy()
    print(
        f"   encode_batch: {list(images.shape)} -> {in_batches.shape}, equal: {np.array_equal(in_batches, embeddings)}"
    )
    print(f"   similarity of images 0 and 1: {centred_similarity(embeddings)[0, 1]:.3f}\n")

    print("4. freeze, in part and as a whole")
    for layers in (["stem", "layer1"], ["layer2"]):
        encoder.freeze_layers(layers)
        print(f"   frozen {encoder.frozen_layers}: {encoder.count_parameters(only_trainable=True):,} trainable")
    encoder.freeze_parameters(True)
    print(f"   frozen all: {encoder.count_parameters(only_trainable=True):,} trainable")
    encoder.freeze_parameters(False)
    print(f"   unfrozen: {encoder.get_model_info()['trainable_parameters']:,} trainable\n")

    print("5. train a classifier on top, with stem and layer1 frozen")
    classifier = Classifier(weights, classes=2)
    losses = train(classifier, images, torch.from_numpy(labels_N))
    print(f"   loss {losses[0]:.3f} -> {losses[-1]:.3f} in {len(losses)} steps\n")

    print("6. save the tuned encoder, and load it again")
    for name in ("tuned.safetensors", "tuned.pth"):
        classifier.backbone.save_encoder_weights(folder / name)
        again = create_semantic_encoder(folder / name, freeze_weights=True)
        same = torch.equal(again.encode_batch(images), classifier.backbone.encode_batch(images))
        print(f"   {name}: {(folder / name).stat().st_size / 1e6:.0f} MB, the same embeddings: {same}")


class Classifier(nn.Module):
    """Depth image [B, 1, 128, 128] -> scores [B, classes]."""

    def __init__(self, weights: Path, classes: int) -> None:
        super().__init__()
        self.backbone: SemanticEncoder = create_semantic_encoder(weights)
        self.backbone.freeze_layers(["stem", "layer1"])
        latent_dim = self.backbone.config.latent_dim
        self.head = nn.Sequential(nn.LayerNorm(latent_dim), nn.Linear(latent_dim, classes))
        self.head.to(self.backbone.head.weight.device)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.backbone.encode(images))


def train(model: Classifier, images: Tensor, labels: Tensor, steps: int = 5) -> list[float]:
    """A few steps on all images; the frozen layers stay as they are, though the model is in train mode."""
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    losses = []
    for _ in range(steps):
        scores = model(images)
        loss = nn.functional.cross_entropy(scores, labels.to(scores.device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def centred_similarity(embeddings_ND: np.ndarray) -> np.ndarray:
    """Cosine similarity [N, N] of what sets images apart: without the mean taken off, all of them look alike."""
    centred = embeddings_ND - embeddings_ND.mean(axis=0)
    centred /= np.linalg.norm(centred, axis=1, keepdims=True)
    return centred @ centred.T


def make_depth(count: int) -> tuple[np.ndarray, np.ndarray]:
    """A ball (0) or a box (1) before a wall, with holes: uint16 [N, 96, 128] in mm, labels int64 [N]."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[0:96, 0:128]
    depth_NHW, labels_N = np.empty((count, 96, 128), np.uint16), np.arange(count) % 2
    for depth_HW, is_box in zip(depth_NHW, labels_N, strict=True):
        y, x, radius = rng.uniform(30, 66), rng.uniform(40, 88), rng.uniform(15, 25)
        away = np.maximum(abs(rows - y), abs(columns - x)) if is_box else np.hypot(rows - y, columns - x)
        shape = np.full(away.shape, 1000.0) if is_box else 1000 + away**2
        depth_HW[:] = np.where(away < radius, shape, 2200 + 2 * columns) + rng.normal(0, 4, away.shape)
        depth_HW[rng.random(away.shape) < 0.05] = 0
    return depth_NHW, labels_N


def save_untrained(path: Path) -> None:
    """What stages/train_autoencoder.py writes, before the first step."""
    network = Autoencoder(NetworkConfig())
    header = Header(kind="autoencoder", network=network.config, preprocessing=Preprocessing(height_range=(500, 3000)))
    save_weights(path, network, header)


if __name__ == "__main__":
    parser = ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("autoencoder", type=Path, nargs="?", help="weights file (default: an untrained autoencoder)")
    with TemporaryDirectory() as temporary:
        main(parser.parse_args().autoencoder, Path(temporary))
