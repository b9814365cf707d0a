"""Segmentation of volumes: which patients are labelled, figures in three dimensions, predictions as NIfTI."""

import json
import os
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from scipy import ndimage
from test_segmentation_training import changed
from volume_files import scan, write_hearts, write_nifti

from sightline.core.errors import UserError
from sightline.core.params import Section, load_params
from sightline.importers.volumes import ImportVolumesParams, import_volumes
from sightline.predict import segment
from sightline.recording.split import SplitParams
from sightline.segmentation import SegmentationFrames, load_model
from sightline.segmentation.batches import choose_labelled
from sightline.segmentation.evaluation import EvaluateSegmentationParams, evaluate_segmentation, table
from sightline.segmentation.norms import InstanceNorm, _Normalise
from sightline.segmentation.params import PostprocessParams
from sightline.segmentation.training import SegmentationParams, train_segmentation
from sightline.segmentation.volume_figures import volume_figures
from sightline.segmentation.volumes import frames_of_volumes, largest_components


class Params(Section):
    segmentation: SegmentationParams = SegmentationParams()


PARAMS = {"image_size": (20, 20), "labeled_groups": 1}


@pytest.fixture(scope="module")
def hearts(tmp_path_factory) -> Path:
    """A file of volumes of six patients; of p1, all masks are "ignore", of p2 there are none."""
    folder = write_hearts(tmp_path_factory.mktemp("hearts") / "h")
    for i, phase in enumerate(("frame01", "frame02")):
        write_nifti(folder / "volumes", f"p1_{phase}", 2 + i, label=np.full((16, 20, 6), 255, np.uint8))
        (folder / f"volumes/p2_{phase}_gt.nii.gz").unlink()
    import_volumes(folder, folder.parent / "hearts.hdf5", ImportVolumesParams())
    return folder.parent / "hearts.hdf5"


def frames_of(hearts: Path, **params) -> SegmentationFrames:
    return frames_of_volumes(hearts, changed(**(PARAMS | params)), SplitParams())


@pytest.fixture(scope="module")
def weights(hearts, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    os.environ["DVC_ROOT"] = str(folder)
    params = changed(**PARAMS, method="bcp", epochs=2, steps_per_epoch=8, lr=1e-2)
    train_segmentation(frames_of(hearts), folder / "m.safetensors", folder / "m", params, 0)
    return folder / "m.safetensors"


def labelled(frames: SegmentationFrames, groups, seed: int = 0) -> list[str]:
    rows = choose_labelled(frames, groups, None, seed)[0]
    return np.unique(frames.group[rows]).tolist()


def test_labelled_patients_are_a_number_names_or_what_the_file_says(hearts):
    frames = frames_of(hearts)
    assert labelled(frames, 2) == ["p0", "p3"]
    assert labelled(frames, "labelled") == ["p0", "p3"]
    assert labelled(frames, ("p3",)) == ["p3"]
    assert {labelled(frames, 1, seed)[0] for seed in range(8)} == {"p0", "p3"}
    rest = choose_labelled(frames, ("p3",), None, 0)[1]
    assert np.unique(frames.group[rest]).tolist() == ["p0", "p1", "p2"]


@pytest.mark.parametrize(
    ("groups", "words"),
    [(("p0", "p1", "p2"), r"or masks of 255 \(ignore\) alone, in the labelled groups p1, p2; choose others"),
     (("p9",), r"labeled_groups: no group p9; training groups are p0, p1, p2, p3"),
     (("p5",), "labeled_groups: p5 is of part test, not of train"), (3, "is 3, but 2 training groups have masks")],
)  # fmt: skip
def test_patients_without_masks_are_refused_by_name(hearts, groups, words):
    with pytest.raises(UserError, match=words):
        choose_labelled(frames_of(hearts), groups, None, 0)


@pytest.mark.parametrize("value", ["0", "some", "[]", "[1.5]", "{a: 1}", "true"])
def test_labeled_groups_of_another_kind_are_refused_in_one_line(value):
    with pytest.raises(UserError) as error:
        load_params(Params, None, [f"segmentation.labeled_groups={value}"])
    assert "labeled_groups must be a number above 0, a list of names, or labelled" in str(error.value)
    assert "\n" not in str(error.value)


def test_names_may_be_numbers():
    params = load_params(Params, None, ["segmentation.labeled_groups=[7, b]"])
    assert params.segmentation.labeled_groups == ("7", "b")
    assert load_params(Params, None, ["segmentation.labeled_groups=labelled"]).segmentation.labeled_groups == "labelled"


def test_the_choice_of_patients_has_a_seed_of_its_own(hearts):
    chosen = {labelled(frames_of(hearts), 1, seed)[0]: seed for seed in range(8)}
    params = [changed(**PARAMS, labeled_seed=chosen[name]) for name in ("p0", "p3")]
    assert [one.labeled_seed for one in params] == [chosen["p0"], chosen["p3"]]
    assert SegmentationParams().labeled_seed is None


def test_a_class_that_no_labelled_patient_has_is_an_error(hearts, tmp_path):
    params = changed(**PARAMS, classes=("background", "ball", "core", "wall"))
    with pytest.raises(UserError, match=r"wall in no mask of the labelled groups, p[03]: cannot be learnt"):
        train_segmentation(
            frames_of(hearts, classes=params.classes), tmp_path / "m.safetensors", tmp_path / "m", params, 0
        )


def test_slices_are_not_stretched(hearts):
    with pytest.raises(UserError, match=r"image_size \[20, 24\] would stretch the slices of .*, which are 20 x 20"):
        frames_of(hearts, image_size=(20, 24))


def test_other_files_and_too_few_patients_are_refused(hearts, tmp_path):
    write_nifti(tmp_path / "v", "a", 0)
    write_nifti(tmp_path / "v", "b", 1)
    import_volumes(tmp_path / "v", tmp_path / "two.hdf5", ImportVolumesParams())
    with pytest.raises(UserError, match=r"two.hdf5: 2 patients \(a, b\) cannot be split"):
        frames_of(tmp_path / "two.hdf5")
    (tmp_path / "x.hdf5").write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"x.hdf5: not a readable HDF5 file"):
        frames_of(tmp_path / "x.hdf5")


