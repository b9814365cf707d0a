"""The memory bank beside any method: its parameters, how it is made, and which pixels are its rows."""

from typing import Any, Literal

from pydantic import Field
from torch import Tensor

from sightline.core.params import Section
from sightline.segmentation.model import SegmentationModel
from sightline.segmentation.network import Output
from sightline.segmentation.prototypes import PRESETS, ContrastivePrototypeManager

OWN_BANK = ("ss_net", "semiseg")  # methods that have a memory bank unless it is switched off
OWN_WEIGHT = 0.1  # of that bank
OF_DOCUMENT = (1.0, 0.1, 0.1)  # weights of the losses where the preset is document and nothing else is said


class ContrastiveParams(Section):
    """The memory bank of class features, beside any method."""

    weight: float | None = Field(
        None, ge=0, description="0: no bank; null: 1 with preset document, 0.1 with ss_net and semiseg, else 0"
    )
    preset: Literal["ss_net", "semiseg", "document"] | None = Field(
        None, description="ss_net, semiseg or document; null: semiseg with that method, else ss_net"
    )
    learned_selector: bool | None = Field(
        None, description="weigh and choose rows by small networks that learn; null: the preset's (document: false)"
    )
    intra_weight: float | None = Field(
        None, ge=0, description="weight of the distance from the class's direction; null: 0.1 with document, else 0"
    )
    inter_weight: float | None = Field(
        None, ge=0, description="weight of the closeness of classes' directions; null: 0.1 with document, else 0"
    )
    elements_per_class: int | None = Field(None, ge=2, description="rows kept of a class; null: the preset's")
    feature_dim: int = Field(32, ge=2, description="numbers in a row, after the heads (document has none)")
    stride: Literal[1, 2, 4] = Field(4, description="1, 2 or 4: stride of the decoder's map whose pixels are the rows")

    def weights_for(self, method: str) -> tuple[float, float, float]:
        """Of the bank as a whole, 0 for none; and of its losses within and between classes beside the contrastive."""
        weight, intra, inter = self.weight, self.intra_weight, self.inter_weight
        own = OF_DOCUMENT if self.preset == "document" else (OWN_WEIGHT * (method in OWN_BANK), 0.0, 0.0)
        return (
            own[0] if weight is None else weight,
            own[1] if intra is None else intra,
            own[2] if inter is None else inter,
        )


def make_bank(
    model: SegmentationModel, options: ContrastiveParams, method: str, has_background: bool
) -> ContrastivePrototypeManager | None:
    """The bank of the classes of ``model``, or None where its weight is 0."""
    if not options.weights_for(method)[0]:
        return None
    preset = options.preset or ("semiseg" if method == "semiseg" else "ss_net")
    width, classes = model.network.feature_dim, len(model.config.classes)
    rows: dict[str, Any] = {}
    if most := options.elements_per_class:
        rows = {"elements_per_class": most}
        if (new := PRESETS[preset].get("elements_per_update")) is not None:
            rows["elements_per_update"] = min(new, most)
    if not has_background:
        rows["store_background"] = True
    if options.learned_selector is not None:
        rows["use_learned_selector"] = options.learned_selector
    if preset == "document":  # raw features, after a ReLU: rows may be all zeros
        return ContrastivePrototypeManager.from_preset(preset, classes, width, eps=1e-3, **rows)
    return ContrastivePrototypeManager.from_preset(preset, classes, options.feature_dim, input_dim=width, **rows)


def bank_rows(output: Output, labels: Tensor | None, stride: int) -> tuple[Tensor, Tensor, Tensor | None]:
    """Features, and logits and labels of every ``stride``-th pixel or voxel, as the memory bank takes them."""
    every: Any = (..., *[slice(None, None, stride)] * (output.logits.ndim - 2))
    return output.features.float(), output.logits[every].float(), None if labels is None else labels[every]
