"""Make videos of an episode of a recording: what a robot's cameras saw, for `live_camera.py`.

    python examples/record_video.py data/demo episode --episode 90

FOLDER gets a video without loss for each camera, and the joints of each frame, ``joints.npy``.
"""

from argparse import ArgumentParser
from pathlib import Path

import av
import numpy as np
import pandas as pd

from sightline.recording.images import read_rgb
from sightline.recording.layout import read_recording_info


def main(recording: Path, folder: Path, episode: int) -> None:
    info, frames = read_recording_info(recording / "recording.json"), pd.read_parquet(recording / "frames.parquet")
    rows = frames[frames["episode"] == episode].sort_values("step")
    if rows.empty:
        raise SystemExit(f"{recording}: no episode {episode}; there are 0 to {frames['episode'].max()}")
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / "joints.npy", np.stack(rows["joints"]).astype(np.float32))
    for camera in info.cameras:
        pictures = (read_rgb(recording / "rgb" / camera / f"{frame_id:06d}.png") for frame_id in rows["frame_id"])
        with av.open(str(folder / f"{camera}.mkv"), "w") as video:
            stream = None
            for picture in pictures:
                if stream is None:
                    height, width = picture.shape[:2]
                    stream = video.add_stream("ffv1", rate=round(info.fps), height=height, width=width)
                    stream.pix_fmt = "bgr0"  # RGB as it is: other pixels would be rounded
                video.mux(stream.encode(av.VideoFrame.from_ndarray(picture, "rgb24")))
            video.mux(stream.encode())
    print(f"{folder}: {len(rows)} frames of {', '.join(info.cameras)}")


if __name__ == "__main__":
    parser = ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("recording", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--episode", type=int, default=0)
    args = parser.parse_args()
    main(args.recording, args.folder, args.episode)
