"""Videos without loss, to hold what is read from them against their pictures."""

from pathlib import Path

import av
import numpy as np


def write_video(path: Path, pictures: list[np.ndarray]) -> Path:
    """A video without loss: RGB or grey of 8 bits, or uint16."""
    path.parent.mkdir(parents=True, exist_ok=True)
    of_colour = pictures[0].ndim == 3
    given = "rgb24" if of_colour else "gray16le" if pictures[0].dtype == np.uint16 else "gray"
    codec, stored = ("libx264rgb", "rgb24") if of_colour else ("ffv1", given)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=10, options={"qp": "0"} if of_colour else {})
        stream.height, stream.width, stream.pix_fmt = *pictures[0].shape[:2], stored
        for picture in pictures:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format=given)))
        container.mux(stream.encode())
    return path
