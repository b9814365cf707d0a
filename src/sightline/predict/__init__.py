"""Trained models applied to data of one's own, without DVC."""

from typing import TYPE_CHECKING

from sightline.core.lazy import lazy_names

if TYPE_CHECKING:
    from sightline.predict.actions import act as act
    from sightline.predict.embeddings import embed as embed
    from sightline.predict.masks import segment as segment
else:
    __getattr__, __dir__, __all__ = lazy_names(__name__, __file__)
