"""Importers of real demonstrations: a recording holds what the data set did; a mistake is one line and leaves nothing.

The data sets are written here, in the layouts that the formats document.
"""

import errno
import io
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import av
import h5py
import numpy as np
import pandas as pd
import pytest
from conftest import ROOT, only_error_line
from PIL import Image

from sightline.core.errors import UserError
from sightline.importers.episodes import import_hdf5
from sightline.importers.lerobot import VideoClip, import_lerobot
from sightline.recording.frames import read_frames
from sightline.recording.layout import RecordingInfo, read_recording_info
from sightline.recording.split import DataParams, SplitParams
from sightline.validation.validation import validate_recording

REAL_SET = ROOT.parent / "shared/data/robot_so101"
FPS, STEPS, EPISODES, HEIGHT, WIDTH = 10, 6, 2, 48, 64
KEYS = ("observation.images.left", "observation.images.top")
NAMES = ("pan.pos", "lift.pos", "grip.pos")
CODEC_ERROR = 3.0  # mean difference of a picture that went through a video, grey levels
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


def refused(convert: Callable[..., str], source: Path, *words: str, **options: object) -> None:
    """The import fails with one line that has the ``words``, and leaves no output."""
    target = source.parent / "refused"
    with pytest.raises(UserError) as error:
        convert(source, target, **{"processes": 1} | options)
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


@pytest.fixture
def v2(tmp_path: Path) -> Path:
    return lerobot_v2(tmp_path / "set")


@pytest.fixture
def v3(tmp_path: Path) -> Path:
    return lerobot_v3(tmp_path / "set")


@pytest.fixture
def decoded(monkeypatch) -> list[Path]:
    """The video of each frame that is decoded."""
    paths: list[Path] = []
    read = VideoClip.__iter__

    def note(clip):
        for pixels in read(clip):
            paths.append(clip.path)
            yield pixels

    monkeypatch.setattr(VideoClip, "__iter__", note)
    return paths


# What a data set holds is in the recording


@pytest.mark.parametrize("layout", LEROBOT)
def test_a_lerobot_set_becomes_a_sound_recording(layout, tmp_path):
    source, target = LEROBOT[layout](tmp_path / "set"), tmp_path / "recording"
    import_lerobot(source, target, processes=1)

    info = read_recording_info(target / "recording.json")
    assert info == RecordingInfo(fps=FPS, cameras=("left", "top"), joints=NAMES)
    frames = read_frames(target / "frames.parquet", info)
    assert frames["frame_id"].tolist() == list(range(EPISODES * STEPS))
    assert frames["episode"].tolist() == [0] * STEPS + [1] * STEPS
    assert np.allclose(frames["time_s"], np.tile(np.arange(STEPS) / FPS, EPISODES))
    joints = np.concatenate([joints_of(0), joints_of(1)])
    assert np.array_equal(np.stack(frames["joints"]), joints)
    assert np.array_equal(np.stack(frames["actions"]), joints[:, :2] + 0.5)
    assert np.allclose(frames["reward"], np.tile(np.linspace(0, 1, STEPS), EPISODES))
    assert frames["success"].tolist() == ([False] * (STEPS - 1) + [True]) * EPISODES
    check_pictures(target, info.cameras, 0 if "images" in layout else CODEC_ERROR)
    validate_recording(target, tmp_path / "index", DataParams(split=SplitParams(test=0)), processes=1)


@pytest.mark.parametrize("storage", ["plain", "padded", "lengths"])
def test_aloha_episodes_become_a_sound_recording(storage, tmp_path):
    target = tmp_path / "recording"
    import_hdf5(aloha(tmp_path / "set", storage), target, processes=1)

    info = read_recording_info(target / "recording.json")
    cameras = ("cam_high", "cam_left_wrist")
    assert info == RecordingInfo(fps=50, cameras=cameras, joints=("joint_0", "joint_1", "joint_2"))
    frames = read_frames(target / "frames.parquet", info)
    assert np.array_equal(np.stack(frames["joints"]), np.concatenate([joints_of(0), joints_of(1)]))
    assert np.allclose(frames["time_s"], np.tile(np.arange(STEPS) / 50, EPISODES))
    assert "reward" not in frames
    check_pictures(target, cameras, 0 if storage == "plain" else CODEC_ERROR)
    validate_recording(target, tmp_path / "index", DataParams(split=SplitParams(test=0)), processes=1)


