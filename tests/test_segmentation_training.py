"""Training from few masks: every method learns, masks that are not to be read are not, and a killed run goes on."""

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import ROOT, only_error_line, write_grids
from PIL import Image
from test_segmentation_frames import CLASSES, SIZE, scene, write_arrays, write_recording

from sightline.core.errors import UserError
from sightline.core.params import Section, load_params
from sightline.recording.frames import write_index
from sightline.recording.layout import IGNORE
from sightline.recording.split import SplitParams
from sightline.segmentation import SegmentationFrames, SegmentationModel, load_model
from sightline.segmentation.augmentation import Window
from sightline.segmentation.batches import StepBatches
from sightline.segmentation.evaluation import EvaluateSegmentationParams, evaluate_segmentation
from sightline.segmentation.methods import SEMI_SUPERVISED, BcpParams, Unlabelled, _predicted, largest_parts
from sightline.segmentation.training import ContrastiveParams, SegmentationParams, train_segmentation

SMALL = SegmentationParams(
    image_size=SIZE, method="supervised", labeled_groups=1, epochs=2, steps_per_epoch=2, batch_size=4,
    unlabelled_batch_size=4, lr=3e-3, precision="fp32", channels=(4, 4, 8, 8, 8, 4), crop=None,
)  # fmt: skip


def changed(**changes) -> SegmentationParams:
    return SegmentationParams.model_validate(SMALL.model_dump() | changes, strict=False)


@pytest.fixture
def recording(tmp_path) -> Path:
    return write_recording(tmp_path / "r")


def frames_of(root: Path, params: SegmentationParams = SMALL, **extras: Any) -> SegmentationFrames:
    return SegmentationFrames.from_recording(root, root.parent / "index", params, **extras)


def train(root: Path, name: str = "m", params: SegmentationParams = SMALL, seed: int = 0, **extras: Any) -> Path:
    weights = root.parent / f"{name}.safetensors"
    train_segmentation(frames_of(root, params, **extras), weights, root.parent / name, params, seed)
    return weights


def figures(weights: Path) -> dict:
    return json.loads((weights.parent / weights.stem / "details.json").read_text())


METHODS = ("supervised", *SEMI_SUPERVISED)


@pytest.mark.parametrize(
    ("method", "bank", "crop"),
    [*((name, None, None) for name in METHODS), ("supervised", 0.5, (16, 16)), ("unimatch", 0.5, (17, 20)),
     ("bcp", 0, (16, 16)), ("ss_net", 0, None)],
)  # fmt: skip
def test_every_method_trains_with_and_without_a_memory_bank(recording, method, bank, crop):
    params = changed(method=method, bcp=BcpParams(pretrain=0.5), contrastive=ContrastiveParams(weight=bank), crop=crop)
    weights = train(recording, params=params)
    lines = (recording.parent / "m/curves.csv").read_text().splitlines()
    names = set(lines[0].split(","))
    own = {
        "supervised": set(), "ss_net": {"smooth"}, "semiseg": {"pseudo", "entropy"},
        "unimatch": {"strong", "dropped"}, "bcp": {"pseudo"},
    }[method]  # fmt: skip
    assert {"epoch", "lr", "train_loss", "train_labelled", "val_loss", "val_dice", "val_dice_disc"} <= names
    assert {f"train_{name}" for name in own} <= names
    assert ("train_bank" in names) == (bool(bank) or (bank is None and method in ("ss_net", "semiseg")))
    assert all(np.isfinite([float(x) for x in line.split(",")]).all() for line in lines[1:])
    model = load_model(weights)
    assert (model.config.method, len(model.config.labeled_groups), len(model.config.train_groups)) == (method, 1, 4)
    torch.manual_seed(0)
    pairs = zip(model.parameters(), SegmentationModel(model.config).parameters(), strict=True)
    moved = [not torch.allclose(a, b) for a, b in pairs]
    assert np.mean(moved) > 0.9


