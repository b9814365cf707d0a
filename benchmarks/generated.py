"""Data sets of small pictures that all differ, of any number of frames: a recording, and what is imported as one."""

import json
from pathlib import Path

import av
import h5py
import numpy as np
import pandas as pd
from PIL import Image

from sightline.recording.layout import DepthInfo, RecordingInfo, write_recording_info

CAMERAS, EPISODE, FPS = ("left_wrist", "right_wrist", "global"), 4, 10  # frames in an episode, and in a second
SIZE = (48, 64)  # rows and columns
JOINTS = ("lift", "turn")


def write_recording(root: Path, frames: int) -> Path:
    """A recording with every modality."""
    rng, step = np.random.default_rng(0), np.arange(frames) % EPISODE
    joints = _joints(rng, frames)
    columns = {"frame_id": np.arange(frames), "episode": np.arange(frames) // EPISODE, "step": step}
    columns |= {"time_s": step / FPS, "joints": list(joints), "actions": list(joints), "reward": step / EPISODE}
    root.mkdir(parents=True)
    pd.DataFrame(columns).to_parquet(root / "frames.parquet")
    depth = DepthInfo(unit_mm=1.0, invalid=(0,), height_range=(500, 1300))
    info = RecordingInfo(fps=FPS, cameras=CAMERAS, joints=JOINTS, classes=("background", "box"), depth=depth)
    write_recording_info(root / "recording.json", info)
    for folder in (*(f"rgb/{camera}" for camera in CAMERAS), "depth", "masks"):
        (root / folder).mkdir(parents=True)
        for i in range(frames):
            if folder == "depth":
                pixels = rng.integers(600, 1200, SIZE).astype(np.uint16)
            elif folder == "masks":
                pixels = np.zeros(SIZE, np.uint8)
                pixels[8 : 16 + i % 16, 8 : 16 + i // 16 % 32] = 1
            else:
                pixels = _picture(rng)
            Image.fromarray(pixels).save(root / folder / f"{i:06d}.png", compress_level=1)
    return root


def write_aloha(root: Path, frames: int) -> Path:
    """The same frames as ALOHA's files, one for each episode, with one camera."""
    rng = np.random.default_rng(0)
    root.mkdir(parents=True)
    for episode in range(frames // EPISODE):
        with h5py.File(root / f"episode_{episode}.hdf5", "w") as file:
            joints = _joints(rng, EPISODE)
            file["observations/qpos"], file["action"] = joints, joints
            file["observations/images/cam_high"] = np.stack([_picture(rng) for _ in range(EPISODE)])
    return root


def write_lerobot(root: Path, frames: int) -> Path:
    """The same as LeRobot 3.0 has it: one table and, of one camera, one video."""
    rng, at, key = np.random.default_rng(0), np.arange(frames), "observation.images.top"
    joints = list(_joints(rng, frames).astype(np.float32))
    place = "chunk-{chunk_index:03d}/file-{file_index:03d}"
    number = {"dtype": "float32", "shape": [len(JOINTS)], "names": list(JOINTS)}
    info = {
        "codebase_version": "v3.0", "fps": FPS, "total_episodes": frames // EPISODE,
        "data_path": f"data/{place}.parquet", "video_path": f"videos/{{video_key}}/{place}.mp4",
        "features": {"observation.state": number, "action": number, key: {"dtype": "video", "shape": [*SIZE, 3]}},
    }  # fmt: skip
    for folder in ("meta/episodes/chunk-000", "data/chunk-000", f"videos/{key}/chunk-000"):
        (root / folder).mkdir(parents=True)
    (root / "meta/info.json").write_text(json.dumps(info), encoding="utf-8")
    table = {"observation.state": joints, "action": joints, "frame_index": at % EPISODE, "episode_index": at // EPISODE}
    table |= {"timestamp": (at % EPISODE / FPS).astype(np.float32), "index": at}
    pd.DataFrame(table).to_parquet(root / "data/chunk-000/file-000.parquet", index=False)
    first = np.arange(0, frames, EPISODE)
    episodes = {"episode_index": first // EPISODE, "length": EPISODE, "dataset_from_index": first}
    episodes |= {"data/chunk_index": 0, "data/file_index": 0, f"videos/{key}/chunk_index": 0}
    episodes |= {f"videos/{key}/file_index": 0, f"videos/{key}/from_timestamp": first / FPS}
    episodes |= {f"videos/{key}/to_timestamp": (first + EPISODE) / FPS}
    pd.DataFrame(episodes).to_parquet(root / "meta/episodes/chunk-000/file-000.parquet", index=False)
    with av.open(str(root / f"videos/{key}/chunk-000/file-000.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"g": str(EPISODE)})
        stream.height, stream.width = SIZE
        stream.pix_fmt = "yuv420p"
        for _ in range(frames):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(_picture(rng), format="rgb24")))
        container.mux(stream.encode())
    return root


def _joints(rng: np.random.Generator, frames: int) -> np.ndarray:
    return np.stack([np.arange(frames) % EPISODE / EPISODE, rng.uniform(size=frames)], axis=1)


def _picture(rng: np.random.Generator) -> np.ndarray:
    return rng.integers(0, 256, (*SIZE, 3)).astype(np.uint8)
