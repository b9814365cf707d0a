"""A small world in which every command can run: valid inputs of each, made once, and the command lines."""

import contextlib
import io
import os
import re
import runpy
import shutil
import signal
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))

from conftest import depth_folder, photo_folder  # noqa: E402
from data_sets import aloha, lerobot_v2, robomimic  # noqa: E402, F401
from volume_files import write_hearts  # noqa: E402

from sightline.clip import GridParams  # noqa: E402
from sightline.clip.extraction import extract_grids  # noqa: E402
from sightline.demo.render import RenderParams, render_demo  # noqa: E402
from sightline.demo.simulate import JOINTS, SimulateParams, simulate_demo  # noqa: E402
from sightline.depth.card import about_autoencoder  # noqa: E402
from sightline.depth.embedding import EmbedParams, embed_depth  # noqa: E402
from sightline.depth.network import Autoencoder, NetworkConfig  # noqa: E402
from sightline.depth.normalize import NormalizeParams, normalize_depth  # noqa: E402
from sightline.depth.store import DepthStore  # noqa: E402
from sightline.depth.weights import Header, extract_encoder, save_weights  # noqa: E402
from sightline.fusion.card import about_policy  # noqa: E402
from sightline.fusion.policy import FusionPolicy, PolicyConfig, save_policy  # noqa: E402
from sightline.fusion.views import ViewParams, pack_views  # noqa: E402
from sightline.recording.layout import DepthInfo, RecordingInfo, write_recording_info  # noqa: E402
from sightline.recording.split import DataParams, SplitParams  # noqa: E402
from sightline.segmentation.card import about_segmentation  # noqa: E402
from sightline.segmentation.model import SegmentationConfig, SegmentationModel, save_model  # noqa: E402
from sightline.training.card import write_card  # noqa: E402
from sightline.validation.validation import DriftGuard, validate_recording  # noqa: E402

CAMERAS = ("left_wrist", "right_wrist", "global")
EPISODES, STEPS = 4, 4
CLIP = {"model": "ViT-S-16", "image_size": 32, "grid": 2, "precision": "fp32"}
RENDER = {"wrist_size": 16, "global_size": 24, "depth_height": 16, "depth_width": 16, "antialias": 1}
PARAMS = """
simulate: {episodes: 1, steps: 3}
render: {wrist_size: 16, global_size: 24, depth_height: 16, depth_width: 16, antialias: 1}
data: {root: data/demo, split: {val: 0.25, test: 0.25}}
train: {epochs: 3, batch_size: 4, latent_dim: 128, width: 16, precision: fp32}
evaluate: {baselines: [mean_image, pca], batch_size: 4}
embed: {batch_size: 4}
grids: {clip: {model: ViT-S-16, image_size: 32, grid: 2, precision: fp32, batch_size: 4, shard_frames: 5}}
verify_clip_grids: {sample: 2}
views: {image_size: 32, cameras: [left_wrist, right_wrist, global]}
fusion: {epochs: 3, chunk: 2, batch_size: 4, precision: fp32}
evaluate_fusion: {batch_size: 4}
rollout: {scenes: 1, length: 1.0}
segmentation: {image_size: [32, 32], crop: null, epochs: 3, steps_per_epoch: 1, precision: fp32, batch_size: 2,
               unlabelled_batch_size: 2, camera: global}
stages: {images: [depth, masks, rgb/left_wrist, rgb/right_wrist, rgb/global], depth: [depth],
         masks: [masks], demonstrations: [actions], designs: [stacked], segmentation_with: [grids/clip/global],
         grids: {names: [clip], cameras: [global]}, rollouts: [],
         fusion_with: {designs: [joints_only], features: [embeddings/depth.hdf5, grids/clip/global]},
         pack: {views: [actions], no_views: [], one_view: [], many_views: []}}
"""
COMMANDS = {  # name -> its arguments in the world; everything is written below out/
    "simulate": "--frames out/frames.parquet --states out/states.hdf5",
    "render": "--states states.hdf5 --out out/demo",
    "check": "rec --metrics-dir out/metrics",
    "validate": "rec out --metrics-dir out/metrics --reference reference",
    "normalize": "rec/depth out/depth.hdf5 --index index/depth.parquet --recording rec/recording.json "
    "--metrics-dir out/metrics",
    "train_autoencoder": "depth.hdf5 out/autoencoder.safetensors --metrics-dir out/metrics",
    "evaluate": "autoencoder.safetensors depth.hdf5 out/evaluate --frames rec/frames.parquet",
    "extract_encoder": "autoencoder.safetensors --output out/encoder.safetensors",
    "embed": "encoder.safetensors depth.hdf5 out/embeddings.hdf5 --metrics-dir out/metrics",
    "clip_grids": "rec/rgb/global out/clip --name clip --index index/rgb/global.parquet --metrics-dir out/metrics",
    "verify_clip_grids": "clip.hdf5 rec/rgb/global --name clip --index index/rgb/global.parquet "
    "--metrics-dir out/metrics",
    "pack_views": "rec out/views.hdf5 --index index --metrics-dir out/metrics",
    "train_fusion": "views.hdf5 out/fusion.safetensors --design joints_only --metrics-dir out/metrics",
    "evaluate_fusion": "fusion.safetensors views.hdf5 out/evaluate_fusion",
    "rollout": "driver.safetensors demo/views.hdf5 out/rollout --processes 1",
    "train_segmentation": "out/segmentation.safetensors --recording rec --index index --metrics-dir out/metrics",
    "evaluate_segmentation": "segmentation.safetensors out/evaluate_segmentation --recording rec --index index",
    "import_lerobot": "lerobot out/recording",
    "import_hdf5": "aloha out/recording",
    "import_volumes": "hearts out/hearts.hdf5",
    "add_recording": "rec",
    "drift": "embeddings.hdf5 embeddings.hdf5 --index index/depth.parquet --metrics-dir out/metrics",
    "predict embed": "encoder.safetensors rec/depth out/embeddings.hdf5",
    "predict act": "fusion.safetensors rec out/actions.parquet",
    "predict segment": "segmentation.safetensors rec/rgb/global out/masks",
    "export": "encoder.safetensors out/encoder.pt2",
}
MODULES = {"drift": "validation.drift"}  # of commands that are not called as their module is
SCRIPTS = tuple(name for name in COMMANDS if (ROOT / f"stages/{name}.py").is_file())
STAGES = tuple(name for name in SCRIPTS if name != "add_recording")  # which writes into the project, not below out/


