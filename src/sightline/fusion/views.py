"""The file of views: every frame of a recording as the fusion model takes it, decoded once.

    images    uint8   [N, V, 3, S, S]   RGB of each camera, made square; zeros where ``sound`` is False; absent if V = 0
    sound     bool    [N]               every camera has an image of the frame
    joints    float32 [N, J]
    actions   float32 [N, A]
    reward    float32 [N]               zeros where the recording has none
    frame_id, episode, step   int64 [N]   frame_id ascending
    split     S5      [N]               train, val or test, by whole episodes

Root attributes: ``cameras`` and ``joint_names`` (JSON), ``image_size`` (S), ``fit`` (how the views were made square),
``target`` (the column of the actions), ``has_reward``, ``recording`` (`sightline.recording.frames.recording_key`).
"""

import json
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast, get_args

import numpy as np
from PIL import Image
from pydantic import Field, field_validator

from sightline.core.errors import UserError
from sightline.core.files import atomic_output, claim, discard, fingerprint, scratch_folder
from sightline.core.hdf5 import create_contiguous, open_hdf5, open_rows, require
from sightline.core.parallel import unordered_map
from sightline.core.params import Section
from sightline.recording.frames import first_few, read_frames, read_index, read_recording_key
from sightline.recording.images import read_rgb
from sightline.recording.layout import MOST_VIEWS, read_recording_info
from sightline.recording.names import list_frames

_BLOCK = 64  # frames in a job
_NAMES = ("sound", "joints", "actions", "reward", "frame_id", "episode", "step", "split")
Fit = Literal["squash", "pad", "crop"]


class ViewParams(Section):
    """The views of a frame, as the fusion model takes them."""

    cameras: tuple[str, ...] = Field(
        ("left_wrist", "right_wrist", "global"),
        description="folders under rgb/, 0 to 8, in order; stages.pack has a list for each number",
    )
    image_size: int = Field(84, ge=16, le=512, description="side of the square views, pixels")
    fit: Fit = Field(
        "squash", description="how an oblong view becomes square: squash, pad (black), crop (central part)"
    )

    @field_validator("cameras")
    @classmethod
    def _are_different_and_few(cls, cameras: tuple[str, ...]) -> tuple[str, ...]:
        if len(cameras) > MOST_VIEWS or len(set(cameras)) < len(cameras):
            raise ValueError(f"at most {MOST_VIEWS} different cameras are taken, not {list(cameras)}")
        return cameras


@dataclass(frozen=True)
class Views:
    """An opened file of views; the images are memory-mapped."""

    path: Path
    images: np.ndarray
    sound: np.ndarray
    joints: np.ndarray
    actions: np.ndarray
    reward: np.ndarray
    frame_id: np.ndarray
    episode: np.ndarray
    step: np.ndarray
    split: np.ndarray  # str
    cameras: tuple[str, ...]
    joint_names: tuple[str, ...]
    has_reward: bool
    fit: Fit  # see `ViewParams`
    recording: str  # "" in files of older versions

    @classmethod
    def open(cls, path: Path) -> "Views":
        """Open for reading. Raises `UserError` where ``path`` is not a file that `pack_views` wrote.

        Joints, actions and rewards of another precision become float32; images must be uint8.
        """
        with open_hdf5(path, "the file that sightline pack_views makes of it") as file:
            if not set(_NAMES) <= set(file):
                raise UserError(f"{path}: not a file of views; write one with sightline pack_views")
            arrays = {name: file[name][:] for name in _NAMES}
            cameras, joints = (tuple(json.loads(file.attrs[name])) for name in ("cameras", "joint_names"))
            fit, recording = str(file.attrs.get("fit", "squash")), str(file.attrs.get("recording", ""))
            has_reward = bool(file.attrs["has_reward"])
            arrays["split"] = arrays["split"].astype(str)
            if cameras:
                rows: np.ndarray = file.rows("images")
            else:
                size = int(file.attrs["image_size"])
                rows = np.zeros((len(arrays["sound"]), 0, 3, size, size), np.uint8)
        kinds = {"sound": "b", "joints": "f", "actions": "f", "reward": "f", "split": "U"}
        axes = {"joints": 2, "actions": 2}
        columns = {name: (values, kinds.get(name, "i"), axes.get(name, 1)) for name, values in arrays.items()}
        require(path, {"images": (rows, "u", 5), **columns})
        images = np.asarray(rows)
        if images.dtype != np.uint8 or images.shape[1:3] != (len(cameras), 3):
            raise UserError(
                f"{path}: views are {images.dtype} {list(images.shape[1:])}, not uint8 [{len(cameras)}, 3, S, S]; "
                "write it again with sightline pack_views"
            )
        arrays |= {name: arrays[name].astype(np.float32, copy=False) for name in ("joints", "actions", "reward")}
        if fit not in get_args(Fit):
            raise UserError(f"{path}: fit is {fit!r}, not {' or '.join(get_args(Fit))}; write it again")
        return cls(
            path, images, **arrays, cameras=cameras, joint_names=joints, has_reward=has_reward, fit=cast(Fit, fit),
            recording=recording,
        )  # fmt: skip

    def rows(self, part: str) -> np.ndarray:
        """Rows of the frames in a part of the split that have all their images, int64, ascending."""
        return np.flatnonzero((self.split == part) & self.sound)


