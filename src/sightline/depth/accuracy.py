"""How far reconstructed depth images are from the measured ones.

Only pixels that the sensor measured count, predictions are clipped to [-1, 1] first, and everything is computed in
float32 or better. `rmse` and `mae` are pooled over pixels; `rmse_per_image` is the mean over images of each image's
own RMSE, as Marigold reports it: figures of the two kinds must not be compared with each other.
"""

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from sightline.depth.preprocessing import IMAGE_SIZE, Preprocessing

EDGE_REACH = 2  # pixels around a depth edge whose error counts as error at an edge
SSIM_WINDOW, SSIM_SIGMA = 11, 1.5


@dataclass
class Accuracy:
    """Errors of one code, gathered batch by batch.

    Args:
        preprocessing: gives the millimetres behind a normalised value.
    """

    preprocessing: Preprocessing
    _images: list[Tensor] = field(default_factory=list)  # per batch: sums over each image, float64 [B, 8]

    def update(self, predicted_BHW: Tensor, target_BHW: Tensor, valid_BHW: Tensor, edges_BHW: Tensor) -> None:
        """Add a batch.

        Args:
            predicted_BHW: reconstruction, float32; clipped to [-1, 1] here.
            target_BHW: hole-filled normalised depth, float32.
            valid_BHW: bool, measured pixels; at least one an image.
            edges_BHW: bool, pixels near a depth edge, from `near_edges`.
        """
        predicted_BHW = predicted_BHW.clamp(-1, 1)
        error = predicted_BHW - target_BHW
        predicted_mm, target_mm = map(self.preprocessing.to_mm, (predicted_BHW, target_BHW))
        positive = valid_BHW & (target_mm > 0)  # a ratio to a depth of zero means nothing
        ratio = torch.maximum(predicted_mm / target_mm, target_mm / predicted_mm.clamp(min=1e-6))
        at_edge = valid_BHW & edges_BHW
        sums = (
            valid_BHW,
            error.square().where(valid_BHW, 0),
            error.abs().where(valid_BHW, 0),
            positive,
            ((predicted_mm - target_mm).abs() / target_mm).where(positive, 0),
            (ratio < 1.25) & positive,
            at_edge,
            error.square().where(at_edge, 0),
        )
        per_image = [values.sum(dim=(1, 2)).double() for values in sums] + [ssim(predicted_BHW, target_BHW).double()]
        self._images.append(torch.stack(per_image, dim=1).cpu())

    def rmse_of_images_mm(self) -> Tensor:
        """RMSE of each image in millimetres, float64 [N], in the order of the updates."""
        pixels, squared = torch.cat(self._images)[:, :2].unbind(1)
        return (squared / pixels).sqrt() * self.preprocessing.mm_per_unit

    def figures(self) -> dict[str, float | None]:
        """All figures; None where one is not defined (no pixel near an edge; PSNR of a perfect code).

        ``rmse``, ``mae`` (and ``_per_image``, and ``_mm``): errors in normalised units, or millimetres. ``abs_rel``:
        mean of |error| / depth; ``delta_1_25``: share of pixels off by a factor below 1.25; both of the depth in
        millimetres. ``psnr``: decibels, from the pooled RMSE, peak to peak 2. ``ssim``: see `ssim`. ``edge_rmse_mm``:
        pooled over the pixels near a depth edge. ``valid_share``: measured pixels among all; ``edge_share``: pixels
        near an edge among the measured ones.
        """
        images = torch.cat(self._images)
        pixels, squared, absolute, positive, relative, within, at_edge, squared_edge, _ = images.sum(dim=0).tolist()
        n, unit = images[:, 0], self.preprocessing.mm_per_unit
        mse = squared / pixels
        errors = {
            "rmse": math.sqrt(mse),
            "mae": absolute / pixels,
            "rmse_per_image": (images[:, 1] / n).sqrt().mean().item(),
            "mae_per_image": (images[:, 2] / n).mean().item(),
        }
        return {
            **errors,
            **{f"{name}_mm": value * unit for name, value in errors.items()},
            "abs_rel": relative / positive if positive else None,
            "delta_1_25": within / positive if positive else None,
            "psnr": 10 * math.log10(4 / mse) if mse else None,
            "ssim": images[:, 8].mean().item(),
            "edge_rmse_mm": math.sqrt(squared_edge / at_edge) * unit if at_edge else None,
            "edge_share": at_edge / pixels,
            "valid_share": pixels / (len(images) * IMAGE_SIZE**2),
        }


