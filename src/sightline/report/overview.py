"""The sections about the data, the parameters and the libraries, and about what is not real."""

import json
from collections import Counter
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from sightline.core.errors import UserError
from sightline.core.params import parse_yaml
from sightline.recording.split import PARTS
from sightline.report import page
from sightline.report.figures import Table, read_json

LIBRARIES = (
    "dvc", "h5py", "lightning", "monai", "numpy", "open_clip_torch", "pandas", "pillow", "pyarrow", "safetensors",
    "torch", "torchvision",
)  # fmt: skip


def overview(params: dict[str, Any], recording: Path, index: Path) -> str:
    """The section about the data, with what is not real above it; tables of what is here.

    Args:
        params: everything in ``params.yaml``.
        recording: the recording's recording.json.
        index: frame index, with columns episode and split.

    Raises:
        UserError: a file that is there but cannot be read, naming it.
    """
    return page.section("Data", *_banners(params), *_data(recording, index, params))


def settings(params: dict[str, Any]) -> list[str]:
    """The sections about the parameters and the versions of the libraries."""
    return [
        page.section("Parameters", page.tables(_parameters(params))),
        page.section("Versions", page.tables([_versions()])),
    ]


def read_parameters(path: Path) -> dict[str, Any]:
    """Everything in ``params.yaml``. Raises `UserError` where it cannot be read."""
    try:
        params = parse_yaml(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from None
    if not isinstance(params, dict):
        raise UserError(f"{path}: expected sections (`train:` ...), got {type(params).__name__}")
    return params


def _banners(params: dict[str, Any]) -> list[str]:
    networks, fusion, stages = params.get("grids", {}), params.get("fusion", {}), params.get("stages", {})
    learns = stages.get("demonstrations") and set(stages.get("designs", [])) - {"joints_only"}
    texts = []
    grids = stages.get("grids", {})
    names = [name for name in grids.get("names", []) if networks.get(name, {}).get("pretrained") == "random"]
    if names and grids.get("cameras"):
        texts.append(page.RANDOM_GRIDS)
    if learns and fusion.get("pretrained") is None:
        texts.append(
            "fusion.pretrained is null: the image networks of the fusion model started from random weights, and have "
            "seen nothing but this recording."
        )
    return [page.paragraph(text, "banner") for text in texts]


def _data(recording: Path, index: Path, params: dict[str, Any]) -> list[str]:
    stages, root = params.get("stages", {}), params.get("data", {}).get("root")
    tables, facts = [], {"recording": root, "folders of images": ", ".join(stages.get("images", [])) or "none"}
    fps = 0.0
    if recording.is_file():
        info = read_json(recording)
        fps = float(info.get("fps") or 0)
        facts |= {
            "frames per second": fps or None,
            "cameras": ", ".join(info.get("cameras", [])),
            "joints": len(info.get("joints", [])),
            "classes of the masks": ", ".join(f"{i} {name}" for i, name in enumerate(info.get("classes", [])))
            or "none",
        }
    if index.is_file():
        tables.append(_frames(index, fps))
    tables.append(Table("recording", ("value",), {name: (value,) for name, value in facts.items()}))
    lists = {"depth": "depth", "masks": "masks", "demonstrations": "demonstrations", "grids": "grids"}
    lacking = {name: key for name, key in lists.items() if not _names_any(stages.get(key))}
    missing = "".join(f"No {name}: stages.{key} does not name any. " for name, key in lacking.items())
    return [page.tables(tables), page.paragraph(missing.strip(), "note") if missing else ""]


def _names_any(lists: Any) -> bool:
    return all(lists.values()) if isinstance(lists, dict) else bool(lists)


def _frames(index: Path, fps: float) -> Table:
    try:
        frames = pq.read_table(index, columns=["episode", "split"]).to_pydict()
    except (OSError, ValueError) as error:
        raise UserError(f"{index}: not a frame index ({' '.join(str(error).split())})") from None
    counts = Counter(frames["split"])
    episodes = {part: len({e for e, s in zip(*frames.values(), strict=True) if s == part}) for part in PARTS}
    counts["all"], episodes["all"] = counts.total(), sum(episodes.values())
    rows = {part: (episodes[part], counts[part], counts[part] / fps if fps else None) for part in (*PARTS, "all")}
    return Table("frames, split by whole episodes", ("episodes", "frames", "seconds"), rows)


def _parameters(params: dict[str, Any]) -> list[Table]:
    """A table for each section, names of its own sections joined by points; single values first."""
    plain = {name: (_shown(value),) for name, value in params.items() if not isinstance(value, dict)}
    tables = [Table("of everything", ("value",), plain)] if plain else []
    for name, value in params.items():
        if isinstance(value, dict):
            tables.append(Table(name, ("value",), {key: (_shown(leaf),) for key, leaf in leaves(value)}))
    return tables


def leaves(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted name and value of everything in ``tree`` that is no dictionary itself."""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _shown(value: Any) -> str:
    return ", ".join(map(str, value)) or "[]" if isinstance(value, list) else json.dumps(value).strip('"')


def _versions() -> Table:
    rows = {}
    for name in LIBRARIES:
        try:
            rows[name] = (metadata.version(name),)
        except metadata.PackageNotFoundError:
            continue
    return Table("libraries", ("value",), rows)
