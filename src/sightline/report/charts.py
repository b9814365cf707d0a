"""Charts of the report, as specifications of Vega-Lite, and its pictures, as addresses of data."""

import base64
from collections.abc import Iterable
from io import BytesIO
from pathlib import Path
from typing import Any

import altair as alt
import numpy as np
import pandas as pd
from matplotlib import colormaps
from PIL import Image

from sightline.recording.colours import OKABE_ITO, outlined
from sightline.recording.depth import decode, is_valid, normalize
from sightline.recording.images import read_depth, read_mask, read_rgb
from sightline.recording.layout import RecordingInfo
from sightline.report.verdicts import Score, words

MODEL, BASELINE = OKABE_ITO[0], OKABE_ITO[1]
ON_TOP = alt.Legend(orient="top", title=None, columns=2)
BROKEN = "split(replace(datum.label, ' with ', '\\nwith '), '\\n')"  # a long name stands on two lines
WIDE, WIDEST, QUALITY = 480, 1400, 80  # pixels of a sample and of a picture; of its WebP
NO_READING = (213, 94, 0)
Spec = dict[str, Any]


def bars(title: str, axis: str, scores: Iterable[Score]) -> Spec:
    """A bar for each score, models in another colour than baselines; a line from end to end of an interval."""
    rows = [
        {"name": s.name, "value": s.value, "kind": "model" if s.is_model else "baseline",
         "low": s.interval and s.interval[0], "high": s.interval and s.interval[1]}
        for s in scores
    ]  # fmt: skip
    y = alt.Y("name:N", sort=None, title=None, axis=alt.Axis(labelLimit=170, labelExpr=BROKEN))
    x, scale = (
        alt.X("value:Q", title=axis, axis=alt.Axis(tickCount=5)),
        alt.Scale(domain=["model", "baseline"], range=[MODEL, BASELINE]),
    )
    colour = alt.Color("kind:N", scale=scale, legend=ON_TOP if len({row["kind"] for row in rows}) > 1 else None)
    base = alt.Chart(pd.DataFrame(rows)).encode(y=y, tooltip=["name", "value", "low", "high"])
    drawn = base.mark_bar(height=14).encode(x=x, color=colour)
    if any(row["low"] is not None for row in rows):
        whiskers = base.transform_filter("isValid(datum.low)").mark_rule(strokeWidth=3, color="#777", aria=False)
        drawn += whiskers.encode(x=alt.X("low:Q", title=axis), x2="high:Q")
    step = 28 if any(" with " in str(row["name"]) for row in rows) else 22  # pixels; names on two lines need more
    return _spec(drawn, title, step * len(rows) + 80)


def lines(title: str, x: str, y: str, table: pd.DataFrame) -> Spec:
    """Lines with points over ``x``; columns x, value, line and run, of which there may be several."""
    runs = alt.StrokeDash("run:N", sort=None, legend=ON_TOP if table["run"].nunique() > 1 else None)
    colour = alt.Color("line:N", sort=None, scale=alt.Scale(range=list(OKABE_ITO)), legend=ON_TOP)
    chart = alt.Chart(table).mark_line(point=alt.OverlayMarkDef(size=25)).encode(
        x=alt.X("x:Q", title=x), y=alt.Y("value:Q", title=y, scale=alt.Scale(zero=False)), color=colour,
        strokeDash=runs, tooltip=["run", "line", alt.Tooltip("x", title=x), alt.Tooltip("value", title=y)],
    )  # fmt: skip
    return _spec(chart, title, 260)


def _spec(chart: Any, title: str, height: int) -> Spec:
    spec = chart.properties(description=title, width="container", height=height).to_dict()  # the page has the title
    return spec | {"autosize": {"type": "fit", "contains": "padding"}}


def picture(image: Path | np.ndarray) -> str:
    """The address of a picture, or of a film, as a smaller WebP."""
    opened = Image.open(image) if isinstance(image, Path) else Image.fromarray(image)
    is_film = getattr(opened, "is_animated", False)
    if not is_film and opened.width > WIDEST:
        opened = opened.resize((WIDEST, round(opened.height * WIDEST / opened.width)), Image.Resampling.LANCZOS)
    buffer = BytesIO()
    opened.save(buffer, "WEBP", quality=QUALITY, save_all=is_film)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def samples(root: Path, info: RecordingInfo, frame: int, masks_of: str) -> dict[str, str]:
    """Pictures of one frame by their captions: every camera, the masks of one of them, every depth image."""
    shown: dict[str, str] = {}
    name = f"{frame:06d}.png"
    for camera in info.cameras:
        if (path := root / "rgb" / camera / name).is_file():
            shown[words(camera)] = picture(read_rgb(path))
    if (mask := root / "masks" / name).is_file() and (rgb := root / "rgb" / masks_of / name).is_file():
        drawn = outlined(read_rgb(rgb), read_mask(mask), len(info.classes), WIDE)
        shown[f"{words(masks_of)}, outlined: {', '.join(info.classes[1:])}"] = picture(drawn)
    for path in [root / "depth" / name, *sorted((root / "depth").glob(f"*/{name}"))]:
        if info.depth and path.is_file():
            counts = decode(read_depth(path), info.depth.encoding)
            near, far = (info.depth.unit_mm * end for end in info.depth.height_range)
            colours = 255 * colormaps["cividis"](normalize(counts, info.depth.height_range) / 2 + 0.5)[..., :3]
            colours[~is_valid(counts, info.depth.invalid)] = NO_READING
            key = f"{path.parent.name}, {near:g} (blue) to {far:g} mm (yellow); red: no reading"
            shown[key] = picture(colours.astype(np.uint8))
    return shown
