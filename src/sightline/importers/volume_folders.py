"""Which volumes a folder holds: image and label files that belong together, patients, and parts of the split.

    NIfTI    ``p1_frame01.nii.gz`` with ``p1_frame01_gt.nii.gz`` (or ``_label``, ``_seg``, ``_mask``), or the same name
             in the folders ``images...`` and ``labels...``; a volume without a label is unlabelled
    HDF5     a volume, or a slice where the name ends in ``_slice_<number>``, with ``image`` and ``label``; where there
             are both, the volume is taken
    .npz     a volume with ``image`` and ``label``, or several with ``group`` and perhaps ``volume``

Files ``train*.list``, ``val*.list`` and ``test*.list`` name volumes, slices, patients or folders, one in a line; or
folders of these names hold them.
"""

import fnmatch
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

from sightline.core.errors import UserError
from sightline.importers.volume_files import NIFTI, NUMPY, SUFFIXES, Entry, volumes_in
from sightline.recording.split import PARTS

_MASK_NAME = re.compile(r"(.+?)[_-](gt|labels?|seg|segmentation|masks?)", re.IGNORECASE)
_MASK_FOLDER = re.compile(r"(labels?|masks?|gt|segmentations?)(\w{0,3})", re.IGNORECASE)
_IMAGE_FOLDER = re.compile(r"(images?|imgs?)(\w{0,3})", re.IGNORECASE)
LABELS = "_gt, _label, _seg or _mask"  # for messages
_CHANNEL = re.compile(r"_0000$")  # of nnU-Net's images
_SLICE = re.compile(r"(.+)[_-]slice[_-]?(\d+)", re.IGNORECASE)
_PHASE = re.compile(r"[_-](frame|phase|time|ed|es|slice)[_-]?\d*$", re.IGNORECASE)
_WORD = re.compile(r"[_-](?=[a-z])", re.IGNORECASE)
_PART = re.compile(r"(train|val|test)(ing|id|idation)?", re.IGNORECASE)


@dataclass(frozen=True)
class Folder:
    """Volumes that were found.

    Args:
        entries: in the order of their names.
        group: patient of each volume, by name.
        part: train, val or test of each, by name; empty where nothing says so.
        left_out: how many are in no list.
        faults: a line for each thing that is wrong.
    """

    entries: list[Entry]
    group: dict[str, str]
    part: dict[str, str]
    left_out: int
    faults: list[str]


def find_volumes(source: Path, exclude: Iterable[str], group: str | None) -> Folder:
    """Find all volumes of a folder, or of one file.

    Args:
        exclude: patterns of names or paths that are left out, as ``*_4d.nii.gz``.
        group: regular expression whose first group, in the name of a volume, is the patient; None: the name without
            ``_frame01``, ``_ED`` and the like.

    Raises:
        UserError: no such path, no volumes in it, files of several kinds.
    """
    if not source.exists():
        raise UserError(f"{source}: no such file or folder")
    files = [source] if source.is_file() else sorted(path for path in source.rglob("*") if path.is_file())
    root = source.parent if source.is_file() else source
    patterns = list(exclude)
    files = [path for path in files if not _matches(path.relative_to(root), patterns) and not path.name.startswith(".")]
    data = [path for path in files if path.name.lower().endswith(SUFFIXES)]
    if not data:
        raise UserError(f"{source}: no volumes in it; expected files {', '.join(SUFFIXES)}")
    kinds = {next(kind for kind in SUFFIXES if path.name.lower().endswith(kind)) for path in data}
    families = {"NIfTI" if kind in NIFTI else ".npz" if kind in NUMPY else "HDF5" for kind in kinds}
    if len(families) > 1:
        raise UserError(
            f"{source}: holds {' and '.join(sorted(families))} files; leave all but one kind out with "
            'import_volumes.exclude, e.g. ["*.h5"]'
        )
    faults: list[str] = []
    family, groups = families.pop(), dict[str, str]()
    if family == "NIfTI":
        entries, more = _of_nifti(data, root)
    elif family == "HDF5":
        entries, more = _of_hdf5(data, root), []
    else:
        entries, more = _of_numpy(data, root, groups), []
    faults += more
    entries, more = _named(entries, root)
    for entry in entries:
        groups.setdefault(entry.name, _group_of(entry.name, group))
    part = {entry.name: of for entry in entries if (of := _part_of(entry))}
    listed, unlisted, of_lists = _read_lists([path for path in files if path.suffix == ".list"], entries, groups, root)
    faults += more + of_lists
    if listed:
        part, entries = listed, [entry for entry in entries if entry.name in listed]
    elif part and len(part) < len(entries):
        others = [str(entry.path) for entry in entries if entry.name not in part]
        faults.append(
            f"{others[0]}: in no folder train, val or test, as {len(part)} others are; move it, or leave it out"
        )
    faults += _mixed(entries, groups, part)
    return Folder(entries, groups, part, unlisted if listed else 0, faults)