def test_of_each_class_the_largest_part_is_kept():
    labels = torch.tensor([
        [[1, 1, 0, 2, 0], [0, 0, 1, 0, 2], [1, 0, 0, 0, 255], [0, 1, 0, 2, 2], [255, 0, 0, 2, 2]],
        [[0, 0, 0, 0, 0], [0, 0, 1, 0, 0], [0, 0, 0, 0, 0], [0, 0, 0, 0, 0], [2, 0, 0, 0, 0]],
    ])  # fmt: skip
    expected = labels.clone()
    expected[0, 0, 3] = expected[0, 1, 4] = 0  # of two pixels, beside one of four
    expected[0, 2, 0] = expected[0, 3, 1] = 0  # of two pixels, beside one of three; corners connect
    assert torch.equal(largest_parts(labels, 3), expected)
    assert torch.equal(largest_parts(expected, 3), expected)


def test_copy_paste_of_organs_learns_other_labels(recording):
    of_all, of_largest = (
        train(recording, str(part), changed(method="bcp", bcp=BcpParams(pretrain=0, largest_part=part)))
        for part in (False, True)
    )
    assert not torch.equal(*(next(load_model(path).parameters()) for path in (of_all, of_largest)))


def test_a_teacher_is_given_whole_images_and_its_labels_are_cut(recording):
    model = load_model(train(recording))
    whole = {"image": torch.rand(3, 3, *SIZE, generator=torch.Generator().manual_seed(0))}
    window = Window(torch.tensor([[0, 0], [3, 5], [8, 2]]), (16, 16))
    outside = torch.zeros(3, 16, 16, dtype=torch.long)
    outside[1, 0] = IGNORE
    more = Unlabelled(window.of_inputs(whole), outside, torch.zeros(3, 1), whole, window)
    confidence, pseudo = _predicted(model, more)
    expected = window.of(model.decode(model.encode(whole["image"]), SIZE).logits.softmax(dim=1))
    torch.testing.assert_close(confidence, expected.amax(dim=1))
    assert torch.equal(pseudo[0], expected[0].argmax(dim=0))
    assert (pseudo[1, 0] == IGNORE).all()
    assert torch.equal(_predicted(model, more.first(2))[1], pseudo[:2])


@pytest.mark.parametrize("preset", ["semiseg", "document"])
def test_other_kinds_of_bank_train(recording, preset):
    options = ContrastiveParams(
        weight=0.5, preset=preset, elements_per_class=5, stride=2, intra_weight=0.1, inter_weight=0.1
    )
    train(recording, params=changed(method="unimatch", contrastive=options))
    assert "train_bank" in (recording.parent / "m/curves.csv").read_text()


def test_a_few_images_are_learnt_by_heart(tmp_path):
    params = changed(
        epochs=1, steps_per_epoch=60, lr=1e-2, labeled_groups=None, ema=0.9, flip=False, zoom=0, rotate=0, shift=0,
        channels=(8, 8, 8, 16, 16, 8), class_weights="inverse_sqrt", sampling="balanced",
    )  # fmt: skip
    (tmp_path / "d").mkdir()
    for part in ("train", "val"):
        write_arrays(tmp_path / f"d/{part}.npz", groups=False, count=4)
    frames = SegmentationFrames.from_arrays(tmp_path / "d", params, SplitParams())
    train_segmentation(frames, tmp_path / "m.safetensors", tmp_path / "m", params, 0)
    measured = figures(tmp_path / "m.safetensors")
    assert measured["val"]["dice"] > 0.9
    model, rows = load_model(tmp_path / "m.safetensors"), frames.rows("val")
    with torch.inference_mode():
        predicted = model(torch.from_numpy(frames.images(rows))).argmax(1).numpy()
    truth, dice = frames.masks(rows), []
    for c in (1, 2):
        dice.append(2 * ((predicted == c) & (truth == c)).sum() / ((predicted == c).sum() + (truth == c).sum()))
    assert measured["val"]["dice"] == pytest.approx(np.mean(dice), abs=1e-5)
    assert measured["val"]["dice_class_2"] == pytest.approx(dice[1], abs=1e-5)
    assert measured["labelled"] == {"groups": 4, "frames": 4}
    assert measured["val"]["loss"] == pytest.approx(1 - np.mean(dice), abs=1e-5)


