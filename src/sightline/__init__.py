"""Staged data and ML pipeline for robot perception. Import from the branches: ``sightline.depth`` and its siblings."""
