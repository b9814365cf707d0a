"""What the drift guard and the embeddings say of shifted demos: other episodes, other light, a camera elsewhere.

    python benchmarks/drift.py [--write docs/drift.md] [--processes N]

To be run in the project's root after ``dvc repro``; half an hour on two cores. Recordings and their features are kept
in ``runs/drift``: what is there is not made again. ``--write`` puts the tables between their marks in a page.
"""

import json
import os
import re
import subprocess
import sys
from argparse import ArgumentParser
from pathlib import Path
from typing import Any

from running import put

PLACE = Path("runs/drift")
KNOWN = Path("data/demo")
OTHER = {"simulate.seed": 1, "render.seed": 1}
VARIANTS: dict[str, dict[str, float]] = {
    "other episodes": OTHER,
    "half the light": OTHER | {"render.lamp": 0.5},
    "camera 10 cm aside": OTHER | {"render.camera_shift_m": 0.1},
    "camera 40 cm aside": OTHER | {"render.camera_shift_m": 0.4, "simulate.episodes": 6},
}
MODALITIES = ("joints", "rgb/global", "rgb/left_wrist", "rgb/right_wrist", "depth", "masks")
CLIP = "--model ViT-S-32 --set grids.pretrained=random"  # small, for two cores


def run(*command: str | Path) -> str:
    """Run a command of the project -> what it says to standard error."""
    done = subprocess.run([sys.executable, *map(str, command)], env=os.environ | {"DVC_ROOT": str(PLACE)},
                          stderr=subprocess.PIPE, text=True, check=False)  # fmt: skip
    if done.returncode:
        raise SystemExit(done.stderr)
    return done.stderr


def record(folder: Path, changes: dict[str, float], processes: list[str]) -> None:
    """Simulate and render a demo."""
    if (folder / "recording.json").is_file():
        return
    settings = {part: [f"--set={key}={value}" for key, value in changes.items() if part in key]
                for part in ("simulate", "render")}  # fmt: skip
    outputs = ("--frames", folder / "frames.parquet", "--states", folder / "states.hdf5")
    run("stages/simulate.py", *outputs, *settings["simulate"], *processes)
    run("stages/render.py", "--states", folder / "states.hdf5", "--out", folder, *settings["render"], *processes)


def features(recording: Path, folder: Path) -> None:
    """Depth embeddings by the pipeline's encoder, and CLIP grids with random weights."""
    if not (folder / "depth.hdf5").is_file():
        run("-m", "sightline.predict", "embed", "models/depth/encoder.safetensors", recording, folder / "depth.hdf5")
    if not (folder / "clip.hdf5").is_file():
        run("stages/clip_grids.py", recording / "rgb/global", folder / "clip.hdf5", *CLIP.split())


def drift(kind: str, folder: Path) -> dict[str, Any]:
    """Figures of ``sightline.validation.drift``."""
    index = "data/index/frames.parquet"
    files = (PLACE / f"known/{kind}.hdf5", folder / f"{kind}.hdf5")
    run("-m", "sightline.validation.drift", *files, "--index", index, "--metrics-dir", folder / kind)
    return json.loads((folder / kind / "details.json").read_text())


def main() -> None:
    """Measure, and print or write the tables."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--write", type=Path, metavar="PAGE", help="put the tables there (default: print)")
    parser.add_argument("--processes", type=int, help="at a time (default: one per core)")
    args = parser.parse_args()
    processes = ["--processes", str(args.processes)] if args.processes else []
    reference, said = PLACE / "known", []
    run("stages/validate.py", KNOWN, reference / "index", "--metrics-dir", reference, *processes)
    features(KNOWN, reference)
    frames = ["| | " + " | ".join(MODALITIES) + " |", "|---" * (len(MODALITIES) + 1) + "|"]
    codes = ["| | depth: Frechet | far share | CLIP: Frechet | far share |", "|---|---|---|---|---|"]
    for name, changes in VARIANTS.items():
        folder = PLACE / name.replace(" ", "_")
        record(folder, changes, processes)
        heard = run("stages/validate.py", folder, folder / "index", "--metrics-dir", folder, "--reference",
                    reference / "summary.json", *processes)  # fmt: skip
        said += [line for line in heard.splitlines() if re.match(f"warning: {folder}/(rgb/global|depth): ", line)]
        counts = json.loads((folder / "drift.json").read_text())
        shares = [counts[kind]["outside"] / counts[kind]["frames"] for kind in MODALITIES]
        frames.append(f"| {name} | " + " | ".join(f"{100 * share:.1f} %" for share in shares) + " |")
        features(folder, folder)
        measured = [drift(kind, folder) for kind in ("depth", "clip")]
        cells = [f"{one['frechet']:.2f} | {100 * one['far_share']:.1f} %" for one in measured]
        codes.append(f"| {name} | {' | '.join(cells)} |")
    codes.append("| the reference within itself | " + " | ".join(
        f"{one['frechet_within']:.2f} | 1.0 %" for one in measured) + " |")  # fmt: skip
    tables = {"frames": "\n".join(frames), "embeddings": "\n".join(codes), "warnings": "\n".join(["```", *said, "```"])}
    for name, table in tables.items():
        put(table, name, args.write)


if __name__ == "__main__":
    main()
