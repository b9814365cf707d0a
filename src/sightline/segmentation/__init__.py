"""Semi-supervised segmentation: a U-Net, methods that learn from few masks, a class-wise contrastive memory bank.

The public names load their module when they are first used, so that what needs no network does not load torch.
"""

import importlib
from typing import Any

_MODULES = {
    "ContrastivePrototypeManager": "prototypes",
    "SegmentationConfig": "model",
    "SegmentationFrames": "frames",
    "SegmentationModel": "model",
    "load_model": "model",
    "virtual_adversarial_loss": "losses",
}
__all__ = [
    "ContrastivePrototypeManager",
    "SegmentationConfig",
    "SegmentationFrames",
    "SegmentationModel",
    "load_model",
    "virtual_adversarial_loss",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
