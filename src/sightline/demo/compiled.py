"""Compilation by numba, and where compiled code is kept for the next process.

numba compiles a function anew when the file that it is in has changed, and would not notice that a function which it
calls from another file has. So the folder that it keeps the code in is named after what both files say.
"""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
from numba import njit

config: Any = numba.config  # its types do not name what it holds
_HERE = Path(__file__).parent
_SOURCES = hashlib.sha256(b"".join((_HERE / name).read_bytes() for name in ("primitives.py", "tracing.py")))
_FOLDER = Path(config.CACHE_DIR or _HERE / "__pycache__") / f"sightline-{_SOURCES.hexdigest()[:16]}"


def compiled(function: Callable[..., Any]) -> Any:
    """Compile a function when it is first called."""
    return _compile(function)


def inlined(function: Callable[..., Any]) -> Any:
    """The same for a short one: it becomes a part of its callers, since a call would cost as much as its work."""
    return _compile(function, forceinline=True)


def _compile(function: Callable[..., Any], forceinline: bool = False) -> Any:
    options: dict[str, Any] = {
        "error_model": "numpy",
        "forceinline": forceinline,
    }  # numpy: no check for divisions by zero
    before, config.CACHE_DIR = config.CACHE_DIR, str(_FOLDER)
    try:
        return njit(function, cache=True, **options)
    except RuntimeError:  # no folder can be written: every process compiles for itself
        return njit(function, **options)
    finally:
        config.CACHE_DIR = before
