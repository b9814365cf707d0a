"""A trained fusion model as what drives a robot: one observation in, one action out.

A model predicts chunks of actions. `ActionQueue` makes single actions of them, `Policy` also the chunks, from pictures
and joints as a robot has them.
"""

from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from sightline.core.errors import UserError
from sightline.fusion.depth_images import DEPTH_IMAGES, resize_depth
from sightline.fusion.exported import ExportedPolicy, Runtime
from sightline.fusion.policy import FusionPolicy, PolicyConfig, load_policy
from sightline.fusion.views import square_view
from sightline.training.processes import process_device

Observation = Mapping[str, Any]
Decay = float | Literal[False] | None


class ActionQueue:
    """Single actions out of chunks that are predicted every few frames.

    A chunk [H, A] holds the actions of this frame and of those ``stride``, 2 ``stride``, ... frames later; what lies
    between is interpolated linearly, so a chunk serves for (H - 1) * stride + 1 frames. Without ensembling the action
    is the latest chunk's. With it, it is the mean over all chunks that hold the frame, weighted by exp(-decay * i),
    where i is 0 for the oldest (Zhao et al., "Learning Fine-Grained Bimanual Manipulation with Low-Cost Hardware",
    2023, arXiv:2304.13705; there, decay is 0.01 and every frame predicts).

    Args:
        steps: H.
        stride: frames between the actions of a chunk.
        replan_every: frames from one prediction to the next; None: half of those that a chunk serves for, or 1 with
            ensembling.
        temporal_ensembling: the decay; False or None: no ensembling.

    Raises:
        UserError: a number out of its range.
    """

    def __init__(
        self, steps: int, stride: int = 1, replan_every: int | None = None, temporal_ensembling: Decay = False
    ) -> None:
        self.stride, self.frames = stride, (steps - 1) * stride + 1
        if temporal_ensembling is True or not 0 <= (temporal_ensembling or 0) < np.inf:
            raise UserError(
                f"temporal_ensembling must be False or a decay of 0 or more, not {temporal_ensembling}; ACT has 0.01"
            )
        is_off = temporal_ensembling is None or temporal_ensembling is False
        self.decay = None if is_off else float(temporal_ensembling or 0)
        if replan_every is None:
            replan_every = max(1, self.frames // 2) if self.decay is None else 1
        if not 1 <= replan_every <= self.frames:
            raise UserError(
                f"replan_every must be 1..{self.frames}, not {replan_every}: a chunk of {steps} steps, {stride} frames "
                f"apart, serves for {self.frames}"
            )
        self.replan_every = replan_every
        self.reset()

    def reset(self) -> None:
        """Forget all chunks: a new episode begins."""
        self._chunks: dict[int, np.ndarray] = {}  # first frame -> actions of every frame [frames, A], oldest first
        self._frame = 0

    def next(self, predict: Callable[[], np.ndarray]) -> np.ndarray:
        """The action [A] of the next frame; calls ``predict``, which gives a chunk [H, A], where it is time to."""
        frame = self._frame
        if not self._chunks or frame - max(self._chunks) >= self.replan_every:
            self._chunks[frame] = between(predict(), self.stride)
            oldest = frame if self.decay is None else frame - self.frames + 1
            self._chunks = {first: chunk for first, chunk in self._chunks.items() if first >= oldest}
        actions = [chunk[frame - first] for first, chunk in self._chunks.items() if frame - first < self.frames]
        self._frame += 1
        if len(actions) == 1:
            return actions[0]
        weights = np.exp(-(self.decay or 0) * np.arange(len(actions)))
        return (weights @ np.stack(actions) / weights.sum()).astype(actions[0].dtype)


def between(chunk: np.ndarray, stride: int) -> np.ndarray:
    """Actions [H, A], ``stride`` frames apart -> of every frame [(H - 1) * stride + 1, A], interpolated linearly."""
    if stride == 1:
        return chunk
    shares = (np.arange(stride) / stride)[:, None]
    pieces = [(1 - shares) * a + shares * b for a, b in pairwise(chunk)]
    return np.concatenate([*pieces, chunk[-1:]]).astype(chunk.dtype)


class Policy:
    """A fusion model that drives a robot.

        policy = Policy.load("models/fusion/actions/stacked.safetensors")  # or policy.onnx, faster on a CPU
        policy.reset()  # before each episode
        action = policy.act({"images": {"left_wrist": picture, ...}, "joints": joints})  # once for each frame

    Call `act` at the rate of the recording that the model was trained on.

    Attributes:
        config: what the model is: its cameras, joints, actions, chunk.
        cameras: whose pictures it looks at; none with design ``joints_only``.
        queue: makes single actions of chunks.
    """

    def __init__(
        self,
        model: FusionPolicy | ExportedPolicy,
        *,
        temporal_ensembling: Decay = False,
        replan_every: int | None = None,
    ) -> None:
        self.model, self.config, self.device = model, model.config, process_device()
        if isinstance(model, FusionPolicy):
            model.eval().to(self.device)
            model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # a third faster on a CPU
        self.cameras = () if self.config.design == "joints_only" else self.config.cameras
        self.queue = ActionQueue(self.config.steps, self.config.stride, replan_every, temporal_ensembling)

    @classmethod
    def load(
        cls,
        path: Path | str,
        *,
        temporal_ensembling: Decay = False,
        replan_every: int | None = None,
        runtime: Runtime | None = None,
    ) -> "Policy":
        """Read a model that ``sightline train_fusion`` wrote, to a GPU where there is one; or an exported one, .onnx.

        Args:
            path: safetensors file, or ONNX file of ``sightline export``.
            temporal_ensembling, replan_every: see `ActionQueue`.
            runtime: what runs an ONNX file, see `ExportedPolicy`.

        Raises:
            UserError: not a file of a fusion model, a number out of its range, or no package that runs it.
        """
        is_exported = Path(path).suffix == ".onnx"
        model: FusionPolicy | ExportedPolicy
        model = ExportedPolicy(Path(path), runtime) if is_exported else load_policy(path).requires_grad_(False)
        return cls(model, temporal_ensembling=temporal_ensembling, replan_every=replan_every)

    def reset(self) -> None:
        """Begin a new episode: forget what was predicted in the last one."""
        self.queue.reset()

    def act(self, observation: Observation) -> np.ndarray:
        """The action [A] of this frame, float32, in the data's units.

        Args:
            observation: ``images``: camera -> uint8 [H, W, 3], RGB, of any size; ``joints``: [J], in the data's units;
                each further input that the model was trained with, under its name. More cameras and entries are
                ignored. Pictures and further inputs are looked at only in frames that predict a chunk.

        Raises:
            UserError: something is missing, or has another type or shape, or joints are not finite. The frame does
                not count then.
        """
        joints = self._joints(observation)
        return self.queue.next(lambda: self._chunk(observation, joints))

    @torch.inference_mode()
    def _chunk(self, observation: Observation, joints: np.ndarray) -> np.ndarray:
        """A predicted chunk [H, A]."""
        config = self.config
        pictures = {camera: _picture(observation, camera, config) for camera in self.cameras}
        given = {name: _extra(observation, name, of) for name, of in config.extras.items()}
        if isinstance(self.model, ExportedPolicy):
            return self.model.chunk(pictures, joints, given)
        views = np.zeros((len(config.cameras), 3, config.image_size, config.image_size), np.uint8)
        for i, picture in enumerate(pictures.values()):
            views[i] = square_view(picture, config.image_size, config.fit)
        extras = {name: torch.from_numpy(values[None]) for name, values in given.items()}
        if DEPTH_IMAGES in extras:
            extras[DEPTH_IMAGES] = resize_depth(extras[DEPTH_IMAGES], config.image_size)
        inputs = [torch.from_numpy(values[None]).to(self.device) for values in (views, joints)]
        further = {name: values.to(self.device) for name, values in extras.items()}
        return self.model(*inputs, further)[0].cpu().numpy()

    def _joints(self, observation: Observation) -> np.ndarray:
        """Joints of an observation, float32 [J]."""
        names = self.config.joint_names
        if not isinstance(observation, Mapping) or "joints" not in observation:
            raise UserError(f"the observation has no joints; give {len(names)} numbers under 'joints'")
        joints = _numbers(observation["joints"], "joints")
        if joints.shape != (len(names),):
            trained = ", ".join(names)
            raise UserError(
                f"joints must be [{len(names)}], not {list(joints.shape)}; the model was trained with {trained}"
            )
        if not np.isfinite(joints).all():
            bad = names[int(np.flatnonzero(~np.isfinite(joints))[0])]
            raise UserError(f"joints: {bad} is not finite; do not act on a failed reading")
        return joints


def _picture(observation: Observation, camera: str, config: PolicyConfig) -> np.ndarray:
    """The picture of a camera, uint8 [H, W, 3]."""
    images = observation.get("images")
    if not isinstance(images, Mapping):
        raise UserError("the observation has no images; give a picture for each camera under 'images'")
    if camera not in images:
        there = ", ".join(images) or "none"
        raise UserError(
            f"images: no picture of {camera}; the model was trained with {', '.join(config.cameras)}, and there are: "
            f"{there}"
        )
    picture = np.asarray(images[camera])
    if picture.dtype != np.uint8:
        raise UserError(f"images: {camera} must be uint8 0..255, not {picture.dtype}")
    if picture.ndim != 3 or picture.shape[2] != 3 or 0 in picture.shape:
        is_first = picture.ndim == 3 and picture.shape[0] == 3
        hint = "; the channels are first: use picture.transpose(1, 2, 0)" if is_first else ""
        raise UserError(f"images: {camera} must be RGB [H, W, 3], not {list(picture.shape)}{hint}")
    return picture


def _extra(observation: Observation, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """A further input, float32, of ``shape``."""
    if name not in observation:
        wanted = f"give numbers {list(shape)} under {name!r}"
        raise UserError(f"the observation has no {name}, a further input that the model was trained with; {wanted}")
    values = _numbers(observation[name], name)
    if values.shape != tuple(shape):
        raise UserError(f"{name} must be [{', '.join(map(str, shape))}], not {list(values.shape)}")
    if name == DEPTH_IMAGES:
        if (np.abs(values) > 1).any():  # NaN is not
            raise UserError(
                f"{name} must be in -1..1, NaN where nothing was measured; normalise depth as in the training with "
                "sightline.depth.preprocessing.preprocess"
            )
    elif not np.isfinite(values).all():
        raise UserError(f"{name} must be finite; NaN or infinity is a failed reading")
    return values


def _numbers(values: Any, name: str) -> np.ndarray:
    """Real numbers as float32."""
    try:
        array = np.asarray(values)
    except (TypeError, ValueError) as error:
        raise UserError(f"{name} must be real numbers ({' '.join(str(error).split())})") from None
    if array.dtype.kind not in "iuf":
        raise UserError(f"{name} must be real numbers, not {array.dtype}")
    with np.errstate(over="ignore"):  # infinite then, which is refused
        return array.astype(np.float32)
