from sightline.depth.semantic_encoder import SemanticEncoder, create_semantic_encoder

__all__ = ["SemanticEncoder", "create_semantic_encoder"]
