"""Importing ALOHA/ACT and robomimic files: a recording holds what they did; a mistake is one line, leaves nothing."""

import json
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
from data_sets import (
    CODEC_ERROR,
    EPISODES,
    HEIGHT,
    ONE,
    POINTER,
    STEPS,
    WIDTH,
    aloha,
    check_pictures,
    contents,
    edit_hdf5,
    joints_of,
    picture,
    pixels_of,
    refused,
    robomimic,
)

from sightline.importers.demonstrations import ImportOptions
from sightline.importers.episodes import import_hdf5
from sightline.recording.frames import read_frames
from sightline.recording.layout import RecordingInfo, read_recording_info
from sightline.recording.split import DataParams, SplitParams
from sightline.validation.validation import validate_recording


def add(path: Path, **datasets: object) -> None:
    """Add data sets, ``__`` standing for ``/``."""
    with h5py.File(path, "a") as file:
        for name, data in datasets.items():
            file[name.replace("__", "/")] = data


def attribute(path: Path, group: str, **attributes: str) -> None:
    with h5py.File(path, "a") as file:
        file[group].attrs.update(attributes)


GREY = np.zeros((STEPS, HEIGHT, WIDTH), np.uint8)


# What a file holds is in the recording


@pytest.mark.parametrize("storage", ["plain", "padded", "lengths"])
def test_aloha_episodes_become_a_sound_recording(storage, tmp_path):
    target = tmp_path / "recording"
    import_hdf5(aloha(tmp_path / "set", storage), target, ONE)

    info = read_recording_info(target / "recording.json")
    cameras = ("cam_high", "cam_left_wrist")
    assert info == RecordingInfo(fps=50, cameras=cameras, joints=("joint_0", "joint_1", "joint_2"))
    frames = read_frames(target / "frames.parquet", info)
    assert np.array_equal(np.stack(frames["joints"]), np.concatenate([joints_of(0), joints_of(1)]))
    assert np.allclose(frames["time_s"], np.tile(np.arange(STEPS) / 50, EPISODES))
    assert "reward" not in frames
    check_pictures(target, cameras, 0 if storage == "plain" else CODEC_ERROR)
    validate_recording(target, tmp_path / "index", DataParams(split=SplitParams(test=0)), processes=1)


def test_a_robomimic_file_becomes_a_sound_recording(tmp_path):
    target = tmp_path / "recording"
    joints = ["obs/robot0_joint_pos", "obs/robot0_gripper_qpos"]
    cameras = ["obs/robot0_eye_in_hand_image=wrist", "obs/agentview_image=global"]
    import_hdf5(robomimic(tmp_path / "demos.hdf5"), target, ImportOptions(cameras=cameras, joints=joints, processes=1))

    info = read_recording_info(target / "recording.json")
    assert (info.fps, info.cameras) == (20, ("global", "wrist"))
    frames = read_frames(target / "frames.parquet", info)
    assert np.array_equal(np.stack(frames["joints"]), np.concatenate([joints_of(0), joints_of(1)]))
    assert np.allclose(frames["reward"], np.tile(np.linspace(0, 1, STEPS), EPISODES))
    check_pictures(target, info.cameras, 0)
    validate_recording(target, tmp_path / "index", DataParams(split=SplitParams(test=0)), processes=1)


def test_episodes_are_ordered_by_number_and_added_ones_change_no_older_frame(tmp_path):
    source = aloha(tmp_path / "set", episodes=(2, 9))
    import_hdf5(source, tmp_path / "before", ONE)
    shutil.copy(source / "episode_9.hdf5", source / "episode_10.hdf5")
    import_hdf5(source, tmp_path / "after", ONE)

    before, after = (read_frames(tmp_path / name / "frames.parquet") for name in ("before", "after"))
    assert after["episode"].unique().tolist() == [2, 9, 10]
    assert after[: len(before)].equals(before)
    pictures = contents(tmp_path / "before/rgb")
    assert contents(tmp_path / "after/rgb").items() >= pictures.items()


