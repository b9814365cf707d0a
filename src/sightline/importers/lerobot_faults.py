"""Episodes of a LeRobot data set that cannot be imported: all of them are told at once."""

from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

from sightline.core.errors import UserError
from sightline.importers.options import ranges

_MOST_LINES = 20


class EpisodeError(UserError):
    """Why one episode cannot be imported; others may be."""


class Fault(NamedTuple):
    """Why an episode cannot be imported, and whether assigning pictures by counting would help."""

    why: str
    countable: bool = False


def refuse(source: Path, faults: dict[int, Fault], wanted: int, usable: list[int]) -> None:
    """Raise `UserError` with all episodes that cannot be imported, if there are any."""
    if not faults:
        return
    counting = any(fault.countable for fault in faults.values())
    if len(faults) == 1:
        ((number, fault),) = faults.items()
        end = ", or assign pictures by counting with --align count" if counting else ""
        join = ", or" if ";" in fault.why else ";"  # it may already say what to do
        raise UserError(f"{fault.why}{join} leave episode {number} out with --skip {number}{end}")
    alike: dict[str, list[int]] = defaultdict(list)
    for number, fault in sorted(faults.items()):
        alike[fault.why].append(number)
    ways = [f"import the others with --episodes {ranges(usable)}"] if usable else []
    ways += ["assign pictures by counting with --align count"] if counting else []
    lines = [f"  episode{'s' * (len(numbers) > 1)} {ranges(numbers)}: {why}" for why, numbers in alike.items()]
    rest = [f"  and {len(lines) - _MOST_LINES} more"] if len(lines) > _MOST_LINES else []
    head = f"{source}: {len(faults)} of {wanted} episodes cannot be imported; {', or '.join(ways) or 'mend them'}:"
    raise UserError("\n".join([head, *lines[:_MOST_LINES], *rest]))
