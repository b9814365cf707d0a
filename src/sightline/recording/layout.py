"""The layout of a recording on disk: ``recording.json`` and the folders of images.

<root>/recording.json                    what the recording is (`RecordingInfo`)
<root>/frames.parquet                    one row per frame, see `sightline.recording.frames`
<root>/rgb/<camera>/<frame_id:06d>.png   uint8 RGB, any size
<root>/depth/<frame_id:06d>.png          uint16, one channel, any size; of several cameras, with the same meaning of
                                         counts: <root>/depth/<camera>/<frame_id:06d>.png
<root>/masks/<frame_id:06d>.png          uint8 class ids, 255 = ignore; may be sparse or absent
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import AfterValidator, Field, ValidationError

from sightline.core.errors import UserError, all_faults
from sightline.core.files import write_json
from sightline.core.params import Section
from sightline.recording.depth import Count, Encoding, HeightRange

IGNORE = 255  # mask pixels of no class


class DepthInfo(Section):
    """How to read the depth images."""

    unit_mm: float = Field(gt=0, description="millimetres per raw count")
    invalid: tuple[Count, ...] = Field(description="raw counts that mean 'no reading'")
    height_range: HeightRange = Field(description="raw counts of the nearest and farthest depth of interest")
    encoding: Encoding | None = Field(
        default=None,
        exclude_if=lambda encoding: encoding is None,  # as in files that were written before there was this key
        description="how files hold a count: raw, rotr3 (bits rotated, SUN RGB-D), byteswap; None: not named, so raw",
    )


def _check_folder_name(name: str) -> str:
    if not re.fullmatch(r"\w[\w. -]*", name):
        raise ValueError(
            f"{name!r} names a folder; use letters, digits, spaces and _ - . only, the first none of these"
        )
    return name


def _are_different(names: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(names)) < len(names) or "" in names:
        raise ValueError(f"expected different names, not {list(names)}")
    return names


Names = Annotated[tuple[str, ...], AfterValidator(_are_different)]


class FusionWith(Section):
    """Fusion models with one more input: one for each design and feature."""

    designs: Names = Field(("joints_only",), description="fusion models, as in stages.designs")
    features: Names = Field(
        ("embeddings/depth.hdf5", "grids/efficientnet/global"),
        description="files or folders in data/ that stages make; normalized/depth.hdf5: depth as a channel; []: none",
    )


MOST_VIEWS = 8  # cameras of the fusion model
PACKS = {"views": (2, 4), "no_views": (0, 0), "one_view": (1, 1), "many_views": (4, MOST_VIEWS)}  # least, most cameras


class Packs(Section):
    """Which stage packs views: stages.demonstrations, in one of these lists."""

    views: Names = Field(("actions",), description="stages.demonstrations, where views.cameras names 2 to 4")
    no_views: Names = Field((), description="the same without cameras")
    one_view: Names = Field((), description="the same with 1 camera")
    many_views: Names = Field((), description="the same with 5 to 8 cameras, or 4")


def packs_for(targets: Sequence[str], cameras: int) -> dict[str, list[str]]:
    """The lists of `Packs` with all ``targets`` in that for so many cameras; all empty where none is."""
    fitting = next((name for name, (least, most) in PACKS.items() if least <= cameras <= most), None)
    return {name: list(targets) if name == fitting else [] for name in PACKS}


def check_pack(stage: str, cameras: int) -> None:
    """Raise `UserError` unless so many cameras are for the list that made ``stage``, which depends on their files.

    Args:
        stage: its name, such as pack_many_views@actions; others, as in a run by hand, are not checked.
    """
    match = re.search(rf"pack_({'|'.join(PACKS)})@(.+)", stage)
    if match is None:
        return
    name, target = match.groups()
    least, most = PACKS[name]
    if not least <= cameras <= most:
        few = f"{least} to {most}" if least < most else str(least)
        better = next((other for other, targets in packs_for([target], cameras).items() if targets), "none")
        raise UserError(
            f"views.cameras: {cameras} of them, but stages.pack.{name} is for {few}; move {target} to "
            f"stages.pack.{better}"
        )


class GridsOf(Section):
    """Grid features of colour images: for each name and camera, data/grids/<name>/<camera>."""

    names: Names = Field(("efficientnet", "clip"), description="sections of grids, each a network; []: no grids")
    cameras: Names = Field(("global",), description="folders under rgb/ whose images are encoded; []: no grids")


class StageLists(Section):
    """Lists that make stages, one for each entry; a longer list makes no other stage run again."""

    renamed: ClassVar[dict[str, str]] = {"cameras": "stages.grids.cameras"}

    images: Names = Field(
        ("depth", "masks", "rgb/left_wrist", "rgb/right_wrist", "rgb/global"), description="folders of images"
    )
    depth: Names = Field(("depth",), description="folders with depth images, depth or depth/<camera>; []: none")
    masks: Names = Field(("masks",), description="the folder with masks to learn a segmentation from; []: none")
    demonstrations: Names = Field(("actions",), description="columns of frames.parquet to learn from views; []: none")
    designs: Names = Field(
        ("stacked", "joints_only"), description="fusion models: stacked, separate, shared, images_only, joints_only"
    )
    rollouts: Names = Field(
        ("actions",), description="which demonstrations' models drive the simulated robot; []: none"
    )
    segmentation_with: Names = Field(
        ("grids/efficientnet/global",),
        description="features in data/, each for a segmentation with it as one more input; []: none",
    )
    volumes: Names = Field((), description="files data/volumes/<name>.hdf5 to learn a segmentation from; []: none")
    grids: GridsOf = GridsOf()
    fusion_with: FusionWith = FusionWith()
    pack: Packs = Packs()


class RecordingInfo(Section):
    """Content of ``recording.json``."""

    fps: float = Field(gt=0, description="frames per second")
    cameras: tuple[Annotated[str, AfterValidator(_check_folder_name)], ...] = Field(
        description="names of the folders under rgb/"
    )
    joints: tuple[str, ...] = Field(description="names of the joint states, in the order of the joints column")
    classes: tuple[str, ...] = Field(default=(), description="mask class names; the position is the class id")
    depth: DepthInfo | None = None


def read_recording_info(path: Path) -> RecordingInfo:
    """Read ``recording.json``. Raises `UserError` with a line for each key that is wrong."""
    try:
        return RecordingInfo.model_validate_json(json.dumps(json.loads(path.read_text(encoding="utf-8"))))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    except json.JSONDecodeError as error:
        raise UserError(f"{path}: not valid JSON: {error}") from None
    except ValidationError as error:
        raise UserError("\n".join(f"{path}: {fault}" for fault in all_faults(error))) from None


def read_info(recording: Path) -> RecordingInfo:
    """Read ``recording.json``. Raises `UserError` with its faults, and those of ``frames.parquet`` beside them."""
    try:
        return read_recording_info(recording / "recording.json")
    except UserError as error:
        faults = [str(error)]
    from sightline.recording.frames import read_frames  # imports pandas, which takes long

    try:
        read_frames(recording / "frames.parquet")
    except UserError as error:
        faults.append(str(error))
    raise UserError("\n".join(faults))


def write_recording_info(path: Path, info: RecordingInfo) -> None:
    """Write ``recording.json``."""
    write_json(path, info.model_dump(mode="json"))
