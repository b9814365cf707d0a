"""Exported programs: what the Python path gives from the same raw images, whatever their size, in other runtimes."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import only_error_line
from PIL import Image

from sightline.core.errors import UserError
from sightline.depth.network import Encoder, NetworkConfig
from sightline.depth.preprocessing import Preprocessing, preprocess
from sightline.depth.semantic_encoder import create_semantic_encoder
from sightline.depth.weights import Header, save_weights
from sightline.export.files import export_model
from sightline.export.programs import EncoderProgram
from sightline.export.resampling import DOUBLE, is_tall, length, resize, weights
from sightline.fusion import Policy
from sightline.fusion.policy import FusionPolicy, PolicyConfig, save_policy
from sightline.segmentation.frames import resized
from sightline.segmentation.model import SegmentationConfig, SegmentationModel, load_model, save_model

pytestmark = pytest.mark.usefixtures("one_thread")
RANGE = Preprocessing(height_range=(600, 1400), invalid=(0,), resize="area", fit="crop")
CONFIG = PolicyConfig(
    cameras=("left", "top"), image_size=32, fit="pad", joint_names=("a", "b", "c"), actions=3, steps=4, stride=2,
    extras={"depth": (5,), "depth_images": (1, 20, 20)}, norm="gn", image_feature_dim=16, fusion_dim=16,
)  # fmt: skip
VOLUMES = SegmentationConfig(
    classes=("a", "b"), image_size=(32, 32), window=(16, 16, 8), channels=(4,) * 6, spatial_dims=3, image_channels=1
)
SIZES = [(1, (24, 32)), (2, (128, 128)), (3, (150, 96))]
# OpenVINO has a process of its own, in which these tests run again: its threads and PyTorch's have crashed one another
IN_OPENVINO = "SIGHTLINE_TEST_OPENVINO"
RUNTIMES = ("openvino",) if IN_OPENVINO in os.environ else ("onnxruntime",)


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    """An encoder, a policy, and a segmentation model of parts, with their exported files."""
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    network = Encoder(NetworkConfig(latent_dim=128, width=16))
    torch.nn.init.normal_(network.head.weight, std=0.02)
    header = Header(kind="encoder", network=network.config, preprocessing=RANGE)
    save_weights(folder / "encoder.safetensors", network, header)
    policy = FusionPolicy(CONFIG)
    torch.nn.init.normal_(policy.head.layers[-1].weight, std=0.1)
    policy.base_holds.fill_(True)
    save_policy(folder / "policy.safetensors", policy)
    config = SegmentationConfig(classes=("a", "b", "c"), image_size=(64, 48), window=(32, 32), channels=(8,) * 6)
    save_model(folder / "segmentation.safetensors", SegmentationModel(config))
    save_model(folder / "volumes.safetensors", SegmentationModel(VOLUMES))
    for path in list(folder.iterdir()):
        assert export_model(path, path.with_suffix(".onnx")) <= 1e-5
    return folder


def runner(path: Path, runtime: str) -> Callable[[dict[str, np.ndarray]], list[np.ndarray]]:
    """The program of an ONNX file in a runtime."""
    if runtime == "onnxruntime":
        import onnxruntime

        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        return lambda feed: session.run(None, feed)
    import openvino

    compiled = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return lambda feed: list(compiled(feed).values())


def depth(count: int, size: tuple[int, int], seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    raw = rng.integers(500, 1500, (count, *size)).astype(np.uint16)
    raw[rng.random(raw.shape) < 0.3] = 0
    raw[:, : size[0] // 3, : size[1] // 2] = 0
    return raw


def pictures(count: int, size: tuple[int, int], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, *size, 3), dtype=np.uint8)


def near(found: np.ndarray, expected: np.ndarray) -> None:
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= 1e-5 * max(1, np.abs(expected).max())


@pytest.mark.parametrize(("kind", "method"), [("box", "BOX"), ("bilinear", "BILINEAR"), ("bicubic", "BICUBIC")])
def test_resizing_is_that_of_pillow_to_the_bit(kind, method):
    sizes = ((90, 126, 84), (240, 320, 84), (30, 41, 84), (127, 300, 128), (24, 97, 48))
    tall = ((126, 90, 84), (320, 240, 84), (300, 127, 128), (97, 24, 48), (64, 56, 48), (65, 56, 48))
    for height, width, side in (*sizes, *tall):
        pixels = pictures(1, (height, width))[0]
        expected = np.asarray(Image.fromarray(pixels).resize((side, side), Image.Resampling[method]))
        axes = [torch.arange(size, dtype=DOUBLE) for size in (height, width)]
        made = [weights(axis, length(axis), side, kind) for axis in axes]
        is_first = is_tall(torch.tensor(height), torch.tensor(width), (side, side))
        found = resize(torch.from_numpy(pixels).permute(2, 0, 1).float(), *made, is_first).permute(1, 2, 0)
        np.testing.assert_array_equal(found.numpy(), expected)


@pytest.mark.parametrize("fit", ["squash", "crop", "pad"])
@pytest.mark.parametrize("how", ["nearest", "area"])
@pytest.mark.parametrize("encoding", ["raw", "rotr3", "byteswap"])
def test_raw_depth_is_prepared_as_the_stage_does(fit, how, encoding):
    settings = RANGE.model_copy(update={"fit": fit, "resize": how, "depth_encoding": encoding})
    program = EncoderProgram(Encoder(NetworkConfig(latent_dim=128, width=16)), settings)
    for count, size in [*SIZES, (1, (300, 128))]:
        raw = depth(count, size)
        if encoding != "raw":
            raw = raw.byteswap() if encoding == "byteswap" else (raw << 3) | (raw >> 13)
        expected, valid = preprocess(raw, settings)
        found, is_valid = program.prepare(torch.from_numpy(raw))
        np.testing.assert_allclose(found[:, 0].numpy(), expected, atol=2e-6)
        np.testing.assert_array_equal(is_valid[:, 0].numpy(), valid)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_an_encoder_gives_the_embeddings_of_raw_images(models, runtime):
    run = runner(models / "encoder.onnx", runtime)
    encoder = create_semantic_encoder(models / "encoder.safetensors", device="cpu")
    for count, size in SIZES:
        (found,) = run({"images": depth(count, size)})
        near(found, encoder.encode_numpy(depth(count, size)))
    (found,) = run({"images": np.zeros((1, 40, 40), np.uint16)})
    assert np.isnan(found).all()


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_policy_acts_on_pictures_of_any_size(models, runtime):
    ours = Policy.load(models / "policy.safetensors", replan_every=1)
    theirs = Policy.load(models / "policy.onnx", replan_every=1, runtime=runtime)
    assert theirs.model.runtime == runtime
    assert theirs.config == ours.config
    for seed, sizes in enumerate((((32, 32), (32, 32)), ((120, 90), (33, 64)), ((48, 64), (224, 200)))):
        images = {name: pictures(1, size, seed)[0] for name, size in zip(CONFIG.cameras, sizes, strict=True)}
        rng = np.random.default_rng(seed)
        seen = rng.uniform(-1, 1, (1, 20, 20)).astype(np.float32)
        seen[:, 3:9, 4:12] = np.nan
        observation = {"images": images, "joints": rng.random(3), "depth": rng.random(5), "depth_images": seen}
        near(theirs.act(observation), ours.act(observation))


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_segmentation_gives_probabilities_and_masks_of_the_image(models, runtime):
    run = runner(models / "segmentation.onnx", runtime)
    model = load_model(models / "segmentation.safetensors")
    for count, size in SIZES:
        images = pictures(count, size)
        found, masks = run({"images": images})
        small = np.stack([resized(Image.fromarray(image), (64, 48)) for image in images])
        expected = model.probabilities(torch.from_numpy(small).permute(0, 3, 1, 2))
        near(found, expected.numpy())
        rows, columns = ((2 * np.arange(side) + 1) * of // (2 * side) for side, of in zip(size, (64, 48), strict=True))
        np.testing.assert_array_equal(masks, found.argmax(axis=1)[:, rows][:, :, columns])


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_model_of_volumes_gives_probabilities_of_windows(models, runtime):
    run = runner(models / "volumes.onnx", runtime)
    model = load_model(models / "volumes.safetensors")
    for count in (1, 3):
        windows = np.random.default_rng(count).integers(0, 256, (count, 16, 16, 8), dtype=np.uint8)
        (found,) = run({"windows": windows})
        with torch.inference_mode():
            near(found, model(torch.from_numpy(windows)[:, None]).softmax(dim=1).numpy())


@pytest.mark.parametrize(
    ("channels", "settings"),
    [
        (1, {"depth_encoding": "rotr3", "resize": "nearest", "fit": "squash"}),
        (1, {"depth_encoding": "byteswap", "fit": "pad"}),
        (3, {"height_range": (0, 255), "invalid": (), "fit": "pad"}),
    ],
    ids=["rotated bits", "swapped bytes", "pictures"],
)
def test_an_encoder_of_other_images_gives_their_embeddings(channels, settings, tmp_path):
    torch.manual_seed(0)
    network = Encoder(NetworkConfig(input_channels=channels, latent_dim=128, width=16))
    torch.nn.init.normal_(network.head.weight, std=0.02)
    header = Header(kind="encoder", network=network.config, preprocessing=RANGE.model_copy(update=settings))
    save_weights(tmp_path / "encoder.safetensors", network, header)
    assert export_model(tmp_path / "encoder.safetensors", tmp_path / "encoder.onnx") <= 1e-5
    runs = [runner(tmp_path / "encoder.onnx", runtime) for runtime in RUNTIMES]
    encoder = create_semantic_encoder(tmp_path / "encoder.safetensors", device="cpu")
    for count, size in SIZES:
        raw = pictures(count, size) if channels == 3 else depth(count, size)
        if channels == 1:
            swaps = header.preprocessing.depth_encoding == "byteswap"
            raw = raw.byteswap() if swaps else (raw << 3) | (raw >> 13)
        expected = encoder.encode_numpy(raw if channels == 1 else raw.transpose(0, 3, 1, 2))
        for run in runs:
            near(run({"images": raw})[0], expected)


@pytest.mark.parametrize("fit", ["squash", "crop"])
def test_a_policy_without_further_inputs_makes_pictures_square_in_its_own_way(fit, tmp_path):
    torch.manual_seed(0)
    policy = FusionPolicy(CONFIG.model_copy(update={"fit": fit, "extras": {}}))
    torch.nn.init.normal_(policy.head.layers[-1].weight, std=0.1)
    save_policy(tmp_path / "policy.safetensors", policy)
    export_model(tmp_path / "policy.safetensors", tmp_path / "policy.onnx")
    ours = Policy.load(tmp_path / "policy.safetensors", replan_every=1)
    for runtime in RUNTIMES:
        theirs = Policy.load(tmp_path / "policy.onnx", replan_every=1, runtime=runtime)
        for seed, sizes in enumerate((((32, 32), (64, 48)), ((120, 90), (224, 200)))):
            images = {name: pictures(1, size, seed)[0] for name, size in zip(CONFIG.cameras, sizes, strict=True)}
            observation = {"images": images, "joints": [0.1, 0.2, 0.3]}
            near(theirs.act(observation), ours.act(observation))


def test_a_segmentation_of_grey_images_and_one_without_windows(models, tmp_path):
    torch.manual_seed(0)
    config = SegmentationConfig(classes=("a", "b"), image_size=(48, 64), channels=(8,) * 6, image_channels=1)
    save_model(tmp_path / "grey.safetensors", SegmentationModel(config))
    export_model(tmp_path / "grey.safetensors", tmp_path / "grey.onnx")
    export_model(models / "segmentation.safetensors", tmp_path / "whole.onnx", windows=False)
    grey, whole = load_model(tmp_path / "grey.safetensors"), load_model(models / "segmentation.safetensors")
    runs = [[runner(tmp_path / f"{name}.onnx", runtime) for name in ("grey", "whole")] for runtime in RUNTIMES]
    for count, size in SIZES:
        images = pictures(count, size)
        of_grey = np.stack([resized(Image.fromarray(image), (48, 64)) for image in images[..., 0]])
        of_colour = np.stack([resized(Image.fromarray(image), (64, 48)) for image in images])
        for run_grey, run_whole in runs:
            found, masks = run_grey({"images": images[..., 0].copy()})
            near(found, grey.probabilities(torch.from_numpy(of_grey)[:, None]).numpy())
            assert masks.shape == (count, *size)
            found, _ = run_whole({"images": images})
            expected = whole.probabilities(torch.from_numpy(of_colour).permute(0, 3, 1, 2), windows=False)
            near(found, expected.numpy())


@pytest.mark.slow
@pytest.mark.skipif(IN_OPENVINO in os.environ, reason="is in that process")
def test_openvino_gives_the_same():
    named = "embeddings or any_size or masks_of_the_image or of_volumes_gives or its_own_way or grey_images"
    pytest_here = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "no:xdist", __file__]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    done = subprocess.run(
        [*pytest_here, "-k", named], env=environment | {IN_OPENVINO: "1"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "10 passed" in done.stdout


NAMES = ("encoder", "policy", "segmentation", "volumes")
SCRIPT = """
import json, numpy, onnxruntime
for name in sys.argv[1:]:
    session = onnxruntime.InferenceSession(name)
    kinds = {"tensor(uint16)": "uint16", "tensor(uint8)": "uint8", "tensor(float)": "float32"}
    sizes = {"count": 2, "batch": 2}
    feed = {
        x.name: numpy.ones([d if isinstance(d, int) else sizes.get(d, 50) for d in x.shape], kinds[x.type])
        for x in session.get_inputs()
    }
    says = json.loads(session.get_modelmeta().custom_metadata_map["sightline"])
    assert list(says["inputs"]) == list(feed) and list(says["outputs"]) == [y.name for y in session.get_outputs()]
    print(says["kind"], [len(y) for y in session.run(None, feed)])