def near_edges(depth_BHW: Tensor, valid_BHW: Tensor, threshold: float) -> Tensor:
    """Pixels within `EDGE_REACH` pixels (rows and columns) of a depth edge -> bool [B, H, W].

    Both of two valid 4-neighbours that differ by more than ``threshold`` (normalised units) are at an edge.
    """
    edge_BHW = torch.zeros_like(valid_BHW)
    for dim in (1, 2):
        size = depth_BHW.shape[dim] - 1
        a, b = (slice(None),) * dim + (slice(0, size),), (slice(None),) * dim + (slice(1, size + 1),)
        step = ((depth_BHW[a] - depth_BHW[b]).abs() > threshold) & valid_BHW[a] & valid_BHW[b]
        edge_BHW[a] |= step
        edge_BHW[b] |= step
    return F.max_pool2d(edge_BHW.float()[:, None], 2 * EDGE_REACH + 1, 1, EDGE_REACH)[:, 0] > 0


def ssim(a_BHW: Tensor, b_BHW: Tensor) -> Tensor:
    """Mean structural similarity of images in [-1, 1] -> [B].

    Wang et al., "Image Quality Assessment: From Error Visibility to Structural Similarity" (2004): Gaussian window of
    11x11 pixels with sigma 1.5, K1 = 0.01, K2 = 0.03, dynamic range 2, averaged over the windows that lie within the
    image. Holes have to be filled: a window has no notion of them.
    """
    size = a_BHW.shape[-1]
    offset = torch.arange(size, dtype=torch.float64) - torch.arange(size - SSIM_WINDOW + 1)[:, None] - SSIM_WINDOW // 2
    window = torch.exp(-0.5 * (offset / SSIM_SIGMA) ** 2) * (offset.abs() <= SSIM_WINDOW // 2)
    window = (window / window.sum(dim=1, keepdim=True)).float().to(a_BHW.device)  # (windows, pixels) along one side
    a, b, aa, bb, ab = (
        window @ x_BHW @ window.T for x_BHW in (a_BHW, b_BHW, a_BHW.square(), b_BHW.square(), a_BHW * b_BHW)
    )
    c1, c2 = (0.01 * 2) ** 2, (0.03 * 2) ** 2
    similarity = (2 * a * b + c1) * (2 * (ab - a * b) + c2)
    return (similarity / ((a**2 + b**2 + c1) * (aa - a**2 + bb - b**2 + c2))).mean(dim=(1, 2))


def format_table(codes: dict[str, dict[str, Any]]) -> str:
    """The figures of several codes as an aligned table; the best of each column carries a star."""
    columns = {
        "rmse_mm": min, "mae_mm": min, "rmse_per_image_mm": min, "mae_per_image_mm": min, "edge_rmse_mm": min,
        "abs_rel": min, "delta_1_25": max, "psnr": max, "ssim": max,
    }  # fmt: skip
    lines = [["code", "numbers ", *(f"{column} " for column in columns)]]
    lines += [[name, f"{figures['numbers']} "] for name, figures in codes.items()]
    for column, pick in columns.items():
        values = [figures[column] for figures in codes.values()]
        best = pick((value for value in values if value is not None), default=None)
        for line, value in zip(lines[1:], values, strict=True):
            line.append("- " if value is None else f"{value:.4g}{'*' if value == best else ' '}")
    widths = [max(map(len, cells)) for cells in zip(*lines, strict=True)]
    rows = ([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])] for line in lines)
    return "\n".join("  ".join(row).rstrip() for row in rows)