def test_masks_that_are_not_labelled_are_not_read(recording):
    params = changed(method="unimatch")
    before = train(recording, "a", params)
    labelled = {int(group) for group in load_model(before).config.labeled_groups}
    frames = frames_of(recording)
    unread = [
        int(i) for i, group, part in zip(frames.frame_id, frames.group, frames.split, strict=True)
        if part == "test" or (part == "train" and group not in labelled)
    ]  # fmt: skip
    assert len(unread) == 20
    for i in unread[::2]:
        (recording / f"masks/{i:06d}.png").unlink()
    for i in unread[1::2]:
        (recording / f"masks/{i:06d}.png").write_bytes(b"garbage")
    after = train(recording, "b", params)
    assert after.read_bytes() == before.read_bytes()
    assert (recording.parent / "b/curves.csv").read_bytes() == (recording.parent / "a/curves.csv").read_bytes()
    with pytest.raises(UserError, match=r"masks/\d+.png: (no such file|broken image)"):
        train(recording, "c", changed(labeled_groups=2))


def test_a_killed_training_continues_and_ends_with_the_same_bytes(recording):
    method = "semiseg"  # has all there is: a teacher, a memory bank with selectors, random numbers of its own
    params = changed(epochs=3, method=method)
    whole = train(recording, "whole", params)
    code = (
        "import sys; sys.path.insert(0, 'tests')\n"
        "import os, lightning, test_segmentation_training as t\nfrom pathlib import Path\n"
        "from sightline.training import fitting\n"
        "end = fitting._Keeper.on_train_epoch_end\n"
        "def die(self, trainer, module):\n"
        "    end(self, trainer, module)\n"
        "    trainer.current_epoch == 1 and os._exit(9)\n"
        "fitting._Keeper.on_train_epoch_end = die\n"
        f"t.train(Path({str(recording)!r}), 'killed', t.changed(epochs=3, method={method!r}))\n"
    )
    killed = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=os.environ, capture_output=True, text=True, check=False
    )
    assert killed.returncode == 9, killed.stderr
    assert not (recording.parent / "killed.safetensors").exists()
    again = train(recording, "killed", params)
    assert again.read_bytes() == whole.read_bytes()
    for name in ("metrics.json", "curves.csv"):
        assert (again.parent / "killed" / name).read_bytes() == (whole.parent / "whole" / name).read_bytes()


def test_labelled_batches_are_the_same_whatever_else_is_learnt_from():
    options = {"steps": 5, "sizes": (4, 6), "chances": (3, 2), "seed": 1}
    rows, more = np.arange(7), np.arange(7, 30)
    alone, both = StepBatches(rows, None, **options), StepBatches(rows, more, **options)
    alone.set_epoch(3)
    both.set_epoch(3)
    for a, b in zip(alone, both, strict=True):
        assert a.unlabelled is None
        assert (a.labelled.rows == b.labelled.rows).all()
        assert (a.labelled.chances == b.labelled.chances).all()
        assert (len(b.unlabelled.rows), b.unlabelled.chances.shape) == (6, (6, 2))
        assert set(b.unlabelled.rows) <= set(more)
    drawn = np.concatenate([step.labelled.rows for step in alone])
    assert sorted(drawn[:7]) == sorted(drawn[7:14]) == list(rows)
    shares = [StepBatches(rows, more, **options, rank=rank, world_size=2) for rank in (0, 1)]
    assert [len(step.labelled.rows) for step in shares[0]] == [4] * 5
    first, second = (np.concatenate([step.labelled.rows for step in share]) for share in shares)
    assert sorted(np.stack([first, second], 1).ravel()[:7]) == list(rows)


