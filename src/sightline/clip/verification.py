"""Check that the grids in a store are what their attributes say, against the images and another way to the features.

Computing a grid twice with the same code proves little: missing position embeddings, a wrong norm or shifted ids give
the same error both times. So the reference reads images with Pillow and the transform of open_clip or timm, and takes
features from the own forward pass of a model in float32 that is built apart, see `sightline.clip.reference` and
`sightline.clip.timm_reference`. The model is tested, too: CLIP's class token must give ``encode_image``, and an image
with shuffled patches must give other tokens; a network of timm must see what its weights were trained on.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional
from tqdm import tqdm

from sightline.clip.params import MAP, GridParams, VerifyParams
from sightline.clip.photographs import list_photographs, prepare
from sightline.clip.reference import ReferenceTower
from sightline.clip.timm_reference import TimmReference
from sightline.clip.tokens import GridEncoder
from sightline.core.cache import digest
from sightline.core.errors import UserError
from sightline.grids.store import GridStore
from sightline.recording.frames import first_few
from sightline.recording.images import read_file, read_rgb
from sightline.recording.names import BY_NAME, Naming
from sightline.training.processes import process_device

_PROBED = 4  # images for the probes of the model
_CLASS_TOKEN = 1e-3  # largest difference of the class token from encode_image, as a share of its norm
_SHUFFLED = 1e-3  # least change of the tokens by shuffled patches, as a share; without positions it is rounding


def verify_grids(
    path: Path,
    folders: Sequence[Path],
    params: GridParams,
    limits: VerifyParams,
    index: Path | None = None,
    naming: Naming = BY_NAME,
) -> dict[str, Any]:
    """Check the store ``path`` against the photographs in ``folders`` -> figures.

    Raises:
        UserError: the first check that fails, with its figure and its limit; a model, a store or images that cannot
            be read.
    """
    # the store as a whole: settings, ids, finite numbers
    images, device = list_photographs(folders, index, naming, params.frames).paths, process_device()
    with GridStore(path, model=params.model, tokens=params.source, grid=params.grid) as store:
        encoder = GridEncoder(params, device)
        _check_made_as(store, encoder)
        _check_complete(store, images)
        figures: dict[str, Any] = {
            "images": len(store),
            "skipped": len(store.skipped_ids),
            "random_weights": int(encoder.tower.random),
            **_check_values(store),
        }
        # a sample of images, unchanged since they were encoded
        drawn = np.random.default_rng(limits.seed).permutation(store.image_ids)[: limits.sample]
        ids = np.sort(drawn).tolist()
        sample = [images[i] for i in ids]
        _check_hashes(store, ids, sample)
        # their grids by the other way
        reference = TimmReference(params, device) if params.source == MAP else _Reference(params)
        figures["model"] = reference.probe(sample[:_PROBED])
        stored = store.read(ids).astype(np.float32)
        expected = np.stack([reference.grid(image) for image in tqdm(sample, desc=reference.whose, unit="img")])
        compare = partial(_differences, path, limits)
        precisions = {store.attributes.get("precision"), encoder.attributes()["precision"]}
    # compare the stored grids with our own and with the reference's
    again = _computed(encoder, sample, "computed again")
    figures["live"] = compare("the same computed again", stored, again, precisions)
    figures["reference"] = compare(reference.whose, stored, expected, precisions)
    if precisions != {"fp32"}:  # whose rounding would hide a wrong activation
        exact = GridEncoder(params.model_copy(update={"precision": "fp32"}), device)
        probed = _computed(exact, sample[:_PROBED], "computed in fp32")
        figures["fp32"] = compare(
            f"{reference.whose}, in fp32", probed, expected[:_PROBED], {exact.attributes()["precision"]}
        )
    return figures


def _computed(encoder: GridEncoder, sample: list[Path], title: str) -> np.ndarray:
    grids = [encoder.encode(prepare(path, encoder.preparation)[None]) for path in tqdm(sample, desc=title, unit="img")]
    return torch.cat(grids).float().cpu().numpy()


class _Reference:
    """Grids as CLIP's own forward pass gives them, in float32, from images as Pillow reads them."""

    whose = "open_clip's own"

    def __init__(self, params: GridParams) -> None:
        self.params, self.device = params, process_device()
        self.tower = tower = ReferenceTower(params, self.device)
        self.transform = open_clip.image_transform(
            tower.image_size, False, tower.mean, tower.std,
            resize_mode=tower.resize_mode, interpolation=tower.interpolation,
        )  # fmt: skip

    def image(self, path: Path) -> Tensor:
        return self.transform(Image.fromarray(read_rgb(path))).to(self.device)

    @torch.inference_mode()
    def grid(self, path: Path) -> np.ndarray:
        """float32 [P, C]."""
        params, image = self.params, self.image(path)[None]
        if params.source != "raw" and params.pool != "before_norm":
            grid = self._pool(self.tower.encode_image(image)[1])
        else:
            grid = self._pool(self.tower.raw(image)[:, 1:])
            grid = grid if params.source == "raw" else self.tower.norm(grid)
        return (self.tower.project(grid) if params.source == "projected" else grid)[0].cpu().numpy()

    def _pool(self, tokens: Tensor) -> Tensor:
        rows, side = self.tower.rows, self.tower.rows // self.params.grid
        maps = tokens.transpose(1, 2).reshape(len(tokens), -1, rows, rows)
        return functional.avg_pool2d(maps, side).flatten(2).transpose(1, 2)

    @torch.inference_mode()
    def probe(self, paths: list[Path]) -> dict[str, float]:
        """Check the model for faults that our code and open_clip's would share -> figures."""
        tower = self.tower
        spread = float(tower.positions[1:].std(0).mean())
        if not spread > 0:
            raise UserError(f"{self.params.model}: its position embeddings are all alike: the weights were not loaded")
        images = torch.stack([self.image(path) for path in paths])
        pooled, tokens = tower.encode_image(images)
        class_token = tower.project(tower.norm(tower.raw(images)[:, 0]))
        apart = float((class_token - pooled).norm() / pooled.norm())
        if not apart <= _CLASS_TOKEN:
            raise UserError(
                f"{self.params.model}: its class token differs from encode_image by {apart:.2g} of its norm (limit "
                f"{_CLASS_TOKEN}): its patch tokens are not what we expect"
            )
        order = torch.randperm(tower.rows**2, generator=torch.Generator().manual_seed(0))
        _, moved = tower.encode_image(_shuffle(images, order, tower.patch))
        changed = float((moved - tokens[:, order]).norm() / tokens.norm())
        if not changed >= _SHUFFLED:
            raise UserError(
                f"{self.params.model}: shuffling the patches of an image changes its tokens by {changed:.2g} of their "
                f"norm (at least {_SHUFFLED} expected): the model does not see positions"
            )
        return {
            "class_token_difference": float(f"{apart:.3g}"),
            "change_by_shuffling": float(f"{changed:.3g}"),
            "spread_of_positions": float(f"{spread:.3g}"),
        }


