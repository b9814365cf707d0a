"""Train the fusion model on demonstrations."""

import copy
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import lightning
import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor

from sightline.core.errors import UserError
from sightline.core.files import file_sha256, rounded
from sightline.fusion.advantage import LapoCritic, MonteCarloCritic, Rewards, chunk_rewards, episode_rewards
from sightline.fusion.augmentation import CHANCES, SHIFT_CHANCES, augment_views, shift_images
from sightline.fusion.card import about_policy
from sightline.fusion.chunks import Chunks, read_features, resident_views
from sightline.fusion.depth_images import DEPTH_IMAGES
from sightline.fusion.heads import CvaeHead, Loss, Objective, elementwise
from sightline.fusion.linear import fit_linear
from sightline.fusion.network import NO_READING, Conv1Init, Design, Norm, check_design
from sightline.fusion.policy import FusionPolicy, PolicyConfig, Target, save_policy
from sightline.fusion.views import Views
from sightline.grids.store import identifying_file
from sightline.training.averaging import move_average, share_at
from sightline.training.by_hand import IN_PIPELINE, ByHand
from sightline.training.card import write_card
from sightline.training.compiling import compiled
from sightline.training.fitting import Batches, TrainerParams, configure_optimizer, fit, parameter_groups
from sightline.training.order import EpochBatches, in_order, share_of
from sightline.training.precision import computed_in, exact_float32
from sightline.training.processes import log_weight, process_device, rank, world_size

WARM_UP = 0.1  # share of the steps over which beta rises


class FusionParams(TrainerParams):
    """Views and the joints, one feature, trained to predict actions."""

    @model_validator(mode="after")
    def _leaves_something(self) -> "FusionParams":
        if self.joint_dropout + self.view_dropout > 1:
            raise ValueError("joint_dropout + view_dropout must be at most 1: a sample needs one of the two")
        if self.weights == "td" and self.objective != "cvae":
            raise ValueError(
                "weights td is of objective cvae: its critic asks what the decoder would do; take mc with bc"
            )
        return self

    weight_decay: float = Field(1e-4, ge=0, description="decay (AdamW) or L2 penalty, not of biases and norms")
    gradient_clip: float = Field(10.0, ge=0, description="largest norm of the gradient; 0 switches clipping off")
    chunk: int = Field(
        16, ge=1, description="steps predicted at once; with few steps, copying the joints is hard to beat"
    )
    stride: int = Field(1, ge=1, description="frames between the steps of a chunk; 3 turns 30 Hz into 10 Hz")
    objective: Objective = Field("bc", description="bc: regression; cvae: LAPO's behaviour model")
    loss: Loss = Field("l1", description="error of bc: l1, huber or mse")
    target: Target = Field(
        "residual", description="residual: the error of a linear map of the joints, fitted first; absolute: the actions"
    )
    beta: float = Field(0.01, ge=0, description="cvae: weight of the KL divergence, after the warm-up; 1 is too much")
    detach_posterior: bool = Field(True, description="cvae: the posterior passes no gradient to the feature")
    prior_weight: float = Field(1.0, ge=0, description="cvae: weight of the error at z = 0")
    weights: Literal["none", "mc", "td"] = Field(
        "none", description="of samples: none, or by advantage: mc (of returns) or td (of LAPO's critics, cvae only)"
    )
    discount: float = Field(0.99, gt=0, le=1, description="mc and td: discount of later rewards, per frame")
    expectile: float = Field(0.7, gt=0, lt=1, description="mc: expectile of the returns, which the value estimates")
    advantage_weight: float = Field(0.9, gt=0, lt=1, description="mc, td: share of the weight for positive advantages")
    pretrained: str | None = Field(None, description="torchvision tag or weights file for the ResNet-18; null: random")
    trunk_lr: float = Field(3e-4, gt=0, description="highest learning rate of the ResNet-18, 3e-5 for pretrained ones")
    conv1_init: Conv1Init = Field("independent", description="first filters: independent, copy, copy_mean, block")
    norm: Norm = Field("bn", description="bn, frozen_bn (for pretrained weights and small batches), gn")
    shift: int = Field(4, ge=0, description="largest random shift of a view, pixels")
    jitter: float = Field(0.2, ge=0, lt=1, description="largest random change of colours, as a share")
    joint_dropout: float = Field(
        0.2,
        ge=0,
        lt=1,
        description="probability of hiding the joints in training; with 0, the model ignores the cameras",
    )
    view_dropout: float = Field(0.0, ge=0, lt=1, description="probability of hiding the views, never with the joints")
    extra_dropout: float = Field(0.75, ge=0, lt=1, description="probability that a further input is hidden")
    ema: float = Field(0.0, ge=0, lt=1, description="decay of averaged weights and statistics; 0 switches it off")


