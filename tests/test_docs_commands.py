"""The quick commands of the documentation, as they stand there, on small data.

What is replaced is names that stand for the reader's own files, and sizes of trainings; each must be there.
"""

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import ROOT, default_params, depth_folder, photo_folder, recording_folder, write_grids
from pages import block, run, run_python
from PIL import Image
from volume_files import write_hearts

from sightline.depth.network import Autoencoder, NetworkConfig
from sightline.depth.preprocessing import Preprocessing
from sightline.depth.weights import Header, extract_encoder, save_weights
from sightline.fusion.policy import FusionPolicy, PolicyConfig, save_policy

pytestmark = pytest.mark.slow
SMALL_SEGMENTATION = "--set segmentation.steps_per_epoch=2 --set segmentation.epochs=1"
INSTALLATION = {"pip install onnx onnxscript onnxruntime": "true"}


@pytest.fixture
def place(tmp_path) -> Path:
    """A folder from which the project's scripts can be run as from the project's root."""
    for name in ("stages", "tools", "examples", "params"):
        (tmp_path / name).symlink_to(ROOT / name)
    return tmp_path


def test_a_bare_folder_of_depth_images(place):
    depth_folder(place / "DEPTH_FOLDER", 60, (32, 48))
    run(block("depth-folder"), place, **{"[500,4500]": "[600,1400]", "--num-epochs 30": "--num-epochs 1"})
    given = "import numpy as np\ndepth_images = np.full((2, 32, 48), 900, np.uint16)\n"
    use = block("semantic-encoder") + "print(embeddings.shape)\n"
    assert "(2, 768)" in run_python(use, place, given, **{"models/depth/encoder": "encoder"})


def test_photographs_to_clip_grids(place):
    for first, folder in ((0, "train2014"), (10, "val2014")):
        photo_folder(place / folder, range(first, first + 3))
    text = block("photographs")
    small = {
        "--model ViT-B-16-quickgelu --pretrained openai": "--model ViT-B-32 --pretrained random",
        "--set grids.model=ViT-B-16-quickgelu --set grids.pretrained=openai": "--set grids.model=ViT-B-32",
    }
    run(text, place, **small)
    others = {
        "ViT-B-16-quickgelu": "ViT-B-32",
        "17": "11",
        "000011": "photo_000011",
        "cuda": "cpu",
        "[11, 4]": "[11, 2]",
    }
    run_python(block("grid-store"), place, **others)


