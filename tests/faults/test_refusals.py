"""What the machine refuses (disk, permission, open files, memory, a worker) is one line that says what to do."""

import contextlib
import os
import resource
import signal
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest
from kill import PATIENCE, start, wait_for
from world import COMMANDS, Said, contents, copy_world, run_command

MIB = 2**20
pytestmark = pytest.mark.slow


@pytest.fixture
def place(world, tmp_path) -> Path:
    return copy_world(world, tmp_path / "w")


def limited(place: Path, command: str, limit: Callable[[], object], arguments: str | None = None) -> Said:
    """Run a command in a process of its own, under a limit."""
    reading, writing = os.pipe()
    process = os.fork()
    if not process:
        code = 70
        try:
            limit()
            said = run_command(place, command, arguments)
            os.write(writing, said.stderr[-4000:].encode())
            code = said.code
        except BaseException:
            os.write(writing, traceback.format_exc()[-4000:].encode())
        finally:
            os._exit(code)
    os.close(writing)
    code = wait_for(process, PATIENCE)
    if code is None:
        os.kill(process, signal.SIGKILL)
    with open(reading, encoding="utf-8") as file:
        return Said(-1 if code is None else code, file.read())


def outputs(place: Path) -> list[str]:
    return [name for name in contents(place) if name.startswith("out/")]


@pytest.mark.parametrize(
    ("command", "kib"),
    [
        ("simulate", 4), ("validate", 1), ("normalize", 100), ("train_autoencoder", 4000), ("extract_encoder", 100),
        ("embed", 2), ("clip_grids", 40), ("pack_views", 40), ("train_fusion", 100), ("predict act", 1),
        ("export", 100),
    ],
)  # fmt: skip
def test_no_room_for_a_file(command, kib, place):
    size = kib * 1024
    said = limited(place, command, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size)))
    assert said.code == 1, said.stderr
    assert "the file is larger than is allowed here" in said.error, said.stderr
    assert "\n" not in said.error
    assert outputs(place) == []


def test_no_room_for_the_images_that_one_process_reads_for_another(place):
    said = limited(place, "clip_grids", lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000)))
    assert said.code == 1, said.stderr
    reason = "4 images do not fit into shared memory; lower grids.clip.batch_size, or "
    assert said.error.startswith(reason), said.stderr
    assert outputs(place) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root mounts a small disk")
def test_a_full_disk(place):
    disk = place / "out"
    disk.mkdir()
    if os.system(f"mount -t tmpfs -o size=100k tmpfs {disk} 2>/dev/null"):
        pytest.skip("mounting is not allowed here")
    try:
        for command in ("normalize", "pack_views", "extract_encoder", "embed", "train_fusion"):
            (disk / "ballast").write_bytes(bytes(98_304))
            said = limited(place, command, lambda: None)
            assert said.code == 1, said.stderr
            assert "the disk is full; make room" in said.error, said.stderr
            assert outputs(place) == ["out/ballast"]
    finally:
        os.system(f"umount {disk}")


@pytest.mark.parametrize("command", ["validate", "normalize", "extract_encoder", "pack_views"])
def test_a_folder_that_cannot_be_written(command, place):
    said = run_command(place, command, COMMANDS[command].replace("out/", "/sys/out/").replace(" out ", " /sys/out "))
    assert said.code == 1
    assert "/sys" in said.error
    assert any(word in said.error for word in ("permission denied", "read-only", "not permitted")), said.error


def test_too_many_open_files(place):
    def few() -> None:
        used = max(map(int, os.listdir("/proc/self/fd")))
        resource.setrlimit(resource.RLIMIT_NOFILE, (used + 8, used + 8))
        with contextlib.suppress(OSError):
            while True:
                last = os.dup(0)
        for number in range(last - 2, last + 1):
            os.close(number)

    said = limited(place, "clip_grids", few)
    assert said.code == 1, said.stderr
    assert "too many open files; raise the limit" in said.error
    assert outputs(place) == []


def used_memory() -> int:
    """Address space of this process, bytes."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


@pytest.mark.parametrize(
    ("command", "setting", "words"),
    [
        (
            "train_segmentation", "segmentation.batch_size=30000",
            "lower segmentation.batch_size (30000) and segmentation.unlabelled_batch_size (2)",
        ),
        ("embed", "embed.batch_size=4096", "lower embed.batch_size (4096)"),
    ],
)  # fmt: skip
def test_no_memory_for_a_step(command, setting, words, place):
    def little() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (used_memory() + 150 * MIB,) * 2)

    said = limited(place, command, little, f"{COMMANDS[command]} --set {setting}")
    assert said.code == 1, said.stderr
    assert said.error == f"out of memory; {words}", said.stderr
    assert outputs(place) == []


def test_a_worker_that_is_killed(place):
    """The process that reads photographs dies: the command says so, and goes on when it is run again."""
    process, worker = start(place, "clip_grids"), None
    while worker is None and not wait_for(process, 0):
        time.sleep(0.001)
        children = Path(f"/proc/{process}/task/{process}/children")
        worker = next(iter(children.read_text().split() if children.is_file() else []), None)
    assert worker
    os.kill(int(worker), signal.SIGKILL)
    assert wait_for(process, PATIENCE) == 1
    assert "a process that reads images died" in (place / "said.txt").read_text()
    assert outputs(place) == []
    assert run_command(place, "clip_grids").code == 0
