"""The fusion model as a whole: normalisation, encoder and head, and the file they travel in.

The file is safetensors; its header holds a `PolicyConfig`, from which the model is built.
"""

from pathlib import Path
from typing import Literal

import torch
from pydantic import Field, ValidationInfo, field_validator
from torch import Tensor, nn

from sightline.core.errors import UserError
from sightline.core.hub import HubModel
from sightline.core.params import Section
from sightline.core.tensors import check_joints
from sightline.core.weights_file import load_network, read_model_file, save_model_file
from sightline.fusion.depth_images import DEPTH_IMAGES
from sightline.fusion.heads import ChunkHead, CvaeHead, Loss, Objective
from sightline.fusion.linear import LinearChunks
from sightline.fusion.network import RENAMED, Conv1Init, Design, ImageJointEncoder, Norm
from sightline.fusion.views import Fit, Views
from sightline.grids.features import Extras

Target = Literal["residual", "absolute"]
_KEY = "sightline_fusion"  # in the header of the file


class PolicyConfig(Section):
    """What a fusion model is."""

    design: Design = "stacked"
    cameras: tuple[str, ...]
    image_size: int
    fit: Fit = "squash"
    joint_names: tuple[str, ...]
    actions: int
    steps: int
    stride: int = 1  # frames between the steps of a chunk
    objective: Objective = "bc"
    loss: Loss = "l1"
    target: Target = "residual"
    detach_posterior: bool = True
    prior_weight: float = 1.0
    image_feature_dim: int = 256
    fusion_dim: int = 256
    conv1_init: Conv1Init = "independent"
    norm: Norm = "bn"
    extras: Extras = Field(default={})  # shapes of one frame; depth images as they are stored
    makers: dict[str, str] = Field(default={})  # of the further inputs, see `sightline.grids.features.Feature`
    train_episodes: tuple[int, ...] = ()  # so that a later evaluation can refuse to test on them
    seed: int = 0

    @field_validator("design", mode="before")
    @classmethod
    def _by_its_new_name(cls, design: object, info: ValidationInfo) -> object:
        """The design of a file that an older version wrote."""
        return RENAMED.get(str(design), design) if info.mode == "json" else design

    @property
    def depth(self) -> int:
        """Channels of the depth images; 0 without."""
        return self.extras[DEPTH_IMAGES][0] if DEPTH_IMAGES in self.extras else 0

    @property
    def precomputed(self) -> dict[str, tuple[int, ...]]:
        """The further inputs without the depth images, which are channels of the views."""
        return {name: shape for name, shape in self.extras.items() if name != DEPTH_IMAGES}


