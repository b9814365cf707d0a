"""Codes that an autoencoder has to beat, each with as many numbers as its latent.

Every code turns hole-filled images [B, 128, 128] in [-1, 1] into numbers [B, D] and back. What they tell:

    mean_image           nothing but the mean training image: what a code without information reaches
    nearest_train_frame  copies the most similar training frame: near the other codes only where the split leaks
    pca                  the best linear code for the training frames
    grid                 a picture of D pixels: average-pooled, and enlarged by bicubic interpolation
    dct                  the D lowest frequencies of the cosine transform of the whole image; needs no training data
"""

import math
from collections.abc import Callable, Iterator
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from sightline.depth.preprocessing import IMAGE_SIZE, footprints
from sightline.depth.store import DepthStore

BaselineName = Literal["mean_image", "nearest_train_frame", "pca", "grid", "dct"]
BLOCK = 256  # frames read at a time


class Code(Protocol):
    """Images to numbers and back."""

    numbers: int  # numbers that the code keeps of an image

    def encode(self, images_BHW: Tensor) -> Tensor:
        """float32 [B, 128, 128] -> [B, numbers]."""

    def decode(self, code_BD: Tensor) -> Tensor:
        """[B, numbers] -> float32 [B, 128, 128]."""


class MeanImage:
    """The mean training image, whatever the input; each pixel's mean is over the frames that measured it."""

    numbers = 0

    def __init__(self, store: DepthStore, train_rows: np.ndarray, device: torch.device) -> None:
        total = torch.zeros(IMAGE_SIZE, IMAGE_SIZE, dtype=torch.float64, device=device)
        count = torch.zeros_like(total)
        for rows in _blocks(train_rows):
            valid = torch.from_numpy(store.valid[rows]).to(device)
            total += _images(store, rows, device).double().where(valid, 0).sum(dim=0)
            count += valid.sum(dim=0)
        self._mean = torch.where(count > 0, total / count.clamp(min=1), total.sum() / count.sum()).float()

    def encode(self, images_BHW: Tensor) -> Tensor:
        return images_BHW.new_zeros(len(images_BHW), 0)

    def decode(self, code_BD: Tensor) -> Tensor:
        return self._mean.expand(len(code_BD), -1, -1)


class NearestTrainFrame:
    """The training frame at the least Euclidean distance; its row of the store is the code.

    Args:
        rows: those that are compared with, int64; their frames are held in memory, 64 KiB each.
    """

    numbers = 1

    def __init__(self, store: DepthStore, rows: np.ndarray, device: torch.device) -> None:
        self._store, self._device = store, device
        self._rows = torch.from_numpy(rows).to(device)
        self._first = _images(store, rows[:1], device)  # of small numbers distances lose fewer digits
        self._frames = torch.cat([_images(store, some, device) - self._first for some in _blocks(rows)]).flatten(1)
        self._squares = torch.stack([frame.double().square().sum() for frame in self._frames])

    def encode(self, images_BHW: Tensor) -> Tensor:
        products = (images_BHW - self._first).flatten(1) @ self._frames.T
        return self._rows[(self._squares - 2 * products.double()).argmin(dim=1), None]

    def decode(self, code_BD: Tensor) -> Tensor:
        return _images(self._store, code_BD[:, 0].cpu().numpy(), self._device)


class Pca:
    """Principal components of training frames; as many as the frames span, where that is less than ``numbers``.

    With ``rotate``, of the frames in all four orientations. Their covariance commutes with the quarter turn R, so the
    components fall into three classes, which are computed one by one: unchanged by R (spanned by x + Rx + R²x + R³x),
    changing sign (x - Rx + R²x - R³x), and pairs that turn into each other (x - R²x and its turn). So no frame has to
    be stored four times. Fitted on the CPU in float64: the result does not depend on the device.

    Args:
        images_NHW: float32 training frames; N is less than the number of pixels.
        numbers: components at most.
        rotate: whether to add the frames turned by 90, 180 and 270 degrees.
    """

    def __init__(self, images_NHW: np.ndarray, numbers: int, rotate: bool, device: torch.device) -> None:
        mean = images_NHW.mean(axis=0, dtype=np.float64)
        if rotate:
            mean = np.mean([np.rot90(mean, k) for k in range(4)], axis=0)
        x = images_NHW - mean
        classes = [x]
        if rotate:
            half_turn = np.rot90(x, 2, (1, 2))
            even, odd = (x + half_turn) / 2, (x - half_turn) / 2**0.5
            turned = np.rot90(even, 1, (1, 2))
            classes = [even + turned, even - turned, np.concatenate([odd, np.rot90(odd, 1, (1, 2))])]
        samples = [member.reshape(len(member), -1) for member in classes]
        spectra = [np.linalg.eigh(x_NP @ x_NP.T) for x_NP in samples]  # the Gram matrix: frames are fewer than pixels
        variances = np.concatenate([values for values, _ in spectra])
        order = np.argsort(-variances, kind="stable")[:numbers]
        is_largest = np.zeros(len(variances), bool)
        is_largest[order[variances[order] > 1e-9 * variances.max()]] = True
        parts = np.split(is_largest, np.cumsum([len(values) for values, _ in spectra])[:-1])
        basis = [
            (vectors[:, part] / np.sqrt(values[part])).T @ x_NP
            for x_NP, (values, vectors), part in zip(samples, spectra, parts, strict=True)
        ]
        self._mean = torch.from_numpy(mean).float().to(device)
        self._basis = torch.from_numpy(np.concatenate(basis)).float().to(device)
        self.numbers = len(self._basis)

    def encode(self, images_BHW: Tensor) -> Tensor:
        return (images_BHW - self._mean).flatten(1) @ self._basis.T

    def decode(self, code_BD: Tensor) -> Tensor:
        return (code_BD @ self._basis).unflatten(1, (IMAGE_SIZE, IMAGE_SIZE)) + self._mean


