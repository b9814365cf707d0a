"""Normalising against merely decoding the same PNG files with the same processes, in one run.

    python benchmarks/normalize.py FOLDER [--images 6000] [--repeats 3]

FOLDER holds uint16 depth images; they are linked to many times over until there are enough. Prints rates, the ratio to
bare decoding, and the peak memory of a quarter of the images and of all of them.
"""

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from argparse import ArgumentParser
from itertools import cycle, islice
from pathlib import Path

from sightline.depth.normalize import BLOCK, NormalizeParams, normalize_depth
from sightline.parallel import unordered_map
from sightline.recording.images import list_images, read_depth
from sightline.recording.split import SplitParams


def decode_block(paths: list[Path]) -> int:
    """Decode, and throw away."""
    return sum(read_depth(path).size for path in paths)


def bare_decode(folder: Path) -> None:
    paths = list(list_images(folder).values())
    blocks = [paths[start : start + BLOCK] for start in range(0, len(paths), BLOCK)]
    jobs = ((block, len(block)) for block in blocks)
    for _ in unordered_map(decode_block, jobs, total=len(paths), unit="img", title="decode", processes=None):
        pass


def normalize(folder: Path, resize: str) -> None:
    params = NormalizeParams.model_validate({"height_range": (500, 4500), "invalid": (0, 65535), "resize": resize})
    normalize_depth(folder, folder.with_suffix(f".{resize}.hdf5"), params, split=SplitParams())


def linked(source: Path, target: Path, count: int) -> Path:
    target.mkdir()
    for i, path in enumerate(islice(cycle(list_images(source).values()), count)):
        (target / f"{i:07d}{path.suffix}").symlink_to(path.resolve())
    return target


def peak_memory_mb(folder: Path) -> float:
    """Largest resident memory of one process, parent or worker, while normalising ``folder``."""
    code = (
        "import sys, resource; sys.path.insert(0, sys.argv[1]); from pathlib import Path; import normalize as n\n"
        "if __name__ == '__main__':\n"
        "    n.normalize(Path(sys.argv[2]), 'nearest')\n"
        "    print(max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)))"
    )
    script = folder.with_suffix(".py")
    script.write_text(code)
    command = [sys.executable, str(script), str(Path(__file__).parent), str(folder)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1]) / 1024


def main() -> None:
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=6000)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    room = Path(tempfile.mkdtemp())
    os.environ["DVC_ROOT"] = str(room)
    folder = linked(args.folder, room / "images", args.images)
    ways = {
        "bare decode": bare_decode,
        "nearest": lambda f: normalize(f, "nearest"),
        "area": lambda f: normalize(f, "area"),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(args.repeats):  # in turn, so that a busy minute hits all of them
        for name, way in ways.items():
            start = time.perf_counter()
            way(folder)
            seconds[name].append(time.perf_counter() - start)
    base = statistics.median(seconds["bare decode"])
    print(f"{args.images} images, {os.cpu_count()} cores, median of {args.repeats}")
    for name, times in seconds.items():
        median = statistics.median(times)
        print(f"  {name:12s} {args.images / median:7.0f} img/s   {base / median:5.1%} of bare decoding")
    quarter = linked(args.folder, room / "quarter", args.images // 4)
    peaks = peak_memory_mb(quarter), peak_memory_mb(folder)
    print(f"  peak memory of a process: {peaks[0]:.0f} MB for a quarter of the images, {peaks[1]:.0f} MB for all")
    shutil.rmtree(room)


if __name__ == "__main__":
    main()
