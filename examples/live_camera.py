"""A policy on live cameras, or on recorded videos that stand in for them: pictures and joints in, actions out.

    python examples/live_camera.py policy.onnx --video episode          # of record_video.py
    python examples/live_camera.py policy.onnx --camera front=0 --camera wrist=2 --frames 300

A policy is a file of weights, or of `sightline export`. Cameras need OpenCV (`pip install
opencv-python-headless`), videos do not. Replace `read_joints` and `send` by your robot's.
"""

import time
from argparse import ArgumentParser
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np

from sightline.core.errors import UserError
from sightline.fusion import Policy

Frame = tuple[dict[str, np.ndarray], np.ndarray]  # pictures uint8 [H, W, 3] by camera, joints [J]


def recorded(folder: Path, cameras: tuple[str, ...]) -> Iterator[Frame]:
    """Frames of ``folder``: <camera>.mkv (or .mp4) of each camera, and joints.npy."""
    if not (folder / "joints.npy").is_file():
        raise UserError(
            f"{folder}: no joints.npy, the joints [N, J] of each frame; record_video.py makes such a folder"
        )
    joints_NJ = np.load(folder / "joints.npy")
    videos = []
    for camera in cameras:
        found = [path for path in (folder / f"{camera}.mkv", folder / f"{camera}.mp4") if path.is_file()]
        if not found:
            raise UserError(f"{folder}: no video of {camera}; the policy looks at {', '.join(cameras)}")
        videos.append(picture.to_ndarray(format="rgb24") for picture in av.open(str(found[0])).decode(video=0))
    for number, joints in enumerate(joints_NJ):
        pictures = [next(video, None) for video in videos]
        for camera, picture in zip(cameras, pictures, strict=True):
            if picture is None:
                raise UserError(
                    f"{folder}: the video of {camera} has {number} pictures, joints.npy {len(joints_NJ)} rows"
                )
        yield dict(zip(cameras, pictures, strict=True)), joints


def live(devices: dict[str, int]) -> Iterator[Frame]:
    """Frames of OpenCV's cameras, the latest of each."""
    import cv2

    opened = {name: cv2.VideoCapture(number) for name, number in devices.items()}
    while True:
        pictures = {}
        for name, camera in opened.items():
            was_read, bgr = camera.read()
            if not was_read:
                raise UserError(f"camera {name}: gives no picture; is it device {devices[name]}?")
            pictures[name] = np.ascontiguousarray(bgr[..., ::-1])
        yield pictures, read_joints()


def devices_of(texts: list[str], cameras: tuple[str, ...]) -> dict[str, int]:
    """Camera -> number of its device, of options NAME=DEVICE."""
    given = dict(text.partition("=")[::2] for text in texts)
    for camera in cameras:
        if not given.get(camera, "").isdigit():
            raise UserError(
                f"--camera {camera}=DEVICE: give the number of its device; cameras are {', '.join(cameras)}"
            )
    return {camera: int(given[camera]) for camera in cameras}


def read_joints() -> np.ndarray:
    """The joints of your robot now, in the units of the recording that the policy learnt from."""
    raise UserError("read_joints: read them from your robot here")


def send(action: np.ndarray) -> None:
    """Command your robot; here, nothing is moved."""


def run(policy: Policy, frames: Iterator[Frame], fps: float, most: int | None) -> np.ndarray:
    """Act on each frame, ``fps`` times a second (0: as fast as it goes) -> the actions [N, A]."""
    policy.reset()
    actions, spent, due = [], [], time.monotonic()
    for number, (pictures, joints) in enumerate(frames):
        start = time.monotonic()
        actions.append(policy.act({"images": pictures, "joints": joints}))
        send(actions[-1])
        spent.append(time.monotonic() - start)
        if number + 1 == most:
            break
        due += 1 / fps if fps else 0
        time.sleep(max(0, due - time.monotonic()) if fps else 0)
    milliseconds = 1e3 * np.array(spent)
    print(
        f"{len(actions)} frames; {np.median(milliseconds):.1f} ms each in the middle, {milliseconds.max():.1f} at most"
    )
    return np.stack(actions)


def main() -> None:
    parser = ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("policy", type=Path, help="file of weights, or .onnx")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--video", type=Path, help="folder of videos, see record_video.py")
    source.add_argument("--camera", action="append", metavar="NAME=DEVICE", help="a camera of the policy; repeat it")
    parser.add_argument("--fps", type=float, default=10, help="frames a second; 0: as fast as it goes")
    parser.add_argument("--frames", type=int, help="how many at most")
    parser.add_argument("--output", type=Path, help="write the actions to this .npy file")
    args = parser.parse_args()
    try:
        policy = Policy.load(args.policy)
        frames = recorded(args.video, policy.cameras) if args.video else live(devices_of(args.camera, policy.cameras))
        actions = run(policy, frames, args.fps, args.frames)
    except (UserError, av.FFmpegError) as error:
        raise SystemExit(f"live_camera: error: {error}") from None
    if args.output:
        np.save(args.output, actions)


if __name__ == "__main__":
    main()
