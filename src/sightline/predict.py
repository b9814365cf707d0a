"""Apply a trained model to your own data, without DVC: ``sightline predict embed|act|segment``.

    embed   ENCODER IMAGES OUTPUT     a folder of depth images, or a recording's -> embeddings, .hdf5 or .parquet
    act     POLICY RECORDING OUTPUT   a recording, or a file of views -> chunks of actions, .parquet
    segment MODEL DATA OUTPUT         a folder of images, or a recording's -> a folder of masks, PNG; volumes (NIfTI,
                                      HDF5, .npz, a file or a folder of them) -> a folder of masks, NIfTI

The model's file says what it was trained with; data of another kind are refused.
"""

import json
import tempfile
import warnings
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from tqdm import tqdm

from sightline.core.cli import run_stage
from sightline.core.errors import UserError
from sightline.core.files import atomic_output, file_sha256
from sightline.core.hdf5 import create_contiguous
from sightline.core.params import Section
from sightline.depth.preprocessing import IMAGE_SIZE, Preprocessing, preprocess, read_raw
from sightline.grids.features import add_features
from sightline.recording.images import read_grey, read_rgb
from sightline.recording.layout import read_recording_info
from sightline.recording.names import BY_NAME, Images, Naming, add_naming, list_frames, list_images, naming
from sightline.training.processes import process_device

if TYPE_CHECKING:
    from sightline.fusion.views import ViewParams
    from sightline.importers.volume_files import Grid
    from sightline.recording.volumes import Intake
    from sightline.segmentation.model import SegmentationConfig, SegmentationModel
    from sightline.segmentation.params import LargestComponent

BATCH = 32


def embed(encoder_file: Path, images: Path, output: Path, naming: Naming = BY_NAME) -> int:
    """Embed every image of a folder, or of ``depth/`` of a recording -> how many.

    OUTPUT.hdf5 holds ``embeddings`` float32 [N, D] and ``frame_id``, as the stage ``embed`` writes them; OUTPUT.parquet
    the columns frame_id and embedding. Both are in the order of the frame ids, and hold ``time_ns`` where the files are
    named by time stamps.

    Raises:
        UserError: not an encoder, another suffix, no images, an image of another kind, a recording with other units.
    """
    from sightline.depth.semantic_encoder import create_semantic_encoder

    _check_suffix(output, ".hdf5", ".parquet")
    encoder = create_semantic_encoder(encoder_file, freeze_weights=True, device=process_device())
    encoder.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # faster on a CPU
    preprocessing, channels = encoder.preprocessing, encoder.config.input_channels
    if (images / "recording.json").is_file():
        preprocessing = _preprocessing_of(images / "recording.json", preprocessing, encoder_file)
        listed = Images(list_frames(images / "depth"), {})
    else:
        listed = list_images(images, naming=naming)
    ids, paths = list(listed.paths), listed.paths
    blocks = []
    for start in tqdm(range(0, len(ids), BATCH), desc="embed", unit="batch", mininterval=0.5):
        normalised = []
        for path in (paths[i] for i in ids[start : start + BATCH]):
            raw = read_raw(path, channels)
            try:
                image = preprocess(raw[None], preprocessing)[0]
                normalised.append(image.reshape(channels, IMAGE_SIZE, IMAGE_SIZE))
            except UserError as error:
                raise UserError(f"{path}: {error}") from None
        blocks.append(encoder.encode_batch(torch.from_numpy(np.stack(normalised)), BATCH).float().cpu().numpy())
    embeddings, columns = np.concatenate(blocks), {"frame_id": np.array(ids, np.int64)}
    if listed.time_ns:
        columns["time_ns"] = np.fromiter(listed.time_ns.values(), np.int64)
    source = {"encoder_sha256": file_sha256(encoder_file), "encoder": json.dumps(encoder.get_model_info()["network"])}
    with atomic_output(output) as temporary:
        if output.suffix == ".hdf5":
            create_contiguous(temporary, {}, {"embeddings": embeddings, **columns}, source)
        else:
            listed_embeddings = pa.FixedSizeListArray.from_arrays(pa.array(embeddings.reshape(-1)), embeddings.shape[1])
            table = pa.table({**columns, "embedding": listed_embeddings})
            pq.write_table(table.replace_schema_metadata(source), temporary)
    return len(ids)


