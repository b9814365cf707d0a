"""Grid features of whole folders of photographs, in a file or in shards, each computed once."""

import shutil
import sys
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from sightline.clip.params import GridParams
from sightline.clip.photographs import Preparation, list_photographs, prepare
from sightline.clip.store import Rows, StoreLayout, shard_ranges, write_shards, write_store
from sightline.clip.survey import merged, refuse, survey_photographs, tell
from sightline.clip.tokens import GridEncoder
from sightline.core.cache import ArrayCache
from sightline.core.errors import UserError
from sightline.core.files import atomic_output, fingerprint, scratch_folder
from sightline.core.threads import threads
from sightline.grids.store import SHARD_LIST, GridStore
from sightline.recording.frames import read_index, read_recording_key
from sightline.recording.names import BY_NAME, Naming
from sightline.training.precision import exact_float32
from sightline.training.processes import gather, process_device, rank, world_size

_BLOCK = 1024  # grids copied at a time
_BEHIND = 3  # batches that wait to be written
# attributes of a store that decide its numbers; the others follow from them, or describe the file
_DECISIVE = (
    "weights_sha256", "quick_gelu", "tokens", "pool", "grid", "image_size", "preprocessing", "dtype", "precision",
    "device", "versions",
)  # fmt: skip


@exact_float32()
def extract_grids(
    folders: Sequence[Path],
    output: Path,
    params: GridParams,
    on_error: Literal["fail", "skip"] = "fail",
    index: Path | None = None,
    previous: Path | None = None,
    naming: Naming = BY_NAME,
) -> dict[str, Any] | None:
    """Encode every photograph of ``folders``, write the store ``output``, and return figures about it.

    Each grid also goes into a content-addressed cache, so that the next run, or a restarted one, computes only what is
    new; on a CPU the bytes of the store are those of a run from nothing. Under a launcher the processes share the
    photographs; the first writes the output, the others return None.

    Args:
        output: a file where its name ends in .hdf5, else a folder of shards of at most ``params.shard_frames`` images,
            by episode where there is an ``index``, else by id.
        index: a frame index; only its frames are encoded, and each needs an image.
        previous: a store that was made with the same settings; grids of unchanged images are taken from it.
        naming: how files are named, where there is no index.

    Raises:
        UserError: no images, two of the same id, images that cannot be read (all are listed; with ``on_error`` "skip"
            they are left out), settings that do not fit the model, too little disk, a ``previous`` of other settings;
            an ``output`` that exists and is not a store.
    """
    # refuse wrong paths first
    sharded = _is_sharded(output)
    if previous and not previous.exists():
        raise UserError(f"{previous}: no such file or folder")
    # hash this process's share of the photographs and read their headers: most faults show before any computing
    listed = list_photographs(folders, index, naming, params.frames)
    paths = listed.paths
    items = list(paths.items())[rank() :: world_size()]  # of all: which are missing changes while others compute
    survey = survey_photographs(items)
    if on_error == "fail":
        refuse(survey.failures, len(items))
    # load the model
    device = process_device()
    encoder = GridEncoder(params, device)
    if encoder.tower.random and rank() == 0:
        warnings.warn(
            f"{params.key('pretrained')} is random: {params.model} has untrained weights, its grids are for trying the "
            "pipeline only; name a file of weights, a package that has one, or a tag for real ones",
            stacklevel=2,
        )
    # open the cache of all that decides a grid, and add the grids of the previous store
    attributes = encoder.attributes()
    decisive = [attributes.get(name) for name in _DECISIVE]
    cache = ArrayCache(
        fingerprint(*decisive, params.batch_size if device.type == "cuda" else None), encoder.shape, params.dtype
    )
    if previous:
        _take_over(previous, cache, attributes, {key for key in survey.digests.values() if key not in cache})
    # what is left to compute, and whether it fits on the disk
    missing = {key: paths[i] for i, key in survey.digests.items() if key not in cache}  # equal files only once
    grid_bytes = int(np.prod(encoder.shape)) * np.dtype(params.dtype).itemsize
    if rank() == 0:
        _check_disk(output, grid_bytes * len(paths), grid_bytes * len(missing) * world_size())
    # compute the missing grids into the cache
    done = len(survey.digests) - len(missing)
    faults: dict[bytes, str] = {}
    progress = tqdm(desc="grids", total=len(survey.digests), initial=done, unit="img", mininterval=0.5)
    with progress as bar, _written_behind() as write:
        for keys, grids, broken in _encoded(encoder, list(missing.items())):
            write(cache.append, keys, grids)
            faults |= broken
            bar.update(len(keys) + len(broken))
    survey.failures |= {i: faults[key] for i, key in survey.digests.items() if key in faults}
    # join what all processes saw; from here on the first one works alone
    surveys = gather(survey)
    if surveys is None:
        return None
    survey = merged(surveys)
    if on_error == "fail" or len(survey.failures) == len(paths):
        refuse(survey.failures, len(paths))
    tell(survey, paths)
    # write the store from the cache, in the order of the ids
    ids, figures = np.array(list(paths), np.int64), _Figures()
    recording = read_recording_key(index) if index else ""
    own = {"recording": recording} if recording and not sharded else {}  # of shards, in their list
    layout = StoreLayout(encoder.shape, attributes | own, params.keyed, params.compression)

    def write_file(path: Path, ids: np.ndarray, skipped: list[int]) -> None:
        keys = [survey.digests[i] for i in ids.tolist()]
        hashes = [key.hex().encode() for key in keys]
        names = [listed.names[i] for i in ids.tolist()]
        blocks = figures.watch(cache.get(keys[start : start + _BLOCK]) for start in range(0, len(keys), _BLOCK))
        write_store(path, Rows(ids, names, hashes, skipped), blocks, layout)

    with atomic_output(output) as temporary:
        if sharded:
            ranges = shard_ranges(ids, _episodes(ids, index), params.shard_frames)
            write_shards(temporary, ranges, survey.failures, write_file, recording)
        else:
            sound = ids[~np.isin(ids, list(survey.failures))]
            write_file(temporary, sound, sorted(survey.failures))
        files = list(temporary.glob("*.hdf5")) if sharded else [temporary]
        size = sum(path.stat().st_size for path in files)
    # figures of the stage
    images = len(paths) - len(survey.failures)
    if params.compression != "none":
        saved = 1 - size / (grid_bytes * images)
        line = f"{output}: {params.compression} saves {saved:.1%}, keys included; plain files are read far faster"
        print(line, file=sys.stderr)
    return {
        "images": images,
        "skipped": len(survey.failures),
        "changed": {name.replace(" ", "_"): count for name, count in sorted(survey.counted().items())},
        "patches": encoder.shape[0],
        "channels": encoder.shape[1],
        "files": len(files),
        "bytes": size,
        "random_weights": int(encoder.tower.random),
    } | figures.result()


