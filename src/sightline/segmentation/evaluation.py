"""Evaluate a segmentation model on frames of unseen groups, and compare it with simple baselines.

`evaluate_segmentation` writes ``metrics.json``, ``per_class.csv``, ``confidence.csv`` and ``overlays.png``. Means are
over the classes without the background, where there is one (``segmentation.has_background``); ignored pixels count
nowhere. In ``metrics.json``:

    dice_mean         of all pixels of the part together; ``dice_mean_interval`` its 95 % interval, by bootstrap over
                      groups; ``iou_mean`` the same way
    dice_per_image_mean  mean over the images that have the class
    dice_per_group_mean  mean over the groups that have the class, of their pixels together: of a group that is a
                      patient's volume, what the medical literature reports
    hd95_mean, asd_mean  95 % Hausdorff and average surface distance, mean over the images where the class is in the
                      truth or the prediction; where it is in one alone, the image's diagonal. In ``distance_unit``
    accuracy, calibration_error  of the pixels, see `sightline.segmentation.metrics`
    classes           all of this for each class, as in per_class.csv
    baselines         ``all_background``; ``mean_mask``: the most frequent class of each pixel in the labelled training
                      masks; ``mean_colour``: the class whose mean colour in them is nearest
    volumes           of whole volumes, in three dimensions, at the size and with the spacing of their slices: Dice, IoU
                      (Jaccard), HD95 and ASD of each class, mean over the volumes, and of these the mean over the
                      classes; ``volumes_largest_component`` the same after ``postprocess``
    by_group          mean Dice of each group, where groups have several images
    dice_lost         how much smaller dice_mean becomes when a further input comes from other frames, by input
"""

import csv
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from tqdm import tqdm

from sightline.core.errors import UserError
from sightline.core.figures import write_figures
from sightline.core.files import atomic_output, rounded
from sightline.core.params import Section
from sightline.grids.features import check_features
from sightline.recording.layout import IGNORE
from sightline.segmentation import metrics
from sightline.segmentation.frames import SegmentationFrames
from sightline.segmentation.model import SegmentationModel, load_model
from sightline.segmentation.params import NO_POSTPROCESS, PostprocessParams
from sightline.segmentation.pictures import draw_overlays
from sightline.segmentation.volume_figures import VolumeFigures, volume_headline, volume_lines
from sightline.segmentation.volumes import VolumePredictions, enlarged
from sightline.training.precision import exact_float32
from sightline.training.processes import process_device

_SHOWN = ("best", "median", "worst")  # frames in the picture, by their mean Dice


class EvaluateSegmentationParams(Section):
    """The segmentation model on groups that it was not trained on."""

    part: Literal["val", "test"] = Field("test", description="part of the split to evaluate on: val or test")
    batch_size: int = Field(16, ge=1, description="frames at a time")
    windows: bool = Field(
        True,
        description="of a model of crops: mean of whole image and windows (volumes: windows); false: whole image",
    )
    seed: int = Field(0, ge=0, description="draws the bootstrap, and the frames whose further inputs are swapped")


