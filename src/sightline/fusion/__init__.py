"""Three camera views and the joints made one feature, learnt from demonstrations.

The public names load their module when they are first used.
"""

import importlib
from typing import Any

_MODULES = {
    "FusionPolicy": "policy",
    "ImageJointEncoder": "network",
    "ResNet18Encoder": "network",
    "load_policy": "policy",
}
__all__ = ["FusionPolicy", "ImageJointEncoder", "ResNet18Encoder", "load_policy"]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
