"""What the benchmarks of speed share: rows of one table, timings in turn, generated images, and a command line."""

import argparse
import multiprocessing
import os
import shutil
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import cycle, islice
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from sightline.recording.names import list_frames
from sightline.training.processes import process_device


@dataclass(frozen=True)
class Row:
    """What one piece of work costs (less is better), round by round of one run: ours, another way, the least possible.

    Ratios are taken within a round, whose parts are measured one after the other, and the median of the rounds is told.
    """

    work: str
    unit: str  # of a cost: ms, s, MiB
    ours: list[float]
    peer: list[float]
    peer_is: str
    bound: list[float] = field(default_factory=list)  # empty where none makes sense
    bound_is: str = ""
    between: str = ""  # what lies between ours and the bound

    @property
    def ratio(self) -> float:
        """How many times less ours costs than the peer."""
        return statistics.median(peer / ours for peer, ours in zip(self.peer, self.ours, strict=True))

    @property
    def share(self) -> float | None:
        """How much of the bound ours reaches; 1 is all."""
        pairs = zip(self.bound, self.ours, strict=True) if self.bound else ()
        return statistics.median([bound / ours for bound, ours in pairs]) if self.bound else None

    def as_dict(self) -> dict[str, Any]:
        """The costs of every round, and what follows from them."""
        return asdict(self) | {"ratio": self.ratio, "share": self.share}


@dataclass(frozen=True)
class Bench:
    """Where a run works, and how much it does.

    Args:
        room: an empty folder for files, also for scratch state.
        quick: sizes that only show that everything works, for the tests.
        depth, photographs: folders of images; None generates them.
    """

    room: Path
    quick: bool = False
    depth: Path | None = None
    photographs: Path | None = None

    def size(self, real: int, quick: int) -> int:
        """A number for a real run, and a small one for the tests."""
        return quick if self.quick else real

    def depth_folder(self, name: str, count: int) -> Path:
        """A folder of ``count`` uint16 PNG files of depth, links to few."""
        source = self.depth or self._generated("depth_images", _draw_depth)
        target = self.room / name
        target.mkdir()
        for i, path in enumerate(islice(cycle(list_frames(source).values()), count)):
            (target / f"{i:07d}{path.suffix}").symlink_to(path.resolve())
        return target

    def photograph_folder(self, name: str, count: int, first: int = 0) -> Path:
        """A folder of ``count`` photographs with ids from ``first`` on, whose bytes all differ."""
        paths = list(list_frames(self.photographs or self._generated("pictures", _draw_photograph)).values())
        target = self.room / name
        target.mkdir()
        for i in range(first, first + count):
            path = paths[i % len(paths)]
            (target / f"{i:07d}{path.suffix}").write_bytes(path.read_bytes() + str(i).encode())  # decoders stop before
        return target

    def _generated(self, name: str, draw: Callable[[np.random.Generator, tuple[int, int]], Image.Image]) -> Path:
        folder = self.room / name
        if not folder.exists():
            folder.mkdir()
            for i in range(self.size(32, 4)):
                image = draw(np.random.default_rng(i), (48, 64) if self.quick else (480, 640))
                image.save(folder / f"{i:06d}.{'png' if image.mode.startswith('I') else 'jpg'}", quality=92)
        return folder


def _draw_depth(rng: np.random.Generator, size: tuple[int, int]) -> Image.Image:
    """Smooth millimetres with a sensor's noise, steps and holes."""
    rows, columns = np.mgrid[0 : size[0], 0 : size[1]] / size[0]
    depth = 2000 + 800 * np.sin(rows * rng.uniform(2, 9) + rng.uniform(0, 6)) * np.cos(columns * rng.uniform(2, 9))
    depth += 300 * (np.hypot(rows - 0.5, columns - 0.6) < 0.3) + rng.normal(0, 3, size)
    depth[np.hypot(rows - rng.uniform(), columns - rng.uniform()) < 0.1] = 0
    return Image.fromarray(np.rint(depth).astype(np.uint16))


def _draw_photograph(rng: np.random.Generator, size: tuple[int, int]) -> Image.Image:
    rows, columns = np.mgrid[0 : size[0], 0 : size[1]] / size[0]
    waves = [np.sin(rows * rng.uniform(5, 60)) * np.cos(columns * rng.uniform(5, 60)) for _ in range(3)]
    pixels = 128 + 80 * np.stack(waves, axis=-1) + rng.normal(0, 12, (*size, 3))
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def in_turn(
    ways: dict[str, Callable[[], object]], rounds: int, warm: bool = True, settle: bool = False
) -> dict[str, list[float]]:
    """Seconds of each of ``ways``, ``rounds`` times one after the other, so that a busy minute hits all of them.

    Args:
        warm: each once before the first round.
        settle: each once before it is timed, in every round: memory that the others have freed costs it nothing.
    """
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    if warm:
        for way in ways.values():
            way()
    for _ in range(rounds):
        for name, way in ways.items():
            if settle:
                way()
            seconds[name].append(timed(way))
    return seconds


