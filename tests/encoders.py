"""Small autoencoders and encoders for the tests, and what they take."""

import numpy as np
import torch
from torch import nn

from sightline.depth.network import Autoencoder, NetworkConfig
from sightline.depth.preprocessing import Preprocessing
from sightline.depth.weights import Header, extract_encoder, save_weights

RANGE = Preprocessing(height_range=(500, 1500))


def save_autoencoder(path, preprocessing=RANGE, **network):
    """Weights of an autoencoder in which every layer counts, also the normalisation's statistics."""
    torch.manual_seed(0)
    autoencoder = Autoencoder(NetworkConfig(**({"latent_dim": 128, "width": 16} | network))).train()
    start_at_zero = ("attention.project.weight", "refine_patches.scene.weight", "refine_patches.output.weight")
    for name, weight in autoencoder.named_parameters():
        if name.endswith(("encoder.head.weight", *start_at_zero)):
            nn.init.normal_(weight, std=0.05)
    with torch.no_grad():
        autoencoder.encoder(torch.rand(2, autoencoder.config.input_channels, 128, 128))
    autoencoder.eval()
    save_weights(path, autoencoder, Header(kind="autoencoder", network=autoencoder.config, preprocessing=preprocessing))
    return autoencoder


def encoder_files(folder):
    """Weights of an autoencoder in ``folder``, and of its encoder in both formats."""
    save_autoencoder(folder / "autoencoder.safetensors")
    extract_encoder(folder / "autoencoder.safetensors", folder / "encoder.safetensors")
    extract_encoder(folder / "autoencoder.safetensors", folder / "encoder.pth")
    return folder


def images(count=2, channels=1, seed=0):
    return torch.rand(count, channels, 128, 128, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def raw_depth(*shape, seed=0):
    raw = np.random.default_rng(seed).integers(600, 1400, shape, np.uint16)
    raw[..., 3:9, 4:11] = 0
    return raw


def modes(module):
    return [part.training for part in module.modules()]
