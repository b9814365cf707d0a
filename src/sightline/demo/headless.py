"""MuJoCo, loaded without OpenGL: rays make the pictures, so that no graphics library is ever needed."""

import os

_asked_for = os.environ.get("MUJOCO_GL")
os.environ.setdefault("MUJOCO_GL", "off")

import mujoco  # noqa: E402

if _asked_for is None:  # MuJoCo reads it as it is loaded; the program that imports this may want OpenGL later
    del os.environ["MUJOCO_GL"]

__all__ = ["mujoco"]