def test_two_classes_and_further_inputs(recording, tmp_path):
    grids = np.random.default_rng(0).normal(size=(34, 4, 6)).astype("f2")
    with h5py.File(tmp_path / "e.hdf5", "w") as file:
        file["embeddings"], file["frame_id"] = np.random.default_rng(1).normal(size=(40, 5)), np.arange(45, 5, -1)
    clip = write_grids(tmp_path / "c", np.arange(8, 42), grids, most=10, images=recording / "rgb/global")
    extras = {"depth": recording / "depth", "features": [clip, tmp_path / "e.hdf5"]}
    for path in (recording / "masks").iterdir():
        Image.fromarray((np.asarray(Image.open(path)) == 1).astype(np.uint8)).save(path)
    params = changed(method="unimatch", classes=("background", "disc"), contrastive=ContrastiveParams(weight=1.0))
    weights = train(recording, params=params, **extras)
    model = load_model(weights)
    assert model.config.classes == ("background", "disc")
    assert model.config.extras == {"grid": (4, 6), "depth": (2, *SIZE), "embedding": (5,)}
    frames = frames_of(recording, params, **extras)
    measured = evaluate_segmentation(weights, frames, tmp_path / "measured", EvaluateSegmentationParams())
    assert set(measured["dice_lost"]) == {"shuffled_grid", "shuffled_depth", "shuffled_embedding"}
    for method in ("ss_net", "semiseg", "bcp"):
        train(recording, method, params.model_copy(update={"method": method, "epochs": 1}), **extras)
    other = write_grids(tmp_path / "other.hdf5", np.arange(8, 42), grids)
    with pytest.raises(UserError, match=r"other.hdf5: its grid of frame \d+ is not of .*rgb/global/\d+.png; name the"):
        train(recording, "x", params, features=[other])
    with pytest.raises(UserError, match=r"frames.parquet: not a readable HDF5"):
        train(recording, "x", params, features=[recording / "frames.parquet"])


