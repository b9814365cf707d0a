"""Work in several processes: all results come back, and nobody is left behind."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sightline.core.errors import UserError
from sightline.core.parallel import unordered_map


def square(number: int) -> int:
    return number * number


def die(_: int) -> None:
    os._exit(1)


def wait_long(folder: Path) -> None:
    (folder / str(os.getpid())).touch()
    time.sleep(60)


def test_every_result_comes_back_whatever_the_number_of_processes():
    for processes in (1, 2):
        jobs = [(i, 1) for i in range(9)]
        found = unordered_map(square, jobs, total=9, unit="n", title="squares", processes=processes)
        assert sorted(found) == [i * i for i in range(9)]


def test_a_worker_that_dies_is_an_error_and_so_is_no_worker():
    with pytest.raises(UserError, match="a worker process died"):
        list(unordered_map(die, [(1, 1), (2, 1)], total=2, unit="n", title="t", processes=2))
    with pytest.raises(UserError, match="--processes 0: at least 1"):
        list(unordered_map(square, [(1, 1)], total=1, unit="n", title="t", processes=0))


def test_the_workers_of_a_killed_command_end_too(tmp_path):
    code = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from pathlib import Path\nfrom test_parallel import wait_long\n"
        "from sightline.core.parallel import unordered_map\n"
        "if __name__ == '__main__':\n"
        f"    jobs = [(Path({str(tmp_path)!r}), 1)] * 2\n"
        "    list(unordered_map(wait_long, jobs, total=2, unit='n', title='t', processes=2))\n"
    )
    (tmp_path / "command.py").write_text(code)
    command = subprocess.Popen([sys.executable, tmp_path / "command.py"], stderr=subprocess.DEVNULL)
    waits_until(lambda: len(_workers(tmp_path)) == 2)
    command.send_signal(signal.SIGKILL)
    command.wait()
    waits_until(lambda: not any(_is_alive(worker) for worker in _workers(tmp_path)))


def _workers(folder: Path) -> list[int]:
    return [int(path.name) for path in folder.iterdir() if path.name.isdigit()]


def _is_alive(process: int) -> bool:
    try:
        return " Z " not in Path(f"/proc/{process}/stat").read_text()
    except FileNotFoundError:
        return False


def waits_until(condition) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)
