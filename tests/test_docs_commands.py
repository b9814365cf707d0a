"""The quick commands of the documentation, as they stand there, on small data.

What is replaced is names that stand for the reader's own files, and sizes of trainings; each must be there.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT, default_params, depth_folder, photo_folder, recording_folder
from PIL import Image

from sightline.fusion.policy import FusionPolicy, PolicyConfig, save_policy

pytestmark = pytest.mark.slow
SMALL_SEGMENTATION = "--set segmentation.steps_per_epoch=2 --set segmentation.epochs=1"


@pytest.fixture
def place(tmp_path) -> Path:
    """A folder from which the project's scripts can be run as from the project's root."""
    (tmp_path / "stages").symlink_to(ROOT / "stages")
    return tmp_path


def block(page: str, beginning: str) -> str:
    """The fenced block of a page whose text begins so."""
    texts = re.findall(r"^```[^\n]*\n(.*?)^```$", (ROOT / page).read_text(), re.DOTALL | re.MULTILINE)
    (found,) = (text for text in texts if text.startswith(beginning))
    return found


def run(text: str, place: Path, **replaced: str) -> str:
    """Run the commands in ``place``; a command that fails ends the test with what it said."""
    for name, instead in replaced.items():
        assert name in text
        text = text.replace(name, instead)
    environment = os.environ | {"DVC_ROOT": str(place), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    command = ["bash", "-euo", "pipefail", "-c", text]
    done = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_a_bare_folder_of_depth_images(place):
    depth_folder(place / "DEPTH_FOLDER", 60, (32, 48))
    text = block("README.md", "python stages/normalize.py DEPTH_FOLDER depth.hdf5")
    run(text, place, **{"[500,4500]": "[600,1400]", "--num-epochs 30": "--num-epochs 1"})
    use = block("README.md", "from sightline.depth import SemanticEncoder")
    use = use.replace("models/depth/encoder.safetensors", "encoder.safetensors")
    use = (
        "import numpy as np\ndepth_images = np.full((2, 32, 48), 900, np.uint16)\n" + use + "print(embeddings.shape)\n"
    )
    done = subprocess.run([sys.executable, "-c", use], cwd=place, capture_output=True, text=True, check=True)
    assert "(2, 768)" in done.stdout
    lines = block("README.md", "python -m sightline.predict embed").splitlines()
    lines += block("README.md", "pip install onnx onnxscript onnxruntime    ").splitlines()
    for line in (line for line in lines if "encoder.safetensors" in line):
        run(line, place, **{"models/depth/": ""})
    assert {"embeddings.hdf5", "encoder.onnx"} <= {path.name for path in place.iterdir()}


def test_photographs_to_clip_grids(place):
    for first, folder in ((0, "train2014"), (10, "val2014")):
        photo_folder(place / folder, range(first, first + 3))
    text = block("README.md", "python stages/clip_grids.py train2014")
    small = {
        "--model ViT-B-16-quickgelu --pretrained openai": "--model ViT-B-32 --pretrained random",
        "--set grids.model=ViT-B-16-quickgelu --set grids.pretrained=openai": "--set grids.model=ViT-B-32",
    }
    run(text, place, **small)
    use = block("README.md", "from sightline.clip import GridStore")
    use = use.replace("ViT-B-16-quickgelu", "ViT-B-32").replace("17", "11").replace("000011", "photo_000011")
    use = use.replace(' device="cuda"', ' device="cpu"').replace("[11, 4]", "[11, 2]")
    subprocess.run([sys.executable, "-c", use], cwd=place, capture_output=True, text=True, check=True)


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
    text = block("README.md", "python stages/train_segmentation.py model.safetensors")
    size = "--set segmentation.image_size=[24,32] --set segmentation.crop=[16,16]"
    small = {"--masks MASKS": f"--masks MASKS {SMALL_SEGMENTATION} {size}",
             "[128,128]": "[24,32]", "--set segmentation.epochs=100": SMALL_SEGMENTATION}  # fmt: skip
    run(text, place, **small)
    figures = json.loads((place / "metrics/mine_test/evaluation_results.json").read_text())
    assert 0 <= figures["dice_mean"] <= 1


def test_a_recording_as_the_page_describes_it(place):
    root = place / "data/mine"
    root.mkdir(parents=True)
    (root / "recording.json").write_text(block("docs/your-data.md", '{"fps"'))
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
    run(block("docs/your-data.md", "python stages/validate.py"), place)
    assert {path.name for path in (place / ".scratch/check").glob("*.parquet")} >= {"frames.parquet", "depth.parquet"}
    run("dvc init -q --no-scm", place)
    (place / "params.yaml").write_text(default_params())
    for _ in range(2):
        assert "\n  segmentation.camera: front\n" in run(
            block("docs/your-data.md", "python stages/add_recording.py"), place
        )


def test_a_recording_without_masks_is_tracked_by_hand_and_again_with_more_episodes(place):
    """All lines but that of the masks: the second time, files of DVC's own lie between the folders."""
    recording_folder(place / "data/mine", ["front", "back"], masks=False)
    run("dvc init -q --no-scm", place)
    lines = block("docs/your-data.md", "dvc add data/mine/recording.json").splitlines()
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
    (place / "examples").symlink_to(ROOT / "examples")
    recording_folder(place / "data/demo", ("front", "top"))
    config = PolicyConfig(cameras=("front", "top"), image_size=16, joint_names=("lift", "turn"), actions=2, steps=2)
    save_policy(place / "models/fusion/actions/stacked.safetensors", FusionPolicy(config))
    text = block("README.md", "dvc pull\npip install onnx")
    assert len(text.splitlines()) == 5
    instead = {"dvc pull": "true", "pip install onnx onnxscript onnxruntime": "true", "--episode 90": "--episode 1"}
    assert run(text, place, **instead).splitlines()[-1].startswith("2 frames; ")
