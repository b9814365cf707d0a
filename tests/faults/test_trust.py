"""Files from strangers: nothing in them is run, nothing outside them is read or written, and one line says why not."""

import io
import json
import os
import pickle
import re
import shlex
import struct
import zlib
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from bad_input import edited_json, own
from PIL import Image
from world import COMMANDS, contents, copy_world, run_command

from sightline.importers.lerobot_video import VideoClip, picture_times
from sightline.report.__main__ import write_report
from sightline.training.card import read_card, write_card, write_measured_card


class Payload:
    """Makes a file when it is unpickled by whoever runs what a pickle holds."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


@pytest.fixture
def place(world, tmp_path) -> Path:
    return copy_world(world, tmp_path / "w")


def refused(place: Path, command: str, *words: str, arguments: str | None = None) -> None:
    """The command says one thing with ``words`` in it, and writes nothing."""
    before = contents(place)
    said = run_command(place, command, arguments)
    assert said.code == 1, said.stderr
    assert all(word in said.error for word in words), said.error
    assert contents(place) == before


# ---------------------------------------------------------------- programs in data


def write_evil(path: Path, kind: str, marker: Path) -> None:
    if kind == "pickle":
        path.write_bytes(pickle.dumps({"state_dict": Payload(marker)}))
    else:
        torch.save({"state_dict": Payload(marker)}, path, _use_new_zipfile_serialization=kind == "zip")


TORCH_READERS = {
    "extract_encoder": "evil --output out/e.safetensors",
    "embed": "evil depth.hdf5 out/e.hdf5",
    "predict embed": "evil rec/depth out.hdf5",
    "predict act": "evil rec out.parquet",
    "predict segment": "evil rec/rgb/global out",
    "train_autoencoder": COMMANDS["train_autoencoder"] + " --resume evil",
    "train_fusion": COMMANDS["train_fusion"].replace("joints_only", "stacked") + " --set fusion.pretrained=evil",
    "train_segmentation": COMMANDS["train_segmentation"] + " --resume evil",
    "clip_grids": COMMANDS["clip_grids"] + " --set grids.pretrained=./evil",
}


@pytest.mark.parametrize("kind", ["zip", "legacy", "pickle"])
def test_the_payload_would_run_where_pickles_are_run(kind, tmp_path):
    write_evil(tmp_path / "evil", kind, tmp_path / "marker")
    if kind == "pickle":
        pickle.loads((tmp_path / "evil").read_bytes())
    else:
        torch.load(tmp_path / "evil", weights_only=False)
    assert (tmp_path / "marker").is_dir()


SLOW = ("train_autoencoder", "train_fusion", "train_segmentation", "clip_grids")


@pytest.mark.parametrize(
    "command", [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in TORCH_READERS]
)
def test_a_program_in_a_model_file_is_not_run(command, place, tmp_path):
    for kind in ("zip", "legacy", "pickle"):
        for name in ("evil.pth", "evil.pt"):
            write_evil(place / name, kind, tmp_path / "marker")
            refused(place, command, name, arguments=TORCH_READERS[command].replace("evil", name))
            assert not (tmp_path / "marker").exists(), kind


@pytest.mark.slow
def test_a_program_in_perceptual_weights_is_not_run(place, tmp_path):
    write_evil(place / "evil.pth", "zip", tmp_path / "marker")
    options = "--perceptual-weights evil.pth --set train.perceptual_weight=0.1"
    refused(place, "train_autoencoder", "evil.pth", arguments=f"{COMMANDS['train_autoencoder']} {options}")
    assert not (tmp_path / "marker").exists()


def test_a_torchscript_program_is_not_run(place):
    torch.jit.script(torch.nn.Linear(2, 2)).save(str(place / "evil.pt"))
    refused(place, "clip_grids", "evil.pt", arguments=COMMANDS["clip_grids"] + " --set grids.pretrained=./evil.pt")
    refused(place, "extract_encoder", "evil.pt", arguments="evil.pt --output out/e.safetensors")


def test_objects_in_arrays_are_not_unpickled(place, tmp_path):
    evil = np.array([Payload(tmp_path / "marker")], dtype=object)
    np.savez(place / "evil.npz", image=evil, label=np.zeros((1, 8, 8), np.uint8))
    np.save(place / "evil.npy", evil)
    for name, words in (("evil.npz", "not an .npz file of plain arrays"), ("evil.npy", "is an .npy file of one array")):
        arguments = f"out/m.safetensors --metrics-dir out/m --arrays {name}"
        refused(place, "train_segmentation", f"{name}: {words}", arguments=arguments)
    assert not (tmp_path / "marker").exists()
    np.load(place / "evil.npy", allow_pickle=True)  # who does ask for it
    assert (tmp_path / "marker").is_dir()


# ---------------------------------------------------------------- HDF5 that reaches further than its file

STORES = {  # command: file, data set that it reads
    "train_autoencoder": ("depth.hdf5", "frame_id"),
    "embed": ("depth.hdf5", "depth"),
    "evaluate": ("depth.hdf5", "valid"),
    "train_fusion": ("views.hdf5", "joints"),
    "evaluate_fusion": ("views.hdf5", "images"),
    "verify_clip_grids": ("clip.hdf5", "image_ids"),
    "render": ("states.hdf5", "episode_000000/qpos"),
    "import_hdf5": ("aloha/episode_1.hdf5", "observations/images/cam_high"),
}


@pytest.mark.parametrize("command", STORES)
@pytest.mark.parametrize("kind", ["link", "virtual", "external"])
def test_values_that_lie_in_another_file_are_not_read(command, kind, place, tmp_path):
    name, key = STORES[command]
    secret = tmp_path / "secret.hdf5"
    secret.write_bytes((place / name).read_bytes())
    with h5py.File(own(place / name), "r+") as file:
        shape, dtype = file[key].shape, file[key].dtype
        del file[key]
        if kind == "link":
            file[key] = h5py.ExternalLink(str(secret), key)
        elif kind == "virtual":
            layout = h5py.VirtualLayout(shape, dtype)
            layout[...] = h5py.VirtualSource(str(secret), key, shape)
            file.create_virtual_dataset(key, layout)
        else:
            file.create_dataset(key, shape, dtype, external=[(str(secret), 0, h5py.h5f.UNLIMITED)])
    refused(place, command, name, "another file")


@pytest.mark.parametrize("command", STORES)
def test_absurd_shapes_are_refused_before_memory_is_asked_for(command, place):
    name, key = STORES[command]
    with h5py.File(own(place / name), "r+") as file:
        shape, dtype = (2**50 // file[key].dtype.itemsize, *file[key].shape[1:]), file[key].dtype
        del file[key]
        file.create_dataset(key, shape, dtype, chunks=(1, *shape[1:]))
    refused(place, command, name, f"{key}: declares ", "but the file has ")


@pytest.mark.parametrize(
    ("command", "name", "key", "changes"),
    [
        ("embed", "encoder.safetensors", "sightline", {"latent_dim": 64 * 10**12, "scene_dim": 64 * 10**12}),
        ("predict embed", "encoder.safetensors", "sightline", {"input_channels": 10**12}),
        ("predict act", "fusion.safetensors", "sightline_fusion", {"fusion_dim": 2 * 10**14}),
        ("predict act", "fusion.safetensors", "sightline_fusion", {"steps": 10**15}),
        ("predict segment", "segmentation.safetensors", "sightline_segmentation", {"channels": [10**13] * 6}),
    ],
)
def test_a_header_that_asks_for_a_huge_network_gets_no_memory(command, name, key, changes, place):
    data = (place / name).read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + length])
    config = json.loads(header["__metadata__"][key])
    config.get("network", config).update(changes)
    header["__metadata__"][key] = json.dumps(config)
    text = json.dumps(header).encode()
    own(place / name).write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])
    refused(place, command, f"{name}: ", "not")


# ---------------------------------------------------------------- pictures that grow


def png_header(width: int, height: int, bits: int, colour: int) -> bytes:
    """A PNG that declares a size, with a few bytes of pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(10**6))) + chunk(b"IEND", b"")