@exact_float32()
def evaluate_segmentation(
    weights: Path,
    frames: SegmentationFrames,
    output: Path,
    params: EvaluateSegmentationParams,
    postprocess: PostprocessParams = NO_POSTPROCESS,
) -> dict[str, Any]:
    """Write figures and the picture to the folder ``output``; return what ``metrics.json`` holds.

    Args:
        weights: file of a segmentation model.
        frames: made with the model's ``config`` in place of parameters.
        postprocess: of volumes; figures are of both, without and with it.

    Raises:
        UserError: not a model, images of another kind or further inputs other than it was trained with, no held-out
            frames with masks, held-out groups that the model was trained on, masks that cannot be read.
    """
    model = load_model(weights)
    rows = _held_out(weights, model, frames, params.part)
    if frames.volume is None and postprocess.largest_component != "none":
        raise UserError(f"{frames.name}: is not of volumes, for which postprocess.largest_component is; set it to none")
    run = _Run(model.to(process_device()), frames, params)
    counts, surfaces, bins = run.measure(rows)
    group, names, first = frames.group[rows], model.config.classes, model.config.first_class
    of_interest = {name: counts_M3C[:, :, first:] for name, counts_M3C in counts.items()}
    classes = _per_class(counts, surfaces, group)
    figures: dict[str, Any] = {
        "part": params.part,
        "frames": len(rows),
        "groups": len(np.unique(group)),
        **{f"{name}_mean": float(metrics.nan_mean(classes[name][first:])) for name in _MEANS},
        "dice_mean_interval": metrics.dice_interval(metrics.pool(of_interest["model"], group), params.seed),
        "distance_unit": "pixels" if frames.pixel_of(int(rows[0])) is None else "spacing",
        "accuracy": float(bins[:, 2].sum() / max(bins[:, 0].sum(), 1)),
        "calibration_error": metrics.expected_calibration_error(bins),
        "classes": {name: {key: values[i].item() for key, values in classes.items()} for i, name in enumerate(names)},
        "baselines": {name: _overlap_means(of_interest[name]) for name in of_interest if name != "model"},
        "by_group": _by_group(of_interest["model"], group) if len(np.unique(group)) < len(rows) else {},
    }
    figures["dice_lost"] = {
        f"shuffled_{name}": figures["dice_mean"] - _overlap_means(run.shuffled(rows, name)[:, :, first:])["dice_mean"]
        for name in model.config.extras
    }
    if frames.volume is not None:
        figures |= run.measure_volumes(rows, postprocess)
    figures = rounded(figures)
    if frames.volume is None:
        shown = _cases(metrics.nan_mean(metrics.dice(of_interest["model"]).T))
    else:
        areas = of_interest["model"][:, 2].sum(axis=1)
        shown = _volume_cases(frames.volume[rows], areas, figures["volumes"]["by_volume"])
    images, kind = frames.images(rows[list(shown)]), "group" if group.dtype.kind in "iu" else ""
    named = (
        [f"{kind} {name}" for name in group] if frames.volume is None else [f" {name}" for name in frames.volume[rows]]
    )
    titles = [
        f"{case}: {named[i]}, frame {frames.frame_id[rows[i]]}, Dice {dice:.2f}".replace(":  ", ": ")
        for i, (case, dice) in shown.items()
    ]
    draw_overlays(
        output / "overlays.png", images, frames.masks(rows[list(shown)]), run.predict(rows[list(shown)], images)[0],
        titles, names,
    )  # fmt: skip
    _write_table(output / "per_class.csv", ["class", *classes], zip(names, *classes.values(), strict=True))
    _write_table(output / "confidence.csv", ["confidence", "share", "mean_confidence", "accuracy"], _bin_rows(bins))
    baselines = [dice for of in figures["baselines"].values() if (dice := of["dice_mean"]) is not None]
    headline = {
        **volume_headline(figures),
        "dice_pooled" if "volumes" in figures else "dice": figures["dice_mean"],
        **({"best_baseline_dice": max(baselines)} if baselines else {}),
        "calibration_error": figures["calibration_error"],
    }
    write_figures(output, headline, figures, "evaluation_results.json")
    return figures


def table(figures: dict[str, Any]) -> str:
    """Dice of the model and the baselines, as lines to print; - where it is undefined."""
    lines = [*volume_lines(figures), f"{'mean Dice':16}{'pooled':>8}{'per image':>11}"]
    for name, means in {"model": figures, **figures["baselines"]}.items():
        cells = ["-" if (v := means[key]) is None else f"{v:.4f}" for key in ("dice_mean", "dice_per_image_mean")]
        lines.append(f"{name:16}{cells[0]:>8}{cells[1]:>11}")
    return "\n".join(lines)


