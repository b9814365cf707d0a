"""Segmentation of volumes in three dimensions: every method trains, whole volumes are measured and predicted."""

import json
import os
from pathlib import Path

import nibabel
import numpy as np
import onnxruntime
import pytest
import torch
from test_segmentation_training import METHODS, changed
from torch.nn import functional as F
from volume_files import scan, write_hearts

from sightline.core.errors import UserError
from sightline.core.params import Section, load_params
from sightline.export.files import export_model
from sightline.importers.volumes import ImportVolumesParams, import_volumes
from sightline.predict import segment
from sightline.recording.split import SplitParams
from sightline.segmentation import SegmentationConfig, SegmentationFrames, SegmentationModel, load_model
from sightline.segmentation.bank import ContrastiveParams, make_bank
from sightline.segmentation.evaluation import EvaluateSegmentationParams, evaluate_segmentation, table
from sightline.segmentation.model import save_model
from sightline.segmentation.params import PostprocessParams
from sightline.segmentation.training import SegmentationParams, train_segmentation
from sightline.segmentation.volume_figures import volume_figures
from sightline.segmentation.volumes import enlarged, frames_of_volumes, largest_components, seen_slices

PARAMS = {
    "dims": 3, "image_size": (20, 20), "crop": (16, 16, 6), "labeled_groups": 1, "batch_size": 2,
    "unlabelled_batch_size": 2, "epochs": 1, "steps_per_epoch": 2,
}  # fmt: skip
SMALL = (4, 4, 8, 8, 8, 4)


class Params(Section):
    segmentation: SegmentationParams = SegmentationParams()


@pytest.fixture(scope="module")
def hearts(tmp_path_factory) -> Path:
    folder = write_hearts(tmp_path_factory.mktemp("hearts") / "h")
    import_volumes(folder, folder.parent / "hearts.hdf5", ImportVolumesParams())
    os.environ["DVC_ROOT"] = str(folder.parent)
    return folder.parent / "hearts.hdf5"


@pytest.fixture(scope="module")
def weights(hearts, tmp_path_factory) -> Path:
    """Of a model that has learnt something."""
    return train(
        hearts, tmp_path_factory.mktemp("model"), method="bcp", epochs=3, steps_per_epoch=25,
        lr=1e-2, ema=0.9, zoom=0.1, rotate=10, channels=(8, 8, 8, 16, 16, 8), labeled_groups=2,
    )  # fmt: skip


def frames_of(hearts: Path, **params) -> SegmentationFrames:
    return frames_of_volumes(hearts, changed(**(PARAMS | params)), SplitParams())


def train(hearts: Path, folder: Path, **params) -> Path:
    settings = changed(**(PARAMS | params))
    train_segmentation(frames_of(hearts, **params), folder / "m.safetensors", folder / "m", settings, 0)
    return folder / "m.safetensors"


def model_of(**options) -> SegmentationModel:
    torch.manual_seed(0)
    fields = {"classes": ("background", "a", "b"), "channels": SMALL, "image_channels": 1, "spatial_dims": 3}
    return SegmentationModel(SegmentationConfig(**(fields | options))).eval()


@pytest.mark.parametrize(
    ("method", "bank"), [*((name, {}) for name in METHODS), ("bcp", {"preset": "document", "learned_selector": True})]
)
def test_every_method_trains_on_patches(hearts, tmp_path, method, bank):
    path = train(hearts, tmp_path, method=method, bcp={"pretrain": 0.5, "largest_part": True}, contrastive=bank)
    lines = (tmp_path / "m/curves.csv").read_text().splitlines()
    assert ("train_bank" in lines[0]) == (bool(bank) or method in ("ss_net", "semiseg"))
    assert all(np.isfinite([float(x) for x in line.split(",")]).all() for line in lines[1:])
    config = load_model(path).config
    assert (config.spatial_dims, config.window, config.method) == (3, (16, 16, 6), method)
    assert (len(config.train_groups), len(config.labeled_groups)) == (4, 1)


def test_the_same_training_gives_the_same_bytes(hearts, tmp_path):
    params = {"method": "unimatch", "sampling": "balanced", "class_weights": "inverse_sqrt", "slice_step": 2}
    first, second = (train(hearts, tmp_path / name, **params) for name in "ab")
    assert first.read_bytes() == second.read_bytes()
    frames = frames_of_volumes(hearts, load_model(first).config, SplitParams())
    figures = evaluate_segmentation(first, frames, tmp_path / "e", EvaluateSegmentationParams())
    assert (figures["frames"], figures["volumes"]["count"]) == (12, 2)


def test_the_bank_of_the_document_is_wired_by_its_preset():
    document = ContrastiveParams(preset="document")
    assert document.weights_for("bcp") == (1.0, 0.1, 0.1)
    assert ContrastiveParams().weights_for("bcp") == (0.0, 0.0, 0.0)
    assert ContrastiveParams().weights_for("ss_net") == (0.1, 0.0, 0.0)
    assert ContrastiveParams(preset="document", weight=0.5, intra_weight=0).weights_for("bcp") == (0.5, 0.0, 0.1)
    model = model_of(feature_stride=4)
    assert make_bank(model, ContrastiveParams(), "bcp", True) is None
    simple = make_bank(model, document, "bcp", True)
    learned = make_bank(model, ContrastiveParams(preset="document", learned_selector=True), "bcp", True)
    assert simple is not None
    assert learned is not None
    assert simple.get_selectors() == (None, None)
    assert all(len(selectors or ()) == 3 for selectors in learned.get_selectors())


