"""Extraction of grids against public tools' ways, and of 1 % new photographs against all of them again.

    python benchmarks/clip_extraction.py [--quick] [--photographs FOLDER]

The stage's function is timed with everything: loading the model, hashing, decoding, writing. The scripts are given the
model loaded. The bound is the model on images in memory, in our precision.
"""

import shutil

import open_clip
import timm
import torch
from measuring import Bench, Row, command, in_turn, per, scratch_in
from peers.clip_scripts import LastMap, by_loader, one_by_one
from PIL import Image
from torchvision.io import ImageReadMode, decode_jpeg, read_file

from sightline.clip import GridParams
from sightline.clip.extraction import extract_grids
from sightline.clip.networks import load_feature_network
from sightline.clip.photographs import prepare
from sightline.clip.tokens import GridEncoder
from sightline.clip.weights import load_image_tower
from sightline.training.processes import process_device

TINY = GridParams(model="ViT-S-16", image_size=32, grid=2)


def rows(bench: Bench) -> list[Row]:
    """Rows of the extraction, of decoding, and of extracting what is new."""
    return [*_extraction(bench), _by_timm(bench), _decoding(bench), _incremental(bench)]


def _by_timm(bench: Bench) -> Row:
    params, device = GridParams(**GridParams.entries["efficientnet"]), process_device()
    if bench.quick:
        params = params.model_copy(update={"image_size": 64, "grid": 2})
    many = bench.size(384 if device.type == "cpu" else 8192, 4)
    folder = bench.photograph_folder("for_timm", many)
    paths, encoder, tower = sorted(folder.iterdir()), GridEncoder(params, device), load_feature_network(params)
    images = torch.stack([prepare(path, encoder.preparation) for path in paths])
    visual = LastMap(tower.network.to(device))
    size = tower.image_size
    transform = timm.data.create_transform(size, mean=tower.mean, std=tower.std, interpolation="bicubic", crop_pct=1.0)

    def stage() -> None:
        with scratch_in(bench.room):
            extract_grids([folder], bench.room / "extracted.hdf5", params)

    seconds = in_turn(
        {
            "stage": stage,
            "loader": lambda: by_loader(paths, bench.room / "all.npy", visual, transform, params.grid),
            "model": lambda: encoder.encode(images),
        },
        bench.size(3, 1),
        warm=False,
    )
    ours, peer, model = (per(seconds[name], many) for name in ("stage", "loader", "model"))
    work, between = f"grids of {many} photographs, each, {params.model}", "starting up, decoding, hashing, writing"
    return Row(work, "ms", ours, peer, "DataLoader, fp32", model, "the model, images in memory", between)


def _extraction(bench: Bench) -> list[Row]:
    params, device = TINY if bench.quick else GridParams(), process_device()
    many, some, few = (384, 16, 8) if device.type == "cpu" else (8192, 2048, 512)
    many, some, few = bench.size(many, 4), bench.size(some, 2), bench.size(few, 2)
    folder = bench.photograph_folder("extracted", many)
    paths, encoder = sorted(folder.iterdir()), GridEncoder(params, device)
    held = bench.size(many // 4, many)
    images = torch.stack([prepare(path, encoder.preparation) for path in paths[:held]])
    tower = load_image_tower(params)
    tower.visual.output_tokens = True
    visual, transform = tower.visual.to(device), open_clip.image_transform(tower.image_size, False)

    def stage() -> None:
        with scratch_in(bench.room):
            extract_grids([folder], bench.room / "extracted.hdf5", params)

    seconds = in_turn(
        {
            "stage": stage,
            "script": lambda: one_by_one(paths[:few], bench.room / "npz", visual, transform, params.grid),
            "loader": lambda: by_loader(paths[:some], bench.room / "all.npy", visual, transform, params.grid),
            "model": lambda: encoder.encode(images),
        },
        bench.size(3, 1),
        warm=False,
    )
    ours, model = per(seconds["stage"], many), per(seconds["model"], held)
    work, between = f"CLIP grids of {many} photographs, each, {params.model}", "starting up, decoding, hashing, writing"
    bound = "the model, images in memory"
    return [
        Row(work, "ms", ours, per(seconds["script"], few), "one by one, fp32, npz", model, bound, between),
        Row(work, "ms", ours, per(seconds["loader"], some), "DataLoader, fp32", model, bound, between),
    ]


def _decoding(bench: Bench) -> Row:
    paths = sorted(bench.photograph_folder("decoded", bench.size(100, 4)).iterdir())
    preparation = GridEncoder(TINY, process_device()).preparation
    size = bench.size(224, 32)
    preparation = type(preparation)(size, preparation.resize_mode, preparation.interpolation)
    transform = open_clip.image_transform(size, False)
    seconds = in_turn(
        {
            "ours": lambda: [prepare(path, preparation) for path in paths],
            "pillow": lambda: [transform(Image.open(path)) for path in paths],
            "decode": lambda: [decode_jpeg(read_file(str(path)), ImageReadMode.RGB) for path in paths],
        },
        bench.size(5, 1),
    )
    ours, pillow, bare = (per(seconds[name], len(paths)) for name in ("ours", "pillow", "decode"))
    work = "decode and resize a photograph for CLIP, one core"
    return Row(
        work, "ms", ours, pillow, "open_clip's transform", bare, "decoding alone", "resizing, the checks of a file"
    )


def _incremental(bench: Bench) -> Row:
    params, device = TINY if bench.quick else GridParams(model="ViT-B-32"), process_device()
    count = bench.size(100 if device.type == "cpu" else 10_000, 4)
    new, rounds = max(1, count // 100), bench.size(2, 1)
    folder = bench.photograph_folder("growing", count)
    later = sorted(bench.photograph_folder("later", rounds * new, count).iterdir())
    encoder = GridEncoder(params, device)
    images = torch.stack([prepare(path, encoder.preparation) for path in later[:new]])
    output, elsewhere = bench.room / "growing.hdf5", bench.room / "elsewhere"
    with scratch_in(bench.room):
        extract_grids([folder], output, params)

        def some_new() -> None:
            for _ in range(new):
                shutil.move(later.pop(), folder)
            extract_grids([folder], output, params)

        def all_again() -> None:
            with scratch_in(elsewhere):
                extract_grids([folder], bench.room / "again.hdf5", params)

        ways = {"new": some_new, "all": all_again, "model": lambda: encoder.encode(images)}
        seconds = in_turn(ways, rounds, warm=False)
    work = f"CLIP grids, {params.model}, where {new} of {count} photographs {'is' if new == 1 else 'are'} new"
    between = "starting up, loading the model, hashing all files, writing the store anew"
    bound = "the model on what is new"
    return Row(work, "s", seconds["new"], seconds["all"], "all again", seconds["model"], bound, between)


if __name__ == "__main__":
    command(__doc__, rows)
