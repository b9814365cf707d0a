from sightline.fusion.network import ImageJointEncoder, ResNet18Encoder
from sightline.fusion.policy import FusionPolicy, load_policy

__all__ = ["FusionPolicy", "ImageJointEncoder", "ResNet18Encoder", "load_policy"]