def _matches(path: Path, patterns: list[str]) -> bool:
    return any(fnmatch.fnmatch(path.name, one) or fnmatch.fnmatch(str(path), one) for one in patterns)


def _stem(path: Path) -> str:
    suffix = next(suffix for suffix in sorted(SUFFIXES, key=len, reverse=True) if path.name.lower().endswith(suffix))
    return path.name[: -len(suffix)]


def _of_nifti(files: list[Path], root: Path) -> tuple[list[Entry], list[str]]:
    """Images with their labels, and labels without an image."""
    images: dict[tuple[Path, str], Path] = {}
    masks: dict[tuple[Path, str], Path] = {}
    for path in files:
        place, stem = path.parent.relative_to(root), _stem(path)
        folder = place.name
        of_mask = _MASK_NAME.fullmatch(stem)
        if match := _MASK_FOLDER.fullmatch(folder):
            masks[place.parent / match[2], of_mask[1] if of_mask else stem] = path
        elif match := _IMAGE_FOLDER.fullmatch(folder):
            images[place.parent / match[2], _CHANNEL.sub("", stem)] = path
        elif of_mask or stem.lower() in ("label", "mask", "seg", "gt"):
            masks[place, of_mask[1] if of_mask else "image"] = path
        else:
            images[place, stem] = path
    lone = [str(path) for key, path in masks.items() if key not in images]
    faults = [f"{path}: a label without an image of its name" for path in lone]
    entries = [
        Entry(stem, (path,), (masks[place, stem],) if (place, stem) in masks else (), place)
        for (place, stem), path in images.items()
    ]
    return entries, faults + _unknown_suffixes(entries)


def _unknown_suffixes(entries: list[Entry]) -> list[str]:
    """A line for each suffix of volumes that may be labels: ``p1_truth``, without a label, beside ``p1``."""
    names = {(entry.place, entry.name) for entry in entries}
    of_suffix: dict[str, list[Entry]] = {}
    for entry in entries:
        cuts = [match.start() for match in _WORD.finditer(entry.name)]
        cut = next((i for i in cuts if (entry.place, entry.name[:i]) in names), None)
        is_phase = cut and _group_of(entry.name, None) == _group_of(entry.name[:cut], None)
        if cut and not is_phase and not entry.masks:
            of_suffix.setdefault(entry.name[cut:], []).append(entry)
    return [
        f"{some[0].path}{f' and {len(some) - 1} more' if some[1:] else ''}: a label, or another image? Names of labels "
        f'end in {LABELS}: rename it, or leave it out with import_volumes.exclude=["*{suffix}.nii*"]'
        for suffix, some in of_suffix.items()
    ]


def _of_hdf5(files: list[Path], root: Path) -> list[Entry]:
    slices: dict[tuple[Path, str], dict[int, Path]] = {}
    entries = []
    for path in files:
        place = path.parent.relative_to(root)
        if match := _SLICE.fullmatch(_stem(path)):
            slices.setdefault((place, match[1]), {})[int(match[2])] = path
        else:
            entries.append(Entry(_stem(path), (path,), (), place))
    whole = {entry.name for entry in entries}
    for (place, name), numbered in slices.items():
        if name not in whole:
            entries.append(Entry(name, tuple(numbered[i] for i in sorted(numbered)), (), place))
    return entries


