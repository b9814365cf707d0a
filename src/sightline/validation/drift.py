"""How far the embeddings of two recordings are apart: ``sightline drift A B --index INDEX_OF_A``.

Both hold depth embeddings (``sightline embed``, ``sightline predict embed``), or both grids, a file or a folder
(``sightline clip_grids``; the mean over the patches counts), made by the same model. Two measures, each printed beside
its value between the reference's own episodes, which shows what is usual:

frechet     squared Frechet distance of two Gaussians, |m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)) (Dowson and Landau,
            1982; on features, Heusel et al., 2017), as a share of the reference's total variance
far_share   share of the new frames that are farther from the nearest frame of the reference than 99 % of the
            reference's frames are from the nearest one of another episode
"""

from argparse import ArgumentParser, Namespace
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sightline.core.cli import run_stage
from sightline.core.errors import UserError
from sightline.core.figures import report
from sightline.core.files import rounded
from sightline.core.hdf5 import open_hdf5, require
from sightline.core.params import Section
from sightline.grids.store import GridStore
from sightline.recording.frames import first_few, read_index

LIMIT = 10_000  # frames compared of each recording; of a longer one, evenly spaced ones
PERCENTILE = 99
HALVINGS = 20  # of the reference's episodes, at random
BLOCK = 1024
MADE_BY = {  # attributes that tell what made a file
    "embeddings": ("encoder_sha256",),
    "grids": ("model", "weights_sha256", "quick_gelu", "tokens", "pool", "grid", "image_size", "preprocessing"),
}


@dataclass(frozen=True)
class Embeddings:
    """Rows of a file of embeddings, and what made them."""

    ids: np.ndarray  # int64 [N], frame ids
    values: np.ndarray  # float32 [N, D]
    made_by: dict[str, str]


def read_embeddings(path: Path) -> Embeddings:
    """Read at most `LIMIT` rows of embeddings or of grids, evenly spaced.

    Raises:
        UserError: no such file or folder, neither of the two, or values that are no numbers.
    """
    if path.is_dir():
        return _read_grids(path)
    if path.suffix == ".parquet":
        return _read_table(path)
    with open_hdf5(path) as file:
        if "grids" in file:
            return _read_grids(path)
        if "embeddings" not in file:
            raise UserError(f"{path}: holds neither embeddings nor grids; write some with sightline embed")
        ids, values = file["frame_id"][:], file.rows("embeddings")
        require(path, {"embeddings": (values, "f", 2), "frame_id": (ids, "i", 1)})
        rows = _spaced(len(ids))
        ids, values = ids[rows], np.array(values[rows])
        require(path, {"embeddings": (values, "f", 2)})
        return Embeddings(ids, values, _made_by("embeddings", file.attrs))


def _read_table(path: Path) -> Embeddings:
    """Embeddings in a table of `sightline.predict embed`."""
    try:
        table = pq.read_table(path, columns=["frame_id", "embedding"])
        ids, values = table["frame_id"].to_numpy(), np.stack(table["embedding"].to_numpy())
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{path}: not a table of embeddings ({reason}); write one with sightline predict embed"
        ) from None
    rows = _spaced(len(ids))
    require(path, {"embedding": (values, "f", 2), "frame_id": (ids, "i", 1)})
    attributes = {key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items()}
    return Embeddings(ids[rows], values[rows], _made_by("embeddings", attributes))


def _read_grids(path: Path) -> Embeddings:
    with GridStore(path) as store:
        ids = store.image_ids[_spaced(len(store))]
        parts = [ids[start : start + BLOCK] for start in range(0, len(ids), BLOCK)]
        values = np.concatenate([store.read(part).astype(np.float32).mean(axis=1) for part in parts])
    require(path, {"grids": (values, "f", 2)})
    return Embeddings(ids, values, _made_by("grids", store.attributes))


def _made_by(kind: str, attributes: Mapping[str, Any]) -> dict[str, str]:
    return {"kind": kind} | {name: str(attributes.get(name)) for name in MADE_BY[kind]}


