"""Train the depth autoencoder on a file of normalised depth."""

import math
from pathlib import Path
from typing import Any, Literal

import lightning
import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from sightline.depth.network import Autoencoder, NetworkConfig
from sightline.depth.perceptual import PerceptualLoss
from sightline.depth.preprocessing import Preprocessing
from sightline.depth.store import DepthStore
from sightline.depth.weights import Header, save_weights
from sightline.errors import UserError
from sightline.files import file_sha256, write_json
from sightline.training.fitting import TrainerParams, configure_optimizer, fit
from sightline.training.order import EpochBatches
from sightline.training.processes import rank, world_size


class TrainParams(TrainerParams):
    """Section ``train``: the depth autoencoder."""

    latent_dim: int = Field(default=768, ge=1, description="numbers in the embedding of an image")
    head: Literal["gap", "flat"] = Field(
        default="gap", description="global average pooling (rank 512 at most), or channels for each of 8x8 positions"
    )
    patch_path: bool = Field(default=True, description="linear path of 16x16 patches around the network")
    rotate: bool = Field(default=True, description="turn each training image by a random multiple of 90 degrees")
    l1_weight: float = Field(default=0.1, ge=0, description="weight of the absolute error beside the squared error")
    gradient_weight: float = Field(default=0.0, ge=0, description="weight of the error of differences of neighbours")
    perceptual_weight: float = Field(default=0.0, ge=0, description="weight of the perceptual loss, which needs a file")

    @model_validator(mode="after")
    def _is_a_network(self) -> "TrainParams":
        assert self.network  # raises where there is no such network
        return self

    @property
    def network(self) -> NetworkConfig:
        """The network that these parameters ask for."""
        return NetworkConfig(latent_dim=self.latent_dim, head=self.head, patch_path=self.patch_path)


class DepthImages(Dataset[dict[str, Tensor]]):
    """Batches out of the memory-mapped store: (row, quarter turns) int64 [B, 2] -> depth and valid [B, 1, 128, 128]."""

    def __init__(self, store: DepthStore, rotate: bool) -> None:
        self.store, self.rotate = store, rotate

    def __getitem__(self, pairs: np.ndarray) -> dict[str, Tensor]:
        depth, valid = self.store.depth[pairs[:, 0]], self.store.valid[pairs[:, 0]]
        if self.rotate:
            for image, mask, turns in zip(depth, valid, pairs[:, 1], strict=True):
                image[:], mask[:] = np.rot90(image, turns).copy(), np.rot90(mask, turns).copy()
        return {"depth": torch.from_numpy(depth)[:, None], "valid": torch.from_numpy(valid)[:, None]}


class AutoencoderModule(lightning.LightningModule):
    """The loss around `Autoencoder`: MSE + l1_weight * MAE + gradient_weight * `gradient_difference`."""

    def __init__(
        self, network: Autoencoder, params: TrainParams, preprocessing: Preprocessing, perceptual: nn.Module | None
    ) -> None:
        super().__init__()
        self.preprocessing = preprocessing
        self.perceptual = [perceptual] if perceptual else []  # a list hides its weights from the checkpoints
        self.network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.params_ = params

    def training_step(self, batch: dict[str, Tensor], _: int) -> Tensor:
        return self._step(batch, "train")

    def validation_step(self, batch: dict[str, Tensor], _: int) -> None:
        self._step(batch, "val")

    def _step(self, batch: dict[str, Tensor], part: str) -> Tensor:
        depth, valid = batch["depth"], batch["valid"]
        prediction = self.network(depth.contiguous(memory_format=torch.channels_last))[0]
        error = prediction - depth
        mse, l1 = error[valid].square().mean(), error[valid].abs().mean()
        loss = mse + self.params_.l1_weight * l1
        if self.params_.gradient_weight:
            loss = loss + self.params_.gradient_weight * gradient_difference(error, valid)
        for perceptual in self.perceptual:
            loss = loss + self.params_.perceptual_weight * perceptual.to(depth.device)(prediction, depth, valid)
        values = {f"{part}_loss": loss, f"{part}_mse": mse, f"{part}_l1": l1}
        weight = int(valid.sum()) if part == "val" else len(depth)  # pooled over pixels where it is reported
        self.log_dict(values, on_step=False, on_epoch=True, batch_size=weight, prog_bar=part == "val", sync_dist=True)
        return loss

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["model_config"] = self.network.config.model_dump(mode="json")
        checkpoint["preprocessing"] = self.preprocessing.model_dump(mode="json")

    def configure_optimizers(self) -> Any:
        return configure_optimizer(self.parameters(), self.params_, int(self.trainer.estimated_stepping_batches))


