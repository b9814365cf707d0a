"""Of the section ``segmentation``: what an image and a mask are, for training, evaluation and the model's file."""

import re
from typing import Literal

from pydantic import Field, field_validator

from sightline.core.params import Section
from sightline.recording.layout import IGNORE

LargestComponent = Literal["none", "2d", "3d"]


class PostprocessParams(Section):
    """What is done to predictions of volumes; figures tell what it changes."""

    largest_component: LargestComponent = Field(
        "none", description="keep the largest part of each class: none, 2d (in a slice) or 3d (in a volume)"
    )


NO_POSTPROCESS = PostprocessParams()


class FrameParams(Section):
    """Of the section ``segmentation``: what an image and a mask are."""

    camera: str = Field("global", description="folder under rgb/ of the images that the masks belong to")
    image_size: tuple[int, int] | None = Field(
        (128, 128), description="rows and columns to resize images and masks to; null: those of the first image"
    )
    classes: tuple[str, ...] = Field(
        (), description="names by class id; []: those of recording.json, else numbers if ids have no gap"
    )
    has_background: bool = Field(True, description="class 0 is background: left out of means and of ss_net's bank")
    void: int | None = Field(None, ge=0, le=255, description="class id to ignore like 255; null: none")
    mask_values: dict[int, int] | None = Field(
        None,
        description="{value: class id, or 255: ignored}; others are class ids; in JPEG the nearest of these and 0",
    )
    mask_suffix: str | None = Field(
        None,
        description="what a mask's name has after the image's, such as _mask; \"\": none; null: find it, or numbers",
    )

    @property
    def first_class(self) -> int:
        """Id of the first class that counts in means."""
        return int(self.has_background)

    @field_validator("image_size")
    @classmethod
    def _is_a_size(cls, size: tuple[int, int] | None) -> tuple[int, int] | None:
        if size and not all(8 <= side <= 4096 for side in size):
            raise ValueError(f"image_size must be 8..4096 rows and columns, not {list(size)}")
        return size

    @field_validator("mask_values", mode="before")
    @classmethod
    def _are_class_ids(cls, values: object) -> object:
        if not isinstance(values, dict):
            return values
        for value, class_id in values.items():  # in JSON a value is text
            is_id = type(class_id) is int and 0 <= class_id <= IGNORE
            if not is_id or not re.fullmatch("-?[0-9]{1,18}", str(value)):
                raise ValueError(
                    f"must be {{value: class id 0..{IGNORE - 1}, or {IGNORE}}}, as {{63: 1, 126: 2}}, a space after "
                    f"each colon, not {value}: {'null' if class_id is None else class_id}"
                )
        return {int(value): class_id for value, class_id in values.items()}

    @field_validator("classes")
    @classmethod
    def _are_two_or_more(cls, classes: tuple[str, ...]) -> tuple[str, ...]:
        if classes and not 2 <= len(set(classes)) == len(classes) <= IGNORE:
            raise ValueError(f"classes must be 2 to {IGNORE} different names, not {list(classes)}")
        return classes
