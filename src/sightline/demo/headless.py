"""MuJoCo, loaded without OpenGL: the cameras cast rays, so that no graphics library is ever needed."""

import os

os.environ.setdefault("MUJOCO_GL", "off")

import mujoco

__all__ = ["mujoco"]
