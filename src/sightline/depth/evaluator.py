"""A trained depth autoencoder for use by hand: images to latents and back."""

from pathlib import Path

import torch
from torch import Tensor

from sightline.core.errors import UserError
from sightline.core.tensors import check_range
from sightline.depth.network import Autoencoder
from sightline.depth.preprocessing import IMAGE_SIZE
from sightline.depth.weights import load_weights
from sightline.training.processes import process_device

_ADVICE = "sightline.depth.preprocessing.preprocess makes them of raw counts [N, C, H, W]"


class ModelEvaluator:
    """A trained autoencoder in eval mode: images to latents and back, in float32 and without gradients.

    Args:
        path: weights file written by ``sightline train_autoencoder``.
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
        """Normalised, hole-filled depth [B, 1, 128, 128] in [-1, 1] -> latent [B, D].

        Raises:
            UserError: another layout or size, whole numbers, or numbers beyond -1.5..1.5.
        """
        expected = (self.header.network.input_channels, IMAGE_SIZE, IMAGE_SIZE)
        if not isinstance(image_B1HW, Tensor) or image_B1HW.ndim != 4 or image_B1HW.shape[1:] != expected:
            got = list(image_B1HW.shape) if isinstance(image_B1HW, Tensor) else type(image_B1HW).__name__
            raise UserError(f"expected images [B, {', '.join(map(str, expected))}], got {got}; {_ADVICE}")
        if not image_B1HW.is_floating_point():
            raise UserError(f"images must be floating point in [-1, 1], not {image_B1HW.dtype}; {_ADVICE}")
        check_range("images", image_B1HW, True, -1.5, 1.5, "[-1, 1]", _ADVICE)
        images = image_B1HW.to(self.device, torch.float32, memory_format=torch.channels_last)
        return self.network.encoder(images).to(image_B1HW.device)

    @torch.no_grad()
    def decode_latent(self, latent_BD: Tensor) -> Tensor:
        """Latent [B, D] -> normalised depth [B, 1, 128, 128] in [-1, 1]."""
        expected = self.header.network.latent_dim
        if latent_BD.ndim != 2 or latent_BD.shape[1] != expected:
            raise UserError(f"expected latents [B, {expected}], got {list(latent_BD.shape)}")
        return self.network.decoder(latent_BD.to(self.device, torch.float32)).contiguous().to(latent_BD.device)

    def reconstruct(self, image_B1HW: Tensor) -> Tensor:
        """Encode and decode: [B, 1, 128, 128] -> same shape."""
        return self.decode_latent(self.encode_image(image_B1HW))
