"""A film of two rollouts side by side, as a GIF: the same bytes for the same rollouts."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from sightline.core.files import atomic_output

BAR = 4  # height of the bar above a rollout that ended well (green) or not (red), pixels
GREEN, RED = (60, 170, 75), (215, 65, 50)
COLOURS = 128  # in the palette of all frames


def write_film(path: Path, rollouts: Sequence[tuple[list[np.ndarray], bool]], fps: float) -> None:
    """Write ``rollouts`` side by side; the shorter ones wait at their last picture.

    Args:
        rollouts: pictures uint8 [H, W, 3], one for each frame, and whether the rollout ended well.
        fps: frames per second.
    """
    columns = [_under_a_bar(pictures, GREEN if success else RED) for pictures, success in rollouts]
    count = max(len(column) for column in columns)
    frames = [np.concatenate([column[min(i, len(column) - 1)] for column in columns], axis=1) for i in range(count)]
    palette = Image.fromarray(np.concatenate(frames[:: max(1, count // 8)])).quantize(COLOURS)
    images = [Image.fromarray(frame).quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    with atomic_output(path) as temporary:
        images[0].save(
            temporary, "GIF", save_all=True, append_images=images[1:], duration=round(1000 / fps), loop=0,
        )  # fmt: skip


def _under_a_bar(pictures: list[np.ndarray], colour: tuple[int, int, int]) -> list[np.ndarray]:
    bar = np.full((BAR, pictures[0].shape[1], 3), colour, np.uint8)
    return [np.concatenate([bar, picture]) for picture in pictures]
