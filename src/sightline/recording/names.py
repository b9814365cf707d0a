"""Which id an image has: by one naming rule for all files of a folder, or as a file of ids says. Never by a guess.

A *number* names an image if it stands alone at the end of its name, ``frame-000042.png``,
``COCO_val2014_000000391895.jpg``; words that all names of the folder share may follow it (``frame-000042.depth.png``),
or stand right before it (``frame000042.png``). Digits inside other words, hexadecimal or copied names (``42 (1).jpg``)
are refused, and so are names in which a second number changes: nothing says which of them is meant.

A *time stamp*, ``1305031102.160407.png`` (TUM RGB-D), is seconds and a fraction: ids then count the images in the order
of time. Fractions of 6 or 9 digits throughout are decimals; other names do not say whether ``.5`` is half a second or
five nanoseconds (ROS): the user does.
"""

import csv
import json
import re
import sys
from argparse import ArgumentParser, Namespace
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from sightline.core.errors import UserError

SUFFIXES = (".png", ".tif", ".tiff", ".jpg", ".jpeg", ".pgm", ".ppm", ".bmp", ".webp", ".gif")
TimeFormat = Literal["decimal", "sec_nsec"]
_INT64_MAX = 2**63 - 1
_TAIL = r"(?P<tail>(?:[\W_]+[^\W\d_]+)*)"  # words of letters
_NUMBER = re.compile(rf"(?P<head>.*?)(?P<number>[0-9]+){_TAIL}", re.DOTALL)
_TIME = re.compile(rf"(?P<head>(?:.*[\W_])?)(?<!\.)(?P<seconds>[0-9]+)\.(?P<fraction>[0-9]+){_TAIL}", re.DOTALL)
_ALONE = re.compile(r"(?<![^\W_])[0-9]+(?![^\W_])")  # numbers between separators
_SINCE_1970 = 10  # digits of such seconds
_DECIMALS = (6, 9)  # of time stamps that explain themselves
_FILE_COLUMNS = ("file_name", "filename", "file", "image", "name")
_ID_COLUMNS = ("id", "image_id", "cocoid", "imgid")  # the first that is there counts
_WAY_OUT = "or name their ids with --ids FILE (CSV with file_name and id, or COCO/Karpathy JSON)"


@dataclass(frozen=True)
class Naming:
    """How the user says that files are named, where their names do not."""

    ids: Path | None = None  # file name -> id
    time_format: TimeFormat | None = None  # of time stamps


BY_NAME = Naming()


@dataclass(frozen=True)
class Images:
    """Images of folders by id, ascending.

    Args:
        paths: id -> file.
        names: id -> text id (of a file of ids), or the file name without its suffix.
        time_ns: id -> time stamp, nanoseconds; None where names are not time stamps.
    """

    paths: dict[int, Path]
    names: dict[int, str]
    time_ns: dict[int, int] | None = None


def add_naming(parser: ArgumentParser) -> None:
    """Add the options that say how files are named."""
    parser.add_argument(
        "--ids", type=Path, metavar="FILE",
        help="ids of files whose names do not end in a number: CSV with file_name and id, or COCO/Karpathy JSON",
    )  # fmt: skip
    parser.add_argument(
        "--time-format", choices=get_args(TimeFormat),
        help="what 1.5 in a time stamp means: decimal 1.500000000 s, sec_nsec 1.000000005 s (ROS)",
    )  # fmt: skip


def naming(args: Namespace) -> Naming:
    """What the options of `add_naming` say."""
    return Naming(args.ids, args.time_format)


def list_frames(*folders: Path) -> dict[int, Path]:
    """Frame id -> path of the images in folders of a recording, sorted by id.

    Raises:
        UserError: see `image_files`; names that are not numbers, or two with the same one.
    """
    pairs, remedy = [], "a recording names images by frame id: rename them, e.g. to 000001.png"
    for folder in folders:
        paths = image_files(folder)
        times = [path.name for path in paths if _TIME.fullmatch(path.stem)]
        if times:
            raise UserError(f"{folder}: {len(times)} of {len(paths)} names are time stamps ({_some(times)}); {remedy}")
        pairs += _numbers(folder, paths, remedy)
    return _by_id(pairs, "frame id")