def tiff_header(width: int, height: int) -> bytes:
    """A TIFF of one uint16 channel that declares a size, with a few bytes of pixels."""
    tags = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, 16), (259, 3, 1, 1), (262, 3, 1, 1), (273, 4, 1, 200),
            (277, 3, 1, 1), (278, 4, 1, height), (279, 4, 1, 2 * width * height % 2**32)]  # fmt: skip
    entries = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    return (b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4)).ljust(1000, b"\0")


@pytest.mark.parametrize(
    ("command", "name", "content"),
    [
        ("validate", "rec/depth/000008.png", png_header(12000, 9000, 16, 0)),
        ("validate", "rec/depth/000008.png", png_header(2**31 - 1, 2**31 - 1, 16, 0)),
        ("validate", "rec/rgb/global/000008.png", png_header(12000, 9000, 8, 2)),
        ("normalize", "rec/depth/000008.png", png_header(12000, 9000, 16, 0)),
        ("normalize", "rec/depth/000008.png", tiff_header(12000, 9000)),
        ("normalize", "rec/depth/000008.png", tiff_header(2**31 - 1, 2**31 - 1)),
        ("pack_views", "rec/rgb/global/000008.png", png_header(12000, 9000, 8, 2)),
        ("clip_grids", "rec/rgb/global/000008.png", png_header(12000, 9000, 8, 2)),
        ("predict embed", "rec/depth/000008.png", png_header(12000, 9000, 16, 0)),
        ("predict segment", "rec/rgb/global/000008.png", png_header(12000, 9000, 8, 2)),
    ],
)  # fmt: skip
def test_decompression_bombs_are_refused_by_their_header(command, name, content, place):
    (place / name).unlink()
    (place / name).write_bytes(content)
    refused(place, command, name.split("/")[-1], "pixels")


