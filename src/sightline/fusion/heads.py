"""From the feature to a chunk of actions: regression, or a conditional variational autoencoder.

Symbols: batch B, steps H, actions A, feature [B, F]; chunks [B, H, A] are normalised, masks [B, H] are 1 within the
episode. Every loss comes per sample, [B], so that the caller can weight samples.
"""

from typing import Literal

import torch
from torch import Tensor, nn

Objective = Literal["bc", "cvae"]
Loss = Literal["l1", "huber", "mse"]


class ChunkHead(nn.Module):
    """Behaviour cloning: an MLP from the feature to all steps of the chunk at once (Zhao et al., ACT, 2023)."""

    def __init__(self, feature_dim: int, steps: int, actions: int, loss: Loss) -> None:
        super().__init__()
        self.shape, self.kind = (steps, actions), loss
        self.layers = mlp(feature_dim, 256, 1, steps * actions)

    def start_at_zero(self) -> None:
        """Predict zeros until it is trained."""
        _zero(self.layers[-1])

    def forward(self, feature: Tensor) -> Tensor:
        """Predicted chunk [B, H, A]."""
        return self.layers(feature).unflatten(1, self.shape)

    def losses(
        self, feature: Tensor, chunk: Tensor, mask: Tensor, beta: float, noise: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Error of each sample, averaged over its valid steps and over actions, [B]; nothing to log besides."""
        del beta, noise  # of the other head
        error = elementwise(self(feature) - chunk, self.kind).mean(dim=2)
        return (error * mask).sum(dim=1) / mask.sum(dim=1), {}


class CvaeHead(nn.Module):
    """The behaviour model of LAPO (Chen et al., "LAPO: Latent-Variable Advantage-Weighted Policy Optimization", 2022).

    Chunked, with the log-variance clamped; with one step, ``detach_posterior`` off and ``prior_weight`` 0 it is LAPO's:
    R + beta KL per sample, R summed over actions and averaged over valid steps.

    Args:
        detach_posterior: the posterior sees the feature without passing gradient to it, so that the feature is learnt
            through the decoder and cannot be used to carry the actions to the posterior.
        prior_weight: weight of the error at z = 0, which is what a deterministic use evaluates.
    """

    def __init__(
        self, feature_dim: int, steps: int, actions: int, *, detach_posterior: bool = True, prior_weight: float = 1.0
    ) -> None:
        super().__init__()
        self.shape, self.latent = (steps, actions), 2 * actions
        self.detach_posterior, self.prior_weight = detach_posterior, prior_weight
        self.posterior_layers = mlp(feature_dim + steps * actions, 256, 2, 2 * self.latent)
        self.decoder = mlp(feature_dim + self.latent, 256, 2, steps * actions)

    def start_at_zero(self) -> None:
        """Predict zeros until it is trained."""
        _zero(self.decoder[-1])

    def forward(self, feature: Tensor, z: Tensor | None = None) -> Tensor:
        """Chunk [B, H, A] for latents [B, 2A]; None takes the mean of the prior, 0."""
        z = feature.new_zeros(feature.shape[0], self.latent) if z is None else z.to(feature.dtype)
        return self.decoder(torch.cat([feature, z], dim=1)).unflatten(1, self.shape)

    def posterior(self, feature: Tensor, chunk: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of the latent, [B, 2A] each; steps beyond the episode count as 0."""
        feature = feature.detach() if self.detach_posterior else feature
        seen = (chunk * mask[..., None]).flatten(1).to(feature.dtype)
        mean, log_variance = self.posterior_layers(torch.cat([feature, seen], dim=1)).float().chunk(2, dim=1)
        return mean, log_variance.clamp(-8, 4)

    def losses(
        self, feature: Tensor, chunk: Tensor, mask: Tensor, beta: float, noise: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """R + beta KL + prior_weight R(z = 0) of each sample, [B]; and R, KL and R(z = 0) to log.

        Args:
            noise: of a standard normal distribution, [B, 2A].
        """
        mean, log_variance = self.posterior(feature, chunk, mask)
        z = mean + noise * (0.5 * log_variance).exp()
        error, at_zero = (summed_squares(self(feature, latent) - chunk, mask) for latent in (z, None))
        kl = kl_divergence(mean, log_variance)
        return error + beta * kl + self.prior_weight * at_zero, {"error": error, "kl": kl, "prior_error": at_zero}


def kl_divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL divergence from N(mean, variance) to the standard normal distribution, nats, [B]."""
    return -0.5 * (1 + log_variance - mean.square() - log_variance.exp()).sum(dim=1)


def summed_squares(error: Tensor, mask: Tensor) -> Tensor:
    """Squares [B, H, A], summed over actions, averaged over valid steps, [B]."""
    return (error.square().sum(dim=2) * mask).sum(dim=1) / mask.sum(dim=1)


def elementwise(error: Tensor, kind: Loss) -> Tensor:
    """|e|, e^2, or Huber's loss with its corner at 1."""
    if kind == "mse":
        return error.square()
    size = error.abs()
    return size if kind == "l1" else torch.where(size < 1, 0.5 * size.square(), size - 0.5)


def _zero(layer: nn.Module) -> None:
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)


def mlp(entering: int, width: int, hidden: int, leaving: int) -> nn.Sequential:
    """``hidden`` layers of ``width`` with ReLU, and a linear one."""
    layers: list[nn.Module] = []
    for _ in range(hidden):
        layers += [nn.Linear(entering, width), nn.ReLU()]
        entering = width
    return nn.Sequential(*layers, nn.Linear(entering, leaving))
