"""The one error type that a user is meant to read, and what the machine may refuse."""

import errno
import re

from pydantic import ValidationError

_REFUSALS = {
    errno.ENOSPC: "the disk is full; make room, or write elsewhere",
    errno.EDQUOT: "the quota of the disk is used up; make room, or write elsewhere",
    errno.EFBIG: "the file is larger than is allowed here; see `ulimit -f`, or write elsewhere",
    errno.EROFS: "the file system is read-only; write elsewhere",
    errno.EACCES: "permission denied; change the permissions, or take another path",
    errno.EPERM: "not permitted; change the permissions, or take another path",
    errno.EMFILE: "too many open files; raise the limit, e.g. `ulimit -n 4096`",
    errno.ENFILE: "too many open files on this machine; close other programs",
    errno.ENOLCK: "the file system has no locks; set HDF5_USE_FILE_LOCKING=FALSE, or write elsewhere",
    errno.ENAMETOOLONG: "the name is too long; take a shorter one",
}
_WORDS = (  # how libraries say the same without an error number
    (r"No space left on device|os error 28\b|errno = 28\b", errno.ENOSPC),
    (r"File too large|os error 27\b|errno = 27\b", errno.EFBIG),
    (r"Read-only file system|os error 30\b", errno.EROFS),
    (r"Permission denied|os error 13\b", errno.EACCES),
    (r"Too many open files|os error 24\b", errno.EMFILE),
)
_LOST = r"gloo/transport.* by peer"  # how torch says on a CPU that the connection to another process is closed
_MEMORY = r"out of memory|can't allocate memory|Cannot allocate memory|Unable to allocate|os error 12\b"


class UserError(ValueError):
    """A mistake the user can mend: names the file, key or value, and says what to do.

    Stage scripts print its message, without a traceback, and exit with status 1.
    """


def all_faults(error: ValidationError) -> list[str]:
    """A line for each fault: the key, and what is wrong with it."""
    return [
        ": ".join(filter(None, (".".join(map(str, fault["loc"])), fault["msg"].removeprefix("Value error, "))))
        for fault in error.errors()
    ]


def first_fault(error: ValidationError) -> str:
    """The first of the faults, in one line: the key, and what is wrong with it."""
    return all_faults(error)[0]


def lacks_memory(error: BaseException) -> bool:
    """Whether there was not enough memory, of the machine or of a GPU."""
    return isinstance(error, MemoryError) or bool(re.search(_MEMORY, str(error), re.IGNORECASE))


def refusal(error: BaseException) -> str | None:
    """What to tell the user where the machine refused something (disk full, no permission), or another process of a
    distributed run is gone; None for other errors.
    """
    number = error.errno if isinstance(error, OSError) and error.errno in _REFUSALS else None
    if number is None:
        number = next((number for words, number in _WORDS if re.search(words, str(error))), None)
    if number is None:
        lost = re.search(_LOST, str(error))
        return "another process of this run has ended, and says why; run it again to continue" if lost else None
    where = f"{error.filename}: " if isinstance(error, OSError) and error.filename else ""
    return where + _REFUSALS[number]
