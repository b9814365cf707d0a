"""What the user chooses about an import, whatever the source: the options of the scripts, and how they are heeded."""

import re
from argparse import ArgumentParser, Namespace
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sightline.core.errors import UserError
from sightline.recording.frames import first_few

NATIVE = 0  # picture size: as it is
NO_DEPTH = "none"  # what `ImportOptions.depth` may hold in place of a key
PRESENT = "present"  # what `ImportOptions.episodes` may be in place of numbers
DepthUnit = Literal["m", "mm"]


@dataclass(frozen=True)
class ImportOptions:
    """What the user chooses about an import, whatever the source. Keys are those of the source."""

    cameras: Sequence[str] = ()  # see `choose_cameras`
    joints: Sequence[str] = ()  # keys of the source that are joined as joint states; empty: the format's usual one
    actions: Sequence[str] = ()  # the same of the actions
    skip: Sequence[int] = ()  # numbers of the episodes to leave out
    size: int = 224  # shorter side of the written pictures, pixels; smaller ones are not enlarged. `NATIVE`: no change
    processes: int | None = None  # that read and write pictures; None: one per core
    episodes: str | None = None  # "0-9,12": only these; "present": those that are there of a set that is not whole
    flip: bool = False  # turn pictures upside down, colour and depth
    depth_unit: DepthUnit | None = None  # of depth whose source does not say it
    depth: Sequence[str] = ()  # see `choose_depth`
    confidence: Sequence[str] = ()  # see `choose_confidence`


def add_options(parser: ArgumentParser) -> None:
    """Add the options of `ImportOptions` to the parser of a script."""
    several: dict[str, Any] = {"action": "append", "default": []}
    parser.add_argument(
        "--camera", **several, metavar="KEY[=NAME]",
        help="import this camera, as NAME; repeat for more (default: all, named by the last part of their keys)",
    )  # fmt: skip
    parser.add_argument("--joints", **several, metavar="KEY", help="joint states; repeat to join several keys")
    parser.add_argument("--actions", **several, metavar="KEY", help="actions; repeat to join several keys")
    parser.add_argument("--episodes", metavar="N", help="only these, such as 0-9,12; present: those that are there")
    parser.add_argument("--skip", type=int, **several, metavar="N", help="leave episode N out; repeat")
    parser.add_argument(
        "--size", type=int, default=ImportOptions.size,
        help="shorter side of colour pictures, pixels; 0: as it is (%(default)s). Depth keeps its size",
    )  # fmt: skip
    parser.add_argument("--flip", action="store_true", help="turn upside down all pictures that would not be upright")
    parser.add_argument(
        "--depth", **several, metavar="KEY[=NAME]",
        help="import this depth, as NAME; repeat for more (default: all); none: no depth",
    )  # fmt: skip
    parser.add_argument("--depth-unit", choices=["m", "mm"], help="unit of depth whose source does not say it")
    parser.add_argument(
        "--confidence", **several, metavar="KEY[=NAME]",
        help="confidence map of the depth NAME: where it is 0, depth is marked invalid; repeat",
    )  # fmt: skip
    parser.add_argument("--processes", type=int, help="episodes read at a time (default: one per core)")


def options(args: Namespace) -> ImportOptions:
    """The options that a parser with `add_options` has read."""
    return ImportOptions(
        args.camera, args.joints, args.actions, args.skip, args.size, args.processes, args.episodes, args.flip,
        args.depth_unit, args.depth, args.confidence,
    )  # fmt: skip


def choose_cameras(options: Iterable[str], keys: Iterable[str], source: Path) -> dict[str, str]:
    """Which cameras are imported: key in the source -> name in the recording, in the source's order.

    Args:
        options: ``KEY=NAME`` or ``KEY`` strings; with any, only these cameras. Without: all, each named by the last
            component of its key.
        keys: of the source's cameras.
        source: for messages.

    Raises:
        UserError: no cameras, an unknown key, a name that cannot be a folder's, two cameras of one name.
    """
    keys = list(keys)
    if not keys:
        raise UserError(f"{source}: no camera pictures in it; a recording needs at least one camera")
    return _choose("camera", options, keys, source)


