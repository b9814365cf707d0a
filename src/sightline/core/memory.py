"""How a process that computes on a CPU gives memory back to the system."""

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of <malloc.h>


def keep_freed_memory() -> None:
    """Let this process keep the memory that it frees, for its next batch, where the C library is GNU's.

    Each batch frees and takes hundreds of megabytes. By default they go back to the system, which fills every page with
    zeros before it hands it out again: a tenth of the time of a training step of the autoencoder, a fifth of embedding.
    Call it from commands only: a library does not decide this for the program that imports it.
    """
    library = ctypes.CDLL(None) if sys.platform == "linux" else None
    if library and hasattr(library, "gnu_get_libc_version"):
        library.mallopt(_M_MMAP_MAX, 0)  # large pieces come from the heap too,
        library.mallopt(_M_TRIM_THRESHOLD, -1)  # which never shrinks
