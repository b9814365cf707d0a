"""Train a segmentation model from few labelled groups and many unlabelled ones."""

import copy
from pathlib import Path
from typing import Any, Literal, NamedTuple

import lightning
import numpy as np
import torch
from pydantic import Field, field_validator, model_validator
from torch import Tensor

from sightline.core.errors import UserError
from sightline.core.files import rounded
from sightline.recording.layout import IGNORE
from sightline.segmentation.augmentation import COLOUR_CHANCES, CROP_CHANCES, WEAK_CHANCES, extras_of
from sightline.segmentation.bank import ContrastiveParams, bank_rows, make_bank
from sightline.segmentation.batches import (
    Batch,
    FrameBatches,
    LabeledGroups,
    StepBatches,
    choose_labelled,
    class_weights,
    rarity,
)
from sightline.segmentation.card import about_segmentation
from sightline.segmentation.checks import check_classes, check_labelled, names_of
from sightline.segmentation.frames import SegmentationFrames
from sightline.segmentation.methods import (
    SEMI_SUPERVISED,
    TEACHER_METHODS,
    MethodParams,
    Step,
    Unlabelled,
    supervised,
    unlabelled_chances,
)
from sightline.segmentation.model import NetworkName, SegmentationConfig, SegmentationModel, save_model
from sightline.segmentation.network import Norm, Output
from sightline.segmentation.params import FrameParams
from sightline.segmentation.patches import PATCH_CHANCES, VolumeBatches, Volumes, check_crop
from sightline.segmentation.views import viewed
from sightline.training.averaging import move_average, share_at
from sightline.training.by_hand import IN_PIPELINE, ByHand
from sightline.training.card import write_card
from sightline.training.compiling import compiled
from sightline.training.fitting import Batches, TrainerParams, configure_optimizer, fit, parameter_groups
from sightline.training.order import Draw, in_order
from sightline.training.precision import computed_in, exact_float32
from sightline.training.processes import exchange, process_device, rank, world_size

VOLUME_CHANCES = PATCH_CHANCES + COLOUR_CHANCES  # of a patch
_OVERLAP = 0.25  # of windows of volumes in a validation: a quarter of the work of an evaluation's
SELECTOR_RATE = 0.1  # learning rate of the bank's selectors, in shares of the others'


