"""Many experiments in a row, and what grows meanwhile: ``make soak`` writes docs/soak.md.

python tests/faults/soak.py --experiments 50
"""

import argparse
import contextlib
import gc
import io
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from world import ROOT, make_world  # makes the other tests importable

# isort: split
from test_pipeline import Clone

from sightline.core.params import Section, load_params
from sightline.fusion.training import FusionParams, train_fusion
from sightline.recording.split import DataParams
from sightline.segmentation.frames import open_frames
from sightline.segmentation.training import SegmentationParams, train_segmentation

PAGE = ROOT / "docs/soak.md"
TARGET = "normalize@depth"  # starts soon: the trainings follow in one process
CLEANING = (  # of docs/faq.md
    "make clean-scratch",
    "git checkout -q . && dvc checkout -q --allow-missing",
    "dvc exp remove -q --all-commits",
    "dvc gc -q -f --all-branches --all-tags --all-experiments",
    "git gc -q --prune=now",
)
WARM = 10  # trainings after which a process holds what it needs
SLACK = 20 * 2**20  # bytes that its memory may move by afterwards
Figures = dict[str, float]


def tree(folder: Path) -> tuple[int, int]:
    """Files below ``folder``, and their bytes, each hard link once."""
    sizes = {(s.st_dev, s.st_ino): s.st_size for s in (p.lstat() for p in folder.rglob("*") if not p.is_dir())}
    return len(sizes), sum(sizes.values())


class Workspace(Clone):
    """A clone with small parameters, whose temporary files and DVC databases lie beside it."""

    def __init__(self, root: Path) -> None:
        self.temporary, self.site = root.parent / "tmp", root.parent / "site"
        self.temporary.mkdir(parents=True)
        root.mkdir()
        super().__init__(root)
        self.run("dvc", "config", "core.site_cache_dir", str(self.site))
        self.run("dvc", "repro", TARGET)
        self.commit()

    def environment(self) -> dict[str, str]:
        return super().environment() | {"TMPDIR": str(self.temporary)}

    def figures(self) -> Figures:
        """Sizes of what an experiment might leave behind, and the number of temporary files."""
        places = {"scratch": ".scratch", "runs": "runs", "dvc_tmp": ".dvc/tmp", "git": ".git", "cache": ".dvc/cache"}
        sizes: Figures = {name: tree(self.root / place)[1] for name, place in places.items()}
        return sizes | {"site": tree(self.site)[1], "temporary": tree(self.temporary)[0]}


def experiments(count: int, folder: Path) -> tuple[dict[str, Figures], list[str]]:
    """Run ``count`` experiments in one workspace, then clean up -> moment -> figures, and what is wrong with them."""
    space = Workspace(folder / "workspace")
    found = {"pipeline": space.figures()}
    for i in range(1, count + 1):
        began = time.monotonic()
        assert space.ran("exp", "run", "-S", f"normalize.height_range=[500,{2000 + i}]", TARGET) == [TARGET]
        found[f"experiment {i}"] = {"seconds": time.monotonic() - began} | space.figures()
        print(f"experiment {i}: {found[f'experiment {i}']}", flush=True)
    first, last = found["experiment 1"], found[f"experiment {count}"]
    faults = [
        f"{name} grows: {first[name]:,.0f} after the first experiment, {last[name]:,.0f} after the last"
        for name in ("scratch", "temporary")
        if last[name] > first[name]
    ]
    for line in CLEANING:
        space.run("bash", "-c", line)
        found[f"`{line}`"] = space.figures()
        print(f"{line}: {found[f'`{line}`']}", flush=True)
    return found, faults


class Params(Section):
    """What the trainings take."""

    data: DataParams
    fusion: FusionParams
    segmentation: SegmentationParams


def fusion(params: Params, out: Path) -> None:
    """The fusion model of the world."""
    train_fusion(Path("views.hdf5"), out / "f.safetensors", out, params.fusion, 0, design="joints_only")


def segmentation(params: Params, out: Path) -> None:
    """The segmentation model of the world."""
    frames = open_frames(params.segmentation, params.data.split, recording=Path("rec"), index=Path("index"))
    train_segmentation(frames, out / "s.safetensors", out, params.segmentation, 0)


