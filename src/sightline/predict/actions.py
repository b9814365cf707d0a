"""Actions of a trained policy for the frames of a recording, of packed views, or of recorded videos."""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor
from tqdm import tqdm

from sightline.core.errors import UserError
from sightline.core.files import atomic_output, file_sha256
from sightline.fusion.chunks import extras_of, read_features
from sightline.fusion.policy import PolicyConfig, check_views, load_policy
from sightline.fusion.views import ViewParams, Views, pack_views, square_view
from sightline.grids.features import check_features
from sightline.predict.data import BATCH, VIDEOS, check_suffix, count_pictures, is_video, read_video
from sightline.recording.split import DataParams, SplitParams
from sightline.training.processes import process_device
from sightline.validation.validation import validate_recording

JOINTS = "joints.npy"
Batch = tuple[Tensor, Tensor, dict[str, Tensor]]  # views uint8 [b, V, 3, S, S], joints [b, J], further inputs


@dataclass(frozen=True)
class _Frames:
    """Frames to act on: ``frame_id``, ``episode`` and ``step`` of each, and what the policy sees, in batches."""

    columns: dict[str, np.ndarray]
    batches: Iterator[Batch]


def act(policy_file: Path, data: Path, output: Path, features: Sequence[Path] = ()) -> int:
    """Predict a chunk of actions for every frame of a recording, of a file of views, or of videos -> how many.

    The table has the columns frame_id, episode, step and ``actions``, a list of steps, each a list of actions in data
    units; its schema's metadata say how many frames lie between steps. Frames without all their images are left out.

    Args:
        data: folder of a recording (no actions needed); a file written by ``sightline pack_views``; or a folder of
            ``joints.npy`` [N, J] and a video of N pictures of each camera, ``left_wrist.mp4`` and so on.
        features: files of the further inputs that the model was trained with.

    Raises:
        UserError: not a fusion model, another suffix, cameras, joints or further inputs other than in training.
    """
    check_suffix(output, ".parquet")
    policy, device = load_policy(policy_file), process_device()
    config, chunks = policy.config, []
    if not features:  # said before a recording is read
        check_features({}, config.extras, {}, policy_file)
    policy.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    with _open(data, config, policy_file, features) as frames, torch.inference_mode():
        total = -(-len(frames.columns["frame_id"]) // BATCH)
        for views, joints, extras in tqdm(frames.batches, desc="act", total=total, unit="batch", mininterval=0.5):
            further = {name: values.to(device) for name, values in extras.items()}
            chunks.append(policy(views.to(device), joints.to(device), further).cpu().numpy())
    chunks_NHA = np.concatenate(chunks)
    steps = pa.FixedSizeListArray.from_arrays(pa.array(chunks_NHA.reshape(-1)), chunks_NHA.shape[2])
    table = pa.table(frames.columns | {"actions": pa.FixedSizeListArray.from_arrays(steps, chunks_NHA.shape[1])})
    notes = {"policy_sha256": file_sha256(policy_file), "frames_between_steps": str(config.stride)}
    with atomic_output(output) as temporary:
        pq.write_table(table.replace_schema_metadata(notes), temporary)
    return len(chunks_NHA)


@contextmanager
def _open(data: Path, config: PolicyConfig, policy_file: Path, features: Sequence[Path]) -> Iterator[_Frames]:
    """The frames of ``data``, whichever kind it is."""
    if data.is_dir() and (data / JOINTS).is_file() and not (data / "recording.json").is_file():
        yield _of_videos(data, config, policy_file, features)
        return
    if data.is_dir():
        if not (data / "recording.json").is_file():
            raise UserError(
                f"{data}: neither a recording, which has recording.json (import_lerobot and import_hdf5 make one), nor "
                f"videos with {JOINTS}"
            )
        with tempfile.TemporaryDirectory() as folder:
            packed = Path(folder) / "views.hdf5"
            _pack(data, packed, ViewParams(cameras=config.cameras, image_size=config.image_size, fit=config.fit))
            yield _of_views(packed, data, config, policy_file, features)
        return
    if data.is_file() and not h5py.is_hdf5(data):
        alone = f"; a video needs a folder with {JOINTS}" if is_video(data) else ""
        raise UserError(
            f"{data}: act takes a recording, an HDF5 file of sightline pack_views, or a folder of {JOINTS} and a video "
            f"of each camera{alone}"
        )
    yield _of_views(data, data, config, policy_file, features)


def _of_views(packed: Path, data: Path, config: PolicyConfig, policy_file: Path, features: Sequence[Path]) -> _Frames:
    """Frames of a file of views that have all their images; ``data`` is what it was made of."""
    views = Views.open(packed)
    check_views(config, policy_file, views, data)
    extras, rows = read_features(features, views), np.flatnonzero(views.sound)
    check_features(extras, config.extras, config.makers, policy_file)
    parts = (rows[start : start + BATCH] for start in range(0, len(rows), BATCH))
    batches = (
        (torch.from_numpy(views.images[part]), torch.from_numpy(views.joints[part]),
         extras_of(extras, part, config.image_size))
        for part in parts
    )  # fmt: skip
    return _Frames({name: getattr(views, name)[rows] for name in ("frame_id", "episode", "step")}, batches)


def _of_videos(folder: Path, config: PolicyConfig, policy_file: Path, features: Sequence[Path]) -> _Frames:
    """Frames of a folder of videos: one episode, counted from 0."""
    if features or config.extras:
        what = ", ".join(config.extras) or "further inputs"
        raise UserError(f"{folder}: videos come without {what}; give a recording, or leave --feature out")
    joints_NJ = _read_joints(folder / JOINTS, config)
    videos = []
    for camera in () if config.design == "joints_only" else config.cameras:
        there = [path for suffix in VIDEOS if (path := folder / f"{camera}{suffix}").is_file()]
        if not there:
            raise UserError(f"{folder}: no video of {camera}, such as {camera}.mp4; {policy_file} looks at "
                            f"{', '.join(config.cameras)}")  # fmt: skip
        if (count := count_pictures(there[0])) != len(joints_NJ):
            raise UserError(f"{there[0]}: {count} pictures, but {JOINTS} has {len(joints_NJ)} rows; give as many")
        videos.append(read_video(there[0], "colour", policy_file))
    number = np.arange(len(joints_NJ))
    columns = {"frame_id": number, "episode": np.zeros_like(number), "step": number}
    return _Frames(columns, _batches_of_videos(videos, joints_NJ, config))


def _batches_of_videos(
    videos: Sequence[Iterator[np.ndarray]], joints_NJ: np.ndarray, config: PolicyConfig
) -> Iterator[Batch]:
    for start in range(0, len(joints_NJ), BATCH):
        joints = joints_NJ[start : start + BATCH]
        views = np.zeros((len(joints), len(config.cameras), 3, config.image_size, config.image_size), np.uint8)
        for camera, video in enumerate(videos):
            for row, picture in enumerate(islice(video, len(joints))):
                views[row, camera] = square_view(picture, config.image_size, config.fit)
        yield torch.from_numpy(views), torch.from_numpy(joints), {}


def _read_joints(path: Path, config: PolicyConfig) -> np.ndarray:
    """Joints float32 [N, J] of a file of numpy."""
    try:
        joints_NJ = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path}: not an array of numpy ({' '.join(str(error).split())})") from None
    count = len(config.joint_names)
    if joints_NJ.dtype.kind not in "iuf" or joints_NJ.ndim != 2 or joints_NJ.shape[1] != count or not len(joints_NJ):
        raise UserError(
            f"{path}: {joints_NJ.dtype} {list(joints_NJ.shape)}, expected numbers [frames, {count}]: "
            f"{', '.join(config.joint_names)}"
        )
    if not np.isfinite(joints_NJ).all():
        raise UserError(f"{path}: holds NaN or infinity; leave failed readings out, with their pictures")
    return joints_NJ.astype(np.float32)


def _pack(recording: Path, packed: Path, params: ViewParams) -> None:
    """Decode the views of a recording as for a training, with its joints in the place of actions."""
    index, whole = packed.with_name("index"), DataParams(on_error="skip", split=SplitParams(val=0, test=0))
    for piece in ("frames", *(f"rgb/{camera}" for camera in params.cameras)):
        validate_recording(recording, index, whole, only=piece)
    pack_views(recording, index, packed, params, target="joints")
