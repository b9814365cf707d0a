"""The picture of an evaluation: images, their masks and what was predicted, side by side."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib import style
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from sightline.core.files import atomic_output
from sightline.recording.layout import IGNORE

_OPACITY = 0.7
_COLOURS = ("tab:red", "tab:blue", "tab:green", "tab:orange", "tab:purple", "tab:cyan", "tab:pink", "tab:olive",
            "tab:brown", "yellow", "lime", "navy", "magenta", "teal", "salmon", "gold", "indigo", "aqua",
            "chocolate")  # fmt: skip


def class_colours(classes: int) -> np.ndarray:
    """Colours uint8 [C, 3] of the classes from 1 on, repeating after 19; 0, the background, is not coloured."""
    names = [_COLOURS[(class_id - 1) % len(_COLOURS)] for class_id in range(1, classes)]
    colours = [np.round(255 * np.array(to_rgb(name))) for name in names]
    return np.array([np.zeros(3), *colours], np.uint8)


def overlay(image_cHW: np.ndarray, mask_HW: np.ndarray, classes: int) -> np.ndarray:
    """The colours of the classes over the greys of an image uint8 [3, H, W] or [1, H, W] -> uint8 [H, W, 3].

    Background shows the greys alone; ignored pixels (255) are hazy.
    """
    grey = image_cHW.mean(axis=0)[..., None]  # an image's own colours would mix with those of the classes
    colour = np.where((mask_HW == IGNORE)[..., None], 255, class_colours(classes)[mask_HW % IGNORE])
    opacity = np.where(mask_HW == 0, 0.0, _OPACITY)[..., None]
    return np.round((1 - opacity) * grey + opacity * colour).astype(np.uint8)


def draw_overlays(
    path: Path, images: np.ndarray, truths: np.ndarray, predictions: np.ndarray, names: Sequence[str],
    classes: Sequence[str],
) -> None:  # fmt: skip
    """Write a row for each image: itself, its mask over it, the prediction over it; with a legend of the classes.

    Args:
        images: uint8 [n, 3, H, W] or [n, 1, H, W].
        truths, predictions: class ids uint8 [n, H, W]; 255 in the truths is ignored.
        names: of the rows.
        classes: names by class id, 0 the background.
    """
    count, width = len(images), 2.6 * images.shape[3] / images.shape[2]
    columns = min(len(classes), max(3, int(3 * width // 1.6)))
    legend = 0.3 * -(-len(classes) // columns)
    with style.context("default"):  # and nothing of the user's own settings
        figure = Figure(figsize=(3 * width + 0.5, 2.6 * count + 0.3 + legend), layout="constrained")
        axes = figure.subplots(count, 3, squeeze=False)
        for row, (image, truth, prediction) in enumerate(zip(images, truths, predictions, strict=True)):
            plain = np.broadcast_to(image.transpose(1, 2, 0), (*truth.shape, 3))
            shown = (plain, overlay(image, truth, len(classes)), overlay(image, prediction, len(classes)))
            for axis, pixels, title in zip(axes[row], shown, ("image", "truth", "prediction"), strict=True):
                axis.imshow(pixels, interpolation="nearest")
                axis.set(xticks=[], yticks=[])
                if row == 0:
                    axis.set_title(title)
            axes[row, 0].set_ylabel(names[row])
        colours = class_colours(len(classes)) / 255
        patches = [Patch(color=tuple(colours[i]), label=classes[i]) for i in range(1, len(classes))]
        if (truths == IGNORE).any():
            patches.append(Patch(facecolor="white", edgecolor="grey", label="ignored"))
        figure.legend(handles=patches, loc="outside lower center", ncols=columns, frameon=False)
        with atomic_output(path) as temporary:
            figure.savefig(temporary, format="png", dpi=80, metadata={"Software": None})