def test_a_bomb_among_encoded_pictures_is_refused(place):
    bomb = np.frombuffer(png_header(12000, 9000, 8, 2), np.uint8)
    with h5py.File(own(place / "aloha/episode_1.hdf5"), "r+") as file:
        steps = len(file["action"])
        del file["observations/images/cam_high"]
        file["observations/images/cam_high"] = np.tile(bomb, (steps, 1))
    refused(place, "import_hdf5", "cam_high, picture 0", "12000 x 9000 pixels")


# ---------------------------------------------------------------- names

EVIL = "<script>alert(1)</script>\"' $(touch pwned) `touch pwned`"


def test_names_in_figures_do_not_become_html(place):
    figures = {EVIL: {EVIL: 0.5, "text": EVIL}, "baselines": {EVIL: {"nmse": 1.0}}, "nmse": 0.5}
    part = place / "metrics/evaluate/evil"
    part.mkdir(parents=True)
    (place / "params.yaml").write_text(json.dumps({"data": {"root": EVIL}, EVIL: EVIL}))
    stage = {"cmd": "true", "metrics": ["metrics/evaluate/evil/metrics.json"]}
    (place / "dvc.yaml").write_text(json.dumps({"stages": {"evaluate": stage}}))
    (part / "metrics.json").write_text(json.dumps(figures))
    name = EVIL.replace('"', '""')
    (part / "curves.csv").write_text(f'"{name}",loss,"{name}"\n0,1,2\n1,2,3\n')
    (part / "per_class.csv").write_text(f'class,dice\n"{name}",0.5\n')
    Image.new("RGB", (2, 2)).save(part / (EVIL.replace("/", "-") + ".png"))
    write_report(place, place / "report.html", [])
    text = re.sub(r'<script type="module">.*?</script>', "", (place / "report.html").read_text(), flags=re.DOTALL)
    assert text.count("&lt;script&gt;") >= 6
    assert "<script" not in text
    assert not list(place.rglob("pwned"))


def test_names_in_a_model_do_not_become_html_in_its_card(place):
    from sightline.segmentation.card import about_segmentation
    from sightline.segmentation.model import SegmentationConfig, SegmentationModel, save_model

    config = SegmentationConfig(classes=("background", EVIL), image_size=(32, 32), channels=(8,) * 6)
    save_model(place / "evil.safetensors", SegmentationModel(config))
    model = place / "evil.safetensors"
    write_card(model, about_segmentation(config), config.model_dump(mode="json"), np.array(["train"]), np.array([0]))
    write_measured_card(place / "card.md", read_card(model), {"baselines": {EVIL: {"nmse": 1.0}}, "nmse": 0.5})
    card = (place / "card.md").read_text()
    assert "\\<script\\>" in card
    assert "<script" not in card.replace("\\<script", "")


@pytest.mark.parametrize("name", ["../../secret", "/etc", "..", "-rf", "a/b", EVIL, "a\nb", ""])
def test_a_camera_of_a_recording_is_a_plain_name(name, place):
    edited_json("rec/recording.json", cameras=[name])(place)
    refused(place, "validate", "rec/recording.json: cameras.0: ", "names a folder")


