"""Segmentation of volumes in three dimensions: patches, every method, whole volumes measured and predicted."""

import json
import os
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from scipy import ndimage
from test_segmentation_training import METHODS, changed
from volume_files import write_hearts

from sightline.core.errors import UserError
from sightline.core.params import Section, load_params
from sightline.export.files import export_model
from sightline.importers.volumes import ImportVolumesParams, import_volumes
from sightline.predict import segment
from sightline.recording.layout import IGNORE
from sightline.recording.split import SplitParams
from sightline.segmentation import SegmentationConfig, SegmentationFrames, SegmentationModel, load_model
from sightline.segmentation.augmentation import AugmentationParams, box_chances, random_boxes, square_boxes, strong_view
from sightline.segmentation.batches import FrameBatches, StepDraw
from sightline.segmentation.evaluation import EvaluateSegmentationParams, evaluate_segmentation, table
from sightline.segmentation.methods import largest_parts
from sightline.segmentation.norms import InstanceNorm3d
from sightline.segmentation.patches import PATCH_CHANCES, VolumeBatches, Volumes, fewer_slices, placed_patch
from sightline.segmentation.training import SegmentationParams, train_segmentation
from sightline.segmentation.volume_figures import volume_figures
from sightline.segmentation.volumes import enlarged, frames_of_volumes, seen_slices
from sightline.training.order import Draw

STILL = AugmentationParams(crop=(8, 6, 5), flip=False, zoom=0, rotate=0, shift=0, jitter=0, hue=0)
PARAMS = {
    "dims": 3, "image_size": (20, 20), "crop": (16, 16, 6), "labeled_groups": 1, "batch_size": 2,
    "unlabelled_batch_size": 2, "epochs": 1, "steps_per_epoch": 2,
}  # fmt: skip


class Params(Section):
    segmentation: SegmentationParams = SegmentationParams()


@pytest.fixture(scope="module")
def hearts(tmp_path_factory) -> Path:
    folder = write_hearts(tmp_path_factory.mktemp("hearts") / "h")
    import_volumes(folder, folder.parent / "hearts.hdf5", ImportVolumesParams())
    os.environ["DVC_ROOT"] = str(folder.parent)
    return folder.parent / "hearts.hdf5"


def frames_of(hearts: Path, **params) -> SegmentationFrames:
    return frames_of_volumes(hearts, changed(**(PARAMS | params)), SplitParams())


def train(hearts: Path, folder: Path, **params) -> Path:
    settings = changed(**(PARAMS | params))
    train_segmentation(frames_of(hearts, **params), folder / "m.safetensors", folder / "m", settings, 0)
    return folder / "m.safetensors"


@pytest.mark.parametrize(
    ("method", "bank"), [*((name, {}) for name in METHODS), ("bcp", {"preset": "document", "learned_selector": True})]
)
def test_every_method_trains_on_patches(hearts, tmp_path, method, bank):
    path = train(hearts, tmp_path, method=method, bcp={"pretrain": 0.5, "largest_part": True}, contrastive=bank)
    lines = (tmp_path / "m/curves.csv").read_text().splitlines()
    assert ("train_bank" in lines[0]) == (bool(bank) or method in ("ss_net", "semiseg"))
    assert all(np.isfinite([float(x) for x in line.split(",")]).all() for line in lines[1:])
    config = load_model(path).config
    assert (config.spatial_dims, config.window, config.labeled_groups[0]) == (3, (16, 16, 6), config.labeled_groups[0])