@pytest.mark.parametrize(("size", "shape"), [(24, (24, 32)), (0, (48, 64)), (224, (48, 64))])
def test_the_shorter_side_is_averaged_down_and_never_enlarged(size, shape, tmp_path):
    text = import_hdf5(aloha(tmp_path / "set"), tmp_path / "recording", ImportOptions(size=size, processes=1))
    pixels = pixels_of(tmp_path / "recording", "cam_high", 3)
    factor = HEIGHT // shape[0]
    expected = picture(0, 0, 3).reshape(shape[0], factor, shape[1], factor, 3).mean((1, 3))
    assert np.abs(pixels - expected).max() <= 0.5
    assert ("averaged down to 24x32" if size == 24 else "as they were") in text


def test_red_and_blue_can_be_exchanged(tmp_path):
    import_hdf5(aloha(tmp_path / "set"), tmp_path / "recording", ONE, bgr=True, fps=30)
    assert np.array_equal(pixels_of(tmp_path / "recording", "cam_high", 0), picture(0, 0, 0)[..., ::-1])
    assert read_recording_info(tmp_path / "recording/recording.json").fps == 30


@pytest.mark.parametrize(("options", "said"), [({}, "taken for red, green, blue"), ({"bgr": True}, "as --bgr says")])
def test_encoded_pictures_say_which_order_of_channels_is_assumed(options, said, tmp_path):
    text = import_hdf5(aloha(tmp_path / "set", "padded"), tmp_path / "recording", ONE, **options)
    (line,) = (line for line in text.splitlines() if "channels" in line)
    assert all(words in line for words in ("JPEG", "cam_high", "cam_left_wrist", said))
    assert ("add --bgr" in line) == (not options)
    written = pixels_of(tmp_path / "recording", "cam_high", 0)[..., :: -1 if options else 1]
    assert np.abs(written - picture(0, 0, 0).astype(float)).mean() < CODEC_ERROR


def test_strings_of_bytes_are_pictures_too(tmp_path):
    source = aloha(tmp_path / "set", "padded")
    for path in source.iterdir():
        with h5py.File(path) as file:
            rows = [row.tobytes() for row in file["observations/images/cam_high"]]
        edit_hdf5(path, observations__images__cam_high=np.array(rows, f"S{len(rows[0])}"))
    import_hdf5(source, tmp_path / "recording", ONE)
    check_pictures(tmp_path / "recording", ("cam_high", "cam_left_wrist"), CODEC_ERROR)


def test_what_is_not_imported_is_named(tmp_path):
    source = aloha(tmp_path / "set")
    add(source / "episode_0.hdf5", base_action=np.zeros((STEPS, 2)), observations__effort=np.zeros((STEPS, 3)))
    add(source / "episode_1.hdf5", observations__images__grey=GREY, extras__more__x=GREY, extras__y=3)
    text = import_hdf5(
        source, tmp_path / "recording", ImportOptions(cameras=["observations/images/cam_high"], processes=1)
    )
    (line,) = (line for line in text.splitlines() if "not imported" in line)
    names = line.partition(": ")[2].split(", ")
    assert sorted(names) == [
        "base_action", "extras", "observations/effort",
        "observations/images/cam_left_wrist", "observations/images/grey",
    ]  # fmt: skip


def test_nothing_is_said_of_a_source_that_is_imported_whole(tmp_path):
    assert "not imported" not in import_hdf5(aloha(tmp_path / "set"), tmp_path / "recording", ONE)


# What a robomimic file says about itself


def masked(path: Path, **masks: list[int]) -> Path:
    """A robomimic file of 4 demos with masks, names of demos as bytes."""
    robomimic(path)
    with h5py.File(path, "a") as file:
        for number in (2, 3):
            file.copy("data/demo_1", f"data/demo_{number}")
        for name, numbers in masks.items():
            file[f"mask/{name}"] = np.array([f"demo_{number}".encode() for number in numbers], "S8")
    return path