def trainings(
    train: Callable[[Params, Path], object], count: int, world: Path, warm: int = WARM
) -> tuple[dict[int, Figures], list[str]]:
    """Train ``count`` models in this process -> number -> what it then holds; what grows after the first ``warm``."""
    found: dict[int, Figures] = {}
    section = train.__name__
    said = io.StringIO()
    with contextlib.chdir(world), contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        for i in range(1, count + 1):
            train(load_params(Params, Path("params.yaml"), [f"{section}.lr={1e-3 + i * 1e-6:.6f}"]), Path("out"))
            found[i] = held()
    early, last = found[warm], found[count]
    grown = [name for name in last if last[name] > early[name] + (SLACK if name == "memory" else 0)]
    return found, [f"{section}: {name} grows: {early[name]:,.0f}, later {last[name]:,.0f}" for name in grown]


def held() -> Figures:
    """Memory, open files and threads of this process, and files of its scratch state."""
    gc.collect()
    return {
        "memory": int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE"),
        "files": len(os.listdir("/proc/self/fd")),
        "threads": len(os.listdir("/proc/self/task")),
        "scratch": tree(Path(".scratch"))[0],
    }


def page(found: dict[str, Figures], processes: dict[str, dict[int, Figures]]) -> str:
    """The page's text."""
    count = sum(moment.startswith("experiment") for moment in found)
    kept = [f"experiment {i}" for i in sorted({1, min(10, count), count})]
    first, last = found["experiment 1"], found[f"experiment {count}"]
    each = {name: (last[name] - first[name]) / max(1, count - 1) for name in last}
    trained = max(len(rows) for rows in processes.values())
    lines = [
        "# Many experiments in a row",
        "",
        "Generated by `make soak`. What is left behind, and how to remove it: [faq.md](faq.md).",
        "",
        f"{count} times `dvc exp run -S normalize.height_range=... {TARGET}`, each with another range, in one",
        "workspace of small size. Sizes in kB; `temporary` counts the files below `TMPDIR`, `DVC's databases` lie in",
        "`core.site_cache_dir` (else `/var/tmp/dvc`).",
        "",
        "| after | seconds | `.scratch` | temporary | `runs/` | `.dvc/tmp` | DVC's databases | `.git` | DVC's cache |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
        *(
            f"| {moment} | {figures.get('seconds', '')!s:.4} | {_kb(figures)} |"
            for moment, figures in found.items()
            if moment in kept or not moment.startswith("experiment")
        ),
        f"| *growth per experiment* | {each['seconds']:+.2f} | {_kb(each)} |",
        "",
        f"## {trained} trainings in one process",
        "",
        "By the library's functions, one thread, on the CPU.",
        "",
        "| trainings | memory, MB | open files | threads | files in `.scratch` |",
        "|---|---:|---:|---:|---:|",
        *(
            f"| {name}: {i} | {rows[i]['memory'] / 1e6:.0f} | {rows[i]['files']:.0f} | {rows[i]['threads']:.0f} | "
            f"{rows[i]['scratch']:.0f} |"
            for name, rows in processes.items()
            for i in sorted({1, min(WARM, len(rows)), len(rows)})
        ),
    ]
    return "\n".join(lines) + "\n"


def _kb(figures: Figures) -> str:
    sizes = {name: f"{figures[name] / 1000:,.1f}" for name in ("scratch", "runs", "dvc_tmp", "site", "git", "cache")}
    sizes["temporary"] = f"{figures['temporary']:.0f}"
    return " | ".join(sizes[name] for name in ("scratch", "temporary", "runs", "dvc_tmp", "site", "git", "cache"))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experiments", type=int, default=50, help="in one workspace (50)")
    parser.add_argument("--trainings", type=int, default=50, help="of each kind, in one process (50)")
    args = parser.parse_args()
    processes, faults = {}, []
    with tempfile.TemporaryDirectory() as folder:
        world = make_world(Path(folder) / "world")
        os.environ["DVC_ROOT"] = "."
        for train in (fusion, segmentation):
            processes[train.__name__], wrong = trainings(train, args.trainings, world, min(WARM, args.trainings))
            faults += wrong
            print(train.__name__, processes[train.__name__], flush=True)
        found, wrong = experiments(args.experiments, Path(folder) / "experiments")
        PAGE.write_text(page(found, processes), encoding="utf-8")
    print(*faults, *wrong, sep="\n")
    return int(bool(faults or wrong))


if __name__ == "__main__":
    sys.exit(main())