class FusionModule(lightning.LightningModule):
    """The losses around `FusionPolicy`."""

    def __init__(self, policy: FusionPolicy, params: FusionParams, rewards: Rewards | None = None) -> None:
        super().__init__()
        self.policy, self.params_ = policy, params
        self.average = copy.deepcopy(policy).requires_grad_(False) if params.ema else None
        self.critic: MonteCarloCritic | LapoCritic | None = None
        if params.weights == "mc":
            width = policy.config.fusion_dim
            self.critic = MonteCarloCritic(width, params.expectile, params.advantage_weight)
        elif params.weights == "td" and rewards is not None:
            self.critic = LapoCritic(policy, params.advantage_weight, rewards.lowest, rewards.highest)
        if params.compile:
            policy.encoder.forward = compiled(policy.encoder.forward, params)  # type: ignore[method-assign]

    @property
    def chances(self) -> list[int]:
        """Random numbers of a sample: to hide joints or views, of the views, to hide further inputs, latent, critic,
        of the depth images."""
        config = self.policy.config
        latent = 2 * config.actions if config.objective == "cvae" else 0
        noises = self.critic.noises if self.critic else 0
        of_depth = SHIFT_CHANCES if config.depth else 0
        return [1, CHANCES * len(config.cameras), len(config.precomputed), latent, noises, of_depth]

    def training_step(self, batch: dict[str, Tensor], _: int) -> Tensor:
        params, policy = self.params_, self.policy
        of_inputs, of_views, of_extras, of_latent, of_critic, of_depth = batch["chances"].split(self.chances, dim=1)
        views, extras, config = batch["views"], self._extras(batch), policy.config
        if config.design != "joints_only" and config.cameras:
            views = augment_views(views, of_views, params.shift, params.jitter)
        if config.depth and params.shift:
            extras[DEPTH_IMAGES] = shift_images(extras[DEPTH_IMAGES], of_depth, params.shift)
        joints = policy.normalise_joints(batch["joints"])
        if config.design not in ("joints_only", "images_only"):  # those have but one input
            without_joints = of_inputs[:, :1] < params.joint_dropout
            without_views = of_inputs[:, :1] > 1 - params.view_dropout  # never both
            joints = torch.where(without_joints, 0.0, joints)
            views = torch.where(without_views[:, :, None, None, None], policy.encoder.mean, views)  # grey
            if config.depth:
                seen = extras[DEPTH_IMAGES]
                extras[DEPTH_IMAGES] = torch.where(without_views[:, :, None, None], NO_READING, seen)
        hidden = {name: of_extras[:, i] < params.extra_dropout for i, name in enumerate(config.precomputed)}
        feature = policy.feature(views, joints, extras, hidden)
        chunk, mask = policy.normalise_actions(batch["actions"], batch["joints"]), batch["mask"]
        losses, parts = policy.head.losses(feature, chunk, mask, self._beta, _normal(of_latent))
        if self.critic is None:
            loss = losses.mean()
        else:
            weighing = self.critic(feature, chunk * mask[..., None], batch, _normal(of_critic))
            loss = (weighing.weights * losses).sum() / weighing.weights.sum() + weighing.loss
            parts = parts | weighing.parts
        self._log("train", {"loss": losses, **parts}, len(losses))
        return loss

    def validation_step(self, batch: dict[str, Tensor], _: int) -> None:
        policy = self.average or self.policy
        feature = policy.feature(batch["views"], policy.normalise_joints(batch["joints"]), self._extras(batch))
        chunk, mask = policy.normalise_actions(batch["actions"], batch["joints"]), batch["mask"][..., None]
        error = policy.head(feature).float() - chunk
        kind: Loss = "mse" if isinstance(policy.head, CvaeHead) else policy.config.loss
        moving = policy.actions_moves.sum().clamp(min=1)
        steps = int(mask.sum())  # errors are pooled over steps
        of_actions = error * (policy.target_scale / policy.actions_scale)
        values = {"loss": elementwise(error, kind), "nmse": of_actions.square()}
        self._log("val", {name: (value * mask).sum() / (steps * moving) for name, value in values.items()}, steps)

    def on_train_batch_end(self, *_: Any) -> None:
        """Average weights, and statistics of the normalisation with them."""
        if self.critic is not None:
            self.critic.follow(self.policy)
        if self.average is not None:
            move_average(self.average, self.policy, share_at(self.trainer.global_step, self.params_.ema))

    def configure_optimizers(self) -> Any:
        trunk = [p for name, p in self.policy.encoder.named_parameters() if ".resnet." in name]
        groups = parameter_groups(self, self.params_, trunk, self.params_.trunk_lr)
        return configure_optimizer(groups, self.params_, int(self.trainer.estimated_stepping_batches))

    @property
    def _beta(self) -> float:
        rise = WARM_UP * float(self.trainer.estimated_stepping_batches)
        return self.params_.beta * min(1.0, self.trainer.global_step / max(1.0, rise))

    def _extras(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: batch[name] for name in self.policy.config.extras}

    def _log(self, part: str, values: dict[str, Tensor], count: int) -> None:
        means, weight = {f"{part}_{name}": value.mean() for name, value in values.items()}, log_weight(count)
        self.log_dict(means, on_step=False, on_epoch=True, batch_size=weight, prog_bar=part == "val", sync_dist=True)