def list_images(*folders: Path, naming: Naming = BY_NAME, called: str = "frame id", text: bool = False) -> Images:
    """The images in ``folders`` by id; see the top of this module.

    Args:
        called: what messages call the id.
        text: whether ids may be text; such an image gets its place in the order of the ids.

    Raises:
        UserError: see `image_files`; names that follow no rule, two images of the same id, a file of ids that cannot be
            read or lacks images.
    """
    listed = {folder: image_files(folder) for folder in folders}
    paths = [path for found in listed.values() for path in found]
    if naming.ids:
        return _by_file(naming.ids, paths, called, text)
    times = [path for path in paths if _TIME.fullmatch(path.stem)]
    if times or naming.time_format:
        return _by_time(paths, times, naming.time_format)
    remedy = f"rename them, e.g. to 000001.png, {_WAY_OUT}"
    by_id = _by_id([pair for folder, found in listed.items() for pair in _numbers(folder, found, remedy)], called)
    return Images(by_id, {i: path.stem for i, path in by_id.items()})


def image_files(folder: Path) -> list[Path]:
    """Paths of the images in ``folder``, sorted.

    Raises:
        UserError: no such folder, no images in it, a broken link, or something that is not a file (reading a pipe
            would never end).
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    paths = [path for path in sorted(folder.iterdir()) if path.suffix.lower() in SUFFIXES and path.name[0] != "."]
    if not paths:
        raise UserError(f"{folder}: no images ({', '.join(SUFFIXES)}) in this folder")
    for path in paths:
        if not path.exists():
            raise UserError(f"{path}: a broken link; mend or remove it")
        if not (path.is_file() or path.is_dir()):  # the latter is a broken image
            raise UserError(f"{path}: is not a file; remove it")
    return paths


def _numbers(folder: Path, paths: list[Path], remedy: str) -> list[tuple[int, Path]]:
    """The number that names each image of a folder. Raises `UserError` where the names follow no rule."""
    matches = [(path, _NUMBER.fullmatch(path.stem)) for path in paths]
    heads = {match["head"] for _, match in matches if match}
    wrong = [path.name for path, match in matches if not (match and _stands_alone(match["head"], heads))]
    if wrong:
        count = f"{len(wrong)} of {len(paths)} file names do not end in a number that stands alone"
        raise UserError(f"{folder}: {count} ({_some(wrong)}); {remedy}")
    numbers = [(int(match["number"]), path, match) for path, match in matches if match]
    for what, key in (
        ("the number is followed by different words", lambda match: match["tail"]),
        ("more than one number changes from name to name", lambda match: _ALONE.findall(match["head"])),
    ):
        first = key(numbers[0][2])
        other = next((path.name for _, path, match in numbers if key(match) != first), None)
        if other:
            raise UserError(f"{folder}: {what} ({paths[0].name}, {other}), so which is the id? {remedy}")
    for number, path, _ in numbers:
        if number > _INT64_MAX:
            raise UserError(f"{path}: number {number} is beyond 64 bits; {remedy}")
    return [(number, path) for number, path, _ in numbers]


def _stands_alone(head: str, heads: set[str]) -> bool:
    """Whether a number after ``head`` is its own: after a separator, or a word of letters that all share."""
    word = re.search(r"[^\W_]*$", head)
    assert word is not None
    return not word[0] or (len(heads) == 1 and word[0].isalpha())


def _by_id(pairs: list[tuple[int, Path]], called: str) -> dict[int, Path]:
    images: dict[int, Path] = {}
    for number, path in pairs:
        other = images.setdefault(number, path)
        if other is not path:
            where = other.name if other.parent == path.parent else other
            raise UserError(f"{path}: same {called} {number} as {where}; {called}s must be unique")
    return dict(sorted(images.items()))


def _by_time(paths: list[Path], times: list[Path], how: TimeFormat | None) -> Images:
    """Images in the order of their time stamps, numbered from 0."""
    folder, parted = paths[0].parent, set(paths) - set(times)
    if parted:
        others = sorted(path.name for path in parted)
        raise UserError(
            f"{folder}: {len(others)} of {len(paths)} file names are not time stamps <seconds>.<fraction> "
            f"({_some(others)}); rename them, {_WAY_OUT}"
        )
    stamps = {path: _TIME.fullmatch(path.stem) for path in paths}
    matches = [match for match in stamps.values() if match]
    lengths = sorted({len(match["fraction"]) for match in matches})
    is_plain = all(not match["head"] or len(match["seconds"]) >= _SINCE_1970 for match in matches)
    alike = len({(match["head"], match["tail"]) for match in matches}) == 1
    if how is None and not (alike and is_plain and len(lengths) == 1 and lengths[0] in _DECIMALS):
        raise UserError(
            f"{folder}: are names like {paths[0].name} times? say --time-format decimal (1.5 is 1.500000000 s) or "
            f"sec_nsec (1.5 is 1.000000005 s), {_WAY_OUT}"
        )
    if lengths[-1] > 9:
        raise UserError(f"{folder}: time stamps with {lengths[-1]} digits after the point; at most 9, nanoseconds")
    by_time: dict[int, Path] = {}
    for path, match in stamps.items():
        assert match is not None
        fraction = match["fraction"] if how == "sec_nsec" else match["fraction"].ljust(9, "0")
        time_ns = int(match["seconds"]) * 10**9 + int(fraction)
        other = by_time.setdefault(time_ns, path)
        if other is not path:
            raise UserError(f"{path}: same time as {other}; remove one")
    if max(by_time) > _INT64_MAX:
        raise UserError(f"{by_time[max(by_time)]}: a time beyond 64 bits of nanoseconds; rename it")
    ordered = sorted(by_time)
    words = "seconds and nanoseconds" if how == "sec_nsec" else "decimal seconds"
    print(f"{folder}: names are time stamps ({words}): ids 0 to {len(ordered) - 1} in order of time", file=sys.stderr)
    ordered_paths = dict(enumerate(by_time[time] for time in ordered))
    return Images(ordered_paths, {i: path.stem for i, path in ordered_paths.items()}, dict(enumerate(ordered)))


def _by_file(file: Path, paths: list[Path], called: str, text: bool) -> Images:
    """Images with the ids that a file gives; text becomes the place in the order of all ids."""
    given = _read_ids(file)
    lacking = [path.name for path in paths if path.name not in given]
    if lacking:
        raise UserError(f"{file}: has no id for {len(lacking)} of {len(paths)} images ({_some(lacking)}); add them")
    by_name: dict[str, Path] = {}
    for path in paths:
        other = by_name.setdefault(given[path.name], path)
        if other is not path:
            raise UserError(f"{file}: {path} and {other} have the same {called} {given[path.name]}; mend it")
    numbers = [int(name) for name in by_name if re.fullmatch(r"[0-9]{1,19}", name) and int(name) <= _INT64_MAX]
    if len(set(numbers)) == len(by_name):
        by_id = {int(name): path for name, path in by_name.items()}
        return Images(dict(sorted(by_id.items())), {i: by_id[i].stem for i in sorted(by_id)})
    if not text:
        wrong = next(name for name in by_name if not name.isdigit())
        raise UserError(
            f"{file}: {called} {wrong!r} of {by_name[wrong].name} is not a whole number from 0; number them"
        )
    names = sorted(by_name)
    return Images({i: by_name[name] for i, name in enumerate(names)}, dict(enumerate(names)))


def _read_ids(file: Path) -> dict[str, str]:
    """File name, without folders -> id, of a CSV or a JSON of COCO or Karpathy. Raises `UserError`."""
    try:
        content = file.read_text(encoding="utf-8-sig")
        rows = _rows_of_json(content) if file.suffix.lower() == ".json" else list(csv.DictReader(content.splitlines()))
    except OSError as error:
        raise UserError(f"{file}: cannot be read: {error.strerror}") from None
    except (ValueError, LookupError, TypeError, AttributeError, csv.Error) as error:
        raise UserError(f"{file}: not a file of ids ({error}); give a CSV, or a JSON with a list images") from None
    keys = {str(key).strip() for row in rows for key in row} if rows else set()
    name_key, id_key = (next((key for key in names if key in keys), None) for names in (_FILE_COLUMNS, _ID_COLUMNS))
    if name_key is None or id_key is None:
        raise UserError(
            f"{file}: expected file_name and id for each image, found {', '.join(sorted(keys)) or 'nothing'}"
        )
    ids: dict[str, str] = {}
    for row in rows:
        name, number = (str(row.get(key, "") if row.get(key) is not None else "").strip() for key in (name_key, id_key))
        name = re.split(r"[/\\]", name)[-1]
        if not name or not number:
            raise UserError(f"{file}: an entry without {name_key} or {id_key}: {dict(row)}"[:300])
        if ids.setdefault(name, number) != number:
            raise UserError(f"{file}: {name} has two ids, {ids[name]} and {number}; keep one")
    return ids


def _rows_of_json(content: str) -> list[dict[str, Any]]:
    listed = json.loads(content)
    rows = listed["images"] if isinstance(listed, dict) else listed
    if not all(isinstance(row, dict) for row in rows):
        raise TypeError("its images are not objects")
    return list(rows)


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
