"""CLIP grid features: extraction, reading, and training from them, each against what one would do otherwise.

    python benchmarks/clip_grids.py extract FOLDER [--images 96] [--repeats 3]
    python benchmarks/clip_grids.py read [--images 5000] [--batches 40]
    python benchmarks/clip_grids.py train FOLDER [--steps 4]

``extract``: images per second of the stage's function against the bare model on images in memory, in the same
precision, and against a script that takes one photograph after the other in float32 and writes an npz file for each,
as public extractors do. Half of each time is spent on half of the images, so that starting up does not count.
``read``: shuffled batches of 150 grids against a memory-mapped array, and against the layout of one compressed data set
for each image in a file that is opened for every sample; opening a store as large as COCO's training set.
``train``: steps of a small captioning model on stored grids against the same steps with CLIP run in each.
Everything is measured in turn in one run; FOLDER holds photographs.
"""

import os
import shutil
import statistics
import tempfile
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import open_clip
import torch
from PIL import Image
from torch import Tensor, nn

from sightline.clip import ClipParams, GridStore, LiveGrids
from sightline.clip.extraction import extract_grids
from sightline.clip.photographs import list_photographs, prepare
from sightline.clip.store import write_store
from sightline.clip.tokens import GridEncoder
from sightline.clip.weights import load_image_tower
from sightline.training.precision import use_bf16
from sightline.training.processes import process_device

COCO_TRAIN = 118_287  # images
BATCH = 150


