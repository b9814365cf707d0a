"""One command takes a recording into the pipeline: checked, tracked, and named in params.yaml."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import default_params, only_error_line, recording_folder, save_depth
from dvc.repo import Repo
from PIL import Image

from sightline.core.errors import UserError
from sightline.core.params import parse_yaml
from sightline.recording.layout import StageLists
from sightline.validation.adding import add_recording
from sightline.validation.parameters import check_parameters

VIEWS = ("left", "right", "top")
MINE = Path("data/mine")


@pytest.fixture
def project(tmp_path, monkeypatch) -> Path:
    """The working directory: a DVC project with the default parameters."""
    monkeypatch.chdir(tmp_path)
    Repo.init(".", no_scm=True)
    Path("params.yaml").write_text(default_params())
    return tmp_path


def state() -> dict[str, bytes]:
    """Parameters, and what is tracked."""
    return {str(path): path.read_bytes() for path in [Path("params.yaml"), *sorted(Path("data").rglob("*.dvc"))]}


def params() -> dict:
    return parse_yaml(Path("params.yaml").read_text(), "params.yaml")


def refused(recording=MINE, **arguments) -> str:
    """The message; nothing was changed or tracked."""
    before = state()
    with pytest.raises(UserError) as error:
        add_recording(Path(recording), processes=1, **arguments)
    assert state() == before
    return str(error.value)


def test_a_recording_of_everything_becomes_the_parameters_and_fits_the_check(project):
    recording_folder(MINE, VIEWS)
    said = add_recording(MINE, "top", VIEWS, processes=1)
    lists = {
        "images": ["depth", "masks", "rgb/left", "rgb/right", "rgb/top"], "depth": ["depth"],
        "masks": ["masks"], "demonstrations": ["actions"], "designs": ["stacked", "joints_only"],
        "grids": {"names": ["efficientnet", "clip"], "cameras": ["left"]}, "segmentation_with": [], "rollouts": [],
        "volumes": [],
        "fusion_with": {"designs": ["joints_only"], "features": ["embeddings/depth.hdf5"]},
        "pack": {"views": ["actions"], "no_views": [], "one_view": [], "many_views": []},
    }  # fmt: skip
    expected = parse_yaml(default_params(), "")
    expected["data"]["root"], expected["stages"] = "data/mine", lists
    expected["segmentation"]["camera"], expected["views"]["cameras"] = "top", list(VIEWS)
    assert params() == expected
    check_parameters(MINE, StageLists.model_validate_json(json.dumps(lists)), "top", VIEWS)
    pieces = ["recording.json", "frames.parquet", "depth", "masks", *(f"rgb/{camera}" for camera in VIEWS)]
    assert set(state()) == {"params.yaml", *(f"data/mine/{piece}.dvc" for piece in pieces)}
    assert said.splitlines() == [
        "data/mine: 3 episodes, 6 frames; DVC tracks",
        *(f"  data/mine/{piece}" for piece in pieces),
        "In params.yaml:",
        "  data.root: data/mine",
        "  stages.images: [depth, masks, rgb/left, rgb/right, rgb/top]",
        "  stages.depth: [depth]",
        "  stages.grids.cameras: [left]  (their images are encoded; change the list for others)",
        "  stages.masks: [masks]",
        "  segmentation.camera: top",
        "  stages.demonstrations: [actions]",
        "  views.cameras: [left, right, top]",
        "  stages.pack.views: [actions]",
        "  stages.pack.no_views: []",
        "  stages.pack.one_view: []",
        "  stages.pack.many_views: []",
        "  stages.rollouts: []",
        "  stages.segmentation_with: []",
        "  stages.fusion_with.features: [embeddings/depth.hdf5]",
        "Next:",
        "  git add params.yaml data/mine",
        '  git commit -m "Use data/mine"',
        "  dvc repro",
    ]
    assert not Path("data/index").exists()


def test_what_a_recording_lacks_is_an_empty_list_and_other_lines_stay(project):
    recording_folder(MINE, ["front"], depth=False, masks=False)
    before = default_params()
    said = add_recording(MINE, processes=1)
    stages = params()["stages"]
    assert (stages["images"], stages["grids"]["cameras"]) == (["rgb/front"], ["front"])
    assert [stages[name] for name in ("depth", "masks", "demonstrations")] == [[], [], ["actions"]]
    assert stages["pack"] == {"views": [], "no_views": [], "one_view": ["actions"], "many_views": []}
    assert "  views.cameras: [front]\n" in said
    after = Path("params.yaml").read_text()
    views = "  cameras:\n  - left_wrist\n  - right_wrist\n  - global\n"
    first, designs = before.index("stages:   "), before.index("  designs:\n")
    expected = before[:first].replace("root: data/demo", "root: data/mine").replace(views, "  cameras:\n  - front\n")
    assert after.startswith(expected)
    lists = before[designs : before.index("    features:\n")]
    lists = lists.replace("  rollouts:\n  - actions\n", "  rollouts: []\n")
    assert lists.replace("    cameras:\n    - global\n", "    cameras:\n    - front\n") in after


def test_without_cameras(project):
    recording_folder(MINE, [], masks=False, actions=None)
    said = add_recording(MINE, processes=1)
    assert "  stages.demonstrations: []  (the fusion model needs actions)" in said
    assert not any(params()["stages"]["pack"].values())
    stages, names = params()["stages"], ("images", "depth", "masks", "demonstrations")
    assert [stages[name] for name in names] == [["depth"], ["depth"], [], []]
    assert stages["grids"]["cameras"] == []


def test_it_is_run_again_when_episodes_were_added(project):
    recording_folder(MINE, VIEWS)
    add_recording(MINE, "top", ("top", "right", "left"), processes=1)
    text = (
        Path("params.yaml").read_text().replace("    cameras:\n    - left\n", "    cameras:\n    - right\n    - top\n")
    )
    Path("params.yaml").write_text(text)
    before = state()
    frames = pd.read_parquet(MINE / "frames.parquet")
    more = frames.tail(2).assign(frame_id=[6, 7], episode=3)
    (MINE / "frames.parquet").unlink()
    pd.concat([frames, more]).to_parquet(MINE / "frames.parquet")
    for i in (6, 7):
        for camera in VIEWS:
            shutil.copy(MINE / f"rgb/{camera}/000005.png", MINE / f"rgb/{camera}/{i:06d}.png")
    assert "2 of 8 depth images are broken or missing" in refused()
    for i in (6, 7):
        shutil.copy(MINE / "depth/000005.png", MINE / f"depth/{i:06d}.png")
    said = add_recording(MINE, processes=1)  # what it was told stays: the camera of the masks, the views, CLIP's list
    assert said.startswith("data/mine: 4 episodes, 8 frames; ")
    assert "In params.yaml, as before:\n" in said
    same = {name for name, content in state().items() if before.get(name) == content}
    assert same == {"params.yaml", "data/mine/recording.json.dvc", "data/mine/masks.dvc"}


def test_the_camera_of_the_masks_is_asked_for_where_there_are_several(project):
    """Even if the parameters name one of them: they may mean another recording's."""
    recording_folder(MINE, ["front", "global"])
    message = refused()
    assert message == (
        "data/mine/recording.json: does not say which camera's images the masks belong to; add --mask-camera NAME, one "
        "of front, global"
    )
    assert "--mask-camera back: not a camera of data/mine/recording.json" in refused(mask_camera="back")
    add_recording(MINE, "front", processes=1)
    assert params()["segmentation"]["camera"] == "front"


