"""Evaluate a trained depth autoencoder on frames that it has not seen, beside simple codes of the same size.

`evaluate_autoencoder` writes five files: ``metrics.json``, the headline figures; ``evaluation_results.json``:

    part, frames, duplicates_left_out   which held-out frames; those whose pixels equal a training frame do not count
    train_frames, near_frames, pca_frames, probe_frames   training frames; those that nearest_train_frame compares with,
        that PCA, and that probe and centring are fitted on
    height_range_mm, resize, edge_mm    what the figures refer to: another target resize alone moves the RMSE a lot
    codes                               autoencoder and baselines: ``numbers`` and `sightline.depth.accuracy` figures
    embedding                           ``retrieval`` and ``effective_rank`` of the codes that are vectors, and, by
                                        column of the frames table, what `sightline.depth.probes` finds: ``probe``,
                                        ``parts`` (patches and scene alone), ``gain`` over the best linear code

and the pictures of `sightline.depth.pictures`.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from tqdm import tqdm

from sightline.core.cache import digest
from sightline.core.errors import UserError
from sightline.core.figures import write_figures
from sightline.core.files import rounded
from sightline.core.params import Section
from sightline.depth import pictures, probes
from sightline.depth.accuracy import Accuracy, near_edges
from sightline.depth.baselines import BaselineName, Code, fit_baseline
from sightline.depth.evaluator import ModelEvaluator
from sightline.depth.network import Encoder
from sightline.depth.store import DepthStore
from sightline.grids.store import GridRows, GridStore
from sightline.recording.frames import read_frames
from sightline.training import probing
from sightline.training.precision import exact_float32, use_bf16

AUTOENCODER, IMAGE_GRID, NEAREST, RANDOM = "autoencoder", "image_grid", "nearest_train_frame", "random_network"
PARTS = ("patches", "scene")
Column = Literal["joints", "gripper_position", "object_position", "goal_position", "contact"]


class EvaluateParams(Section):
    """The depth autoencoder on frames that it was not trained on."""

    part: Literal["val", "test"] = Field("test", description="part of the split to evaluate on: val or test")
    baselines: tuple[BaselineName, ...] = Field(
        ("mean_image", "nearest_train_frame", "pca", "grid", "dct"),
        description="simple codes of the same size to compare with; nearest_train_frame shows whether the split leaks",
    )
    near_frames: int = Field(
        4000, ge=2, description="training frames at most among which the nearest one is looked for; 64 KiB each"
    )
    rotate_pca: bool = Field(True, description="fit PCA on the training frames in all four orientations")
    pca_frames: int = Field(1000, ge=2, le=8000, description="most training frames to fit PCA on")
    probe_frames: int = Field(1000, ge=2, description="most training frames to fit the linear probes on")
    probe: tuple[Column, ...] = Field(
        get_args(Column), description="columns of frames.parquet to predict from the codes, as far as they are there"
    )
    edge_mm: float = Field(50.0, gt=0, description="step between neighbouring pixels that is a depth edge, millimetres")
    batch_size: int = Field(16, ge=1, description="images encoded at a time")


class AutoencoderCode:
    """The autoencoder as one `Code` among the others."""

    def __init__(self, evaluator: ModelEvaluator) -> None:
        self._evaluator, self.numbers = evaluator, evaluator.header.network.latent_dim

    def encode(self, images_BHW: Tensor) -> Tensor:
        return self._evaluator.encode_image(images_BHW[:, None])

    def decode(self, code_BD: Tensor) -> Tensor:
        return self._evaluator.decode_latent(code_BD)[:, 0]


class RandomNetwork:
    """The scene numbers of a network of the same shape that was not trained; its norms are those of training frames."""

    def __init__(self, evaluator: ModelEvaluator, store: DepthStore, rows: np.ndarray) -> None:
        torch.manual_seed(0)
        encoder = Encoder(evaluator.header.network).to(evaluator.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._encoder, self._device = encoder, evaluator.device
        self.numbers = evaluator.header.network.scene_dim
        for norm in (module for module in self._encoder.modules() if isinstance(module, torch.nn.BatchNorm2d)):
            norm.momentum = None  # the plain mean
        self._encoder.train()
        for some in np.array_split(rows[:: max(1, len(rows) // 256)], 8):
            if len(some):
                self.encode(torch.from_numpy(store.depth[some]).to(self._device))
        self._encoder.eval()

    @torch.no_grad()
    def encode(self, images_BHW: Tensor) -> Tensor:
        """[B, 128, 128] -> [B, scene_dim]."""
        with torch.autocast(self._device.type, torch.bfloat16, enabled=use_bf16("auto")):
            return self._encoder.parts(images_BHW[:, None]).scene.float()


@dataclass(frozen=True)
class Rows:
    """Rows of the store, int64, ascending."""

    held_out: np.ndarray  # without those that are also in train
    duplicates: int  # how many that were
    train: np.ndarray
    near: np.ndarray  # evenly spaced in train
    pca: np.ndarray  # evenly spaced in train
    probe: np.ndarray  # evenly spaced in train
    choose: np.ndarray  # for the penalty of the probe: evenly spaced in val, or else the last fifth of probe


@exact_float32()
def evaluate_autoencoder(
    weights: Path,
    data: Path,
    output: Path,
    params: EvaluateParams,
    *,
    frames: Path | None = None,
    grids: Path | None = None,
) -> dict[str, Any]:
    """Write ``metrics.json``, ``evaluation_results.json`` and the pictures to ``output`` -> the results.

    Args:
        weights: weights file of a trained autoencoder.
        data: file of normalised depth with its split.
        output: folder of the figures and pictures.
        frames: frames.parquet of the recording; with its joints and object positions, linear probes are run.
        grids: grids of the same frames, as the stage clip_grids writes them: what they are good for is judged
            beside the codes, all of their P * C numbers.

    Raises:
        UserError: files of another kind, weights that were trained on other preprocessing, no held-out frames.
    """
    evaluator, store = ModelEvaluator(weights), DepthStore.open(data)
    store.require_preprocessing(evaluator.header.preprocessing, weights)
    if evaluator.header.network.input_channels != 1:
        raise UserError(
            f"{weights}: takes {evaluator.header.network.input_channels} channels, but depth is evaluated, in "
            "millimetres; of a training on RGB images, metrics.json of the training tells the errors"
        )
    targets = _read_targets(frames, store, params.probe) if frames else {}
    others = {IMAGE_GRID: GridRows(GridStore(grids), store.frame_id)} if grids else {}
    rows = _choose_rows(store, params)
    codes: dict[str, Code] = {AUTOENCODER: AutoencoderCode(evaluator)}
    for name in tqdm(params.baselines, desc="fit baselines", mininterval=0.5):
        numbers = evaluator.header.network.latent_dim
        codes[name] = fit_baseline(
            name, store, rows.train, rows.near, rows.pca, numbers, params.rotate_pca, evaluator.device
        )
    accuracies, vectors = _reconstruct(store, rows.held_out, codes, params, evaluator.device)
    near, far = store.preprocessing.height_range
    results = {
        "part": params.part,
        "frames": len(rows.held_out),
        "duplicates_left_out": rows.duplicates,
        "train_frames": len(rows.train),
        "near_frames": len(rows.near),
        "pca_frames": len(rows.pca),
        "probe_frames": len(rows.probe),
        "height_range_mm": [near * store.preprocessing.unit_mm, far * store.preprocessing.unit_mm],
        "resize": store.preprocessing.resize,
        "edge_mm": params.edge_mm,
        "codes": {
            name: {"numbers": codes[name].numbers, **accuracy.figures()} for name, accuracy in accuracies.items()
        },
        "embedding": _judge_embeddings(store, rows, codes, vectors, others, targets, params, evaluator),
    }
    results = rounded(results)
    write_figures(output, _headline(results), results, "evaluation_results.json")
    _draw(store, rows.held_out, codes, accuracies, vectors[AUTOENCODER], output, evaluator.device)
    return results


def _headline(results: dict[str, Any]) -> dict[str, Any]:
    rmse = {name: figures["rmse_mm"] for name, figures in results["codes"].items()}
    own, baselines = rmse.pop(AUTOENCODER), [value for value in rmse.values() if value is not None]
    probed = results["embedding"].get("probe", {})
    return {
        "rmse_mm": own,
        **({"best_baseline_rmse_mm": min(baselines)} if baselines else {}),
        **{f"{column}_r2": of[AUTOENCODER]["r2"] for column, of in probed.items()},
    }


def _choose_rows(store: DepthStore, params: EvaluateParams) -> Rows:
    held_out, train = store.rows(params.part), store.rows("train")
    if not len(held_out):
        raise UserError(
            f"{store.path}: no frames in part {params.part}; set evaluate.part to the other one, or data.split so that "
            "there are some"
        )
    if len(train) < 2:
        raise UserError(f"{store.path}: {len(train)} training frames; at least 2 are needed to compare with")
    progress = {"desc": "find duplicates", "unit": "img", "mininterval": 0.5}
    digests = {row: digest(store.depth[row]) for row in held_out}
    in_train = set(digests.values()).intersection(digest(store.depth[row]) for row in tqdm(train, **progress))
    new = np.array([row for row, key in digests.items() if key not in in_train], np.int64)
    if not len(new):
        raise UserError(f"{store.path}: every frame of part {params.part} is also a training frame")
    probe, choose = _spaced(train, params.probe_frames), _spaced(store.rows("val"), params.probe_frames // 2 + 1)
    if params.part == "val" or not len(choose):
        probe, choose = np.split(probe, [max(1, len(probe) * 4 // 5)])  # mostly episodes of their own
    near, pca = _spaced(train, params.near_frames), _spaced(train, params.pca_frames)
    return Rows(new, len(held_out) - len(new), train, near, pca, probe, choose)


def _spaced(rows: np.ndarray, count: int) -> np.ndarray:
    """At most ``count`` of ``rows``, evenly spaced, the first and the last among them."""
    return rows if len(rows) <= count else rows[np.linspace(0, len(rows) - 1, count).round().astype(int)]


def _reconstruct(
    store: DepthStore, rows: np.ndarray, codes: dict[str, Code], params: EvaluateParams, device: torch.device
) -> tuple[dict[str, Accuracy], dict[str, np.ndarray]]:
    """Errors of every code on the frames at ``rows``, and their codes, float32 [M, D]."""
    accuracies = {name: Accuracy(store.preprocessing) for name in codes}
    vectors: dict[str, list[Tensor]] = {name: [] for name in codes}
    threshold = params.edge_mm / store.preprocessing.mm_per_unit
    with tqdm(desc="reconstruct", total=len(rows), unit="img", mininterval=0.5) as bar:
        for start in range(0, len(rows), params.batch_size):
            batch = rows[start : start + params.batch_size]
            depth, valid = (torch.from_numpy(values[batch]).to(device) for values in (store.depth, store.valid))
            edges = near_edges(depth, valid, threshold)
            for name, code in codes.items():
                numbers = code.encode(depth)
                accuracies[name].update(code.decode(numbers), depth, valid, edges)
                vectors[name].append(numbers.cpu())
            bar.update(len(batch))
    return accuracies, {name: torch.cat(parts).numpy() for name, parts in vectors.items()}


def _encode(
    store: DepthStore, rows: np.ndarray, code: Code | RandomNetwork, params: EvaluateParams, device: torch.device
) -> np.ndarray:
    """Codes of the frames at ``rows``, float32 [M, D]."""
    parts = [np.zeros((0, code.numbers), np.float32)]
    for start in range(0, len(rows), params.batch_size):
        images = torch.from_numpy(store.depth[rows[start : start + params.batch_size]]).to(device)
        parts.append(code.encode(images).cpu().numpy())
    return np.concatenate(parts)


def _judge_embeddings(
    store: DepthStore,
    rows: Rows,
    codes: dict[str, Code],
    vectors: dict[str, np.ndarray],
    others: dict[str, GridRows],
    targets: dict[str, np.ndarray],
    params: EvaluateParams,
    evaluator: ModelEvaluator,
) -> dict[str, Any]:
    """Retrieval, effective rank and probes of each code that is a vector, and of ``others``, [N, ...] of all frames."""
    steps, network = probing.steps_in_episodes(store.episode), evaluator.header.network
    judged: dict[str, Any] = {"retrieval": {}, "effective_rank": {}}
    told: dict[str, Any] = {}

    def frames(code: np.ndarray, some: np.ndarray) -> probes.Frames:
        return probes.Frames(code, {name: values[some] for name, values in targets.items()}, store.episode[some])

    def add(name: str, *numbers: np.ndarray) -> None:
        probe, choose, held_out = numbers
        if name not in PARTS:
            centre = probe.mean(axis=0, dtype=np.float64)
            place = store.episode[rows.held_out], steps[rows.held_out]
            judged["retrieval"][name] = probing.retrieval(held_out, centre, *place)
            judged["effective_rank"][name] = probing.effective_rank(held_out)[0]
        if targets:
            three = (probe, rows.probe), (choose, rows.choose), (held_out, rows.held_out)
            told[name] = probes.judge(*(frames(code, some) for code, some in three))

    random = {RANDOM: RandomNetwork(evaluator, store, rows.probe)} if targets and network.scene_dim else {}
    vectorial: dict[str, Code | RandomNetwork] = {name: code for name, code in codes.items() if code.numbers > 1}
    for name, code in tqdm({**vectorial, **random}.items(), desc="judge codes", unit="code", mininterval=0.5):
        held_out = vectors[name] if name in codes else _encode(store, rows.held_out, code, params, evaluator.device)
        choose = rows.choose if targets else rows.choose[:0]
        probe, choose = (_encode(store, some, code, params, evaluator.device) for some in (rows.probe, choose))
        add(name, probe, choose, held_out)
        if name == AUTOENCODER and network.parts == "beside" and 0 < network.patch_dim < network.latent_dim:
            sides = slice(network.patch_dim), slice(network.patch_dim, None)
            for part, side in zip(PARTS, sides, strict=True):
                add(part, *(numbers[:, side] for numbers in (probe, choose, held_out)))
    for name, grid in others.items():
        three = (grid[some].reshape(len(some), -1) for some in (rows.probe, rows.choose, rows.held_out))
        add(name, *(numbers.astype(np.float32) for numbers in three))
    if targets and NEAREST in vectors:
        copied = {name: values[vectors[NEAREST][:, 0]] for name, values in targets.items()}
        spread = {name: values[rows.probe].std(axis=0) for name, values in targets.items()}
        told[NEAREST] = probes.copied(copied, frames(vectors[NEAREST], rows.held_out), spread)
    return judged | probes.report(told, PARTS, len(np.unique(store.episode[rows.held_out])))


def _read_targets(frames: Path, store: DepthStore, columns: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Column -> its values at every frame of the store, float64 [N, J], for the columns that the recording has."""
    table = read_frames(frames).set_index("frame_id")
    missing = np.setdiff1d(store.frame_id, table.index)
    if len(missing):
        raise UserError(f"{frames}: lacks {len(missing)} frames of {store.path} (first {missing[0]})")
    rows = table.loc[store.frame_id]
    targets = {column: np.array(rows[column].tolist(), np.float64) for column in columns if column in table}
    for column, values in targets.items():
        if not np.isfinite(values).all():
            raise UserError(f"{frames}: {column}: holds NaN or infinity; evaluate.probe without {column} leaves it out")
    return {column: values.reshape(len(values), -1) for column, values in targets.items()}


