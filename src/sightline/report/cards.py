"""Model cards: what a weights file is, what it takes, what it was trained on, how good it is, and where it ends.

A card is JSON for programs and Markdown for people, with the same content. Everything in it is read from the file's
header, the frame index and the metrics; only what the kinds of models are is written here.
"""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from safetensors import SafetensorError, safe_open

from sightline.core.errors import UserError
from sightline.core.files import atomic_output, file_sha256, write_json
from sightline.report.figures import Table, comparison, direction, format_cell, read_json, tables

PARTS = ("train", "val", "test")
KINDS = {  # entry of the file's header -> what such a model is, apart from its own figures
    "sightline": {
        "what": "Encoder of depth images: a ResNet with self-attention, measured together with the "
        "decoder that it was trained with.",
        "use": "python -m sightline.predict embed MODEL DEPTH_FOLDER embeddings.hdf5",
        "limits": [
            "Distances between embeddings are those of pictures, not of situations: it was trained to reconstruct.",
            "Depth beyond the height range is clipped to it; another range, unit or code of invalid pixels needs "
            "another training.",
        ],
    },
    "sightline_fusion": {
        "what": "Policy learnt from demonstrations: camera views and joints to a chunk of coming actions.",
        "use": "python -m sightline.predict act MODEL RECORDING actions.parquet",
        "limits": [
            "It imitates: it has no notion of the task, of contact or of danger. Bound its actions before a robot "
            "executes them.",
            "Measured on recorded episodes only, never in closed loop: small errors add up on a robot.",
            "Other cameras, places of cameras, joints or units of joints need another training.",
        ],
    },
    "sightline_segmentation": {
        "what": "Segmentation of images: the class of every pixel.",
        "use": "python -m sightline.predict segment MODEL IMAGES masks",
        "limits": ["Images of other cameras, light or scenes than the training images' need a new evaluation."],
    },
}  # fmt: skip


def write_card(model: Path, output: Path, metrics: list[Path], index: Path) -> dict[str, Any]:
    """Write ``output``.json and ``output``.md about ``model`` -> what the JSON holds.

    Args:
        model: safetensors file of this project.
        metrics: folders of metrics, that of the evaluation first.
        index: frame index with the split of the training data.

    Raises:
        UserError: another kind of file, or one that cannot be read, naming it.
    """
    kind, config, parameters = _read_header(model)
    evaluation, *others = (_read_metrics(folder) for folder in metrics)
    compared = comparison(evaluation)
    known = KINDS[kind]
    card = {
        "name": model.stem,
        "file": model.as_posix(),
        "bytes": model.stat().st_size,
        "sha256": file_sha256(model),
        "parameters": parameters,
        "what": known["what"],
        "use": str(known["use"]).replace("MODEL", model.as_posix()),
        **_interface(kind, config),
        "training_data": _training_data(index),
        "configuration": config,
        "evaluation": evaluation,
        "other_metrics": {folder.as_posix(): figures for folder, figures in zip(metrics[1:], others, strict=True)},
        "limits": [*known["limits"], *(_worse(compared) if compared else []), *_unused(evaluation)],
    }
    write_json(output.with_name(output.name + ".json"), card)
    with atomic_output(output.with_name(output.name + ".md")) as temporary:
        temporary.write_text(_markdown(card, compared), encoding="utf-8")
    return card


def _read_header(path: Path) -> tuple[str, dict[str, Any], int]:
    """Kind, what the header says, and how many floating-point numbers the file holds."""
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        with safe_open(path, framework="np") as file:
            header, names = file.metadata() or {}, list(file.keys())
            slices = [file.get_slice(name) for name in names]
            sizes = [_product(part.get_shape()) for part in slices if part.get_dtype().startswith(("F", "BF"))]
    except SafetensorError as error:
        raise UserError(f"{path}: not a safetensors file ({error})") from None
    kind = next((name for name in KINDS if name in header), None)
    if kind is None:
        raise UserError(f"{path}: not a model of this project; its header has {', '.join(header) or 'no entries'}")
    return kind, json.loads(header[kind]), sum(sizes)


def _product(shape: list[int]) -> int:
    size = 1
    for length in shape:
        size *= length
    return size


def _read_metrics(folder: Path) -> dict[str, Any]:
    files = sorted(folder.glob("*.json"))
    if not files:
        raise UserError(f"{folder}: no figures there; make them with dvc repro")
    return read_json(files[0])