def make_world(root: Path) -> Path:
    """Write the valid inputs of every command to ``root``; models are untrained."""
    root.mkdir(parents=True)
    with contextlib.chdir(root), warnings.catch_warnings(action="ignore"), contextlib.redirect_stderr(io.StringIO()):
        torch.manual_seed(0)
        Path("params.yaml").write_text(PARAMS)
        _recording(Path("rec"))
        data = DataParams(split=SplitParams(val=0.25, test=0.25))
        guard = DriftGuard(tolerance=0.5, metrics_dir=Path("reference"))
        validate_recording(Path("rec"), Path("index"), data, processes=1, guard=guard)
        normalize_depth(
            Path("rec/depth"), Path("depth.hdf5"), NormalizeParams(), split=data.split,
            index=Path("index/depth.parquet"), recording=Path("rec/recording.json"), processes=1,
        )  # fmt: skip
        network, preprocessing = (
            NetworkConfig(latent_dim=128, width=16),
            DepthStore.open(Path("depth.hdf5")).preprocessing,
        )
        header = Header(kind="autoencoder", network=network, preprocessing=preprocessing)
        save_weights(Path("autoencoder.safetensors"), Autoencoder(network), header)
        split, episode = np.array(["train"] * 8 + ["val"] * 4 + ["test"] * 4), np.arange(16) // 4
        write_card(Path("autoencoder.safetensors"), about_autoencoder(header, False), {}, split, episode)
        extract_encoder(Path("autoencoder.safetensors"), Path("encoder.safetensors"))
        embed_depth(Path("encoder.safetensors"), Path("depth.hdf5"), Path("embeddings.hdf5"), EmbedParams(batch_size=4))
        extract_grids([Path("rec/rgb/global")], Path("clip.hdf5"), GridParams(**CLIP))
        pack_views(Path("rec"), Path("index"), Path("views.hdf5"), ViewParams(image_size=32), processes=1)
        policy = PolicyConfig(
            design="joints_only", cameras=CAMERAS, image_size=32, joint_names=("lift", "turn"), actions=2, steps=2
        )
        save_policy(Path("fusion.safetensors"), FusionPolicy(policy))
        write_card(Path("fusion.safetensors"), about_policy(policy), {}, split, episode)
        frames = SegmentationConfig(classes=("background", "box"), image_size=(32, 32), channels=(8,) * 6)
        save_model(Path("segmentation.safetensors"), SegmentationModel(frames))
        write_card(Path("segmentation.safetensors"), about_segmentation(frames), {}, split, episode)
        simulate_demo(SimulateParams(episodes=1, steps=3), Path("simulated.parquet"), Path("states.hdf5"), 1)
        _simulated(Path("demo"))
        lerobot_v2(Path("lerobot"))
        aloha(Path("aloha"))
        write_hearts(Path("hearts"), patients=3)
        shutil.rmtree(".scratch")
    return root