def embedding_drift(reference: Path, new: Path, index: Path) -> dict[str, Any]:
    """Measure how far ``new`` is from ``reference``.

    Args:
        index: frame index of the reference, which tells the episode of each frame.

    Raises:
        UserError: files that cannot be read, of two models, or a reference of fewer than two episodes.
    """
    base, other = read_embeddings(reference), read_embeddings(new)
    for name, value in base.made_by.items():
        if other.made_by.get(name) != value:
            raise UserError(
                f"{new}: {name} is {other.made_by.get(name)}, but {value} in {reference}; make both with the same model"
            )
    by_frame = read_index(index).set_index("frame_id")["episode"].reindex(base.ids)
    if by_frame.isna().any():
        raise UserError(f"{index}: lacks frames of {reference} ({first_few(base.ids[by_frame.isna()])})")
    episode = by_frame.to_numpy(np.int64)
    if len(np.unique(episode)) < 2:
        raise UserError(f"{index}: {reference} has frames of one episode; two are needed to tell what is usual")
    own = nearest(base.values, base.values, episode)
    distance = nearest(other.values, base.values)
    far = np.percentile(own, PERCENTILE)
    halves = [base.values[half] for first in _halvings(episode) for half in (first, ~first)]
    figures = {
        "frames": len(other.ids),
        "frechet": frechet(base.values, other.values),
        "frechet_within": max(map(frechet, halves[::2], halves[1::2])),
        "far_share": float((distance > far).mean()),
        "distance": float(np.median(distance)),
        "distance_within": float(np.median(own)),
        "farthest": other.ids[np.argsort(-distance, kind="stable")[:5]].tolist(),
    }
    return rounded(figures)


def frechet(reference_ND: np.ndarray, new_MD: np.ndarray) -> float:
    """Squared Frechet distance of two Gaussians fitted to the rows, as a share of the reference's total variance."""
    mean, covariance = _gaussian(reference_ND)
    new_mean, new_covariance = _gaussian(new_MD)
    values, vectors = np.linalg.eigh(covariance)
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    both = np.linalg.eigvalsh(root @ new_covariance @ root).clip(0)  # eigenvalues of the product of both
    squared = ((mean - new_mean) ** 2).sum() + np.trace(covariance) + np.trace(new_covariance) - 2 * np.sqrt(both).sum()
    return float(max(squared, 0) / max(np.trace(covariance), 1e-30))


def _gaussian(rows_ND: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    rows = rows_ND.astype(np.float64)
    centred = rows - rows.mean(0)
    return rows.mean(0), centred.T @ centred / len(rows)


def nearest(rows_ND: np.ndarray, others_MD: np.ndarray, episode: np.ndarray | None = None) -> np.ndarray:
    """Distance of each row to the nearest of ``others``, [N]; with ``episode`` [N], to one of another episode."""
    centre = others_MD.mean(0)  # without it, rounding of large common values would hide small differences
    rows, others = rows_ND - centre, others_MD - centre
    squares, least = (others * others).sum(1), []
    for start in range(0, len(rows), BLOCK):
        block = rows[start : start + BLOCK]
        distance = (block * block).sum(1)[:, None] + squares - 2 * block @ others.T
        if episode is not None:
            distance[episode[start : start + BLOCK, None] == episode] = np.inf
        least.append(distance.min(1))
    return np.sqrt(np.concatenate(least).clip(0))


def _halvings(episode: np.ndarray) -> list[np.ndarray]:
    """Masks of the frames of one half of the episodes, drawn at random, always in the same way."""
    rng, episodes = np.random.default_rng(0), np.unique(episode)
    drawn = [rng.permutation(episodes)[: len(episodes) // 2] for _ in range(HALVINGS)]
    return [np.isin(episode, half) for half in drawn]


def _spaced(count: int) -> np.ndarray:
    return np.linspace(0, count - 1, min(count, LIMIT)).round().astype(np.int64)


def main(args: Namespace, _: Section) -> None:
    figures = embedding_drift(args.reference, args.new, args.index)
    report(figures, {name: figures[name] for name in ("frechet", "far_share")}, args.metrics_dir)


parser = ArgumentParser(prog="sightline drift", description="Compare the embeddings of two recordings.")
parser.add_argument("reference", type=Path, help="embeddings or grids of the recording that models learned from")
parser.add_argument("new", type=Path, help="the same of another recording")
parser.add_argument("--index", type=Path, required=True, help="frame index of the reference, data/index/frames.parquet")
parser.add_argument("--metrics-dir", type=Path, help="folder for metrics.json (default: print the figures)")

if __name__ == "__main__":
    run_stage(parser, Section, main)
