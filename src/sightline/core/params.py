"""The one reader of ``params.yaml``.

Each branch keeps the pydantic class of its own section beside its code; a stage script composes those it uses into
a class whose fields are the sections that the stage declares in ``dvc.yaml``. Inside DVC only declared values are
visible, so that a value which is read but not declared fails at once instead of making the cache lie.
"""

import json
import os
from collections.abc import Iterable
from io import StringIO
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from sightline.core.errors import UserError


class Section(BaseModel):
    """Base of every typed parameter section: unknown keys, wrong types and later changes are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


P = TypeVar("P", bound=Section)


def load_params(model: type[P], params_file: Path | None = None, assignments: Iterable[str] = ()) -> P:
    """Read the sections that ``model`` names, and validate them.

    Args:
        model: a `Section` whose fields are the sections (or parts of sections) that a stage declares.
        params_file: YAML 1.2 file to read outside DVC; None reads ``params.yaml`` of the working directory where
            there is one, and otherwise leaves everything at its default.
        assignments: ``section.key=value`` strings, which win over the file; values are YAML 1.2.

    Raises:
        UserError: unreadable file, unknown key, wrong type, value out of range, or ``assignments`` given inside DVC.
    """
    stage, assignments = os.environ.get("DVC_STAGE"), list(assignments)
    if stage:
        if params_file or assignments:
            raise UserError(
                "--params and --set are for runs by hand; inside DVC use `dvc exp run -S section.key=value`"
            )
        tree, source = (
            _declared_params(stage) if model.model_fields else {},
            f"params.yaml (as declared by stage {stage})",
        )
    else:
        tree, source = _file_params(params_file, model)
    for assignment in assignments:
        _assign(tree, assignment, model)
    try:
        return model.model_validate_json(json.dumps(tree))  # JSON mode: strict types, but a list may fill a tuple
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
        message = {
            "extra_forbidden": f"unknown key; known here: {', '.join(_known_keys(model, first['loc'])) or 'none'}",
            "missing": "is missing",
            "value_error": first["msg"].removeprefix("Value error, "),
        }.get(first["type"], f"{first['msg']}, got {first['input']!r}")
        raise UserError(f"{source}: {key}: {message}{more}") from None


def parse_yaml(text: str, source: str) -> Any:
    """Parse YAML 1.2 (``5e-4`` is a number). Raises `UserError` naming ``source`` where it is not YAML."""
    try:
        return YAML(typ="safe", pure=True).load(StringIO(text))
    except YAMLError as error:
        raise UserError(f"{source}: not valid YAML: {' '.join(str(error).split())}") from None


def _declared_params(stage: str) -> dict[str, Any]:
    import dvc.api

    return dvc.api.params_show(stages=stage, deps=True)


def _file_params(params_file: Path | None, model: type[Section]) -> tuple[dict[str, Any], str]:
    path = params_file or Path("params.yaml")
    if params_file is None and not path.is_file():
        return {}, "parameters"
    try:
        tree = parse_yaml(path.read_text(encoding="utf-8"), str(path)) or {}
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if not isinstance(tree, dict):
        raise UserError(f"{path}: expected sections (`train:` ...), got {type(tree).__name__}")
    return _restrict(tree, model), str(path)


def _restrict(tree: dict[str, Any], model: type[Section]) -> dict[str, Any]:
    """What ``dvc.api.params_show`` would show of ``tree``: sections the model names, and of partial ones its keys."""
    kept = {}
    for name, field in model.model_fields.items():
        if name in tree:
            part = isinstance(field.annotation, type) and issubclass(field.annotation, PartOfSection)
            value = tree[name]
            if part and isinstance(value, dict):
                value = {k: v for k, v in value.items() if k in field.annotation.model_fields}  # type: ignore[union-attr]
            kept[name] = value
    return kept


class PartOfSection(Section):
    """The keys of a section that one stage uses, where it declares them one by one (``data.on_error``)."""


def _assign(tree: dict[str, Any], assignment: str, model: type[Section]) -> None:
    key, equals, text = assignment.partition("=")
    names = key.strip().split(".")
    if not equals or not all(names):
        raise UserError(f"--set {assignment}: expected section.key=value")
    if names[0] not in model.model_fields:
        raise UserError(f"--set {assignment}: no section {names[0]!r} here; known: {', '.join(model.model_fields)}")
    for name in names[:-1]:
        child = tree.setdefault(name, {})
        if not isinstance(child, dict):
            raise UserError(f"--set {assignment}: {name} is a value, not a section")
        tree = child
    tree[names[-1]] = parse_yaml(text, f"--set {assignment}")


def _known_keys(model: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    for name in location[:-1]:
        annotation = model.model_fields[str(name)].annotation
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return []
        model = annotation
    return list(model.model_fields)