def _draw(
    store: DepthStore,
    rows: np.ndarray,
    codes: dict[str, Code],
    accuracies: dict[str, Accuracy],
    latents_MD: np.ndarray,
    output: Path,
    device: torch.device,
) -> None:
    """Write the three pictures: the autoencoder beside the baseline with the lowest RMSE."""
    by_error = np.argsort(accuracies[AUTOENCODER].rmse_of_images_mm().numpy(), kind="stable")
    shown = rows[_spaced(by_error, 3)]
    steps, names_of = probing.steps_in_episodes(store.episode), np.array([f"frame {i}" for i in store.frame_id], object)
    recorded = store.episode >= 0  # not of a bare folder
    names_of[recorded] = [
        f"episode {e}, step {s}" for e, s in zip(store.episode[recorded], steps[recorded], strict=True)
    ]
    rmse = {name: accuracy.figures()["rmse"] or 0.0 for name, accuracy in accuracies.items() if name != AUTOENCODER}
    names = [AUTOENCODER, *sorted(rmse, key=lambda name: rmse[name])[:1]]
    images = torch.from_numpy(store.depth[shown]).to(device)
    reconstructions = {
        name: codes[name].decode(codes[name].encode(images)).clamp(-1, 1).cpu().numpy() for name in names
    }
    pictures.draw_reconstructions(
        output / "reconstruction_results.png", store.depth[shown], store.valid[shown], names_of[shown],
        reconstructions, store.preprocessing,
    )  # fmt: skip
    pictures.draw_latents(output / "latent_analysis.png", latents_MD, store.episode[rows], steps[rows])
    ends = _pairs(store.episode[rows])  # (K, 2), into rows
    latents = torch.from_numpy(latents_MD[ends]).to(device)
    weights = torch.linspace(0, 1, pictures.INTERPOLATED, device=device)[None, :, None]
    between = latents[:, :1] * (1 - weights) + latents[:, 1:] * weights  # (K, INTERPOLATED, D)
    decoded = codes[AUTOENCODER].decode(between.flatten(0, 1)).unflatten(0, (len(ends), -1))
    pictures.draw_interpolation(
        output / "interpolation.png", store.depth[rows[ends]], store.valid[rows[ends]], names_of[rows[ends]],
        decoded.cpu().numpy(), store.preprocessing,
    )  # fmt: skip


def _pairs(episode_M: np.ndarray) -> np.ndarray:
    """Up to three pairs of held-out frames, int64 [K, 2], to interpolate between.

    The first and the last frame of an episode; frames of different episodes (of a bare folder: far apart in order).
    """
    last, first_episode = len(episode_M) - 1, np.flatnonzero(episode_M == episode_M[0])
    pairs = [(0, first_episode[-1]), (first_episode[len(first_episode) // 2], last), ((last + 1) // 2, 0)]
    different = [pair for pair in pairs if pair[0] != pair[1]]
    return np.array(different or [(0, 0)])