def test_the_one_camera_there_is_has_the_masks(project):
    recording_folder(MINE, ["front"])
    add_recording(MINE, processes=1)
    assert params()["segmentation"]["camera"] == "front"


def test_the_views_are_all_cameras_unless_some_are_named(project):
    recording_folder(MINE, VIEWS, masks=False)
    assert "front not in data/mine/recording.json, which has: left, right, top" in refused(
        views=["left", "right", "front"]
    )
    assert "name at most 8 different cameras" in refused(views=["left", "right", "left"])
    add_recording(MINE, processes=1)
    assert params()["views"]["cameras"] == list(VIEWS)
    add_recording(MINE, views=["top"], processes=1)
    add_recording(MINE, processes=1)  # it was told
    assert params()["views"]["cameras"] == ["top"]
    assert params()["stages"]["pack"]["one_view"] == ["actions"]
    many = recording_folder(Path("data/many"), list("abcdefgh"), masks=False)
    add_recording(many, processes=1)
    assert params()["views"]["cameras"] == list("abcdefgh")
    assert [name for name, targets in params()["stages"]["pack"].items() if targets] == ["many_views"]
    more = recording_folder(Path("data/more"), list("abcdefghi"), masks=False)
    assert refused(more) == (
        "data/more/recording.json: 9 cameras, and the fusion model takes 8 at most; add --views NAME ..., some of "
        "a, b, c, d, e, f, g, h, i"
    )


