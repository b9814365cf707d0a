"""Outputs that appear whole or not at all, hashes of inputs, and the scratch folder."""

import errno
import fcntl
import hashlib
import json
import math
import os
import re
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sightline.core.errors import UserError


@contextmanager
def atomic_output(target: Path) -> Iterator[Path]:
    """Give a temporary path (nothing exists there) beside ``target``; rename it to ``target`` when the block succeeds.

    Works for a file and for a folder; an older ``target`` is replaced, but never a folder by a file. An error leaves
    nothing behind; what a killed process leaves, the next writer of the same ``target`` removes.

    Raises:
        UserError: a file was written where a folder is, or the parent is not a folder.
    """
    if target.parent.exists() and not target.parent.is_dir():
        raise UserError(f"{target.parent}: is not a folder; choose another output path")
    target.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(target)
    temporary = _beside(target)
    try:
        yield temporary
        if target.is_dir() and not target.is_symlink():
            if not temporary.is_dir():
                raise UserError(f"{target}: is a folder; name the file to write")
            discard(target)
        os.replace(temporary, target)
    finally:
        _remove(temporary)


NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)  # the file system has no locks, e.g. NFS without lockd
_CLAIMS: dict[Path, Any] = {}  # folder -> its locked file


def claim(folder: Path) -> Path:
    """Keep other processes from working in a scratch folder until `discard`, or the end of this process.

    Where the file system has no locks, a file in the folder names the process instead.

    Raises:
        UserError: another process has claimed it.
    """
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            file = _locked(folder)
            if file is None:
                return folder
            if os.path.samestat(os.fstat(file.fileno()), os.stat(folder / "lock")):
                _CLAIMS[folder] = file
                return folder
        except FileNotFoundError:  # another process has just discarded the folder
            continue


def _locked(folder: Path) -> Any:
    """The locked file of ``folder``, open; None where locks are refused and the folder was claimed by name."""
    file = open(folder / "lock", "a")  # noqa: SIM115
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return file
    except BlockingIOError:
        file.close()
        raise UserError(f"{folder}: another process is doing the same work; wait for it, or stop it") from None
    except OSError as error:
        file.close()
        if error.errno not in NO_LOCKS:
            raise
        _claim_by_name(folder / "owner")
        return None


def _claim_by_name(owner: Path) -> None:
    """Write host and process to the file ``owner``, unless it names a process that may still be at work."""
    host, process = socket.gethostname(), os.getpid()
    while True:
        try:
            with open(owner, "x", encoding="utf-8") as file:
                file.write(f"{process} {host}")
            return
        except FileExistsError:
            other, _, where = owner.read_text(encoding="utf-8").partition(" ")
        if (other, where) == (str(process), host):
            return
        if where != host or _is_running(other):
            raise UserError(
                f"{owner.parent}: another process is doing the same work ({other or 'it has just begun'}, on "
                f"{where or 'some machine'}); wait for it, or delete {owner.name} in it if that process has ended"
            )
        owner.unlink(missing_ok=True)  # a killed process of this machine left it


def discard(folder: Path) -> None:
    """Delete a folder; even a kill leaves no part of it under its name."""
    if folder in _CLAIMS:
        _CLAIMS.pop(folder).close()
    _remove_leftovers(folder)
    aside = _beside(folder, "old.")
    os.replace(folder, aside)
    shutil.rmtree(aside)


def _beside(target: Path, kind: str = "") -> Path:
    return target.parent / f".{target.name}.{socket.gethostname()}.{os.getpid()}.{kind}tmp"


def _remove_leftovers(target: Path) -> None:
    """Remove what killed processes of this machine left beside ``target`` while they wrote or deleted it."""
    name = re.compile(re.escape(f".{target.name}.{socket.gethostname()}.") + r"(\d+)\.(old\.)?tmp")
    for path in target.parent.iterdir():
        match = name.fullmatch(path.name)
        if match and not _is_running(match[1]):
            _remove(path)


def _is_running(process: str) -> bool:
    """Whether a process of this machine runs; where the system does not tell, it may."""
    return Path(f"/proc/{process}").exists() or not Path("/proc/self").exists()


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON with sorted keys, atomically."""
    with atomic_output(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def rounded(figures: Any) -> Any:
    """``figures`` with every float at six significant digits, and None for what is undefined (NaN)."""
    if isinstance(figures, dict):
        return {key: rounded(child) for key, child in figures.items()}
    if isinstance(figures, list):
        return [rounded(child) for child in figures]
    if isinstance(figures, float):
        return None if math.isnan(figures) else float(f"{figures:.6g}")
    return figures


def require_file(path: Path, needed: str, absent: str = "") -> None:
    """Raise `UserError` unless ``path`` is a file.

    Args:
        needed: what to name in place of a folder, such as "an HDF5 file".
        absent: what to do where there is nothing, behind "no such file".
    """
    if path.is_dir():
        raise UserError(f"{path}: is a folder; name {needed}")
    if not path.is_file():
        raise UserError(f"{path}: no such file{absent}")


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, as hexadecimal digits. Raises `UserError` where there is no such file."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None


def fingerprint(*parts: Any) -> str:
    """32 hexadecimal digits that change with any of the JSON-serialisable ``parts``."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:32]


def scratch_folder(*parts: str) -> Path:
    """``.scratch/<parts>`` of the DVC project (``--temp`` and queued runs share it), else of the working directory."""
    folder = Path(os.environ.get("DVC_ROOT", ".")).resolve() / ".scratch" / Path(*parts)
    folder.mkdir(parents=True, exist_ok=True)
    return folder
