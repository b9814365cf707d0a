"""Kill the commands at random moments, run them again, and compare with a run that was left alone, byte for byte.

    python tests/faults/kill.py --kills 20              # of every stage; a row for each
    python tests/faults/kill.py --kills 4 --only embed

A command is the real script in a process of its own, forked from this one, which has imported everything already: so
the moments fall into its work, not into loading libraries.
"""

import argparse
import hashlib
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import lightning  # noqa: F401
import open_clip  # noqa: F401
import torch
from tqdm import tqdm
from world import STAGES, copy_world, make_world, run_command

from sightline.core.cli import end_loading

torch.set_num_threads(1)  # a forked process would wait for threads that only its parent has

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
IN_A_ROW = 4  # kills at most before a run is let through
PATIENCE = 120.0  # seconds until a command counts as hanging


@dataclass
class Tally:
    """What became of the kills of a command."""

    command: str
    seconds: float = 0.0  # of a run that is left alone
    kills: int = 0
    by_signal: Counter[str] = field(default_factory=Counter)
    rounds: int = 0
    slowest: float = 0.0  # seconds from SIGTERM or SIGINT to the end
    bytes_lost: int = 0
    faults: list[str] = field(default_factory=list)

    @property
    def survived(self) -> int:
        """Kills that did no harm, counting one for each fault."""
        return max(0, self.kills - len(self.faults))


def start(world: Path, command: str) -> int:
    """Start a command in a process group of its own -> its process id."""
    process = os.fork()
    if process:
        return process
    code = 70
    try:
        os.setsid()
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        tqdm.set_lock(threading.RLock())  # not the parent's, which a killed process would never give back
        said = run_command(world, command)
        (world / "said.txt").write_text(said.stderr)
        code = said.code
    except BaseException as error:
        (world / "said.txt").write_text(traceback.format_exc())
        end_loading(type(error), error, error.__traceback__)  # as in a script: Ctrl-C ends it
    finally:
        os._exit(code)


def wait_for(process: int, seconds: float) -> int | None:
    """Exit status (negative: the signal) of a process that ends within ``seconds``; None for one that does not."""
    end = time.monotonic() + seconds
    while True:
        found, status = os.waitpid(process, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() >= end:
            return None
        time.sleep(0.002)


def outputs(world: Path) -> dict[str, str]:
    """Every file below out/ and its hash."""
    return {
        str(path.relative_to(world)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted((world / "out").rglob("*"))
        if path.is_file()
    }


def kill_and_repeat(command: str, world: Path, kills: int, seed: int) -> Tally:
    """Kill ``command`` ``kills`` times, up to `IN_A_ROW` times before each run that is let through."""
    rng, tally = random.Random(f"{seed}:{command}"), Tally(command)
    with tempfile.TemporaryDirectory() as folder:
        whole = copy_world(world, Path(folder) / "whole")
        began = time.monotonic()
        assert wait_for(start(whole, command), PATIENCE) == 0, (whole / "said.txt").read_text()
        tally.seconds = time.monotonic() - began
        expected = outputs(whole)
        while tally.kills < kills and tally.rounds < 20 * kills:  # short commands often end first
            tally.rounds += 1
            place = copy_world(world, Path(folder) / f"round{tally.rounds}")
            for _ in range(min(IN_A_ROW, kills - tally.kills)):
                if not _kill_once(command, place, tally, expected, rng):
                    break
            finished = command.startswith("import_") and outputs(place) == expected  # it does not import twice
            code = 0 if finished else wait_for(start(place, command), PATIENCE)
            found = outputs(place)
            if code != 0 or found != expected:
                said = (place / "said.txt").read_text()[-500:] if (place / "said.txt").is_file() else ""
                differing = sorted(name for name in expected | found if expected.get(name) != found.get(name))
                tally.bytes_lost += sum((whole / name).stat().st_size for name in differing if name in expected)
                tally.faults.append(f"round {tally.rounds}: status {code}, differs in {differing}: {said}")
            left = [path for path in place.glob(".scratch/*/**/*") if path.is_file() and "cache" not in path.parts]
            if code == 0 and left and not finished:
                tally.faults.append(f"round {tally.rounds}: left behind: {left}")
            shutil.rmtree(place)
    return tally


def _kill_once(command: str, place: Path, tally: Tally, expected: dict[str, str], rng: random.Random) -> bool:
    """Start, and kill at a random moment -> whether it came in time; what stands in out/ then must be whole."""
    number, moment = rng.choice(SIGNALS), rng.uniform(0, tally.seconds)
    process = start(place, command)
    code = wait_for(process, moment)
    if code is not None:
        return False
    began = time.monotonic()
    try:
        (os.killpg if number is signal.SIGKILL else os.kill)(process, number)
    except ProcessLookupError:  # it has no group of its own yet
        os.kill(process, number)
    code = wait_for(process, PATIENCE)
    if code is None:
        os.kill(process, signal.SIGKILL)
        tally.faults.append(f"{number.name} after {moment:.2f} s: goes on")
        return False
    if code == 0:
        return False  # it was ending
    tally.kills += 1
    tally.by_signal[number.name] += 1
    if number is not signal.SIGKILL:
        tally.slowest = max(tally.slowest, time.monotonic() - began)
        if code not in (128 + number, -number):
            said = (place / "said.txt").read_text()[-1500:] if (place / "said.txt").is_file() else ""
            tally.faults.append(f"{number.name} after {moment:.2f} s: status {code}: {said}")
    half = [n for n, sha in outputs(place).items() if not Path(n).name.startswith(".") and _half(n, sha, expected)]
    if half:
        tally.faults.append(f"{number.name} after {moment:.2f} s: half-written {half}")
    return True


def _half(name: str, sha256: str, expected: dict[str, str]) -> bool:
    """Whether a file is not as it should be, where it stands in a place of its own (not in a hidden folder)."""
    return not any(part.startswith(".") for part in Path(name).parts) and expected.get(name) != sha256


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20, help="of each stage (20)")
    parser.add_argument("--seed", type=int, default=0, help="decides moments and signals (0)")
    parser.add_argument("--only", nargs="+", default=list(STAGES), choices=STAGES, help="these stages")
    parser.add_argument("--world", type=Path, help="folder that make_world has written (default: a new one)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        world = args.world or make_world(Path(folder) / "world")
        tallies = []
        for command in args.only:
            tallies.append(kill_and_repeat(command, world, args.kills, args.seed))
            print(row(tallies[-1]), flush=True)
            print(*tallies[-1].faults, sep="\n", end="\n" * bool(tallies[-1].faults), flush=True)
    return int(any(tally.faults or tally.kills < args.kills for tally in tallies))


def row(tally: Tally) -> str:
    """A row of the table in docs/reliability.md."""
    signals = ", ".join(f"{name} {count}" for name, count in sorted(tally.by_signal.items()))
    return (
        f"| {tally.command} | {tally.survived} / {tally.kills} | {signals} | {tally.rounds} | {tally.seconds:.1f} s | "
        f"{tally.slowest:.1f} s | {tally.bytes_lost} |"
    )


if __name__ == "__main__":
    sys.exit(main())
