"""The stages of the pipeline as commands: ``sightline normalize --help``, or ``python stages/normalize.py --help``."""