def _is_sharded(output: Path) -> bool:
    """Whether to write a folder of shards. Raises `UserError` rather than replace a folder of anything else."""
    sharded = output.suffix not in (".hdf5", ".h5")
    if output.is_dir() and not (sharded and (output / SHARD_LIST).is_file()):
        raise UserError(f"{output}: is a folder of something else; name the output last, after the folders of images")
    if sharded and output.is_file():
        raise UserError(f"{output}: is a file; name one that ends in .hdf5, or another folder for the shards")
    return sharded


def _episodes(ids: np.ndarray, index: Path | None) -> np.ndarray:
    """What shards are ranges of: the episode of each image, or the image itself."""
    return ids if index is None else read_index(index).set_index("frame_id")["episode"].loc[ids].to_numpy()


def _take_over(previous: Path, cache: ArrayCache, attributes: dict[str, Any], wanted: set[bytes]) -> None:
    with GridStore(previous) as store:
        for name in _DECISIVE:
            theirs, ours = (made.get(name) for made in (store.attributes, attributes))
            if theirs != ours:
                raise UserError(
                    f"{previous}: made with {name} {theirs}, now it is {ours}; leave it out to compute everything"
                )
        hashes = [bytes.fromhex(name.decode()) for name in store.content_hash.tolist()]
        rows = np.array([row for row, key in enumerate(hashes) if key in wanted], np.int64)
        for start in range(0, len(rows), _BLOCK):
            part = rows[start : start + _BLOCK]
            cache.append([hashes[row] for row in part], store.read(store.image_ids[part]))
    cache.reload()


def _check_disk(output: Path, store: int, cache: int) -> None:
    """Print how much will be written. Raises `UserError` if the disk has no room for it."""
    place = output.parent
    while not place.exists():
        place = place.parent
    scratch = scratch_folder("cache")
    same = place.stat().st_dev == scratch.stat().st_dev
    print(f"{output}: {_size(store)} of grids, and {_size(cache)} more in the cache of results", file=sys.stderr)
    for folder, needed in ((place, store + cache * same), (scratch, cache)):
        if needed > (free := shutil.disk_usage(folder).free):
            needs = f"{_size(needed)} needed, but only {_size(free)} free"
            raise UserError(f"{folder}: {needs}; make room, or write elsewhere")


def _size(count: float) -> str:
    return f"{count / 1e9:.2f} GB" if count > 1e9 else f"{count / 1e6:.1f} MB"


class _Photographs(Dataset[Tensor | str]):
    def __init__(self, paths: list[Path], preparation: Preparation) -> None:
        self.paths, self.preparation = paths, preparation

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor | str:
        try:
            return prepare(self.paths[index], self.preparation)
        except UserError as error:
            return str(error)


