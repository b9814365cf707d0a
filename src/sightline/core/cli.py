"""What every stage script shares: its command line, its typed parameters, and one-line errors."""

import argparse
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import TypeVar

from sightline.core.errors import UserError, lacks_memory, refusal
from sightline.core.params import Entry, Section, entries_of, load_params
from sightline.core.params_help import help_text
from sightline.core.threads import set_threads

P = TypeVar("P", bound=Section)


def add_shorthands(parser: argparse.ArgumentParser, keys: dict[str, str]) -> None:
    """Let ``--name`` (with hyphens or underscores) stand for ``--set key=...``, for each name -> key or assignment."""
    group = parser.add_argument_group("shorthands for --set")
    for name, key in keys.items():
        options = dict.fromkeys((f"--{name.replace('_', '-')}", f"--{name}"))
        if "=" in key:
            group.add_argument(*options, dest="set", action="append_const", const=key, help=key)
        else:
            value = f"{key}={{}}".format
            group.add_argument(*options, dest="set", action="append", type=value, metavar="VALUE", help=key)


def run_stage(parser: argparse.ArgumentParser, params: type[P], main: Callable[[argparse.Namespace, P], None]) -> None:
    """Run ``main(args, params)`` as a command.

    Adds ``--params FILE`` and ``--set section.key=value`` to ``parser``, and lists the parameters in its help. A
    `UserError`, and what the machine refuses (disk full, no permission, no memory), becomes one line on standard error
    and exit status 1; Ctrl-C becomes exit status 130, SIGTERM 143.
    """
    if params.model_fields:
        group = parser.add_argument_group("parameters (outside DVC)")
        sections = ", ".join(params.model_fields)
        group.add_argument(
            "--params", type=Path, metavar="FILE", help="YAML file (default: ./params.yaml, if it exists)"
        )
        wins = f"change one parameter, whatever the file says; sections: {sections}"
        group.add_argument("--set", action="append", metavar="SECTION.KEY=VALUE", help=wins)
        for key in entries_of(params):
            group.add_argument("--name", help=f"start from the section {key}.NAME of the file (default: from none)")
        if asks_for_help():
            parser.formatter_class = _Help
            parser.epilog = f"Parameters, with their defaults. Change one with --set:\n{help_text(params)}"
    parser.set_defaults(params=None, set=[], name=None)
    # options may stand between the paths; argparse can do that without subcommands
    args = parser.parse_args() if parser._subparsers else parser.parse_intermixed_args()
    stopped = _stop_on_signals()
    values: Section | None = None
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _print_warning  # type: ignore[assignment]
            values = load_params(params, args.params, args.set, args.name)
            main(args, values)
    except BaseException as error:
        interrupt = next((cause for cause in _chain(error) if isinstance(cause, KeyboardInterrupt)), None)
        if interrupt or stopped:  # libraries may turn a KeyboardInterrupt into errors of their own
            progress = f" ({interrupt})" if str(interrupt or "") else ""
            how = "terminated" if signal.SIGTERM in stopped else "interrupted"
            print(f"{parser.prog}: {how}; run it again to continue{progress}", file=sys.stderr)
            raise SystemExit(143 if signal.SIGTERM in stopped else 130) from None
        answers = (
            f"out of memory; {_less_memory(args, values)}" if lacks_memory(cause) else refusal(cause)
            for cause in _chain(error)
        )
        said = str(error) if isinstance(error, UserError) else next(filter(None, answers), None)
        if said is None:
            raise
        print(f"{parser.prog}: error: {said}", file=sys.stderr)
        raise SystemExit(1) from None


class _Help(argparse.HelpFormatter):
    """Leaves text of several lines as it is."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return text if "\n" in text else super()._fill_text(text, width, indent)


def asks_for_help() -> bool:
    """Whether the command line asks for help, and for nothing else."""
    return bool({"-h", "--help"}.intersection(sys.argv[1:]))


def _stop_on_signals() -> list[int]:
    """End on SIGTERM as on Ctrl-C, so that what is being written is removed -> the signals that came, to be filled."""
    stopped: list[int] = []

    def stop(number: int, _: object) -> None:
        stopped.append(number)
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, stop)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # a shell's background jobs ignore it
        signal.signal(signal.SIGINT, stop)
    return stopped


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """``error`` and what is behind it: what goes wrong in the middle may fail again, such as a file that is closed."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _less_memory(args: argparse.Namespace, params: Section | None) -> str:
    """What to lower so that the command needs less memory."""
    sections = {name: getattr(params, name) for name in type(params).model_fields} if params else {}
    sizes = [
        f"{section.key(key) if isinstance(section, Entry) else f'{name}.{key}'} ({getattr(section, key)})"
        for name, section in sections.items()
        for key in (type(section).model_fields if isinstance(section, Section) else ())
        if key.endswith("batch_size")
    ]
    sizes += ["--processes"] if hasattr(args, "processes") else []
    return f"lower {' and '.join(sizes)}" if sizes else "close other programs, or take a machine with more"


def end_loading(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """What Python does with an error that nobody caught; of Ctrl-C one line, and the end that a shell expects."""
    name = Path(sys.argv[0]).name
    if any(isinstance(cause, KeyboardInterrupt) for cause in _chain(error)) or "KeyboardInterrupt" in str(error):
        print(f"{name}: interrupted while loading, before it began; run it again", file=sys.stderr)  # pydantic: as text
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    elif isinstance(error, UserError):
        print(f"{name}: error: {error}", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, trace)


def _print_warning(message: Warning | str, category: type[Warning], *where: object) -> None:
    if issubclass(category, UserWarning):  # what the user may want to change; the rest is for developers
        print(f"warning: {message}", file=sys.stderr)


def _is_command() -> bool:
    """Whether Python runs a stage script or a module of this package, and not another program that imports it."""
    script = Path(*sys.argv[:1]).resolve()
    return script.parent.name == "stages" or script.is_relative_to(Path(__file__).resolve().parents[1])


def _show_stored_help() -> None:
    """Print the help of a stage as ``tools/commands.py`` stored it: making it loads torch, which takes seconds."""
    name = Path(sys.argv[0]).stem.removeprefix("sightline ")
    stored = Path(__file__).resolve().parents[1] / f"help/{name}.txt"
    if asks_for_help() and stored.is_file():
        print(stored.read_text(encoding="utf-8"), end="")
        raise SystemExit


if _is_command():  # it imports this module before those that take seconds to load, and that read the number of threads
    sys.excepthook = end_loading
    set_threads()
    _show_stored_help()