def act(policy_file: Path, data: Path, output: Path, features: Sequence[Path] = ()) -> int:
    """Predict a chunk of actions for every frame of a recording, or of a file of views -> how many.

    The table has the columns frame_id, episode, step and ``actions``, a list of steps, each a list of actions in data
    units; its schema's metadata say how many frames lie between steps. Frames without all their images are left out.

    Args:
        data: folder of a recording (no actions needed), or a file written by ``sightline pack_views``.
        features: files of the further inputs that the model was trained with.

    Raises:
        UserError: not a fusion model, another suffix, cameras, joints or further inputs other than in training.
    """
    from sightline.fusion.chunks import extras_of, read_features
    from sightline.fusion.policy import check_views, load_policy
    from sightline.fusion.views import ViewParams, Views
    from sightline.grids.features import check_features

    _check_suffix(output, ".parquet")
    policy, device = load_policy(policy_file), process_device()
    config = policy.config
    if not features:  # said before a recording is read
        check_features({}, config.extras, {}, policy_file)
    with tempfile.TemporaryDirectory() as folder:
        if data.is_dir():
            packed = Path(folder) / "views.hdf5"
            _pack(data, packed, ViewParams(cameras=config.cameras, image_size=config.image_size, fit=config.fit))
        else:
            packed = data
        views = Views.open(packed)
        check_views(config, policy_file, views, data)
        extras, rows, batches = read_features(features, views), np.flatnonzero(views.sound), []
        check_features(extras, config.extras, config.makers, policy_file)
        policy.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        with torch.inference_mode():
            for start in tqdm(range(0, len(rows), BATCH), desc="act", unit="batch", mininterval=0.5):
                some = rows[start : start + BATCH]
                inputs = [torch.from_numpy(array[some]).to(device) for array in (views.images, views.joints)]
                taken = extras_of(extras, some, config.image_size)
                further = {name: values.to(device) for name, values in taken.items()}
                batches.append(policy(*inputs, further).cpu().numpy())
        chunks = np.concatenate(batches)  # (N, H, A)
        steps = pa.FixedSizeListArray.from_arrays(pa.array(chunks.reshape(-1)), chunks.shape[2])
        columns = {name: getattr(views, name)[rows] for name in ("frame_id", "episode", "step")}
        table = pa.table(columns | {"actions": pa.FixedSizeListArray.from_arrays(steps, chunks.shape[1])})
    notes = {"policy_sha256": file_sha256(policy_file), "frames_between_steps": str(config.stride)}
    with atomic_output(output) as temporary:
        pq.write_table(table.replace_schema_metadata(notes), temporary)
    return len(rows)


def segment(model_file: Path, images: Path, output: Path, largest: "LargestComponent" = "none") -> int:
    """Predict the class of every pixel of a folder of images, or of the model's camera of a recording -> how many.

    OUTPUT is a folder with a PNG of class ids, uint8, for each image, of its name and its size. Of volumes, it is a
    folder with a NIfTI file for each, ``<name>.nii.gz``, with the shape and the affine of the input; or, of one volume,
    this file.

    Args:
        largest: of volumes, keep the largest component of each class: ``none``, in each slice (``2d``), or ``3d``.

    Raises:
        UserError: not a segmentation model, one with further inputs, no images, an image of another kind, or an OUTPUT
            that holds other files.
    """
    from sightline.segmentation.frames import list_by_name, resized
    from sightline.segmentation.model import load_model

    model = load_model(model_file).to(process_device())
    config = model.config
    if config.extras:
        raise UserError(
            f"{model_file}: trained with {', '.join(config.extras)} beside the images; give a model without"
        )
    if _has_volumes(images):
        return _segment_volumes(model, model_file, images, output, largest)
    if config.spatial_dims == 3:
        raise UserError(f"{images}: holds no volumes, which {model_file} was trained on; give NIfTI, HDF5 or .npz")
    if largest != "none":
        raise UserError(f"{images}: the largest component is for volumes; leave --largest-component out")
    if (images / "recording.json").is_file():
        images = images / "rgb" / config.camera
    paths = list_by_name(images)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UserError(f"{output}: is there already; name a folder to make")
    height, width = config.image_size or (0, 0)
    with atomic_output(output) as temporary, torch.inference_mode():
        temporary.mkdir()
        for name, path in tqdm(paths.items(), desc="segment", unit="image", mininterval=0.5):
            whole = Image.fromarray(read_grey(path) if config.image_channels == 1 else read_rgb(path))
            small = resized(whole, (height, width)).reshape(height, width, -1).copy()
            pixels = torch.from_numpy(small).permute(2, 0, 1)
            ids = model.probabilities(pixels[None].to(process_device())).argmax(dim=1)[0]
            mask = Image.fromarray(ids.to(torch.uint8).cpu().numpy())
            mask.resize(whole.size, Image.Resampling.NEAREST).save(temporary / f"{name}.png")
    return len(paths)


