from sightline.segmentation.frames import SegmentationFrames
from sightline.segmentation.losses import virtual_adversarial_loss
from sightline.segmentation.model import SegmentationConfig, SegmentationModel, load_model
from sightline.segmentation.prototypes import ContrastivePrototypeManager

__all__ = [
    "ContrastivePrototypeManager",
    "SegmentationConfig",
    "SegmentationFrames",
    "SegmentationModel",
    "load_model",
    "virtual_adversarial_loss",
]
