"""Data sets of demonstrations, written in the layouts that their formats document, and checks of what is imported."""

import io
import json
from collections.abc import Callable, Iterable
from pathlib import Path

import av
import h5py
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from sightline.core.errors import UserError
from sightline.importers.demonstrations import ImportOptions

FPS, STEPS, EPISODES, HEIGHT, WIDTH = 10, 6, 2, 48, 64
KEYS = ("observation.images.left", "observation.images.top")
NAMES = ("pan.pos", "lift.pos", "grip.pos")
CODEC_ERROR = 3.0  # mean difference of a picture that went through a video, grey levels
ONE = ImportOptions(processes=1)
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"


def picture(camera: int, episode: int, step: int) -> np.ndarray:
    """A smooth picture, uint8 [48, 64, 3], unlike that of any other camera, episode or step."""
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    red = 40 + 30 * step + 0.5 * x
    green = 30 + 90 * camera + y
    return np.stack([red, green, np.full_like(red, 60 + 80 * episode)], axis=-1).clip(0, 255).astype(np.uint8)


def write_video(
    path: Path,
    pictures: Iterable[np.ndarray],
    index_first: bool = False,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # a key frame at every fourth, so that an episode of a longer video begins between two of them
    options = {"crf": "8", "g": "4"} if codec == "libx264" else {}
    with av.open(str(path), "w", options={"movflags": "faststart"} if index_first else {}) as container:
        stream = container.add_stream(codec, rate=FPS, options=options)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, pix_fmt
        for pixels in pictures:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())


def joints_of(episode: int) -> np.ndarray:
    return (np.arange(STEPS * 3).reshape(STEPS, 3) + 100 * episode).astype(np.float32)


def rows_of(episode: int) -> dict[str, object]:
    return {
        "observation.state": list(joints_of(episode)),
        "action": list(joints_of(episode)[:, :2] + 0.5),
        "next.reward": np.linspace(0, 1, STEPS, dtype=np.float32),
        "next.success": np.arange(STEPS) == STEPS - 1,
        "timestamp": np.arange(STEPS, dtype=np.float32) / FPS,
        "frame_index": np.arange(STEPS),
        "episode_index": np.full(STEPS, episode),
        "index": np.arange(STEPS) + episode * STEPS,
    }


def write_info(root: Path, version: str, patterns: dict[str, str], dtype: str) -> None:
    camera = {"dtype": dtype, "shape": [HEIGHT, WIDTH, 3], "names": ["height", "width", "channels"]}
    features = {
        "observation.state": {"dtype": "float32", "shape": [3], "names": list(NAMES)},
        "action": {"dtype": "float32", "shape": [2], "names": {"motors": ["a", "b"]}},
        **{key: camera | {"info": {"video.is_depth_map": False}} for key in KEYS},
        "next.reward": {"dtype": "float32", "shape": [1], "names": None},
        "next.success": {"dtype": "bool", "shape": [1], "names": None},
        **{key: {"dtype": "int64", "shape": [1], "names": None} for key in ("timestamp", "frame_index", "index")},
    }
    info = {"codebase_version": version, "fps": FPS, "total_episodes": EPISODES, "features": features, **patterns}
    (root / "meta").mkdir(parents=True)
    (root / "meta/info.json").write_text(json.dumps(info))


def lerobot_v2(root: Path, version: str = "v2.1", dtype: str = "video") -> Path:
    """A file for each episode, and each camera of it."""
    write_info(
        root,
        version,
        {
            "data_path": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
            "video_path": "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
        },
        dtype,
    )
    lines = [json.dumps({"episode_index": e, "tasks": ["lift"], "length": STEPS}) for e in range(EPISODES)]
    (root / "meta/episodes.jsonl").write_text("\n".join(lines) + "\n")
    (root / "data/chunk-000").mkdir(parents=True)
    for episode in range(EPISODES):
        rows = rows_of(episode)
        for camera, key in enumerate(KEYS):
            pictures = [picture(camera, episode, step) for step in range(STEPS)]
            if dtype == "video":
                write_video(root / f"videos/chunk-000/{key}/episode_{episode:06d}.mp4", pictures)
            else:
                rows[key] = [{"bytes": encode(pixels, "PNG"), "path": None} for pixels in pictures]
        pd.DataFrame(rows).to_parquet(root / f"data/chunk-000/episode_{episode:06d}.parquet")
    return root


def lerobot_v3(root: Path, version: str = "v3.0") -> Path:
    """All episodes in one file, and in one video for each camera."""
    write_info(
        root,
        version,
        {
            "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
            "video_path": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
        },
        "video",
    )
    (root / "data/chunk-000").mkdir(parents=True)
    rows = pd.concat([pd.DataFrame(rows_of(episode)) for episode in range(EPISODES)])
    rows.to_parquet(root / "data/chunk-000/file-000.parquet", index=False)
    episodes = []
    for episode in range(EPISODES):
        row = {"episode_index": episode, "tasks": ["lift"], "length": STEPS}
        row |= {"data/chunk_index": 0, "data/file_index": 0, "dataset_from_index": episode * STEPS}
        for key in KEYS:
            start = episode * STEPS / FPS
            place = {"chunk_index": 0, "file_index": 0, "from_timestamp": start, "to_timestamp": start + STEPS / FPS}
            row |= {f"videos/{key}/{name}": value for name, value in place.items()}
        episodes.append(row)
    (root / "meta/episodes/chunk-000").mkdir(parents=True)
    pd.DataFrame(episodes).to_parquet(root / "meta/episodes/chunk-000/file-000.parquet")
    for camera, key in enumerate(KEYS):
        pictures = [picture(camera, episode, step) for episode in range(EPISODES) for step in range(STEPS)]
        write_video(root / f"videos/{key}/chunk-000/file-000.mp4", pictures)
    return root


