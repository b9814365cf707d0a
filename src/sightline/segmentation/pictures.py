"""The picture of an evaluation: the outlines of true and predicted masks on images, side by side."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib import rc_context, style
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from sightline.core.files import atomic_output
from sightline.recording.colours import class_colours, outlined
from sightline.recording.layout import IGNORE

WIDTH, DPI = 5.2, 150  # inches: texts can still be read where the picture is 390 pixels wide


def draw_overlays(
    path: Path, images: np.ndarray, truths: np.ndarray, predictions: np.ndarray, names: Sequence[str],
    classes: Sequence[str],
) -> None:  # fmt: skip
    """Write a row for each image: itself, the true mask on it, the predicted one on it; with a legend of the classes.

    Args:
        images: uint8 [n, 3, H, W] or [n, 1, H, W].
        truths, predictions: class ids uint8 [n, H, W]; 255 in the truths is ignored.
        names: of the rows.
        classes: names by class id, 0 the background.
    """
    count, height = len(images), WIDTH / 3 * images.shape[2] / images.shape[3] + 0.45
    longest = max(map(len, classes))
    columns = max(1, min(len(classes), int(WIDTH / (0.09 * longest + 0.55))))
    legend = 0.25 * -(-len(classes) // columns)
    with style.context("default"), rc_context({"axes.titlesize": "medium"}):  # and nothing of the user's own settings
        figure = Figure(figsize=(WIDTH, height * count + legend + 0.1), layout="constrained")
        parts = figure.subfigures(count, 1, squeeze=False)[:, 0]
        for part, name, image, truth, prediction in zip(parts, names, images, truths, predictions, strict=True):
            part.suptitle(name, fontsize="medium", x=0.01, ha="left", weight="bold")
            plain = image.transpose(1, 2, 0)
            on_image = [outlined(plain, mask, len(classes)) for mask in (np.zeros_like(truth), truth, prediction)]
            for axis, pixels, title in zip(part.subplots(1, 3), on_image, ("image", "true", "predicted"), strict=True):
                axis.imshow(pixels, interpolation="nearest")
                axis.set(xticks=[], yticks=[], title=title)
        colours = class_colours(len(classes)) / 255
        patches = [Patch(color=tuple(colours[i]), label=classes[i]) for i in range(1, len(classes))]
        if (truths == IGNORE).any():
            patches.append(Patch(facecolor="white", edgecolor="grey", label="ignored"))
        figure.legend(handles=patches, loc="outside lower center", ncols=columns, frameon=False)
        with atomic_output(path) as temporary:
            figure.savefig(temporary, format="png", dpi=DPI, metadata={"Software": None})
