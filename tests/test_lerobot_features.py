"""What a LeRobot set says about itself is heeded or named: depth, joint names, tasks, splits, further features."""

import io
import json
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pandas as pd
import pytest
from data_sets import EPISODES, FPS, HEIGHT, KEYS, STEPS, WIDTH, edit_info, encode, lerobot_v2, lerobot_v3, refused
from PIL import Image

from sightline.core.errors import UserError
from sightline.importers.lerobot import import_lerobot
from sightline.importers.lerobot_meta import Feature, joint_names
from sightline.importers.lerobot_pictures import millimetres
from sightline.importers.options import ImportOptions
from sightline.importers.pictures import decode_depth
from sightline.recording.frames import read_frames
from sightline.recording.layout import read_recording_info

DEPTH = "observation.images.front_depth"
COUNT = EPISODES * STEPS
ONE = ImportOptions(processes=1)
MM = ImportOptions(processes=1, depth_unit="mm")
ROWS = "data/chunk-000/file-000.parquet"


def depth_of(frame: int) -> np.ndarray:
    """Depth, uint16 [48, 64] of millimetres, unlike that of any other frame, with a hole."""
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    depth = (600 + 40 * frame + 3 * y + 2 * x).astype(np.uint16)
    depth[3:6, 4:9] = 0
    return depth


def tiff(pixels: np.ndarray, **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "TIFF", **options)
    return buffer.getvalue()


def array(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, pixels)
    return buffer.getvalue()


