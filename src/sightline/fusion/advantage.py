"""Advantage weights: demonstrated chunks that are better than expected count more.

Symbols: batch B, feature [B, F], chunk of actions [B, H, A], normalised. Both critics see the feature without passing
gradient to it, and give weights without gradient: ``advantage_weight`` where the advantage is positive, 1 less that
elsewhere (Chen et al., "LAPO: Latent-Variable Advantage-Weighted Policy Optimization for Offline RL", 2022).
"""

import copy
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from sightline.core.errors import UserError
from sightline.core.tensors import without_looking
from sightline.fusion.heads import CvaeHead, mlp
from sightline.fusion.policy import FusionPolicy
from sightline.fusion.views import Views
from sightline.training.averaging import move_average

LARGEST_LATENT = 2.0  # the latent policy's range, as in LAPO
TARGET_RATE = 0.005  # share of the new weights that targets take at each step, as in LAPO
NOISE, LARGEST_NOISE = 0.2, 0.5  # of the target policy's latents (Fujimoto et al., TD3, 2018)


@dataclass(frozen=True)
class Rewards:
    """What the critics learn from, for each of N frames.

    Attributes:
        gained: float32 [N], discounted rewards: of the rest of the episode, or with ``following``, of the chunk.
        following: int64 [N], the row after the chunk (the frame's own where the episode ends first); None without.
        continues: float32 [N], discount of that row's value, 0 where the episode ends first; None without.
        lowest, highest: of the returns of the training frames, in the same unit.
    """

    gained: np.ndarray
    following: np.ndarray | None = None
    continues: np.ndarray | None = None
    lowest: float = 0.0
    highest: float = 0.0


class Weighing(NamedTuple):
    """Weights of the samples [B], the critic's own loss (a scalar), and figures to log, [B] or scalars."""

    weights: Tensor
    loss: Tensor
    parts: dict[str, Tensor]


def discounted_returns(reward_N: np.ndarray, episode_N: np.ndarray, discount: float) -> np.ndarray:
    """Sum of the discounted rewards from each frame to the end of its episode, float64 [N]."""
    returns, following = np.zeros(len(reward_N)), 0.0
    for row in range(len(reward_N) - 1, -1, -1):
        ends = row + 1 == len(reward_N) or episode_N[row + 1] != episode_N[row]
        following = reward_N[row] + (0.0 if ends else discount * following)
        returns[row] = following
    return returns


def episode_rewards(views: Views, discount: float) -> Rewards:
    """Returns to the end of the episode, standardised over the training frames."""
    returns = discounted_returns(views.reward, views.episode, discount)
    in_train = returns[views.split == "train"]
    return Rewards(((returns - in_train.mean()) / max(float(in_train.std()), 1e-6)).astype(np.float32))


def chunk_rewards(views: Views, discount: float, frames: int) -> Rewards:
    """Rewards of the next ``frames`` frames, and the row after them, in standard deviations of the training returns.

    Raises:
        UserError: the frame after a training frame's chunk lacks an image.
    """
    rows = np.arange(len(views.episode))
    following = np.minimum(rows + frames, len(rows) - 1)
    within = (following == rows + frames) & (views.episode[following] == views.episode)
    following = np.where(within, following, rows)
    broken = np.flatnonzero(within & (views.split == "train") & views.sound & ~views.sound[following])
    if len(broken):
        raise UserError(
            f"{views.path}: frame {views.frame_id[following[broken[0]]]} lacks an image, which fusion.weights td needs "
            f"after frame {views.frame_id[broken[0]]}; take fusion.weights mc, or mend it"
        )
    returns = discounted_returns(views.reward, views.episode, discount)
    in_train = returns[views.split == "train"]
    scale = max(float(in_train.std()), 1e-6)
    continues = np.where(within, discount**frames, 0.0)
    gained = (returns - continues * returns[following]) / scale
    lowest, highest = float(in_train.min()) / scale, float(in_train.max()) / scale
    return Rewards(gained.astype(np.float32), following, continues.astype(np.float32), lowest, highest)


class MonteCarloCritic(nn.Module):
    """Advantage = return - V(feature), V the expectile of the returns (Kostrikov et al., IQL, 2022)."""

    noises = 0  # normal random numbers for each sample

    def __init__(self, feature_dim: int, expectile: float, advantage_weight: float) -> None:
        super().__init__()
        self.value = mlp(feature_dim, 256, 2, 1)
        self.expectile, self.advantage_weight = expectile, advantage_weight

    def forward(self, feature: Tensor, chunk: Tensor, batch: dict[str, Tensor], noise: Tensor) -> Weighing:
        """``batch`` holds ``gained``, see `Rewards`; the others are not needed."""
        del chunk, noise
        advantage = batch["gained"] - self.value(feature.detach())[:, 0].float()
        share = torch.where(advantage > 0, self.expectile, 1 - self.expectile)
        value_loss = share * advantage.square()
        return _weighed(advantage, self.advantage_weight, value_loss.mean(), {"value": value_loss})

    def follow(self, policy: FusionPolicy) -> None:
        """Nothing here follows the policy."""


