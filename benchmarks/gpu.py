"""All that only a GPU can tell, in one run of at most eight minutes: ``make gpu``.

    python benchmarks/gpu.py [--write PROJECT] [--keep FOLDER] [--only ITEM ...]

Each item is a process of its own with a limit of its own. What it has measured is written at once, so that a run that
is cut short keeps it: the table to ``docs/gpu.md``, the figures to ``benchmarks/gpu_items.json`` of a project, logs
and traces to the folder ``--keep`` (``runs/gpu``). Data are generated: a recording of small pictures that all differ.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from bench import machine
from gpu_steps import (
    PRECISIONS,
    autoencoder_steps,
    fair_peer,
    loss_and_norm,
    prepared,
    product_seconds,
    segmentation_of_volumes,
    trainings,
)
from running import ROOT
from train import step_flop

from sightline.clip import GridParams
from sightline.clip.extraction import extract_grids
from sightline.core.files import write_json
from sightline.depth.embedding import EmbedParams, embed_depth
from sightline.depth.network import Autoencoder, NetworkConfig
from sightline.depth.store import DepthStore
from sightline.depth.weights import Header, save_weights

Figure = tuple[str, float, str]  # what, how much, of which unit


def stages(room: Path) -> Iterator[Figure]:
    """Some twenty steps of each training: seconds, most memory, kinds of warnings."""
    for name, train in trainings(room).items():
        torch.cuda.reset_peak_memory_stats()
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            yield f"{name}: about 20 steps", _seconds(lambda: train(room / f"stage_{name}", 20)), "s"  # noqa: B023
        yield f"{name}: most memory", torch.cuda.max_memory_allocated() / 2**20, "MiB"
        yield f"{name}: kinds of warnings", len({str(warning.message)[:80] for warning in told}), ""


def agreement(room: Path) -> Iterator[Figure]:
    """Loss and norm of the gradient of the autoencoder on a GPU, beside a CPU's in float32: relative differences."""
    of_cpu = loss_and_norm(room, "cpu", "fp32")
    for precision in PRECISIONS:
        found = loss_and_norm(room, "cuda", precision)
        for what, one, other in zip(("loss", "norm of the gradient"), found, of_cpu, strict=True):
            yield f"{precision}: {what}, relative difference", abs(one / other - 1), ""


def resume(room: Path) -> Iterator[Figure]:
    """Whether a training that is killed ends with the bits of one that is not, as `deterministic` promises."""
    data, settings = room / "depth.hdf5", {"epochs": 4, "batch_size": 32, "width": 64, "deterministic": True}
    words = [word for key, value in settings.items() for word in ("--set", f"train.{key}={str(value).lower()}")]
    for name in ("whole", "killed"):
        command = [sys.executable, str(ROOT / "stages/train_autoencoder.py"), str(data), f"{name}.safetensors"]
        command += ["--metrics-dir", name, *words]
        if name == "killed":
            process = subprocess.Popen(command, cwd=room)
            while process.poll() is None and not list((room / ".scratch").glob("train_autoencoder/*/last.ckpt")):
                time.sleep(0.01)
            process.send_signal(signal.SIGKILL)
            process.wait()
        subprocess.run(command, cwd=room, check=True)
    whole, killed = ((room / f"{name}.safetensors").read_bytes() for name in ("whole", "killed"))
    yield "bytes of the weights that differ after a kill", sum(a != b for a, b in zip(whole, killed, strict=True)), ""