def exr(*planes: np.ndarray) -> bytes:
    """OpenEXR of one channel, or of three, float32 [H, W] each."""
    height, width = planes[0].shape
    codec = av.CodecContext.create("exr", "w")
    codec.width, codec.height, codec.time_base = width, height, Fraction(1, 30)
    codec.pix_fmt = "grayf32le" if len(planes) == 1 else "gbrpf32le"
    frame = av.VideoFrame(width, height, codec.pix_fmt)
    for plane, pixels in zip(frame.planes, planes, strict=True):
        rows = np.zeros((height, plane.line_size // 4), np.float32)
        rows[:, :width] = pixels
        plane.update(rows.tobytes())
    return b"".join(bytes(packet) for packet in [*codec.encode(frame), *codec.encode(None)])


def add_depth(root: Path, values: list[object] | None, dtype: str = "image", shape: tuple = (HEIGHT, WIDTH, 1), **info):
    edit_info(
        root,
        lambda i: i["features"].update(
            {DEPTH: {"dtype": dtype, "shape": shape, "info": {"is_depth_map": True} | info}}
        ),
    )
    if values is not None:
        pd.read_parquet(root / ROWS).assign(**{DEPTH: values}).to_parquet(root / ROWS, index=False)


def add_depth_video(
    root: Path, codec: str, pix_fmt: str, frames: list[np.ndarray], options=None, **info: object
) -> None:
    add_depth(root, None, "video", **info)
    path = root / "meta/episodes/chunk-000/file-000.parquet"
    table = pd.read_parquet(path)
    for part in ("chunk_index", "file_index", "from_timestamp"):
        table[f"videos/{DEPTH}/{part}"] = table[f"videos/{KEYS[0]}/{part}"]
    table.to_parquet(path, index=False)
    video = root / f"videos/{DEPTH}/chunk-000/file-000.mp4"
    video.parent.mkdir(parents=True)
    with av.open(str(video), "w", format="matroska" if codec == "ffv1" else "mp4") as container:
        stream = container.add_stream(codec, rate=FPS, options=options or {})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, pix_fmt
        for pixels in frames:
            frame = av.VideoFrame(WIDTH, HEIGHT, pix_fmt)
            for plane in frame.planes:
                plane.update(bytes(plane.buffer_size))
            line = np.zeros((HEIGHT, frame.planes[0].line_size // 2), "<u2")
            line[:, :WIDTH] = pixels
            frame.planes[0].update(line.tobytes())
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def check_depth(recording: Path, folder: str = "depth", expected: Callable[[int], np.ndarray] = depth_of) -> None:
    assert len(list((recording / folder).iterdir())) == COUNT
    for frame in range(COUNT):
        pixels = np.asarray(Image.open(recording / folder / f"{frame:06d}.png"))
        assert pixels.dtype == np.uint16
        assert np.array_equal(pixels, expected(frame)), frame


@pytest.fixture
def v3(tmp_path: Path) -> Path:
    return lerobot_v3(tmp_path / "set")


# Depth


STORED = {
    "PNG": lambda pixels: encode(pixels, "PNG"),
    "TIFF": tiff,
    "TIFF, deflated": lambda pixels: tiff(pixels, compression="tiff_deflate"),
}


@pytest.mark.parametrize("how", STORED)
def test_depth_of_whole_millimetres(how, v3, tmp_path):
    add_depth(v3, [{"bytes": STORED[how](depth_of(i)), "path": None} for i in range(COUNT)], depth_unit="mm")
    text = import_lerobot(v3, tmp_path / "recording", ONE)
    check_depth(tmp_path / "recording")
    depth = read_recording_info(tmp_path / "recording/recording.json").depth
    assert depth is not None
    assert (depth.unit_mm, depth.invalid) == (1, (0,))
    assert 600 <= depth.height_range[0] < depth.height_range[1] <= depth_of(COUNT - 1).max()
    assert "depth: counts of 1 mm" in text


def test_depth_of_metres(v3, tmp_path):
    metres = [depth_of(i).astype(np.float32) / 1000 for i in range(COUNT)]
    metres[1][0, 0], metres[2][0, 1], metres[3][0, 2] = np.nan, np.inf, -1
    add_depth(v3, [{"bytes": tiff(values), "path": None} for values in metres])
    refused(import_lerobot, v3, "meta/info.json", DEPTH, "--depth-unit m or mm", "--depth none")
    import_lerobot(v3, tmp_path / "recording", ImportOptions(processes=1, depth_unit="m"))

    def expected(frame: int) -> np.ndarray:
        counts = depth_of(frame)
        if frame in (1, 2, 3):
            counts[0, frame - 1] = 0
        return counts

    check_depth(tmp_path / "recording", expected=expected)
    refused(import_lerobot, v3, "--depth nothing", DEPTH, depth=["nothing"])


@pytest.mark.parametrize("suffix", [".npy", ".exr", ".tiff"])
def test_depth_of_metres_in_files_of_their_own(suffix, tmp_path):
    source = lerobot_v2(tmp_path / "set", dtype="image")
    add_depth(source, None)
    write = {".npy": array, ".exr": exr, ".tiff": tiff}[suffix]
    for frame in range(COUNT):
        path = source / f"images/{DEPTH}/episode_{frame // STEPS:06d}/frame_{frame % STEPS:06d}{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(write(depth_of(frame).astype(np.float32) / 1000))
    refused(import_lerobot, source, "--depth-unit m or mm")
    import_lerobot(source, tmp_path / "recording", ImportOptions(processes=1, depth_unit="m"))
    check_depth(tmp_path / "recording")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"\x93NUMPY", "not a plain array of numpy"), (b"\x76\x2f\x31\x01 and no more", "a broken OpenEXR file"),
    ],
)  # fmt: skip
def test_broken_files_of_metres_are_one_line(data, words):
    with pytest.raises(UserError, match=rf"^frame 3: {words}"):
        decode_depth(data, "frame 3")


def test_colours_in_openexr_are_no_depth():
    pixels = np.linspace(0.5, 3, 12, dtype=np.float32).reshape(3, 4)
    assert np.array_equal(decode_depth(exr(pixels, pixels, pixels), "x"), pixels)
    with pytest.raises(UserError, match="three channels that differ"):
        decode_depth(exr(pixels, pixels, 2 * pixels), "x")


def test_depth_as_lists_of_numbers(v3, tmp_path):
    add_depth(v3, [depth_of(i).tolist() for i in range(COUNT)], "uint16", (HEIGHT, WIDTH), unit="millimeters")
    import_lerobot(v3, tmp_path / "recording", ONE)
    check_depth(tmp_path / "recording")


def test_depth_in_files_of_their_own(tmp_path):
    source = lerobot_v2(tmp_path / "set", dtype="image")
    add_depth(source, None, depth_unit="mm")
    for frame in range(COUNT):
        path = source / f"images/{DEPTH}/episode_{frame // STEPS:06d}/frame_{frame % STEPS:06d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode(depth_of(frame), "PNG"))
    import_lerobot(source, tmp_path / "recording", ONE)
    check_depth(tmp_path / "recording")
    path.unlink()
    refused(import_lerobot, source, DEPTH, "episode 1, frame 5", "no picture in the table, nor in")


@pytest.mark.parametrize(("codec", "pix_fmt"), [("ffv1", "gray16le"), ("ffv1", "gray12le"), ("libx265", "gray12le")])
def test_depth_videos_of_counts(codec, pix_fmt, v3, tmp_path):
    options = {"x265-params": "lossless=1:log-level=none"} if codec == "libx265" else None
    add_depth_video(v3, codec, pix_fmt, [depth_of(i) for i in range(COUNT)], options)
    refused(import_lerobot, v3, DEPTH, "--depth-unit m or mm")
    refused(import_lerobot, v3, DEPTH, "not metres", depth_unit="m")
    import_lerobot(v3, tmp_path / "recording", MM)
    check_depth(tmp_path / "recording")


@pytest.mark.parametrize("pix_fmt", ["gray12le", "yuv420p12le"])
@pytest.mark.parametrize("use_log", [True, False])
def test_depth_videos_of_lerobots_codes(use_log, pix_fmt, v3, tmp_path):
    """Its quantisation, of 12 bits: what it writes is what we read, within half a step."""
    low, high, shift = 0.1, 4.0, 3.5

    def code(metres: np.ndarray) -> np.ndarray:
        share = (metres - low) / (high - low)
        if use_log:
            share = np.log((metres + shift) / (low + shift)) / np.log((high + shift) / (low + shift))
        return np.rint(share * 4095).clip(0, 4095).astype(np.uint16)

    frames = [code(depth_of(i) / 1000) for i in range(COUNT)]
    about = {"video.depth_min": low, "video.depth_max": high, "video.shift": shift, "video.use_log": use_log}
    add_depth_video(v3, "libx265", pix_fmt, frames, {"x265-params": "lossless=1:log-level=none"}, **about)
    import_lerobot(v3, tmp_path / "recording", ONE)
    for frame in range(COUNT):
        counts = np.asarray(Image.open(tmp_path / f"recording/depth/{frame:06d}.png")).astype(int)
        assert np.abs(counts - depth_of(frame)).max() <= 2
        assert ((counts == 0) == (depth_of(frame) == 0)).all()  # the holes
    edit_info(v3, lambda info: info["features"][DEPTH]["info"].pop("video.shift"))
    refused(import_lerobot, v3, DEPTH, "lacks video.shift")


def test_the_ends_of_lerobots_codes_are_no_readings():
    counts = millimetres(0.01, 10.0, 3.5, True)
    assert counts[0] == counts[4095] == 0
    assert (np.diff(counts[1:4095].astype(int)) > 0).all()
    assert (counts[1], counts[4094]) == (11, 9996)  # steps of 1.2 mm and of 4.4 mm


@pytest.mark.parametrize(("options", "folders"), [
    ({}, ["rgb/left", "rgb/top", "depth"]),
    ({"depth": ["none"]}, ["rgb/left", "rgb/top"]),
    ({"depth": [f"{DEPTH}=near"], "cameras": [f"{KEYS[1]}=global"]}, ["rgb/global", "depth"]),
])  # fmt: skip
def test_depth_and_cameras_that_are_not_chosen_are_named(options, folders, v3, tmp_path):
    add_depth(v3, [{"bytes": encode(depth_of(i), "PNG"), "path": None} for i in range(COUNT)], depth_unit="mm")
    text = import_lerobot(v3, tmp_path / "recording", ImportOptions(processes=1, **options))
    written = {str(path.parent.relative_to(tmp_path / "recording")) for path in (tmp_path / "recording").rglob("*.png")}
    assert written == set(folders)
    (line,) = [line for line in text.splitlines() if "not imported" in line] or [""]
    assert (DEPTH in line) == ("none" in options.get("depth", ()))
    assert (KEYS[0] in line) == ("cameras" in options)


def test_several_depth_cameras(v3, tmp_path):
    add_depth(v3, [{"bytes": encode(depth_of(i), "PNG"), "path": None} for i in range(COUNT)], depth_unit="mm")
    edit_info(v3, lambda info: info["features"].update(wrist_depth=info["features"][DEPTH]))
    rows = pd.read_parquet(v3 / ROWS)
    rows["wrist_depth"] = [{"bytes": encode(depth_of(i + 7), "PNG"), "path": None} for i in range(COUNT)]
    rows.to_parquet(v3 / ROWS, index=False)
    import_lerobot(v3, tmp_path / "recording", ONE)
    check_depth(tmp_path / "recording", "depth/front_depth")
    check_depth(tmp_path / "recording", "depth/wrist_depth", lambda i: depth_of(i + 7))


@pytest.mark.parametrize(
    ("pixels", "words"),
    [
        (np.zeros((HEIGHT, WIDTH), np.uint8), "is not depth"),
        (np.zeros((HEIGHT, WIDTH, 3), np.uint8), "is not depth"),
    ],
)
def test_pictures_that_have_lost_the_depth(pixels, words, v3):
    add_depth(v3, [{"bytes": encode(pixels, "PNG"), "path": None}] * COUNT, depth_unit="mm")
    refused(import_lerobot, v3, DEPTH, "episode 0, frame 0", words, "--depth none")


def test_a_depth_video_of_eight_bits(v3):
    add_depth_video(v3, "ffv1", "gray16le", [depth_of(i) for i in range(COUNT)])
    video = v3 / f"videos/{DEPTH}/chunk-000/file-000.mp4"
    video.write_bytes((v3 / f"videos/{KEYS[0]}/chunk-000/file-000.mp4").read_bytes())
    refused(import_lerobot, v3, str(video), "format yuv420p have lost the depth", "--depth none", depth_unit="mm")


def test_pictures_are_turned_upside_down(v3, tmp_path):
    add_depth(v3, [{"bytes": encode(depth_of(i), "PNG"), "path": None} for i in range(COUNT)], depth_unit="mm")
    import_lerobot(v3, tmp_path / "as_is", ONE)
    text = import_lerobot(v3, tmp_path / "flipped", ImportOptions(processes=1, flip=True))
    assert "upside down (--flip)" in text
    check_depth(tmp_path / "flipped", expected=lambda i: depth_of(i)[::-1])
    for name in ("rgb/left/000003.png", "rgb/top/000011.png"):
        images = [np.asarray(Image.open(tmp_path / folder / name)) for folder in ("as_is", "flipped")]
        assert np.array_equal(images[0][::-1], images[1])


# Names, tasks, splits, further features


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["elbow", "wrist", "grip"], ["elbow", "wrist", "grip"]),
        ({"motors": ["elbow", "wrist", "grip"]}, ["elbow", "wrist", "grip"]),
        ({"arm": ["elbow", "wrist"], "hand": ["grip"]}, ["elbow", "wrist", "grip"]),
        ([["elbow", "wrist", "grip"]], ["elbow", "wrist", "grip"]),
        ({"grip": 2, "wrist": 1, "elbow": 0}, ["elbow", "wrist", "grip"]),
        ({"grip": {"start": 2, "end": 3}, "arm": {"start": 0, "end": 2}}, ["arm_0", "arm_1", "grip"]),
        ({"grip": [2, 3], "arm": [0, 2]}, ["arm_0", "arm_1", "grip"]),
        (None, None),
        ([], None),
        (["axes"], None),
        (["a", "a", "b"], None),
        (["a", "", "b"], None),
        ({"a": 0, "b": 0, "c": 1}, None),
        ({"a": 1, "b": 2, "c": 3}, None),
        ({"a": [0, 2], "b": [1, 3]}, None),
        ({"a": [0, 2]}, None),
        ({"a": {"start": 0}}, None),
        ("abc", None),
    ],
)
def test_joint_names(names, expected):
    assert joint_names(Feature(dtype="float32", shape=(3,), names=names)) == expected


