"""One sample through each model: by Sightline, and exported, by ONNX Runtime and OpenVINO; raw images in, results out.

    python benchmarks/latency.py models/depth/encoder.safetensors models/fusion/actions/stacked.safetensors \
        models/segmentation/masks.safetensors [--threads 2] [--rounds 30]

Milliseconds, the median of the rounds, in which the ways take turns; with ``--cpu`` of processor time, for a machine
that also does other things. Images have the sizes of the demo, policies predict in every frame, and models of volumes
see one window. Before anything is measured, all ways must give the same result to 1e-5 of the largest.
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
from sightline.export.files import TOLERANCE, export_model, open_program
from sightline.export.programs import SegmentationProgram
from sightline.fusion import Policy
from sightline.segmentation.frames import resized
from sightline.segmentation.model import SegmentationModel, load_model

RUNTIMES = ("onnxruntime", "openvino")
Ways = dict[str, Callable[[], np.ndarray]]  # one sample -> its result


def exported(path: Path, runtime: str, threads: int) -> Callable[[dict[str, np.ndarray]], np.ndarray]:
    """The first result of the program of an ONNX file."""
    if runtime == "onnxruntime":
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        session = onnxruntime.InferenceSession(path, options)
        return lambda feed: session.run(None, feed)[0]
    import openvino

    hints = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.Core().compile_model(path, "CPU", hints)
    return lambda feed: compiled(feed)[0]


def of_encoder(weights: Path, rng: np.random.Generator) -> tuple[dict[str, np.ndarray], Callable[[], np.ndarray]]:
    """A depth image, or a picture, as exported programs take it, and its embedding by Sightline."""
    encoder = create_semantic_encoder(weights, freeze_weights=True)
    if encoder.config.input_channels > 1:
        picture = rng.integers(0, 256, (1, 224, 224, encoder.config.input_channels), np.uint8)
        return {"images": picture}, lambda: encoder.encode_numpy(picture.transpose(0, 3, 1, 2))
    raw = rng.integers(500, 1300, (1, 128, 128)).astype(np.uint16)
    raw[:, 20:40, 50:70] = 0
    return {"images": raw}, lambda: encoder.encode_numpy(raw)


def of_policy(weights: Path, rng: np.random.Generator) -> tuple[dict[str, np.ndarray], Callable[[], np.ndarray]]:
    """What a policy sees in a frame, and its chunk of actions by Sightline."""
    policy = Policy.load(weights, replan_every=1)
    config = policy.config
    sizes = [224 if camera == "global" else 84 for camera in policy.cameras]
    pictures = {c: rng.integers(0, 256, (s, s, 3), np.uint8) for c, s in zip(policy.cameras, sizes, strict=True)}
    numbers = {name: rng.uniform(-1, 1, shape).astype(np.float32) for name, shape in config.extras.items()}
    numbers["joints"] = np.zeros(len(config.joint_names), np.float32)
    feed = {f"image_{camera}": picture[None] for camera, picture in pictures.items()}
    feed |= {name: values[None] for name, values in numbers.items()}
    return feed, lambda: policy.act({"images": pictures, **numbers})


def of_segmentation(
    weights: Path, rng: np.random.Generator, windows: bool
) -> tuple[dict[str, np.ndarray], Callable[[], np.ndarray]]:
    """An image, or a window of a volume, and its probabilities by Sightline, which also makes its mask."""
    model = load_model(weights)
    config = model.config
    if config.spatial_dims == 3:
        window = rng.integers(0, 256, (1, *(config.window or ())), np.uint8)
        return {"windows": window}, lambda: _probabilities(model, torch.from_numpy(window)[None], False)
    picture = rng.integers(0, 256, (224, 224, 3)[: 3 if config.image_channels == 3 else 2], np.uint8)
    size = config.image_size or picture.shape[:2]

    def segment() -> np.ndarray:
        small = torch.from_numpy(resized(Image.fromarray(picture), size).reshape(*size, -1).copy())
        found = _probabilities(model, small.permute(2, 0, 1)[None], windows)
        mask = Image.fromarray(found[0].argmax(axis=0).astype(np.uint8))
        mask.resize(picture.shape[1::-1], Image.Resampling.NEAREST)
        return found

    return {"images": picture[None]}, segment


def _probabilities(model: SegmentationModel, images: torch.Tensor, windows: bool) -> np.ndarray:
    with torch.inference_mode():
        return model.probabilities(images, windows=windows).numpy()


def ways(weights: Path, room: Path, windows: bool, threads: int) -> tuple[str, Ways] | None:
    """The kind of a model, and ways to put one sample through it; None where it has no ``windows``."""
    program, says = open_program(weights, windows)
    if windows and not (isinstance(program, SegmentationProgram) and program.window):
        return None
    rng, kind = np.random.default_rng(0), says["kind"]
    if kind == "encoder":
        feed, ours = of_encoder(weights, rng)
    elif kind == "policy":
        feed, ours = of_policy(weights, rng)
    else:
        feed, ours = of_segmentation(weights, rng, windows)
    output, found = room / f"{weights.stem}{windows}.onnx", {"sightline": ours}
    export_model(weights, output, windows)
    for runtime in RUNTIMES:
        run = exported(output, runtime, threads)
        found[runtime] = lambda run=run: run(feed)[0, 0] if kind == "policy" else run(feed)
    return f"{kind}{', with windows' if windows else ''}", found


def check_equal(kind: str, found: Ways) -> None:
    """End with a line where a way gives another result than ours."""
    results = {name: call() for name, call in found.items()}
    ours = results["sightline"]
    for name, result in results.items():
        difference = float(np.abs(result - ours).max() / np.abs(ours).max())
        if not difference <= TOLERANCE:
            raise SystemExit(f"latency: error: {kind}: the result of {name} differs by {difference:.2g} of the largest")


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
                if (made := ways(weights, Path(folder), windows, threads)) is None:
                    continue
                kind, found = made
                check_equal(kind, found)
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
