"""Train the depth autoencoder on a file of normalised depth."""

import math
import sys
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.utils.data import Dataset

from sightline.core.errors import UserError
from sightline.core.files import file_sha256, rounded
from sightline.depth.augmentation import CHANCES, KEEP_ANSWERS, Augment, augment_images
from sightline.depth.card import about_autoencoder
from sightline.depth.network import Autoencoder, Head, NetworkConfig, PatchPath
from sightline.depth.objective import InverseDynamics, Objective, Summary, scale_scene
from sightline.depth.pairs import Pairs, read_pairs
from sightline.depth.perceptual import PerceptualLoss
from sightline.depth.preprocessing import IMAGE_SIZE, Preprocessing
from sightline.depth.store import DepthStore
from sightline.depth.weights import Header, save_weights
from sightline.training.by_hand import IN_PIPELINE, ByHand
from sightline.training.card import write_card
from sightline.training.compiling import compiled
from sightline.training.fitting import Batches, TrainerParams, configure_optimizer, fit
from sightline.training.loading import sent
from sightline.training.order import Draw, EpochBatches, in_order, share_of
from sightline.training.precision import computed_in, exact_float32
from sightline.training.processes import log_weight, process_device, rank, world_size


class TrainParams(TrainerParams):
    """The depth autoencoder."""

    epochs: int = Field(4, ge=1, description="most passes over the training frames")
    batch_size: int = Field(8, ge=2, description="frames in a step")
    latent_dim: int = Field(768, ge=1, description="numbers in the embedding of an image")
    scene_dim: int = Field(
        64, ge=0, description="how many of these come from the network; the others are a linear code of patches"
    )
    width: int = Field(16, ge=16, multiple_of=16, description="channels of layer1; 64 is the full network, for a GPU")
    head: Head = Field(
        "gap", description="scene numbers: gap: a mean over positions; flat: some for each of 8x8 positions"
    )
    patch_path: PatchPath = Field("refined", description="how patches are decoded: linear, or refined by convolutions")
    objective: Objective = Objective()
    augment: Augment = Field(
        "shift", description="none, shift (a little), rotate (by 90 degrees), full: also mirror, crop, scale, move"
    )
    l1_weight: float = Field(0.1, ge=0, description="weight of the absolute error beside the squared error")
    gradient_weight: float = Field(
        0.0, ge=0, description="weight of the error of the differences between neighbouring pixels; 0: off"
    )
    perceptual_weight: float = Field(0.0, ge=0, description="weight of the perceptual loss; needs --perceptual-weights")

    @model_validator(mode="before")
    @classmethod
    def _not_of_older_versions(cls, values: Any) -> Any:
        if isinstance(values, dict) and "patch_share" in values:
            raise ValueError("patch_share is gone: patches and network are trained together; leave it out")
        if isinstance(values, dict) and values.get("patch_path") == "none":
            raise ValueError("patch_path none is now scene_dim, with the value of latent_dim; leave patch_path out")
        return values

    @model_validator(mode="after")
    def _is_a_network(self) -> "TrainParams":
        assert self.network(channels=1)  # raises where there is no such network
        return self

    def network(self, channels: int) -> NetworkConfig:
        """The network that these parameters ask for."""
        return NetworkConfig(
            input_channels=channels, latent_dim=self.latent_dim, scene_dim=self.scene_dim, width=self.width,
            head=self.head, patch_path=self.patch_path,
        )  # fmt: skip


DRAWN = 2 * CHANCES + 1  # random numbers for a frame, for its later one, and for which that is
SAMPLE = 256  # training frames that tell the scale of the patch numbers
Images = tuple[Tensor, Tensor]  # depth [N, C, 128, 128], and valid [N, 128, 128]


