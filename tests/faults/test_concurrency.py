"""Two at the same thing: correct, or refused."""

import fcntl
import json
import os
import pickle
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from kill import PATIENCE, outputs, start, wait_for
from world import ROOT, copy_world, run_command

from sightline.core.errors import UserError
from sightline.core.files import claim, discard
from sightline.depth.store import DepthStore
from sightline.fusion.views import Views
from sightline.grids.store import GridStore

pytestmark = pytest.mark.slow


@pytest.fixture
def place(world, tmp_path) -> Path:
    return copy_world(world, tmp_path / "w")


def is_held(lock: Path) -> bool:
    """Whether some process holds the lock of this file."""
    with open(lock, "a") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


@pytest.mark.parametrize("command", ["clip_grids", "embed"])
def test_two_extractions_into_one_output_give_what_one_gives(command, world, tmp_path):
    alone, place = copy_world(world, tmp_path / "alone"), copy_world(world, tmp_path / "together")
    assert run_command(alone, command).code == 0
    processes = [start(place, command) for _ in range(2)]
    assert [wait_for(process, PATIENCE) for process in processes] == [0, 0], (place / "said.txt").read_text()
    assert outputs(place) == outputs(alone)


@pytest.mark.parametrize("command", ["normalize", "pack_views", "train_fusion", "render"])
def test_the_second_of_two_that_would_share_their_scratch_is_refused(command, world, tmp_path):
    alone = copy_world(world, tmp_path / "alone")
    assert run_command(alone, command).code == 0
    for attempt in range(20):
        place = copy_world(world, tmp_path / f"together{attempt}")
        first = start(place, command)
        while not list((place / ".scratch").glob("*/*/lock")):
            time.sleep(0.001)
        os.kill(first, 19)  # SIGSTOP: in the middle, if it has claimed the folder and not ended yet
        if any(is_held(path) for path in (place / ".scratch").glob("*/*/lock")):
            break
        os.kill(first, 18)
        wait_for(first, PATIENCE)
    else:
        pytest.fail("was never stopped in the middle")
    said = run_command(place, command)
    os.kill(first, 18)  # SIGCONT
    assert said.code == 1, said.stderr
    assert "another process is doing the same work; wait for it, or stop it" in said.error
    assert wait_for(first, PATIENCE) == 0
    assert outputs(place) == outputs(alone)


def test_a_claim_ends_with_its_process_or_its_folder(tmp_path):
    code = (
        "from pathlib import Path; from sightline.core.files import claim\n"
        f"claim(Path({str(tmp_path / 's')!r})); input()"
    )
    other = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE)
    while not (tmp_path / "s/lock").exists():
        time.sleep(0.01)
    time.sleep(0.2)
    with pytest.raises(UserError, match="another process is doing the same work"):
        claim(tmp_path / "s")
    other.kill()
    other.wait()
    claim(tmp_path / "s")
    discard(tmp_path / "s")
    assert list(tmp_path.iterdir()) == []


def other_grids(path: Path) -> None:
    """Replace the store by one of the same shape whose rows belong to other images."""
    import h5py

    new = path.with_suffix(".new")
    new.write_bytes(path.read_bytes())
    with h5py.File(new, "r+") as file:
        file["grids"][...] = file["grids"][:][::-1]
        file["image_ids"][...] = file["image_ids"][:] + 1000
    os.replace(new, path)


def test_a_reader_never_mixes_a_store_with_the_one_that_replaces_it(place):
    store = GridStore(place / "clip.hdf5")
    expected = store.read(store.image_ids).copy()
    pickled = pickle.dumps(store)
    other_grids(place / "clip.hdf5")
    assert (store.read(store.image_ids) == expected).all()  # the file that was opened
    store.close()
    for reader in (store, pickle.loads(pickled)):  # they would open by name
        with pytest.raises(UserError, match=r"clip.hdf5: has been replaced since it was opened; open it again"):
            reader.read([0])
    assert GridStore(place / "clip.hdf5").image_ids.tolist() == list(range(1000, 1016))


@pytest.mark.parametrize(("name", "opened"), [("depth.hdf5", DepthStore.open), ("views.hdf5", Views.open)])
def test_an_open_file_keeps_its_rows_when_another_takes_its_name(name, opened, place):
    store = opened(place / name)
    images = store.depth if name == "depth.hdf5" else store.images
    expected = np.array(images)
    (place / "new").write_bytes(bytes(1000))
    os.replace(place / "new", place / name)
    assert (images == expected).all()
    with pytest.raises(UserError, match="not a readable HDF5 file"):
        opened(place / name)


def test_two_dvc_repro_at_once(place):
    """One runs, the other waits or is told that it is busy; the outputs are those of one."""
    command = f"{sys.executable} {ROOT}/stages/clip_grids.py rec/rgb/global clip2.hdf5 --metrics-dir m --params p.yaml"
    (place / "params.yaml").rename(place / "p.yaml")
    stage = {"cmd": f"env -u DVC_STAGE {command}", "deps": ["rec/rgb/global"], "outs": ["clip2.hdf5", "m"]}
    (place / "dvc.yaml").write_text(json.dumps({"stages": {"grids": stage}}))  # by hand, as for --params
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    subprocess.run(["dvc", "init", "--no-scm", "-q"], cwd=place, env=environment, check=True)
    both = [
        subprocess.Popen(["dvc", "repro"], cwd=place, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        for _ in range(2)
    ]
    said = [process.communicate(timeout=PATIENCE)[0].decode() for process in both]
    codes = [process.returncode for process in both]
    assert 0 in codes, said
    assert all(code == 0 or "busy" in text or "lock" in text for code, text in zip(codes, said, strict=True)), said
    assert run_command(place, "clip_grids", "rec/rgb/global alone.hdf5 --metrics-dir a --params p.yaml").code == 0
    assert (place / "clip2.hdf5").read_bytes() == (place / "alone.hdf5").read_bytes()
    again = subprocess.run(["dvc", "repro"], cwd=place, env=environment, capture_output=True, text=True, check=True)
    assert "didn't change, skipping" in again.stdout
