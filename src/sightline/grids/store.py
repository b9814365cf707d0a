"""Reading grid features: a file, or a folder of shards that are read as one.

    <folder>/<first>-<last>.hdf5   a shard, see `sightline.grids.file`: a range of episodes, or of image ids
    <folder>/shards.json           the shards by name: number of images, and a key of images and settings; also
                                   ``recording``, a key of the recording, which is not in the shards: it changes with
                                   every episode that is added

Appended episodes rewrite at most the last shard; DVC pushes only what is new. The list shows whether a shard is
missing, or was made from other images or with other settings.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sightline.core.errors import UserError
from sightline.grids.file import GridFile, content_key

SHARD_LIST = "shards.json"
GPU_SHARE = 0.5  # of the free memory of a GPU that a store may take
_MOST_MAPPED = 2**30  # bytes: larger stores are not read through memory maps, which count as memory of the process
_MOST_OPEN = 256  # files of a store that are held open at a time


class MissingImageError(UserError, KeyError):
    """A store does not hold an image that was asked for."""

    __str__ = Exception.__str__  # KeyError's puts quotes around the message


class GridStore:
    """Grid features, opened for reading.

    It can be pickled, and used in forked and spawned DataLoader workers, each of which opens the files for itself. But
    reading a plain file is faster than passing its rows between processes: use ``num_workers=0``.

    Args:
        path: a file, or a folder of shards.
        model, tokens, grid: what the store must hold; None accepts anything.

    Raises:
        UserError: no such file, not a file of grids, one of another model, token source or grid; a shard that is
            missing, not of its folder, or made differently.
    """

    def __init__(
        self, path: Path | str, *, model: str | None = None, tokens: str | None = None, grid: int | None = None
    ) -> None:
        self.path = Path(path)
        self._resident: Tensor | bool | None = None  # False: it does not fit
        self._by_name: dict[str, list[int]] | None = None  # made when an image is first asked for by name
        self._open: dict[int, None] = {}  # numbers of the files that are held open, the longest unused first
        self._files: list[GridFile] = []
        self.recording = ""  # a key of the recording, see `sightline.recording.frames.recording_key`; "": not known
        for file in self._opened():
            self._files.append(file)
            self._use(len(self._files) - 1)
        first = self._files[0]
        self.attributes, self.dtype = first.attributes, first.dtype
        self.recording = self.recording or str(self.attributes.get("recording", ""))
        self._check_expected({"model": model and model.replace("/", "-"), "tokens": tokens, "grid": grid})
        ids = _joined([file.image_ids for file in self._files])
        self._starts = np.cumsum([0, *(len(file.image_ids) for file in self._files)])  # of each file in what they hold
        rises = bool((np.diff(ids) > 0).all())
        self._order = None if rises else np.argsort(ids, kind="stable")  # episodes may take turns with the ids
        self.image_ids: np.ndarray = ids if self._order is None else ids[self._order]
        twice = self.image_ids[1:][np.diff(self.image_ids) == 0]
        if len(twice):
            raise UserError(f"{path}: image {twice[0]} is in two of its shards; extract the grids again")
        self.skipped_ids: np.ndarray = np.sort(_joined([file.skipped_ids for file in self._files]))
        self.shape: tuple[int, int, int] = (len(ids), *first.shape[1:])
        self._mapped = math.prod(self.shape) * self.dtype.itemsize <= _MOST_MAPPED

    def _opened(self) -> Iterator[GridFile]:
        """The file itself, or the shards of the folder, each checked to be the one that the list names."""
        if not self.path.is_dir():
            yield GridFile(self.path)
            return
        listed, self.recording = _read_list(self.path)
        first = None
        surplus = sorted({path.name for path in self.path.glob("*.hdf5")} - set(listed))
        if surplus:
            raise UserError(f"{self.path / surplus[0]}: not a shard that {SHARD_LIST} names; remove it")
        for name, said in listed.items():
            if not (self.path / name).is_file():
                raise UserError(f"{self.path / name}: a shard is missing; copy or pull the whole folder")
            shard = GridFile(self.path / name)
            first = first or shard
            for what, value in first.attributes.items():
                if shard.attributes.get(what) != value:
                    raise UserError(
                        f"{shard.path}: {what} is {shard.attributes.get(what)}, but {value} in {first.path.name}; "
                        "extract the grids again"
                    )
            key = content_key(shard.image_ids, shard.content_hash, shard.skipped_ids, shard.attributes)
            if said["key"] != key or shard.shape[1:] != first.shape[1:] or shard.dtype != first.dtype:
                raise UserError(f"{shard.path}: not the shard that {SHARD_LIST} names; copy or pull the whole folder")
            yield shard

    def _check_expected(self, expected: Mapping[str, Any]) -> None:
        for name, value in expected.items():
            if value is not None and self.attributes.get(name) != value:
                raise UserError(
                    f"{self.path}: {name} is {self.attributes.get(name)!r}, but {value!r} is expected; "
                    "extract the grids again, or change the parameters"
                )

    @property
    def content_hash(self) -> np.ndarray:
        """BLAKE2b of each image file in the order of ``image_ids``, hexadecimal, S32 [N]."""
        hashes = _joined([file.content_hash for file in self._files])
        return hashes if self._order is None else hashes[self._order]

    def __len__(self) -> int:
        return len(self.image_ids)

    @property
    def image_names(self) -> list[str]:
        """Name of each image in the order of ``image_ids``: its file's without suffix, or its text id.

        Raises:
            UserError: a store that an older version wrote.
        """
        names = [file.image_names for file in self._files]
        if any(name is None for name in names):
            raise UserError(f"{self.path}: holds no image names, an older version wrote it; extract the grids again")
        joined = _joined([name for name in names if name is not None])
        return [name.decode() for name in (joined if self._order is None else joined[self._order]).tolist()]

    def __contains__(self, image: int | str) -> bool:
        try:
            self.rows([self._id_of(image)])
        except MissingImageError:
            return False
        return True

    def __getitem__(self, image: int | str) -> np.ndarray:
        """Grid of one image, [P, C], by its id or by its name, with or without the suffix of its file.

        Raises:
            MissingImageError: it is not here.
            UserError: neither a whole number nor text, or a name that several images have.
        """
        return self.take(self.rows([self._id_of(image)]))[0]

    def _id_of(self, image: int | str) -> Any:
        if not isinstance(image, str):
            return image
        if self._by_name is None:
            self._by_name = {}
            for name, image_id in zip(self.image_names, self.image_ids.tolist(), strict=True):
                self._by_name.setdefault(name, []).append(image_id)
        ids = self._by_name.get(image) or self._by_name.get(Path(image).stem) or []
        if len(ids) != 1:
            several = (
                f"images {ids[0]} and {ids[1]} have the name {image!r}; ask by id" if ids else f"no image {image!r}"
            )
            raise (UserError if ids else MissingImageError)(f"{self.path}: {several}")
        return ids[0]

    def read(self, image_ids: Sequence[int] | np.ndarray) -> np.ndarray:
        """Grids of ``image_ids`` in their order, [B, P, C]. Raises `MissingImageError`."""
        return self.take(self.rows(image_ids))

    def read_tensor(self, image_ids: Sequence[int] | np.ndarray, device: torch.device | str = "cpu") -> Tensor:
        """`read`, as a tensor on ``device``.

        The first call for a GPU puts the whole store into its memory, where it fits into half of what is free.
        """
        device, rows = torch.device(device), self.rows(image_ids)
        if device.type == "cuda" and self._resident is None:
            free, _ = torch.cuda.mem_get_info(device)
            fits = math.prod(self.shape) * self.dtype.itemsize <= GPU_SHARE * free
            self._resident = self._load(device) if fits else False
        if isinstance(self._resident, Tensor) and self._resident.device.type == device.type:
            return self._resident[torch.from_numpy(rows).to(device)]
        return torch.from_numpy(self.take(rows)).to(device, non_blocking=True)

    def rows(self, image_ids: Sequence[int] | np.ndarray) -> np.ndarray:
        """Row numbers of ``image_ids``, int64 [B].

        Raises:
            MissingImageError: an image is not here.
            UserError: ids that are not whole numbers.
        """
        wanted = whole_numbers(image_ids)
        rows = np.searchsorted(self.image_ids, wanted)
        is_here = self.image_ids[np.minimum(rows, len(self) - 1)] == wanted
        if not is_here.all():
            missing = wanted[~is_here]
            why = "it could not be read when the file was made" if missing[0] in self.skipped_ids else "extract it"
            raise MissingImageError(
                f"{self.path}: no grid of image {missing[0]} ({len(missing)} of {len(wanted)} are missing); {why}"
            )
        return rows

    def take(self, rows: np.ndarray) -> np.ndarray:
        """Grids of the row numbers that `rows` gives, [B, P, C]."""
        rows = np.asarray(rows) if self._order is None else self._order[rows]
        if len(rows) and not 0 <= rows.min() <= rows.max() < len(self):
            raise IndexError(f"{self.path}: row {rows.min()} to {rows.max()} of {len(self)}")
        out = np.empty((len(rows), *self.shape[1:]), self.dtype)
        if len(self._files) == 1:
            self._use(0).read(rows, out, np.arange(len(rows)), self._mapped)
            return out
        holders = np.searchsorted(self._starts, rows, side="right") - 1
        for holder in np.unique(holders).tolist():
            places = np.flatnonzero(holders == holder)
            self._use(holder).read(rows[places] - self._starts[holder], out, places, self._mapped)
        return out

    def blocks(self, size: int = 1024) -> Iterator[np.ndarray]:
        """All grids in the order of ``image_ids``, ``size`` at a time: [<= size, P, C]."""
        for start in range(0, len(self), size):
            yield self.take(np.arange(start, min(start + size, len(self))))

    def close(self) -> None:
        """Let go of the files; the next use opens them again."""
        for file in self._files:
            file.close()
        self._open, self._resident = {}, None

    def __enter__(self) -> "GridStore":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": {}, "_resident": None}

    def __repr__(self) -> str:
        model, tokens = self.attributes.get("model"), self.attributes.get("tokens")
        return f"GridStore({str(self.path)!r}: {len(self):,} x {self.shape[1:]} {self.dtype}, {model}, {tokens})"

    def _use(self, holder: int) -> GridFile:
        """The file to read from; if too many are open, the one unused for longest is closed."""
        self._open.pop(holder, None)
        self._open[holder] = None
        if len(self._open) > _MOST_OPEN:
            oldest = next(iter(self._open))
            del self._open[oldest]
            self._files[oldest].close()
        return self._files[holder]

    def _load(self, device: torch.device) -> Tensor:
        resident = torch.empty(self.shape, dtype=getattr(torch, self.dtype.name), device=device)
        done = 0
        for block in self.blocks():
            resident[done : done + len(block)] = torch.from_numpy(block)
            done += len(block)
        return resident


def whole_numbers(image_ids: Sequence[int] | np.ndarray) -> np.ndarray:
    """Image ids as int64 [B]. Raises `UserError` for others than whole numbers: numpy makes 27 of 27.9 and of "27"."""
    ids = np.asarray(image_ids)
    if ids.ndim != 1 or (ids.dtype.kind not in "iu" and len(ids)):
        raise UserError(f"image ids must be whole numbers, not {ids.dtype.name if ids.dtype.kind != 'U' else 'text'}")
    return ids.astype(np.int64)


class GridRows:
    """Grids of some images as an array [N, P, C] whose rows are read when they are asked for.

    Args:
        store: where they are.
        image_ids: of each row. Raises `MissingImageError`.
    """

    def __init__(self, store: GridStore, image_ids: np.ndarray) -> None:
        self._store, self._rows = store, store.rows(image_ids)
        self.shape: tuple[int, int, int] = (len(image_ids), *store.shape[1:])

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        return self._store.take(self._rows[rows])


def identifying_file(path: Path) -> Path:
    """The file whose hash identifies a store: the store itself, or a folder's list of shards."""
    return path / SHARD_LIST if path.is_dir() else path


def _read_list(folder: Path) -> tuple[dict[str, dict[str, Any]], str]:
    """The shards by name, and the key of the recording."""
    path = folder / SHARD_LIST
    if not path.is_file():
        raise UserError(f"{folder}: no {SHARD_LIST} in it, so no grid features; write some with sightline clip_grids")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        listed, recording = content["shards"], str(content.get("recording", ""))
        sound = all(Path(name).name == name and isinstance(said["key"], str) for name, said in listed.items())
    except (ValueError, LookupError, TypeError, AttributeError):
        sound = False
    if not sound or not listed:
        raise UserError(f"{path}: not a list of shards; copy or pull the whole folder")
    return dict(listed), recording


def _joined(arrays: list[np.ndarray]) -> np.ndarray:
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
