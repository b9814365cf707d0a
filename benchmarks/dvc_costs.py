"""What DVC needs for a file, and what it pushes after 1 % of the images is new. `benchmarks/scale.py` runs it."""

import hashlib
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from large_store import write_grids

SHARD, EPISODE = 16, 2  # images; so few that the last of the shards counts for little, as it does of many images


def dvc_costs(room: Path, files: int = 6000, grids: int = 1000) -> dict[str, float]:
    """Processor time of DVC for each of ``files`` small files, and what it pushes when 1 % more come.

    Args:
        grids: images of a store, as one file and as shards, of which 1 % more come too.
    """
    project, remote = room / "project", room / "remote"
    project.mkdir()

    def dvc(*words: str) -> float:
        before = os.times()
        environment = {name: value for name, value in os.environ.items() if not name.startswith("DVC_")}
        command = [sys.executable, "-m", "dvc", *words]
        done = subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"dvc {' '.join(words)} failed:\n{done.stderr}")
        after = os.times()
        return after.children_user + after.children_system - before.children_user - before.children_system

    def stored() -> int:
        return sum(path.stat().st_size for path in remote.rglob("*") if path.is_file())

    dvc("init", "--no-scm", "--quiet")
    dvc("remote", "add", "--default", "storage", str(remote))
    costs: dict[str, float] = {"files": files, "grids": grids}
    start = min(dvc("root") for _ in range(3))
    added = []
    for folder, seed in (("others", 2 * files), ("images", 0)):  # what a new file costs a file system varies by much
        _write_images(project / folder, files, seed)
        added.append(dvc("add", folder))
    costs["add_ms_per_file"] = 1e3 * (min(added) - start) / files
    (project / "others.dvc").unlink()
    costs["status_ms_per_file"] = 1e3 * (min(dvc("status") for _ in range(3)) - start) / files
    costs["push_ms_per_file"] = 1e3 * (dvc("push") - start) / files
    costs["images_bytes"] = stored()
    _write_images(project / "images", files + files // 100)
    dvc("add", "images")
    dvc("push")
    costs["images_pushed"] = stored() - costs["images_bytes"]
    for name, target in (("store", "grids.hdf5"), ("shards", "grids")):
        for when, count in (("bytes", grids), ("pushed", grids + grids // 100)):
            before = stored()
            write_grids(project / target, count, SHARD, EPISODE)
            dvc("add", target)
            dvc("push", f"{target}.dvc")
            costs[f"{name}_{when}"] = stored() - before
    data, seconds = b"0" * 2**26, time.process_time()
    hashlib.md5(data, usedforsecurity=False)
    costs["md5_mb_per_s"] = len(data) / (time.process_time() - seconds) / 1e6
    return costs


def _write_images(folder: Path, count: int, seed: int = 0, size: int = 4000) -> None:
    folder.mkdir(exist_ok=True)
    for i in range(count):
        path = folder / f"{i:06d}.png"
        if not path.exists():
            path.write_bytes(np.random.default_rng(seed + i).bytes(size))


def dvc_table(dvc: dict[str, float]) -> str:
    """Markdown: what is pushed after 1 % of new images."""
    lines = ["| tracked as | before | pushed after 1 % of new images | share |", "|---|---|---|---|"]
    ways = {
        "images": "a folder, a file for each image",
        "store": "one HDF5 file of grids",
        "shards": f"a folder of {-(-dvc['grids'] // SHARD):.0f} shards of grids",
    }
    for name, what in ways.items():
        before, pushed = dvc[f"{name}_bytes"], dvc[f"{name}_pushed"]
        lines.append(f"| {what} | {before / 1e6:.1f} MB | {pushed / 1e6:.2f} MB | {pushed / before:.1%} |")
    return "\n".join(lines)