def test_a_robomimic_file_becomes_a_sound_recording(tmp_path):
    target = tmp_path / "recording"
    joints = ["obs/robot0_joint_pos", "obs/robot0_gripper_qpos"]
    cameras = ["obs/robot0_eye_in_hand_image=wrist", "obs/agentview_image=global"]
    import_hdf5(robomimic(tmp_path / "demos.hdf5"), target, cameras, joints, processes=1)

    info = read_recording_info(target / "recording.json")
    assert (info.fps, info.cameras) == (20, ("global", "wrist"))
    frames = read_frames(target / "frames.parquet", info)
    assert np.array_equal(np.stack(frames["joints"]), np.concatenate([joints_of(0), joints_of(1)]))
    assert np.allclose(frames["reward"], np.tile(np.linspace(0, 1, STEPS), EPISODES))
    check_pictures(target, info.cameras, 0)
    validate_recording(target, tmp_path / "index", DataParams(split=SplitParams(test=0)), processes=1)


def test_episodes_are_ordered_by_number_and_added_ones_change_no_older_frame(tmp_path):
    source = aloha(tmp_path / "set", episodes=(2, 9))
    import_hdf5(source, tmp_path / "before", processes=1)
    shutil.copy(source / "episode_9.hdf5", source / "episode_10.hdf5")
    import_hdf5(source, tmp_path / "after", processes=1)

    before, after = (read_frames(tmp_path / name / "frames.parquet") for name in ("before", "after"))
    assert after["episode"].unique().tolist() == [2, 9, 10]
    assert after[: len(before)].equals(before)
    pictures = contents(tmp_path / "before/rgb")
    assert contents(tmp_path / "after/rgb").items() >= pictures.items()


def test_cameras_are_chosen_and_named_by_the_user(v2, tmp_path):
    text = import_lerobot(v2, tmp_path / "recording", ["observation.images.top=global"], processes=1)
    assert [path.name for path in (tmp_path / "recording/rgb").iterdir()] == ["global"]
    assert np.abs(pixels_of(tmp_path / "recording", "global", 7) - picture(1, 1, 1).astype(float)).mean() < CODEC_ERROR
    assert "stages.images: [rgb/global]" in text
    assert "stages.cameras: [global]" in text
    assert "stages.demonstrations: []  (the fusion model takes three cameras)" in text
    assert f"dvc add {tmp_path}/recording/recording.json" in text


@pytest.mark.parametrize("layout", ["v2.1", "v3.0", "aloha"])
def test_episodes_are_left_out(layout, tmp_path):
    source = aloha(tmp_path / "set") if layout == "aloha" else LEROBOT[layout](tmp_path / "set")
    convert = import_hdf5 if layout == "aloha" else import_lerobot
    refused(convert, source, "--skip 7", "0, 1", skip=[7])
    refused(convert, source, "no episode is left", skip=[0, 1])
    for broken in (*source.rglob("episode_000000.*"), *source.rglob("episode_0.hdf5")):
        broken.write_bytes(b"")
    convert(source, tmp_path / "recording", skip=[0], processes=1)
    assert read_frames(tmp_path / "recording/frames.parquet")["episode"].tolist() == [1] * STEPS
    pixels = pixels_of(tmp_path / "recording", "cam_high" if layout == "aloha" else "left", 0)
    assert np.abs(pixels - picture(0, 1, 0).astype(float)).mean() < CODEC_ERROR


def test_features_are_put_side_by_side(v2, tmp_path):
    import_lerobot(v2, tmp_path / "recording", joints=["observation.state", "next.reward"], processes=1)
    info = read_recording_info(tmp_path / "recording/recording.json")
    assert info.joints == ("joint_0", "joint_1", "joint_2", "joint_3")  # not all of them have names in the source
    assert np.stack(read_frames(tmp_path / "recording/frames.parquet", info)["joints"]).shape == (12, 4)


@pytest.mark.parametrize(("size", "shape"), [(24, (24, 32)), (0, (48, 64)), (224, (48, 64))])
def test_the_shorter_side_is_averaged_down_and_never_enlarged(size, shape, tmp_path):
    text = import_hdf5(aloha(tmp_path / "set"), tmp_path / "recording", size=size, processes=1)
    pixels = pixels_of(tmp_path / "recording", "cam_high", 3)
    factor = HEIGHT // shape[0]
    expected = picture(0, 0, 3).reshape(shape[0], factor, shape[1], factor, 3).mean((1, 3))
    assert np.abs(pixels - expected).max() <= 0.5
    assert ("averaged down to 24x32" if size == 24 else "as they were") in text


