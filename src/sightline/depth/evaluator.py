"""A trained depth autoencoder for use by hand: images to latents and back."""

from pathlib import Path

import torch
from torch import Tensor

from sightline.depth.network import Autoencoder
from sightline.depth.preprocessing import IMAGE_SIZE
from sightline.depth.weights import load_weights
from sightline.training.processes import process_device


class ModelEvaluator:
    """A trained autoencoder in eval mode: images to latents and back, in float32 and without gradients.

    Args:
        path: weights file written by ``stages/train_autoencoder.py``.
        device: None takes the GPU where there is one. Results come back on the device of the input.

    Raises:
        UserError: not the weights of a depth autoencoder.
    """

    def __init__(self, path: str | Path, device: str | torch.device | None = None) -> None:
        weights = load_weights(Path(path), "autoencoder")
        network = weights.build(Path(path))
        assert isinstance(network, Autoencoder)
        self.header = weights.header
        self.device = torch.device(device) if device else process_device()
        self.network = network.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]

    @torch.no_grad()
    def encode_image(self, image_B1HW: Tensor) -> Tensor:
        """Normalised, hole-filled depth [B, 1, 128, 128] in [-1, 1] -> latent [B, D]."""
        expected = (self.header.network.input_channels, IMAGE_SIZE, IMAGE_SIZE)
        if image_B1HW.ndim != 4 or image_B1HW.shape[1:] != expected:
            raise ValueError(f"expected images [B, {', '.join(map(str, expected))}], got {list(image_B1HW.shape)}")
        images = image_B1HW.to(self.device, torch.float32, memory_format=torch.channels_last)
        return self.network.encoder(images).to(image_B1HW.device)

    @torch.no_grad()
    def decode_latent(self, latent_BD: Tensor) -> Tensor:
        """Latent [B, D] -> normalised depth [B, 1, 128, 128] in [-1, 1]."""
        expected = self.header.network.latent_dim
        if latent_BD.ndim != 2 or latent_BD.shape[1] != expected:
            raise ValueError(f"expected latents [B, {expected}], got {list(latent_BD.shape)}")
        return self.network.decoder(latent_BD.to(self.device, torch.float32)).contiguous().to(latent_BD.device)

    def reconstruct(self, image_B1HW: Tensor) -> Tensor:
        """Encode and decode: [B, 1, 128, 128] -> same shape."""
        return self.decode_latent(self.encode_image(image_B1HW))