class Grid:
    """Average-pooling to the largest grid near a square, bicubic interpolation back: 28x27 cells for 768 numbers."""

    def __init__(self, numbers: int, device: torch.device) -> None:
        self._width = min(math.isqrt(numbers), IMAGE_SIZE)
        self._height = min(numbers // self._width, IMAGE_SIZE)
        self.numbers = self._height * self._width
        sides = self._height, self._width
        self._rows, self._columns = (torch.from_numpy(footprints(n, IMAGE_SIZE)).to(device) for n in sides)

    def encode(self, images_BHW: Tensor) -> Tensor:
        return (self._rows @ images_BHW @ self._columns.T).flatten(1)

    def decode(self, code_BD: Tensor) -> Tensor:
        cells = code_BD.unflatten(1, (1, self._height, self._width))
        size = (IMAGE_SIZE, IMAGE_SIZE)
        return F.interpolate(cells, size, mode="bicubic", align_corners=False)[:, 0]


class Dct:
    """The lowest frequencies (u, v) of the orthonormal cosine transform (DCT-II) of the image, by u + v.

    The zigzag order of JPEG: Wallace, "The JPEG Still Picture Compression Standard" (1992).
    """

    def __init__(self, numbers: int, device: torch.device) -> None:
        n = torch.arange(IMAGE_SIZE, dtype=torch.float64)
        waves = torch.cos(torch.pi / IMAGE_SIZE * n[:, None] * (n + 0.5)) * (2 / IMAGE_SIZE) ** 0.5
        waves[0] /= 2**0.5
        u, v = np.divmod(np.arange(IMAGE_SIZE**2), IMAGE_SIZE)
        self._lowest = torch.from_numpy(np.lexsort((u, u + v))[:numbers]).to(device)
        self._waves = waves.float().to(device)  # (frequency, position)
        self.numbers = len(self._lowest)

    def encode(self, images_BHW: Tensor) -> Tensor:
        return (self._waves @ images_BHW @ self._waves.T).flatten(1)[:, self._lowest]

    def decode(self, code_BD: Tensor) -> Tensor:
        coefficients = code_BD.new_zeros(len(code_BD), IMAGE_SIZE**2)
        coefficients[:, self._lowest] = code_BD
        return self._waves.T @ coefficients.unflatten(1, (IMAGE_SIZE, IMAGE_SIZE)) @ self._waves


def fit_baseline(
    name: BaselineName,
    store: DepthStore,
    train_rows: np.ndarray,
    near_rows: np.ndarray,
    sample_rows: np.ndarray,
    numbers: int,
    rotate_pca: bool,
    device: torch.device,
) -> Code:
    """Make the baseline ``name`` with ``numbers`` numbers.

    Args:
        train_rows: rows of all training frames, int64.
        near_rows: those among which the nearest one is looked for; sample_rows: those that PCA is fitted on. They are
            held in memory.
    """
    makers: dict[BaselineName, Callable[[], Code]] = {
        "mean_image": lambda: MeanImage(store, train_rows, device),
        "nearest_train_frame": lambda: NearestTrainFrame(store, near_rows, device),
        "pca": lambda: Pca(store.depth[sample_rows], numbers, rotate_pca, device),
        "grid": lambda: Grid(numbers, device),
        "dct": lambda: Dct(numbers, device),
    }
    return makers[name]()


def _blocks(rows: np.ndarray) -> Iterator[np.ndarray]:
    for start in range(0, len(rows), BLOCK):
        yield rows[start : start + BLOCK]


def _images(store: DepthStore, rows: np.ndarray, device: torch.device) -> Tensor:
    return torch.from_numpy(store.depth[rows]).to(device)
