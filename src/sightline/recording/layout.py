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
from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import AfterValidator, Field, ValidationError

from sightline.core.errors import UserError, first_fault
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
    """Fusion models with one more input, a precomputed feature: one for each design and feature."""

    designs: Names = Field(("joints_only",), description="fusion models, as in stages.designs")
    features: Names = Field(
        ("embeddings/depth.hdf5", "grids/efficientnet/global"),
        description="files or folders in data/ that stages make; []: none",
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
        ("nine", "joints_only"), description="fusion models: nine, three, shared, images_only, joints_only"
    )
    segmentation_with: Names = Field(
        ("grids/efficientnet/global",),
        description="features in data/, each for a segmentation with it as one more input; []: none",
    )
    grids: GridsOf = GridsOf()
    fusion_with: FusionWith = FusionWith()


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
    """Read ``recording.json``. Raises `UserError` naming the file and the key that is wrong."""
    try:
        return RecordingInfo.model_validate_json(json.dumps(json.loads(path.read_text(encoding="utf-8"))))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    except json.JSONDecodeError as error:
        raise UserError(f"{path}: not valid JSON: {error}") from None
    except ValidationError as error:
        raise UserError(f"{path}: {first_fault(error)}") from None


def write_recording_info(path: Path, info: RecordingInfo) -> None:
    """Write ``recording.json``."""
    write_json(path, info.model_dump(mode="json"))
