"""What tests share: a scratch folder of their own, tiny depth images, and stage scripts run as commands."""

import functools
import json
import os
import runpy
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]


@functools.cache
def default_params() -> str:
    """The text of params.yaml with the defaults, also in the clone of somebody who has changed it."""
    return runpy.run_path(str(ROOT / "tools/parameters.py"))["write_params"]()


@pytest.fixture(autouse=True)
def scratch_root(tmp_path, monkeypatch) -> Path:
    """Scratch state goes to ``tmp_path/.scratch``."""
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.delenv("DVC_STAGE", raising=False)
    return tmp_path / ".scratch"


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Torch with one thread: tests run beside each other, and their threads would wait for one another."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def save_depth(path: Path, raw_HW: np.ndarray) -> None:
    """Write uint16 [H, W] as a PNG or TIFF image."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(raw_HW.astype(np.uint16)).save(path)


def depth_folder(folder: Path, count: int, size: tuple[int, int] = (24, 32), seed: int = 0) -> Path:
    """Write ``count`` smooth depth images of 600..1400 counts with a hole in each."""
    rng = np.random.default_rng(seed)
    for i in range(count):
        rows, columns = np.mgrid[0 : size[0], 0 : size[1]]
        raw = 1000 + 400 * np.sin(rows / rng.uniform(4, 9) + rng.uniform(0, 6)) * np.cos(columns / rng.uniform(4, 9))
        raw[5:9, 6:11] = 0
        save_depth(folder / f"{i:06d}.png", raw)
    return folder


@pytest.fixture
def stage(tmp_path) -> Callable[..., subprocess.CompletedProcess]:
    """Run a stage script as a command in ``tmp_path``: ``stage("normalize", folder, output, ...)``."""

    def run(name: str, *arguments: object) -> subprocess.CompletedProcess:
        command = [sys.executable, str(ROOT / f"stages/{name}.py"), *map(str, arguments)]
        environment = os.environ | {"DVC_ROOT": str(tmp_path)}
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)

    return run


def only_error_line(result: subprocess.CompletedProcess) -> str:
    """The error line of a failed stage, after checking that there is no traceback."""
    assert result.returncode == 1, result.stdout + result.stderr
    assert "Traceback" not in result.stderr
    (line,) = (line for line in result.stderr.splitlines() if ": error: " in line)
    return line


def photo_folder(folder: Path, ids: Iterable[int], size: tuple[int, int] = (60, 80), suffix: str = ".jpg") -> Path:
    """Write a smooth colour photograph for each id, different for each."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in ids:
        rng = np.random.default_rng(i)
        rows, columns = np.mgrid[0 : size[0], 0 : size[1]]
        waves = [np.sin(rows / rng.uniform(3, 9)) * np.cos(columns / rng.uniform(3, 9)) for _ in range(3)]
        pixels = (127 + 120 * np.stack(waves, axis=-1)).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"photo_{i:06d}{suffix}", quality=95)
    return folder


def write_grids(
    path: Path, image_ids: Iterable[int], grids_NPC: np.ndarray, most: int = 3, images: Path | None = None
) -> Path:
    """Write grids to a file where its name ends in .hdf5, else to a folder of shards of ``most`` images.

    Hashes are those of the files in ``images``, where it is given and has them.
    """
    from sightline.clip.store import Rows, StoreLayout, shard_ranges, write_shards, write_store
    from sightline.core.cache import digest

    ids = np.array(image_ids, np.int64)
    made = {"model": "ViT-B-16", "tokens": "ln_post", "grid": 2, "dtype": str(grids_NPC.dtype)}
    layout = StoreLayout(grids_NPC.shape[1:], made, ["grids"], "none")

    def write(path: Path, part: np.ndarray, skipped: list[int]) -> None:
        rows = [ids.tolist().index(i) for i in part]
        files = {i: images / f"{i:06d}.png" for i in part} if images else {}
        hashes = [
            digest(files[i].read_bytes()).hex().encode() if i in files and files[i].is_file() else f"{i:032x}".encode()
            for i in part
        ]
        names = [f"photo_{i}" for i in part]
        write_store(path, Rows(part, names, hashes, skipped), [grids_NPC[rows]], layout)

    if path.suffix == ".hdf5":
        write(path, np.sort(ids), [])
    else:
        write_shards(path, shard_ranges(ids, ids, most), [], write)
    return path


@pytest.fixture(scope="session")
def world(tmp_path_factory) -> Path:
    """A small world in which every command can run; see tests/faults/world.py."""
    from world import make_world

    return make_world(tmp_path_factory.mktemp("faults") / "world")


def recording_folder(
    root: Path, cameras: Iterable[str] = ("front",), depth: bool = True, masks: bool = True, **columns: object
) -> Path:
    """Write a recording of 3 episodes of 2 frames, 16x12 pixels, with two joints; masks of half of the frames.

    ``columns`` are added to frames.parquet, or replace its own.
    """
    import pandas as pd

    count, step = 6, np.tile(np.arange(2), 3)
    info: dict[str, object] = {"fps": 10, "cameras": list(cameras), "joints": ["lift", "turn"]}
    for camera in info["cameras"]:
        photo_folder(root / "rgb" / camera, range(count), (12, 16), ".png")
        for path in (root / "rgb" / camera).iterdir():
            path.rename(path.with_name(path.name.removeprefix("photo_")))
    if depth:
        depth_folder(root / "depth", count, (12, 16))
        info["depth"] = {"unit_mm": 1.0, "invalid": [0], "height_range": [500, 1500]}
    if masks:
        info["classes"] = ["background", "cup"]
        (root / "masks").mkdir(parents=True)
        for i in range(0, count, 2):
            Image.fromarray(np.eye(12, 16).astype(np.uint8)).save(root / f"masks/{i:06d}.png")
    root.mkdir(parents=True, exist_ok=True)
    (root / "recording.json").write_text(json.dumps(info))
    table = {"frame_id": range(count), "episode": np.arange(3).repeat(2), "step": step, "time_s": step / 10,
             "joints": [[0.1 * s, 1.0] for s in step], "actions": [[0.2 * s, 1.0] for s in step]}  # fmt: skip
    table = {name: values for name, values in (table | columns).items() if values is not None}
    pd.DataFrame(table).to_parquet(root / "frames.parquet")
    return root