def test_what_cannot_be_learnt_is_said_once_and_training_goes_on(recording):
    labelled = {int(group) for group in load_model(train(recording, "a")).config.labeled_groups}
    frames = frames_of(recording)
    for i in frames.frame_id[np.isin(frames.group, list(labelled))]:
        path = recording / f"masks/{i:06d}.png"
        mask = np.asarray(Image.open(path))
        Image.fromarray(np.where(mask == 2, 255, mask)).save(path)
    with pytest.warns(UserWarning, match=r"bar in none of the 4 labelled masks: cannot be learnt; label") as caught:
        train(recording, "b")
    assert sum("cannot be learnt" in str(one.message) for one in caught) == 1
    params = changed(labeled_groups=None)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        plain = train(recording, "all", params)
    with pytest.warns(UserWarning, match=r"all training frames are labelled: bcp is the same as supervised"):
        same = train(recording, "bcp", params.model_copy(update={"method": "bcp"}))
    weights = [load_model(path).state_dict() for path in (plain, same)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


@pytest.mark.parametrize(("crop", "warned"), [((8, 8), 1), (SIZE, 0), (None, 0)])
def test_parts_of_grey_slices_are_warned_of(tmp_path, crop, warned):
    grey = np.stack([scene(i)[0][..., 0] for i in range(24)])
    params = changed(crop=crop, classes=CLASSES, epochs=1, steps_per_epoch=1)
    frames = SegmentationFrames.from_arrays(write_arrays(tmp_path / "s.npz", image=grey), params, SplitParams())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        train_segmentation(frames, tmp_path / "m.safetensors", tmp_path / "m", params, seed=0)
    assert sum("set segmentation.crop=null" in str(one.message) for one in caught) == warned


@pytest.mark.parametrize(
    ("assignments", "message"),
    [
        (["method=other"], "segmentation.method: "),
        (["channels=[4, 4]"], r"segmentation.channels: channels must be six numbers above 0, not \[4, 4\]"),
        (["labeled_fraction=0.5", "labeled_groups=1"], "labeled_groups and labeled_fraction: set one of the two"),
        (["method=bcp", "ema=0.0"], "ema must be above 0 for bcp, whose teacher is the average"),
        (["has_background=false", "bcp.largest_part=true"], "which must be the background"),
        (["norm=group", "channels=[6, 4, 4, 4, 4, 4]"], "channels must be multiples of 4 for norm group"),
        (["image_size=[4, 4]"], r"image_size must be 8..4096 rows and columns, not \[4, 4\]"),
        (["crop=[0, 8]"], r"segmentation.crop: crop must be two numbers above 0, or three for dims 3, not \[0, 8\]"),
        (["classes=[a]"], r"classes must be 2 to 255 different names, not \['a'\]"),
        (["contrastive.wight=1"], "segmentation.contrastive.wight: unknown key; known here: weight, preset"),
        (["unimatch.threshold=1.5"], "segmentation.unimatch.threshold: "),
        (["imagesize=[9, 9]"], "segmentation.imagesize: unknown key; known here: .*image_size"),
    ],
)
def test_wrong_parameters_are_one_line(assignments, message):
    class Params(Section):
        segmentation: SegmentationParams = SegmentationParams()

    with pytest.raises(UserError, match=message) as error:
        load_params(Params, assignments=[f"segmentation.{assignment}" for assignment in assignments])
    assert "\n" not in str(error.value)


def test_without_masks_there_is_nothing_to_learn(recording, tmp_path):
    with pytest.raises(UserError, match=r"segmentation.crop is \[8, 99\], larger than the images, .*\]; lower it"):
        train(recording, params=SMALL.model_copy(update={"crop": (8, 99)}))
    index = tmp_path / "index/masks.parquet"
    masks = pd.read_parquet(index)
    write_index(index, masks[masks["split"] != "train"])
    with pytest.raises(UserError, match=r"r: none of its 16 training frames has a mask: no labelled data"):
        train(recording)
    write_index(index, masks[masks["split"] != "val"])
    with pytest.raises(UserError, match=r"r: no frame of part val has a mask; the best epoch is chosen by them"):
        train(recording)
    write_index(index, masks)
    for i in frames_of(recording).frame_id:
        Image.fromarray(np.zeros(SIZE, np.uint8)).save(recording / f"masks/{i:06d}.png")
    with pytest.raises(UserError, match=r"r/masks: the 4 labelled masks hold 0 \(3072 pixels\): nothing to learn but"):
        train(recording)
    frames = frames_of(recording)
    for row in frames.rows("train"):
        Image.fromarray(scene(row)[1]).save(recording / f"masks/{frames.frame_id[row]:06d}.png")
    with pytest.raises(UserError, match=r"r: the 8 masks of part val hold no class but background"):
        train(recording)


def test_the_command_on_folders(tmp_path, stage):
    for i in range(12):
        pixels, mask = scene(i)
        for folder, values in (("images", pixels), ("masks", mask)):
            (tmp_path / folder).mkdir(exist_ok=True)
            Image.fromarray(values).save(tmp_path / folder / f"{i}.png")
    options = ("segmentation.image_size=null", "segmentation.epochs=1", "segmentation.steps_per_epoch=1",
               "data.split.guard=0", "segmentation.labeled_groups=null", "segmentation.labeled_fraction=0.5",
               "segmentation.batch_size=2", "segmentation.crop=null")  # fmt: skip
    settings = [item for option in options for item in ("--set", option)]
    result = stage(
        "train_segmentation", "m.safetensors", "--images", "images", "--masks", "masks", "--metrics-dir", "m", *settings
    )
    assert result.returncode == 0, result.stderr
    settings[9] = "segmentation.labeled_groups=50"
    settings[11] = "segmentation.labeled_fraction=null"
    result = stage(
        "train_segmentation", "o.safetensors", "--images", "images", "--masks", "masks", "--metrics-dir", "o", *settings
    )
    assert "segmentation.labeled_groups is 50, but 7 training groups have masks" in only_error_line(result)
    assert not (tmp_path / "o.safetensors").exists()
    config = load_model(tmp_path / "m.safetensors").config
    assert (config.image_size, len(config.classes), config.method) == (SIZE, len(CLASSES), "bcp")
    assert figures(tmp_path / "m.safetensors")["labelled"]["frames"] == 4