def _collate(photographs: list[Tensor | str]) -> tuple[Tensor, list[str | None]]:
    """Photographs that could be read, stacked, and for every position what is wrong with it."""
    sound = [photo for photo in photographs if isinstance(photo, Tensor)]
    faults = [photo if isinstance(photo, str) else None for photo in photographs]
    # into shared memory here: if it has no room, the DataLoader's own queue would drop the batch and wait for ever
    return torch.stack(sound).share_memory_() if sound else torch.empty(0), faults


def _ignore_warnings(_: int) -> None:
    warnings.simplefilter("ignore")  # Pillow's, on files that it reads all the same


@contextmanager
def _written_behind() -> Iterator[Callable[..., None]]:
    """A function that calls another in a thread: one at a time, in order, a few waiting; all are done at the end."""
    waiting: deque[Future] = deque()

    def write(function: Callable[..., None], *arguments: Any) -> None:
        waiting.append(thread.submit(function, *arguments))
        if len(waiting) > _BEHIND:
            waiting.popleft().result()

    with ThreadPoolExecutor(1) as thread:
        yield write
        for writing in waiting:
            writing.result()


class _Fetch:
    """Grids on their way from the device, and whether all are finite: the host waits for these alone."""

    def __init__(self, grids: Tensor) -> None:
        on_gpu, is_finite = grids.device.type == "cuda", grids.isfinite().all()
        self.grids, self.is_finite = (x.to("cpu", non_blocking=on_gpu) for x in (grids, is_finite))  # pinned
        self.done = torch.cuda.Event() if on_gpu else None
        if self.done is not None:
            self.done.record()

    def result(self, params: GridParams) -> np.ndarray:
        """The grids. Raises `UserError` where one is not finite."""
        if self.done is not None:
            self.done.synchronize()
        if not self.is_finite:
            raise UserError(
                f"{params.model} gives grids that are not finite in {params.dtype}; set {params.key('dtype')} to "
                f"float32, and {params.key('precision')} to fp32"
            )
        return self.grids.numpy()


def _encoded(
    encoder: GridEncoder, jobs: list[tuple[bytes, Path]]
) -> Iterator[tuple[list[bytes], np.ndarray, dict[bytes, str]]]:
    """Keys and grids of the photographs that could be read, and the faults of the others by key, batch by batch.

    A GPU computes one batch while the grids of the batch before it are copied and cached.
    """
    if not jobs:
        return
    on_gpu = encoder.device.type == "cuda"
    size = encoder.params.batch_size if on_gpu else min(encoder.params.batch_size, 16)  # cached that often
    loader = DataLoader(
        _Photographs([path for _, path in jobs], encoder.preparation),
        size,
        collate_fn=_collate,
        num_workers=min(16, threads()) if on_gpu else 1,
        worker_init_fn=_ignore_warnings,
    )
    waiting: tuple[list[bytes], _Fetch, dict[bytes, str]] | None = None
    try:
        for start, (photographs, faults) in zip(range(0, len(jobs), size), loader, strict=True):
            keys = [key for key, _ in jobs[start : start + size]]
            broken = {key: fault for key, fault in zip(keys, faults, strict=True) if fault is not None}
            keys = [key for key in keys if key not in broken]
            fetch = _Fetch(encoder.encode(photographs) if keys else torch.empty((0, *encoder.shape)))
            if waiting:
                yield waiting[0], waiting[1].result(encoder.params), waiting[2]
            waiting = keys, fetch, broken
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        if "</torch_" in str(error):  # the name of a piece of shared memory
            raise UserError(
                f"{size} images do not fit into shared memory; lower {encoder.params.key('batch_size')}, or give it "
                "more room, e.g. `ulimit -f unlimited` or `docker run --shm-size 1g`"
            ) from None
        raise UserError("a process that reads images died, often for lack of memory; run it again to go on") from None
    if waiting:
        yield waiting[0], waiting[1].result(encoder.params), waiting[2]


class _Figures:
    """Figures that show dead or constant grids, summed up while the blocks are written."""

    def __init__(self) -> None:
        self._count, self._sum, self._squares, self._least, self._most = 0, 0.0, 0.0, np.inf, -np.inf

    def watch(self, blocks: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
        for block in blocks:
            values = block.astype(np.float32)
            self._count += values.size
            self._sum += float(values.sum(dtype=np.float64))
            self._squares += float(np.square(values).sum(dtype=np.float64))
            self._least, self._most = min(self._least, float(values.min())), max(self._most, float(values.max()))
            yield block

    def result(self) -> dict[str, float]:
        mean = self._sum / self._count
        spread = max(self._squares / self._count - mean**2, 0.0) ** 0.5
        named = {"mean": mean, "std": spread, "min": self._least, "max": self._most}
        return {name: float(f"{value:.4g}") for name, value in named.items()}