def timed(function: Callable[[], object]) -> float:
    """Seconds of a call, until the device has done its work."""
    start = time.perf_counter()
    function()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def per(seconds: list[float], count: float) -> list[float]:
    """Milliseconds for one of ``count``."""
    return [1e3 * value / count for value in seconds]


class Elsewhere:
    """Steps in a process of their own, so that nothing which ours sets for its process helps or harms them.

    Args:
        begin: ``begin(*args)`` gives an iterator, of which every next is a step.
    """

    def __init__(self, begin: Callable[..., Iterator[None]], *args: object) -> None:
        context = multiprocessing.get_context("spawn")  # a fork would inherit what is set
        self.here, self.there = context.Pipe()
        self.process = context.Process(target=_take_steps, args=(self.there, begin, *args))

    def __enter__(self) -> "Elsewhere":
        self.process.start()
        self.there.close()  # the process has the only one: if it dies, `recv` says so
        return self

    def __exit__(self, *_: object) -> None:
        self.here.close()
        self.process.join()

    def __call__(self, count: int) -> None:
        """Take ``count`` steps, and return when they are done."""
        self.here.send(count)
        self.here.recv()


def _take_steps(there: Connection, begin: Callable[..., Iterator[None]], *args: object) -> None:
    steps = begin(*args)
    with suppress(EOFError):  # the other end is closed
        while True:
            # `timed`, because it waits for the device
            there.send(timed(partial(list, islice(steps, there.recv()))))


class Multiplication:
    """The arithmetic that the device does at best: a product of square matrices, with every core."""

    def __init__(self, bench: Bench, dtype: torch.dtype) -> None:
        self.side = bench.size(8192 if torch.cuda.is_available() else 2048, 256)
        self.a, self.b = (torch.randn(self.side, self.side, device=process_device()).to(dtype) for _ in range(2))

    def __call__(self) -> None:
        self.a @ self.b

    def least_ms(self, seconds: list[float], flop: float) -> list[float]:
        """Milliseconds that ``flop`` would take at the rates of the products that took ``seconds``."""
        return [1e3 * flop * value / (2 * self.side**3) for value in seconds]


@contextmanager
def scratch_in(room: Path) -> Iterator[None]:
    """Scratch state goes to ``room``, not into the project; the cache of results is empty at first."""
    before = os.environ.get("DVC_ROOT")
    os.environ["DVC_ROOT"] = str(room)
    shutil.rmtree(room / ".scratch", ignore_errors=True)
    try:
        yield
    finally:
        os.environ.pop("DVC_ROOT") if before is None else os.environ.update(DVC_ROOT=before)


def parser(description: str) -> argparse.ArgumentParser:
    """The options that every benchmark of speed has."""
    options = argparse.ArgumentParser(description=description)
    options.add_argument("--quick", action="store_true", help="tiny sizes: whether it works, not how fast")
    options.add_argument("--depth", type=Path, metavar="FOLDER", help="uint16 depth images (default: generated)")
    options.add_argument("--photographs", type=Path, metavar="FOLDER", help="photographs (default: generated)")
    return options


@contextmanager
def opened(args: argparse.Namespace) -> Iterator[Bench]:
    """The run that ``args`` ask for, in a folder of its own that is deleted afterwards."""
    warnings.filterwarnings("ignore", message="grids.pretrained is random")
    with tempfile.TemporaryDirectory() as room, scratch_in(Path(room)):
        yield Bench(Path(room), args.quick, args.depth, args.photographs)


def command(description: str, rows: Callable[[Bench], list[Row]]) -> None:
    """Run one benchmark alone and print its rows."""
    with opened(parser(description.splitlines()[0]).parse_args()) as bench:
        print(table(rows(bench)))


def table(rows: list[Row]) -> str:
    """Rows as Markdown."""
    lines = [
        "| work | ours | otherwise | times as good | bound | share of the bound |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        ours, peer = (f"{statistics.median(costs):.3g} {row.unit}" for costs in (row.ours, row.peer))
        bound = f"{row.bound_is}: {statistics.median(row.bound):.3g} {row.unit}" if row.bound else ""
        share = "" if row.share is None else f"{row.share:.0%}"
        lines.append(f"| {row.work} | {ours} | {row.peer_is}: {peer} | {row.ratio:.2g} | {bound} | {share} |")
    return "\n".join(lines)
