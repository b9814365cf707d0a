"""Real demonstrations as recordings: LeRobot data sets, ALOHA/ACT episode files, robomimic files.

``lerobot`` and ``episodes`` read a format into `Demonstration`s; ``demonstrations`` writes them as a recording.
"""
