"""Do the parameters fit the recording? Asked before anything else runs, of what is read in a moment.

Of the recording these are recording.json, the columns of frames.parquet, and whether the folders of images are there. A
section is checked only where a list in ``stages`` makes the stages that need it.
"""

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from sightline.core.errors import UserError
from sightline.core.files import require_file
from sightline.core.params import Excerpt
from sightline.recording.layout import MOST_VIEWS, PACKS, RecordingInfo, StageLists, packs_for, read_info
from sightline.recording.names import SUFFIXES
from sightline.validation.tracking import place, tracked

DESIGNS = ("stacked", "separate", "shared", "images_only", "joints_only")  # the fusion model's, by test
RENAMED = {"nine": "stacked", "three": "separate"}  # what they were called, by test
STATES = "states.hdf5"  # that the simulator leaves beside the frames


class MaskCamera(Excerpt):
    """Of the section ``segmentation``: whose images the masks belong to."""

    camera: str = Field("global", description="folder under rgb/ of the images that the masks belong to")


class ViewCameras(Excerpt):
    """Of the section ``views``: the cameras of the fusion model."""

    cameras: tuple[str, ...] = Field(
        ("left_wrist", "right_wrist", "global"),
        description="folders under rgb/, 0 to 8, in order; stages.pack has a list for each number",
    )


@dataclass(frozen=True)
class Contents:
    """What a recording says that it has."""

    root: Path
    info: RecordingInfo
    columns: dict[str, pa.DataType]  # of frames.parquet

    @classmethod
    def read(cls, root: Path) -> "Contents":
        """Read recording.json and the columns of frames.parquet. Raises `UserError` where one cannot be read."""
        info, table = read_info(root), root / "frames.parquet"
        require_file(table, "a parquet file")
        try:
            schema = pq.read_schema(table)
            return cls(root, info, dict(zip(schema.names, schema.types, strict=True)))
        except (OSError, ValueError, pa.ArrowException) as error:
            raise UserError(f"{table}: not a parquet file that can be read ({' '.join(str(error).split())})") from None

    @property
    def json(self) -> Path:
        return self.root / "recording.json"

    @property
    def cameras(self) -> str:
        """For messages: the names of its cameras."""
        return ", ".join(self.info.cameras) or "none"

    def has_numbers(self, column: str) -> bool:
        """Whether frames.parquet has a list of numbers in each row of ``column``."""
        kind = self.columns.get(column, pa.null())
        is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
        return is_list and (pa.types.is_integer(kind.value_type) or pa.types.is_floating(kind.value_type))


def check_parameters(
    recording: Path, stages: StageLists, mask_camera: str, views: tuple[str, ...]
) -> dict[str, list[str]]:
    """Hold the parameters against a recording -> what the stages will run on, by parameter.

    Args:
        recording: folder of the recording.
        mask_camera: ``segmentation.camera``.
        views: ``views.cameras``.

    Raises:
        UserError: recording.json or frames.parquet cannot be read; parameters that do not fit, with a line for each.
    """
    contents = Contents.read(recording)
    check = _Check(contents, stages)
    lines = [*check.images(), *check.depth(), *check.cameras(), *check.masks(mask_camera), *check.demonstrations(views)]
    lines += [*check.packs(len(views)), *check.designs(len(views)), *check.features(mask_camera)]
    lines += [*check.rollouts(), *check.volumes()]
    if lines:
        raise UserError("\n".join(lines))
    names = ["images", "depth", "masks", "demonstrations"]
    uses: dict[str, tuple[str, ...]] = {f"stages.{name}": getattr(stages, name) for name in names}
    uses |= {f"stages.grids.{key}": value for key, value in stages.grids}
    uses |= {"segmentation.camera": (mask_camera,)} if stages.masks else {}
    uses |= {"stages.segmentation_with": stages.segmentation_with} if stages.masks else {}
    uses |= {"stages.designs": stages.designs, "views.cameras": views} if stages.demonstrations else {}
    uses |= {"stages.rollouts": stages.rollouts} if stages.rollouts else {}
    uses |= {"stages.volumes": stages.volumes} if stages.volumes else {}
    uses |= {f"stages.fusion_with.{key}": value for key, value in stages.fusion_with if stages.demonstrations}
    return {name: list(values) for name, values in uses.items()}


def made_features(stages: StageLists) -> list[str]:
    """What the stages embed and clip_grids write below data/, that trainings may read."""
    grids = [f"grids/{name}/{camera}" for name in stages.grids.names for camera in stages.grids.cameras]
    return [f"embeddings/{folder}.hdf5" for folder in stages.depth] + grids


def made_depth(stages: StageLists) -> list[str]:
    """What the stage normalize writes below data/, that trainings of the fusion model may read as a channel."""
    return [f"normalized/{folder}.hdf5" for folder in stages.depth]