def _has_volumes(data: Path) -> bool:
    """Whether a file, or some of a folder that is not a recording, is of volumes."""
    from sightline.importers.volume_files import SUFFIXES

    if data.is_file():
        return True
    if (data / "recording.json").is_file():
        return False
    return any(path.name.lower().endswith(SUFFIXES) for path in data.rglob("*") if not path.name.startswith("."))


def _segment_volumes(
    model: "SegmentationModel", model_file: Path, data: Path, output: Path, largest: "LargestComponent"
) -> int:
    from sightline.importers.volume_files import NIFTI, nifti_bytes
    from sightline.segmentation.volumes import largest_components

    if model.config.image_channels != 1:
        raise UserError(
            f"{model_file}: was trained on colour images; a model for volumes was trained on slices of them"
        )
    to_file = output.name.endswith(NIFTI)
    if not to_file and output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UserError(f"{output}: is there already; name a folder to make")
    names: list[str] = []
    with atomic_output(output) as temporary, torch.inference_mode():
        if not to_file:
            temporary.mkdir()
        for name, slices, grid, intake, header in _volumes_of(data, model.config, model_file):
            if to_file and names:
                raise UserError(f"{data}: holds several volumes; name a folder in the place of {output.name}")
            ids = intake.undone(_ids_of(model, slices), grid.plane, (grid.spacing[1], grid.spacing[2]))
            ids = largest_components(ids, len(model.config.classes), largest)
            is_packed = not to_file or output.name.endswith(".gz")
            file = temporary if to_file else temporary / f"{name}.nii.gz"
            file.write_bytes(nifti_bytes(grid, grid.array(ids), header, is_packed))
            names.append(name)
    return len(names)


def _volumes_of(
    data: Path, config: "SegmentationConfig", model_file: Path
) -> "Iterator[tuple[str, np.ndarray, Grid, Intake, Path | None]]":
    """Name, slices uint8 [Z, H, W], place, way there and, of NIfTI, the file of each volume."""
    from sightline.importers.volume_files import NIFTI, Grid, grid_of, read_entry
    from sightline.importers.volume_folders import find_volumes
    from sightline.recording.volumes import Intake, VolumeFile, is_volume_file

    if is_volume_file(data):
        file = VolumeFile.open(data)
        if config.intake is not None:
            file.intake.check_same(data, config.intake, model_file)
        of = file.sources
        for i, name in enumerate(of.name.tolist()):
            grid = Grid(
                tuple(of.shape[i].tolist()), of.affine[i], int(of.slice_axis[i]), bool(of.swaps[i]), of.spacing[i]
            )
            yield name, file.image[np.flatnonzero(file.volume == name)], grid, file.intake, None
        return
    folder = find_volumes(data, ("*.list",), None)  # all volumes, whatever lists name
    if folder.faults:
        raise UserError("\n".join(folder.faults))
    warned = False
    needs_spacing = config.intake is not None and config.intake.scale == "spacing"
    for entry in tqdm(folder.entries, desc="segment", unit="volume", mininterval=0.5):
        content = read_entry(replace(entry, masks=()))
        oriented = bool(np.isfinite(content.affine).all())
        is_same = (config.intake is not None and config.intake.oriented) == oriented
        if not is_same and not warned:
            warned = True
            warnings.warn(
                f"{entry.path}: one of it and the volumes that {model_file} was trained on does not tell where right, "
                "front and top are: look at a mask before you use them",
                stacklevel=2,
            )
        axis = config.intake.slice_axis if config.intake and is_same else None
        placed = grid_of(content, axis, None if needs_spacing else (1.0, 1.0, 1.0))
        if isinstance(placed, str):
            what = "no spacing" if placed == "spacing" else "nothing that tells along which axis slices lie"
            raise UserError(f"{entry.path}: has {what}, which {model_file} needs; write it as NIfTI with a header")
        intake = config.intake or Intake(size=placed.plane, scale="none")
        slices = intake.placed(intake.grey(placed.slices(content.image)), tuple(placed.spacing[1:]), nearest=False)
        yield entry.name, slices, placed, intake, entry.path if entry.path.name.endswith(NIFTI) else None


