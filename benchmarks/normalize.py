"""Normalising depth, against a loop with Pillow and against merely decoding the same files with the same processes.

python benchmarks/normalize.py [--quick] [--depth FOLDER]
"""

from pathlib import Path

from measuring import Bench, Row, command, in_turn, per, scratch_in
from peers import depth_loop

from sightline.core.parallel import unordered_map
from sightline.depth.normalize import BLOCK, NormalizeParams, normalize_depth
from sightline.recording.images import read_depth
from sightline.recording.names import list_frames
from sightline.recording.split import SplitParams


def decode_block(paths: list[Path]) -> int:
    """Decode, and throw away."""
    return sum(read_depth(path).size for path in paths)


def _bare_decode(folder: Path) -> None:
    paths = list(list_frames(folder).values())
    blocks = [paths[start : start + BLOCK] for start in range(0, len(paths), BLOCK)]
    jobs = ((block, len(block)) for block in blocks)
    for _ in unordered_map(decode_block, jobs, total=len(paths), unit="img", title="decode", processes=None):
        pass


def rows(bench: Bench) -> list[Row]:
    """One row: a depth image, decoded and normalised."""
    many, few = bench.size(800, 8), bench.size(100, 4)
    folder, part = bench.depth_folder("depth", many), bench.depth_folder("part", few)
    params = NormalizeParams(height_range=(500, 4500), invalid=(0, 65535))

    def stage() -> None:
        with scratch_in(bench.room):
            normalize_depth(folder, bench.room / "depth.hdf5", params, split=SplitParams())

    seconds = in_turn(
        {
            "stage": stage,
            "loop": lambda: depth_loop.normalize_folder(part, bench.room / "depth.npz"),
            "decode": lambda: _bare_decode(folder),
        },
        bench.size(3, 1),
        warm=False,
    )
    ours, loop, bare = per(seconds["stage"], many), per(seconds["loop"], few), per(seconds["decode"], many)
    between = "filling holes, scaling, hashing, writing"
    bound = "decoding alone, as many processes"
    return [Row("decode and normalise a depth image", "ms", ours, loop, "a loop with Pillow", bare, bound, between)]


if __name__ == "__main__":
    command(__doc__, rows)
