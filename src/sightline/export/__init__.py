"""Trained models as single files for other programs: raw images in, results out, with all preprocessing inside."""