"""
SAID = ["encoder [2]", "policy [2]", "segmentation [2, 2]", "segmentation [2]"]


def test_a_file_runs_with_onnxruntime_and_numpy_alone_and_tells_what_it_is(models):
    blocked = (
        "import sys\nsys.modules |= dict.fromkeys(('torch', 'sightline', 'onnx', 'PIL', 'scipy'))  # importing fails\n"
    )
    command = [sys.executable, "-c", blocked + SCRIPT, *(models / f"{name}.onnx" for name in NAMES)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout.splitlines() == SAID, done.stderr


@pytest.mark.slow
def test_a_fresh_environment_with_onnxruntime_and_numpy_runs_every_file(models, tmp_path):
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    python = tmp_path / "fresh/bin/python"
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "fresh"], check=True, env=clean)
    install = [python, "-m", "pip", "install", "-q", "onnxruntime", "numpy"]
    done = subprocess.run(install, env=clean, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no index to install onnxruntime from: {done.stderr.strip().splitlines()[-1]}")
    assert subprocess.run([python, "-c", "import torch"], env=clean, capture_output=True, check=False).returncode == 1
    command = [python, "-c", "import sys" + SCRIPT, *(models / f"{name}.onnx" for name in NAMES)]
    done = subprocess.run(command, cwd=tmp_path, env=clean, capture_output=True, text=True, check=False)
    assert done.stdout.splitlines() == SAID, done.stderr


def test_torch_runs_the_other_kind_of_file(models, tmp_path):
    assert export_model(models / "policy.safetensors", tmp_path / "policy.pt2") <= 1e-5
    extra = {"sightline.json": ""}
    program = torch.export.load(tmp_path / "policy.pt2", extra_files=extra).module()
    images = [torch.from_numpy(pictures(2, size)) for size in ((50, 60), (70, 80))]
    assert program(*images, torch.rand(2, 3), torch.rand(2, 5), torch.rand(2, 1, 20, 20)).shape == (2, 4, 3)
    assert json.loads(extra["sightline.json"])["config"]["stride"] == 2
    assert [path.name for path in tmp_path.iterdir()] == ["policy.pt2"]


def test_what_cannot_be_exported_is_one_line(models, tmp_path):
    with pytest.raises(UserError, match=r"out.txt: the name of an exported program ends in .onnx or .pt2"):
        export_model(models / "encoder.safetensors", tmp_path / "out.txt")
    config = SegmentationConfig(
        classes=("a", "b"), image_size=(64, 64), channels=(8,) * 6, extras={"depth": (2, 64, 64)}
    )
    save_model(tmp_path / "with_depth.safetensors", SegmentationModel(config))
    with pytest.raises(UserError, match=r"cannot export a segmentation model with depth"):
        export_model(tmp_path / "with_depth.safetensors", tmp_path / "out.onnx")
    (tmp_path / "text.safetensors").write_text("none")
    command = [sys.executable, "-m", "sightline.export", tmp_path / "text.safetensors", tmp_path / "out.onnx"]
    assert "not a depth encoder" in only_error_line(
        subprocess.run(command, capture_output=True, text=True, check=False)
    )
    assert not (tmp_path / "out.onnx").exists()


def test_a_file_that_is_no_exported_policy_is_one_line(models, tmp_path):
    for runtime in RUNTIMES:
        with pytest.raises(UserError, match=r"encoder.onnx: a model of kind encoder, not a policy"):
            Policy.load(models / "encoder.onnx", runtime=runtime)
        (tmp_path / "text.onnx").write_text("none")
        with pytest.raises(UserError, match=r"text.onnx: not a policy of `sightline export`"):
            Policy.load(tmp_path / "text.onnx", runtime=runtime)
    with pytest.raises(UserError, match=r"none.onnx: no such file"):
        Policy.load(tmp_path / "none.onnx")