def autoencoder(room: Path) -> Iterator[Figure]:
    """A step of the whole autoencoder in bfloat16: eager, compiled, a fair peer, and the share of a measured peak."""
    flop = step_flop(Autoencoder(NetworkConfig()), torch.zeros(2, 1, 128, 128)) / 2
    rate = 2 * 8192**3 / product_seconds(8192)
    yield "product of matrices of 8192, bf16", rate / 1e12, "TFLOP/s"
    for batch in (8, 32, 64, 256):
        for way, steps in {
            "eager": autoencoder_steps(room, batch, compile=False),
            "compiled": autoencoder_steps(room, batch, compile=True),
            "fair peer": fair_peer(room, batch),
        }.items():
            for _ in range(5):
                next(steps)
            count = 20
            seconds = _seconds(lambda: [next(steps) for _ in range(count)]) / count  # noqa: B023
            yield f"batch {batch}, {way}", batch / seconds, "images/s"
            if way != "fair peer":
                yield f"batch {batch}, {way}, of the measured peak", 100 * batch * flop / seconds / rate, "%"


def segmentation(room: Path) -> Iterator[Figure]:
    """A step of every method on slices, and of the network on volumes."""
    for name, train in trainings(room).items():
        if name.startswith("segmentation"):
            yield f"{name}: a step", _per_step(room, name, train), "ms"
    for side in (64, 96):
        steps = segmentation_of_volumes(side)
        next(steps)
        yield f"network, two volumes of {side}^3: a step", 1e3 * _seconds(lambda: next(steps)), "ms"  # noqa: B023


def fusion(room: Path) -> Iterator[Figure]:
    """A step of the fusion model: eager, compiled, with CUDA graphs."""
    ways = {"eager": {}, "compiled": {"compile": True}, "graphs": {"compile": True, "cuda_graphs": True}}
    for batch in (128, 512):
        for way, settings in ways.items():
            train = trainings(room, batch_size=batch, **settings)["fusion"]
            yield f"batch {batch}, {way}: a step", _per_step(room, f"{way}_{batch}", train), "ms"


def extraction(room: Path) -> Iterator[Figure]:
    """Grids and embeddings from the first to the last byte, and how busy the main process was."""
    store = DepthStore.open(room / "depth.hdf5")
    encoder = Autoencoder(NetworkConfig()).eval().encoder
    header = Header(kind="encoder", network=encoder.config, preprocessing=store.preprocessing)
    save_weights(room / "encoder.safetensors", encoder, header)
    photographs = [room / "recording/rgb" / camera for camera in ("left_wrist",)]
    calls: dict[str, Callable[[], object]] = {
        "embed": lambda: embed_depth(room / "encoder.safetensors", store.path, room / "e.hdf5", EmbedParams()),
        "clip_grids, ViT-B-16": lambda: extract_grids(photographs, room / "g.hdf5", GridParams(batch_size=256)),
    }
    for name, call in calls.items():
        before = time.process_time()
        seconds = _seconds(call)
        yield name, len(store.depth) / seconds, "images/s"
        yield f"{name}: the main process is busy", 100 * (time.process_time() - before) / seconds, "%"


def waits(room: Path) -> Iterator[Figure]:
    """Waits of the host in a step, as the driver tells; `tests/test_pretended_gpu.py` holds them to a number."""
    for name, train in trainings(room).items():
        told, counts = [], []
        for steps in (10, 40):
            with warnings.catch_warnings(record=True) as found:
                warnings.simplefilter("always")
                torch.cuda.set_sync_debug_mode("warn")
                counts.append(train(room / f"waits_{name}_{steps}", steps))
                torch.cuda.set_sync_debug_mode("default")
            told.append(sum("synchronizing CUDA operation" in str(warning.message) for warning in found))
        yield f"{name}: waits in a step", (told[1] - told[0]) / (counts[1] - counts[0]), ""


def traces(room: Path) -> Iterator[Figure]:
    """Two steps of each training as the profiler sees them; files to open in Perfetto."""
    for name, train in trainings(room).items():
        train(room / f"warm_{name}", 2)
        kinds = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
        with torch.profiler.profile(activities=kinds) as profile:
            train(room / f"traced_{name}", 2)
        profile.export_chrome_trace(str(room / f"{name}.trace.json.gz"))
        launches = sum(event.count for event in profile.key_averages() if "LaunchKernel" in event.key)
        yield f"{name}: kernels launched in two steps, and around them", launches, ""


