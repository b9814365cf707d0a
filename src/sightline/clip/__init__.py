"""CLIP grid features: extracted once into HDF5 files, which every training after it reads.

The public names load their module when they are first used, so that reading a store does not load open_clip.
"""

import importlib
from typing import Any

_MODULES = {
    "ClipParams": "sightline.clip.params",
    "GridStore": "sightline.grids.store",
    "LiveGrids": "sightline.clip.live",
    "open_grids": "sightline.clip.live",
}
__all__ = ["ClipParams", "GridStore", "LiveGrids", "open_grids"]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
