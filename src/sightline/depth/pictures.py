"""Pictures of an evaluated depth autoencoder: reconstructions, the latent space, interpolations.

The same input gives the same bytes: nothing is read from the user's matplotlib settings, and no version is written.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from sightline.core.files import atomic_output
from sightline.depth.preprocessing import Preprocessing
from sightline.recording.colours import OKABE_ITO
from sightline.training.probing import effective_rank

INTERPOLATED = 4  # decoded images of an interpolation, both ends included
INVALID = "#ff00c8"  # where the sensor has no reading; no colour map has this colour
WIDTH, DPI = 5.2, 150  # inches: texts can still be read where a picture is 390 pixels wide
MARKERS = (".", "x")  # of the first and of later episodes with the same colours
CASES = ("best", "median", "worst")


def draw_reconstructions(
    path: Path,
    depth_KHW: np.ndarray,
    valid_KHW: np.ndarray,
    names_K: np.ndarray,
    reconstructions: dict[str, np.ndarray],
    preprocessing: Preprocessing,
) -> None:
    """For each frame a row of what was measured and reconstructed, and below it a row of the errors.

    Args:
        depth_KHW, valid_KHW: frames in the order of the autoencoder's error, best first.
        names_K: of the frames.
        reconstructions: name of the code -> float32 [K, 128, 128] in [-1, 1].
    """
    depth_mm = preprocessing.to_mm(depth_KHW.astype(np.float64))
    limits = _limits(depth_mm[valid_KHW])
    error_mm = {name: preprocessing.to_mm(y.astype(np.float64)) - depth_mm for name, y in reconstructions.items()}
    largest = float(np.quantile(np.abs(np.stack(list(error_mm.values()))[:, valid_KHW]), 0.99)) or 1.0
    cases = CASES if len(depth_KHW) == len(CASES) else CASES[::2]  # of two frames, or one
    with _figure(path, 1 + len(error_mm), 2 * len(depth_KHW), "Held-out frames, from best to worst") as (figure, axes):
        depth_map, error_map = _map("cividis", limits), _map("PuOr", (-largest, largest))
        for k, (above, below) in enumerate(zip(axes[::2], axes[1::2], strict=True)):
            _show(above[0], np.ma.array(depth_mm[k], mask=~valid_KHW[k]), depth_map)
            above[0].set_title("measured")
            below[0].set_axis_off()
            below[0].text(0.0, 0.9, f"{cases[k]}:\n{names_K[k]}".replace(", ", ",\n"), va="top", weight="bold")
            for i, (name, error) in enumerate(error_mm.items(), 1):
                rmse = np.sqrt(np.square(error[k][valid_KHW[k]]).mean())
                _show(above[i], depth_mm[k] + error[k], depth_map)
                above[i].set_title(name.replace("_", " "))
                _show(below[i], np.ma.array(error[k], mask=~valid_KHW[k]), error_map)
                below[i].set_title(f"RMSE {rmse:.1f} mm")
        figure.colorbar(depth_map, ax=axes, location="bottom", aspect=30, shrink=0.9, label="depth, mm")
        label = "reconstructed - measured, mm (pink: not measured)"
        figure.colorbar(error_map, ax=axes, location="bottom", aspect=30, shrink=0.9, extend="both", label=label)


def draw_interpolation(
    path: Path,
    depth_K2HW: np.ndarray,
    valid_K2HW: np.ndarray,
    names_K2: np.ndarray,
    decoded_KIHW: np.ndarray,
    preprocessing: Preprocessing,
) -> None:
    """Two rows of: a frame, what is decoded on the straight line between its latent and another's, the other frame."""
    depth_mm, decoded_mm = (preprocessing.to_mm(y.astype(np.float64)) for y in (depth_K2HW, decoded_KIHW))
    title = "Between two held-out frames:\ndecoded from (1 - t) z0 + t z1"
    with _figure(path, 3, 2 * len(depth_mm), title) as (figure, axes):
        depth_map = _map("cividis", _limits(depth_mm[valid_K2HW]))
        for k, row in enumerate(axes.reshape(len(depth_mm), -1)):  # the first frame, four in between, the last
            for end, axis in ((0, row[0]), (1, row[-1])):
                _show(axis, np.ma.array(depth_mm[k, end], mask=~valid_K2HW[k, end]), depth_map)
                axis.set_title(f"{names_K2[k, end]}".replace(", ", ",\n"), weight="bold")
            for i, axis in enumerate(row[1:-1]):
                _show(axis, decoded_mm[k, i], depth_map)
                axis.set_title(f"t = {i / (INTERPOLATED - 1):.1f}")
        label = "depth, mm (pink: not measured)"
        figure.colorbar(depth_map, ax=axes, location="bottom", shrink=0.9, aspect=40, label=label)