def test_segmentation_of_folders_and_of_slices(place):
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (60, 24, 32), np.uint8), np.zeros((60, 24, 32), np.uint8)
    labels[:, 5:15, 8:20] = 1
    images[labels == 1] //= 4
    for folder, values in (("IMAGES", np.stack([images] * 3, axis=-1)), ("MASKS", labels)):
        (place / folder).mkdir()
        for i, value in enumerate(values):
            Image.fromarray(value).save(place / folder / f"{i:03d}.png")
    np.savez(place / "slices.npz", image=images, label=labels, group=np.arange(60) // 6)
    text = block("own-slices")
    size = "--set segmentation.image_size=[24,32] --set segmentation.crop=[16,16]"
    small = {"--masks MASKS": f"--masks MASKS {SMALL_SEGMENTATION} {size}",
             "[128,128]": "[24,32]", "--set segmentation.epochs=100": SMALL_SEGMENTATION}  # fmt: skip
    run(text, place, **small)
    figures = json.loads((place / "metrics/mine_test/evaluation_results.json").read_text())
    assert 0 <= figures["dice_mean"] <= 1


def test_a_recording_as_the_page_describes_it(place):
    root = place / "data/mine"
    root.mkdir(parents=True)
    (root / "recording.json").write_text(description())
    steps = np.tile(np.arange(4), 6)
    table = {"frame_id": np.arange(24), "episode": np.arange(6).repeat(4), "step": steps, "time_s": steps / 10,
             "joints": [[0.1 * step, 1.0] for step in steps], "actions": [[0.1 * step, 1.0] for step in steps],
             "reward": 0.0, "success": False, "object_position": [[0.0, 0.1, 0.2]] * 24}  # fmt: skip
    page = (ROOT / "docs/your-data.md").read_text().partition("## Into the pipeline")[0]
    assert set(table) == set(re.findall(r"^\| `(\w+)` \| (?:int|float|bool|list of float)", page, re.MULTILINE))
    pd.DataFrame(table).to_parquet(root / "frames.parquet")
    depth_folder(root / "depth", 24)
    photo_folder(root / "rgb/front", range(24), suffix=".png")
    for path in (root / "rgb/front").iterdir():
        path.rename(path.with_name(path.name.removeprefix("photo_")))
    (root / "masks").mkdir()
    Image.fromarray(np.ones((60, 80), np.uint8)).save(root / "masks/000003.png")
    run(block("validate"), place)
    assert {path.name for path in (place / ".scratch/check").glob("*.parquet")} >= {"frames.parquet", "depth.parquet"}
    run("dvc init -q --no-scm", place)
    (place / "params.yaml").write_text(default_params())
    for _ in range(2):
        assert "\n  segmentation.camera: front\n" in run(block("add-recording"), place)


def test_a_recording_without_masks_is_tracked_by_hand_and_again_with_more_episodes(place):
    """All lines but that of the masks: the second time, files of DVC's own lie between the folders."""
    recording_folder(place / "data/mine", ["front", "back"], masks=False)
    run("dvc init -q --no-scm", place)
    lines = block("by-hand").splitlines()
    text = "\n".join(line for line in lines if "masks" not in line)
    run(text, place)
    tracked = {path: path.read_bytes() for path in (place / "data/mine").rglob("*.dvc")}
    names = {str(path.relative_to(place / "data/mine")) for path in tracked}
    assert names == {"recording.json.dvc", "frames.parquet.dvc", "depth.dvc", "rgb/front.dvc", "rgb/back.dvc"}
    Image.new("RGB", (16, 12)).save(place / "data/mine/rgb/front/000006.png")
    run(text, place)
    changed = [path.name for path in (place / "data/mine").rglob("*.dvc") if path.read_bytes() != tracked.get(path)]
    assert changed == ["front.dvc"]


def test_from_outputs_to_a_policy_on_a_recorded_video_in_five_commands(place):
    recording_folder(place / "data/demo", ("front", "top"))
    write_policy(place / "models/fusion/actions/stacked.safetensors")
    text = block("policy-on-a-video")
    assert len(text.splitlines()) == 5
    said = run(text, place, **INSTALLATION, **{"dvc pull": "true", "--episode 90": "--episode 1"})
    assert said.splitlines()[-1].startswith("2 frames; ")


def test_trained_models_on_own_files_and_in_other_programs(place):
    write_models(place)
    recording_folder(place / "RECORDING", ("front", "top"))
    depth_folder(place / "DEPTH_FOLDER", 3)
    photo_folder(place / "IMAGE_FOLDER", range(3), suffix=".png")
    run(block("predict"), place)
    made = {"embeddings.hdf5", "actions.parquet", "masks"}
    assert made <= {path.name for path in place.iterdir()}
    run(block("export"), place, **INSTALLATION)
    assert {path.name for path in place.glob("*.onnx")} == {"encoder.onnx", "policy.onnx", "segmentation.onnx"}
    run_python(block("hub"), place)
    given = "import torch\nimages = torch.zeros(2, 3, 128, 128, dtype=torch.uint8)\n"
    use = block("segmentation-in-python") + "print(probabilities.shape)\n"
    assert "[2, 2, 128, 128]" in run_python(use, place, given)


def test_a_policy_in_a_loop(place):
    write_policy(place / "models/fusion/actions/stacked.safetensors", ("left_wrist",))
    given = "import numpy as np\npicture, joints = np.zeros((24, 32, 3), np.uint8), [0.1, 0.2]\n"
    use = block("policy-on-a-robot") + "print(action.shape)\n"
    assert "(2,)" in run_python(use, place, given, **{"picture, ...}": "picture}"})


def test_a_policy_by_hand_and_in_python(place):
    recording_folder(place / "data/mine")
    small = "--set fusion.epochs=1 --set fusion.chunk=2 --set fusion.batch_size=4"
    others = {"[front]": "[front] --set views.image_size=32", "metrics/mine\n": f"metrics/mine {small}\n"}
    run(block("policy-by-hand"), place, **others)
    assert "nmse" in json.loads((place / "metrics/mine_test/metrics.json").read_text())
    cameras = ("left_wrist", "right_wrist", "global")
    write_policy(place / "models/fusion/actions/stacked.safetensors", cameras, joints=16, size=84)
    given = (
        "import torch\nviews, joints = torch.zeros(2, 3, 3, 84, 84, dtype=torch.uint8), torch.zeros(2, 16)\n"
        "left_img = right_img = global_img = views[:, 0]\njoint = joints\n"
    )
    use = block("policy-in-python") + "print(actions.shape, feature.shape)\n"
    said = run_python(use, place, given, **{'"IMAGENET1K_V1"': "None"})  # weights that are downloaded
    assert "[2, 2, 2]" in said
    assert "[2, 256]" in said


def test_a_feature_as_an_input_by_hand(place):
    """The first line, an experiment, is run in tests/test_docs_pipeline.py."""
    recording_folder(place / "data/mine")
    small = "--set views.cameras=[front] --set views.image_size=32"
    run(f"sightline validate data/mine index\nsightline pack_views data/mine VIEWS --index index {small}", place)
    write_grids(place / "GRIDS", range(6), np.random.default_rng(0).normal(size=(6, 4, 8)).astype(np.float32))
    (line,) = (line for line in block("features-as-inputs").splitlines() if line.startswith("sightline"))
    small = " --set fusion.epochs=1 --set fusion.chunk=2 --set fusion.batch_size=4"
    run(line + small, place, **{" --feature EMBEDDINGS": ""})
    assert (place / "model.safetensors").is_file()


def test_volumes_by_hand(place):
    """The second line, an experiment, is run in tests/test_docs_pipeline.py; the last one needs its model."""
    write_hearts(place / "HEARTS")
    run("dvc init -q --no-scm", place)
    text = block("volumes").replace("\\\n", "")
    lines = [line for line in text.splitlines() if not line.startswith(("dvc exp", "sightline predict"))]
    run("\n".join(lines) + f" {SMALL_SEGMENTATION}", place)
    (line,) = (line for line in text.splitlines() if line.startswith("sightline predict"))
    case = next(path for path in sorted((place / "HEARTS").rglob("*.nii*")) if "_gt" not in path.name)
    run(line, place, **{"models/volumes/hearts.safetensors": "model.safetensors", "PATIENT.nii.gz": str(case)})
    assert (place / "mask.nii.gz").is_file()


def test_two_recordings_are_compared(place):
    for name, seed in (("demo", 0), ("new", 1)):
        recording_folder(place / f"data/{name}")
        depth_folder(place / f"data/{name}/depth", 6, (12, 16), seed)
    run(block("drift-by-hand"), place)
    assert (place / ".scratch/new/drift.json").is_file()
    write_models(place)
    run("sightline predict embed models/depth/encoder.safetensors data/demo data/embeddings/depth.hdf5", place)
    run(block("drift-of-embeddings"), place, **{"data/index/frames": ".scratch/known/frames"})


def description() -> str:
    """The example of recording.json."""
    page = (ROOT / "docs/your-data.md").read_text()
    return re.search(r"```json\n(.*?)```", page, re.DOTALL)[1]


def write_policy(path: Path, cameras=("front", "top"), joints: int = 2, size: int = 16) -> None:
    names = ("lift", "turn", *map(str, range(2, joints)))
    config = PolicyConfig(cameras=cameras, image_size=size, joint_names=names, actions=2, steps=2)
    save_policy(path, FusionPolicy(config))


def write_models(place: Path) -> None:
    """An untrained model of each kind, where the pipeline has them."""
    from sightline.segmentation.model import SegmentationConfig, SegmentationModel

    torch.manual_seed(0)
    network = Autoencoder(NetworkConfig(latent_dim=128, width=16))
    preprocessing = Preprocessing(height_range=(500, 1500), invalid=(0,))
    (place / "models/depth").mkdir(parents=True)
    header = Header(kind="autoencoder", network=network.config, preprocessing=preprocessing)
    save_weights(place / "models/depth/autoencoder.safetensors", network, header)
    extract_encoder(place / "models/depth/autoencoder.safetensors", place / "models/depth/encoder.safetensors")
    write_policy(place / "models/fusion/actions/stacked.safetensors")
    model = SegmentationModel(SegmentationConfig(classes=("a", "b"), channels=(8,) * 6))
    (place / "models/segmentation").mkdir(parents=True)
    model.write_weights(place / "models/segmentation/masks.safetensors")