def test_the_published_split_is_a_column(tmp_path):
    source = masked(tmp_path / "demos.hdf5", train=[0, 2], valid=[3], half=[0])
    text = import_hdf5(source, tmp_path / "recording", ONE)
    frames = read_frames(tmp_path / "recording/frames.parquet")
    assert frames.groupby("episode")["split"].first().to_dict() == {0: "train", 2: "train", 3: "val"}
    assert "train 2, val 1; test will be drawn from train" in text
    assert "no mask has them: 1 of 4 demos (1)" in text
    assert "not used: mask/half" in text
    metrics = validate_recording(tmp_path / "recording", tmp_path / "index", DataParams(), only="frames")["frames"]
    assert [metrics[part]["episodes"] for part in ("train", "val", "test")] == [1, 1, 1]


def test_masks_without_train_are_no_split(tmp_path):
    text = import_hdf5(masked(tmp_path / "demos.hdf5", valid=[3], half=[0]), tmp_path / "recording", ONE)
    frames = read_frames(tmp_path / "recording/frames.parquet")
    assert frames["episode"].nunique() == 4
    assert "split" not in frames
    assert "not used: mask/half, mask/valid" in text


def test_masks_that_make_no_split(tmp_path):
    source = masked(tmp_path / "demos.hdf5", train=[0, 1], valid=[1, 2])
    refused(import_hdf5, source, "demo_1 is in mask/train and mask/valid")
    edit_hdf5(source, mask__valid=np.array([2]))
    refused(import_hdf5, source, "mask/valid", "not a list of names")
    edit_hdf5(source, mask__valid=np.array([b"demo_2"]), mask__train=np.array([b"demo_7", b"demo_8"]))
    refused(import_hdf5, source, "mask/train names no demo")
    edit_hdf5(source, mask__train=np.array([b"demo_0"]))
    refused(import_hdf5, source, "no demo of mask/train is left", skip=[0])


@pytest.mark.parametrize("convention", ["opengl", "opencv", None])
@pytest.mark.parametrize("flip", [False, True])
def test_pictures_are_turned_as_the_file_and_the_user_say(convention, flip, tmp_path):
    source = robomimic(tmp_path / "demos.hdf5")
    if convention:
        attribute(source, "data", macros_image_convention=convention)
    text = import_hdf5(source, tmp_path / "recording", ImportOptions(flip=flip, processes=1))
    turned = (convention == "opengl") != flip
    expected = picture(0, 0, 2)[:: -1 if turned else 1]
    assert np.array_equal(pixels_of(tmp_path / "recording", "agentview_image", 2), expected)
    (line,) = (line for line in text.splitlines() if "pictures are" in line)
    assert ("are turned" in line) == turned
    assert "--flip" in line
    assert (convention or "does not say") in line


def test_aloha_pictures_are_turned_by_hand(tmp_path):
    text = import_hdf5(aloha(tmp_path / "set"), tmp_path / "recording", ImportOptions(flip=True, processes=1))
    assert np.array_equal(pixels_of(tmp_path / "recording", "cam_high", 2), picture(0, 0, 2)[::-1])
    assert "turned upside down, as --flip says" in text


def test_tasks_are_a_column(tmp_path):
    source = robomimic(tmp_path / "demos.hdf5")
    attribute(source, "data", problem_info=json.dumps({"language_instruction": "open the drawer"}))
    import_hdf5(source, tmp_path / "libero", ONE)
    assert read_frames(tmp_path / "libero/frames.parquet")["task"].tolist() == ["open the drawer"] * STEPS * EPISODES
    attribute(source, "data/demo_1", ep_meta=json.dumps({"lang": "close it"}))
    import_hdf5(source, tmp_path / "own", ONE)
    frames = read_frames(tmp_path / "own/frames.parquet")
    assert frames.groupby("episode")["task"].first().tolist() == ["open the drawer", "close it"]


def test_joints_of_libero_are_found(tmp_path):
    source = robomimic(tmp_path / "demos.hdf5")
    with h5py.File(source, "a") as file:
        for demo in file["data"].values():
            demo.move("obs/robot0_joint_pos", "obs/joint_states")
    import_hdf5(source, tmp_path / "recording", ONE)
    assert np.stack(read_frames(tmp_path / "recording/frames.parquet")["joints"]).shape == (STEPS * EPISODES, 2)