def pack_views(
    recording: Path,
    index_dir: Path,
    output: Path,
    params: ViewParams,
    target: str = "actions",
    processes: int | None = None,
) -> dict[str, Any]:
    """Decode the views of every frame once, to ``output`` -> figures. An interrupted run continues where it was.

    Args:
        recording: folder of the recording.
        index_dir: what sightline validate wrote: frames.parquet with the split, rgb/<camera>.parquet of sound images.
        params: without cameras, only joints and actions are packed, and every frame is sound.
        target: column of frames.parquet that holds the actions.
        processes: number of processes that decode; None takes one per core.

    Raises:
        UserError: no such camera, column or index, images that cannot be read, no frame with all its images.
    """
    info = read_recording_info(recording / "recording.json")
    unknown = [camera for camera in params.cameras if camera not in info.cameras]
    if unknown:
        cameras = ", ".join(info.cameras) or "none"
        raise UserError(f"views.cameras: {', '.join(unknown)} not in {recording}/recording.json, which has: {cameras}")
    frames = read_frames(recording / "frames.parquet", info)
    for column in ("joints", target):
        if column not in frames:
            raise UserError(f"{recording}/frames.parquet: no column {column}; without demonstrations set "
                            "stages.demonstrations and the lists of stages.pack to []")  # fmt: skip
    split = read_index(index_dir / "frames.parquet").set_index("frame_id")["split"]
    frames = frames[frames["frame_id"].isin(split.index)].reset_index(drop=True)
    ids = frames["frame_id"].to_numpy(np.int64)
    sound = np.ones(len(frames), bool)
    for camera in params.cameras:
        sound &= np.isin(ids, read_index(index_dir / f"rgb/{camera}.parquet")["frame_id"])
    if not sound.any():
        raise UserError(f"{recording}: no frame has an image of each of {', '.join(params.cameras)}")
    if not sound.all():
        lacking = f"{(~sound).sum()} of {len(sound)} frames lack an image (frames {first_few(ids[~sound])})"
        warnings.warn(f"{recording}: {lacking}: not learnt from, but their actions are", stacklevel=2)
    names = info.joints or tuple(f"joint_{i}" for i in range(len(frames["joints"][0])))
    key = read_recording_key(index_dir / "frames.parquet")
    attributes = {
        "cameras": json.dumps(params.cameras),
        "joint_names": json.dumps(names),
        "image_size": params.image_size,
        "fit": params.fit,
        "target": target,
        "has_reward": "reward" in frames,
        **({"recording": key} if key else {}),
    }
    shape = (len(frames), len(params.cameras), 3, params.image_size, params.image_size)
    filled = {
        "sound": sound,
        "joints": np.stack(frames["joints"].tolist()).astype(np.float32),
        "actions": np.stack(frames[target].tolist()).astype(np.float32),
        "reward": np.asarray(frames["reward"] if "reward" in frames else np.zeros(len(frames)), np.float32),
        "frame_id": ids,
        "episode": frames["episode"].to_numpy(np.int64),
        "step": frames["step"].to_numpy(np.int64),
        "split": split.loc[ids].to_numpy().astype("S5"),
    }
    figures = {
        "frames": len(frames),
        "episodes": int(frames["episode"].nunique()),
        "without_images": int((~sound).sum()),
        "joints": filled["joints"].shape[1],
        "actions": filled["actions"].shape[1],
    }
    if not params.cameras:
        with atomic_output(output) as temporary:
            create_contiguous(temporary, {}, filled, attributes)
        return figures
    listed = [list_frames(recording / "rgb" / camera) for camera in params.cameras]
    paths = [[images[i] for images in listed] if ok else None for i, ok in zip(ids.tolist(), sound, strict=True)]
    scratch = _prepared(paths, shape, params.fit)
    _decode(paths, scratch, params, processes)
    decoded = open_rows(scratch / "images.hdf5", "images")
    with atomic_output(output) as temporary:
        create_contiguous(temporary, {"images": (shape, np.uint8)}, filled, attributes)
        rows = open_rows(temporary, "images", "r+")
        for start in range(0, len(rows), _BLOCK):
            rows[start : start + _BLOCK] = decoded[start : start + _BLOCK]
        rows.flush()
    discard(scratch)
    return figures


