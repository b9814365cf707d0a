"""Through DVC: an imported set of eight cameras, learnt from with none, one, two, four and eight of them."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from dvc.utils.hydra import apply_overrides
from PIL import Image
from test_pipeline import Clone

from sightline.core.errors import UserError
from sightline.recording.layout import RecordingInfo, check_pack, packs_for, write_recording_info

CAMERAS = tuple("abcdefgh")
EPISODES, STEPS = 4, 4
LISTS = {8: "many_views", 4: "views", 2: "views", 1: "one_view", 0: "no_views"}


def write_recording(root: Path) -> Path:
    """Four episodes of four frames, seen by eight cameras; two joints."""
    rng, count = np.random.default_rng(0), EPISODES * STEPS
    for camera in CAMERAS:
        (root / "rgb" / camera).mkdir(parents=True)
        for i in range(count):
            Image.fromarray(rng.integers(0, 255, (24, 32, 3), np.uint8)).save(root / f"rgb/{camera}/{i:06d}.png")
    step = np.tile(np.arange(STEPS), EPISODES)
    joints = rng.normal(size=(count, 2)).round(3)
    table = {"frame_id": range(count), "episode": np.arange(EPISODES).repeat(STEPS), "step": step, "time_s": step / 10,
             "joints": list(joints), "actions": list(joints + 0.1), "task": ["lift"] * count}  # fmt: skip
    pd.DataFrame(table).to_parquet(root / "frames.parquet")
    write_recording_info(root / "recording.json", RecordingInfo(fps=10, cameras=CAMERAS, joints=("lift", "turn")))
    return root


def test_each_number_of_cameras_has_a_list_and_its_stage_takes_no_other():
    for count in range(9):
        fitting = [name for name, targets in packs_for(["actions"], count).items() if targets]
        assert len(fitting) == 1
        check_pack(f"pack_{fitting[0]}@actions", count)
        for other in {"no_views", "one_view", "views", "many_views"} - set(fitting):
            if (count, other) != (4, "many_views"):
                with pytest.raises(
                    UserError, match=rf"{count} of them, but stages.pack.{other} is for .*; move actions"
                ):
                    check_pack(f"pack_{other}@actions", count)
    check_pack("", 7)  # by hand


@pytest.mark.slow
def test_an_imported_set_is_learnt_from_with_any_number_of_its_cameras(tmp_path):
    clone, params = Clone(tmp_path / "clone"), tmp_path / "clone/params.yaml"
    recording = write_recording(tmp_path / "rec")
    clone.run("python", "tools/export_lerobot.py", str(recording), str(tmp_path / "set"))
    clone.run("python", "stages/import_lerobot.py", str(tmp_path / "set"), "data/mine", "--processes", "1")
    for count, name in LISTS.items():
        cameras = CAMERAS[:count]
        said = clone.run("python", "stages/add_recording.py", "data/mine", "--processes", "1", "--views", *cameras)
        assert f"  stages.pack.{name}: [actions]\n" in said.stdout
        apply_overrides(params, [f"stages.designs=[{'stacked' if count else 'joints_only'}]"])
        ran = clone.ran("repro", "evaluate_fusion")
        packed = f"pack_{name}@actions"
        assert packed in ran
        lock = yaml.safe_load((clone.root / "dvc.lock").read_text())["stages"][packed]
        read = {dep["path"] for dep in lock["deps"]}
        assert {path for path in read if "/rgb/" in path} == {
            path for camera in cameras for path in (f"data/mine/rgb/{camera}", f"data/index/rgb/{camera}.parquet")
        }
        design = "stacked" if count else "joints_only"
        use = json.loads(
            (clone.root / f"metrics/evaluate_fusion/actions/{design}/evaluation_results.json").read_text()
        )["use"]
        assert {key for key in use if key.startswith("blank_")} == {f"blank_{camera}" for camera in cameras}
        card = (clone.root / f"models/fusion/actions/{design}.card.md").read_text()
        assert (f"B, {count}, 3, 32, 32" in card) == (count > 0)
    apply_overrides(params, ["views.cameras=[a,b,c,d,e]", "stages.pack.no_views=[]", "stages.pack.views=[actions]"])
    refused = clone.run("dvc", "repro", "check", ok=False)
    assert (
        "stages.pack: views [actions], but stages.demonstrations is [actions] and views.cameras names 5; set "
        "-S 'stages.pack.views=[]' -S 'stages.pack.many_views=[actions]'" in refused.stderr
    )
    refused = clone.run("dvc", "repro", "evaluate_fusion", ok=False)  # which asks no check
    assert "views.cameras: 5 of them, but stages.pack.views is for 2 to 4; move actions to" in refused.stderr
