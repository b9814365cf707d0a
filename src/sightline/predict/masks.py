"""Masks of images, of the pictures of a video, and of arrays of slices; of volumes see `sightline.predict.volumes`."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from sightline.core.errors import UserError
from sightline.core.files import atomic_output
from sightline.importers.volume_files import SUFFIXES
from sightline.predict.data import check_new_folder, count_pictures, is_video, read_video
from sightline.predict.volumes import class_ids, segment_volumes
from sightline.recording.images import read_grey, read_rgb
from sightline.recording.volumes import is_volume_file
from sightline.segmentation.arrays import read_images
from sightline.segmentation.frames import list_by_name, resized
from sightline.segmentation.model import SegmentationConfig, SegmentationModel, load_model
from sightline.segmentation.params import LargestComponent
from sightline.segmentation.volumes import largest_components
from sightline.training.processes import process_device

NPZ = ".npz"
Named = Iterator[tuple[str, np.ndarray]]  # uint8 [H, W] or [H, W, 3]


def segment(model_file: Path, data: Path, output: Path, largest: LargestComponent = "none") -> int:
    """Predict the class of every pixel of images, of a video, of slices or of volumes -> how many files or masks.

    OUTPUT is a folder with a PNG of class ids, uint8, for each image, of its name and its size: of the images of a
    folder, of the model's camera of a recording, or of a video, whose pictures are numbered from 0.

    Of arrays of slices (.npz, for a model that was trained on images or slices), it is a file of the same kind, with
    the ids as ``label``; of a folder of them, a folder. Of volumes, it is a folder with a NIfTI file for each,
    ``<name>.nii.gz``, with the shape and the affine of the input; or, of one volume, this file.

    Args:
        largest: of slices and volumes, keep the largest component of each class: ``none``, in each slice (``2d``), or
            in the volume (``3d``).

    Raises:
        UserError: not a segmentation model, one with further inputs, no images, an image of another kind, or an OUTPUT
            that holds other files.
    """
    model = load_model(model_file).to(process_device())
    config = model.config
    if config.extras:
        raise UserError(
            f"{model_file}: trained with {', '.join(config.extras)} beside the images; give a model without"
        )
    arrays = _arrays_in(data)
    if arrays and config.intake is None and config.spatial_dims == 2 and all(p.suffix == NPZ for p in arrays):
        return _segment_slices(model, model_file, data, output, largest)
    if arrays:
        return segment_volumes(model, model_file, data, output, largest)
    if config.spatial_dims == 3:
        raise UserError(f"{data}: holds no volumes, which {model_file} was trained on; give NIfTI, HDF5 or .npz")
    if largest != "none":
        raise UserError(f"{data}: the largest component is for slices and volumes; leave --largest-component out")
    count, pictures = _pictures_of(data, config, model_file)
    check_new_folder(output)
    height, width = config.image_size or (0, 0)
    with atomic_output(output) as temporary, torch.inference_mode():
        temporary.mkdir()
        for name, picture in tqdm(pictures, desc="segment", total=count, unit="image", mininterval=0.5):
            whole = Image.fromarray(picture)
            small = resized(whole, (height, width)).reshape(height, width, -1).copy()
            pixels = torch.from_numpy(small).permute(2, 0, 1)
            ids = model.probabilities(pixels[None].to(process_device())).argmax(dim=1)[0]
            mask = Image.fromarray(ids.to(torch.uint8).cpu().numpy())
            mask.resize(whole.size, Image.Resampling.NEAREST).save(temporary / f"{name}.png")
    return count


def _pictures_of(data: Path, config: SegmentationConfig, model_file: Path) -> tuple[int, Named]:
    """How many pictures a folder, a recording or a video has, and each with its name."""
    is_grey = config.image_channels == 1
    if is_video(data):
        video = read_video(data, "grey" if is_grey else "colour", model_file)
        return count_pictures(data), ((f"{i:06d}", picture) for i, picture in enumerate(video))
    if data.is_file():
        raise UserError(
            f"{data}: segment takes a folder of images, a recording, a video, .npz of slices, or volumes "
            f"({', '.join(SUFFIXES)})"
        )
    paths = list_by_name(data / "rgb" / config.camera if (data / "recording.json").is_file() else data)
    return len(paths), ((name, read_grey(path) if is_grey else read_rgb(path)) for name, path in paths.items())


def _arrays_in(data: Path) -> list[Path]:
    """A file of volumes or slices, or those of a folder that is not a recording; sorted."""
    if data.is_file():
        return [data] if data.name.lower().endswith(SUFFIXES) or is_volume_file(data) else []
    if (data / "recording.json").is_file():
        return []
    return sorted(p for p in data.rglob("*") if p.name.lower().endswith(SUFFIXES) and not p.name.startswith("."))


def _segment_slices(
    model: SegmentationModel, model_file: Path, data: Path, output: Path, largest: LargestComponent
) -> int:
    """Write the masks of one ``.npz``, or of each of a folder."""
    to_file = output.suffix == NPZ
    if to_file and data.is_dir():
        raise UserError(f"{data}: a folder; name a folder in the place of {output.name}")
    if not to_file:
        check_new_folder(output)
    count = 0
    with atomic_output(output) as temporary, torch.inference_mode():
        for path in _arrays_in(data):
            made = _labelled(model, model_file, path, largest)
            target = temporary if to_file else temporary / (path.relative_to(data) if data.is_dir() else path.name)
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("wb") as file:
                np.savez_compressed(file, **made)  # type: ignore[arg-type]
            count += len(made["label"])
    return count


def _labelled(
    model: SegmentationModel, model_file: Path, path: Path, largest: LargestComponent
) -> dict[str, np.ndarray]:
    """The arrays of a file, with ``label`` uint8 [N, H, W] in the place of the images."""
    arrays = read_images(path)
    image = arrays.pop("image")
    if (image.ndim == 4) != (model.config.image_channels == 3):
        kinds = "grey", "colour"
        is_colour = image.ndim == 4
        raise UserError(f"{path}: image: {kinds[is_colour]}, but {model_file} was trained on {kinds[not is_colour]}")
    ids = class_ids(model, image)
    volume = arrays.get("volume", arrays.get("group"))
    if largest == "3d" and volume is None:
        raise UserError(f"{path}: has no array volume or group, which tells its volumes; take --largest-component 2d")
    volume = np.zeros(len(ids), int) if volume is None else volume
    for name in np.unique(volume):
        ids[volume == name] = largest_components(ids[volume == name], len(model.config.classes), largest)
    return {"label": ids, **arrays}