def test_red_and_blue_can_be_exchanged(tmp_path):
    import_hdf5(aloha(tmp_path / "set"), tmp_path / "recording", bgr=True, fps=30, processes=1)
    assert np.array_equal(pixels_of(tmp_path / "recording", "cam_high", 0), picture(0, 0, 0)[..., ::-1])
    assert read_recording_info(tmp_path / "recording/recording.json").fps == 30


def test_the_number_of_processes_changes_nothing(v3, tmp_path):
    for processes in (1, 2):
        import_lerobot(v3, tmp_path / f"recording{processes}", size=24, processes=processes)
    assert contents(tmp_path / "recording1") == contents(tmp_path / "recording2")


@pytest.mark.parametrize("name", ["lerobot", "hdf5"])
def test_the_scripts_say_what_to_do_next(name, stage, tmp_path):
    source = lerobot_v2(tmp_path / "set") if name == "lerobot" else aloha(tmp_path / "set")
    result = stage(f"import_{name}", source, "data/mine", "--size", 24, "--processes", 1)
    assert result.returncode == 0, result.stderr
    assert "2 episodes, 12 frames" in result.stdout
    assert "dvc add data/mine/recording.json data/mine/frames.parquet data/mine/rgb/" in result.stdout
    assert "data.root: data/mine\n" in result.stdout
    assert "stages.depth: []\n" in result.stdout
    again = stage(f"import_{name}", source, "data/mine")
    assert "data/mine: exists and is not an empty folder" in only_error_line(again)


@pytest.mark.skipif(not REAL_SET.is_dir(), reason="needs a real LeRobot data set")
def test_an_episode_of_a_real_set(tmp_path):
    source = tmp_path / "set"
    (source / "meta").mkdir(parents=True)
    for name in ("data", "videos"):
        (source / name).symlink_to(REAL_SET / name)
    shutil.copy(REAL_SET / "meta/info.json", source / "meta/info.json")
    edit_info(source, lambda info: info.update(total_episodes=1))
    (source / "meta/episodes.jsonl").write_text((REAL_SET / "meta/episodes.jsonl").read_text().splitlines()[4] + "\n")

    target = tmp_path / "recording"
    import_lerobot(source, target, ["observation.images.left=global"], size=64, processes=1)
    info = read_recording_info(target / "recording.json")
    assert (info.fps, len(info.joints), info.joints[5]) == (30, 12, "left_gripper.pos")
    frames = read_frames(target / "frames.parquet", info)
    assert len(frames) == len(list((target / "rgb/global").iterdir())) == 432
    assert pixels_of(target, "global", 431).shape == (64, 85, 3)


# Interruption


