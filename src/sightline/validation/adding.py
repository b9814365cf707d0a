"""Take a recording into the pipeline: check it whole, track it with DVC, and write the parameters for it."""

import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from sightline.core.errors import UserError
from sightline.core.files import atomic_output
from sightline.core.params import Section, load_params
from sightline.core.params_text import with_values
from sightline.recording.layout import IGNORE, MOST_VIEWS, StageLists, packs_for
from sightline.recording.split import DataParams
from sightline.validation.parameters import (
    Contents,
    MaskCamera,
    ViewCameras,
    check_parameters,
    made_depth,
    made_features,
)
from sightline.validation.tracking import place, track, tracked
from sightline.validation.validation import depth_folders, validate_recording

PARAMS = Path("params.yaml")


class Masks(MaskCamera):
    """Of the section ``segmentation``: what masks hold, and of which camera."""

    mask_values: dict[int, int] | None = Field(None, description="{value: class id, or 255: ignored}")


class Parameters(Section):
    """What is changed, and what a recording is checked with."""

    data: DataParams = DataParams()
    stages: StageLists = StageLists()
    segmentation: Masks = Masks()
    views: ViewCameras = ViewCameras()


def add_recording(
    recording: Path, mask_camera: str | None = None, views: Sequence[str] | None = None, processes: int | None = None
) -> str:
    """Check a recording of this project, track it, change ``params.yaml`` to it -> what was done, and what to do next.

    It can be run again when the recording has grown. Nothing is written unless the recording is sound.

    Args:
        recording: a folder below the working directory, which must be the project's root.
        mask_camera: the camera whose images the masks belong to; None where there is one, or an earlier call was told.
        views: cameras of the fusion model, in order; None takes what an earlier call was told, or all there are.
        processes: number of processes that read images; None takes one per core.

    Raises:
        UserError: the folder is elsewhere, or a stage makes it; the recording is not sound, or does not say what an
            argument must; an argument that it has no use for; parameters that do not fit; DVC refuses to track it.
    """
    # what is refused in a moment
    root = _inside(recording)
    params, contents = load_params(Parameters, PARAMS), Contents.read(root)
    folders = _folders(contents)
    pieces = [root / "recording.json", root / "frames.parquet", *(root / folder for folder in folders)]
    _refuse_to_track(root, pieces)
    values, remarks = choose(contents, folders, params, mask_camera, views)
    text = PARAMS.read_bytes().decode("utf-8")
    new_text = with_values(text, values, str(PARAMS))
    # what takes as long as reading all images
    with tempfile.TemporaryDirectory() as index:
        metrics = validate_recording(root, Path(index), params.data, processes=processes)
    if values["stages.masks"] and IGNORE not in (params.segmentation.mask_values or {}):
        _refuse_ignored(root / "masks", metrics["masks"])
    lists = _with_lists(params.stages, values)
    camera = values.get("segmentation.camera", params.segmentation.camera)
    cameras = tuple(values.get("views.cameras", params.views.cameras))
    check_parameters(root, lists, camera, cameras)
    # the parameters last: they never name what is not tracked
    track(pieces)
    if new_text != text:
        with atomic_output(PARAMS.resolve()) as temporary:
            temporary.write_bytes(new_text.encode("utf-8"))
    counts = metrics["frames"]
    return "\n".join(
        [
            f"{root}: {counts['episodes']} episodes, {counts['frames']} frames; DVC tracks",
            *(f"  {path}" for path in pieces),
            f"In {PARAMS}{'' if new_text != text else ', as before'}:",
            *(f"  {name}: {_shown(new)}{remarks.get(name, '')}" for name, new in values.items()),
            "Next:",
            f"  git add {PARAMS} {root}",
            f'  git commit -m "Use {root}"',
            "  dvc repro",
        ]
    )