class DepthImages(Dataset[dict[str, Tensor]]):
    """Batches of a store: `Draw` -> ``depth`` [B, C, 128, 128] and ``valid`` [B, 1, 128, 128], augmented.

    With pairs also ``later`` and ``later_valid``, of a frame of the same episode one to four steps later, augmented by
    itself; ``change`` [B, J], how the joints move until then; and ``paired`` [B], False where there is no such frame.

    Args:
        store: memory-mapped; only the rows of a batch are read.
        augment: "none" where the draws hold no random numbers.
        resident: the whole store on a GPU, where batches are then made; from `resident_images`.
        raw: only read: ``images``, ``valid`` [B, 128, 128] and ``chances``, to be changed on the GPU they are sent to;
            with pairs [2B, ...], the later frames behind the others.
        pairs: of the store.
    """

    def __init__(
        self,
        store: DepthStore,
        augment: Augment = "none",
        resident: Images | None = None,
        raw: bool = False,
        pairs: Pairs | None = None,
    ) -> None:
        self.store, self.augment, self.resident, self.raw, self.pairs = store, augment, resident, raw, pairs

    def __getitem__(self, draw: Draw) -> dict[str, Tensor]:
        rows, chances, more = draw.rows, np.ascontiguousarray(draw.chances[:, :CHANCES]), {}
        if self.pairs:
            gap = draw.chances[:, -1] if draw.chances.shape[1] else np.full(len(rows), 0.5)
            partner, change, paired = self.pairs.draw(rows, gap)
            rows = np.concatenate([rows, partner])
            chances = np.concatenate([chances, draw.chances[:, CHANCES : 2 * CHANCES]])
            more = {"change": torch.from_numpy(change), "paired": torch.from_numpy(paired)}
        index, chance = torch.from_numpy(rows), torch.from_numpy(chances)
        if self.resident:
            device = self.resident[0].device
            images = augment_images(*self.resident, sent(chance, device), self.augment, sent(index, device))
        elif self.raw:
            read, measured = _images(self.store, rows)
            return {"images": read, "valid": measured, "chances": chance} | more
        else:
            images = augment_images(*_images(self.store, rows), chance, self.augment)
        return _parted(*images, more)