def test_finished_episodes_are_not_decoded_again(v2, decoded, tmp_path):
    broken = v2 / f"videos/chunk-000/{KEYS[1]}/episode_000001.mp4"
    sound = broken.read_bytes()
    broken.write_bytes(sound[: len(sound) // 2])
    refused(import_lerobot, v2, str(broken))

    broken.write_bytes(sound)
    decoded.clear()
    import_lerobot(v2, tmp_path / "refused", processes=1)
    counts = {number: sum(number in path.name for path in decoded) for number in ("000000", "000001")}
    assert counts == {"000000": len(KEYS), "000001": len(KEYS) * STEPS}  # of the first one, a look at its first frames
    check_pictures(tmp_path / "refused", ("left", "top"), CODEC_ERROR)
    assert not list((tmp_path / ".scratch/import").iterdir())


def test_other_settings_and_other_files_do_not_take_what_was_left(v2, tmp_path):
    last = v2 / f"videos/chunk-000/{KEYS[1]}/episode_000001.mp4"
    sound = last.read_bytes()
    last.write_bytes(b"")
    refused(import_lerobot, v2, str(last))
    last.write_bytes(sound)

    other = [picture(1, 1, step) for step in range(STEPS)]
    write_video(v2 / f"videos/chunk-000/{KEYS[0]}/episode_000000.mp4", other)
    import_lerobot(v2, tmp_path / "refused", size=24, processes=1)
    for camera, expected in (("left", other[2]), ("top", picture(1, 0, 2))):
        pixels = pixels_of(tmp_path / "refused", camera, 2)
        assert np.abs(pixels - expected.reshape(24, 2, 32, 2, 3).mean((1, 3))).mean() < CODEC_ERROR


def test_a_killed_import_leaves_nothing_that_looks_complete(v2, tmp_path):
    """Killed at the worst time, while the recording is put together."""
    script = (
        "import os, signal, sys; from pathlib import Path; from sightline.importers import lerobot\n"
        "link, calls = os.link, []\n"
        "def count(*paths):\n"
        "    calls.append(link(*paths))\n"
        "    if len(calls) == 9: os.kill(os.getpid(), signal.SIGKILL)\n"
        "os.link = count\n"
        "lerobot.import_lerobot(Path(sys.argv[1]), Path(sys.argv[2]), processes=1)\n"
    )
    environment = os.environ | {"DVC_ROOT": str(tmp_path)}
    target = tmp_path / "recording"
    command = [sys.executable, "-c", script, str(v2), str(target)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == -signal.SIGKILL, result.stderr
    assert not target.exists()

    import_lerobot(v2, target, processes=1)
    check_pictures(target, ("left", "top"), CODEC_ERROR)


def test_disks_without_links(v2, tmp_path, monkeypatch):
    import_lerobot(v2, tmp_path / "linked", processes=1)
    monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(PermissionError()))
    import_lerobot(v2, tmp_path / "copied", processes=1)
    assert contents(tmp_path / "copied") == contents(tmp_path / "linked")


def test_a_full_disk(v2, monkeypatch):
    def save(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", save)
    refused(import_lerobot, v2, "refused", "No space left on device")


# Mistakes


def test_not_a_lerobot_set(tmp_path):
    (tmp_path / "set").mkdir()
    refused(import_lerobot, tmp_path / "set", "not a LeRobot data set", "meta/info.json")
    refused(import_lerobot, tmp_path / "absent", "not a LeRobot data set", "meta/info.json")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda info: info.update(codebase_version="v1.6"), ("codebase_version", "v1.6", "v2.1, v3.0")),
        (lambda info: info.pop("fps"), ("fps",)),
        (lambda info: info.update(fps=0), ("fps",)),
        (lambda info: info.update(total_episodes=7), ("episodes.jsonl", "2 episodes", "7")),
        (lambda info: info.update(data_path="data/{oops}.parquet"), ("data_path", "oops", "episode_index")),
        (lambda info: info.pop("video_path"), ("video_path", KEYS[0])),
        (lambda info: info["features"].pop("action"), ("'action'", "observation.state", "--actions")),
        (lambda info: info["features"][KEYS[1]]["info"].update({"video.is_depth_map": True}), (KEYS[1], "depth")),
        (lambda info: info["features"][KEYS[1]].update(shape=[HEIGHT, WIDTH, 1]), (KEYS[1], "greyscale", "--camera")),
        (lambda info: [info["features"].pop(key) for key in KEYS], ("no camera",)),
        (lambda info: info["features"]["observation.state"].update(shape=[4]), ("observation.state", "4 numbers")),
    ],
)
def test_an_info_file_that_does_not_fit(change, words, v2):
    edit_info(v2, change)
    refused(import_lerobot, v2, *words)


def test_an_info_file_that_is_not_json(v2):
    (v2 / "meta/info.json").write_text("{")
    refused(import_lerobot, v2, "info.json", "not valid JSON")


@pytest.mark.parametrize(
    ("cameras", "words"),
    [
        (["front=global"], ("front", *KEYS)),
        ([f"{KEYS[0]}=a", f"{KEYS[1]}=a"], (*KEYS, "both be called a")),
        ([KEYS[0], KEYS[0]], ("twice",)),
        ([f"{KEYS[0]}=../up"], ("../up", "letters")),
    ],
)
def test_cameras_that_cannot_be(cameras, words, v2):
    refused(import_lerobot, v2, *words, cameras=cameras)


@pytest.mark.parametrize("place", ["meta/info.json", "meta/episodes.jsonl", "data/chunk-000/episode_000001.parquet",
                                   f"videos/chunk-000/{KEYS[0]}/episode_000001.mp4"])  # fmt: skip
def test_git_lfs_pointers(place, v2):
    (v2 / place).write_text(POINTER)
    refused(import_lerobot, v2, place, "git lfs pull")