def choose(
    contents: Contents,
    folders: list[str],
    params: Parameters,
    mask_camera: str | None,
    views: Sequence[str] | None,
) -> tuple[dict[str, Any], dict[str, str]]:
    """Parameters that follow from a recording with these ``folders`` of images, and remarks on some -> by dotted name.

    Raises:
        UserError: the recording does not say what an argument must, or has no use for one.
    """
    root, cameras, lists, remarks = contents.root, list(contents.info.cameras), params.stages, dict[str, str]()
    values: dict[str, Any] = {"data.root": root.as_posix(), "stages.images": folders}
    # one depth camera makes an autoencoder of its own, which takes long: as with grids, more of them when asked for
    depth = [folder for folder in folders if folder.split("/")[0] == "depth"]
    values["stages.depth"] = [folder for folder in lists.depth if folder in depth] or depth[:1]
    if len(depth) > 1:
        remarks["stages.depth"] = f"  (an autoencoder for each; there are {', '.join(depth)})"
    # grids go on with the cameras that they are of; more of them are hours of work that nobody asked for
    encoded = [camera for camera in lists.grids.cameras if camera in cameras] or cameras[:1]
    values["stages.grids.cameras"] = encoded
    if encoded and encoded != list(lists.grids.cameras):
        remarks["stages.grids.cameras"] = "  (their images are encoded; change the list for others)"
    # masks belong to the images of one camera
    values["stages.masks"] = ["masks"] if "masks" in folders and cameras else []
    if values["stages.masks"]:
        values["segmentation.camera"] = _mask_camera(contents, params, mask_camera)
    elif mask_camera is not None:
        raise UserError(f"--mask-camera {mask_camera}: {root} has no masks of a camera's images; leave it out")
    elif "masks" in folders:
        remarks["stages.masks"] = "  (the segmentation needs the camera's images)"
    # the fusion model learns actions from the joints and any cameras
    columns = [column for column in lists.demonstrations if contents.has_numbers(column)]
    if not columns and contents.has_numbers("actions"):
        columns = ["actions"]
    lacking = [] if columns else ["actions"]
    lacking += [] if contents.has_numbers("joints") else ["joints"]
    values["stages.demonstrations"] = columns = [] if lacking else columns
    count = len(params.views.cameras)
    if not lacking:
        values["views.cameras"] = _views(contents, params, views)
        count = len(values["views.cameras"])
        if not count:
            values["stages.designs"] = values["stages.fusion_with.designs"] = ["joints_only"]
            remarks["stages.designs"] = "  (the others need a camera)"
    elif views is not None:
        needs = f"lacks {' and '.join(lacking)}, which the fusion model needs"
        raise UserError(f"--views {' '.join(views)}: {root} {needs}; leave it out")
    else:
        remarks["stages.demonstrations"] = f"  (the fusion model needs {' and '.join(lacking)})"
    values |= {f"stages.pack.{name}": targets for name, targets in packs_for(columns, count).items()}
    values["stages.rollouts"] = []  # of the simulated recording alone, which a stage makes
    return values | _features(values, lists), remarks


def _features(values: dict[str, Any], lists: StageLists) -> dict[str, Any]:
    """The lists of features that trainings read, without those that are no longer made, or lie over other images."""
    grids = lists.grids.model_copy(update={"cameras": tuple(values["stages.grids.cameras"])})
    new = {"depth": tuple(values["stages.depth"]), "grids": grids}
    made, camera = made_features(lists.model_copy(update=new)), values.get("segmentation.camera")
    chosen: dict[str, Any] = {}
    if values["stages.masks"]:
        chosen["stages.segmentation_with"] = [
            feature for feature in lists.segmentation_with
            if feature in made and (feature == "embeddings/depth.hdf5" or feature.endswith(f"/{camera}"))
        ]  # fmt: skip
    if values["stages.demonstrations"]:
        made += made_depth(lists.model_copy(update=new)) if values["views.cameras"] else []
        chosen["stages.fusion_with.features"] = [feature for feature in lists.fusion_with.features if feature in made]
    return chosen


def _with_lists(lists: StageLists, values: dict[str, Any]) -> StageLists:
    """``lists`` with those among ``values``, which are by dotted name."""
    tree = lists.model_dump()
    for name, new in values.items():
        section, *names = name.split(".")
        if section == "stages":
            place = tree if len(names) == 1 else tree[names[0]]
            place[names[-1]] = tuple(new)
    return StageLists.model_validate(tree)


def _mask_camera(contents: Contents, params: Parameters, camera: str | None) -> str:
    cameras, present = contents.info.cameras, params.segmentation.camera
    if camera is None and len(cameras) == 1:
        return cameras[0]
    is_told = params.data.root == contents.root.as_posix() and params.stages.masks  # by an earlier call
    if camera is None and is_told and present in cameras:
        return present
    if camera is None:
        raise UserError(
            f"{contents.json}: does not say which camera's images the masks belong to; add --mask-camera NAME, one of "
            f"{contents.cameras}"
        )
    if camera not in cameras:
        raise UserError(f"--mask-camera {camera}: not a camera of {contents.json}, which has: {contents.cameras}")
    return camera