def _simulated(root: Path) -> None:
    """Of the simulated episode: a recording with one camera, its views, and a model that drives by the joints."""
    render_demo(RenderParams(**RENDER), Path("states.hdf5"), root, 1)
    shutil.copy("simulated.parquet", root / "frames.parquet")
    validate_recording(root, root / "index", DataParams(split=SplitParams(val=0, test=0)), processes=1)
    views = ViewParams(cameras=("global",), image_size=16)
    pack_views(root, root / "index", root / "views.hdf5", views, processes=1)
    policy = PolicyConfig(
        design="joints_only", cameras=views.cameras, image_size=16, joint_names=JOINTS, actions=len(JOINTS), steps=2
    )
    save_policy(Path("driver.safetensors"), FusionPolicy(policy))


def _recording(root: Path) -> None:
    """Four episodes of four frames, with every modality."""
    count, rng = EPISODES * STEPS, np.random.default_rng(0)
    depth_folder(root / "depth", count)
    for number, camera in enumerate(CAMERAS):
        photo_folder(root / "rgb" / camera, range(100 * number, 100 * number + count), (24, 32), ".png")
        for i, path in enumerate(sorted((root / "rgb" / camera).iterdir())):
            path.rename(path.with_name(f"{i:06d}.png"))
    (root / "masks").mkdir()
    step = np.tile(np.arange(STEPS), EPISODES)
    for i in range(count):
        mask = np.zeros((24, 32), np.uint8)
        mask[4 : 8 + step[i], 5:20] = 1
        Image.fromarray(mask).save(root / f"masks/{i:06d}.png")
    joints = rng.normal(size=(count, 2)).round(3)
    table = {"frame_id": range(count), "episode": np.arange(EPISODES).repeat(STEPS), "step": step, "time_s": step / 10,
             "joints": list(joints), "actions": list(joints + 0.1), "reward": step / STEPS}  # fmt: skip
    pd.DataFrame(table).to_parquet(root / "frames.parquet")
    depth = DepthInfo(unit_mm=1.0, invalid=(0,), height_range=(500, 1500))
    info = RecordingInfo(fps=10, cameras=CAMERAS, joints=("lift", "turn"), classes=("background", "box"), depth=depth)
    write_recording_info(root / "recording.json", info)


def copy_world(source: Path, target: Path) -> Path:
    """A copy by links: replace files in it (`own`), never write into one."""
    shutil.copytree(source, target, copy_function=os.link)
    return target


def own(path: Path) -> Path:
    """``path``, after its link to the world's file was replaced by a copy that may be written to."""
    data = path.read_bytes()
    path.unlink()
    path.write_bytes(data)
    return path


def command_line(name: str, arguments: str | None = None) -> list[str]:
    """Program and arguments; ``arguments`` stand in for the usual ones."""
    words = name.split()
    program = (
        [f"stages/{name}.py"] if name in SCRIPTS else ["-m", f"sightline.{MODULES.get(words[0], words[0])}", *words[1:]]
    )
    return [*program, *(COMMANDS[name] if arguments is None else arguments).split()]


@dataclass(frozen=True)
class Said:
    """What a command answered."""

    code: int
    stderr: str

    @property
    def error(self) -> str:
        """The message after ``<program>: error:``, to its end; empty without one."""
        found = re.search(r"^[\w./ -]+: error: (.*)\Z", self.stderr, re.DOTALL | re.MULTILINE)
        return found[1].strip() if found else ""

    @property
    def warning(self) -> str:
        """The first warning."""
        return next((line for line in self.stderr.splitlines() if line.startswith("warning: ")), "")


def run_command(world: Path, name: str, arguments: str | None = None) -> Said:
    """Run a command in this process, in the folder ``world``. What is not a `UserError` comes out as it is."""
    program, *rest = command_line(name, arguments)
    if program == "-m":
        module, *rest = rest
    said = io.StringIO()
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    words = [program if program != "-m" else module, *rest]
    with _arguments(words), contextlib.chdir(world), warnings.catch_warnings(action="default"):
        os.environ["DVC_ROOT"] = "."
        try:
            with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
                if program == "-m":
                    runpy.run_module(module, run_name="__main__", alter_sys=True)
                else:
                    runpy.run_path(str(ROOT / program), run_name="__main__")
            return Said(0, said.getvalue())
        except SystemExit as end:
            return Said(end.code if isinstance(end.code, int) else 1, said.getvalue())
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)


@contextlib.contextmanager
def _arguments(words: list[str]) -> Iterator[None]:
    before = sys.argv, os.environ.get("DVC_ROOT")
    sys.argv = words
    try:
        yield
    finally:
        sys.argv = before[0]
        os.environ.pop("DVC_ROOT", None)
        if before[1] is not None:
            os.environ["DVC_ROOT"] = before[1]


def contents(folder: Path) -> dict[str, tuple[int, int]]:
    """Every file of ``folder`` but scratch state, with size and time of change: to see that nothing was written."""
    return {
        str(path.relative_to(folder)): (path.lstat().st_size, path.lstat().st_mtime_ns)
        for path in sorted(folder.rglob("*"))
        if ".scratch" not in path.parts and "runs" not in path.parts and not path.is_dir()
    }