@dataclass(frozen=True)
class _Check:
    """Yields a line for each parameter that does not fit."""

    contents: Contents
    stages: StageLists

    def images(self) -> Iterator[str]:
        for folder in self.stages.images:
            fault = self._fault(folder)
            if fault:
                yield f"stages.images: {folder}, but {fault}; remove it from the list"

    def depth(self) -> Iterator[str]:
        for folder in self.stages.depth:
            fault = self._fault(folder) if folder != "masks" else "masks are not depth"
            if fault:
                yield f"stages.depth: [{folder}], but {fault}; set it to []"
            else:
                yield from self._unlisted("stages.depth", folder)

    def cameras(self) -> Iterator[str]:
        for name in self.stages.grids.names:
            if not re.fullmatch(r"\w+", name):
                yield f"stages.grids.names: {name!r} names a folder and a section; use letters, digits and _ only"
        yield from self._cameras("stages.grids.cameras", self.stages.grids.cameras)

    def masks(self, camera: str) -> Iterator[str]:
        for folder in self.stages.masks:
            fault = self._fault(folder)
            if folder != "masks":
                yield f"stages.masks: [{folder}], but masks are in the folder masks alone; set it to [masks] or []"
            elif fault:
                yield f"stages.masks: [{folder}], but {fault}; set it to []"
            else:
                yield from self._unlisted("stages.masks", folder)
                yield from self._cameras("segmentation.camera", [camera])

    def demonstrations(self, views: tuple[str, ...]) -> Iterator[str]:
        contents, key = self.contents, "stages.demonstrations"
        if not self.stages.demonstrations:
            return
        table = contents.root / "frames.parquet"
        for column in dict.fromkeys([*self.stages.demonstrations, "joints"]):
            if column not in contents.columns:
                needed = ", which the fusion model needs" if column not in self.stages.demonstrations else ""
                yield f"{key}: {table} has no column {column}{needed}; it has: {', '.join(contents.columns) or 'none'}"
            elif not contents.has_numbers(column):
                yield f"{key}: {column} of {table} holds {contents.columns[column]}, not a list of numbers in each row"
        if len(views) > MOST_VIEWS or len(set(views)) < len(views):
            yield (
                f"views.cameras: at most {MOST_VIEWS} different cameras are taken, not {list(views)}; {contents.json} "
                f"has: {contents.cameras}"
            )
        else:
            yield from self._cameras("views.cameras", views)

    def packs(self, cameras: int) -> Iterator[str]:
        """The stages that pack views depend on so many cameras, and make what the trainings read."""
        targets, lists = self.stages.demonstrations, dict(self.stages.pack)
        fitting = [name for name, (least, most) in PACKS.items() if least <= cameras <= most]
        packed = sorted(target for name in fitting for target in lists[name])
        others = [target for name in PACKS if name not in fitting for target in lists[name]]
        if cameras > MOST_VIEWS or (packed == sorted(targets) and not others):
            return
        changes = [
            f"-S 'stages.pack.{name}=[{','.join(new)}]'"
            for name, new in packs_for(targets, cameras).items()
            if new != list(lists[name])
        ]
        told = ", ".join(f"{name} [{', '.join(of_them)}]" for name, of_them in lists.items() if of_them)
        yield (
            f"stages.pack: {told or 'all lists are empty'}, but stages.demonstrations is [{', '.join(targets)}] and "
            f"views.cameras names {cameras}; set {' '.join(changes)}"
        )

    def designs(self, cameras: int) -> Iterator[str]:
        """Those of the fusion model, and whether they have images to see."""
        lists, features = self.stages, self.stages.fusion_with.features
        depth = [feature for feature in features if feature.startswith("normalized/")]
        if not lists.demonstrations:
            return
        for key, designs, images in (
            ("stages.designs", lists.designs, cameras),
            ("stages.fusion_with.designs", lists.fusion_with.designs, cameras or len(depth) == len(features)),
        ):
            for design in designs:
                if design in RENAMED:
                    yield f"{key}: {design} is now called {RENAMED[design]}; write that"
                elif design not in DESIGNS:
                    yield f"{key}: {design} is not a fusion model; choose from {', '.join(DESIGNS)}"
                elif design != "joints_only" and not images:
                    yield f"{key}: {design} needs a camera, and views.cameras is []; take joints_only"
        for feature in depth if "joints_only" in lists.fusion_with.designs else ():
            takers = ", ".join(design for design in DESIGNS if design != "joints_only")
            yield f"stages.fusion_with: joints_only sees no images, so not {feature}; remove it, or take {takers}"

    def features(self, mask_camera: str) -> Iterator[str]:
        """The features that trainings read are those that stages make, and maps lie over the images they are of."""
        lists, of_masks = self.stages, self.stages.segmentation_with
        reads = bool(lists.demonstrations and lists.fusion_with.designs)
        for_masks, for_fusion = made_features(lists), made_features(lists) + made_depth(lists)
        for key, listed, read, made in (
            ("stages.fusion_with.features", lists.fusion_with.features, reads, for_fusion),
            ("stages.segmentation_with", of_masks, bool(lists.masks), for_masks),
        ):
            for feature in listed if read else ():
                if feature not in made:
                    old = ": it was renamed, grids are in grids/<name>/<camera>" if feature.startswith("clip/") else ""
                    yield (
                        f"{key}: no stage makes {feature}{old}; with stages.depth and stages.grids as they are, these "
                        f"are made: {', '.join(made) or 'none'}; remove it, or choose from them"
                    )
        for feature in of_masks if lists.masks else ():
            kind, _, rest = feature.partition("/")
            name, _, camera = rest.partition("/")
            of_others = kind == "grids" and camera != mask_camera
            if of_others and feature in for_masks and mask_camera in self.contents.info.cameras:
                yield (
                    f"stages.segmentation_with: {feature} is not of the images that the masks belong to, those of "
                    f"{mask_camera} (segmentation.camera); remove it, or take grids/{name}/{mask_camera}"
                )

    def rollouts(self) -> Iterator[str]:
        """Rollouts drive the simulated robot, by models that stages make of its demonstrations."""
        lists, root = self.stages, self.contents.root
        listed, states = ", ".join(lists.rollouts), root / STATES
        if lists.rollouts and not (states.is_file() or place(states) in self._tracked):
            yield f"stages.rollouts: [{listed}], but {root} is not of the simulator: it has no {STATES}; set it to []"
            return
        for column in lists.rollouts:
            if column not in lists.demonstrations:
                yield f"stages.rollouts: {column} is not in stages.demonstrations; add it there, or remove it here"

    def volumes(self) -> Iterator[str]:
        """Files of volumes are there, below the working directory, beside any recording."""
        for name in self.stages.volumes:
            file = Path(f"data/volumes/{name}.hdf5")
            if not re.fullmatch(r"\w[\w.-]*", name):
                yield f"stages.volumes: {name!r} names a file and outputs; use letters, digits and _ - . only"
            elif not file.is_file() and place(file) not in self._tracked:
                yield f"stages.volumes: {name}, but {file} is missing; import it, or remove it"

    def _cameras(self, key: str, cameras: Iterable[str]) -> Iterator[str]:
        contents = self.contents
        for camera in cameras:
            if camera not in contents.info.cameras:
                way = "; set it to []" if key == "stages.grids.cameras" and not contents.info.cameras else ""
                yield f"{key}: {camera} is not a camera of {contents.json}, which has: {contents.cameras}{way}"
                continue
            fault = self._fault(f"rgb/{camera}")
            if fault:
                yield f"{key}: {camera}, but {fault}; copy its images there, or choose another"
            else:
                yield from self._unlisted(key, f"rgb/{camera}")

    def _unlisted(self, key: str, folder: str) -> Iterator[str]:
        """The stages that ``key`` is for read the index that validate_images writes for each of `stages.images`."""
        if folder not in self.stages.images:
            yield f"{key} needs {folder}, which is not in stages.images; add it there"

    def _fault(self, folder: str) -> str | None:
        """Why no stage can use a folder of images, or None."""
        kind, _, camera = folder.partition("/")
        info, json = self.contents.info, self.contents.json
        if kind == "depth" and re.fullmatch(r"depth(/[^/]+)?", folder):
            fault = None if info.depth else f"{json} describes no depth"
        elif folder == "masks":
            fault = None if info.classes else f"{json} names no classes"
        elif kind == "rgb" and camera:
            known = camera in info.cameras
            fault = None if known else f"{camera} is not a camera of {json}, which has: {self.contents.cameras}"
        else:
            fault = "folders of images are depth, depth/<camera>, masks and rgb/<camera>"
        if not fault and re.search(r"\s", folder):
            fault = "a space in a name parts the words of the commands in dvc.yaml; rename the camera"
        return fault or self._absence(self.contents.root / folder)

    def _absence(self, folder: Path) -> str | None:
        # Looked up on disk: were the folders dependencies, DVC would stop at a missing one before it starts the script.
        if not folder.is_dir():
            return None if place(folder) in self._tracked else f"there is no folder {folder}"
        with os.scandir(folder) as entries:
            has_image = any(Path(e.name).suffix.lower() in SUFFIXES and e.name[0] != "." for e in entries)
        return None if has_image else f"no image is in {folder}"

    @cached_property
    def _tracked(self) -> set[Path]:
        """What is not here, but DVC has or makes it, as in a clone that pulls only what it runs."""
        return set(tracked())
