"""What a segmentation model is, for its card."""

from sightline.segmentation.model import SegmentationConfig
from sightline.training.card import About


def about_segmentation(config: SegmentationConfig) -> About:
    """Inputs and outputs with shape and range."""
    names = ", ".join(f"{i} {name}" for i, name in enumerate(config.classes))
    return About(
        what="Segmentation of images: the class of every pixel.",
        use="python -m sightline.predict segment MODEL IMAGES masks",
        inputs=(f"images of {config.image_channels} channels, 8 bits",),
        outputs=(f"a class of each pixel: {names}",),
        limits=("Images of other cameras, light or scenes than the training images' need a new evaluation.",),
    )