_MEANS = ("dice", "iou", "dice_per_image", "dice_per_group", "hd95", "asd")
Counts = dict[str, np.ndarray]  # of the model and of each baseline, int64 [M, 3, C]
Baseline = Callable[[np.ndarray], np.ndarray]  # images uint8 [n, channels, H, W] -> class ids [n, H, W]


class _Run:
    """A model on frames."""

    def __init__(
        self, model: SegmentationModel, frames: SegmentationFrames, params: EvaluateSegmentationParams
    ) -> None:
        self.model, self.frames, self.params = model, frames, params
        self.device, self.classes = next(model.parameters()).device, len(model.config.classes)
        self.volumes = VolumePredictions(model, frames, params.windows) if model.config.spatial_dims == 3 else None

    def batches(self, rows: np.ndarray, title: str) -> Iterator[np.ndarray]:
        starts = range(0, len(rows), self.params.batch_size)
        for start in tqdm(starts, desc=title, unit="batch", mininterval=0.5, leave=False):
            yield rows[start : start + self.params.batch_size]

    @torch.inference_mode()
    def predict(
        self, rows: np.ndarray, images: np.ndarray, others: dict[str, np.ndarray] | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Class ids uint8 [n, H, W] and their probabilities float32 [n, H, W], of these rows and their images.

        Args:
            others: further inputs [n, ...] by name, in the place of those of the rows.
        """
        if self.volumes:
            return self.volumes.ids(rows), self.volumes.confidence(rows)
        confidence, predicted = self.probabilities(rows, images, others).max(dim=1)
        return predicted.cpu().numpy().astype(np.uint8), confidence.cpu().numpy()

    def probabilities(
        self, rows: np.ndarray, images: np.ndarray, others: dict[str, np.ndarray] | None = None
    ) -> torch.Tensor:
        """Of the classes, [n, C, H, W]; see `predict`."""
        arrays = self.frames.extras(rows) | (others or {})
        extras = {name: torch.from_numpy(arrays[name]).to(self.device) for name in self.model.config.extras}
        return self.model.probabilities(torch.from_numpy(images).to(self.device), extras, self.params.windows)

    def measure(self, rows: np.ndarray) -> tuple[Counts, np.ndarray, np.ndarray]:
        """Counts of the model and the baselines, surface distances [M, C, 2], and bins of confidence."""
        baselines = self.baselines()
        counts: dict[str, list[np.ndarray]] = {name: [] for name in ("model", *baselines)}
        surfaces: list[np.ndarray] = []
        bins = np.zeros((metrics.BINS, 3))
        for some in self.batches(rows, "evaluate"):
            images, truth = self.frames.images(some), self.frames.masks(some)
            predicted, confidence = self.predict(some, images)
            valid = truth != IGNORE
            counts["model"].append(metrics.count_pixels(predicted, truth, self.classes))
            for name, baseline in baselines.items():
                counts[name].append(metrics.count_pixels(baseline(images), truth, self.classes))
            for row, found, true in zip(some.tolist(), predicted, truth, strict=True):
                surfaces.append(metrics.surface_distances(found, true, self.classes, self.frames.pixel_of(row)))
            bins += metrics.confidence_bins(confidence[valid], (predicted == truth)[valid])
        return {name: np.concatenate(counts[name]) for name in counts}, np.stack(surfaces), bins

    def measure_volumes(self, rows: np.ndarray, postprocess: PostprocessParams) -> dict[str, Any]:
        """Figures of whole volumes at the size of their slices, see `sightline.segmentation.volume_figures`."""
        frames, volumes = self.frames, self.frames.volume
        assert volumes is not None
        assert frames.own_size is not None
        whole, measured = replace(frames, image_size=frames.own_size), VolumeFigures(self.model.config, postprocess)
        for name in tqdm(
            np.unique(volumes[rows]).tolist(), desc="volumes", unit="volume", mininterval=0.5, leave=False
        ):
            of_volume = rows[volumes[rows] == name]
            starts = range(0, len(of_volume), self.params.batch_size)
            some = [of_volume[start : start + self.params.batch_size] for start in starts]
            predicted = np.concatenate([self.predict_whole(batch) for batch in some])
            spacing = None if frames.voxel is None else frames.voxel[of_volume[0]]
            measured.add(name, predicted, whole.masks(of_volume), spacing)
        return measured.result()

    @torch.inference_mode()
    def predict_whole(self, rows: np.ndarray) -> np.ndarray:
        """Class ids uint8 [n, H, W] of these rows at the size of their slices."""
        assert self.frames.own_size is not None
        if self.volumes:
            return self.volumes.whole_ids(rows)
        probabilities = self.probabilities(rows, self.frames.images(rows))
        return enlarged(probabilities, self.frames.own_size).cpu().numpy()

    def shuffled(self, rows: np.ndarray, name: str) -> np.ndarray:
        """Counts of the model, int64 [M, 3, C], when the further input ``name`` comes from other frames."""
        order = np.random.default_rng(self.params.seed).permutation(rows)
        other = dict(zip(order.tolist(), np.roll(order, 1), strict=True))  # of two frames or more, none gets its own
        counts = []
        for some in self.batches(rows, f"shuffled {name}"):
            lent = {name: self.frames.extras(np.array([other[row] for row in some.tolist()]))[name]}
            predicted = self.predict(some, self.frames.images(some), lent)[0]
            counts.append(metrics.count_pixels(predicted, self.frames.masks(some), self.classes))
        return np.concatenate(counts)

    def baselines(self) -> dict[str, Baseline]:
        """Simple predictors, from those of the model's training masks that are among the frames."""
        frames, size = self.frames, self.frames.image_size
        labelled = np.isin(frames.group.astype(str), self.model.config.labeled_groups)
        rows = np.flatnonzero((frames.split == "train") & frames.has_mask & labelled)
        nothing = np.zeros((1, *size), np.uint8)
        baselines: dict[str, Baseline] = {"all_background": lambda images: np.repeat(nothing, len(images), axis=0)}
        if not len(rows):
            return baselines
        seen = np.zeros((self.classes, *size), np.int64)
        colours = np.zeros((self.classes, frames.channels))
        for some in self.batches(rows, "baselines"):
            images, masks = frames.images(some).astype(np.float64), frames.masks(some)
            for class_id in range(self.classes):
                of_class = masks == class_id
                seen[class_id] += of_class.sum(axis=0)
                colours[class_id] += (images * of_class[:, None]).sum(axis=(0, 2, 3))
        numbers = seen.sum(axis=(1, 2))
        means = colours / np.maximum(numbers, 1)[:, None]
        means[numbers == 0] = np.inf  # never the nearest
        mean_mask = seen.argmax(axis=0).astype(np.uint8)

        def nearest(images: np.ndarray) -> np.ndarray:
            return np.argmin([((images - mean[:, None, None]) ** 2).sum(axis=1) for mean in means], axis=0)

        baselines["mean_mask"] = lambda images: np.repeat(mean_mask[None], len(images), axis=0)
        baselines["mean_colour"] = nearest
        return baselines


def _held_out(weights: Path, model: SegmentationModel, frames: SegmentationFrames, part: str) -> np.ndarray:
    """Rows to evaluate on, after checking that they suit the model and are new to it."""
    config = model.config
    if frames.channels != config.image_channels:
        kinds = {1: "grey", 3: "RGB"}
        trained, present = (kinds[count] for count in (config.image_channels, frames.channels))
        raise UserError(f"{frames.name}: its images are {present}, but {weights} was trained on {trained} ones")
    if ("depth" in config.extras) != (frames.read_depth is not None):
        needs = "with depth images; add" if "depth" in config.extras else "without depth images; leave out"
        raise UserError(f"{weights}: was trained {needs} --depth FOLDER")
    if config.spatial_dims == 3 and frames.volume is None:
        raise UserError(f"{weights}: was trained on volumes in three dimensions, but {frames.name} is not of volumes")
    features = {name: shape for name, shape in config.extras.items() if name != "depth"}
    check_features(frames.features, features, config.makers, weights)
    if frames.intake is not None and config.intake is not None:
        frames.intake.check_same(frames.name, config.intake, weights)
    rows = frames.rows(part)
    rows = rows[frames.has_mask[rows]]
    if not len(rows):
        raise UserError(
            f"{frames.name}: no frames with masks in part {part}; set evaluate_segmentation.part to the other one"
        )
    seen = set(config.train_groups) & set(frames.group[rows].astype(str).tolist())
    if seen:
        raise UserError(f"{weights}: was trained on group {min(seen)} of part {part}; train it on this split")
    return rows


def _per_class(counts: Counts, surfaces_MC2: np.ndarray, group: np.ndarray) -> dict[str, np.ndarray]:
    """Figures of each class, [C], by name."""
    of_model = counts["model"]
    total, hd95, asd = of_model.sum(axis=0), *np.moveaxis(metrics.nan_mean(surfaces_MC2), -1, 0)
    return {
        "dice": metrics.dice(total),
        "iou": metrics.iou(total),
        "dice_per_image": metrics.dice_per_image(of_model),
        "dice_per_group": metrics.dice_per_image(metrics.pool(of_model, group)),
        "hd95": hd95,
        "asd": asd,
        "images": (of_model[:, 2] > 0).sum(axis=0),
        "share": total[2] / max(total[2].sum(), 1),
    }


def _cases(dice_M: np.ndarray) -> dict[int, tuple[str, float]]:
    """Position -> case and Dice, of the best, the median and the worst image that has any class."""
    order = np.argsort(-np.nan_to_num(dice_M, nan=-1.0), kind="stable")
    order = order[: max(1, int(np.isfinite(dice_M).sum()))]
    places = (len(order) - 1, (len(order) - 1) // 2, 0)
    cases = {order[at]: case for case, at in zip(reversed(_SHOWN), places, strict=True)}  # one may be several: the best
    return {int(i): (case, float(dice_M[i])) for i, case in reversed(cases.items())}


def _volume_cases(
    volume_M: np.ndarray, area_M: np.ndarray, by_volume: dict[str, float | None]
) -> dict[int, tuple[str, float]]:
    """The same of the best, the median and the worst volume: of each, the slice with the largest area of classes."""
    names, dice = list(by_volume), np.array([np.nan if value is None else value for value in by_volume.values()])
    shown = {}
    for which, case in _cases(dice).items():
        slices = np.flatnonzero(volume_M == names[which])
        shown[int(slices[area_M[slices].argmax()])] = case
    return shown


def _overlap_means(counts: np.ndarray) -> dict[str, float]:
    total = counts.sum(axis=0)
    overlap = {"dice": metrics.dice(total), "iou": metrics.iou(total), "dice_per_image": metrics.dice_per_image(counts)}
    return {f"{name}_mean": float(metrics.nan_mean(values)) for name, values in overlap.items()}


def _by_group(counts: np.ndarray, group: np.ndarray) -> dict[str, float]:
    values = [float(metrics.nan_mean(dice)) for dice in metrics.dice(metrics.pool(counts, group))]
    return dict(zip(np.unique(group).astype(str).tolist(), values, strict=True))


def _bin_rows(bins_B3: np.ndarray) -> Iterator[list[float]]:
    """Upper end of each bin that has pixels, its share of them, their mean confidence and their accuracy."""
    total = bins_B3[:, 0].sum()
    for number, (count, confidence, right) in enumerate(bins_B3, start=1):
        if count:
            yield [number / metrics.BINS, count / total, confidence / count, right / count]


def _write_table(path: Path, header: list[str], rows: Any) -> None:
    with atomic_output(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        for row in rows:
            writer.writerow([value if isinstance(value, str) else _cell(value) for value in row])


def _cell(value: Any) -> str:
    return "" if np.isnan(value) else f"{value:.6g}"
