"""Semi-supervised segmentation: a U-Net, methods that learn from few masks, a class-wise contrastive memory bank."""

from typing import TYPE_CHECKING

from sightline.core.lazy import lazy_names

if TYPE_CHECKING:
    from sightline.segmentation.frames import SegmentationFrames as SegmentationFrames
    from sightline.segmentation.losses import virtual_adversarial_loss as virtual_adversarial_loss
    from sightline.segmentation.model import SegmentationConfig as SegmentationConfig
    from sightline.segmentation.model import SegmentationModel as SegmentationModel
    from sightline.segmentation.model import load_model as load_model
    from sightline.segmentation.prototypes import ContrastivePrototypeManager as ContrastivePrototypeManager
else:
    __getattr__, __dir__, __all__ = lazy_names(__name__, __file__)