def timed(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def slope(function: Callable[[int], object], count: int) -> float:
    """Units per second between half of ``count`` and all of it: what a start costs falls out."""
    return (count - count // 2) / (timed(lambda: function(count)) - timed(lambda: function(count // 2)))


def extract(args: Namespace, room: Path) -> None:
    paths = list(list_photographs([args.folder]).values())
    for i in range(args.images):  # links, because equal content would be computed once
        (room / "photos").mkdir(exist_ok=True)
        source, copy = paths[i % len(paths)], room / f"photos/{i:06d}{paths[i % len(paths)].suffix}"
        copy.write_bytes(source.read_bytes() + str(i).encode())  # decoders stop before it
    half = room / "half"
    half.mkdir()
    for i, path in enumerate(sorted((room / "photos").iterdir())):
        if i < args.images // 2:
            (half / path.name).symlink_to(path)
    params, device = ClipParams(), process_device()
    encoder = GridEncoder(params, device)
    images = torch.stack([prepare(path, encoder.preparation) for path in sorted((room / "photos").iterdir())])

    def stage(count: int) -> None:
        shutil.rmtree(room / ".scratch", ignore_errors=True)
        extract_grids([half if count < args.images else room / "photos"], room / "g.hdf5", params)

    def one_by_one(count: int) -> None:
        tower = load_image_tower(params.model, params.pretrained).visual.to(device)
        tower.output_tokens = True
        transform = open_clip.image_transform(224, False)
        for path in sorted((room / "photos").iterdir())[:count]:
            with Image.open(path) as image, torch.inference_mode():
                tokens = tower(transform(image).to(device)[None])[1]
                maps = nn.functional.avg_pool2d(tokens.transpose(1, 2).reshape(1, -1, 14, 14), 2)
            np.savez_compressed(room / "one.npz", features=maps.flatten(2).transpose(1, 2)[0].cpu().numpy())

    with torch.inference_mode():
        encoder.encode(images[:8])
    rates: dict[str, list[float]] = {"bare": [], "stage": [], "script": []}
    for _ in range(args.repeats):
        rates["bare"].append(slope(lambda count: encoder.encode(images[:count]), args.images))
        rates["stage"].append(slope(stage, args.images))
        rates["script"].append(slope(one_by_one, max(4, args.images // 4)))
    bare, ours, script = (statistics.median(rates[name]) for name in ("bare", "stage", "script"))
    decode = args.images / timed(lambda: [prepare(path, encoder.preparation) for path in (room / "photos").iterdir()])
    transform = open_clip.image_transform(224, False)
    pillow = args.images / timed(lambda: [transform(Image.open(path)) for path in (room / "photos").iterdir()])
    kind = "bf16" if use_bf16(params.precision) else "fp32"
    print(f"{args.images} photographs, ViT-B-16 on {device}, {kind}, median of {args.repeats}")
    print(f"  bare model, images in memory      {bare:8.2f} img/s")
    print(f"  stage, decoding and writing       {ours:8.2f} img/s   {ours / bare:.0%} of the bare model")
    print(f"  script, one by one, fp32, npz     {script:8.2f} img/s   the stage is {ours / script:.1f} times as fast")
    print(
        f"  decoding and resizing, one core   {decode:8.0f} img/s   {decode / pillow:.1f} times open_clip's transform"
    )


def read(args: Namespace, room: Path) -> None:
    rng = np.random.default_rng(0)
    ids, shape = np.arange(args.images) * 3 + 1, (49, 768)
    grids = rng.normal(size=(args.images, *shape)).astype(np.float16)
    attributes = {"model": "ViT-B-16", "tokens": "ln_post", "grid": 7, "dtype": "float16"}
    hashes = [b"0" * 32] * args.images
    for kind in ("none", "gzip", "blosc2"):
        write_store(room / f"{kind}.hdf5", ids, hashes, [], iter([grids]), shape, attributes, True, kind)
    np.save(room / "plain.npy", grids)
    with h5py.File(room / "document.hdf5", "w") as file:
        for image_id, grid in zip(ids, grids, strict=True):
            file.create_dataset(f"{image_id}_grids", data=grid, compression="gzip")
    batches = [rng.permutation(args.images)[:BATCH] for _ in range(args.batches)]
    plain = np.load(room / "plain.npy", mmap_mode="r")

    def from_document() -> None:
        for rows in batches[: max(1, args.batches // 10)]:
            out = []
            for image_id in ids[rows]:
                with h5py.File(room / "document.hdf5", "r") as file:
                    out.append(file[f"{image_id}_grids"][()])
            np.stack(out)

    stores = {kind: GridStore(room / f"{kind}.hdf5") for kind in ("none", "gzip", "blosc2")}
    ways: dict[str, tuple[Callable[[], object], int]] = {
        "memory-mapped array": (lambda: [plain[rows] for rows in batches], len(batches)),
        "store": (lambda: [stores["none"].read(ids[rows]) for rows in batches], len(batches)),
        "store, gzip": (lambda: [stores["gzip"].read(ids[rows]) for rows in batches[:4]], 4),
        "store, blosc2": (lambda: [stores["blosc2"].read(ids[rows]) for rows in batches[:4]], 4),
        "a gzip data set per image": (from_document, max(1, args.batches // 10)),
    }
    milliseconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(5):
        for name, (way, count) in ways.items():
            milliseconds[name].append(1e3 * timed(way) / count)
    found = {name: statistics.median(values) for name, values in milliseconds.items()}
    print(f"shuffled batches of {BATCH} of {args.images} grids of 49 x 768 float16, warm, median of 5")
    for name, value in found.items():
        print(f"  {name:26} {value:8.2f} ms   store is {value / found['store']:.2f} times as fast")
    for name in ("gzip", "blosc2"):
        size = (room / f"{name}.hdf5").stat().st_size / (room / "none.hdf5").stat().st_size
        print(f"  {name:26} {1 - size:8.1%} smaller (of normal noise)")
    many, empty = np.arange(COCO_TRAIN), iter([grids[:1]])
    store = room / "many.hdf5"
    write_store(store, many, [b"0" * 32] * COCO_TRAIN, [], empty, shape, attributes, True, "none")
    first = statistics.median(timed(lambda: GridStore(store)[77_777]) for _ in range(5))
    print(f"  opening {COCO_TRAIN:,} images and reading the first grid: {1e3 * first:.1f} ms")
    write_store(
        room / "unkeyed.hdf5", many, [b"0" * 32] * COCO_TRAIN, [], iter([grids[:1]]), shape, attributes, False, "none"
    )
    more = store.stat().st_size / (room / "unkeyed.hdf5").stat().st_size - 1
    print(f"  a key for each image makes that file {more:.2%} larger")


class Captioner(nn.Module):
    """Three transformer layers over the grid, three over the words: about 33 million parameters."""

    def __init__(self, channels: int = 768, width: int = 512, words: int = 10_201) -> None:
        super().__init__()
        self.enter, self.words = nn.Linear(channels, width), nn.Embedding(words, width)
        self.transformer = nn.Transformer(width, 8, 3, 3, 2048, batch_first=True)
        self.leave = nn.Linear(width, words)

    def forward(self, grids: Tensor, words: Tensor) -> Tensor:
        return self.leave(self.transformer(self.enter(grids), self.words(words)))


def train(args: Namespace, room: Path) -> None:
    params, device = ClipParams(), process_device()
    extract_grids([args.folder], room / "g.hdf5", params)
    stored, live = GridStore(room / "g.hdf5"), LiveGrids([args.folder], params)
    network = Captioner().to(device)
    optimizer = torch.optim.AdamW(network.parameters(), fused=True)
    rng, words = np.random.default_rng(0), torch.randint(0, 10_201, (32, 20), device=device)

    def steps(source: GridStore | LiveGrids) -> None:
        for _ in range(args.steps):
            grids = source.read_tensor(rng.choice(source.image_ids, 32), device)
            with torch.autocast(device.type, torch.bfloat16, enabled=use_bf16("auto")):
                loss = nn.functional.cross_entropy(network(grids.float(), words).flatten(0, 1), words.flatten())
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()

    steps(stored)
    from_store, from_live = [], []
    for _ in range(3):
        from_store.append(timed(lambda: steps(stored)) / args.steps)
        from_live.append(timed(lambda: steps(live)) / args.steps)
    ours, theirs = statistics.median(from_store), statistics.median(from_live)
    count = sum(p.numel() for p in network.parameters()) / 1e6
    print(f"steps of 32 images, captioning model of {count:.1f} M parameters on {device}, median of 3")
    print(f"  live CLIP     {1e3 * theirs:8.0f} ms")
    print(f"  stored grids  {1e3 * ours:8.0f} ms   {theirs / ours:.1f} times as fast")


def main() -> None:
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("extract", help="extraction against the bare model and a plain script")
    one.add_argument("folder", type=Path)
    one.add_argument("--images", type=int, default=96)
    one.add_argument("--repeats", type=int, default=3)
    two = commands.add_parser("read", help="reading against a memory map and compressed data sets")
    two.add_argument("--images", type=int, default=5000)
    two.add_argument("--batches", type=int, default=40)
    three = commands.add_parser("train", help="training from stored grids against live CLIP")
    three.add_argument("folder", type=Path)
    three.add_argument("--steps", type=int, default=4)
    args = parser.parse_args()
    room = Path(tempfile.mkdtemp())
    os.environ["DVC_ROOT"] = str(room)  # scratch state goes there, not into the project
    try:
        {"extract": extract, "read": read, "train": train}[args.command](args, room)
    finally:
        shutil.rmtree(room)


if __name__ == "__main__":
    main()