def gradient_difference(error: Tensor, valid: Tensor) -> Tensor:
    """Mean absolute difference of the error between valid neighbours: how badly edges and slopes are rendered.

    The gradient loss of Hu et al., "Revisiting Single Image Depth Estimation" (2019), without its logarithm.

    Args:
        error: prediction - target [B, 1, S, S]; valid: bool [B, 1, S, S].
    """
    across, both = error.diff(dim=3).abs(), valid[..., 1:] & valid[..., :-1]
    down, two = error.diff(dim=2).abs(), valid[:, :, 1:] & valid[:, :, :-1]
    return (across[both].sum() + down[two].sum()) / (both.sum() + two.sum()).clamp(min=1)


def train_autoencoder(
    data: Path,
    weights: Path,
    metrics_dir: Path,
    params: TrainParams,
    seed: int,
    output_dir: Path | None = None,
    resume: Path | None = None,
    perceptual_weights: Path | None = None,
) -> None:
    """Train on the ``train`` part of ``data``, keep the epoch that is best on ``val``, write weights and metrics.

    Writes ``weights`` (safetensors, see `sightline.depth.weights`), ``metrics_dir/metrics.json`` and
    ``metrics_dir/curves.csv``. The ``test`` part is not touched. An interrupted run continues where it was.

    Args:
        data: file of normalised depth.
        output_dir, resume: for runs by hand, see `sightline.training.fitting.fit`.
        perceptual_weights: weights of VGG-16, see `sightline.depth.perceptual`; needed where params.perceptual_weight
            is not 0.

    Raises:
        UserError: a file that is not normalised depth, or one without training or validation frames.
    """
    store = DepthStore.open(data)
    train_rows, val_rows = store.rows("train"), store.rows("val")
    if len(train_rows) < 2 or len(val_rows) < 1:
        raise UserError(
            f"{data}: {len(train_rows)} training and {len(val_rows)} validation frames; at least 2 and 1 are needed"
        )
    perceptual = None
    if params.perceptual_weight:
        if perceptual_weights is None:
            raise UserError(
                "train.perceptual_weight needs --perceptual-weights FILE, the weights of torchvision's VGG-16"
            )
        perceptual = PerceptualLoss(perceptual_weights)
    lightning.seed_everything(seed, verbose=False)
    network = Autoencoder(params.network)
    inputs = [file_sha256(path) if path else None for path in (data, resume, perceptual and perceptual_weights)]
    result = fit(
        AutoencoderModule(network, params, store.preprocessing, perceptual),
        _loader(store, params.rotate, EpochBatches(train_rows, params.batch_size, seed, rank(), world_size())),
        _loader(store, False, _in_order(val_rows[rank() :: world_size()], params.batch_size)),
        params,
        stage="train_autoencoder",
        identity=[params.model_dump(mode="json"), seed, *inputs],
        output_dir=output_dir,
        resume=resume,
    )
    if rank() != 0:
        return
    network.load_state_dict({name.removeprefix("network."): tensor for name, tensor in result.best_weights.items()})
    save_weights(
        weights, network, Header(kind="autoencoder", network=network.config, preprocessing=store.preprocessing)
    )
    best = result.best
    write_json(
        metrics_dir / "metrics.json",
        {
            "epochs": len(result.history),
            "best_epoch": int(best["epoch"]),
            "parameters": sum(p.numel() for p in network.parameters()),
            "val": _errors(best["val_mse"], best["val_l1"], store.preprocessing.mm_per_unit),
            "val_mean_image": _errors(
                *_mean_image_errors(store, train_rows, val_rows), store.preprocessing.mm_per_unit
            ),
        },
    )
    result.write_curves(metrics_dir / "curves.csv")
    result.finish()


def _loader(store: DepthStore, rotate: bool, batches: Any) -> DataLoader:
    return DataLoader(DepthImages(store, rotate), sampler=batches, batch_size=None)


def _in_order(rows: np.ndarray, batch_size: int) -> list[np.ndarray]:
    pairs = np.stack([rows, np.zeros_like(rows)], axis=1)
    return [pairs[start : start + batch_size] for start in range(0, len(pairs), batch_size)]


def _errors(mse: float, l1: float, mm_per_unit: float) -> dict[str, float]:
    rmse = math.sqrt(mse)
    values = {"rmse": rmse, "mae": l1, "rmse_mm": rmse * mm_per_unit, "mae_mm": l1 * mm_per_unit}
    return {name: float(f"{value:.6g}") for name, value in values.items()}


def _mean_image_errors(store: DepthStore, train_rows: np.ndarray, val_rows: np.ndarray) -> tuple[float, float]:
    """MSE and MAE on the valid pixels of ``val_rows`` of the simplest predictor: the mean training image."""
    total, count = np.zeros((128, 128)), np.zeros((128, 128))
    for row in train_rows:
        valid = store.valid[row]
        total += np.where(valid, store.depth[row], 0)
        count += valid
    mean = np.where(count > 0, total / np.maximum(count, 1), total.sum() / count.sum())
    squared = absolute = pixels = 0.0
    for row in val_rows:
        error = (store.depth[row] - mean)[store.valid[row]]
        squared, absolute, pixels = squared + (error**2).sum(), absolute + np.abs(error).sum(), pixels + error.size
    return squared / pixels, absolute / pixels
