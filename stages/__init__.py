"""The pipeline's stages as commands; installed, ``python -m sightline.stages.normalize --help``."""