class SegmentationParams(MethodParams, TrainerParams, FrameParams):
    """Classes of pixels, learnt from few masks and many images."""

    dims: Literal[2, 3] = Field(2, description="2: images, or slices of volumes one by one; 3: patches of volumes")
    network: NetworkName = Field("unet", description="unet, or for dims 3 vnet (45 million weights, for a GPU)")
    slice_step: int = Field(1, ge=1, le=16, description="for dims 3: how many slices become one, their mean")
    epochs: int = Field(
        12, ge=1, description="most epochs, each of steps_per_epoch steps and a look at the validation part"
    )
    batch_size: int = Field(8, ge=2, description="labelled frames, or patches of volumes, in a step")
    lr: float = Field(2e-3, gt=0, description="highest learning rate; a tenth of it for the selectors of a memory bank")
    weight_decay: float = Field(1e-3, ge=0, description="decay (AdamW) or L2 penalty, not of biases and norms")
    patience: int = Field(
        100,
        ge=1,
        description="epochs without a better Dice before stopping; with fewer, methods get different numbers of steps",
    )
    labeled_groups: LabeledGroups = Field(
        1,
        description="groups whose masks are used: a number, names, labelled (all with masks); null: labeled_fraction",
    )
    labeled_seed: int | None = Field(None, ge=0, description="draws these groups, for a number or share; null: seed")
    labeled_fraction: float | None = Field(None, gt=0, le=1, description="the same as a share; null for both: all")
    steps_per_epoch: int = Field(50, ge=1, description="steps in an epoch, the same for every method")
    unlabelled_batch_size: int = Field(8, ge=2, description="unlabelled frames, or patches, in a step")
    sampling: Literal["uniform", "balanced"] = Field(
        "uniform", description="draws of labelled frames: uniform, or balanced: those with rare classes more often"
    )
    class_weights: Literal["none", "inverse_sqrt"] = Field(
        "none", description="in the cross-entropy: none, or inverse_sqrt of the share of the labelled pixels"
    )
    channels: tuple[int, ...] = Field(
        (16, 16, 32, 64, 128, 16), description="channels of the U-Net's five levels, finest first, and of its last map"
    )
    norm: Norm = Field(
        "instance", description="of the U-Net: instance, group (a quarter of the channels), or batch (mixes views)"
    )
    extra_dropout: float = Field(0.1, ge=0, lt=1, description="probability that a further input is hidden")
    ema: float = Field(
        0.99, ge=0, lt=1, description="decay of the averaged weights, which are the result; 0: no average"
    )
    contrastive: ContrastiveParams = ContrastiveParams()

    @field_validator("channels")
    @classmethod
    def _are_six(cls, channels: tuple[int, ...]) -> tuple[int, ...]:
        if len(channels) != 6 or min(channels) < 1:
            raise ValueError(f"channels must be six numbers above 0, not {list(channels)}")
        return channels

    @model_validator(mode="after")
    def _fit_together(self) -> "SegmentationParams":
        if self.labeled_groups and self.labeled_fraction:
            raise ValueError("labeled_groups and labeled_fraction: set one of the two, null for the other")
        has_teacher = self.method in TEACHER_METHODS or (self.method == "unimatch" and self.unimatch.teacher)
        if has_teacher and not self.ema:
            raise ValueError(f"ema must be above 0 for {self.method}, whose teacher is the average")
        if self.norm == "group" and any(width % 4 for width in self.channels):
            raise ValueError(f"channels must be multiples of 4 for norm group, not {list(self.channels)}")
        if self.bcp.largest_part and not self.has_background:
            raise ValueError("bcp.largest_part makes what is not kept class 0, which must be the background")
        if self.dims == 3 and (self.crop is None or len(self.crop) != 3):
            shown = "null" if self.crop is None else list(self.crop)
            raise ValueError(f"crop must be rows, columns and slices for dims 3, as [112, 112, 80], not {shown}")
        if self.dims == 2:
            if self.crop is not None and len(self.crop) != 2:
                raise ValueError(f"crop must be rows and columns for dims 2, not {list(self.crop)}; or set dims to 3")
            if self.network != "unet" or self.slice_step != 1:
                raise ValueError("network vnet and slice_step are for dims 3; set dims to 3 as well")
        return self