@pytest.mark.slow
def test_odd_names_of_folders_and_files_are_only_names(world, tmp_path):
    folder = tmp_path / "a b $(touch pwned); ünï 数 \"q' `touch pwned`"
    folder.mkdir()
    place = copy_world(world, folder / "w")
    for path in sorted((place / "rec/depth").iterdir()):
        path.rename(path.with_name(f"$(touch pwned) 'ü\" {path.name}"))
    for command in ("validate", "normalize", "predict embed", "import_hdf5"):
        assert run_command(place, command).code == 0, command
    assert not list(tmp_path.rglob("pwned"))


def test_the_line_to_paste_after_an_import_is_quoted(place, capsys):
    from sightline.importers.demonstrations import ImportOptions
    from sightline.importers.episodes import import_hdf5

    target = place / "my $(touch pwned) recording"
    printed = import_hdf5(place / "aloha", target, ImportOptions(processes=1))
    (line,) = (line for line in printed.splitlines() if "add_recording" in line)
    assert shlex.split(line) == ["sightline", "add_recording", str(target)]


# ---------------------------------------------------------------- paths that lead elsewhere


def test_links_to_images_are_followed_wherever_they_lead(place, tmp_path):
    """As DVC's own into its cache, and those of a folder that somebody made of parts of another."""
    elsewhere = tmp_path / "elsewhere.png"
    (place / "rec/depth/000008.png").rename(elsewhere)
    (place / "rec/depth/000008.png").symlink_to(elsewhere)
    assert run_command(place, "normalize").code == 0
    elsewhere.unlink()
    for command in ("validate", "normalize"):
        said = run_command(place, command)
        assert said.code == 1
        assert "000008.png: a broken link" in said.error


def test_a_pipe_among_the_images_does_not_hang(place):
    os.mkfifo(place / "rec/depth/000099.png")
    refused(place, "validate", "000099.png: is not a file")
    refused(place, "normalize", "000099.png: is not a file")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"data_path": "../../secret/{episode_index}.parquet"}, "leaves the data set"),
        ({"data_path": "/etc/{episode_index}.parquet"}, "leaves the data set"),
        ({"video_path": "{video_key}/../../../../secret.mp4"}, "leaves the data set"),
        ({"data_path": "{episode_index:999999999d}"}, "cannot be filled in"),
        ({"data_path": "{episode_index.__class__.__mro__}"}, "cannot be filled in"),
    ],
)
def test_an_import_reads_only_its_data_set(change, words, place):
    edited_json("lerobot/meta/info.json", **change)(place)
    refused(place, "import_lerobot", "info.json", words)


@pytest.mark.parametrize("name", ["..", "a b", "$(touch pwned)", "<script>"])
def test_an_import_writes_only_to_its_destination(name, place):
    with h5py.File(own(place / "aloha/episode_0.hdf5"), "r+") as file:
        images = file["observations/images"]
        images[name.encode()] = images["cam_high"]
    refused(place, "import_hdf5", "names a folder" if name != ".." else "cam")
    assert (
        run_command(place, "import_hdf5", "aloha out/recording --camera observations/images/cam_high=../../x").code == 1
    )
    assert not list(place.rglob("pwned"))


def test_a_playlist_in_place_of_a_video_opens_nothing(place):
    (video,) = list((place / "lerobot").rglob("*left*/episode_000000.mp4")) or [None]
    assert video
    secret = place / "secret.ts"
    secret.write_bytes(video.read_bytes())
    video.unlink()
    video.write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{secret}\n#EXT-X-ENDLIST\n")
    refused(place, "import_lerobot", "episode_000000.mp4", "video")
    video.write_text(f"ffconcat version 1.0\nfile '{secret}'\n")
    refused(place, "import_lerobot", "episode_000000.mp4", "video")


def test_the_videos_that_are_read_are_those_of_lerobot(place):
    for path in sorted((place / "lerobot").rglob("*.mp4")):
        assert len(list(VideoClip(path, range(len(picture_times(path)[0]))))) > 0


def test_pictures_are_written_where_they_belong(place):
    """The bytes of a picture, not its format's name, decide how it is read."""
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4)).save(buffer, "GIF")
    (place / "rec/depth/000008.png").unlink()
    (place / "rec/depth/000008.png").write_bytes(buffer.getvalue())
    refused(place, "validate", "000008.png: not a uint16 depth image (GIF of mode ")
