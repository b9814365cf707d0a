"""Make videos of an episode of a recording: what a robot's cameras saw, for `live_camera.py`.

    python examples/record_video.py data/demo episode --episode 90

FOLDER gets a video without loss for each camera, and the joints of each frame, ``joints.npy``.
"""

from argparse import ArgumentParser
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from sightline.core.errors import UserError
from sightline.recording.frames import read_frames
from sightline.recording.images import read_rgb
from sightline.recording.layout import read_recording_info
from sightline.recording.names import list_frames


def main(recording: Path, folder: Path, episode: int) -> None:
    info = read_recording_info(recording / "recording.json")
    frames = read_frames(recording / "frames.parquet", info)
    if "joints" not in frames:
        raise UserError(f"{recording}/frames.parquet: no column joints, which a policy needs beside the pictures")
    rows = frames[frames["episode"] == episode].sort_values("step")
    if rows.empty:
        first, last = frames["episode"].min(), frames["episode"].max()
        raise UserError(f"{recording}: no episode {episode}; there are {first} to {last}")
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / "joints.npy", np.stack(rows["joints"]).astype(np.float32))
    for camera in info.cameras:
        paths = list_frames(recording / "rgb" / camera)
        if missing := [frame_id for frame_id in rows["frame_id"] if frame_id not in paths]:
            raise UserError(f"{recording}/rgb/{camera}: no picture of frame {missing[0]}; take another --episode")
        pictures = (read_rgb(paths[frame_id]) for frame_id in rows["frame_id"])
        with av.open(str(folder / f"{camera}.mkv"), "w") as video:
            stream = None
            for picture in pictures:
                if stream is None:
                    height, width = picture.shape[:2]
                    rate = Fraction(info.fps).limit_denominator(1001)
                    stream = video.add_stream("ffv1", rate=rate, height=height, width=width)
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
    try:
        main(args.recording, args.folder, args.episode)
    except UserError as error:
        raise SystemExit(f"record_video: error: {error}") from None
