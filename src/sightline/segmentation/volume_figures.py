"""Figures of whole volumes, as papers report them: overlap and surface distances in three dimensions.

Of each class, Dice and IoU (Jaccard) of each volume, 95 % Hausdorff distance (HD95) and average symmetric surface
distance (ASD); the mean over the volumes, of these the mean over the classes without the background. A class that is
neither in the truth nor in the prediction of a volume is left out there; one that is in one alone has Dice 0, and the
diagonal of the volume as distance. HD95 is the larger of the 95th percentiles of the two directions.
"""

from typing import Any

import numpy as np

from sightline.segmentation import metrics
from sightline.segmentation.model import SegmentationConfig
from sightline.segmentation.params import PostprocessParams
from sightline.segmentation.volumes import largest_components

_NAMES = ("dice", "iou", "hd95", "asd")
_WORDS = {"dice": "Dice", "iou": "Jaccard", "hd95": "HD95", "asd": "ASD"}
_AFTER = "volumes_largest_component"


class VolumeFigures:
    """Collects the figures of volumes, one after the other."""

    def __init__(self, config: SegmentationConfig, postprocess: PostprocessParams) -> None:
        self.classes, self.first, self.mode = config.classes, config.first_class, postprocess.largest_component
        self.names: list[str] = []
        self.measured: dict[str, list[np.ndarray]] = {"volumes": []}
        self.has_spacing = True
        if self.mode != "none":
            self.measured[_AFTER] = []

    def add(self, name: str, predicted: np.ndarray, truth: np.ndarray, spacing: np.ndarray | None) -> None:
        """Measure a volume: class ids [Z, H, W]; ``spacing`` [3], or None to measure in voxels."""
        self.names.append(name)
        self.has_spacing &= spacing is not None
        self.measured["volumes"].append(volume_figures(predicted, truth, len(self.classes), spacing))
        if self.mode != "none":
            largest = largest_components(predicted, len(self.classes), self.mode)
            self.measured[_AFTER].append(volume_figures(largest, truth, len(self.classes), spacing))

    def result(self) -> dict[str, Any]:
        """Figures by name, as evaluation_results.json holds them."""
        results: dict[str, Any] = {}
        for key, figures in self.measured.items():
            measured_VC4 = np.stack(figures)
            mean_C4 = metrics.nan_mean(measured_VC4)
            means = metrics.nan_mean(mean_C4[self.first :])
            by_volume = [metrics.nan_mean(one[self.first :])[0] for one in measured_VC4]
            results[key] = {
                "count": len(self.names),
                "distance_unit": "spacing" if self.has_spacing else "voxels",
                **{f"{name}_mean": float(means[i]) for i, name in enumerate(_NAMES)},
                "dice_std": float(np.nanstd(by_volume)) if np.isfinite(by_volume).any() else np.nan,
                "classes": {
                    name: dict(zip(_NAMES, mean_C4[i].tolist(), strict=True)) for i, name in enumerate(self.classes)
                },
                "by_volume": {name: float(dice) for name, dice in zip(self.names, by_volume, strict=True)},
            }
        if self.mode != "none":
            results[_AFTER]["mode"] = self.mode
        return results


def volume_figures(predicted: np.ndarray, truth: np.ndarray, classes: int, spacing: np.ndarray | None) -> np.ndarray:
    """Dice, IoU, HD95 and ASD of each class in one volume -> float64 [C, 4]; nan where neither has the class.

    Args:
        predicted, truth: class ids [Z, H, W]; 255 in the truth counts nowhere.
        spacing: distance of slices, rows and columns; None measures in voxels.
    """
    counts = metrics.count_pixels(predicted[None], truth[None], classes)[0]
    distances = metrics.surface_distances(predicted, truth, classes, None if spacing is None else spacing.tolist())
    return np.column_stack([metrics.dice(counts), metrics.iou(counts), distances])


def volume_headline(figures: dict[str, Any]) -> dict[str, Any]:
    """What metrics.json shows of volumes; nothing where there are none."""
    headline: dict[str, Any] = {}
    for key, ending in (("volumes", ""), (_AFTER, "_largest_component")):
        if key in figures:
            headline |= {f"{name}{ending}": figures[key][f"{name}_mean"] for name in _NAMES}
    return headline


def volume_lines(figures: dict[str, Any]) -> list[str]:
    """Lines to print: the figures of volumes, each class and their mean; none where there are no volumes."""
    lines = []
    for key in ("volumes", _AFTER):
        if key not in figures:
            continue
        of = figures[key]
        after = f", largest component {of['mode']}" if "mode" in of else ""
        unit = "" if of["distance_unit"] == "spacing" else ", in voxels"
        lines.append(f"{of['count']} volumes{after}{unit}".ljust(40) + "".join(f"{_WORDS[name]:>9}" for name in _NAMES))
        rows = {"mean": {name: of[f"{name}_mean"] for name in _NAMES}} | of["classes"]
        for name, values in rows.items():
            cells = [
                "-" if (v := values[figure]) is None else f"{v:.4f}" if i < 2 else f"{v:.2f}"
                for i, figure in enumerate(_NAMES)
            ]
            lines.append(f"{name:40}" + "".join(f"{cell:>9}" for cell in cells))
    return lines
