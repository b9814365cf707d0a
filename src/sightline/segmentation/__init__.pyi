from sightline.segmentation.prototypes import ContrastivePrototypeManager

__all__ = ["ContrastivePrototypeManager"]
