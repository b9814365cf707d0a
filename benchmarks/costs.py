"""What a command costs: time of the processor, time of the clock, memory."""

import os
import subprocess
import threading
import time
from pathlib import Path

import psutil


def measured(command: list[str], room: Path) -> dict[str, float]:
    """Seconds of the processor, seconds of the clock, and the most anonymous MiB of a command and its processes."""
    start, before, most = time.perf_counter(), os.times(), [0.0]
    environment = os.environ | {"DVC_ROOT": str(room)}
    with subprocess.Popen(command, cwd=room, env=environment, stderr=subprocess.PIPE, text=True) as process:
        watcher = threading.Thread(target=_watch, args=(process.pid, most))
        watcher.start()
        _, errors = process.communicate()
        watcher.join()
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{errors}")
    after = os.times()
    used = after.children_user + after.children_system - before.children_user - before.children_system
    return {"cpu_s": used, "wall_s": time.perf_counter() - start, "anonymous_mib": most[0]}


def _watch(pid: int, most: list[float]) -> None:
    try:
        process = psutil.Process(pid)
        while process.status() != psutil.STATUS_ZOMBIE:
            most[0] = max(most[0], sum(anonymous_mib(p.pid) for p in (process, *process.children(recursive=True))))
            time.sleep(0.05)
    except psutil.NoSuchProcess:
        return


def anonymous_mib(pid: int) -> float:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0.0  # it has just ended
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("RssAnon")), 0.0)