def test_a_data_file_that_is_no_parquet(v2):
    (v2 / "data/chunk-000/episode_000000.parquet").write_text("rubbish")
    refused(import_lerobot, v2, "episode_000000.parquet", "not a parquet file")


@pytest.mark.parametrize(
    "place", ["data/chunk-000/episode_000001.parquet", f"videos/chunk-000/{KEYS[0]}/episode_000001.mp4"]
)
def test_missing_files(place, v2):
    (v2 / place).unlink()
    refused(import_lerobot, v2, place, "No such file")


@pytest.mark.parametrize("index_first", [False, True])
@pytest.mark.parametrize("kept", [0.0, 0.4, 0.9])
def test_truncated_videos(index_first, kept, v2):
    video = v2 / f"videos/chunk-000/{KEYS[0]}/episode_000001.mp4"
    write_video(video, [picture(0, 1, step) for step in range(STEPS)], index_first=index_first)
    data = video.read_bytes()
    video.write_bytes(data[: int(len(data) * kept)])
    refused(import_lerobot, v2, str(video))


@pytest.mark.parametrize("count", [STEPS - 1, STEPS + 1])
def test_pictures_and_rows_that_differ_in_number(count, v2):
    video = v2 / f"videos/chunk-000/{KEYS[1]}/episode_000001.mp4"
    write_video(video, [picture(1, 1, step) for step in range(count)])
    refused(import_lerobot, v2, str(video), f"{count} pictures", f"{STEPS} rows", "episode_000001.parquet")


def test_a_video_of_many_episodes_that_ends_too_early(v3):
    video = v3 / f"videos/{KEYS[1]}/chunk-000/file-000.mp4"
    write_video(video, [picture(1, 0, step) for step in range(2 * STEPS - 1)])
    refused(import_lerobot, v3, str(video), f"{STEPS - 1} pictures", f"{STEPS} rows", "episode 1")


def test_a_greyscale_video(v2):
    video = v2 / f"videos/chunk-000/{KEYS[0]}/episode_000000.mp4"
    write_video(video, [picture(0, 0, 0)] * STEPS, codec="ffv1", pix_fmt="gray")
    refused(import_lerobot, v2, "episode_000000.mp4", "greyscale")


def test_rows_that_are_not_what_the_episodes_say(v2):
    path = v2 / "data/chunk-000/episode_000001.parquet"
    pd.read_parquet(path)[:-1].to_parquet(path)
    refused(import_lerobot, v2, str(path), f"{STEPS - 1} rows", f"length {STEPS}")


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"observation.state": [np.full(3, np.nan, np.float32)] * STEPS}, ("joints", "6 of 6 rows", "NaN")),
        ({"timestamp": np.zeros(STEPS, np.float32)}, ("time does not rise", "5 of 6 rows")),
        ({"frame_index": np.arange(STEPS) * 2}, ("frame_index", "missing")),
        ({"observation.state": [np.zeros(2 + i % 2) for i in range(STEPS)]}, ("observation.state", "3 numbers")),
        ({"observation.state": ["a"] * STEPS}, ("observation.state", "3 numbers")),
        ({"observation.state": [None] * STEPS}, ("observation.state", "3 numbers")),
    ],
)  # fmt: skip
def test_rows_that_cannot_be_used(columns, words, v2):
    path = v2 / "data/chunk-000/episode_000001.parquet"
    edit_rows(path, **columns)
    refused(import_lerobot, v2, str(path), *words)


def test_a_column_that_is_missing(v2):
    path = v2 / "data/chunk-000/episode_000000.parquet"
    pd.read_parquet(path).drop(columns="action").to_parquet(path)
    refused(import_lerobot, v2, str(path), "no column action")


def test_episodes_that_lack_a_key(v2, tmp_path):
    (v2 / "meta/episodes.jsonl").write_text('{"episode_index": 0}\n{"episode_index": 1}\n')
    refused(import_lerobot, v2, "episodes.jsonl", "length")


def test_no_episodes_in_a_set_of_format_3(v3):
    shutil.rmtree(v3 / "meta/episodes")
    refused(import_lerobot, v3, "meta/episodes", "no episodes")


@pytest.mark.parametrize("size", [-1, -224])
def test_a_size_below_zero(size, v2):
    refused(import_lerobot, v2, "--size", size=size)


