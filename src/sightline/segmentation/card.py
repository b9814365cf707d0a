"""What a segmentation model is, for its card."""

from sightline.segmentation.model import SegmentationConfig
from sightline.training.card import About


def about_segmentation(config: SegmentationConfig) -> About:
    """Inputs and outputs with shape and range."""
    names = ", ".join(f"{i} {name}" for i, name in enumerate(config.classes))
    if config.spatial_dims == 3:
        return _about_volumes(config, names)
    evaluate = "python stages/evaluate_segmentation.py MODEL figures --recording RECORDING --index INDEX"
    options = ["--depth FOLDER" if name == "depth" else "--feature PATH" for name in config.extras]
    return About(
        what="Segmentation of images: the class of every pixel.",
        task="image-segmentation",
        tags=("semi-supervised", "robotics"),
        use=" ".join([evaluate, *options]) if options else "python -m sightline.predict segment MODEL IMAGES masks",
        inputs=(
            f"images of {config.image_channels} channels, 8 bits",
            *(f"{name} float32 [B, {', '.join(map(str, shape))}]" for name, shape in config.extras.items()),
        ),
        outputs=(f"a class of each pixel: {names}",),
        limits=("Images of other cameras, light or scenes than the training images' need a new evaluation.",),
    )


def _about_volumes(config: SegmentationConfig, names: str) -> About:
    size = " x ".join(map(str, config.window or ()))
    return About(
        what="Segmentation of volumes in three dimensions: the class of every voxel.",
        task="image-segmentation",
        tags=("semi-supervised", "medical"),
        use="python -m sightline.predict segment MODEL VOLUMES masks",
        inputs=(f"grey volumes, 8 bits, seen in windows of {size} rows, columns and slices",),
        outputs=(f"a class of each voxel: {names}",),
        limits=("Volumes of other scanners, protocols or bodies than the training volumes' need a new evaluation.",),
    )
