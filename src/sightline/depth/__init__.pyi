from sightline.depth.evaluator import ModelEvaluator
from sightline.depth.semantic_encoder import SemanticEncoder, create_semantic_encoder

__all__ = ["ModelEvaluator", "SemanticEncoder", "create_semantic_encoder"]
