"""Writing grid features: one file, see `sightline.grids.file`, or a folder of shards, see `sightline.grids.store`."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np

from sightline.clip.params import Compression
from sightline.core.files import write_json
from sightline.core.hdf5 import create_contiguous, open_for_writing, open_rows
from sightline.grids.file import GridFile, content_key, load_codecs
from sightline.grids.store import SHARD_LIST


@dataclass(frozen=True)
class StoreLayout:
    """What all files of a store have in common."""

    shape: tuple[int, int]  # of a grid, (P, C)
    attributes: Mapping[str, Any]  # see `sightline.grids.file`; ``dtype`` is that of the grids
    keyed: Sequence[str]  # words of the further keys for each image, <image_id>_<word>
    compression: Compression


class Rows(NamedTuple):
    """What a file says of its images."""

    image_ids: np.ndarray  # int64 [N], ascending
    names: Sequence[str]  # N
    content_hash: Sequence[bytes]  # N, of 32 hexadecimal digits
    skipped_ids: Sequence[int]  # of images that cannot be read


def shard_ranges(image_ids: np.ndarray, episodes: np.ndarray, most: int) -> dict[str, np.ndarray]:
    """Name -> ascending image ids of each shard: whole episodes in the order of their numbers, as many as fit.

    Where a shard begins depends only on what comes before it: appended episodes rewrite at most the last shard.

    Args:
        episodes: of each image; the image ids themselves where there are no episodes.
        most: images in a shard; an episode of more is a shard of its own.
    """
    numbers, counts = np.unique(episodes, return_counts=True)
    starts, size = [0], 0
    for i, count in enumerate(counts.tolist()):
        if size and size + count > most:
            starts.append(i)
            size = 0
        size += count
    ordered, ends = image_ids[np.argsort(episodes, kind="stable")], np.cumsum([0, *counts])
    return {
        f"{numbers[first]:06d}-{numbers[after - 1]:06d}.hdf5": np.sort(ordered[ends[first] : ends[after]])
        for first, after in zip(starts, [*starts[1:], len(numbers)], strict=True)
    }


def write_shards(
    folder: Path,
    ranges: Mapping[str, np.ndarray],
    failed: Iterable[int],
    write: Callable[..., None],
    recording: str = "",
) -> None:
    """Write a folder of shards.

    Args:
        ranges: from `shard_ranges`; a shard without a sound image is not written.
        failed: ids of images that cannot be read.
        write: writes one file of grids: path, image ids, skipped ids.
        recording: key of the recording, kept in the list: a shard stays the same when episodes are added; "" for none.
    """
    folder.mkdir()
    unread, parts, early = np.array(sorted(failed), np.int64), list[tuple[str, np.ndarray, list[int]]](), list[int]()
    for name, ids in ranges.items():
        is_skipped = np.isin(ids, unread)
        sound, skipped = ids[~is_skipped], ids[is_skipped].tolist()
        if len(sound):
            parts.append((name, sound, early + skipped))
            early = []
        else:  # no such shard is written: the one before it, or else the first one, lists these images
            (parts[-1][2] if parts else early).extend(skipped)
    listed = {}
    for name, ids, skipped in parts:
        write(folder / name, ids, sorted(skipped))
        shard = GridFile(folder / name)
        key = content_key(shard.image_ids, shard.content_hash, shard.skipped_ids, shard.attributes)
        listed[name] = {"images": len(ids), "key": key}
        shard.close()
    write_json(folder / SHARD_LIST, ({"recording": recording} if recording else {}) | {"shards": listed})


def write_store(path: Path, of_rows: Rows, blocks: Iterable[np.ndarray], layout: StoreLayout) -> None:
    """Write a file of grids to ``path``.

    Args:
        blocks: the grids in the order of the rows, in pieces [n, P, C] of any length.
    """
    image_ids = of_rows.image_ids
    whole, dtype = (len(image_ids), *layout.shape), np.dtype(layout.attributes["dtype"])
    encoded = [name.encode() for name in of_rows.names]
    longest = max(1, *map(len, encoded)) if encoded else 1
    filled = {
        "image_ids": image_ids.astype(np.int64),
        "image_names": np.array(encoded, h5py.string_dtype("utf-8", longest)),
        "content_hash": np.array(of_rows.content_hash, "S32"),
        "skipped_ids": np.array(of_rows.skipped_ids, np.int64),
    }
    plain = layout.compression == "none"
    create_contiguous(path, {"grids": (whole, dtype)} if plain else {}, filled, layout.attributes)
    with open_for_writing(path, "r+") as file:
        if not plain:
            grids = file.create_dataset("grids", whole, dtype, chunks=(1, *layout.shape), **_filter(layout.compression))
            for start, block in _placed(blocks):
                for i, one in enumerate(block, start):
                    grids.write_direct(np.ascontiguousarray(one), dest_sel=np.s_[i])
        for word in layout.keyed:
            _add_keys(file, image_ids, layout.shape, word)
    if plain:
        rows = open_rows(path, "grids", "r+")
        for start, block in _placed(blocks):
            rows[start : start + len(block)] = block
        rows.flush()


def _placed(blocks: Iterable[np.ndarray]) -> Iterator[tuple[int, np.ndarray]]:
    start = 0
    for block in blocks:
        yield start, block
        start += len(block)


def _filter(compression: Compression) -> dict[str, Any]:
    if compression == "gzip":
        return {"compression": "gzip", "compression_opts": 4, "shuffle": True}  # a higher level saves nothing more
    load_codecs()
    import hdf5plugin

    return dict(hdf5plugin.Blosc2(cname="zstd", clevel=5, filters=hdf5plugin.Blosc2.SHUFFLE))


def _add_keys(file: h5py.File, image_ids: np.ndarray, shape: tuple[int, int], word: str) -> None:
    """Add a virtual data set for each image, a view of its row of ``grids``: no second copy of the numbers."""
    grids = file["grids"].id
    kind, one, rows = grids.get_type(), h5py.h5s.create_simple(shape), grids.get_space()
    for row, image_id in enumerate(image_ids.tolist()):
        rows.select_hyperslab((row, 0, 0), (1, *shape))
        creation = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        creation.set_obj_track_times(False)  # equal content, equal bytes
        creation.set_virtual(one, b".", b"grids", rows)
        h5py.h5d.create(file.id, f"{image_id}_{word}".encode(), kind, one, creation)
