"""The check of the parameters against a recording: all that does not fit, a line for each, before anything runs."""

import json
import shutil
import subprocess
import sys
import time
from typing import get_args

import pytest
from conftest import only_error_line, recording_folder
from dvc.repo import Repo
from dvc.utils.hydra import apply_overrides
from test_pipeline import Clone

from sightline.core.errors import UserError
from sightline.recording.layout import StageLists, packs_for
from sightline.validation.parameters import DESIGNS, RENAMED, MaskCamera, ViewCameras, check_parameters

VIEWS = ("left", "right", "top")
NONE = {
    "images": (), "depth": (), "masks": (), "demonstrations": (), "segmentation_with": (),
    "grids": {"names": ("net",), "cameras": ()}, "fusion_with": {"designs": (), "features": ()},
    "pack": {"views": ()}, "rollouts": (),
}  # fmt: skip


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A recording of three cameras in the working directory."""
    monkeypatch.chdir(tmp_path)
    return recording_folder(tmp_path / "rec", VIEWS).relative_to(tmp_path)


def of(*cameras: str) -> dict[str, tuple[str, ...]]:
    """Grids of one network."""
    return {"names": ("net",), "cameras": cameras}


def complaints(place, camera="top", views=VIEWS, **lists) -> list[str]:
    """The lines; the lists of stages.pack fit unless they are given."""
    packs = {name: tuple(of_them) for name, of_them in packs_for(lists.get("demonstrations", ()), len(views)).items()}
    lists.setdefault("pack", packs)
    with pytest.raises(UserError) as error:
        check_parameters(place, StageLists(**(NONE | lists)), camera, views)
    return str(error.value).splitlines()


ALL = ("depth", "masks", "rgb/left", "rgb/right", "rgb/top")


def test_what_fits_is_summed_up_by_what_the_stages_need(place):
    of_fusion = {"designs": ("joints_only",), "features": ("grids/net/left", "embeddings/depth.hdf5")}
    of_masks = ("embeddings/depth.hdf5",)
    lists = StageLists(
        images=ALL, grids=of("left"), designs=("stacked",), segmentation_with=of_masks, fusion_with=of_fusion,
        rollouts=(),
    )  # fmt: skip
    assert check_parameters(place, lists, "top", VIEWS) == {
        "stages.images": list(ALL), "stages.depth": ["depth"], "stages.masks": ["masks"],
        "stages.grids.names": ["net"], "stages.grids.cameras": ["left"],
        "stages.demonstrations": ["actions"], "stages.designs": ["stacked"],
        "stages.segmentation_with": ["embeddings/depth.hdf5"], "stages.fusion_with.designs": ["joints_only"],
        "stages.fusion_with.features": ["grids/net/left", "embeddings/depth.hdf5"],
        "segmentation.camera": ["top"], "views.cameras": list(VIEWS),
    }  # fmt: skip
    names = ("images", "depth", "masks", "demonstrations", "grids.names", "grids.cameras")
    assert set(check_parameters(place, StageLists(**NONE), "nobody", ())) == {f"stages.{name}" for name in names}
    check_parameters(
        place, StageLists(**(NONE | {"segmentation_with": ("grids/net/no",)})), "nobody", ()
    )  # makes no stage


def test_everything_that_does_not_fit_is_named_at_once(tmp_path, monkeypatch):
    """The parameters of the demo, on a recording of one camera."""
    monkeypatch.chdir(tmp_path)
    rec = recording_folder(tmp_path / "rec", ["front"], depth=False, masks=False).relative_to(tmp_path)
    cameras = "rec/recording.json, which has: front"
    with pytest.raises(UserError) as error:
        check_parameters(rec, StageLists(), MaskCamera().camera, ViewCameras().cameras)
    assert str(error.value).splitlines() == [
        "stages.images: depth, but rec/recording.json describes no depth; remove it from the list",
        "stages.images: masks, but rec/recording.json names no classes; remove it from the list",
        f"stages.images: rgb/left_wrist, but left_wrist is not a camera of {cameras}; remove it from the list",
        f"stages.images: rgb/right_wrist, but right_wrist is not a camera of {cameras}; remove it from the list",
        f"stages.images: rgb/global, but global is not a camera of {cameras}; remove it from the list",
        "stages.depth: [depth], but rec/recording.json describes no depth; set it to []",
        f"stages.grids.cameras: global is not a camera of {cameras}",
        "stages.masks: [masks], but rec/recording.json names no classes; set it to []",
        *(f"views.cameras: {name} is not a camera of {cameras}" for name in ("left_wrist", "right_wrist", "global")),
        "stages.rollouts: [actions], but rec is not of the simulator: it has no states.hdf5; set it to []",
    ]


@pytest.mark.parametrize(
    ("lists", "line"),
    [
        ({"images": ("labels",)}, "stages.images: labels, but folders of images are depth, depth/<camera>, masks and "
         "rgb/<camera>; remove it from the list"),
        ({"depth": ("depth",)}, "stages.depth needs depth, which is not in stages.images; add it there"),
        ({"depth": ("masks",)}, "stages.depth: [masks], but masks are not depth; set it to []"),
        ({"grids": of("left")}, "stages.grids.cameras needs rgb/left, which is not in stages.images; add it there"),
        ({"masks": ("masks",), "images": ("rgb/top",)}, "stages.masks needs masks, which is not in stages.images; add "
         "it there"),
        ({"masks": ("masks",), "images": ("masks",)}, "segmentation.camera needs rgb/top, which is not in "
         "stages.images; add it there"),
        ({"masks": ("labels",)}, "stages.masks: [labels], but masks are in the folder masks alone; set it to [masks] "
         "or []"),
        ({"masks": ("masks",), "images": ALL, "camera": "front"}, "segmentation.camera: front is not a camera of "
         "rec/recording.json, which has: left, right, top"),
        ({"demonstrations": ("actions",), "images": ALL[:4]}, "views.cameras needs rgb/top, which is not in "
         "stages.images; add it there"),
        ({"demonstrations": ("actions",), "images": ALL, "views": ("left", "right", "front")}, "views.cameras: front "
         "is not a camera of rec/recording.json, which has: left, right, top"),
        ({"demonstrations": ("actions",), "images": ALL, "views": ("left", "left", "top")}, "views.cameras: at most 8 "
         "different cameras are taken, not ['left', 'left', 'top']; rec/recording.json has: left, right, top"),
        ({"demonstrations": ("actions",), "images": ALL, "views": tuple("abcdefghi")}, "views.cameras: at most 8 "
         f"different cameras are taken, not {list('abcdefghi')}; rec/recording.json has: left, right, top"),
        ({"demonstrations": ("actions",), "images": ALL, "views": ("top",), "pack": {"views": ("actions",)}},
         "stages.pack: views [actions], but stages.demonstrations is [actions] and views.cameras names 1; set "
         "-S 'stages.pack.views=[]' -S 'stages.pack.one_view=[actions]'"),
        ({"demonstrations": ("actions", "joints"), "images": ALL, "pack": {"views": ("actions",)}}, "stages.pack: "
         "views [actions], but stages.demonstrations is [actions, joints] and views.cameras names 3; set "
         "-S 'stages.pack.views=[actions,joints]'"),
        ({"images": ALL, "pack": {"views": ("actions",)}}, "stages.pack: views [actions], but stages.demonstrations "
         "is [] and views.cameras names 3; set -S 'stages.pack.views=[]'"),
        ({"demonstrations": ("actions",), "images": ALL, "pack": {"views": ()}}, "stages.pack: all lists are empty, "
         "but stages.demonstrations is [actions] and views.cameras names 3; set -S 'stages.pack.views=[actions]'"),
        ({"demonstrations": ("actions",), "images": ALL, "views": (), "designs": ("shared", "joints_only")},
         "stages.designs: shared needs a camera, and views.cameras is []; take joints_only"),
        ({"demonstrations": ("actions",), "images": ALL, "designs": ("three",)},
         "stages.designs: three is now called separate; write that"),
        ({"demonstrations": ("actions",), "images": ALL, "depth": ("depth",), "fusion_with": {
            "designs": ("stacked", "joints_only"), "features": ("normalized/depth.hdf5",)}}, "stages.fusion_with: "
         "joints_only sees no images, so not normalized/depth.hdf5; remove it, or take stacked, separate, shared, "
         "images_only"),
        ({"masks": ("masks",), "images": ALL, "depth": ("depth",), "segmentation_with": ("normalized/depth.hdf5",)},
         "stages.segmentation_with: no stage makes normalized/depth.hdf5; with stages.depth and stages.grids as they "
         "are, these are made: embeddings/depth.hdf5; remove it, or choose from them"),
        ({"demonstrations": ("torques",), "images": ALL}, "stages.demonstrations: rec/frames.parquet has no column "
         "torques; it has: frame_id, episode, step, time_s, joints, actions"),
        ({"demonstrations": ("time_s",), "images": ALL}, "stages.demonstrations: time_s of rec/frames.parquet holds "
         "double, not a list of numbers in each row"),
        ({"demonstrations": ("actions",), "images": ALL, "designs": ("nin",)}, "stages.designs: nin is not a fusion "
         "model; choose from stacked, separate, shared, images_only, joints_only"),
        ({"demonstrations": ("actions",), "images": ALL, "grids": of("left"), "fusion_with": {"features": (
            "grids/net/left", "grids/net/top")}}, "stages.fusion_with.features: no stage makes grids/net/top; with "
         "stages.depth and stages.grids as they are, these are made: grids/net/left; remove it, or choose from them"),
        ({"demonstrations": ("actions",), "images": ALL, "depth": ("depth",), "fusion_with": {"designs": ("stacked",),
            "features": ("normalized/high.hdf5",)}}, "stages.fusion_with.features: no stage makes "
         "normalized/high.hdf5; with stages.depth and stages.grids as they are, these are made: "
         "embeddings/depth.hdf5, normalized/depth.hdf5; remove it, or choose from them"),
        ({"demonstrations": ("actions",), "images": ALL, "grids": of("left"), "fusion_with": {"features": (
            "clip/left",)}}, "stages.fusion_with.features: no stage makes clip/left: it was renamed, grids are in "
         "grids/<name>/<camera>; with stages.depth and stages.grids as they are, these are made: grids/net/left; "
         "remove it, or choose from them"),
        ({"grids": {"names": ("a.b",), "cameras": ()}}, "stages.grids.names: 'a.b' names a folder and a section; use "
         "letters, digits and _ only"),
        ({"demonstrations": ("actions",), "images": ALL, "fusion_with": {"designs": ("nin",), "features": ()}},
         "stages.fusion_with.designs: nin is not a fusion model; choose from stacked, separate, shared, images_only, "
         "joints_only"),
        ({"masks": ("masks",), "images": ALL, "segmentation_with": ("embeddings/depth.hdf5",)},
         "stages.segmentation_with: no stage makes embeddings/depth.hdf5; with stages.depth and stages.grids as they "
         "are, these are made: none; remove it, or choose from them"),
        ({"masks": ("masks",), "images": ALL, "grids": of("left", "top"), "segmentation_with": ("grids/net/left",)},
         "stages.segmentation_with: grids/net/left is not of the images that the masks belong to, those of top "
         "(segmentation.camera); remove it, or take grids/net/top"),
    ],
)  # fmt: skip
def test_each_key_is_named_with_what_to_do(place, lists, line):
    assert complaints(place, **lists) == [line]


def test_the_fusion_model_needs_joints(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rec = recording_folder(tmp_path / "rec", VIEWS, joints=None).relative_to(tmp_path)
    (line,) = complaints(rec, images=ALL, demonstrations=("actions",))
    assert line.startswith(
        "stages.demonstrations: rec/frames.parquet has no column joints, which the fusion model needs"
    )


def test_folders_must_be_there_and_hold_an_image(place):
    shutil.rmtree(place / "masks")
    shutil.rmtree(place / "rgb/top")
    (place / "rgb/top").mkdir()
    (place / "rgb/top/.000001.png").write_bytes(b"")
    (place / "rgb/top/notes.txt").write_text("no image")
    assert complaints(place, images=ALL, masks=("masks",), grids=of("top")) == [
        "stages.images: masks, but there is no folder rec/masks; remove it from the list",
        "stages.images: rgb/top, but no image is in rec/rgb/top; remove it from the list",
        "stages.grids.cameras: top, but no image is in rec/rgb/top; copy its images there, or choose another",
        "stages.masks: [masks], but there is no folder rec/masks; set it to []",
    ]


def test_rollouts_are_of_models_that_stages_make_and_of_the_simulated_recording(place, tmp_path):
    (place / "states.hdf5").write_bytes(b"")
    fusion = {"images": ALL, "demonstrations": ("actions",), "designs": ("stacked",)}
    lists = StageLists(**(NONE | fusion | {"pack": {"views": ("actions",)}, "rollouts": ("actions",)}))
    assert check_parameters(place, lists, "top", VIEWS)["stages.rollouts"] == ["actions"]
    line = "stages.rollouts: joints is not in stages.demonstrations; add it there, or remove it here"
    assert complaints(place, **fusion, rollouts=("joints",)) == [line]
    with Repo.init(str(tmp_path), no_scm=True) as repo:
        repo.add(str(place / "states.hdf5"))
    (place / "states.hdf5").unlink()
    assert complaints(place, **fusion, rollouts=("joints",)) == [line], "DVC has it"


def test_a_folder_that_dvc_tracks_need_not_be_here(place, tmp_path):
    """As in a clone that pulls only what it runs."""
    with Repo.init(str(tmp_path), no_scm=True) as repo:
        repo.add(str(place / "masks"))
    shutil.rmtree(place / "masks")
    check_parameters(place, StageLists(**(NONE | {"images": ALL, "masks": ("masks",)})), "top", ())
    (place / "masks.dvc").unlink()
    assert len(complaints(place, images=ALL, masks=("masks",))) == 2


def test_a_camera_with_a_space_would_break_the_commands(tmp_path):
    rec = recording_folder(tmp_path / "rec", ["front left"])
    (line,) = complaints(rec, images=("rgb/front left",))
    assert "stages.images: rgb/front left, but a space in a name parts the words of the commands in dvc.yaml" in line


def test_what_it_repeats_is_what_the_branches_say():
    """The check imports no branch: that would take seconds, and make it depend on their code."""
    from sightline.fusion.network import RENAMED as NEW_NAMES
    from sightline.fusion.network import Design
    from sightline.fusion.views import ViewParams
    from sightline.segmentation.frames import FrameParams

    assert get_args(Design) == DESIGNS
    assert NEW_NAMES == RENAMED
    for excerpt, section in ((MaskCamera, FrameParams), (ViewCameras, ViewParams)):
        for name, field in excerpt.model_fields.items():
            full = section.model_fields[name]
            assert (field.default, field.annotation) == (full.default, full.annotation)
            assert field.description == full.description


def test_the_script_reads_its_keys_of_the_sections_and_writes_what_the_stages_use(place, stage, tmp_path):
    (tmp_path / "params.yaml").write_text(
        "stages: {images: [masks, rgb/left], depth: [], grids: {cameras: []}, masks: [masks], demonstrations: [], "
        "segmentation_with: [], pack: {views: []}, rollouts: []}\n"
        "segmentation: {camera: left, lr: 7}\nviews: {image_size: 3}\n"
    )
    done = stage("check", "rec", "--metrics-dir", "metrics/check")
    assert done.returncode == 0, done.stderr
    used = json.loads((tmp_path / "metrics/check/details.json").read_text())
    assert used["segmentation.camera"] == ["left"]
    line = only_error_line(stage("check", "rec", "--set", "segmentation.camra=right"))
    assert line == "check.py: error: params.yaml: segmentation.camra: unknown key; known here: camera"


def test_it_loads_in_a_moment():
    """None of the libraries that take seconds."""
    heavy = "{'torch', 'lightning', 'pandas', 'dvc', 'monai', 'h5py'}"
    code = f"import sys, sightline.validation.parameters; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.slow
def test_dvc_repro_says_it_in_seconds_before_any_other_stage(tmp_path):
    """On a recording without masks, with the list of masks left in place."""
    clone = Clone(tmp_path / "clone")
    recording_folder(clone.root / "data/mine", ["front"], masks=False)
    changes = ["data.root=data/mine", "stages.images=[depth,masks,rgb/front]", "stages.grids.cameras=[front]"]
    apply_overrides(
        clone.root / "params.yaml",
        [*changes, "segmentation.camera=front", "stages.demonstrations=[]", "stages.pack.views=[]"],
    )
    began = time.monotonic()
    result = clone.run("dvc", "repro", ok=False)
    assert time.monotonic() - began < 30
    assert "Running stage 'check'" in result.stdout
    assert result.stdout.count("Running stage") == 1
    assert "stages.masks: [masks], but data/mine/recording.json names no classes; set it to []\n" in result.stderr
    assert clone.ran("repro", "validate") == ["validate"]  # by itself it minds no lists


def test_files_of_volumes_are_there(place, tmp_path):
    absent, odd = complaints(place, volumes=("hearts", "my hearts"))
    assert "stages.volumes: hearts, but data/volumes/hearts.hdf5 is missing; import it, or remove it" in absent
    assert "stages.volumes: 'my hearts' names a file and outputs; use letters" in odd
    (tmp_path / "data/volumes").mkdir(parents=True)
    (tmp_path / "data/volumes/hearts.hdf5").write_bytes(b"")
    uses = check_parameters(place, StageLists(**(NONE | {"volumes": ("hearts",)})), "top", ())
    assert uses["stages.volumes"] == ["hearts"]