class FusionPolicy(HubModel, nn.Module):
    """Views, joints -> feature -> a chunk of actions, in data units.

    Buffers hold the mean and scale of joints and actions in training episodes (the standard deviation; 1 where a joint
    or action does not move) and whether each moves. The head predicts, in units of ``target_scale`` [A], the action
    less `base`: with target ``absolute`` that is the mean action, with ``residual`` a linear function of the joints
    (`sightline.fusion.linear`), which the head, starting at 0, adds to.

    Args:
        config: what to build.
        pretrained: weights of the ResNet-18, see `sightline.fusion.network.ResNet18Encoder`.
    """

    joints_mean: Tensor
    joints_scale: Tensor
    joints_moves: Tensor
    actions_mean: Tensor
    actions_scale: Tensor
    actions_moves: Tensor
    base_weight: Tensor
    base_bias: Tensor
    base_holds: Tensor
    target_scale: Tensor

    def __init__(self, config: PolicyConfig, pretrained: str | None = None) -> None:
        super().__init__()
        self.config = config
        self.encoder = ImageJointEncoder(
            len(config.joint_names), config.image_feature_dim, config.fusion_dim, pretrained, design=config.design,
            conv1_init=config.conv1_init, norm=config.norm, extras=config.precomputed, cameras=len(config.cameras),
            depth=config.depth,
        )  # fmt: skip
        self.head: ChunkHead | CvaeHead
        if config.objective == "bc":
            self.head = ChunkHead(config.fusion_dim, config.steps, config.actions, config.loss)
        else:
            self.head = CvaeHead(
                config.fusion_dim, config.steps, config.actions,
                detach_posterior=config.detach_posterior, prior_weight=config.prior_weight,
            )  # fmt: skip
        for name, count in (("joints", len(config.joint_names)), ("actions", config.actions)):
            self.register_buffer(f"{name}_mean", torch.zeros(count))
            self.register_buffer(f"{name}_scale", torch.ones(count))
            self.register_buffer(f"{name}_moves", torch.ones(count, dtype=torch.bool))
        self.register_buffer("base_weight", torch.zeros(config.steps, len(config.joint_names), config.actions))
        self.register_buffer("base_bias", torch.zeros(config.steps, config.actions))
        self.register_buffer("base_holds", torch.zeros((), dtype=torch.bool))
        self.register_buffer("target_scale", torch.ones(config.actions))
        if config.target == "residual":
            self.head.start_at_zero()

    def fit_normalisation(self, joints: Tensor, actions: Tensor, floor: float = 1e-3) -> None:
        """Take means and scales from ``joints`` [N, J] and ``actions`` [N, A] of the training episodes.

        What moves by less than ``floor`` of the largest scale among its kind counts as constant.
        """
        for name, values in (("joints", joints), ("actions", actions)):
            mean, scale = values.double().mean(0), values.double().std(0, correction=0)
            moves = scale > floor * scale.max()
            getattr(self, f"{name}_mean").copy_(mean)
            getattr(self, f"{name}_scale").copy_(torch.where(moves, scale, 1.0))
            getattr(self, f"{name}_moves").copy_(moves)
        self.base_bias.copy_(self.actions_mean)
        self.target_scale.copy_(self.actions_scale)

    def start_from(self, base: LinearChunks, joints: Tensor, chunks: Tensor, inside: Tensor) -> None:
        """Predict what ``base`` leaves of ``chunks`` [N, H, A] (bool [N, H]: which steps count) at ``joints`` [N, J].

        After `fit_normalisation`, with the same joints.
        """
        self.base_weight.copy_(torch.from_numpy(base.weight))
        self.base_bias.copy_(torch.from_numpy(base.bias))
        self.base_holds.fill_(base.holds)
        left = (chunks - self.base(joints))[inside].double().square().mean(0).sqrt()
        self.target_scale.copy_(torch.where(left > 1e-3 * self.actions_scale, left, self.actions_scale))

    def base(self, joints: Tensor) -> Tensor:
        """What is predicted from joints [B, J] before the network adds to it, [B, H, A], data units."""
        joints = self._in_own_type(joints)
        chunk = torch.einsum("bj,hja->bha", self.normalise_joints(joints), self.base_weight) + self.base_bias
        if len(self.config.joint_names) != self.config.actions:
            return chunk
        return torch.where(self.base_holds, chunk + joints[:, None], chunk)  # no look, which an export cannot follow

    def normalise_joints(self, joints: Tensor) -> Tensor:
        """Joints in data units [B, J] -> in standard deviations; a constant joint is 0, whatever it is.

        Raises:
            UserError: not real numbers [B, J].
        """
        joints = self._in_own_type(joints)
        return torch.where(self.joints_moves, (joints - self.joints_mean) / self.joints_scale, 0.0)

    def _in_own_type(self, joints: Tensor) -> Tensor:
        check_joints("joints", joints, len(self.config.joint_names))
        return joints.to(self.joints_mean.dtype)

    def normalise_actions(self, actions: Tensor, joints: Tensor) -> Tensor:
        """Actions [B, H, A], of joints [B, J], in data units -> what the head learns to predict."""
        return torch.where(self.actions_moves, (actions - self.base(joints)) / self.target_scale, 0.0)

    def restore_actions(self, chunk: Tensor, joints: Tensor) -> Tensor:
        """The opposite of `normalise_actions`; an action that does not move is as it was in training."""
        return torch.where(self.actions_moves, chunk.float() * self.target_scale + self.base(joints), self.actions_mean)

    def feature(
        self,
        views: Tensor,
        joints_normalised: Tensor,
        extras: dict[str, Tensor] | None = None,
        hidden: dict[str, Tensor] | None = None,
    ) -> Tensor:
        """Feature [B, fusion_dim] of views [B, V, 3, S, S] (camera, colour), uint8 or in [0, 1]; see the encoder.

        ``extras`` may lack any of the further inputs but ``depth_images``, [B, D, S, S] of
        `sightline.fusion.depth_images.resize_depth`.

        Raises:
            UserError: views of another layout or size than in training, or what the encoder refuses.
        """
        if self.config.design != "joints_only":
            self._check_views(views)
        further = dict(extras or {})
        depth = further.pop(DEPTH_IMAGES, None)
        return self.encoder(views=views, joint=joints_normalised, extras=further, hidden=hidden, depth=depth)

    def forward(self, views: Tensor, joints: Tensor, extras: dict[str, Tensor] | None = None) -> Tensor:
        """Predicted actions [B, H, A] in data units, from views (see `feature`) and joints [B, J] in data units.

        Joints of any real type are taken in the policy's own.
        """
        return self.restore_actions(self.head(self.feature(views, self.normalise_joints(joints), extras)), joints)

    def write_weights(self, path: Path) -> None:
        """`save_policy`."""
        save_policy(path, self)

    @classmethod
    def read_weights(cls, path: Path) -> "FusionPolicy":
        """`load_policy`."""
        return load_policy(path)

    def _check_views(self, views: Tensor) -> None:
        size, cameras = self.config.image_size, len(self.config.cameras)
        expected = (cameras, 3, size, size)
        if not isinstance(views, Tensor):
            raise UserError(
                f"views must be a tensor, not {type(views).__name__}; torch.from_numpy makes one of an array"
            )
        if views.ndim == 5 and tuple(views.shape[1:]) == expected:
            return
        hint = ""
        if views.ndim == 5 and tuple(views.shape[1:]) == (cameras, size, size, 3):
            hint = "; the channels are last: bring them forward with views.permute(0, 1, 4, 2, 3)"
        elif tuple(views.shape) == expected:
            hint = "; add the batch axis with views.unsqueeze(0)"
        elif views.ndim == 5 and tuple(views.shape[1:3]) == expected[:2]:
            hint = f"; resize each view to the {size} pixels of the training"
        raise UserError(f"views must be [B, {', '.join(map(str, expected))}], not {list(views.shape)}{hint}")


