"""The trained depth encoder as a module of its own: features of raw images, and a backbone of other networks.

    encoder = create_semantic_encoder("models/depth/encoder.safetensors", freeze_weights=True)
    embeddings = encoder.encode_numpy(raw_NHW)  # uint16 [N, H, W] -> float32 [N, 768]

The preprocessing of the training data travels in the weights file, so that raw images become the same numbers here.

A frozen part has no gradients, and its batch normalisation neither moves nor looks at the batch, whatever mode a parent
is put into: with ``requires_grad`` alone, three training steps change a "frozen" backbone's features
(pytorch/pytorch#86590).
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from pydantic import ValidationError
from torch import Tensor

from sightline.core.errors import UserError, first_fault
from sightline.core.hub import HubModel
from sightline.core.tensors import check_range
from sightline.depth.network import Encoder, NetworkConfig, Parts
from sightline.depth.preprocessing import IMAGE_SIZE, Preprocessing, as_counts, check_values, preprocess
from sightline.depth.weights import Header, Weights, check_shape, load_weights, save_encoder
from sightline.training.processes import process_device


class SemanticEncoder(HubModel, Encoder):
    """Depth image -> embedding, with weights that can be loaded, saved and frozen.

    Its state dict is that of `sightline.depth.network.Encoder`. It stands in eval mode where it is made with weights,
    and in train mode, as any new module, where it is made without.

    Args:
        input_channels: channels of an image; must be what the file holds, None takes it from there.
        latent_dim: numbers in an embedding; must be what the file holds, None takes it from there.
        pretrained_path: weights file, see `load_pretrained_weights`; None starts from the network's initialisation.
        freeze_weights: freeze everything, see `freeze_parameters`.
        device: where to run; None takes CUDA where there is a GPU, else the CPU.

    Attributes:
        config: shape of the network.
        preprocessing: what `encode_numpy` does to raw images; of the weights file, else the full uint16 range.

    Raises:
        UserError: no such network or device, or a file that does not hold such an encoder.
    """

    def __init__(
        self,
        input_channels: int | None = 1,
        latent_dim: int | None = 768,
        pretrained_path: str | Path | None = None,
        freeze_weights: bool = False,
        device: str | torch.device | None = None,
    ) -> None:
        if pretrained_path is None:
            super().__init__(_network_config(input_channels, latent_dim))
        else:
            weights = load_weights(Path(pretrained_path), "encoder")
            check_shape(Path(pretrained_path), weights.header.network, input_channels, latent_dim)
            super().__init__(weights.header.network)
        self.preprocessing = Preprocessing()
        self.weights_file: str | None = None  # name of the file that the weights come from
        self._frozen: set[str] = set()  # names of frozen layers
        if pretrained_path is not None:
            self._adopt(weights, Path(pretrained_path))
            self.eval()
        _move(self, device)
        if freeze_weights:
            self.freeze_parameters()

    # --- embeddings

    def encode(self, images: Tensor) -> Tensor:
        """Embed normalised images, in the mode (train or eval) that the module is in.

        Gradients flow, unless everything is frozen. Images are brought to the encoder's device and precision.

        Args:
            images: floating point [B, C, 128, 128] in [-1, 1], as `sightline.depth.preprocessing` makes them.

        Returns:
            [B, latent_dim], on the encoder's device.

        Raises:
            UserError: another shape, whole numbers, or, except in a training on a GPU, numbers beyond -1.5..1.5.
        """
        return self(images)

    def encode_parts(self, images: Tensor) -> Parts:
        """The same as `encode`, in its two parts: ``patches`` [B, patch_dim] and ``scene`` [B, scene_dim].

        Raises:
            UserError: as `encode`; or weights of an older version, whose latent is the sum of both.
        """
        if self.config.parts == "added":
            raise UserError(f"{self.weights_file}: the latent of older weights has no parts; train it again")
        return Parts(*self(images).split([self.config.patch_dim, self.config.scene_dim], dim=1))

    def forward(self, images: Tensor) -> Tensor:
        """The same as `encode`."""
        self._check_images(images, not self.training)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.is_frozen):
            return super().forward(images.to(self._weight))

    @torch.no_grad()  # inference_mode would give tensors that no later training can take
    def encode_batch(self, images: Tensor, batch_size: int = 32) -> Tensor:
        """Embed many normalised images, ``batch_size`` at a time, without gradients and in eval mode.

        Afterwards every part is in the mode it was in, also after an error.

        Args:
            images: floating point [N, C, 128, 128] in [-1, 1], on any device.

        Returns:
            [N, latent_dim], on the encoder's device.

        Raises:
            UserError: another shape, whole numbers, numbers beyond -1.5..1.5, or ``batch_size`` below 1.
        """
        self._check_images(images, True)
        _check_batch_size(batch_size)
        modes = [(module, module.training) for module in self.modules()]
        self.eval()
        try:
            embeddings = [self(images[start : start + batch_size]) for start in range(0, len(images), batch_size)]
        finally:
            for module, training in modes:
                module.training = training
        return torch.cat(embeddings) if embeddings else self._weight.new_empty(0, self.config.latent_dim)

    def encode_numpy(self, images: np.ndarray, batch_size: int = 32, normalize: bool = True) -> np.ndarray:
        """Embed raw images of any size, normalised exactly as the training data were.

        ``normalize=True`` does what the `normalize` stage does: decode, make square, resize to 128x128, map the height
        range to [-1, 1], fill holes, in each channel; a pixel is valid where all channels are. One batch at a
        time is in memory.

        Args:
            images: [H, W], [N, H, W] or [N, C, H, W]; with more than one channel, three axes are one image [C, H, W].
                Raw counts 0..65535, whole numbers or floating point; with ``normalize=False`` floating point in [-1, 1]
                and 128x128.
            batch_size: images encoded at a time.
            normalize: False where the images are normalised already.

        Returns:
            float32 [N, latent_dim]; N = 1 for a single image.

        Raises:
            UserError: another shape or type, NaN or infinite values, no counts, an image without a valid pixel.
        """
        _check_batch_size(batch_size)
        array = self._as_images(np.asarray(images))
        if array.dtype.kind not in "uif":
            raise UserError(f"expected numbers, got an array of {array.dtype}")
        if not normalize and array.dtype.kind != "f":
            raise UserError(
                f"normalize=False expects floating point in [-1, 1], got {array.dtype}; raw: normalize=True"
            )
        if not normalize and array.shape[2:] != (IMAGE_SIZE, IMAGE_SIZE):
            raise UserError(f"normalize=False expects 128x128 images, got {array.shape[2:]}; normalize=True resizes")
        check_values(array, self.preprocessing if normalize else None)
        blocks = []
        for start in range(0, len(array), batch_size):
            block = array[start : start + batch_size]
            if normalize:
                block = np.stack([self._normalize(image, start + i) for i, image in enumerate(block)])
            tensor = torch.from_numpy(np.ascontiguousarray(block, np.float32))
            blocks.append(self.encode_batch(tensor, batch_size).float().cpu().numpy())
        return np.concatenate(blocks) if blocks else np.empty((0, self.config.latent_dim), np.float32)

    # --- weights

    def load_pretrained_weights(self, path: str | Path) -> None:
        """Take weights and preprocessing from a file; what is frozen stays frozen, and the mode stays.

        Where the file's network differs in more than its numbers (its head, its patch path), parts are replaced, so an
        optimizer is to be made afterwards.

        Args:
            path: written by ``sightline extract_encoder`` or `save_encoder_weights`, safetensors or torch.

        Raises:
            UserError: no such file, not an encoder, or other ``input_channels`` or ``latent_dim`` than this one's.
        """
        weights = load_weights(Path(path), "encoder")
        check_shape(Path(path), weights.header.network, self.config.input_channels, self.config.latent_dim)
        self._adopt(weights, Path(path))

    def save_encoder_weights(self, path: str | Path) -> None:
        """Write weights, shape of the network and preprocessing: .pth as a torch dictionary, else safetensors.

        Both are described in `sightline.depth.weights`. The same weights give the same bytes.
        """
        header = Header(kind="encoder", network=self.config, preprocessing=self.preprocessing)
        save_encoder(Path(path), self, header, self.weights_file or "")

    write_weights = save_encoder_weights

    @classmethod
    def read_weights(cls, path: Path) -> "SemanticEncoder":
        """`create_semantic_encoder`."""
        return create_semantic_encoder(path)

    # --- freezing

    @property
    def frozen_layers(self) -> list[str]:
        """Names of the frozen layers, in the network's order."""
        return [name for name, _ in self.named_children() if name in self._frozen]

    @property
    def is_frozen(self) -> bool:
        """Whether every layer is frozen."""
        return all(name in self._frozen for name, _ in self.named_children())

    def freeze_parameters(self, freeze: bool = True) -> None:
        """Freeze everything, or unfreeze everything; unfrozen parts are again in the mode that the encoder is in."""
        if freeze:
            self.freeze_layers(name for name, _ in self.named_children())
        else:
            self._frozen = set()
            self.requires_grad_(True)
            self.train(self.training)

    def freeze_layers(self, layers: Iterable[str]) -> None:
        """Freeze some layers; those that are frozen already stay so.

        Args:
            layers: of "stem", "layer1", ... "layer4", "attention", "head", and "patch_path" where the network has one.

        Raises:
            UserError: a name that is none of them, before anything is frozen.
        """
        names = [layers] if isinstance(layers, str) else list(layers)
        parts = dict(self.named_children())
        for name in names:
            if name not in parts:
                raise UserError(f"freeze_layers: no layer {name!r}; the layers are {', '.join(parts)}")
        self._frozen |= set(names)
        for parameter in (p for name in names for p in parts[name].parameters()):
            parameter.requires_grad_(False)
            parameter.grad = None  # an optimizer moves what has a gradient, even one of zeros
        self.train(self.training)

    def train(self, mode: bool = True) -> Self:
        """Set the mode of all that is not frozen; frozen layers stay in eval mode."""
        super().train(mode)
        for name in self._frozen:
            self.get_submodule(name).eval()
        return self

    # --- information

    def count_parameters(self, only_trainable: bool = False) -> int:
        """How many parameters there are, or how many of them are not frozen."""
        return sum(p.numel() for p in self.parameters() if p.requires_grad or not only_trainable)

    def get_model_info(self) -> dict[str, Any]:
        """What the encoder is, as plain values."""
        return {
            "model_type": type(self).__name__,
            "input_channels": self.config.input_channels,
            "latent_dim": self.config.latent_dim,
            "patch_dim": self.config.patch_dim,
            "scene_dim": self.config.scene_dim,
            "total_parameters": self.count_parameters(),
            "trainable_parameters": self.count_parameters(only_trainable=True),
            "layers": [name for name, _ in self.named_children()],
            "frozen_layers": self.frozen_layers,
            "mode": "train" if self.training else "eval",
            "device": str(self._weight.device),
            "dtype": str(self._weight.dtype).removeprefix("torch."),
            "weights_file": self.weights_file,
            "network": self.config.model_dump(mode="json"),
            "preprocessing": self.preprocessing.model_dump(mode="json"),
        }

    def __repr__(self) -> str:
        info = self.get_model_info()
        frozen = "all" if self.is_frozen else ", ".join(self.frozen_layers) or "none"
        lines = [
            f"images [B, {info['input_channels']}, {IMAGE_SIZE}, {IMAGE_SIZE}] -> embeddings [B, {info['latent_dim']}]",
            f"parameters: {info['total_parameters']:,}, {info['trainable_parameters']:,} of them trainable",
            f"layers: {', '.join(info['layers'])}",
            f"frozen: {frozen}",
            f"mode: {info['mode']}, device: {info['device']}, {info['dtype']}",
            f"weights: {self.weights_file or 'not loaded'}",
            f"preprocessing: {', '.join(f'{name}={value}' for name, value in info['preprocessing'].items())}",
        ]
        return f"{type(self).__name__}(\n  " + "\n  ".join(lines) + "\n)"

    # --- inside

    @property
    def _weight(self) -> Tensor:
        """One that every encoder has: its device and precision are the encoder's."""
        return next(self.parameters())

    def _adopt(self, weights: Weights, path: Path) -> None:
        """Take over the weights of a file, and the network where it is another."""
        if weights.header.network == self.config:
            self.load_state_dict(weights.tensors)
        else:
            parts = dict(weights.build(path).to(self._weight).named_children())
            frozen = set(parts) if self.is_frozen else self._frozen & set(parts)
            for name in [name for name, _ in self.named_children() if name not in parts]:
                delattr(self, name)
            for name, part in parts.items():
                self.add_module(name, part)
            self.config, self._frozen = weights.header.network, set()
            self.freeze_layers(frozen)
        self.preprocessing, self.weights_file = weights.header.preprocessing, path.name

    def _check_images(self, images: Tensor, look_on_gpu: bool) -> None:
        self._check_layout(images)
        advice = "encode_numpy takes raw counts, and normalises them as in training"
        check_range("images", images, look_on_gpu or images.device.type == "cpu", -1.5, 1.5, "[-1, 1]", advice)

    def _check_layout(self, images: Tensor) -> None:
        expected = (self.config.input_channels, IMAGE_SIZE, IMAGE_SIZE)
        if not isinstance(images, Tensor):
            raise UserError(f"encode expects a tensor, got {type(images).__name__}; encode_numpy takes arrays")
        if images.ndim == 4 and tuple(images.shape[1:]) == expected and images.is_floating_point():
            return
        got = f"expected images [B, {', '.join(map(str, expected))}], got {list(images.shape)}"
        if images.ndim == 3:
            axis, what = (1, "channel") if expected[0] == 1 else (0, "batch")
            raise UserError(f"{got}; add the {what} axis with images.unsqueeze({axis})")
        if images.ndim != 4:
            raise UserError(got)
        if images.shape[1] != expected[0]:
            is_last = images.shape[3] == expected[0]
            hint = "use images.permute(0, 3, 1, 2)" if is_last else f"the encoder takes {expected[0]} channel(s)"
            raise UserError(f"{got}; {hint}")
        if images.is_floating_point():
            raise UserError(f"{got}; encode_numpy resizes raw images as in training")
        raise UserError(f"expected floating point in [-1, 1], got {images.dtype}; encode_numpy takes raw counts")

    def _as_images(self, array: np.ndarray) -> np.ndarray:
        """[H, W], [N, H, W] or [N, C, H, W] -> [N, C, H, W]."""
        channels, shape = self.config.input_channels, array.shape
        if 0 not in shape[-2:]:
            if array.ndim == 2 and channels == 1:
                return array[None, None]
            if array.ndim == 3 and channels == 1:
                return array[:, None]
            if array.ndim == 3 and shape[0] == channels:
                return array[None]
            if array.ndim == 4 and shape[1] == channels:
                return array
        accepted = (
            "[H, W], [N, H, W] or [N, 1, H, W]" if channels == 1 else f"[{channels}, H, W] or [N, {channels}, H, W]"
        )
        last = array.ndim in (3, 4) and shape[-1] == channels
        hint = "; bring the channels forward with np.moveaxis(images, -1, -3)" if last else ""
        raise UserError(f"expected images {accepted}, got {list(shape)}{hint}")

    def _normalize(self, raw_CHW: np.ndarray, index: int) -> np.ndarray:
        try:
            counts = as_counts(raw_CHW)
            if counts.dtype != np.uint16 and self.preprocessing.depth_encoding != "raw":
                raise UserError(f"depth_encoding {self.preprocessing.depth_encoding} expects whole numbers")
            return preprocess(counts[None], self.preprocessing)[0][0]
        except UserError as error:
            raise UserError(f"images[{index}]: {error}") from None


def create_semantic_encoder(
    pretrained_path: str | Path, freeze_weights: bool = False, device: str | torch.device | None = None
) -> SemanticEncoder:
    """A `SemanticEncoder` of the shape that the file holds, in eval mode.

    Raises:
        UserError: no such file, or not an encoder.
    """
    return SemanticEncoder(None, None, pretrained_path, freeze_weights, device)


def _network_config(input_channels: int | None, latent_dim: int | None) -> NetworkConfig:
    try:
        return NetworkConfig.model_validate({"input_channels": input_channels, "latent_dim": latent_dim})
    except ValidationError as error:
        raise UserError(first_fault(error)) from None


def _move(encoder: SemanticEncoder, device: str | torch.device | None) -> None:
    try:
        encoder.to(process_device() if device is None else torch.device(device))
    except (RuntimeError, AssertionError) as error:  # torch raises either for a device that is not there
        raise UserError(f"device {str(device)!r}: {str(error).splitlines()[0]}; device='cpu' always works") from None


def _check_batch_size(batch_size: int) -> None:
    if batch_size < 1:
        raise UserError(f"batch_size must be at least 1, not {batch_size}")