def _shuffle(images: Tensor, order: Tensor, side: int) -> Tensor:
    """Images [B, 3, S, S] whose patch i is patch ``order[i]`` of the original."""
    size = images.shape[-1]
    patches = functional.unfold(images, side, stride=side)[:, :, order]
    return functional.fold(patches, size, side, stride=side)


def _check_made_as(store: GridStore, encoder: GridEncoder) -> None:
    attributes = encoder.attributes()
    for name in ("weights_sha256", "quick_gelu", "pool", "image_size", "preprocessing", "dtype"):
        theirs, ours = (made.get(name) for made in (store.attributes, attributes))
        if theirs != ours:
            raise UserError(
                f"{store.path}: {name} is {theirs}, but the parameters give {ours}; extract the grids again"
            )
    if store.shape[1:] != encoder.shape:
        raise UserError(f"{store.path}: grids of {store.shape[1:]}, expected {encoder.shape}; extract them again")


def _check_complete(store: GridStore, images: dict[int, Path]) -> None:
    there = {*store.image_ids.tolist(), *store.skipped_ids.tolist()}
    missing, surplus = sorted(set(images) - there), sorted(there - set(images))
    for ids, words in ((missing, "lacks images"), (surplus, "holds images that are not in the folders:")):
        if ids:
            raise UserError(f"{store.path}: {words} {first_few(ids)}; extract the grids again")
    if (np.diff(store.image_ids) <= 0).any():
        raise UserError(f"{store.path}: image_ids do not rise; extract the grids again")


def _check_values(store: GridStore) -> dict[str, float]:
    least, most, start = np.inf, -np.inf, 0
    for block in store.blocks():
        values = block.astype(np.float32)
        wrong = ~np.isfinite(values).all((1, 2)) | (values.std((1, 2)) == 0)
        if wrong.any():
            ids = store.image_ids[start + np.flatnonzero(wrong)]
            raise UserError(f"{store.path}: grids that are not finite, or constant: images {first_few(ids)}")
        least, most, start = min(least, float(values.min())), max(most, float(values.max())), start + len(block)
    return {"min": float(f"{least:.4g}"), "max": float(f"{most:.4g}")}


def _check_hashes(store: GridStore, ids: list[int], sample: list[Path]) -> None:
    for row, path in zip(store.rows(ids), sample, strict=True):
        if store.content_hash[row].decode() != digest(read_file(path)).hex():
            raise UserError(f"{path}: has changed since its grid was extracted; extract the grids again")


def _differences(
    path: Path, limits: VerifyParams, what: str, stored: np.ndarray, expected: np.ndarray, precisions: set[Any]
) -> dict[str, float]:
    """Compare float32 [n, P, C] token by token. Raises `UserError` beyond the limits."""
    apart = np.abs(stored - expected)
    products = (stored * expected).sum(-1, dtype=np.float64)
    norms = np.linalg.norm(stored.astype(np.float64), axis=-1) * np.linalg.norm(expected.astype(np.float64), axis=-1)
    cosine = float((products / np.maximum(norms, 1e-30)).min())
    relative = float(np.linalg.norm(apart) / np.linalg.norm(expected))
    most = limits.max_relative if precisions == {"fp32"} else limits.max_relative_bf16
    for name, value, limit, fine in (
        ("cosine", cosine, limits.min_cosine, cosine >= limits.min_cosine),
        ("relative difference", relative, most, relative <= most),
    ):
        if not fine:
            raise UserError(
                f"{path}: its grids differ from {what}: {name} {value:.4g}, limit {limit}; extract them again, or find "
                "out which of the two is wrong"
            )
    return {
        "max_difference": float(f"{apart.max():.4g}"),
        "mean_difference": float(f"{apart.mean():.4g}"),
        "relative": float(f"{relative:.4g}"),
        "min_cosine": float(f"{min(cosine, 1.0):.7g}"),
    }
