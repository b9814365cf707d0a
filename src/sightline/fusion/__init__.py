"""Camera views and the joints made one feature, learnt from demonstrations."""

from typing import TYPE_CHECKING

from sightline.core.lazy import lazy_names

if TYPE_CHECKING:
    from sightline.fusion.acting import Policy as Policy
    from sightline.fusion.network import ImageJointEncoder as ImageJointEncoder
    from sightline.fusion.network import ResNet18Encoder as ResNet18Encoder
    from sightline.fusion.policy import FusionPolicy as FusionPolicy
    from sightline.fusion.policy import load_policy as load_policy
else:
    __getattr__, __dir__, __all__ = lazy_names(__name__, __file__)
