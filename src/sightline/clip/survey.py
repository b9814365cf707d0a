"""What we learn from photographs before encoding: their hashes, how they will be changed, which cannot be read."""

import warnings
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm

from sightline.clip.photographs import inspect, read_file
from sightline.core.cache import digest
from sightline.core.errors import UserError
from sightline.core.threads import threads


@dataclass
class Survey:
    """By image id: hash of the file, change to the picture if any; or what is wrong with it."""

    digests: dict[int, bytes] = field(default_factory=dict)
    changes: dict[int, str] = field(default_factory=dict)
    failures: dict[int, str] = field(default_factory=dict)

    def counted(self) -> Counter[str]:
        return Counter(self.changes[i] for i in self.changes if i not in self.failures)


def survey_photographs(items: list[tuple[int, Path]]) -> Survey:
    """Hash every file and read its header, so that most faults show before hours of work."""
    survey = Survey()
    with warnings.catch_warnings(action="ignore"), ThreadPoolExecutor(min(16, threads())) as pool:
        looks = tqdm(pool.map(_look, items), desc="hash images", total=len(items), unit="img", mininterval=0.5)
        for (i, _), (key, change, fault) in zip(items, looks, strict=True):
            if fault is not None:
                survey.failures[i] = fault
                continue
            survey.digests[i] = key
            if change:
                survey.changes[i] = change
    return survey


def _look(item: tuple[int, Path]) -> tuple[bytes, str | None, str | None]:
    try:
        data = read_file(item[1])
        return digest(data), inspect(item[1], data), None
    except UserError as error:
        return b"", None, str(error)


def merged(surveys: list[Survey]) -> Survey:
    """The surveys of several processes as one."""
    whole = Survey()
    for survey in surveys:
        whole.digests |= survey.digests
        whole.changes |= survey.changes
        whole.failures |= survey.failures
    return whole


def refuse(failures: dict[int, str], total: int) -> None:
    """Raise `UserError` with a line for each image that cannot be read, if there are any."""
    if failures:
        remedy = "mend them, or set data.on_error=skip to leave them out" if len(failures) < total else "none is left"
        lines = [failures[i] for i in sorted(failures)]
        raise UserError("\n  ".join([f"{len(failures)} of {total} images cannot be read; {remedy}", *lines]))


def tell(survey: Survey, paths: dict[int, Path]) -> None:
    """Warn once about images that are left out, and about each kind of change."""
    if survey.failures:
        first = min(survey.failures)
        warnings.warn(f"{len(survey.failures)} of {len(paths)} images left out; {survey.failures[first]}", stacklevel=3)
    for change, count in sorted(survey.counted().items()):
        example = paths[min(i for i in survey.changes if survey.changes[i] == change)]
        how = "turned as it says" if change.startswith("EXIF") else "made RGB"
        warnings.warn(f"{count} of {len(paths)} images have {change}: {how} ({example.name})", stacklevel=3)
