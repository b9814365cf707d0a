"""Embeddings of depth images, or of colour pictures, in the order of their ids."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from tqdm import tqdm

from sightline.core.errors import UserError
from sightline.core.files import atomic_output, file_sha256
from sightline.core.hdf5 import create_contiguous
from sightline.depth.preprocessing import IMAGE_SIZE, Preprocessing, preprocess, read_raw
from sightline.depth.semantic_encoder import SemanticEncoder, create_semantic_encoder
from sightline.depth.store import DepthStore
from sightline.predict.data import BATCH, check_suffix, count_pictures, is_video, read_video
from sightline.recording.layout import read_recording_info
from sightline.recording.names import BY_NAME, Images, Naming, list_frames, list_images
from sightline.training.processes import process_device

Raw = tuple[str, np.ndarray]  # what to call an image in messages, and the image: [H, W] or [C, H, W]


@dataclass(frozen=True)
class _Source:
    """Images to embed: normalised ones float32 [b, C, 128, 128], `BATCH` at a time; and what belongs to them."""

    frame_id: np.ndarray
    batches: Iterator[np.ndarray]
    time_ns: np.ndarray | None = None
    recording: str = ""


def embed(encoder_file: Path, data: Path, output: Path, naming: Naming = BY_NAME) -> int:
    """Embed every image of a folder, of ``depth/`` of a recording, of a normalised file, or of a video -> how many.

    OUTPUT.hdf5 holds ``embeddings`` float32 [N, D] and ``frame_id``, as the stage ``embed`` writes them; OUTPUT.parquet
    the columns frame_id and embedding. Both are in the order of the frame ids, and hold ``time_ns`` where the files are
    named by time stamps. The ids of a video count its pictures from 0.

    Raises:
        UserError: not an encoder, another suffix, no images, an image of another kind, data that were normalised in
            another way, a recording with other units.
    """
    check_suffix(output, ".hdf5", ".parquet")
    encoder = create_semantic_encoder(encoder_file, freeze_weights=True, device=process_device())
    encoder.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # faster on a CPU
    source = _open(data, encoder, encoder_file, naming)
    total = -(-len(source.frame_id) // BATCH)
    embeddings = np.concatenate([
        encoder.encode_batch(torch.from_numpy(batch), BATCH).float().cpu().numpy()
        for batch in tqdm(source.batches, desc="embed", total=total, unit="batch", mininterval=0.5)
    ])  # fmt: skip
    columns = {"frame_id": source.frame_id} | ({} if source.time_ns is None else {"time_ns": source.time_ns})
    notes = {"encoder_sha256": file_sha256(encoder_file), "encoder": json.dumps(encoder.get_model_info()["network"])}
    notes |= {"recording": source.recording} if source.recording else {}
    with atomic_output(output) as temporary:
        if output.suffix == ".hdf5":
            create_contiguous(temporary, {}, {"embeddings": embeddings, **columns}, notes)
        else:
            listed = pa.FixedSizeListArray.from_arrays(pa.array(embeddings.reshape(-1)), embeddings.shape[1])
            table = pa.table({**columns, "embedding": listed})
            pq.write_table(table.replace_schema_metadata(notes), temporary)
    return len(embeddings)


def _open(data: Path, encoder: SemanticEncoder, encoder_file: Path, naming: Naming) -> _Source:
    """The images of ``data``, whichever kind it is."""
    channels, preprocessing = encoder.config.input_channels, encoder.preprocessing
    if is_video(data):
        video = read_video(data, "depth" if channels == 1 else "colour", encoder_file)
        raws = (
            (f"{data}: picture {i}", one if channels == 1 else one.transpose(2, 0, 1)) for i, one in enumerate(video)
        )
        return _Source(np.arange(count_pictures(data)), _normalised(raws, preprocessing))
    if data.is_file():
        return _of_store(data, encoder, encoder_file)
    if (data / "recording.json").is_file():
        preprocessing = _preprocessing_of(data, encoder, encoder_file)
        if of_cameras := [path for path in sorted(data.glob("depth/*")) if path.is_dir()]:
            raise UserError(f"{data}/depth: has a folder for each camera; name one of them, such as {of_cameras[0]}")
        listed = Images(list_frames(data / "depth"), {})
    else:
        listed = list_images(data, naming=naming)
    raws = ((str(path), read_raw(path, channels)) for path in listed.paths.values())
    times = np.fromiter(listed.time_ns.values(), np.int64) if listed.time_ns else None
    return _Source(np.fromiter(listed.paths, np.int64), _normalised(raws, preprocessing), times)


def _of_store(data: Path, encoder: SemanticEncoder, encoder_file: Path) -> _Source:
    """The images of a file of normalised depth."""
    if not h5py.is_hdf5(data):
        raise UserError(
            f"{data}: embed takes a folder of images, a recording, an HDF5 file of sightline normalize, or a video"
        )
    store, channels = DepthStore.open(data), encoder.config.input_channels
    store.require_preprocessing(encoder.preprocessing, encoder_file)
    if store.channels != channels:
        raise UserError(f"{data}: images of {store.channels} channel(s), but {encoder_file} takes {channels}")
    starts = range(0, len(store.frame_id), BATCH)
    batches = (store.images(slice(start, start + BATCH)) for start in starts)
    return _Source(store.frame_id, batches, store.time_ns, store.recording)


def _normalised(raws: Iterable[Raw], preprocessing: Preprocessing) -> Iterator[np.ndarray]:
    """Batches of raw images, prepared one by one: they may have several sizes."""
    waiting = iter(raws)
    while some := list(islice(waiting, BATCH)):
        images = []
        for name, raw in some:
            try:
                images.append(preprocess(raw[None], preprocessing)[0].reshape(-1, IMAGE_SIZE, IMAGE_SIZE))
            except UserError as error:
                raise UserError(f"{name}: {error}") from None
        yield np.stack(images)


def _preprocessing_of(recording: Path, encoder: SemanticEncoder, encoder_file: Path) -> Preprocessing:
    """That of the encoder, with the encoding of this recording where it names one."""
    path, preprocessing = recording / "recording.json", encoder.preprocessing
    info = read_recording_info(path)
    if encoder.config.input_channels != 1:
        raise UserError(
            f"{recording}: {encoder_file} was trained on pictures; name a folder of them, such as {recording}/rgb/"
            f"{next(iter(info.cameras), 'CAMERA')}"
        )
    if info.depth is None:
        raise UserError(f"{path}: has no depth entry; give a folder of depth images")
    if info.depth.unit_mm != preprocessing.unit_mm:
        raise UserError(
            f"{path}: counts of {info.depth.unit_mm:g} mm, but {encoder_file} was trained on "
            f"{preprocessing.unit_mm:g} mm"
        )
    return preprocessing.model_copy(update={"depth_encoding": info.depth.encoding or preprocessing.depth_encoding})