def choose_depth(options: Sequence[str], keys: Iterable[str], source: Path) -> dict[str, str]:
    """Which depth is imported: key in the source -> name of the depth camera, in the source's order.

    The same as `choose_cameras`, but a source may have none, and the option ``none`` imports none.

    Raises:
        UserError: see `choose_cameras`.
    """
    return {} if list(options) == [NO_DEPTH] else _choose("depth", options, list(keys), source)


def choose_confidence(
    options: Iterable[str], keys: Iterable[str], depth: Iterable[str], source: Path
) -> dict[str, str]:
    """Which confidence map belongs to which depth: name of the depth camera -> key of its map in the source.

    Args:
        options: ``KEY=NAME`` with the name of a depth camera, or ``KEY``: the depth camera named by the last component
            of the key, or the only one.
        keys: of what may be a confidence map.
        depth: names of the depth cameras that are imported.
        source: for messages.

    Raises:
        UserError: an unknown key, a map of no depth camera, or two maps of one.
    """
    keys, depth, maps = list(keys), list(depth), dict[str, str]()
    for option in options:
        key, _, name = option.partition("=")
        if key not in keys:
            there = f"it has {', '.join(keys)}" if keys else "it has none that could be"
            raise UserError(f"--confidence {option}: no confidence map {key!r} in {source}; {there}")
        name = name or (depth[0] if len(depth) == 1 else _last(key))
        if name not in depth:
            there = f"of {', '.join(depth)}" if depth else "no depth is imported; leave --confidence out"
            raise UserError(f"--confidence {option}: no depth {name!r}; name it with --confidence KEY=NAME: {there}")
        if name in maps:
            raise UserError(f"--confidence {option}: {maps[name]} is already the map of {name}; name one of them")
        maps[name] = key
    return maps


def _choose(kind: str, options: Iterable[str], keys: list[str], source: Path) -> dict[str, str]:
    names = dict[str, str]()
    for option in options or keys:
        key, _, name = option.partition("=")
        if key not in keys:
            there = f"it has {', '.join(keys)}" if keys else "it has none"
            raise UserError(f"--{kind} {option}: no {kind} {key!r} in {source}; {there}")
        if key in names:
            raise UserError(f"--{kind} {option}: {key} is named twice; name it once")
        names[key] = name or _last(key)
        if not re.fullmatch(r"\w[\w-]*", names[key]):
            raise UserError(f"--{kind} {option}: {names[key]!r} names a folder; use letters, digits, _ and - only")
    for name, count in Counter(names.values()).items():
        if count > 1:
            same = " and ".join(key for key in names if names[key] == name)
            many = "cameras" if kind == "camera" else kind
            raise UserError(f"{many} {same} would both be called {name}; name them with --{kind} KEY=NAME")
    return {key: names[key] for key in keys if key in names}


def _last(key: str) -> str:
    return re.split(r"[./]", key)[-1]


def choose_episodes(numbers: Iterable[int], options: ImportOptions, source: Path) -> set[int]:
    """Numbers of the episodes to import: of ``--episodes``, without those of ``--skip``.

    Args:
        numbers: of the episodes that the source has; with ``--episodes present``, of those whose files are there.
        source: for messages.

    Raises:
        UserError: episodes that cannot be read, numbers that no episode has (all in one line), no episode left.
    """
    there = sorted(set(numbers))
    wanted = set(there) if options.episodes in (None, PRESENT) else _numbers(str(options.episodes))
    for option, named in ((f"--episodes {options.episodes}", wanted), ("--skip", set(options.skip))):
        missing = sorted(named - set(there))
        if missing:
            option = option if option != "--skip" else f"--skip {' --skip '.join(map(str, missing))}"
            raise UserError(f"{option}: no episode {first_few(missing)} in {source}; it has {ranges(there) or 'none'}")
    remaining = wanted - set(options.skip)
    if not remaining:
        raise UserError(f"{source}: no episode is left of {len(there)}; skip fewer with --skip, or change --episodes")
    return remaining


def _numbers(text: str) -> set[int]:
    """``0-9,12`` -> the numbers."""
    numbers = set[int]()
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,9})\s*(?:-\s*(\d{1,9})\s*)?", part)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if first > last or last - first > 10_000_000:
            raise UserError(f"--episodes {text}: give numbers and ranges, such as 0-9,12, or {PRESENT}")
        numbers |= set(range(first, last + 1))
    return numbers


def ranges(numbers: list[int]) -> str:
    """Sorted numbers as ``--episodes`` takes them: ``0-9,12``."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ",".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)