class SegmentationModule(lightning.LightningModule):
    """The losses around `SegmentationModel`, its average, and the memory bank.

    Random numbers of a step, besides those that come with its samples, are drawn from (seed, step), so that a resumed
    run draws the same; a GPU draws its own, others than a CPU.
    """

    def __init__(
        self, model: SegmentationModel, params: SegmentationParams, weights_C: Tensor | None, in_val_C: Tensor
    ) -> None:
        super().__init__()
        self.model, self.params_ = model, params
        self.average = copy.deepcopy(model).requires_grad_(False) if params.ema else None
        for name in ("encode", "decode") if params.compile else ():
            setattr(model.network, name, compiled(getattr(model.network, name), params))
        self.bank = make_bank(model, params.contrastive, params.method, params.has_background)
        if self.bank is not None:  # each process's own: DDP would overwrite them by the first one's at every step
            self._ddp_params_and_buffers_to_ignore = ["bank.memory", "bank.memory_count"]
        self.weights_C, self.in_val_C = weights_C, in_val_C  # moved by hand: a state dict should not hold them
        self.counts = torch.zeros(0)  # of the validation part, [3, C]: both, predicted, true

    def on_fit_start(self) -> None:
        self.weights_C = None if self.weights_C is None else self.weights_C.to(self.device)
        self.in_val_C = self.in_val_C.to(self.device)

    def training_step(self, batch: Batch, _: int) -> Tensor:
        if self.average is not None:
            self.average.eval()
        config, params = self.model.config, self.params_
        with torch.autocast(self.device.type, enabled=False):
            labelled, labels, rest = viewed(batch["labelled"], params)[:3]
            more = Unlabelled(*viewed(batch["unlabelled"], params)) if "unlabelled" in batch else None
        hidden = {name: rest[:, i] < params.extra_dropout for i, name in enumerate(config.extras)}
        generator = torch.Generator(self.device).manual_seed(
            (config.seed * 1_000_003 + self.trainer.global_step) * world_size() + rank()
        )
        step = Step(
            self.model, self.average or self.model, params, self._done, generator, self.weights_C,
            labelled, labels, hidden,
        )  # fmt: skip
        learnt = SEMI_SUPERVISED[params.method](step, more) if more else supervised(step)
        losses = learnt.losses
        if self.bank is not None:
            weight = params.contrastive.weights_for(params.method)[0] * params.rise(self._done)
            losses = losses | {"bank": weight * self._bank_loss(learnt.seen, labelled)}
        loss = torch.stack(list(losses.values())).sum()
        values = {"train_loss": loss.detach(), **{f"train_{name}": part.detach() for name, part in losses.items()}}
        self.log_dict(values, on_step=False, on_epoch=True, batch_size=1, sync_dist=True)
        return loss

    def _bank_loss(self, seen: list[tuple[Output, Tensor | None, bool]], labelled: dict[str, Tensor]) -> Tensor:
        assert self.bank is not None
        params, stride = self.params_.contrastive, self.params_.contrastive.stride
        weights = (1.0, *params.weights_for(self.params_.method)[1:])
        teacher, parts = self.average if self.params_.method == "semiseg" else None, []
        if teacher is not None:  # the bank holds what the teacher makes of labelled images
            with torch.no_grad():
                levels = teacher.encode(labelled["image"], extras_of(labelled))
                output = teacher.decode(levels, labelled["image"].shape[2:])
                parts.append(self.bank.rows(*bank_rows(output, seen[0][1], stride)))
        for output, labels, is_true in seen:
            parts.append(self.bank.rows(*bank_rows(output, labels, stride), is_true and teacher is None))
        losses = [loss for loss, _ in self.bank.update_and_compute_losses(parts, *weights)]
        return sum(losses[teacher is not None :], start=torch.zeros((), device=self.device))

    def on_validation_epoch_start(self) -> None:
        self.counts = torch.zeros(3, len(self.model.config.classes), dtype=torch.int64, device=self.device)

    def validation_step(self, batch: Batch, _: int) -> None:
        model, frames = self.average or self.model, batch["labelled"]
        model.eval()
        if model.config.spatial_dims == 3:
            predicted = model.probabilities(frames["image"], overlap=_OVERLAP).argmax(dim=1)
        else:
            predicted = model(frames["image"], extras_of(frames)).argmax(dim=1)
        labels, count = frames["mask"].long(), len(self.model.config.classes)
        valid = labels != IGNORE
        both = torch.where(valid & (predicted == labels), labels, count)
        for row, classes in enumerate((both, torch.where(valid, predicted, count), torch.where(valid, labels, count))):
            self.counts[row] += torch.bincount(classes.flatten(), minlength=count + 1)[:count]

    def on_validation_epoch_end(self) -> None:
        both, predicted, true = self.counts.double()
        dice_C = 2 * both / (predicted + true).clamp_min(1)
        measured = self.in_val_C & (torch.arange(len(dice_C), device=self.device) >= self.params_.first_class)
        mean = dice_C[measured].mean()
        values = {f"val_dice_{name}": dice for name, dice, there in zip(
            self.model.config.classes, dice_C, self.in_val_C.tolist(), strict=True) if there}  # fmt: skip
        self.log_dict({"val_loss": 1 - mean, "val_dice": mean} | values, sync_dist=True)

    def on_train_batch_end(self, *_: Any) -> None:
        """Average weights, and statistics of the normalisation with them."""
        if self.average is not None:
            move_average(self.average, self.model, share_at(self.trainer.global_step, self.params_.ema))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the bank of every process; the state dict holds the first one's."""
        if self.bank is not None and world_size() > 1:
            checkpoint["banks"] = exchange((self.bank.memory.cpu(), self.bank.memory_count.cpu()))

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on with this process's bank."""
        if rank() < len(banks := checkpoint.get("banks", [])):
            names = ("bank.memory", "bank.memory_count")
            checkpoint["state_dict"] |= dict(zip(names, banks[rank()], strict=True))

    def configure_optimizers(self) -> Any:
        selectors = self.bank.get_selectors() if self.bank is not None else (None, None)
        slow = [p for some in selectors if some is not None for p in some.parameters()]
        groups = parameter_groups(self, self.params_, slow, SELECTOR_RATE * self.params_.lr)
        return configure_optimizer(groups, self.params_, int(self.trainer.estimated_stepping_batches))

    @property
    def _done(self) -> float:
        return self.trainer.global_step / float(self.trainer.estimated_stepping_batches)