def test_joints_without_names(v3, tmp_path):
    edit_info(v3, lambda info: info["features"]["observation.state"].update(names=["axes"]))
    text = import_lerobot(v3, tmp_path / "recording", ONE)
    assert (
        "joints are called joint_0 to joint_2: meta/info.json has no name for each number of observation.state" in text
    )
    assert read_recording_info(tmp_path / "recording/recording.json").joints == ("joint_0", "joint_1", "joint_2")


def tasks_of(recording: Path) -> list[str] | None:
    frames = read_frames(recording / "frames.parquet")
    return frames["task"].tolist() if "task" in frames else None


@pytest.mark.parametrize("form", ["index", "unnamed index", "columns", "jsonl"])
def test_tasks_of_rows(form, tmp_path):
    source = (lerobot_v2 if form == "jsonl" else lerobot_v3)(tmp_path / "set")
    edit_info(source, lambda info: info["features"].update(task_index={"dtype": "int64", "shape": [1]}))
    for path in (source / "data").rglob("*.parquet"):
        rows = pd.read_parquet(path)
        rows.assign(task_index=(rows["index"] // 4 + 1) % 3).to_parquet(path, index=False)
    texts = ["lift", "push the blue cube", "öffne"]
    table = pd.DataFrame({"task_index": [2, 0, 1]}, index=[texts[i] for i in (2, 0, 1)])
    if form == "jsonl":
        lines = [json.dumps({"task_index": i, "task": text}) for i, text in enumerate(texts)]
        (source / "meta/tasks.jsonl").write_text("\n".join(lines))
    elif form == "columns":
        table.rename_axis("task").reset_index().to_parquet(source / "meta/tasks.parquet", index=False)
    else:
        table.rename_axis("task" if form == "index" else None).to_parquet(source / "meta/tasks.parquet")
    import_lerobot(source, tmp_path / "recording", ONE)
    assert tasks_of(tmp_path / "recording") == [texts[(i // 4 + 1) % 3] for i in range(COUNT)]
    for path in (source / "data").rglob("*.parquet"):
        rows = pd.read_parquet(path)
        rows.assign(task_index=rows["task_index"].where(rows["index"] != 3, 7)).to_parquet(path, index=False)
    refused(import_lerobot, source, "task_index 7: no such task in meta/tasks", "--skip 0")


def test_tasks_of_episodes(v3, tmp_path):
    path = v3 / "meta/episodes/chunk-000/file-000.parquet"
    table = pd.read_parquet(path)
    table.assign(tasks=[["lift"], ["push"]]).to_parquet(path, index=False)
    import_lerobot(v3, tmp_path / "one", ONE)
    assert tasks_of(tmp_path / "one") == ["lift"] * STEPS + ["push"] * STEPS
    table.assign(tasks=[["lift", "push"], ["push"]]).to_parquet(path, index=False)
    text = import_lerobot(v3, tmp_path / "two", ONE)
    assert tasks_of(tmp_path / "two") is None
    assert "tasks are not imported: neither rows nor episodes say which of several is theirs" in text
    table.assign(tasks=[[""], [""]]).to_parquet(path, index=False)
    assert "not imported" not in import_lerobot(v3, tmp_path / "empty", ONE)
    assert tasks_of(tmp_path / "empty") is None


def test_splits(v3, tmp_path):
    edit_info(v3, lambda info: info.update(splits={"train": "0:1", "val": "1:2", "test": "2:2"}))
    import_lerobot(v3, tmp_path / "split", ONE)
    frames = read_frames(tmp_path / "split/frames.parquet")
    assert frames["split"].tolist() == ["train"] * STEPS + ["val"] * STEPS
    edit_info(v3, lambda info: info.update(splits={"train": "0:1", "val": "0:2"}))
    assert "splits of meta/info.json are not used" in import_lerobot(v3, tmp_path / "unclear", ONE)
    edit_info(v3, lambda info: info.update(splits={"train": "0:2"}))
    import_lerobot(v3, tmp_path / "none", ONE)
    assert "split" not in read_frames(tmp_path / "none/frames.parquet")


def test_what_is_not_imported_is_named(v3, tmp_path):
    edit_info(v3, lambda info: info.update(robot_type="so101"))
    number = {"dtype": "float32", "shape": [2]}
    edit_info(v3, lambda info: info["features"].update({"observation.effort": number, "next.reward": number}))
    text = import_lerobot(v3, tmp_path / "recording", ONE)
    assert "\n  not imported: next.reward, observation.effort\n" in text
    assert "\n  robot so101, 10 fps: with fusion.stride: 1, the steps of a chunk are 10 Hz\n" in text


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_grey_and_palette_pictures_become_colour(kind, tmp_path):
    source = lerobot_v2(tmp_path / "set", dtype="image")
    grey = np.tile(np.arange(WIDTH, dtype=np.uint8), (HEIGHT, 1))
    for path in (source / "data").rglob("*.parquet"):
        rows = pd.read_parquet(path)
        rows[KEYS[0]] = [{"bytes": encode(grey, kind), "path": None}] * STEPS
        rows.to_parquet(path, index=False)
    import_lerobot(source, tmp_path / "recording", ONE)
    pixels = np.asarray(Image.open(tmp_path / "recording/rgb/left/000004.png")).astype(int)
    assert np.abs(pixels - grey[:, :, None]).max() <= (2 if kind == "JPEG" else 0)


def test_an_episode_that_occurs_twice(tmp_path):
    source = lerobot_v2(tmp_path / "set")
    path = source / "meta/episodes.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], lines[0]]))
    refused(import_lerobot, source, "meta/episodes.jsonl: episode_index: 0 occurs twice")


def test_confidence_is_not_read(v3):
    refused(import_lerobot, v3, "--confidence", "leave it out", confidence=["map"])