def draw_latents(path: Path, latents_ND: np.ndarray, episode_N: np.ndarray, step_N: np.ndarray) -> None:
    """Variance along the principal axes of the latents, its cumulative share, and their projection on the first two.

    Args:
        latents_ND: latents of the held-out frames.
        episode_N, step_N: coloured by episode, or by step where all frames are of one.
    """
    rank, variances = effective_rank(latents_ND)
    share = variances / max(variances.sum(), 1e-30)
    numbers = np.arange(1, len(share) + 1)
    centred = latents_ND.astype(np.float64) - latents_ND.mean(axis=0, dtype=np.float64)
    points = _first_two(centred)
    title = f"Latents of {len(latents_ND)} held-out frames:\n{len(share)} numbers, effective rank {rank:.1f}"
    with _figure(path, 1, 3, title, size=(WIDTH, 3.3)) as (figure, axes):
        spectrum, cumulative, plane = axes[:, 0]
        used = share > 1e-9  # smaller ones are rounding errors; n frames span n - 1 directions
        spectrum.semilogy(numbers[used], share[used])
        spectrum.set(title="Variance along principal axes", xlabel="axis", ylabel="share of the variance")
        cumulative.plot(numbers[used], np.cumsum(share)[used])
        cumulative.axvline(rank, color=OKABE_ITO[3], linestyle="--", label=f"effective rank {rank:.1f}")
        cumulative.set(title="Cumulative", xlabel="axes", ylabel="share of the variance", xscale="log", ylim=(0, 1.02))
        cumulative.legend(loc="lower right")
        for axis in (spectrum, cumulative):
            axis.grid(alpha=0.3)
        episodes = np.unique(episode_N)
        if len(episodes) == 1:
            drawn = plane.scatter(*points.T, c=step_N, s=14, cmap="viridis")
            figure.colorbar(drawn, ax=plane, label="frame, in order")
        elif len(episodes) <= 10:
            for i, episode in enumerate(episodes):
                again, hue = divmod(i, len(OKABE_ITO))
                look = {"color": OKABE_ITO[hue], "marker": MARKERS[again], "linewidth": 0.6, "label": f"{episode}"}
                plane.plot(*points[episode_N == episode].T, **look)
            plane.legend(title="episode", fontsize="small")
        else:
            drawn = plane.scatter(*points.T, c=np.searchsorted(episodes, episode_N), s=10, cmap="viridis")
            figure.colorbar(drawn, ax=plane, label="episode, in order")
        labels = [f"axis {i + 1} ({value:.0%} of the variance)" for i, value in enumerate(share[:2])]
        plane.set(title="Projection on two axes", xlabel=labels[0], ylabel=labels[-1])


def _first_two(centred_ND: np.ndarray) -> np.ndarray:
    """Coordinates [N, 2] along the first two principal axes; the sign is that of the largest coordinate."""
    u, s, _ = np.linalg.svd(centred_ND, full_matrices=False)
    points = np.zeros((len(centred_ND), 2))
    points[:, : min(2, len(s))] = (u * s)[:, :2]
    return points * np.where(points[np.abs(points).argmax(axis=0), [0, 1]] < 0, -1, 1)


def _limits(values_mm: np.ndarray) -> tuple[float, float]:
    low, high = np.quantile(values_mm, (0.005, 0.995))
    return float(low), float(max(high, low + 1))


def _map(name: str, limits: tuple[float, float]) -> ScalarMappable:
    """The colours for values within ``limits``, and for invalid pixels."""
    return ScalarMappable(Normalize(*limits), matplotlib.colormaps[name].with_extremes(bad=INVALID))


def _show(axis: Axes, image_HW: np.ndarray, colours: ScalarMappable) -> None:
    low, high = colours.get_clim()
    axis.imshow(image_HW, vmin=low, vmax=high, cmap=colours.cmap, interpolation="nearest")
    axis.set_axis_off()


@contextmanager
def _figure(
    path: Path, columns: int, rows: int, title: str, size: tuple[float, float] | None = None
) -> Iterator[tuple[Figure, Any]]:
    """A figure with axes [rows, columns], of ``size`` inches each (square), saved to ``path`` when the block ends."""
    size = size or (WIDTH / columns, WIDTH / columns + 0.25)
    with style.context("default"), matplotlib.rc_context({"axes.titlesize": "medium"}):
        figure = Figure((columns * size[0], rows * size[1] + 1.6), dpi=DPI, layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots(rows, columns, squeeze=False)
        figure.suptitle(title)
        yield figure, axes
        with atomic_output(path) as temporary:
            figure.savefig(temporary, format="png", metadata={"Software": None})