def test_without_a_camera_the_joints_are_learnt_from(project):
    recording_folder(MINE, [], masks=False)
    said = add_recording(MINE, processes=1)
    assert "  stages.designs: [joints_only]  (the others need a camera)\n" in said
    assert params()["views"]["cameras"] == []
    assert params()["stages"]["pack"]["no_views"] == params()["stages"]["demonstrations"] == ["actions"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mask_camera": "front"}, "--mask-camera front: data/mine has no masks of a camera's images; leave it out"),
        ({"views": ["front"]}, "--views front: data/mine lacks actions, which the fusion model needs; leave it out"),
    ],
)  # fmt: skip
def test_an_argument_without_use_is_refused(project, arguments, message):
    recording_folder(MINE, ["front"], masks=False, actions=None)
    assert refused(**arguments) == message


def test_a_recording_that_is_not_sound_changes_nothing(project):
    recording_folder(MINE, ["front"])
    Image.new("L", (16, 12)).save(MINE / "depth/000002.png")
    shutil.rmtree(MINE / "rgb/front")
    message = refused()
    assert "data/mine/rgb/front: no such folder" in message
    assert "data/mine/depth/000002.png: not a uint16 depth image" in message


def test_broken_images_are_left_out_where_the_parameters_say_so(project):
    recording_folder(MINE, [], masks=False)
    frames = pd.read_parquet(MINE / "frames.parquet")
    more = pd.concat([frames, frames.tail(2).assign(frame_id=[6, 7], step=[2, 3], time_s=[0.2, 0.3])])
    more.to_parquet(MINE / "frames.parquet")
    save_depth(MINE / "depth/000006.png", np.full((12, 16), 900))
    (MINE / "depth/000007.png").write_bytes(b"")
    refused()
    Path("params.yaml").write_text(default_params().replace("on_error: fail", "on_error: skip"))
    with pytest.warns(UserWarning, match="1 of 8 depth images are broken or missing; left out: frames 7"):
        add_recording(MINE, processes=1)
    assert params()["data"]["root"] == "data/mine"


def test_masks_need_the_names_of_their_classes(project):
    recording_folder(MINE, ["front"])
    info = json.loads((MINE / "recording.json").read_text())
    del info["classes"]
    (MINE / "recording.json").write_text(json.dumps(info))
    assert "names no classes, but there is data/mine/masks; list their names under classes" in refused()


def test_a_folder_that_is_tracked_but_not_here_is_no_missing_modality(project):
    recording_folder(MINE, ["front"])
    add_recording(MINE, processes=1)
    shutil.rmtree(MINE / "masks")
    assert refused() == (
        "data/mine/masks: tracked, but not here; fetch it: dvc pull data/mine/masks, or: dvc remove data/mine/masks.dvc"
    )


def test_a_folder_that_is_tracked_as_one_is_refused(project):
    recording_folder(MINE, ["front"])
    with Repo() as repo:
        repo.add(str(MINE))
    assert "data/mine.dvc: tracks all of data/mine, but stages need its parts: dvc remove data/mine.dvc" in refused()


def test_what_a_stage_makes_is_not_added(project):
    recording_folder(MINE, ["front"])
    Path("dvc.yaml").write_text("stages: {make: {cmd: 'true', outs: [data/mine/depth]}}")
    assert "data/mine/depth: the stage make makes it, so there is nothing to add" in refused()