@pytest.mark.parametrize("size", [(32, 16, 16), (19, 40, 5), (8, 8, 3)])
@pytest.mark.parametrize("norm", ["instance", "batch"])
def test_logits_have_the_size_of_the_volume_whatever_it_is(size, norm):
    for stride, width in ((1, 4), (2, 4), (4, 8)):
        model = model_of(norm=norm, feature_stride=stride)
        volumes = torch.randint(0, 256, (2, 1, *size), dtype=torch.uint8)
        output = model.decode(model.encode(volumes), size)
        assert output.logits.shape == (2, 3, *size)
        assert output.features.shape == (2, width, *(-(-side // stride) for side in size))
        torch.testing.assert_close(model(volumes.float() / 255), output.logits)


def test_a_v_net_is_monais_and_travels_in_its_file(tmp_path):
    model = model_of(network="vnet", feature_stride=2, window=(16, 16, 16))
    volume = torch.rand(1, 1, 18, 16, 9)
    output = model.decode(model.encode(volume), volume.shape[2:])
    assert output.features.shape == (1, model.network.feature_dim, 9, 8, 5)
    padded = F.pad((volume - model.mean) / model.std, (0, 7, 0, 0, 0, 14), mode="replicate")
    torch.testing.assert_close(output.logits, model.network.vnet(padded)[:, :, :18, :, :9])
    save_model(tmp_path / "v.safetensors", model)
    loaded = load_model(tmp_path / "v.safetensors")
    assert loaded.config == model.config
    torch.testing.assert_close(loaded(volume), output.logits)


def test_a_v_net_trains_beside_a_bank(hearts, tmp_path):
    path = train(hearts, tmp_path, network="vnet", method="bcp", steps_per_epoch=1, contrastive={"weight": 0.1})
    assert "train_bank" in (tmp_path / "m/curves.csv").read_text()
    assert load_model(path).config.network == "vnet"


def test_volumes_are_predicted_from_windows_that_overlap():
    model = model_of(window=(16, 16, 16))
    small, large = torch.rand(1, 1, 16, 16, 16), torch.rand(1, 1, 24, 20, 11)
    torch.testing.assert_close(model.probabilities(small), model(small).softmax(dim=1))
    torch.testing.assert_close(model.probabilities(large, windows=False), model(large).softmax(dim=1))
    found = model.probabilities(large)
    assert found.shape == (1, 3, 24, 20, 11)
    torch.testing.assert_close(found.sum(dim=1), torch.ones(1, 24, 20, 11))
    corner = F.pad(
        large[:, :, :16, :16], (2, 3, 0, 0, 0, 0), mode="replicate"
    )  # the first voxel lies in one window alone
    torch.testing.assert_close(found[..., 0, 0, 0], model(corner).softmax(dim=1)[..., 0, 0, 2])


def test_skipped_slices_are_between_those_that_were_seen():
    model, slices = model_of(window=(16, 16, 8), slice_step=3), scan(0, (10, 16, 16))[0] / 3
    seen = torch.from_numpy(np.stack([slices[i : i + 3].astype(np.uint8).mean(0).round() for i in (0, 3, 6, 9)]))
    found = model.probabilities(seen.to(torch.uint8).permute(1, 2, 0)[None, None])
    expected = F.interpolate(found, (16, 16, 12), mode="trilinear")[0, ..., :10].movedim(-1, 0)
    torch.testing.assert_close(torch.cat(list(seen_slices(model, slices.astype(np.uint8)))), expected)


def test_a_model_learns_and_whole_volumes_are_measured(hearts, weights, tmp_path):
    model, folder = load_model(weights), tmp_path / "e"
    frames = frames_of_volumes(hearts, model.config, SplitParams())
    postprocess = PostprocessParams(largest_component="3d")
    figures = evaluate_segmentation(weights, frames, folder, EvaluateSegmentationParams(), postprocess)
    assert figures["volumes"]["dice_mean"] > 0.7 > figures["baselines"]["all_background"]["dice_mean"]
    for key, mode in (("volumes", "none"), ("volumes_largest_component", "3d")):
        expected = []
        for name in ("p5_frame01", "p5_frame02"):
            rows = np.flatnonzero(frames.volume == name)
            found = torch.cat(list(seen_slices(model, frames.images(rows)[:, 0])))
            ids = largest_components(enlarged(found, (20, 20)).numpy(), 3, mode)
            expected.append(volume_figures(ids, frames.masks(rows), 3, frames.voxel[rows[0]]))
        means = np.nanmean(np.nanmean(expected, axis=0)[1:], axis=0)
        names = ("dice_mean", "iou_mean", "hd95_mean", "asd_mean")
        assert [figures[key][name] for name in names] == pytest.approx(means.tolist(), rel=1e-5)
    assert table(figures).splitlines()[0].split() == ["2", "volumes", "Dice", "Jaccard", "HD95", "ASD"]
    assert (folder / "overlays.png").stat().st_size > 10_000
    of_whole = evaluate_segmentation(weights, frames, tmp_path / "w", EvaluateSegmentationParams(windows=False))
    assert of_whole["volumes"]["dice_mean"] != figures["volumes"]["dice_mean"]


def test_predictions_go_back_to_the_voxels_of_the_input(hearts, weights, tmp_path):
    source = hearts.parent / "h/volumes/p5_frame01.nii.gz"
    assert segment(weights, source, tmp_path / "one.nii.gz") == 1
    made, given = nibabel.load(tmp_path / "one.nii.gz"), nibabel.load(source)
    assert (made.shape, made.get_data_dtype()) == (given.shape, np.uint8)
    assert (made.affine == given.affine).all()
    frames, model = frames_of(hearts), load_model(weights)
    rows = np.flatnonzero(frames.volume == "p5_frame01")
    expected = enlarged(torch.cat(list(seen_slices(model, frames.images(rows)[:, 0]))), (20, 20)).numpy()
    there = np.asarray(made.dataobj).transpose(2, 1, 0)[:, ::-1, ::-1]
    assert (there == expected[:, :, 2:18]).all()
    assert set(np.unique(there).tolist()) == {0, 1, 2}
    np.savez(tmp_path / "x.npz", image=scan(10)[0])
    with pytest.warns(UserWarning, match="does not tell where right, front and top are"):
        assert segment(weights, tmp_path / "x.npz", tmp_path / "x", "3d") == 1
    assert nibabel.load(tmp_path / "x/x.nii.gz").shape == scan(10)[0].shape
    assert segment(weights, hearts, tmp_path / "all") == 12


@pytest.mark.parametrize(
    ("assignments", "words"),
    [
        (["dims=3"], r"crop must be rows, columns and slices for dims 3, as \[112, 112, 80\], not \[64, 64\]"),
        (["dims=3", "crop=null"], "crop must be rows, columns and slices for dims 3"),
        (["crop=[8,8,8]"], r"crop must be rows and columns for dims 2, not \[8, 8, 8\]; or set dims to 3"),
        (["crop=[8]"], "crop must be two numbers above 0, or three for dims 3"),
        (["network=vnet"], "network vnet and slice_step are for dims 3"),
        (["slice_step=2"], "network vnet and slice_step are for dims 3"),
    ],
)
def test_settings_that_do_not_fit_together_are_one_line(assignments, words):
    with pytest.raises(UserError, match=words) as error:
        load_params(Params, None, [f"segmentation.{one}" for one in assignments])
    assert "\n" not in str(error.value)


def test_images_are_not_for_a_model_of_volumes(weights, tmp_path):
    (tmp_path / "images").mkdir()
    with pytest.raises(UserError, match=r"images: holds no volumes, which .*m.safetensors was trained on; give NIfTI"):
        segment(weights, tmp_path / "images", tmp_path / "out")
    group = np.arange(43)
    np.savez(tmp_path / "a.npz", image=np.zeros((43, 20, 20), np.uint8), label=np.ones((43, 20, 20), int), group=group)
    frames = SegmentationFrames.from_arrays(tmp_path / "a.npz", load_model(weights).config, SplitParams())
    with pytest.raises(UserError, match=r"was trained on volumes in three dimensions, but .*a.npz is not of volumes"):
        evaluate_segmentation(weights, frames, tmp_path / "e", EvaluateSegmentationParams())


def test_the_card_tells_what_a_model_of_volumes_takes(weights):
    card = json.loads(weights.with_suffix(".card.json").read_text())
    assert card["inputs"] == ["grey volumes, 8 bits, seen in windows of 16 x 16 x 6 rows, columns and slices"]
    assert card["configuration"]["window"] == [16, 16, 6]


@pytest.mark.parametrize("suffix", ["onnx", "pt2"])
def test_an_exported_program_takes_windows(weights, tmp_path, suffix):
    export_model(weights, tmp_path / f"m.{suffix}")
    windows = torch.randint(0, 256, (3, 16, 16, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    model = load_model(weights)
    exact = model.double() if suffix == "onnx" else model  # ONNX Runtime is nearer to float64 than PyTorch's float32
    expected = exact(windows[:, None]).softmax(dim=1).float()
    if suffix == "pt2":
        found = torch.export.load(tmp_path / "m.pt2").module()(windows)
    else:
        session = onnxruntime.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])
        found = torch.from_numpy(session.run(["probabilities"], {"windows": windows.numpy()})[0])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_the_header_of_a_model_of_images_has_nothing_of_volumes():
    assert {"network", "slice_step"} <= set(model_of().config.model_dump())
    config = SegmentationConfig(classes=("a", "b"), channels=SMALL)
    assert not {"network", "slice_step"} & set(config.model_dump(mode="json"))
    assert SegmentationConfig.model_validate_json(config.model_dump_json()) == config