def _parted(images: Tensor, valid: Tensor, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """A batch of augmented images, behind which the later ones of pairs lie where ``batch`` tells of pairs."""
    if "paired" not in batch:
        return {"depth": images, "valid": valid}
    count = len(batch["paired"])
    return {
        "depth": images[:count], "valid": valid[:count], "later": images[count:], "later_valid": valid[count:],
        "change": batch["change"], "paired": batch["paired"],
    }  # fmt: skip


def resident_images(store: DepthStore, device: torch.device) -> Images | None:
    """The whole store on ``device``, where that is a GPU and the store takes less than half of its free memory.

    Then a step costs the host no more than sending the order of a batch.
    """
    if device.type != "cuda" or 2 * (store.depth.nbytes + store.valid.nbytes) > torch.cuda.mem_get_info(device)[0]:
        return None
    images, valid = _images(store, slice(None))
    return images.to(device), valid.to(device)


def _images(store: DepthStore, rows: np.ndarray | slice) -> Images:
    return torch.from_numpy(store.images(rows)), torch.from_numpy(np.array(store.valid[rows]))


class AutoencoderModule(lightning.LightningModule):
    """The loss around `Autoencoder`: the terms of `Objective`, each with its weight.

    That of the reconstruction is MSE + l1_weight * MAE + gradient_weight * `gradient_difference`.

    Args:
        joints: how many move between the frames of a pair; 0 for batches without pairs.
    """

    def __init__(
        self,
        network: Autoencoder,
        params: TrainParams,
        preprocessing: Preprocessing,
        perceptual: nn.Module | None,
        joints: int = 0,
    ) -> None:
        super().__init__()
        self.preprocessing = preprocessing
        self.perceptual = [perceptual] if perceptual else []  # a list hides its weights from the checkpoints
        self.network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.params_ = params
        scene, aims = network.config.scene_dim, params.objective
        self.summary = Summary(scene, network.config.input_channels) if scene and aims.summary else None
        self.inverse_dynamics = InverseDynamics(scene, joints) if scene and joints else None
        parts = self.network.encoder, self.network.decoder
        self.encode, self.decode = (compiled(part.forward, params) for part in parts)

    def on_after_batch_transfer(self, batch: dict[str, Tensor], _: int) -> dict[str, Tensor]:
        """Change images on the device, where `DepthImages` has only read them."""
        if "images" not in batch:
            return batch
        kind = self.params_.augment if self.trainer.training else "none"
        return _parted(*augment_images(batch["images"], batch["valid"], batch["chances"], kind), batch)

    def training_step(self, batch: dict[str, Tensor], _: int) -> Tensor:
        return self._step(batch, "train")

    def validation_step(self, batch: dict[str, Tensor], _: int) -> None:
        self._step(batch, "val")

    def _step(self, batch: dict[str, Tensor], part: str) -> Tensor:
        depth, valid, aims, count = batch["depth"], batch["valid"], self.params_.objective, len(batch["depth"])
        if self.inverse_dynamics:
            depth = torch.cat([depth, batch["later"]])
        latents = self.encode(depth.contiguous(memory_format=torch.channels_last))
        if self.inverse_dynamics and part == "train":
            valid = torch.cat([valid, batch["later_valid"]])
        depth = depth[: len(valid)]  # in validation a later frame comes by itself, too
        prediction = self.decode(latents[: len(depth)])
        error = prediction - depth
        mse, l1 = mean_errors(error, valid)
        loss = mse + self.params_.l1_weight * l1
        if self.params_.gradient_weight:
            loss = loss + self.params_.gradient_weight * gradient_difference(error, valid)
        for perceptual in self.perceptual:
            loss = loss + self.params_.perceptual_weight * perceptual.to(depth.device)(prediction, depth, valid)
        loss, values = aims.reconstruction * loss, {f"{part}_mse": mse, f"{part}_l1": l1}
        scene = latents[:, self.network.config.patch_dim :]
        if self.summary:
            term = values[f"{part}_summary"] = self.summary.error(scene[: len(depth)], depth, valid)
            loss = loss + aims.summary * term
        if self.inverse_dynamics:
            now, later = scene.split(count)
            term = self.inverse_dynamics.error(now, later, batch["change"], batch["paired"])
            values[f"{part}_inverse_dynamics"] = term
            loss = loss + aims.inverse_dynamics * term
        values = {f"{part}_loss": loss, **values}
        # pooled over pixels where it is reported
        weight = log_weight(int(valid.sum()) if part == "val" else len(depth))
        self.log_dict(values, on_step=False, on_epoch=True, batch_size=weight, prog_bar=part == "val", sync_dist=True)
        return loss

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["model_config"] = self.network.config.model_dump(mode="json")
        checkpoint["preprocessing"] = self.preprocessing.model_dump(mode="json")

    def configure_optimizers(self) -> Any:
        steps, params = int(self.trainer.estimated_stepping_batches), self.params_
        return configure_optimizer(self.parameters(), params, steps)


def mean_errors(error: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Mean squared and mean absolute error of the valid pixels together; 0 where none is.

    Args:
        error: prediction - target [B, C, S, S]; valid: bool [B, 1, S, S].
    """
    pixels = (valid.sum() * error.shape[1]).clamp(min=1)  # a crop may lie in a hole
    squared, absolute = (torch.where(valid, e, 0).sum() for e in (error.square(), error.abs()))
    return squared / pixels, absolute / pixels


def gradient_difference(error: Tensor, valid: Tensor) -> Tensor:
    """Mean absolute difference of the error between valid neighbours: how badly edges and slopes are rendered.

    The gradient loss of Hu et al., "Revisiting Single Image Depth Estimation" (2019), without its logarithm.

    Args:
        error: prediction - target [B, C, S, S]; valid: bool [B, 1, S, S].
    """
    across, both = error.diff(dim=3).abs(), valid[..., 1:] & valid[..., :-1]
    down, two = error.diff(dim=2).abs(), valid[:, :, 1:] & valid[:, :, :-1]
    total = torch.where(both, across, 0).sum() + torch.where(two, down, 0).sum()
    return total / ((both.sum() + two.sum()) * error.shape[1]).clamp(min=1)


@exact_float32()
def train_autoencoder(
    data: Path,
    weights: Path,
    metrics_dir: Path,
    params: TrainParams,
    seed: int,
    *,
    frames: Path | None = None,
    perceptual_weights: Path | None = None,
    by_hand: ByHand = IN_PIPELINE,
) -> None:
    """Train on the ``train`` part of ``data``, keep the epoch that is best on ``val``, write weights and metrics.

    Writes ``weights`` (safetensors, see `sightline.depth.weights`) with its card, and to ``metrics_dir`` metrics.json,
    details.json and curves.csv. The ``test`` part is not touched. An interrupted run continues where it was.

    Args:
        data: file of normalised depth.
        frames: frames.parquet of the recording, for inverse dynamics; without it, or without joints in it, the network
            is trained by the other terms, which standard error, metrics and card say.
        perceptual_weights: weights of VGG-16, see `sightline.depth.perceptual`; needed where params.perceptual_weight
            is not 0.
        by_hand: checkpoints to write and to start from.

    Raises:
        UserError: a file that is not normalised depth, or one without training or validation frames; frames of another
            recording; an augmentation that turns or mirrors what joints are to be told from.
    """
    # The rows to learn from, and those that say which epoch is best.
    store = DepthStore.open(data)
    train_rows, val_rows = store.rows("train"), store.rows("val")
    if len(train_rows) < 2 or len(val_rows) < 1:
        raise UserError(
            f"{data}: {len(train_rows)} training and {len(val_rows)} validation frames; at least 2 and 1 are needed"
            + ("" if store.recording else "; take more images, or normalise them with a smaller data.split.guard")
        )
    # The second network of the perceptual loss, where that has a weight.
    perceptual = None
    if params.perceptual_weight:
        if perceptual_weights is None:
            raise UserError(
                "train.perceptual_weight needs --perceptual-weights FILE, the weights of torchvision's VGG-16"
            )
        perceptual = PerceptualLoss(perceptual_weights)
    # The joints, where there are some and the scene numbers are to tell them.
    pairs = None
    if params.scene_dim and params.objective.inverse_dynamics:
        pairs = read_pairs(frames, store) if frames else None
        if pairs and params.augment not in KEEP_ANSWERS:
            raise UserError(
                f"train.augment {params.augment} turns or mirrors images, but not the joints that inverse dynamics "
                "tells from them; set train.augment=shift, or train.objective.inverse_dynamics=0"
            )
        if not pairs and rank() == 0:
            source = f"{frames} has no joints that move" if frames else "no --frames with joints"
            print(f"train_autoencoder: {source}: trained without inverse dynamics", file=sys.stderr)
    # The network: the seed decides its first weights.
    lightning.seed_everything(seed, verbose=False)
    network = Autoencoder(params.network(store.channels))
    some = train_rows[:: max(1, len(train_rows) // SAMPLE)]
    scale_scene(network, torch.from_numpy(store.images(some)))
    # Batches: this process's share of both parts.
    resident, raw = resident_images(store, process_device()), process_device().type == "cuda"
    batches = Batches(
        DepthImages(store, params.augment, resident, raw, pairs),
        EpochBatches(train_rows, params.batch_size, seed, DRAWN, rank(), world_size(), only_whole=params.compile),
        DepthImages(store, "none", resident, raw, pairs),
        in_order(share_of(val_rows, rank(), world_size()), params.batch_size),
        store.frame_id,
        resident is not None,
    )
    # Train. The identity is all that decides the result: only an interrupted run of the same one is continued.
    module = AutoencoderModule(network, params, store.preprocessing, perceptual, pairs.joints if pairs else 0)
    files = (data, by_hand.resume, perceptual and perceptual_weights, pairs and frames)
    identity = [params.model_dump(mode="json"), seed, *(file_sha256(path) if path else None for path in files)]
    result = fit(module, batches, params, "train_autoencoder", identity, by_hand, all_learn=True)
    if rank() != 0:
        return
    # Write the weights of the best epoch, and what it measured beside the simplest predictor.
    network.load_state_dict(result.best_weights_of("network"))
    header = Header(kind="autoencoder", network=network.config, preprocessing=store.preprocessing)
    save_weights(weights, network, header)
    recorded = {"precision": computed_in(params.precision, process_device())}
    about = about_autoencoder(header, inverse_dynamics=bool(pairs))
    write_card(weights, about, header.model_dump(mode="json"), store.split, store.episode, recorded)
    best, mm = result.best, store.preprocessing.mm_per_unit if store.channels == 1 else None
    errors, rmse = _errors(best["val_mse"], best["val_l1"], mm), "rmse_mm" if mm else "rmse"
    figures = {
        "joints": pairs.joints if pairs else 0,  # that inverse dynamics was trained with
        "parameters": sum(p.numel() for p in network.parameters()),
        "val": errors,
        "val_mean_image": _errors(*_mean_image_errors(store, train_rows, val_rows), mm),
    }
    result.report(metrics_dir, {f"val_{rmse}": errors[rmse]}, figures | recorded)


def _errors(mse: float, l1: float, mm_per_unit: float | None) -> dict[str, float]:
    values = {"rmse": math.sqrt(mse), "mae": l1}
    if mm_per_unit:
        values |= {f"{name}_mm": value * mm_per_unit for name, value in values.items()}
    return rounded(values)


def _mean_image_errors(store: DepthStore, train_rows: np.ndarray, val_rows: np.ndarray) -> tuple[float, float]:
    """MSE and MAE on the valid pixels of ``val_rows`` of the simplest predictor: the mean training image."""
    total, count = np.zeros((store.channels, IMAGE_SIZE, IMAGE_SIZE)), np.zeros((IMAGE_SIZE, IMAGE_SIZE))
    for row in train_rows:
        valid = store.valid[row]
        total += np.where(valid, store.images(slice(row, row + 1))[0], 0)
        count += valid
    overall = total.sum() / (count.sum() * store.channels)
    mean = np.where(count > 0, total / np.maximum(count, 1), overall)
    squared = absolute = pixels = 0.0
    for row in val_rows:
        error = (store.images(slice(row, row + 1))[0] - mean)[:, store.valid[row]]
        squared, absolute, pixels = squared + (error**2).sum(), absolute + np.abs(error).sum(), pixels + error.size
    return squared / pixels, absolute / pixels
