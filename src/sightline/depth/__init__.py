"""Depth images: normalisation, autoencoder, encoder, embeddings."""

from typing import TYPE_CHECKING

from sightline.core.lazy import lazy_names

if TYPE_CHECKING:
    from sightline.depth.evaluator import ModelEvaluator as ModelEvaluator
    from sightline.depth.semantic_encoder import SemanticEncoder as SemanticEncoder
    from sightline.depth.semantic_encoder import create_semantic_encoder as create_semantic_encoder
else:
    __getattr__, __dir__, __all__ = lazy_names(__name__, __file__)