def _interface(kind: str, config: dict[str, Any]) -> dict[str, Any]:
    """Inputs and outputs with shape, unit and range."""
    if kind == "sightline":
        network, done = config["network"], config["preprocessing"]
        near, far = done["height_range"]
        millimetres = f"{near * done['unit_mm']:g} to {far * done['unit_mm']:g} mm"
        raw = "depth images" if network["input_channels"] == 1 else "images of 8-bit channels"
        return {
            "inputs": [
                f"{raw}, uint16, any size; counts {near} to {far} ({millimetres}), {done['invalid']} mean no reading",
                f"inside: float32 [N, {network['input_channels']}, 128, 128] in [-1, 1], holes filled",
            ],
            "outputs": [f"embeddings float32 [N, {network['latent_dim']}], no unit, not of unit length"],
        }  # fmt: skip
    if kind == "sightline_fusion":
        cameras, size = config["cameras"], config["image_size"]
        extras = [f"{name} float32 [B, {', '.join(map(str, shape))}]" for name, shape in config["extras"].items()]
        return {
            "inputs": [
                f"views uint8 [B, {len(cameras)}, 3, {size}, {size}], RGB, in this order: {', '.join(cameras)}",
                f"joints float32 [B, {len(config['joint_names'])}] in the recording's units: "
                f"{', '.join(config['joint_names'])}",
                *extras,
            ],
            "outputs": [
                f"actions float32 [B, {config['steps']}, {config['actions']}] in the recording's units, "
                f"{config['stride']} frame(s) between steps"
            ],
        }
    classes = config.get("classes", [])
    return {
        "inputs": [f"images of {config.get('image_channels', 3)} channels, 8 bits"],
        "outputs": [f"a class of each pixel: {', '.join(f'{i} {name}' for i, name in enumerate(classes))}"],
    }


def _training_data(index: Path) -> dict[str, Any]:
    try:
        frames = pq.read_table(index, columns=["episode", "split"]).to_pydict()
    except (OSError, ValueError) as error:
        raise UserError(f"{index}: not a frame index ({' '.join(str(error).split())})") from None
    counts = Counter(frames["split"])
    episodes = {part: sorted({e for e, s in zip(*frames.values(), strict=True) if s == part}) for part in PARTS}
    return {part: {"frames": counts[part], "episodes": episodes[part]} for part in PARTS if counts[part]}


def _worse(compared: Table) -> list[str]:
    """Each baseline that is better in something than the model, which is the first row."""
    own, *baselines = compared.rows.items()
    found = []
    for name, cells in baselines:
        better = [
            f"{figure} {format_cell(cell)} against {format_cell(mine)}"
            for figure, cell, mine in zip(compared.columns, cells, own[1], strict=True)
            if isinstance(cell, float) and isinstance(mine, float) and direction(figure) * (cell - mine) > 0
        ]
        if better:
            found.append(f"On held-out frames, {name} is better: {'; '.join(better)}.")
    return found


def _unused(evaluation: dict[str, Any]) -> list[str]:
    """What a fusion model says of the inputs that it hardly uses."""
    use, nmse = evaluation.get("use", {}), evaluation.get("nmse", 0)
    return [
        f"It hardly uses an input: {change.replace('_', ' ')} changes the NMSE of {nmse:.4g} by {value:+.2g} only."
        for change, value in use.items()
        if change.startswith("shuffled") and value < 0.05 * nmse
    ]


def _markdown(card: dict[str, Any], compared: Table | None) -> str:
    data = "; ".join(
        f"{part}: {held['frames']} frames of {len(held['episodes'])} episodes"
        for part, held in card["training_data"].items()
    )
    lines = [f"# {card['file']}", "", card["what"], "", f"`{card['use']}`", ""]
    lines += [f"- {card['parameters']:,} weights and statistics, {card['bytes']:,} bytes, SHA-256 `{card['sha256']}`"]
    lines += [f"- in: {_plain(text)}" for text in card["inputs"]] + [
        f"- out: {_plain(text)}" for text in card["outputs"]
    ]
    lines += [f"- data, split by whole episodes: {data}", "", "## Measured", ""]
    for table in [compared] if compared else tables(card["evaluation"])[:1]:
        lines += _rows(table.by_figure() if compared else table)
    lines += ["", "## Limits", "", *(f"- {_plain(text)}" for text in card["limits"]), "", "## Configuration", ""]
    settings = sorted(card["configuration"].items())
    lines += [f"- {_plain(name)}: {_plain(json.dumps(value, ensure_ascii=False))}" for name, value in settings]
    return "\n".join([*lines, ""])


def _rows(table: Table) -> list[str]:
    head = [f"| | {' | '.join(map(_plain, table.columns))} |", f"|---|{'---:|' * len(table.columns)}"]
    return head + [f"| {_plain(name)} | {' | '.join(map(format_cell, row))} |" for name, row in table.rows.items()]


def _plain(text: str) -> str:
    """``text`` from data, so that Markdown shows it as it is."""
    return "".join("\\" + c if c in "\\`*[]<>|" else c for c in " ".join(text.split()))
