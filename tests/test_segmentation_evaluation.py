"""Evaluating a segmentation model: figures, baselines, picture, and what it refuses."""

import csv
import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from sightline.core.errors import UserError
from sightline.recording.colours import class_colours, outlined
from sightline.recording.layout import RecordingInfo, write_recording_info
from sightline.recording.split import DataParams, SplitParams
from sightline.segmentation import evaluation
from sightline.segmentation.evaluation import EvaluateSegmentationParams, evaluate_segmentation, table
from sightline.segmentation.frames import FrameParams, SegmentationFrames
from sightline.segmentation.model import SegmentationConfig, SegmentationModel, load_model, save_model
from sightline.validation.validation import validate_recording

SPLIT = SplitParams(val=0.25, test=0.25)
SIZE, GROUPS, EACH = 32, 8, 3
COLOURS = np.array([(90, 90, 90), (210, 60, 60), (60, 80, 210)])  # background, disc, square


def draw(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Noisy pictures of a disc and a square, uint8 [N, H, W, 3], and their masks; each fifth has no square."""
    rng, (rows, columns) = np.random.default_rng(seed), np.mgrid[:SIZE, :SIZE]
    masks = np.zeros((count, SIZE, SIZE), np.uint8)
    for number, mask in enumerate(masks):
        y, x = rng.integers(7, SIZE - 7, 2)
        top, left = rng.integers(1, SIZE - 9, 2)
        if number % 5:
            mask[top : top + 8, left : left + 8] = 2
        mask[(rows - y) ** 2 + (columns - x) ** 2 < 30] = 1
    images = COLOURS[masks] + rng.normal(0, 25, (*masks.shape, 3))
    masks[:, 0, :3] = 255
    return images.clip(0, 255).astype(np.uint8), masks


@pytest.fixture(scope="module")
def arrays(tmp_path_factory) -> Path:
    """Slices of eight patients."""
    path = tmp_path_factory.mktemp("arrays") / "slices.npz"
    images, masks = draw(GROUPS * EACH)
    np.savez(path, image=images, label=masks, group=np.arange(GROUPS).repeat(EACH), spacing=np.array([2.0, 1.0]))
    return path


def config_of(frames: SegmentationFrames, **options) -> SegmentationConfig:
    groups = np.unique(frames.group[frames.rows("train")]).astype(str)
    fields = {
        "image_size": frames.image_size, "classes": ("background", "disc", "square"), "channels": (8, 8, 8, 8, 8, 8),
        "train_groups": tuple(groups), "labeled_groups": tuple(groups[:2]),
    }  # fmt: skip
    return SegmentationConfig(**(fields | options))


@pytest.fixture(scope="module")
def weights(arrays) -> Path:
    """A small network after a few steps on the training slices of two patients."""
    torch.manual_seed(0)
    frames = SegmentationFrames.from_arrays(arrays, FrameParams(image_size=(SIZE, SIZE)), SPLIT)
    model = SegmentationModel(config_of(frames))
    rows = frames.rows("train")
    rows = rows[np.isin(frames.group[rows].astype(str), model.config.labeled_groups)]
    images, masks = torch.from_numpy(frames.images(rows)), torch.from_numpy(frames.masks(rows)).long()
    model.fit_normalisation(images)
    optimizer = torch.optim.Adam(model.train().parameters(), lr=1e-2)
    for _ in range(50):
        loss = F.cross_entropy(model(images), masks, ignore_index=255)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    save_model(arrays.parent / "model.safetensors", model)
    return arrays.parent / "model.safetensors"


def evaluate(weights: Path, arrays: Path, output: Path, **options):
    frames = SegmentationFrames.from_arrays(arrays, load_model(weights).config, SPLIT)
    return evaluate_segmentation(weights, frames, output, EvaluateSegmentationParams(batch_size=4, **options))


def test_figures_are_those_of_predictions_made_by_hand(arrays, weights, tmp_path):
    figures = evaluate(weights, arrays, tmp_path)
    assert json.loads((tmp_path / "evaluation_results.json").read_text()) == figures
    model = load_model(weights)
    frames = SegmentationFrames.from_arrays(arrays, model.config, SPLIT)
    rows = frames.rows("test")
    truth = frames.masks(rows)
    probabilities = model(torch.from_numpy(frames.images(rows))).softmax(1).detach().numpy()
    predicted, counted = probabilities.argmax(1), truth != 255
    expected = {}
    for class_id, name in enumerate(model.config.classes):
        a, b = (predicted == class_id) & counted, truth == class_id
        expected[name] = 2 * (a & b).sum() / (a.sum() + b.sum())
        assert figures["classes"][name]["dice"] == pytest.approx(expected[name], abs=1e-5)
        assert figures["classes"][name]["images"] == (b.any((1, 2))).sum()
    assert figures["dice_mean"] == pytest.approx((expected["disc"] + expected["square"]) / 2, abs=1e-5)
    assert figures["accuracy"] == pytest.approx((predicted == truth)[counted].mean(), abs=1e-5)
    assert (figures["frames"], figures["groups"], figures["distance_unit"]) == (6, 2, "spacing")
    low, high = figures["dice_mean_interval"]
    assert low <= figures["dice_mean"] <= high
    assert set(figures["by_group"]) == set(frames.group[rows].astype(str))


def test_a_trained_model_beats_the_baselines_and_they_are_what_they_say(arrays, weights, tmp_path):
    figures = evaluate(weights, arrays, tmp_path)
    baselines = figures["baselines"]
    assert figures["dice_mean"] > max(0.6, baselines["mean_mask"]["dice_mean"])
    assert baselines["all_background"] == {"dice_mean": 0, "iou_mean": 0, "dice_per_image_mean": 0}
    frames = SegmentationFrames.from_arrays(arrays, FrameParams(image_size=(SIZE, SIZE)), SPLIT)
    train, test = frames.rows("train"), frames.rows("test")
    labelled = train[np.isin(frames.group[train], np.unique(frames.group[train])[:2])]
    images, masks = frames.images(labelled).transpose(0, 2, 3, 1), frames.masks(labelled)
    means = [images[masks == class_id].mean(0) for class_id in range(3)]
    pixels, truth = frames.images(test).transpose(0, 2, 3, 1).astype(float), frames.masks(test)
    nearest = np.stack([((pixels - mean) ** 2).sum(-1) for mean in means]).argmin(0)
    common = np.stack([(masks == class_id).sum(0) for class_id in range(3)]).argmax(0)
    for name, predicted in (("mean_colour", nearest), ("mean_mask", np.broadcast_to(common, truth.shape))):
        scores = []
        for class_id in (1, 2):
            a, b = (predicted == class_id) & (truth != 255), truth == class_id
            scores.append(2 * (a & b).sum() / (a.sum() + b.sum()))
        assert baselines[name]["dice_mean"] == pytest.approx(np.mean(scores), abs=1e-5)


def test_means_are_over_all_classes_where_none_is_the_background(arrays, weights, tmp_path):
    model = load_model(weights)
    model.config = model.config.model_copy(update={"has_background": False})
    save_model(tmp_path / "all.safetensors", model)
    frames = SegmentationFrames.from_arrays(arrays, model.config, SPLIT)
    figures = evaluate_segmentation(tmp_path / "all.safetensors", frames, tmp_path, EvaluateSegmentationParams())
    dice = [values["dice"] for values in figures["classes"].values()]
    assert figures["dice_mean"] == pytest.approx(np.mean(dice), abs=1e-5)
    low, high = figures["dice_mean_interval"]
    assert low <= figures["dice_mean"] <= high
    assert figures["dice_mean"] == pytest.approx(np.mean(list(figures["by_group"].values())), abs=0.05)


def test_the_same_evaluation_writes_the_same_bytes(arrays, weights, tmp_path):
    for name in ("a", "b"):
        evaluate(weights, arrays, tmp_path / name)
    names = {path.name for path in (tmp_path / "a").iterdir()}
    assert names == {"metrics.json", "evaluation_results.json", "per_class.csv", "confidence.csv", "overlays.png"}
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_tables_hold_each_class_and_each_bin(arrays, weights, tmp_path):
    figures = evaluate(weights, arrays, tmp_path)
    with open(tmp_path / "per_class.csv", newline="") as file:
        rows = {row["class"]: row for row in csv.DictReader(file)}
    assert list(rows) == ["background", "disc", "square"]
    assert float(rows["disc"]["hd95"]) == pytest.approx(figures["classes"]["disc"]["hd95"], rel=1e-5)
    with open(tmp_path / "confidence.csv", newline="") as file:
        bins = list(csv.DictReader(file))
    assert sum(float(row["share"]) for row in bins) == pytest.approx(1, abs=1e-4)
    pooled = sum(float(row["share"]) * float(row["accuracy"]) for row in bins)
    assert pooled == pytest.approx(figures["accuracy"], abs=1e-4)


def test_a_class_that_is_nowhere_is_undefined_and_a_missed_one_has_the_diagonal(arrays, tmp_path):
    with np.load(arrays) as file:
        changed = {name: file[name] for name in file}
    changed["label"][changed["label"] == 2] = 0
    np.savez(tmp_path / "changed.npz", **changed)
    frames = SegmentationFrames.from_arrays(tmp_path / "changed.npz", FrameParams(image_size=(SIZE, SIZE)), SPLIT)
    blind = SegmentationModel(config_of(frames))
    with torch.no_grad():
        blind.network.unet.final_conv.weight.zero_()
        blind.network.unet.final_conv.bias.copy_(torch.tensor([1.0, 0.0, 0.0]))
    save_model(tmp_path / "blind.safetensors", blind)
    figures = evaluate(tmp_path / "blind.safetensors", tmp_path / "changed.npz", tmp_path / "out")
    assert {figures["classes"]["square"][key] for key in ("dice", "iou", "dice_per_image", "hd95", "asd")} == {None}
    assert (figures["dice_mean"], figures["dice_per_image_mean"], figures["dice_per_group_mean"]) == (0, 0, 0)
    assert figures["hd95_mean"] == figures["asd_mean"] == pytest.approx(np.hypot(2 * SIZE, SIZE), rel=1e-5)
    assert "NaN" not in (tmp_path / "out/evaluation_results.json").read_text()
    assert table(figures).splitlines()[1].split() == ["model", "0.0000", "0.0000"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train_groups": tuple(map(str, range(GROUPS)))}, r"was trained on group \d of part test"),
        ({"image_channels": 1}, "its images are RGB, but .* was trained on grey ones"),
        ({"extras": {"grid": (4, 6)}}, r"was trained with grids as a further input; add --feature PATH of them"),
        ({"extras": {"embedding": (4,)}}, r"was trained with depth embeddings as a further input; add --feature PATH"),
        ({"extras": {"depth": (2, SIZE, SIZE)}}, "was trained with depth images; add --depth FOLDER"),
    ],
)
def test_a_model_that_does_not_fit_is_refused(arrays, tmp_path, options, message):
    frames = SegmentationFrames.from_arrays(arrays, FrameParams(image_size=(SIZE, SIZE)), SPLIT)
    save_model(tmp_path / "m.safetensors", SegmentationModel(config_of(frames, **options)))
    with pytest.raises(UserError, match=message) as error:
        evaluate(tmp_path / "m.safetensors", arrays, tmp_path / "out")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_a_part_without_masks_is_refused(weights, tmp_path):
    images, masks = draw(24)
    for folder, pictures in (("images", images), ("masks", masks[:6])):
        (tmp_path / folder).mkdir()
        for number, pixels in enumerate(pictures):
            Image.fromarray(pixels).save(tmp_path / folder / f"{number}.png")
    params, split = FrameParams(image_size=(SIZE, SIZE)), SplitParams(val=0.2, test=0.2, guard=1)
    frames = SegmentationFrames.from_folders(tmp_path / "images", tmp_path / "masks", params, split)
    with pytest.raises(UserError, match=r"no frames with masks in part test; set evaluate_segmentation\.part"):
        evaluate_segmentation(weights, frames, tmp_path / "out", EvaluateSegmentationParams())


def test_the_stage_takes_a_recording(weights, tmp_path, stage):
    images, masks = draw(24)
    root = tmp_path / "recording"
    for folder, pictures in (("rgb/global", images), ("masks", masks)):
        (root / folder).mkdir(parents=True)
        for number, pixels in enumerate(pictures):
            Image.fromarray(pixels).save(root / folder / f"{number:06d}.png")
    steps = np.tile(np.arange(3), 8)
    table = {"frame_id": np.arange(24), "episode": 100 + np.arange(8).repeat(3), "step": steps, "time_s": steps / 10}
    pd.DataFrame(table).to_parquet(root / "frames.parquet")
    classes = ("background", "disc", "square")
    write_recording_info(
        root / "recording.json", RecordingInfo(fps=10.0, cameras=("global",), joints=(), classes=classes)
    )
    validate_recording(root, tmp_path / "index", DataParams(split=SPLIT), processes=1)
    result = stage("evaluate_segmentation", weights, "out", "--recording", root, "--index", tmp_path / "index")
    assert result.returncode == 0, result.stderr
    figures = json.loads((tmp_path / "out/evaluation_results.json").read_text())
    assert figures["dice_mean"] > 0.6
    assert list(figures["baselines"]) == ["all_background"]  # the model saw no mask of these episodes
    assert f"{figures['dice_mean']:.4f}" in result.stdout


def test_outlines_leave_the_inside_of_a_class_and_the_background_as_they_are():
    image, mask = np.full((9, 12, 3), 100, np.uint8), np.zeros((9, 12), np.uint8)
    mask[1:8, 1:8], mask[8, 11] = 1, 255
    shown = outlined(image, mask, 3, width=48).reshape(9, 4, 12, 4, 3)
    inside, edge, outside, ignored = (shown[y, :, x, :] for y, x in ((4, 4), (1, 4), (4, 10), (8, 11)))
    assert (inside == 100).all()
    assert (outside == 100).all()
    colour = class_colours(3)[1]
    assert (edge == colour).all()
    assert (ignored > 150).all()
    assert len({tuple(colour) for colour in class_colours(20).tolist()}) == 20


def test_the_best_the_median_and_the_worst_image_are_shown(arrays, weights, tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr(evaluation, "draw_overlays", lambda *arguments: shown.extend(arguments[4]))
    evaluate(weights, arrays, tmp_path)
    assert [title.split(":")[0] for title in shown] == ["best", "median", "worst"]
    dice = [float(title.rpartition(" ")[2]) for title in shown]
    assert dice == sorted(dice, reverse=True)
    assert all(re.fullmatch(r"\w+: (group )?\w+, frame \d+, Dice 0\.\d\d", title) for title in shown), shown