@exact_float32()
def train_fusion(
    data: Path,
    weights: Path,
    metrics_dir: Path,
    params: FusionParams,
    seed: int,
    *,
    design: Design = "stacked",
    features: Sequence[Path] = (),
    by_hand: ByHand = IN_PIPELINE,
) -> None:
    """Train on the ``train`` part of ``data``, keep the epoch that is best on ``val``, write weights and metrics.

    Writes ``weights`` (see `sightline.fusion.policy`) with its card, and metrics.json, details.json and
    curves.csv to ``metrics_dir``. The ``test`` part is not touched. An interrupted run continues where it was.

    Args:
        data: file of views.
        features: files of depth embeddings, grids or depth images of the same frames, as further inputs.
        by_hand: checkpoints to write and to start from.

    Raises:
        UserError: not a file of views, no training or validation frames, a chunk longer than every episode, pretrained
            weights that cannot be loaded, a feature that lacks frames, no rewards to weigh by, or for td a frame
            without images that a chunk leads to.
    """
    # The frames to learn from, and those that say which epoch is best.
    views = Views.open(data)
    train_rows, val_rows = views.rows("train"), views.rows("val")
    if len(train_rows) < 2 or len(val_rows) < 1:
        raise UserError(
            f"{data}: {len(train_rows)} training and {len(val_rows)} validation frames; at least 2 and 1 are needed, "
            "of different episodes: record more, or change data.split"
        )
    # Further inputs of the same frames.
    further = read_features(features, views)
    check_design(design, len(views.cameras), further[DEPTH_IMAGES].shape[0] if DEPTH_IMAGES in further else 0)
    params = _with_signal(params, views)
    # The network: the seed decides its first weights.
    lightning.seed_everything(seed, verbose=False)
    in_train = views.split == "train"
    config = PolicyConfig(
        design=design, cameras=views.cameras, image_size=views.images.shape[-1], fit=views.fit,
        joint_names=views.joint_names, actions=views.actions.shape[1], steps=params.chunk, stride=params.stride,
        objective=params.objective, loss=params.loss, target=params.target,
        detach_posterior=params.detach_posterior, prior_weight=params.prior_weight, conv1_init=params.conv1_init,
        norm=params.norm, extras={name: feature.shape for name, feature in further.items()},
        makers={name: feature.maker for name, feature in further.items()},
        train_episodes=tuple(np.unique(views.episode[in_train]).tolist()), seed=seed,
    )  # fmt: skip
    policy = FusionPolicy(config, params.pretrained)
    if params.pretrained is None and design != "joints_only":
        print("train_fusion: the ResNet-18 starts from random weights (fusion.pretrained is null)", file=sys.stderr)
    # What weighs the samples: returns from the recorded rewards, or from those within a chunk.
    rewards = None
    if params.weights == "mc":
        rewards = episode_rewards(views, params.discount)
    elif params.weights == "td":
        rewards = chunk_rewards(views, params.discount, params.chunk * params.stride)
    # Chunks of actions, and the scale of joints and actions in the training part.
    resident = resident_views(views, process_device())
    chunks = Chunks(views, params.chunk, params.stride, further, rewards, resident)
    joints, actions = (torch.from_numpy(values[in_train]) for values in (views.joints, views.actions))
    policy.fit_normalisation(joints, actions)
    # A linear map of the joints, which the network then corrects.
    if params.target == "residual":
        base = fit_linear(views.joints, views.actions, chunks.ahead, chunks.inside, np.flatnonzero(in_train), val_rows)
        after, counts = views.actions[chunks.ahead[in_train]], chunks.inside[in_train]
        policy.start_from(base, joints, torch.from_numpy(after), torch.from_numpy(counts))
    # Batches: this process's share of both parts.
    module = FusionModule(policy, params, rewards)
    batches = Batches(
        chunks,
        EpochBatches(
            train_rows, params.batch_size, seed, sum(module.chances), rank(), world_size(), only_whole=params.compile
        ),
        chunks,
        in_order(share_of(val_rows, rank(), world_size()), params.batch_size),
        views.frame_id,
        resident is not None,
    )
    # Train. The identity is all that decides the result: only an interrupted run of the same one is continued.
    files = (data, by_hand.resume, *(identifying_file(feature.path) for feature in further.values()))
    inputs = [sorted(config.extras), *(file_sha256(path) for path in files if path)]
    identity = [params.model_dump(mode="json"), design, seed, *inputs]
    all_learn = not config.extras  # what stands for a further input may not be needed in a step
    result = fit(module, batches, params, "train_fusion", identity, by_hand, all_learn=all_learn)
    if rank() != 0:
        return
    # Write the weights of the best epoch, and what it measured.
    policy.load_state_dict(result.best_weights_of("average" if params.ema else "policy"))
    save_policy(weights, policy)
    recorded = {"precision": computed_in(params.precision, process_device())}
    write_card(weights, about_policy(config), config.model_dump(mode="json"), views.split, views.episode, recorded)
    errors = rounded({name: result.best[f"val_{name}"] for name in ("loss", "nmse")})
    figures = {"parameters": sum(p.numel() for p in policy.encoder.parameters()), "val": errors}
    result.report(metrics_dir, {"val_nmse": errors["nmse"]}, figures | recorded)


def _with_signal(params: FusionParams, views: Views) -> FusionParams:
    """``params``, without advantage weights where rewards tell nothing."""
    if params.weights == "none":
        return params
    if not views.has_reward:
        raise UserError(f"{views.path}: fusion.weights is {params.weights}, but the recording has no column reward")
    reward = views.reward[views.split == "train"]
    if reward.min() < reward.max():
        return params
    if rank() == 0:
        warnings.warn(
            f"{views.path}: the reward is {reward[0]:g} in every training frame: no signal, every sample counts alike; "
            "set fusion.weights to none",
            stacklevel=3,
        )
    return params.model_copy(update={"weights": "none"})


def _normal(chances: Tensor) -> Tensor:
    """Uniform random numbers -> of a standard normal distribution."""
    return torch.special.ndtri(chances.clamp(1e-6, 1 - 1e-6))