def independent(predicted: np.ndarray, truth: np.ndarray, spacing: np.ndarray) -> list[float]:
    """Dice, Jaccard, HD95 and ASD of two bool volumes, by all distances between their surfaces."""
    both = (predicted & truth).sum()
    dice, jaccard = 2 * both / (predicted.sum() + truth.sum()), both / (predicted | truth).sum()
    cross = ndimage.generate_binary_structure(3, 1)
    surfaces = [np.argwhere(one & ~ndimage.binary_erosion(one, cross)) * spacing for one in (predicted, truth)]
    distances = np.sqrt(((surfaces[0][:, None] - surfaces[1][None]) ** 2).sum(axis=2))
    ways = distances.min(axis=1), distances.min(axis=0)
    hd95 = max(np.percentile(way, 95) for way in ways)
    return [dice, jaccard, hd95, np.concatenate(ways).mean()]


def test_figures_of_volumes_are_those_of_an_independent_computation():
    for seed in range(4):
        rng, spacing = np.random.default_rng(seed), np.array([8.0, 1.3, 1.7])
        truth = scan(seed)[1]
        predicted = np.roll(truth, rng.integers(-2, 3, 3), axis=(0, 1, 2))
        predicted[rng.random(truth.shape) < 0.02] = 1
        figures = volume_figures(predicted, truth, 3, spacing)
        for class_id in (0, 1, 2):
            expected = independent(predicted == class_id, truth == class_id, spacing)
            assert figures[class_id] == pytest.approx(expected, abs=1e-6)


def test_a_class_in_the_truth_or_the_prediction_alone_is_as_far_as_can_be():
    truth = np.zeros((4, 6, 6), np.uint8)
    predicted = truth.copy()
    truth[1, 2, 2] = 1
    figures = volume_figures(predicted, truth, 3, np.array([2.0, 1.0, 1.0]))
    assert figures[1].tolist() == pytest.approx([0, 0, np.sqrt(64 + 72), np.sqrt(64 + 72)])
    assert np.isnan(figures[2]).all()


def test_the_largest_component_stays_in_slices_or_the_volume():
    ids = np.zeros((3, 6, 6), np.uint8)
    ids[0, :2, :2] = ids[1, 2, 2] = 1  # connected over a corner
    ids[1, 5, 3:6] = ids[2, 0, 0] = 1
    ids[2, 5, 5] = 2
    of_volume, of_slices = (largest_components(ids, 3, mode) for mode in ("3d", "2d"))
    assert np.argwhere(of_volume == 1).tolist() == [[0, 0, 0], [0, 0, 1], [0, 1, 0], [0, 1, 1], [1, 2, 2]]
    assert np.argwhere(of_slices[1] == 1).tolist() == [[5, 3], [5, 4], [5, 5]]
    assert of_slices[2, 0, 0] == 1
    assert (of_volume == 2).sum() == (of_slices == 2).sum() == 1
    assert largest_components(ids, 3, "none") is ids


