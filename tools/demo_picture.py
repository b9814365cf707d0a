"""Draw the picture of the demo in the README: some frames of the recording, a column for each kind of image.

python tools/demo_picture.py data/demo docs/demo.png
"""

from argparse import ArgumentParser
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from sightline.recording.images import read_depth, read_mask, read_rgb
from sightline.recording.layout import read_recording_info

FRAMES = (158, 168, 178, 234)  # above the ball, grasping, carrying; and putting down in another episode
SIZE = 180  # pixels on an edge of a tile
CLASS_COLOURS = np.array(  # of background, robot, box, cylinder, ball, plate
    [[32, 32, 36], [200, 200, 208], [228, 70, 60], [70, 190, 90], [70, 120, 235], [240, 215, 70]], np.uint8
)


def depth_colours(raw_HW: np.ndarray, near: int, far: int) -> np.ndarray:
    """Near is bright, far is dark, no reading is red -> uint8 [H, W, 3]."""
    grey = 255 - 215 * np.clip((raw_HW.astype(float) - near) / (far - near), 0, 1)
    return np.where((raw_HW == 0)[..., None], [170, 40, 40], grey[..., None]).astype(np.uint8)


def main() -> None:
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recording", type=Path)
    parser.add_argument("picture", type=Path)
    args = parser.parse_args()
    info = read_recording_info(args.recording / "recording.json")
    assert info.depth is not None
    columns = [*info.cameras, "masks", "depth"]
    sheet = Image.new("RGB", (SIZE * len(columns), 18 + SIZE * len(FRAMES)), "white")
    for x, column in enumerate(columns):
        ImageDraw.Draw(sheet).text((x * SIZE + 6, 3), column, "black")
        for y, frame in enumerate(FRAMES):
            name = f"{frame:06d}.png"
            if column == "masks":
                tile = CLASS_COLOURS[read_mask(args.recording / "masks" / name)]
            elif column == "depth":
                tile = depth_colours(read_depth(args.recording / "depth" / name), *info.depth.height_range)
            else:
                tile = read_rgb(args.recording / "rgb" / column / name)
            sheet.paste(Image.fromarray(tile).resize((SIZE, SIZE), Image.Resampling.BICUBIC), (x * SIZE, 18 + y * SIZE))
    sheet.save(args.picture, optimize=True)


if __name__ == "__main__":
    main()