LIMITS: dict[Callable[[Path], Iterator[Figure]], int] = {  # seconds, eight minutes in all
    agreement: 30, stages: 75, waits: 60, autoencoder: 75, fusion: 75, segmentation: 45, resume: 40, extraction: 50,
    traces: 30,
}  # fmt: skip


def _seconds(call: Callable[[], object]) -> float:
    torch.cuda.synchronize()
    start = time.perf_counter()
    call()
    torch.cuda.synchronize()
    return time.perf_counter() - start


def _per_step(room: Path, name: str, train: Callable[[Path, int], int]) -> float:
    """Milliseconds of a step: what a long training takes more than a short one."""
    seconds, counts = [], list[int]()
    for steps in (20, 60):
        seconds.append(_seconds(lambda: counts.append(train(room / f"{name}_{steps}", steps))))  # noqa: B023
    return 1e3 * (seconds[1] - seconds[0]) / (counts[1] - counts[0])


def write(project: Path, found: dict[str, Any]) -> None:
    """Table and figures of what was measured so far."""
    write_json(project / "benchmarks/gpu_items.json", found)
    made_on = ", ".join(f"{key}: {value}" for key, value in found["machine"].items())
    lines = ["# On a GPU", "", f"Written by `make gpu`. {made_on}.", "", "| item | what | measured |", "|---|---|---|"]
    for item, result in found["items"].items():
        lines += [f"| {item} | {what} | {value:.4g} {unit} |" for what, value, unit in result["figures"]]
        lines += [f"| {item} | **{result['ended']}** | |"] if result["ended"] != "done" else []
    (project / "docs/gpu.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def run_item(name: str, room: Path, limit: int) -> dict[str, Any]:
    """Figures of an item, also of one that fails or runs out of time."""
    results, ended = room / f"{name}.jsonl", "done"
    command = [sys.executable, str(Path(__file__)), "--item", name, "--room", str(room)]
    with open(room / f"{name}.log", "wb") as log:
        try:
            status = subprocess.run(command, stdout=log, stderr=log, timeout=limit, check=False).returncode
            ended = "done" if status == 0 else f"failed, see {name}.log"
        except subprocess.TimeoutExpired:
            ended = f"stopped after {limit} s"
    lines = results.read_text(encoding="utf-8").splitlines() if results.is_file() else []
    return {"ended": ended, "figures": [json.loads(line) for line in lines]}


def main() -> None:
    names = {item.__name__: item for item in LIMITS}
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", type=Path, default=ROOT, metavar="PROJECT", help="where docs/ and benchmarks/ are")
    parser.add_argument("--keep", type=Path, default=ROOT / "runs/gpu", help="folder for logs and traces")
    parser.add_argument("--only", nargs="+", choices=names, default=list(names), help="some of the items")
    parser.add_argument("--item", choices=names, help=argparse.SUPPRESS)
    parser.add_argument("--room", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if not torch.cuda.is_available():
        print("make gpu: this machine has no GPU that torch can use; nothing was measured")
        return
    if args.item:
        os.environ["DVC_ROOT"] = str(args.room)
        with open(args.room / f"{args.item}.jsonl", "a", encoding="utf-8") as file:
            for figure in names[args.item](args.room):
                print(json.dumps(figure), file=file, flush=True)
        return
    args.keep.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        room = prepared(Path(folder))
        found: dict[str, Any] = {"machine": machine(), "items": {}}
        for item, limit in LIMITS.items():
            if item.__name__ in args.only:
                found["items"][item.__name__] = run_item(item.__name__, room, limit)
                write(args.write, found)
        for path in (*room.glob("*.log"), *room.glob("*.trace.json.gz")):
            path.replace(args.keep / path.name)


if __name__ == "__main__":
    main()
