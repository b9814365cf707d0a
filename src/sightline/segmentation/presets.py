"""Options of the memory bank that belong together."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal

SelectionOrder = Literal["ascending", "descending"]
Divisor = Literal["num_classes", "present"]
MemoryWeights = Literal["ones", "live"]
Update = Literal["replace", "fifo"]
MemorySource = Literal["labelled", "all"]

PRESETS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        # what SS-Net trains with; everything else is the default
        "ss_net": {"use_learned_selector": True, "heads": True},
        # the published code keeps batch size x max(1, round(256 / labelled images)) rows of a class at each step: 8 is
        # a batch of 8 from 171 labelled images or more
        "semiseg": {
            "elements_per_class": 256,
            "elements_per_update": 8,
            "use_learned_selector": True,
            "heads": True,
            "store_background": True,
            "confidence_threshold": 0.95,
            "update": "fifo",
        },
        # a description of SS-Net's bank for raw features: best scores first, weights as its formula has them, the mean
        # over the classes that take part, and an update at every call; where it is silent, SS-Net
        "document": {
            "selection_order": "descending",
            "divisor": "present",
            "memory_weights": "live",
            "memory_source": "all",
        },
    }
)
