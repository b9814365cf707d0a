"""Ranges of simple figures of a recording, and which frames leave the ranges that models were trained on.

A few figures of each frame (brightness, distances, joint angles ...) are reduced to their range over the training
frames: ``summary.json``. Frames whose figures leave the range of a summary are counted. Without a saved summary of
another recording, the reference, val and test are compared with train; with one, a warning also names the frames.

summary.json    modality -> frames (int), figures: name -> low, median, high over the training frames
drift.json      modality -> compared_with, frames, outside, figures: name -> outside, lowest, highest, low, high

Modalities are ``depth``, ``masks``, ``rgb/<camera>``, ``joints``, ``actions`` and ``time``.
"""

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pydantic import Field, RootModel, ValidationError, model_validator

from sightline.core.errors import UserError, first_fault
from sightline.core.files import rounded
from sightline.core.params import Section
from sightline.recording.frames import first_few
from sightline.recording.layout import DepthInfo, RecordingInfo

TRAIN = "train"  # where a recording's own summary is from
_ROUNDING = 1e-5  # figures are stored at six significant digits


class Range(Section, allow_inf_nan=False):
    """The range of a figure over the training frames."""

    low: float
    median: float
    high: float

    @model_validator(mode="after")
    def _ordered(self) -> "Range":
        if not self.low <= self.median <= self.high:
            raise ValueError(f"low, median and high must rise, not {self.low:g}, {self.median:g}, {self.high:g}")
        return self

    def limits(self, tolerance: float) -> tuple[float, float]:
        """The range, widened on both sides by ``tolerance`` of its width."""
        slack = tolerance * (self.high - self.low) + _ROUNDING * max(abs(self.low), abs(self.high))
        return self.low - slack, self.high + slack


class Summary(Section):
    """The figures of one modality over the training frames."""

    frames: int = Field(ge=1)
    figures: dict[str, Range]


@dataclass(frozen=True)
class Reference:
    """A summary, and the name of its source for messages."""

    source: str
    summary: Summary


def depth_figures(pixels: np.ndarray, info: DepthInfo) -> dict[str, float]:
    """Figures of a depth image, from its number of pixels with each raw count [65536]."""
    counts = np.flatnonzero(pixels)  # few of the 65536: all else is cheap
    held = pixels[counts]
    valid = ~np.isin(counts, info.invalid)
    up_to = np.cumsum(held[valid])
    ranks = np.searchsorted(up_to, np.array([0.01, 0.5, 0.99]) * up_to[-1])
    near, median, far = counts[valid][ranks] * info.unit_mm
    return {"invalid_share": held[~valid].sum() / held.sum(), "near_mm": near, "median_mm": median, "far_mm": far}


def rgb_figures(pixels_HWC: np.ndarray) -> dict[str, float]:
    """Figures of a colour image uint8 [H, W, 3]; brightness, contrast and sharpness in grey levels."""
    red, green, blue = (channel.mean() for channel in np.moveaxis(pixels_HWC, 2, 0))
    total = max(red + green + blue, 1e-9)
    across = np.abs(np.diff(pixels_HWC[::4, :, 1].astype(np.int16), axis=1))  # every fourth row is enough
    return {
        "brightness": total / 3,
        "contrast": pixels_HWC[:, :, 1].std(),
        "sharpness": across.mean() if across.size else 0.0,
        "red_share": red / total,
        "blue_share": blue / total,
    }


def mask_figures(pixels: np.ndarray, classes: tuple[str, ...], ignored: int) -> dict[str, float]:
    """Shares of a mask, from its number of pixels with each class id."""
    share = pixels[:256] / pixels[:256].sum()
    return {f"share.{name}": share[i] for i, name in enumerate(classes)} | {"share_ignored": share[ignored]}


def table_figures(frames: pd.DataFrame, info: RecordingInfo) -> dict[str, pd.DataFrame]:
    """Modality -> figures of each row of the table of frames, for joints, actions and time."""
    figures = {"time": pd.DataFrame({"interval_s": frames.groupby("episode")["time_s"].diff()})}
    for name in ("joints", "actions"):
        if name in frames:
            values = np.stack(list(frames[name])).astype(np.float64)
            named = info.joints if len(set(info.joints)) == values.shape[1] else range(values.shape[1])
            figures[name] = pd.DataFrame(values, columns=[str(joint) for joint in named])
    return {name: values.set_axis(frames["frame_id"]) for name, values in figures.items()}


