"""Every benchmark of speed in one run: one table, against what one would do otherwise and against the bound.

    python benchmarks/bench.py [--quick] [--write PROJECT] [--only clip_reading ...]

``--write`` puts the table of this kind of device (CPU or GPU) between its marks in ``docs/benchmarks.md`` of a project,
and every round's costs in ``benchmarks/cpu.json`` or ``gpu.json``; rows of benchmarks that are not run stay there.
"""

import importlib
import json
import os
import platform
import statistics
from dataclasses import fields
from pathlib import Path

import torch
from measuring import Row, opened, parser, table
from running import put

from sightline.core.files import write_json

# prototypes first: what others leave free in memory decides what its large arrays cost; train and embed keep it
MODULES = (
    "prototypes", "normalize", "clip_extraction", "clip_reading", "fusion", "acting", "nothing_to_do", "train", "embed",
    "render", "segmentation_steps",
)  # fmt: skip


def machine() -> dict[str, object]:
    """What the figures were measured on."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": (names or [platform.processor()])[0],
        "cores": os.cpu_count(),
        "threads_of_torch": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "torch": str(torch.__version__),
        "load_average": round(os.getloadavg()[0], 1),
    }


def page(rows: list[Row], made_on: dict[str, object]) -> str:
    """The table, what it was measured on, and what is furthest from its bound."""
    gpu = f", {made_on['gpu']}" if made_on["gpu"] else ""
    lines = [
        f"{made_on['cpu']}, {made_on['cores']} cores, {made_on['threads_of_torch']} thread(s) of torch "
        f"{made_on['torch']}{gpu}; load average {made_on['load_average']} before the run.",
        "",
        table(rows),
        "",
        "Furthest from their bound:",
        "",
    ]
    bounded = sorted((row for row in rows if row.share is not None), key=lambda row: row.share or 0)
    for row in bounded[:3]:
        lost = statistics.median(row.ours) - statistics.median(row.bound)
        lines.append(f"- **{row.work}**, {row.share:.0%} of the bound; {lost:.3g} {row.unit} are {row.between}.")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    """Run as a command."""
    options = parser(__doc__.splitlines()[0])
    options.add_argument("--write", type=Path, metavar="PROJECT", help="put table and costs there (default: print)")
    options.add_argument("--only", nargs="+", choices=MODULES, default=MODULES, help="some of the benchmarks")
    args = options.parse_args(arguments)
    made_on, rows = machine(), {}
    kind = "gpu" if made_on["gpu"] else "cpu"
    if args.write:
        rows |= earlier(args.write / f"benchmarks/{kind}.json", made_on)
    for name in args.only:
        with opened(args) as bench:
            rows |= {name: measured} if (measured := importlib.import_module(name).rows(bench)) else {}
    ordered = {name: rows[name] for name in MODULES if name in rows}
    text = page([row for some in ordered.values() for row in some], made_on)
    put(text, f"benchmarks {kind}", args.write and args.write / "docs/benchmarks.md")
    if args.write:
        costs = [{"benchmark": name} | row.as_dict() for name, some in ordered.items() for row in some]
        write_json(args.write / f"benchmarks/{kind}.json", {"machine": made_on, "rows": costs})


def earlier(path: Path, made_on: dict[str, object]) -> dict[str, list[Row]]:
    """Rows of an earlier run, by benchmark, where it was made on the same machine."""
    saved = json.loads(path.read_text()) if path.is_file() else {"machine": None, "rows": []}
    if saved["machine"] is None or saved["machine"] | {"load_average": made_on["load_average"]} != made_on:
        return {}
    rows: dict[str, list[Row]] = {}
    for costs in saved["rows"]:
        rows.setdefault(costs["benchmark"], []).append(Row(**{field.name: costs[field.name] for field in fields(Row)}))
    return rows


if __name__ == "__main__":
    main()