def check_views(config: PolicyConfig, weights: Path, views: Views, source: Path) -> None:
    """Raise `UserError` where ``views``, of ``source``, are not such as the model in ``weights`` was trained on."""
    for name, trained, present in (
        ("cameras", config.cameras, views.cameras),
        ("joints", config.joint_names, views.joint_names),
        ("image_size", config.image_size, views.images.shape[-1]),
        ("fit", config.fit, views.fit),
    ):
        if trained != present:
            given, wanted = (", ".join(x) or "none" if isinstance(x, tuple) else x for x in (present, trained))
            in_order = ", in this order" if name == "cameras" else ""
            raise UserError(f"{source}: {name}: {given}, but {weights} was trained with {wanted}{in_order}")


def save_policy(path: Path, policy: FusionPolicy) -> None:
    """Write ``policy`` as safetensors, whole or not at all."""
    save_model_file(path, policy, _KEY, policy.config)


def load_policy(path: Path | str, cameras: tuple[str, ...] | None = None) -> FusionPolicy:
    """Read a fusion model, in evaluation mode, on the CPU.

    Args:
        cameras: the cameras that the caller will give, in this order; None does not check.

    Raises:
        UserError: not a file of a fusion model, or one that was trained on other cameras or in another order.
    """
    path = Path(path)
    config, weights = read_model_file(path, _KEY, PolicyConfig, "a fusion model", "train_fusion")
    if cameras is not None and tuple(cameras) != config.cameras:
        trained, given = (", ".join(names) or "none" for names in (config.cameras, cameras))
        raise UserError(f"{path}: trained on cameras {trained}, in this order, but given {given}")
    return load_network(path, lambda: FusionPolicy(config), weights)