def summarize(figures: pd.DataFrame) -> Summary | None:
    """The summary of the figures of training frames, a row each; None where there is nothing."""
    filled = figures.dropna(axis="columns", how="all")
    if filled.empty:
        return None
    low, median, high = (rounded([float(v) for v in getattr(filled, way)()]) for way in ("min", "median", "max"))
    ranges = {
        str(name): Range(low=a, median=b, high=c) for name, a, b, c in zip(filled, low, median, high, strict=True)
    }
    return Summary(frames=len(filled), figures=ranges)


def read_reference(path: Path) -> dict[str, Reference]:
    """Modality -> its summary, from a ``summary.json``, or from all of them in a folder and below.

    Raises:
        UserError: no such path, a folder without one, a file that is not a summary, or two of the same modality.
    """
    if not path.exists():
        raise UserError(f"{path}: no such file or folder; name a summary.json, or a folder with copies of some")
    files = sorted(path.rglob("summary.json")) if path.is_dir() else [path]
    if not files:
        raise UserError(
            f"{path}: no summary.json in it; copy those of a validation there, or write {{}} to one for none"
        )
    references: dict[str, Reference] = {}
    for file in files:
        for name, summary in _read_summaries(file).items():
            if name in references:
                raise UserError(f"{file}: {name} is also in {references[name].source}; keep one of them")
            references[name] = Reference(str(file), summary)
    return references


def _read_summaries(path: Path) -> dict[str, Summary]:
    try:
        return RootModel[dict[str, Summary]].model_validate_json(path.read_bytes(), strict=True).root
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except ValidationError as error:
        raise UserError(f"{path}: not a summary of a recording ({first_fault(error)}); copy it again") from None


def compare(
    modality: str, place: Path, figures: pd.DataFrame, episode: pd.Series, reference: Reference, tolerance: float
) -> dict[str, Any]:
    """Which frames leave the range of ``reference``: the content of drift.json.

    Warns in one line about frames that leave the range of another recording. It does not warn if the reference is the
    recording's own train: with few episodes, val and test often leave its range.

    Args:
        place: folder or file of the modality, for the warning.
        figures: a row for each frame, by frame_id, with the columns of `summarize`.
        episode: of each frame, by frame_id.
        tolerance: by which the ranges are widened, as a share of their width.
    """
    # how far each figure of each frame is outside its range
    ranges, figures = reference.summary.figures, figures.dropna(axis="columns", how="all")
    both = [name for name in figures if name in ranges]
    low, high = np.array([ranges[name].limits(tolerance) for name in both]).reshape(-1, 2).T
    beyond = np.maximum(low - figures[both], figures[both] - high).clip(lower=0)  # NaN: no figure
    outside = (beyond > 0).any(axis="columns")
    # the warning: the worst figure first, then figures that only one of the two has
    said = [f"{name} is not in {reference.source}" for name in figures if name not in ranges]
    said += [f"{name} is in {reference.source} only" for name in ranges if name not in figures]
    if outside.any():
        name = str((beyond > 0).sum().idxmax())  # the figure whose range most frames leave
        frame = beyond[name].idxmax()
        a, b = ranges[name].limits(tolerance)
        episodes = episode[outside[outside].index].unique()
        said.insert(
            0,
            f"frame {frame}: {name} {figures[name][frame]:.4g} is beyond {a:.4g} to {b:.4g} of {reference.source}; "
            f"{outside.sum()} of {len(figures)} frames leave a range, of episodes {first_few(episodes)}",
        )
    if said and reference.source != TRAIN:
        warnings.warn(f"{place}: {modality}: {first_few(said, 3)}", stacklevel=2)
    # drift.json
    details = {
        name: {
            "outside": int((beyond[name] > 0).sum()),
            "lowest": float(figures[name].min()),
            "highest": float(figures[name].max()),
            "low": float(a),
            "high": float(b),
        }
        for name, a, b in zip(both, low, high, strict=True)
    }
    return {
        "compared_with": reference.source,
        "frames": len(figures),
        "outside": int(outside.sum()),
        "figures": rounded(details),
    }