LEROBOT: dict[str, Callable[[Path], Path]] = {
    "v2.0": lambda root: lerobot_v2(root, "v2.0"),
    "v2.1": lerobot_v2,
    "v2.1 images": lambda root: lerobot_v2(root, dtype="image"),
    "v3.0": lerobot_v3,
}


def encode(pixels: np.ndarray, kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **({"quality": 98, "subsampling": 0} if kind == "JPEG" else {}))
    return buffer.getvalue()


def stored_pictures(camera: int, episode: int, storage: str) -> dict[str, object]:
    """Arguments of ``create_dataset`` for the pictures of one camera."""
    pictures = [picture(camera, episode, step) for step in range(STEPS)]
    if storage == "plain":
        return {"data": np.stack(pictures)}
    encoded = [np.frombuffer(encode(pixels, "JPEG"), np.uint8) for pixels in pictures]
    if storage == "lengths":
        ragged = np.empty(STEPS, object)
        ragged[:] = encoded
        return {"data": ragged, "dtype": h5py.vlen_dtype(np.uint8)}
    longest = max(map(len, encoded))
    return {"data": np.stack([np.pad(data, (0, longest - len(data))) for data in encoded])}


def aloha(root: Path, storage: str = "plain", episodes: Iterable[int] = (0, 1)) -> Path:
    root.mkdir()
    for episode in episodes:
        with h5py.File(root / f"episode_{episode}.hdf5", "w") as file:
            file.attrs["sim"] = False
            file.attrs["compress"] = storage != "plain"
            file["observations/qpos"] = joints_of(episode).astype(np.float64)
            file["action"] = joints_of(episode)[:, :2] + 0.5
            for camera, name in enumerate(("cam_high", "cam_left_wrist")):
                file.create_dataset(f"observations/images/{name}", **stored_pictures(camera, min(episode, 1), storage))
    return root


def robomimic(path: Path, control_freq: int | None = 20) -> Path:
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        kwargs = {} if control_freq is None else {"control_freq": control_freq}
        data.attrs["env_args"] = json.dumps({"env_name": "Lift", "env_kwargs": kwargs})
        for episode in range(EPISODES):
            demo = data.create_group(f"demo_{episode}")
            demo.attrs["num_samples"] = STEPS
            demo["actions"] = joints_of(episode)[:, :2] + 0.5
            demo["rewards"] = np.linspace(0, 1, STEPS)
            demo["dones"] = np.zeros(STEPS, int)
            demo["obs/robot0_joint_pos"] = joints_of(episode)[:, :2]
            demo["obs/robot0_gripper_qpos"] = joints_of(episode)[:, 2:]
            for camera, name in enumerate(("agentview_image", "robot0_eye_in_hand_image")):
                demo.create_dataset(f"obs/{name}", **stored_pictures(camera, episode, "plain"))
    return path


def pixels_of(recording: Path, camera: str, frame_id: int) -> np.ndarray:
    return np.asarray(Image.open(recording / f"rgb/{camera}/{frame_id:06d}.png"))


def check_pictures(recording: Path, cameras: tuple[str, ...], tolerance: float) -> None:
    """Every picture is the one that was written, within what the codec loses."""
    for camera, name in enumerate(cameras):
        assert len(list((recording / "rgb" / name).iterdir())) == EPISODES * STEPS
        for frame_id in range(EPISODES * STEPS):
            expected = picture(camera, *divmod(frame_id, STEPS)).astype(float)
            error = np.abs(pixels_of(recording, name, frame_id) - expected).mean()
            assert error <= tolerance, f"{name} {frame_id}: {error}"


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def refused(convert: Callable[..., str], source: Path, *words: str, fps: float | None = None, **options) -> None:
    """The import fails with one line that has the ``words``, and leaves no output."""
    target = source.parent / "refused"
    with pytest.raises(UserError) as error:
        convert(source, target, ImportOptions(processes=1, **options), **({} if fps is None else {"fps": fps}))
    message = str(error.value)
    assert "\n" not in message
    assert all(word in message for word in words), message
    assert not target.exists()
    assert not list(source.parent.glob(".refused*"))


def edit_info(root: Path, change: Callable[[dict], object]) -> None:
    path = root / "meta/info.json"
    info = json.loads(path.read_text())
    change(info)
    path.write_text(json.dumps(info))


def edit_rows(path: Path, **columns: object) -> None:
    pd.read_parquet(path).assign(**columns).to_parquet(path)


def edit_hdf5(path: Path, **datasets: object) -> None:
    """Replace data sets, ``__`` standing for ``/``; None deletes."""
    with h5py.File(path, "a") as file:
        for name, data in datasets.items():
            del file[name.replace("__", "/")]
            if data is not None:
                file[name.replace("__", "/")] = data
