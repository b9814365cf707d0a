"""One sample through each model: by Sightline, and exported, by ONNX Runtime and OpenVINO; raw images in, results out.

    python benchmarks/latency.py models/depth/encoder.safetensors models/fusion/actions/stacked.safetensors \
        models/segmentation/masks.safetensors [--threads 2] [--rounds 30]

Milliseconds, the median of the rounds, in which the ways take turns; with ``--cpu`` of processor time, for a machine
that also does other things. Images have the sizes of the demo, policies predict in every frame.
"""

import statistics
import tempfile
import time
import warnings
from argparse import ArgumentParser
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from sightline.depth.semantic_encoder import create_semantic_encoder
from sightline.export.files import export_model, open_program
from sightline.fusion import Policy
from sightline.segmentation.frames import resized
from sightline.segmentation.model import load_model

RUNTIMES = ("onnxruntime", "openvino")
Ways = dict[str, Callable[[], object]]


def exported(path: Path, runtime: str, threads: int) -> Callable[[dict[str, np.ndarray]], object]:
    """The program of an ONNX file."""
    if runtime == "onnxruntime":
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        session = onnxruntime.InferenceSession(path, options)
        return lambda feed: session.run(None, feed)
    import openvino

    hints = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32"}
    return openvino.Core().compile_model(path, "CPU", hints)


def ways(weights: Path, room: Path, windows: bool, threads: int) -> tuple[str, Ways]:
    """The kind of a model, and ways to put one sample through it."""
    _, says = open_program(weights, windows)
    rng, kind = np.random.default_rng(0), says["kind"]
    if kind == "encoder":
        raw = rng.integers(500, 1300, (1, 128, 128)).astype(np.uint16)
        raw[:, 20:40, 50:70] = 0
        feed, encoder = {"images": raw}, create_semantic_encoder(weights, freeze_weights=True)
        found: Ways = {"sightline": lambda: encoder.encode_numpy(raw)}
    elif kind == "policy":
        policy = Policy.load(weights, replan_every=1)
        sizes = [224 if camera == "global" else 84 for camera in policy.cameras]
        pictures = {c: rng.integers(0, 256, (s, s, 3), np.uint8) for c, s in zip(policy.cameras, sizes, strict=True)}
        joints = np.zeros(len(policy.config.joint_names), np.float32)
        feed = {f"image_{camera}": picture[None] for camera, picture in pictures.items()} | {"joints": joints[None]}
        found = {"sightline": lambda: policy.act({"images": pictures, "joints": joints})}
    else:
        model, picture = load_model(weights), rng.integers(0, 256, (224, 224, 3), np.uint8)
        feed = {"images": picture[None]}

        def segment() -> object:
            small = torch.from_numpy(resized(Image.fromarray(picture), model.config.image_size).copy())
            with torch.inference_mode():
                return model.probabilities(small.permute(2, 0, 1)[None], windows=windows).argmax(dim=1)

        kind, found = f"{kind}{', with windows' if windows else ''}", {"sightline": segment}
    output = room / f"{weights.stem}{windows}.onnx"
    export_model(weights, output, windows)
    for runtime in RUNTIMES:
        run = exported(output, runtime, threads)
        found[runtime] = lambda run=run, feed=feed: run(feed)
    return kind, found


def measure(found: Ways, rounds: int, clock: Callable[[], float]) -> dict[str, float]:
    """Milliseconds of each way."""
    seconds: dict[str, list[float]] = {name: [] for name in found}
    for number in range(rounds + 2):  # two to warm up
        for name, call in found.items():
            start = clock()
            call()
            if number >= 2:
                seconds[name].append(clock() - start)
    return {name: 1e3 * statistics.median(values) for name, values in seconds.items()}


def main(models: list[Path], threads: int, rounds: int, clock: Callable[[], float]) -> None:
    torch.set_num_threads(threads)
    print("| model, one sample | Sightline | ONNX Runtime | OpenVINO |\n|---|---:|---:|---:|")
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(action="ignore"):
        for weights in models:
            for windows in (False, True):
                kind, found = ways(weights, Path(folder), windows, threads)
                if windows and "windows" not in kind:
                    continue
                figures = measure(found, rounds, clock)
                print(f"| {kind} | {' | '.join(f'{value:.1f} ms' for value in figures.values())} |", flush=True)


if __name__ == "__main__":
    parser = ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("models", type=Path, nargs="+")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--cpu", action="store_true", help="processor time in place of the clock's")
    args = parser.parse_args()
    main(args.models, args.threads, args.rounds, time.process_time if args.cpu else time.perf_counter)