def test_only_folders_of_the_project_are_added(project, tmp_path_factory, monkeypatch):
    elsewhere = recording_folder(tmp_path_factory.mktemp("elsewhere") / "rec", ["front"])
    Path("data").mkdir()
    Path("data/link").symlink_to(elsewhere)
    for outside in (elsewhere, "data/link", "."):
        assert f"{outside}: lies outside this project, so DVC cannot track it; move or copy" in refused(outside)
    assert refused("data/none") == "data/none: no such folder"
    recording_folder(Path("data/a b"), ["front"])
    assert "data/a b: becomes part of commands in dvc.yaml; rename it" in refused("data/a b")
    recording_folder(MINE, ["front left"])
    assert "cameras: 'front left' becomes part of commands in dvc.yaml; rename it without spaces" in refused()
    monkeypatch.chdir("data")
    with pytest.raises(UserError, match=r"params.yaml: not here, or not in the root of a DVC project; run this"):
        add_recording(Path("mine"))


def test_an_absolute_path_into_the_project_is_written_from_its_root(project):
    recording_folder(MINE, ["front"])
    add_recording(MINE.resolve(), processes=1)
    assert params()["data"]["root"] == "data/mine"


def test_what_dvc_refuses_is_one_line_and_leaves_the_parameters(project):
    recording_folder(MINE, ["front"])
    Path(".dvcignore").write_text("/data/mine/depth\n")
    message = refused()
    assert message.startswith("dvc: ")
    assert "\n" not in message


def test_the_script_asks_in_one_line_and_prints_what_to_do(project, stage):
    recording_folder(MINE, ["front", "back"])
    line = only_error_line(stage("add_recording", MINE, "--processes", 1))
    assert line.startswith("add_recording.py: error: data/mine/recording.json: does not say which camera's images")
    done = stage("add_recording", MINE, "--processes", 1, "--mask-camera", "back")
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith(
        'Next:\n  git add params.yaml data/mine\n  git commit -m "Use data/mine"\n  dvc repro\n'
    )


def test_of_several_depth_cameras_one_is_trained_on_until_more_are_asked_for(project):
    recording_folder(MINE, VIEWS)
    for camera in ("wrist", "high"):
        shutil.copytree(MINE / "depth", project / camera)
    shutil.rmtree(MINE / "depth")
    for camera in ("wrist", "high"):
        shutil.copytree(project / camera, MINE / "depth" / camera)
    said = add_recording(MINE, "top", VIEWS, processes=1)
    assert params()["stages"]["depth"] == ["depth/high"]
    assert params()["stages"]["images"][:2] == ["depth/high", "depth/wrist"]
    assert "(an autoencoder for each; there are depth/high, depth/wrist)" in said
    assert {f"data/mine/depth/{camera}.dvc" for camera in ("high", "wrist")} <= set(state())
    lists = StageLists.model_validate_json(json.dumps(params()["stages"]))
    assert check_parameters(MINE, lists, "top", VIEWS)["stages.depth"] == ["depth/high"]
    absent = lists.model_copy(update={"depth": ("depth/left",)})
    with pytest.raises(UserError, match=r"stages.depth: \[depth/left\], but there is no folder .*; set it to \[\]"):
        check_parameters(MINE, absent, "top", VIEWS)


def test_black_and_white_masks_are_asked_for_their_class(project):
    recording_folder(MINE, ["front"])
    masks = sorted((MINE / "masks").iterdir())
    for path in masks:
        Image.fromarray(np.resize(np.array([0, 255], np.uint8), (8, 8))).save(path)
    words = f'data/mine/masks: the {len(masks)} masks hold 0 and 255 alone, and 255 means "ignore": nothing to learn; '
    assert refused() == f"{words}if 255 is a class, set segmentation.mask_values={{255: 1}} in params.yaml"
    text = Path("params.yaml").read_text()
    Path("params.yaml").write_text(text.replace("mask_values: ", "mask_values: {255: 1} "))
    add_recording(MINE, processes=1)
    Path("params.yaml").write_text(text)
    Image.fromarray(np.resize(np.array([0, 1, 255], np.uint8), (8, 8))).save(masks[0])
    add_recording(MINE, processes=1)  # 255 is "ignore" beside another class