def _of_numpy(files: list[Path], root: Path, groups: dict[str, str]) -> list[Entry]:
    entries = []
    for path in files:
        place, several = path.parent.relative_to(root), list(volumes_in(path))
        if _stem(path) in PARTS:
            place /= _stem(path)
        entries += [Entry(name, (path,), (), place, name) for name, _ in several]
        groups.update(several)
        if not several:
            entries.append(Entry(_stem(path), (path,), (), place))
    return entries


def _named(entries: list[Entry], root: Path) -> tuple[list[Entry], list[str]]:
    """Entries with names of their own, sorted: where files of all folders have one name, the folder's."""
    names = {entry.name for entry in entries}
    if len(names) < len(entries):
        alone = len(names) == 1
        renamed = []
        for entry in entries:
            folder = entry.place.name
            is_own = folder and not _PART.fullmatch(folder) and not _IMAGE_FOLDER.fullmatch(folder)
            name = (folder if alone else f"{folder}_{entry.name}") if is_own else entry.name
            renamed.append(replace(entry, name=name))
        entries = renamed
    entries = sorted(entries, key=lambda entry: (entry.name, str(entry.path)))
    faults = []
    for one, other in pairwise(entries):
        if one.name == other.name:
            faults.append(f"{other.path}: the volume {one.name} is also in {one.path}; leave one out, or rename it")
    return entries, faults


def _group_of(name: str, pattern: str | None) -> str:
    if pattern is None:
        shorter = name
        while (cut := _PHASE.sub("", shorter)) and cut != shorter:
            shorter = cut
        return shorter
    match = re.search(pattern, name)
    if match is None or not match.groups() or not match[1]:
        raise UserError(f"import_volumes.group: {pattern!r} finds no patient in the name {name}; give it one (group)")
    return match[1]


def _part_of(entry: Entry) -> str:
    """The part of the split whose name one of the folders has."""
    found = [match[1].lower() for folder in entry.place.parts if (match := _PART.fullmatch(folder))]
    return found[-1] if found else ""


def _read_lists(
    lists: list[Path], entries: list[Entry], groups: Mapping[str, str], root: Path
) -> tuple[dict[str, str], int, list[str]]:
    """Part of each volume that a list names, how many none names, and faults."""
    called: dict[str, set[str]] = {}
    for entry in entries:
        names = {entry.name, groups[entry.name], str(entry.place / entry.name), *entry.place.parts[-1:]}
        names |= {_stem(path) for path in entry.files} | {str(entry.place / _stem(path)) for path in entry.files}
        for name in names:
            called.setdefault(name, set()).add(entry.name)
    parts: dict[str, str] = {}
    faults = []
    for path in lists:
        match = re.match("train|val|test", path.stem, re.IGNORECASE)
        if match is None:
            continue
        part, absent, twice = match[0].lower(), [], []
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
        for line in filter(None, (line.strip() for line in lines)):
            name = line[: -len(Path(line).name)] + _stem(Path(line)) if line.lower().endswith(SUFFIXES) else line
            volumes = called.get(name.strip("/")) or called.get(Path(name).name)
            if not volumes:
                absent.append(line)
            for volume in sorted(volumes or ()):
                if parts.setdefault(volume, part) != part:
                    twice.append(volume)
        if absent:
            faults.append(f"{path}: names volumes that are not there: {', '.join(absent)}")
        if twice:
            others = sorted({parts[volume] for volume in twice})
            faults.append(f"{path}: names volumes of {' and '.join(others)}, too: {', '.join(dict.fromkeys(twice))}")
    return parts, len(entries) - len(parts), faults


def _mixed(entries: list[Entry], groups: Mapping[str, str], part: Mapping[str, str]) -> list[str]:
    """A line for each patient in several parts."""
    of_group: dict[str, set[str]] = {}
    for entry in entries:
        if entry.name in part:
            of_group.setdefault(groups[entry.name], set()).add(part[entry.name])
    return [
        f"patient {group}: has volumes in {' and '.join(sorted(parts))}; a patient belongs in one part"
        for group, parts in sorted(of_group.items())
        if len(parts) > 1
    ]
