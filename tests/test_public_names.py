"""The names that the branches offer: the same for a type checker as at run time, and loaded when they are used."""

import ast
import importlib

import pytest
from closure import ROOT


@pytest.mark.parametrize("branch", ["clip", "depth", "fusion", "segmentation"])
def test_type_checkers_see_the_names_that_load(branch):
    tree = ast.parse((ROOT / f"src/sightline/{branch}/__init__.py").read_text())
    (block,) = (node.body for node in tree.body if isinstance(node, ast.If))
    homes = {alias.asname: node.module for node in block for alias in node.names}
    package = importlib.import_module(f"sightline.{branch}")
    assert sorted(homes) == package.__all__
    for name, home in homes.items():
        assert getattr(package, name) is getattr(importlib.import_module(home), name)
    with pytest.raises(AttributeError, match=f"module 'sightline.{branch}' has no attribute 'nothing'"):
        package.nothing  # noqa: B018