class LapoCritic(nn.Module):
    """LAPO's critics, over chunks: with chunks of one step they are LAPO's own.

        Q1, Q2    of feature and chunk, towards R + c V(f'), R the chunk's rewards, c its discount or 0 at an end
        V         towards min(Q1, Q2) of what the targets would do, within the range of the returns
        policy    feature -> latent in [-2, 2], up the gradient of Q1 of the chunk that the target decodes
        advantage R + c min(Q1, Q2)(f', what the targets would do there) - V(f)

    Targets, among them the encoder that sees f' (in evaluation mode, its statistics included), follow slowly.

    Args:
        policy: with a `CvaeHead`; a copy of it becomes the target.
        lowest, highest: range of the returns.
    """

    def __init__(self, policy: FusionPolicy, advantage_weight: float, lowest: float, highest: float) -> None:
        super().__init__()
        assert isinstance(policy.head, CvaeHead)
        config = policy.config
        chunk_dim = config.steps * config.actions
        self.noises = policy.head.latent
        self.values = nn.ModuleList(mlp(config.fusion_dim + chunk_dim, 256, 3, 1) for _ in range(2))  # Q1, Q2
        self.value = mlp(config.fusion_dim, 256, 3, 1)
        self.latent_policy = mlp(config.fusion_dim, 256, 3, policy.head.latent)
        self.target = copy.deepcopy(policy).requires_grad_(False)
        self.target_values = copy.deepcopy(self.values).requires_grad_(False)
        self.target_latent_policy = copy.deepcopy(self.latent_policy).requires_grad_(False)
        self.advantage_weight, self.lowest, self.highest = advantage_weight, lowest, highest

    def forward(self, feature: Tensor, chunk: Tensor, batch: dict[str, Tensor], noise: Tensor) -> Weighing:
        """Weigh the samples and judge the critics.

        Args:
            chunk: zeros beyond the episode.
            batch: ``gained`` and ``continues`` of `Rewards`, and of the row ``following``: ``next_views``,
                ``next_joints`` and what further inputs there are as ``next_<name>``.
            noise: of a standard normal distribution, [B, 2A].
        """
        feature, actions = feature.detach().float(), chunk.flatten(1)
        with torch.no_grad(), without_looking():  # at numbers, which would wait for a GPU
            self.target.eval()  # a parent's train mode does not move its statistics
            joints = self.target.normalise_joints(batch["next_joints"])
            extras = {name: batch[f"next_{name}"] for name in self.target.config.extras}
            after = self.target.feature(batch["next_views"], joints, extras).float()
            gained, continues = batch["gained"], batch["continues"]
            wanted_q = gained + continues * self._of(self.value, after)
            shaken = (NOISE * noise).clamp(-LARGEST_NOISE, LARGEST_NOISE)
            wanted_v = self._best(feature, shaken).clamp(self.lowest, self.highest)
            advantage = gained + continues * self._best(after) - self._of(self.value, feature)
        q_loss = sum((self._of(q, feature, actions) - wanted_q).square() for q in self.values)
        v_loss = (self._of(self.value, feature) - wanted_v).square()
        latent = LARGEST_LATENT * self.latent_policy(feature).tanh()
        fixed = {name: weight.detach() for name, weight in self.values[0].named_parameters()}
        decoded = torch.cat([feature, self.target.head(feature, latent).flatten(1)], dim=1)
        policy_loss = -functional_call(self.values[0], fixed, (decoded,))[:, 0].float()
        parts = {"q": q_loss, "value": v_loss, "policy": policy_loss}
        return _weighed(advantage, self.advantage_weight, (q_loss + v_loss + policy_loss).mean(), parts)

    def follow(self, policy: FusionPolicy) -> None:
        """Move the targets towards what they follow."""
        pairs = ((self.target, policy), (self.target_values, self.values))
        for target, new in (*pairs, (self.target_latent_policy, self.latent_policy)):
            move_average(target, new, TARGET_RATE)

    def _best(self, feature: Tensor, noise: Tensor | float = 0.0) -> Tensor:
        """The lower of the target Qs of the chunk that the target policy takes, [B]."""
        latent = LARGEST_LATENT * self.target_latent_policy(feature).tanh() + noise
        actions = self.target.head(feature, latent).flatten(1)
        first, second = (self._of(q, feature, actions) for q in self.target_values)
        return torch.minimum(first, second)

    @staticmethod
    def _of(critic: nn.Module, *inputs: Tensor) -> Tensor:
        return critic(torch.cat(inputs, dim=1))[:, 0].float()


def _weighed(advantage: Tensor, advantage_weight: float, loss: Tensor, parts: dict[str, Tensor]) -> Weighing:
    positive = advantage.detach() > 0
    weights = torch.where(positive, advantage_weight, 1 - advantage_weight)
    effective = weights.sum().square() / (len(weights) * weights.square().sum())
    return Weighing(weights, loss, parts | {"positive_advantage": positive.float(), "effective_sample": effective})