def test_an_evaluation_measures_volumes_with_and_without_the_largest_component(hearts, weights, tmp_path):
    frames = frames_of_volumes(hearts, load_model(weights).config, SplitParams())
    figures = evaluate_segmentation(
        weights, frames, tmp_path, EvaluateSegmentationParams(), PostprocessParams(largest_component="3d")
    )
    rows, model = frames.rows("test"), load_model(weights)
    for key, mode in (("volumes", "none"), ("volumes_largest_component", "3d")):
        expected = []
        for name in np.unique(frames.volume[rows]):
            some = rows[frames.volume[rows] == name]
            predicted = model.probabilities(torch.from_numpy(frames.images(some))).argmax(1).numpy().astype(np.uint8)
            predicted = largest_components(predicted, 3, mode)
            expected.append(volume_figures(predicted, frames.masks(some), 3, frames.voxel[some[0]]))
        means = np.nanmean(np.nanmean(expected, axis=0)[1:], axis=0)
        names = ("dice_mean", "iou_mean", "hd95_mean", "asd_mean")
        assert [figures[key][name] for name in names] == pytest.approx(means.tolist(), rel=1e-5)
    headline = json.loads((tmp_path / "metrics.json").read_text())
    assert headline["dice"] == figures["volumes"]["dice_mean"]
    assert headline["dice_largest_component"] == figures["volumes_largest_component"]["dice_mean"]
    assert table(figures).splitlines()[0].split() == ["2", "volumes", "Dice", "Jaccard", "HD95", "ASD"]
    assert set(figures["volumes"]["by_volume"]) == {"p5_frame01", "p5_frame02"}
    assert (tmp_path / "overlays.png").stat().st_size > 10_000


def test_volumes_imported_in_another_way_are_not_measured(hearts, weights, tmp_path):
    folder = write_hearts(tmp_path / "h")
    import_volumes(folder, tmp_path / "other.hdf5", ImportVolumesParams(window=(0, 700)))
    frames = frames_of_volumes(tmp_path / "other.hdf5", load_model(weights).config, SplitParams())
    with pytest.raises(
        UserError, match=r"imported in another way .* import them again with --set import_volumes.window=null"
    ):
        evaluate_segmentation(weights, frames, tmp_path / "e", EvaluateSegmentationParams())


def test_predictions_go_back_to_the_voxels_of_the_input(hearts, weights, tmp_path):
    source = hearts.parent / "h/volumes/p5_frame01.nii.gz"
    assert segment(weights, source, tmp_path / "one.nii.gz") == 1
    made, given = nibabel.load(tmp_path / "one.nii.gz"), nibabel.load(source)
    assert made.shape == given.shape
    assert (made.affine == given.affine).all()
    assert made.header.get_zooms() == given.header.get_zooms()
    assert made.get_data_dtype() == np.uint8
    frames, model = frames_of(hearts), load_model(weights)
    rows = np.flatnonzero(frames.volume == "p5_frame01")
    expected = model.probabilities(torch.from_numpy(frames.images(rows))).argmax(1).numpy()
    there = np.asarray(made.dataobj).transpose(2, 1, 0)[:, ::-1, ::-1]
    assert (there == expected[:, :, 2:18]).all()
    assert segment(weights, hearts, tmp_path / "all") == 12
    assert (np.asarray(nibabel.load(tmp_path / "all/p5_frame01.nii.gz").dataobj) == np.asarray(made.dataobj)).all()
    np.savez(tmp_path / "x.npz", image=scan(10)[0])
    with pytest.warns(UserWarning, match="does not tell where right, front and top are"):
        assert segment(weights, tmp_path / "x.npz", tmp_path / "x", "3d") == 1
    assert nibabel.load(tmp_path / "x/x.nii.gz").shape == scan(10)[0].shape
    with pytest.raises(UserError, match="holds several volumes; name a folder"):
        segment(weights, hearts, tmp_path / "no.nii.gz")
    assert not (tmp_path / "no.nii.gz").exists()


def test_the_norm_is_pytorchs_in_either_order_of_axes():
    torch.manual_seed(0)
    ours, theirs = InstanceNorm(5, affine=True), torch.nn.InstanceNorm2d(5, affine=True)
    theirs.load_state_dict(ours.state_dict())
    for order in (torch.channels_last, torch.contiguous_format):
        x = (3 + torch.randn(3, 5, 6, 7)).contiguous(memory_format=order)
        grown = [x.clone().requires_grad_() for _ in range(2)]
        results = [norm(one) for norm, one in zip((ours, theirs), grown, strict=True)]
        torch.testing.assert_close(*results)
        for result in results:
            result.square().mul(torch.arange(7)).sum().backward()
        torch.testing.assert_close(grown[0].grad, grown[1].grad, rtol=1e-4, atol=1e-4)
    x = torch.randn(2, 3, 4, 5, dtype=torch.double).contiguous(memory_format=torch.channels_last).requires_grad_()
    weight, bias = (torch.randn(3, dtype=torch.double, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradcheck(lambda *values: _Normalise.apply(*values, 1e-5), (x, weight, bias))