def _ids_of(model: "SegmentationModel", slices: np.ndarray) -> np.ndarray:
    """Class ids uint8 [Z, H, W] of slices uint8 [Z, H, W]."""
    from sightline.segmentation.frames import resized
    from sightline.segmentation.volumes import enlarged, seen_slices

    size, ids = model.config.image_size or slices.shape[1:], []
    if model.config.spatial_dims == 3:
        seen = np.stack([resized(Image.fromarray(one), size) for one in slices])
        return np.concatenate([enlarged(found, slices.shape[1:]).cpu().numpy() for found in seen_slices(model, seen)])
    for start in range(0, len(slices), BATCH):
        some = np.stack([resized(Image.fromarray(one), size) for one in slices[start : start + BATCH]])
        probabilities = model.probabilities(torch.from_numpy(some[:, None]).to(process_device()))
        ids.append(enlarged(probabilities, slices.shape[1:]).cpu().numpy())
    return np.concatenate(ids)


def _pack(recording: Path, packed: Path, params: "ViewParams") -> None:
    """Decode the views of a recording as for a training, with its joints in the place of actions."""
    from sightline.fusion.views import pack_views
    from sightline.recording.split import DataParams, SplitParams
    from sightline.validation.validation import validate_recording

    index, whole = packed.with_name("index"), DataParams(on_error="skip", split=SplitParams(val=0, test=0))
    for piece in ("frames", *(f"rgb/{camera}" for camera in params.cameras)):
        validate_recording(recording, index, whole, only=piece)
    pack_views(recording, index, packed, params, target="joints")


def _check_suffix(output: Path, *suffixes: str) -> None:
    if output.suffix not in suffixes:
        raise UserError(f"{output}: the name of the output ends in {' or '.join(suffixes)}")


def _preprocessing_of(path: Path, preprocessing: Preprocessing, encoder_file: Path) -> Preprocessing:
    """That of the encoder, with the encoding of this recording where it names one."""
    depth, unit_mm = read_recording_info(path).depth, preprocessing.unit_mm
    if depth is None:
        raise UserError(f"{path}: has no depth entry; give a folder of depth images")
    if depth.unit_mm != unit_mm:
        raise UserError(f"{path}: counts of {depth.unit_mm:g} mm, but {encoder_file} was trained on {unit_mm:g} mm")
    return preprocessing.model_copy(update={"depth_encoding": depth.encoding or preprocessing.depth_encoding})


class Params(Section):
    """No parameters: everything is in the weights file."""


def main(args: Namespace, _: Params) -> None:
    if args.command == "segment":
        print(f"{args.output}: {segment(args.model, args.data, args.output, args.largest_component)} masks")
        return
    if args.command == "embed":
        print(f"{args.output}: {embed(args.model, args.data, args.output, naming(args))} embeddings")
        return
    print(f"{args.output}: {act(args.model, args.data, args.output, args.feature)} chunks of actions")


parser = ArgumentParser(prog="sightline predict", description="Apply a trained model to your own data.")
commands = parser.add_subparsers(dest="command", required=True)
for name, what, script, data, output in (
    ("embed", "embeddings of depth images", "extract_encoder", "folder of uint16 PNG or TIFF images, or of a recording",
     "file to write, .hdf5 or .parquet"),
    ("act", "actions for the frames of a recording", "train_fusion", "folder of a recording, or a file of views",
     "file to write, .parquet"),
    ("segment", "masks of images or volumes", "train_segmentation", "folder of images, of a recording, or volumes",
     "folder to make, a PNG of class ids for each image, a NIfTI file for each volume; of one volume, a .nii.gz"),
):  # fmt: skip
    command = commands.add_parser(name, help=what)
    command.add_argument("model", type=Path, help=f"weights file written by sightline {script}")
    command.add_argument("data", type=Path, help=data)
    command.add_argument("output", type=Path, help=output)
add_naming(commands.choices["embed"])
add_features(commands.choices["act"])
commands.choices["segment"].add_argument(
    "--largest-component", choices=("none", "2d", "3d"), default="none", help="of each class, in a slice or a volume"
)

if __name__ == "__main__":
    run_stage(parser, Params, main)