def test_a_target_that_is_not_empty_is_left_alone(v2, tmp_path):
    target = tmp_path / "recording"
    target.mkdir()
    (target / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="not an empty folder"):
        import_lerobot(v2, target, processes=1)
    assert contents(target) == {"notes.txt": b"mine"}
    (target / "notes.txt").unlink()
    import_lerobot(v2, target, processes=1)  # an empty one will do


def test_hdf5_sources_of_no_known_kind(tmp_path):
    (tmp_path / "empty").mkdir()
    refused(import_hdf5, tmp_path / "empty", "no episode_<i>.hdf5")
    refused(import_hdf5, tmp_path / "absent.hdf5", "absent.hdf5")
    refused(import_hdf5, aloha(tmp_path / "set") / "episode_0.hdf5", "a single ALOHA/ACT episode", "folder")
    with h5py.File(tmp_path / "other.hdf5", "w") as file:
        file["data"] = [1, 2]
    refused(import_hdf5, tmp_path / "other.hdf5", "not a robomimic file")


def test_hdf5_files_that_are_none(tmp_path):
    source = aloha(tmp_path / "set")
    (source / "episode_1.hdf5").write_text(POINTER)
    refused(import_hdf5, source, "episode_1.hdf5", "git lfs pull")
    (source / "episode_1.hdf5").write_bytes((source / "episode_0.hdf5").read_bytes()[:5000])
    refused(import_hdf5, source, "episode_1.hdf5", "HDF5")


GREY = np.zeros((STEPS, HEIGHT, WIDTH), np.uint8)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"observations__images": None}, ("observations/images",)),
        ({"observations__images__cam_high": None}, ("observations/images/cam_high", "known are", "observations/qpos")),
        ({"observations__images__cam_high": GREY}, ("cam_high", "not colour pictures", "--camera")),
        ({"observations__images__cam_high": GREY[..., None]}, ("cam_high", "not colour pictures")),
        ({"observations__images__cam_high": np.zeros((5, 4, 4, 3), np.uint8)}, ("5 pictures", "6 rows")),
        ({"observations__images__cam_high": np.ones((STEPS, 99), np.uint8)}, ("cam_high, picture 0", "not a picture")),
        ({"observations__qpos": np.full((STEPS, 3), np.nan)}, ("joints", "NaN")),
        ({"observations__qpos": np.zeros((STEPS, 4))}, ("4 joints", "episode_0.hdf5 has 3")),
        ({"observations__qpos": np.zeros((STEPS - 1, 3))}, ("5 rows of joints", "6 of actions")),
        ({"observations__qpos": np.zeros((STEPS, 3, 2))}, ("observations/qpos", "(6, 3, 2)")),
        ({"observations__qpos": None}, ("no data set observations/qpos", "known are action")),
        ({"action": np.zeros((STEPS, 5))}, ("5 actions", "episode_0.hdf5 has 2")),
    ],
)
def test_episode_files_that_do_not_fit(changes, words, tmp_path):
    source = aloha(tmp_path / "set")
    edit_hdf5(source / "episode_1.hdf5", **changes)
    refused(import_hdf5, source, "episode_1.hdf5", *words)


def test_no_pictures_in_the_first_episode(tmp_path):
    source = aloha(tmp_path / "set")
    edit_hdf5(source / "episode_0.hdf5", observations__images=None)
    refused(import_hdf5, source, "episode_0.hdf5", "observations/images")
    with h5py.File(source / "episode_0.hdf5", "a") as file:
        file.create_group("observations/images")
    refused(import_hdf5, source, "episode_0.hdf5", "no camera")


def test_a_robomimic_file_without_pictures_or_frequency(tmp_path):
    path = robomimic(tmp_path / "demos.hdf5", control_freq=None)
    refused(import_hdf5, path, "control_freq", "--fps")
    refused(import_hdf5, path, "--fps 0", fps=0.0)
    edit_hdf5(path, data__demo_1__rewards=None)
    refused(import_hdf5, path, "data/demo_1", "reward", fps=20.0)
    edit_hdf5(path, data__demo_0__obs__agentview_image=None, data__demo_0__obs__robot0_eye_in_hand_image=None)
    refused(import_hdf5, path, "no camera", fps=20.0)


def test_two_files_of_one_episode(tmp_path):
    source = aloha(tmp_path / "set")
    shutil.copy(source / "episode_1.hdf5", source / "episode_01.hdf5")
    refused(import_hdf5, source, "episode_01.hdf5", "episode_1.hdf5", "episode 1")
