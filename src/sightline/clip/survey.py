"""A look at photographs before encoding: their hashes, how they will be changed, which cannot be read."""

import warnings
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm

from sightline.clip.photographs import inspect
from sightline.core.cache import digest
from sightline.core.errors import UserError
from sightline.core.threads import threads
from sightline.recording.images import read_file, warn_of_changes


@dataclass
class Survey:
    """By image id: hash of the file and change to the picture, if any; or the fault of a file."""

    digests: dict[int, bytes] = field(default_factory=dict)
    changes: dict[int, str] = field(default_factory=dict)
    failures: dict[int, str] = field(default_factory=dict)

    def counted(self) -> Counter[str]:
        return Counter(self.changes[i] for i in self.changes if i not in self.failures)


def survey_photographs(items: list[tuple[int, Path]]) -> Survey:
    """Hash every file and read its header, so that most faults show before hours of work."""
    with warnings.catch_warnings(action="ignore"), ThreadPoolExecutor(min(16, threads())) as pool:
        looks = pool.map(_look, items)
        return merged(tqdm(looks, desc="hash images", total=len(items), unit="img", mininterval=0.5))


def _look(item: tuple[int, Path]) -> Survey:
    i, path = item
    try:
        data = read_file(path)
        change = inspect(path, data)
        return Survey({i: digest(data)}, {i: change} if change else {})
    except UserError as error:
        return Survey(failures={i: str(error)})


def merged(surveys: Iterable[Survey]) -> Survey:
    """Several surveys as one."""
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
    warn_of_changes({i: survey.changes[i] for i in survey.changes if i not in survey.failures}, paths)