class _Drawn(NamedTuple):
    """What batches are drawn from: frames, or volumes."""

    data: FrameBatches | VolumeBatches
    labelled: np.ndarray
    unlabelled: np.ndarray
    pixels: np.ndarray  # of each class in the labelled ones, [n, C]
    val_order: list[Draw]
    ids: np.ndarray  # of all, for messages
    chances: int  # random numbers of each that views take


def _of_volumes(
    data: FrameBatches, volumes: Volumes, labelled: np.ndarray, unlabelled: np.ndarray, val: np.ndarray,
    params: SegmentationParams,
) -> _Drawn:  # fmt: skip
    """Volumes in the place of rows. One of which some slices have masks is labelled; the others are ignored there."""
    of_volumes = VolumeBatches(data, volumes, np.concatenate([labelled, val]), params, params.slice_step)
    with_masks, val_volumes = volumes.of(labelled), volumes.of(val)
    rest = np.setdiff1d(volumes.of(unlabelled), with_masks)
    pixels, ids = of_volumes.pixels(with_masks), np.arange(len(volumes.names))
    return _Drawn(of_volumes, with_masks, rest, pixels, in_order(val_volumes, 1), ids, VOLUME_CHANCES)


@exact_float32()
def train_segmentation(
    frames: SegmentationFrames,
    weights: Path,
    metrics_dir: Path,
    params: SegmentationParams,
    seed: int,
    *,
    by_hand: ByHand = IN_PIPELINE,
) -> None:
    """Train on the labelled and unlabelled frames of part ``train``; keep the epoch that is best on part ``val``.

    Writes ``weights`` with its card, and metrics.json, details.json and curves.csv to ``metrics_dir``. The best epoch
    has the highest mean Dice coefficient of the classes in the validation masks, without the background, pooled over
    all their pixels. Masks of training frames that are not labelled are not read.

    Args:
        frames: what to learn from.
        by_hand: checkpoints to write and to start from.

    Raises:
        UserError: a crop larger than the images, no labelled data, fewer groups than asked for, no validation masks,
            and what reading may raise.
    """
    # The frames whose masks are used, those of which only the images are, and those that say which epoch is best.
    of_choice = seed if params.labeled_seed is None else params.labeled_seed
    labelled, unlabelled = choose_labelled(frames, params.labeled_groups, params.labeled_fraction, of_choice)
    val = frames.rows("val")
    val = val[frames.has_mask[val]]
    if not len(val):
        raise UserError(f"{frames.name}: no frame of part val has a mask; the best epoch is chosen by them")
    volumes = Volumes(frames) if params.dims == 3 else None
    if volumes and params.crop:
        check_crop(frames, volumes, params.crop, params.slice_step)
    elif params.crop and (params.crop[0] > frames.image_size[0] or params.crop[1] > frames.image_size[1]):
        raise UserError(
            f"segmentation.crop is {list(params.crop)}, larger than the images, which are brought to "
            f"{list(frames.image_size)}; lower it, or set it to null"
        )
    # Read them once, and count the pixels of each class: some may be in no mask.
    frames = frames.with_classes_of(np.concatenate([labelled, val]))
    also = np.union1d(unlabelled, volumes.all_rows(val)) if volumes else unlabelled
    data = FrameBatches.read(frames, labelled, also, val)
    pixels_NC = data.pixels(len(frames.classes))
    of_labelled, of_val = (pixels_NC[np.searchsorted(data.masked, rows)] for rows in (labelled, val))
    empty = of_labelled.sum(axis=1) == 0  # "ignore" alone: nothing is labelled
    check_labelled(frames, labelled, empty)
    labelled, unlabelled, of_labelled = labelled[~empty], np.union1d(unlabelled, labelled[empty]), of_labelled[~empty]
    check_classes(frames, labelled, of_labelled, of_val, len(unlabelled), params)
    drawn = _of_volumes(data, volumes, labelled, unlabelled, val, params) if volumes else _Drawn(
        data, labelled, unlabelled, of_labelled, in_order(val, 32), frames.frame_id, WEAK_CHANCES + CROP_CHANCES
    )  # fmt: skip
    # The network: the seed decides its first weights, all training images the scale of its input.
    lightning.seed_everything(seed, verbose=False)
    train = np.union1d(labelled, unlabelled)
    config = SegmentationConfig(
        camera=params.camera, image_size=frames.image_size, classes=frames.classes, void=params.void,
        has_background=params.has_background, mask_values=params.mask_values, mask_suffix=params.mask_suffix,
        image_channels=frames.channels, channels=params.channels, norm=params.norm,
        spatial_dims=params.dims, network=params.network, slice_step=params.slice_step,
        feature_stride=params.contrastive.stride, extras=frames.extra_shapes(), window=params.crop,
        makers={name: feature.maker for name, feature in frames.features.items()},
        intake=frames.intake, method=params.method,
        train_groups=names_of(frames.group[train]), labeled_groups=names_of(frames.group[labelled]), seed=seed,
    )  # fmt: skip
    model = SegmentationModel(config)
    model.fit_normalisation(data.images, torch.from_numpy(np.searchsorted(data.rows, train)).to(data.images.device))
    # Batches: every process validates on all frames, as Dice is pooled over their pixels.
    order = StepBatches(
        drawn.labelled, drawn.unlabelled if len(drawn.unlabelled) and params.method != "supervised" else None,
        steps=params.steps_per_epoch, sizes=(params.batch_size, params.unlabelled_batch_size),
        chances=(drawn.chances + len(config.extras), drawn.chances + unlabelled_chances(params.dims)),
        seed=seed, weights=rarity(drawn.pixels) if params.sampling == "balanced" else None,
        rank=rank(), world_size=world_size(),
    )  # fmt: skip
    is_resident = data.images.device.type == "cuda"
    batches = Batches(drawn.data, order, drawn.data, drawn.val_order, drawn.ids, is_resident)
    # Train. The identity is all that decides the result: only an interrupted run of the same one is continued.
    in_val = torch.from_numpy(of_val.sum(axis=0) > 0)
    weights_C = None if params.class_weights == "none" else class_weights(of_labelled)
    module = SegmentationModule(model, params, weights_C, in_val)
    identity = [params.model_dump(mode="json"), config.model_dump(mode="json"), data.hashes()]
    all_learn = module.bank is None and not config.extras  # not classes that are away, nor what stands for an input
    result = fit(module, batches, params, "train_segmentation", identity, by_hand, all_learn=all_learn)
    if rank() != 0:
        return
    # Write the weights of the best epoch, and what it measured.
    model.load_state_dict(result.best_weights_of("average" if params.ema else "model"))
    save_model(weights, model)
    recorded = {"precision": computed_in(params.precision, process_device())}
    write_card(
        weights, about_segmentation(config), config.model_dump(mode="json"), frames.split, frames.group, recorded
    )
    best = result.best
    figures = {
        "parameters": sum(p.numel() for p in model.parameters()),
        "labelled": {"groups": len(config.labeled_groups), "frames": len(labelled)},
        "unlabelled": {"frames": len(unlabelled)},
        **({"volumes": {"labelled": len(drawn.labelled), "unlabelled": len(drawn.unlabelled)}} if volumes else {}),
        "val": rounded({name.removeprefix("val_"): best[name] for name in best if name.startswith("val_")}),
    }
    result.report(metrics_dir, {"val_dice": figures["val"]["dice"]}, figures | recorded)
