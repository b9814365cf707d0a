"""The table of a recording, ``frames.parquet``, and the frame index that validation makes of it.

frames.parquet: one row per frame
    frame_id  int     unique, not negative; names the frame's images; rises with the step within an episode
    episode   int
    step      int     0, 1, 2 ... within the episode, none missing
    time_s    float   seconds, strictly rising within the episode
    joints    [J]     optional: joint states, in the order of recording.json's ``joints``
    actions   [A]     optional
    reward    float   optional
    success   bool    optional: an episode has succeeded if any of its frames says so
    object_position  [P]  optional: x, y, z of the task's object (or of several), metres; to probe embeddings with
    goal_position    [3]  optional: x, y, z of the task's goal, metres
    task      text    optional: what the episode is about, in words
    split     text    optional: train, val or test, the same within an episode; replaces the split by the seed
Other columns are copied unchanged.

frame index: the sound frames, with columns frame_id, episode, step, time_s, split (train, val, test); ``recording`` in
the metadata of its schema is the `recording_key`
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from sightline.core.errors import UserError
from sightline.core.files import atomic_output, require_file
from sightline.recording.layout import RecordingInfo
from sightline.recording.split import PARTS

_INDEX = pa.schema(
    {"frame_id": pa.int64(), "episode": pa.int64(), "step": pa.int64(), "time_s": pa.float64(), "split": pa.string()}
)
_RECORDING = b"recording"
_KEYS = ("frame_id", "episode", "step")
_LISTS = ("joints", "actions", "object_position", "goal_position")
_LENGTHS = {"goal_position": 3}
_TEXTS = ("task", "split")


def read_frames(path: Path, info: RecordingInfo | None = None) -> pd.DataFrame:
    """Read and check ``frames.parquet`` -> one row per frame, sorted by frame_id.

    ``joints`` and ``actions`` come as one array per row: ``np.stack(frames["joints"])`` is [N, J].

    Args:
        path: the table.
        info: with it, each row must have the joints that it names.

    Raises:
        UserError: not a parquet table, or one that breaks the contract at the top of this module. A line for each
            fault that names the file, the column, how many rows are wrong and the first of them.
    """
    table = _read_table(path)
    wrong = _column_faults(table, info)
    if table.num_rows == 0:
        raise UserError(f"{path}: {wrong['']}")
    # the other columns, each of which is sound in itself
    frames = table.select([i for i, name in enumerate(table.column_names) if name not in wrong]).to_pandas()
    kinds = {**dict.fromkeys(_KEYS, "int64"), "time_s": "float64"}
    kinds |= dict.fromkeys(_TEXTS, "object")  # also where pandas had categories
    frames = frames.astype({name: kind for name, kind in kinds.items() if name in frames})
    # and beside each other
    faults = [*wrong.values()]
    of_ids = _id_faults(frames) if "frame_id" in frames else []
    faults += of_ids
    if "frame_id" in frames:
        frames = frames.sort_values("frame_id", ignore_index=True)
    if set(_KEYS) <= set(frames):
        faults += _episode_faults(frames, not of_ids)
    if "split" in frames:
        faults += _split_faults(frames)
    if faults:
        raise UserError("\n".join(f"{path}: {fault}" for fault in faults))
    return frames


def recording_key(frames: pd.DataFrame) -> str:
    """32 hexadecimal digits that differ for tables with other frames, episodes, steps or joints.

    So that what was made from one recording is not taken for another's whose frame ids are the same.
    """
    key = hashlib.blake2b(digest_size=16)
    for name in _KEYS:
        key.update(np.ascontiguousarray(frames[name], "<i8").data)
    if "joints" in frames:
        key.update(np.stack(frames["joints"].tolist()).astype("<f8").tobytes())
    return key.hexdigest()


def write_index(path: Path, frames: pd.DataFrame, recording: str = "") -> None:
    """Write the frame index: the columns frame_id, episode, step, time_s and split of ``frames``, in its order.

    The same rows give the same bytes.

    Args:
        recording: the `recording_key` of the whole table; "" for none.
    """
    schema = _INDEX.with_metadata({_RECORDING: recording}) if recording else _INDEX
    table = pa.table([pa.array(frames[field.name], field.type) for field in _INDEX], schema=schema)
    with atomic_output(path) as temporary:
        pq.write_table(table, temporary)


def read_index(path: Path) -> pd.DataFrame:
    """Read a frame index -> columns frame_id, episode, step, time_s, split.

    Raises:
        UserError: no such file, or not a frame index.
    """
    if not path.exists():
        raise UserError(f"{path}: no such frame index; make one with sightline validate")
    table = _read_table(path)
    if not table.schema.equals(_INDEX):
        columns = ", ".join(table.column_names)
        raise UserError(f"{path}: not a frame index (its columns are {columns}); make one with sightline validate")
    frames = table.to_pandas()
    if not frames["split"].isin(PARTS).all():
        raise UserError(f"{path}: split: expected only {', '.join(PARTS)}")
    return frames


def read_recording_key(index: Path) -> str:
    """The `recording_key` in a frame index that `read_index` reads; "" where an older version wrote it."""
    try:
        metadata = pq.read_schema(index).metadata or {}
    except (OSError, ValueError, pa.ArrowException) as error:
        raise UserError(f"{index}: not a frame index ({' '.join(str(error).split())})") from None
    return str(metadata.get(_RECORDING, b"").decode("ascii", "replace"))


def first_few(values: Sequence[object] | np.ndarray | pd.Series, limit: int = 5) -> str:
    """The first values, and how many more: ``3, 4, 5, 6, 7 and 17 more``."""
    shown = ", ".join(map(str, np.asarray(values[:limit]).tolist()))
    return shown + (f" and {len(values) - limit} more" if len(values) > limit else "")


def _read_table(path: Path) -> pa.Table:
    require_file(path, "a parquet file")
    try:
        with pq.ParquetFile(path) as file:
            table = file.read().replace_schema_metadata()  # else pandas' own notes may turn a column into row labels
        str(table.schema)  # names that are not text fail here, not later
        return table
    except (OSError, ValueError, pa.ArrowException) as error:
        raise UserError(f"{path}: not a parquet file that can be read ({' '.join(str(error).split())})") from None


def _column_faults(table: pa.Table, info: RecordingInfo | None) -> dict[str, str]:
    """What is wrong with columns, each by itself -> a fault by name, that of absent columns together under "".

    Presence, type, nulls, NaN and lengths of the columns that mean something.
    """
    faults: dict[str, str] = {}
    names = table.column_names
    missing = [name for name in (*_KEYS, "time_s") if name not in names]
    if missing:
        faults[""] = f"no column {', '.join(missing)}; it has {', '.join(names) or 'none'}"
    if table.num_rows == 0:
        return faults or {"": "the table has no rows"}
    if info and info.joints and "joints" not in names:
        faults["joints"] = f"no column joints, but recording.json names {len(info.joints)} joints"
    expected = {
        **dict.fromkeys(_KEYS, ("an integer", pa.types.is_integer)),
        **dict.fromkeys(("time_s", "reward"), ("a number", _is_number)),
        **dict.fromkeys(_LISTS, ("a list of numbers", _is_list_of_numbers)),
        **dict.fromkeys(_TEXTS, ("text", _is_text)),
        "success": ("true or false", pa.types.is_boolean),
    }
    for name, (words, is_right) in expected.items():
        if name not in names:
            continue
        column = table.column(name)
        rows = np.flatnonzero(column.is_null().to_numpy())
        if column.null_count:
            faults[name] = f"{name}: {len(rows)} of {len(column)} rows are empty (rows {first_few(rows)})"
        elif not is_right(column.type):
            faults[name] = f"{name}: expected {words} per row, the column holds {column.type}"
    has_ids = "frame_id" in names and "frame_id" not in faults
    ids = table.column("frame_id").to_numpy() if has_ids else np.arange(table.num_rows)
    for name in ("time_s", *_LISTS, "reward"):
        if name in names and name not in faults:
            wrong = _not_finite(table.column(name), name)
            lengths = _LENGTHS.get(name), len(info.joints) if info and name == "joints" else None
            wrong = wrong or (_wrong_lengths(table.column(name), *lengths) if name in _LISTS else None)
            if wrong:
                rows, words = wrong
                where = f"{'frames' if has_ids else 'rows'} {first_few(ids[rows])}"
                faults[name] = f"{name}: {len(rows)} of {table.num_rows} rows hold {words} ({where})"
    return faults


def _is_number(kind: pa.DataType) -> bool:
    return pa.types.is_integer(kind) or pa.types.is_floating(kind)


def _is_text(kind: pa.DataType) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def _is_list_of_numbers(kind: pa.DataType) -> bool:
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    return is_list and _is_number(kind.value_type)


def _not_finite(column: pa.ChunkedArray, name: str) -> tuple[np.ndarray, str] | None:
    """Rows with NaN, infinity or nothing, and these words; None where there are none."""
    rows_of_values = np.arange(len(column))
    if name in _LISTS:
        rows_of_values = np.repeat(rows_of_values, _lengths(column))
        column = pa.chunked_array([chunk.flatten() for chunk in column.chunks])
    values = column.to_numpy().astype("float64")  # an empty number becomes NaN
    rows = np.unique(rows_of_values[~np.isfinite(values)])
    return (rows, "NaN, infinity or nothing") if len(rows) else None


def _wrong_lengths(column: pa.ChunkedArray, fixed: int | None, named: int | None) -> tuple[np.ndarray, str] | None:
    """Rows with other than as many numbers as recording.json names, as the column is ``fixed`` to, or as the first."""
    lengths = _lengths(column)
    wanted = next((count for count in (named, fixed) if count is not None), int(lengths[0]))
    rows = np.flatnonzero(lengths != wanted)
    first = "the first row has" if fixed is None else "each needs"
    source = first if named is None else "recording.json names"
    held = first_few(np.unique(lengths[rows]))
    return (rows, f"{held} numbers, but {source} {wanted}") if len(rows) else None


def _lengths(column: pa.ChunkedArray) -> np.ndarray:
    return np.asarray(pc.list_value_length(column).to_numpy())


def _id_faults(frames: pd.DataFrame) -> list[str]:
    ids = frames["frame_id"]
    negative, repeated = ids[ids < 0], ids[ids.duplicated()].unique()
    return [
        f"frame_id: {len(wrong)} {words} ({first_few(np.sort(wrong))})"
        for wrong, words in ((negative, f"of {len(ids)} are negative"), (repeated, "ids are there more than once"))
        if len(wrong)
    ]


def _episode_faults(frames: pd.DataFrame, has_ids: bool) -> list[str]:
    """Within each episode: steps 0..n-1, and time and frame_id that rise with the step.

    Where steps are wrong, time is to rise with frame_id. ``has_ids``: frame_id is sound.
    """
    faults = []
    ordered = frames.sort_values(["episode", "step", "frame_id"])
    by_episode = ordered.groupby("episode")
    expected = by_episode.cumcount()
    wrong = ordered[ordered["step"] != expected].groupby("episode").head(1)
    if len(wrong):
        first = wrong.iloc[0]
        faults.append(
            f"step: not 0, 1, 2 ... in {len(wrong)} of {len(by_episode)} episodes: frames are missing or repeated "
            f"(episode {first['episode']}: frame {first['frame_id']} has step {first['step']}, expected "
            f"{expected[wrong.index[0]]})"
        )
        ordered = frames  # by frame_id
    order = "frame_id" if len(wrong) else "the step"
    rises = {"time_s": "time_s" in frames and (has_ids or not len(wrong)), "frame_id": has_ids and not len(wrong)}
    for name in (name for name, is_checked in rises.items() if is_checked):
        rows = ordered[ordered.groupby("episode")[name].diff() <= 0]
        if len(rows):
            values = "" if name == "frame_id" else f" with {name} {first_few(rows[name])}"
            faults.append(
                f"{name}: does not rise with {order} within an episode at {len(rows)} of {len(frames)} frames "
                f"(frames {first_few(rows['frame_id'])}{values})"
            )
    return faults


def _split_faults(frames: pd.DataFrame) -> list[str]:
    """The source's own split: known parts, the same within an episode, with something to train on."""
    split = frames["split"]
    wrong = frames[~split.isin(PARTS)]
    if len(wrong):
        where = f" (frames {first_few(wrong['frame_id'])})" if "frame_id" in frames else ""
        held = first_few(wrong["split"].unique())
        return [f"split: {len(wrong)} of {len(frames)} rows hold {held}, expected {', '.join(PARTS)}{where}"]
    parts = split.groupby(frames["episode"]).nunique() if "episode" in frames else pd.Series(dtype="int64")
    torn = parts.index[parts > 1]
    if len(torn):
        counts = f"{len(torn)} of {len(parts)} episodes (episodes {first_few(torn.to_numpy())})"
        return [f"split: changes within {counts}; give all frames of an episode the same part"]
    if not (split == "train").any():
        return ["split: no train episode; name some, or drop the column to split by data.split"]
    return []
