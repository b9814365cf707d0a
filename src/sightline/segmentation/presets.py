"""Options of the memory bank, and those that belong together."""

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, fields
from types import MappingProxyType
from typing import Any, Literal, get_args, get_origin

from sightline.core.errors import UserError

SelectionOrder = Literal["ascending", "descending"]
Divisor = Literal["num_classes", "present"]
MemoryWeights = Literal["ones", "live"]
Update = Literal["replace", "fifo"]
MemorySource = Literal["labelled", "all"]


@dataclass(frozen=True)
class PrototypeOptions:
    """What a `ContrastivePrototypeManager` stores, and how it compares.

    Args:
        num_classes: C, at least 2; class 0 is the background.
        feature_dim: D, numbers in a row that is stored and compared.
        elements_per_class: K, the most rows stored of each class. A class with a single stored row has no contrastive
            loss.
        use_learned_selector: two small networks for each class. The feature selector scores the rows that may be
            stored, and weighs those of the loss; the memory selector weighs the stored ones. Without them all
            weights are 1, and of more rows than fit, evenly spaced ones are stored.
        selection_order: which scores are stored first. SS-Net sorts upwards and so stores the lowest, though its
            comment, and Alonso et al., say the highest; the loss teaches selectors to give outliers low scores.
        divisor: what the sum over classes is divided by: all classes, also those that are absent, as in SS-Net, or
            those that take part.
        store_background: store class 0 as well; only `update_and_compute_loss` reads this and the next two.
        require_correct: store only rows whose prediction equals their label.
        confidence_threshold: store only rows whose predicted class has more than this probability; 0 stores all.
        memory_weights: "ones": SS-Net normalises each stored row's weight by itself, so that all are exactly 1 and
            memory selectors learn nothing. "live": they have a mean of 1, and are learned. The same without selectors.
        update: "replace" the rows of a class that is seen, as SS-Net, or "fifo": put new rows before the older ones,
            as Alonso et al.; a class that is not seen keeps its rows either way.
        elements_per_update: most rows of a class that one update stores; None is K, with which a queue of full-size
            images is replaced at every step.
        memory_source: who may write the bank in `update_and_compute_loss`: labelled rows alone, or all, unlabelled ones
            with their predicted class.
        heads: put SS-Net's projection and prediction heads before the losses of `update_and_compute_loss`. The bank
            stores the projection of a row (in eval mode); the losses compare the prediction from the projection.
            Without such an asymmetry, here or in the network (see ``memory_features``), the loss pulls all classes to
            one direction.
        input_dim: numbers in a row that the heads take; None is ``feature_dim``.
        inter_margin: see `sightline.segmentation.contrastive.inter_class_loss`.
        ignore_index: the label of rows without a class; they are neither stored nor compared.
        eps: smallest length that a row is scaled to length one from. A row of zeros has a gradient of the order of
            1 / eps: harmless with heads, whose rows are never all zeros; raise it to 1e-3 for raw features after a
            ReLU.

    Raises:
        ValueError: an option out of its range.
    """

    num_classes: int
    feature_dim: int
    elements_per_class: int = 32
    use_learned_selector: bool = False
    _: KW_ONLY
    selection_order: SelectionOrder = "ascending"
    divisor: Divisor = "num_classes"
    store_background: bool = False
    require_correct: bool = True
    confidence_threshold: float = 0.0
    memory_weights: MemoryWeights = "ones"
    update: Update = "replace"
    elements_per_update: int | None = None
    memory_source: MemorySource = "labelled"
    heads: bool = False
    input_dim: int | None = None
    inter_margin: float = 1.0
    ignore_index: int = 255
    eps: float = 1e-12

    def __post_init__(self) -> None:
        if self.num_classes < 2:
            raise UserError(
                f"num_classes must be at least 2, not {self.num_classes}: class 0 is the background; "
                "a network with one sigmoid channel has 2"
            )
        for name in ("feature_dim", "elements_per_class", "elements_per_update", "input_dim"):
            if (count := getattr(self, name)) is not None and count < 1:
                raise UserError(f"{name} must be at least 1, not {count}")
        for field in fields(self):
            value, choices = getattr(self, field.name), get_args(field.type)
            if get_origin(field.type) is Literal and value not in choices:
                raise UserError(f"{field.name} must be one of {', '.join(choices)}, not {value!r}")
        if not 0 <= self.confidence_threshold < 1:
            raise UserError(f"confidence_threshold must be at least 0 and below 1, not {self.confidence_threshold}")
        if self.rows_per_update > self.elements_per_class:
            raise UserError(
                f"elements_per_update must be at most elements_per_class {self.elements_per_class}, "
                f"not {self.elements_per_update}"
            )
        if self.input_dim is not None and not self.heads:
            raise UserError(f"input_dim {self.input_dim} needs the heads: set heads=True as well")
        if 0 <= self.ignore_index < self.num_classes:
            raise UserError(f"ignore_index must not be one of the {self.num_classes} classes, not {self.ignore_index}")
        for name in ("inter_margin", "eps"):
            if not getattr(self, name) > 0:
                raise UserError(f"{name} must be above 0, not {getattr(self, name)}")

    @property
    def rows_per_update(self) -> int:
        """Most rows of a class that one update stores."""
        return self.elements_per_class if self.elements_per_update is None else self.elements_per_update

    @property
    def rows_dim(self) -> int:
        """Numbers in a row that goes into the heads or, without heads, into the losses."""
        return self.feature_dim if self.input_dim is None else self.input_dim


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