def _views(contents: Contents, params: Parameters, views: Sequence[str] | None) -> list[str]:
    cameras, present = contents.info.cameras, params.views.cameras
    is_told = params.data.root == contents.root.as_posix() and params.stages.demonstrations  # by an earlier call
    if views is None and is_told and set(present) <= set(cameras):
        return list(present)
    if views is None and len(cameras) > MOST_VIEWS:
        raise UserError(
            f"{contents.json}: {len(cameras)} cameras, and the fusion model takes {MOST_VIEWS} at most; add --views "
            f"NAME ..., some of {contents.cameras}"
        )
    views = cameras if views is None else views
    unknown = [camera for camera in views if camera not in cameras]
    if unknown:
        what = f"{', '.join(unknown)} not in {contents.json}, which has: {contents.cameras}"
        raise UserError(f"--views {' '.join(views)}: {what}")
    if len(set(views)) < len(views) or len(views) > MOST_VIEWS:
        raise UserError(f"--views {' '.join(views)}: name at most {MOST_VIEWS} different cameras")
    return list(views)


def _inside(recording: Path) -> Path:
    """The recording's path from the working directory, if it is a folder of the project there."""
    here = Path.cwd().resolve()
    if not (PARAMS.is_file() and Path(".dvc").is_dir()):
        raise UserError(f"{PARAMS}: not here, or not in the root of a DVC project; run this where dvc.yaml is")
    if not recording.is_dir():
        raise UserError(f"{recording}: no such folder")
    folder = recording.resolve()
    if not folder.is_relative_to(here) or folder == here:
        raise UserError(f"{recording}: lies outside this project, so DVC cannot track it; move or copy it to data/")
    name = folder.relative_to(here).as_posix()
    if not re.fullmatch(r"[\w./-]+", name):
        raise UserError(f"{name}: becomes part of commands in dvc.yaml; rename it, with letters, digits, _ - . only")
    return Path(name)


def _folders(contents: Contents) -> list[str]:
    """The folders of images that are there, or that recording.json says are."""
    info, masks = contents.info, contents.root / "masks"
    for camera in info.cameras:
        if re.search(r"\s", camera):
            raise UserError(
                f"{contents.json}: cameras: {camera!r} becomes part of commands in dvc.yaml; rename it without spaces, "
                "its folder too"
            )
    if masks.is_dir() and not info.classes:
        raise UserError(f"{contents.json}: names no classes, but there is {masks}; list their names under classes")
    folders = depth_folders(contents.root) if info.depth else []
    folders += ["masks"] if masks.is_dir() else []
    return folders + [f"rgb/{camera}" for camera in info.cameras]


def _refuse_to_track(root: Path, pieces: list[Path]) -> None:
    """Refuse a recording that a stage makes, that DVC tracks in one, or parts of which are tracked but not here."""
    owners = tracked()
    for folder in (root, *root.parents):
        if place(folder) in owners:
            raise UserError(f"{folder}.dvc: tracks all of {folder}, but stages need its parts: dvc remove {folder}.dvc")
    for piece in pieces:
        maker = owners.get(place(piece))
        if maker:
            raise UserError(f"{piece}: the stage {maker} makes it, so there is nothing to add; name your own recording")
    for path in sorted(owners):
        if path.is_relative_to(root.resolve()) and not path.exists():
            name = path.relative_to(Path.cwd().resolve())
            raise UserError(f"{name}: tracked, but not here; fetch it: dvc pull {name}, or: dvc remove {name}.dvc")


def _refuse_ignored(folder: Path, counts: dict[str, Any]) -> None:
    """Refuse masks that hold 0 and 255 alone: as black and white pictures, whose white would be "ignore"."""
    background, *others = counts["pixel_share"].values()
    if counts["ignored_share"] and background and not any(others):
        raise UserError(
            f'{folder}: the {counts["sound"]} masks hold 0 and {IGNORE} alone, and {IGNORE} means "ignore": nothing to '
            f"learn; if {IGNORE} is a class, set segmentation.mask_values={{{IGNORE}: 1}} in {PARAMS}"
        )


def _shown(value: Any) -> str:
    return f"[{', '.join(value)}]" if isinstance(value, list) else str(value)