# Mistakes


def test_hdf5_sources_of_no_known_kind(tmp_path):
    (tmp_path / "empty").mkdir()
    refused(import_hdf5, tmp_path / "empty", "no episode_<i>.hdf5")
    refused(import_hdf5, tmp_path / "absent.hdf5", "absent.hdf5")
    refused(import_hdf5, aloha(tmp_path / "set") / "episode_0.hdf5", "a single ALOHA/ACT episode", "folder")
    with h5py.File(tmp_path / "other.hdf5", "w") as file:
        file["data"] = [1, 2]
    refused(import_hdf5, tmp_path / "other.hdf5", "not a robomimic file")


def test_hdf5_files_that_are_none(tmp_path):
    source = aloha(tmp_path / "set")
    (source / "episode_1.hdf5").write_text(POINTER)
    refused(import_hdf5, source, "episode_1.hdf5", "git lfs pull")
    (source / "episode_1.hdf5").write_bytes((source / "episode_0.hdf5").read_bytes()[:5000])
    refused(import_hdf5, source, "episode_1.hdf5", "HDF5")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"observations__images": None}, ("observations/images",)),
        ({"observations__images__cam_high": None}, ("observations/images/cam_high", "it has", "observations/qpos")),
        ({"observations__images__cam_high": GREY}, ("cam_high", "not colour pictures", "--camera")),
        ({"observations__images__cam_high": GREY[..., None]}, ("cam_high", "not colour pictures")),
        ({"observations__images__cam_high": np.zeros((5, 4, 4, 3), np.uint8)}, ("5 pictures", "6 rows")),
        ({"observations__images__cam_high": np.ones((STEPS, 99), np.uint8)}, ("cam_high, picture 0", "not a picture")),
        ({"observations__qpos": np.full((STEPS, 3), np.nan)}, ("joints", "NaN")),
        ({"observations__qpos": np.zeros((STEPS, 4))}, ("4 joints", "episode_0.hdf5 has 3")),
        ({"observations__qpos": np.zeros((STEPS - 1, 3))}, ("5 rows of joints", "6 of actions")),
        ({"observations__qpos": np.zeros((STEPS, 3, 2))}, ("observations/qpos", "(6, 3, 2)")),
        ({"observations__qpos": None}, ("no data set observations/qpos", "it has action")),
        ({"action": np.zeros((STEPS, 5))}, ("5 actions", "episode_0.hdf5 has 2")),
    ],
)
def test_episode_files_that_do_not_fit(changes, words, tmp_path):
    source = aloha(tmp_path / "set")
    edit_hdf5(source / "episode_1.hdf5", **changes)
    refused(import_hdf5, source, "episode_1.hdf5", *words)


def test_no_pictures_in_the_first_episode(tmp_path):
    source = aloha(tmp_path / "set")
    edit_hdf5(source / "episode_0.hdf5", observations__images=None)
    refused(import_hdf5, source, "episode_0.hdf5", "observations/images")
    with h5py.File(source / "episode_0.hdf5", "a") as file:
        file.create_group("observations/images")
    refused(import_hdf5, source, "episode_0.hdf5", "no camera")


def test_a_robomimic_file_without_pictures_or_frequency(tmp_path):
    path = robomimic(tmp_path / "demos.hdf5", control_freq=None)
    refused(import_hdf5, path, "control_freq", "--fps")
    refused(import_hdf5, path, "--fps 0", fps=0.0)
    edit_hdf5(path, data__demo_1__rewards=None)
    refused(import_hdf5, path, "data/demo_1", "reward", fps=20.0)
    edit_hdf5(path, data__demo_0__obs__agentview_image=None, data__demo_0__obs__robot0_eye_in_hand_image=None)
    refused(import_hdf5, path, "no camera", fps=20.0)


def test_two_files_of_one_episode(tmp_path):
    source = aloha(tmp_path / "set")
    shutil.copy(source / "episode_1.hdf5", source / "episode_01.hdf5")
    refused(import_hdf5, source, "episode_01.hdf5", "episode_1.hdf5", "episode 1")