def _prepared(paths: list[list[Path] | None], shape: tuple[int, ...], fit: Fit) -> Path:
    """Scratch folder of these files at this size, with a file of images that may be filled in part."""
    files = [[(str(p.resolve()), p.stat().st_size, p.stat().st_mtime_ns) for p in row or ()] or None for row in paths]
    scratch = claim(scratch_folder("pack_views", fingerprint(files, shape, fit)))
    if not (scratch / "images.hdf5").exists():
        with atomic_output(scratch / "images.hdf5") as temporary:
            create_contiguous(temporary, {"images": (shape, np.uint8)}, {}, {})
            rows = open_rows(temporary, "images", "r+")
            rows[[i for i, row in enumerate(paths) if row is None]] = 0
            rows.flush()
    return scratch


def _decode(paths: list[list[Path] | None], scratch: Path, params: ViewParams, processes: int | None) -> None:
    """Fill the file of images; blocks in the journal are done."""
    journal = scratch / "done.txt"
    done = {int(line) for line in journal.read_text().splitlines()} if journal.exists() else set()
    blocks = {start: paths[start : start + _BLOCK] for start in range(0, len(paths), _BLOCK) if start not in done}
    settings = params.image_size, params.fit
    jobs = [((scratch, start, block, *settings), len(block)) for start, block in blocks.items()]
    faults: list[str] = []
    with open(journal, "a", encoding="utf-8") as file:
        for start, broken in unordered_map(
            _decode_block, jobs, total=len(paths), unit="frame", title="decode views", processes=processes
        ):
            faults += broken
            if not broken:
                file.write(f"{start}\n")
                file.flush()
    if faults:
        lines = "\n  ".join(sorted(faults))
        raise UserError(f"{len(faults)} frames cannot be read; run sightline validate again\n  {lines}")


def _decode_block(job: tuple[Path, int, Sequence[list[Path] | None], int, Fit]) -> tuple[int, list[str]]:
    scratch, start, paths, size, fit = job
    rows, faults = open_rows(scratch / "images.hdf5", "images", "r+"), []
    for row, files in enumerate(paths, start):
        for view, path in enumerate(files or ()):
            try:
                picture = read_rgb(path)
            except UserError as error:
                faults.append(str(error))
                continue
            rows[row, view] = square_view(picture, size, fit)
    rows.flush()
    return start, faults


def square_view(picture: np.ndarray, size: int, fit: Fit) -> np.ndarray:
    """A picture, uint8 [H, W, 3] of any size -> the view that a model takes, uint8 [3, size, size]."""
    image = _square(Image.fromarray(picture), fit)
    method = Image.Resampling.BOX if min(image.size) > size else Image.Resampling.BICUBIC
    return np.asarray(image.resize((size, size), method)).transpose(2, 0, 1)


def _square(image: Image.Image, fit: Fit) -> Image.Image:
    """The part of a picture that becomes the view: with ``squash`` all of it, not square yet."""
    width, height = image.size
    if fit == "squash" or width == height:
        return image
    side = max(width, height) if fit == "pad" else min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    return image.crop((left, top, left + side, top + side))  # beyond the border it is black
