"""Who imports Sightline finds Python as it was; and errors are of the kinds that Python programmers catch."""

import os
import pkgutil
import subprocess
import sys

import sightline
from sightline.core.errors import UserError
from sightline.grids.store import MissingImageError

# imports the libraries, which may change something, then one module after the other
LOOK = """
import importlib, os, signal, sys, warnings
import dvc.api, h5py, lightning, matplotlib.pyplot, monai, open_clip, pandas, ruamel.yaml, tensorboard
import torch, torchvision
modules = sys.argv[1:]
def look():
    handlers = [signal.getsignal(number) for number in signal.valid_signals()]
    return {"excepthook": sys.excepthook, "showwarning": warnings.showwarning, "filters": list(warnings.filters),
            "environment": dict(os.environ), "handlers": handlers, "threads": torch.get_num_threads()}
for module in modules:
    before = look()
    importlib.import_module(module)
    after = look()
    assert after == before, (module, [name for name in before if before[name] != after[name]])
"""
MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(sightline.__path__, "sightline.")
    if not any(part.startswith("_") for part in module.name.split("."))
)


def test_importing_changes_no_hook_filter_variable_or_handler():
    environment = os.environ | {"SIGHTLINE_THREADS": "1"}
    command = [sys.executable, "-c", LOOK, *MODULES]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len(MODULES) > 60


def test_a_user_error_is_a_value_error_and_a_missing_image_a_key_error_too():
    assert issubclass(UserError, ValueError)
    assert issubclass(MissingImageError, UserError)
    assert issubclass(MissingImageError, KeyError)
    assert str(MissingImageError("no image 7")) == "no image 7"
