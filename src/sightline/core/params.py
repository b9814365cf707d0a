"""The one reader of ``params.yaml``.

Each branch keeps the pydantic class of its own section beside its code; a stage script composes those it uses into
a class whose fields are the sections that the stage declares in ``dvc.yaml``. Inside DVC only declared values are
visible, so that a value which is read but not declared fails at once instead of making the cache lie.
"""

import json
import os
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, ClassVar, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError
from yaml.constructor import ConstructorError

from sightline.core.errors import UserError


class Section(BaseModel):
    """Base of every typed parameter section: unknown keys, wrong types and later changes are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
    renamed: ClassVar[dict[str, str]] = {}  # keys of older versions, and what to write now


class Excerpt(Section):
    """Some keys of a section, where a stage declares these alone; the file's other keys are left to other stages."""


class Entry(Section):
    """One of the sections that the file holds by name under the same key; a stage reads the one that it is told.

    Without a name there is none, and everything is at its default: `--set KEY.x=value` then sets it.
    """

    entries: ClassVar[dict[str, dict[str, Any]]] = {}  # those of params.yaml, and what they have other than the class
    _place: str = PrivateAttr("")  # where it stands, "grids.clip"

    def key(self, name: str) -> str:
        """The dotted name of one of its keys, for messages."""
        return f"{self._place}.{name}".lstrip(".")


P = TypeVar("P", bound=Section)
Seed = Annotated[int, Field(ge=0, description="initial weights, order and augmentation of the training data")]


def load_params(
    model: type[P], params_file: Path | None = None, assignments: Iterable[str] = (), entry: str | None = None
) -> P:
    """Read the sections that ``model`` names, and validate them; by hand, say on standard error from where.

    Args:
        model: a `Section` whose fields are the sections that a stage declares.
        params_file: YAML 1.2 file to read outside DVC; None reads ``params.yaml`` of the working directory where
            there is one, and otherwise leaves everything at its default, which is the pipeline's.
        assignments: ``section.key=value`` strings, which win over the file; values are YAML 1.2.
        entry: name of the `Entry` to read, where the model has one.

    Raises:
        UserError: unreadable file, unknown key, wrong type, value out of range, or ``assignments`` inside DVC.
    """
    stage, assignments = os.environ.get("DVC_STAGE"), list(assignments)
    if stage and (params_file or assignments):
        raise UserError("--params and --set are for runs by hand; inside DVC use `dvc exp run -S section.key=value`")
    tree: dict[str, Any] = {}
    source = f"params.yaml (as declared by stage {stage})" if stage else "parameters"
    if stage and model.model_fields:
        import dvc.api

        tree = dvc.api.params_show(stages=stage, deps=True)
    elif model.model_fields:
        tree, source = _file_params(params_file, model)
    places = {name: _take_entry(tree, name, entry, source) for name in entries_of(model)}
    for assignment in assignments:
        for name, place in places.items():  # an entry's key may be written as in the file, too
            if assignment.startswith(f"{place}."):
                assignment = name + assignment.removeprefix(place)
        _assign(tree, assignment, model)
    try:
        values = model.model_validate_json(json.dumps(tree, default=str))  # JSON: strict, but lists fill tuples
    except ValidationError as error:
        first = error.errors()[0]
        section, *rest = map(str, first["loc"])
        key = ".".join([places.get(section, section), *rest])
        more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
        message = {
            "extra_forbidden": _unknown(model, first["loc"]),
            "missing": "is missing",
            "value_error": first["msg"].removeprefix("Value error, "),
        }.get(first["type"], f"{first['msg']}, got {first['input']!r}")
        raise UserError(f"{source}: {key}: {message}{more}") from None
    for name, place in places.items():
        getattr(values, name)._place = place
    return values


def parse_yaml(text: str, source: str) -> Any:
    """Parse YAML 1.2 (``5e-4`` is a number). Raises `UserError` naming ``source`` where it is not YAML.

    PyYAML lets Python's own errors out where the content does not fit a tag or an escape (``!!int x``).
    """
    try:
        return yaml.load(text, _Loader)
    except (yaml.YAMLError, ValueError, LookupError, AttributeError, ArithmeticError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        what = f"line {mark.line + 1}: {getattr(error, 'problem', '')}" if mark else str(error)
        raise UserError(f"{source}: not valid YAML: {' '.join(what.split())}") from None


class _Loader(yaml.SafeLoader):
    """PyYAML that takes a plain word for what DVC takes it: numbers, true, false and null of YAML 1.2, all else text.

    PyYAML alone reads YAML 1.1, where ``5e-4`` is text, ``no`` is false, ``012`` is ten and ``1:30`` is ninety.
    """

    yaml_implicit_resolvers: ClassVar[dict[None, Any]] = {
        None: [
            ("tag:yaml.org,2002:" + tag, re.compile(rf"(?:{pattern})\Z"))
            for tag, pattern in (
                ("bool", "true|True|TRUE|false|False|FALSE"),
                ("null", "~|null|Null|NULL|"),
                ("merge", "<<"),
                ("int", "[-+]?(0b_*[01][01_]*|0o_*[0-7][0-7_]*|0x_*[0-9a-fA-F][0-9a-fA-F_]*)|([-+]_*)?[0-9][0-9_]*"),
                ("float", r"[-+]?[0-9][0-9_]*(\.[0-9_]*([eE][-+]?[0-9]+)?|[eE][-+]?[0-9]+)"),
                ("float", r"[-+]?\._*[0-9][0-9_]*([eE][-+][0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"),
            )
        ]
    }

    def compose_mapping_node(self, anchor: str | None) -> Any:
        node, seen = super().compose_mapping_node(anchor), set()
        for key, _ in node.value:
            if isinstance(key.value, str) and (key.tag, key.value) in seen:
                raise ConstructorError(None, None, f"the key {key.value} is there twice", key.start_mark)
            seen.add((key.tag, str(key.value)))
        return node

    def construct_integer(self, node: Any) -> int:
        digits = self.construct_scalar(node).replace("_", "")
        return int(digits, 0 if re.match(r"[-+]?0[box]", digits) else 10)


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_integer)


def _file_params(params_file: Path | None, model: type[Section]) -> tuple[dict[str, Any], str]:
    path = params_file or Path("params.yaml")
    if params_file is None and not path.is_file():
        _tell("default parameters: no params.yaml here")
        return {}, "parameters"
    try:
        tree = parse_yaml(path.read_text(encoding="utf-8"), str(path)) or {}
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if not isinstance(tree, dict):
        raise UserError(f"{path}: expected sections (`train:` ...), got {type(tree).__name__}")
    for old in sorted(set(tree) & set(model.renamed)):
        raise UserError(f"{path}: {old}: is now {model.renamed[old]}; rename it")
    _tell(f"parameters from {path}")
    fields = model.model_fields
    return {name: _excerpt(tree[name], field.annotation) for name, field in fields.items() if name in tree}, str(path)


def _excerpt(section: Any, kind: Any) -> Any:
    """A section of a file, without the keys that an `Excerpt` leaves to other stages."""
    if not (isinstance(kind, type) and issubclass(kind, Excerpt) and isinstance(section, dict)):
        return section
    return {name: section[name] for name in kind.model_fields if name in section}


def entries_of(model: type[Section]) -> list[str]:
    """Names of the fields that are an `Entry`."""
    kinds = {name: field.annotation for name, field in model.model_fields.items()}
    return [name for name, kind in kinds.items() if isinstance(kind, type) and issubclass(kind, Entry)]


def _take_entry(tree: dict[str, Any], key: str, name: str | None, source: str) -> str:
    """Put the entry of this name in the place of all of them -> where it stood."""
    named = tree.pop(key, {})
    if name is None:
        if isinstance(named, dict) and named:
            _tell(f"{key} at their defaults; --name takes those of one of {', '.join(named)}")
        return key
    if not isinstance(named, dict) or not isinstance(named.get(name), dict):
        there = ", ".join(named) if isinstance(named, dict) else ""
        raise UserError(f"{source}: {key}.{name}: is missing; there are: {there or 'none'}")
    tree[key] = named[name]
    return f"{key}.{name}"


def _tell(line: str) -> None:
    if os.environ.get("RANK", "0") == "0":  # of several processes, the first
        print(f"{Path(sys.argv[0]).stem}: {line}", file=sys.stderr)


def _assign(tree: dict[str, Any], assignment: str, model: type[Section]) -> None:
    key, equals, text = assignment.partition("=")
    names = key.strip().split(".")
    if not equals or not all(names):
        raise UserError(f"--set {assignment}: expected section.key=value")
    if names[0] in model.renamed:
        raise UserError(f"--set {assignment}: {names[0]} is now {model.renamed[names[0]]}")
    if names[0] not in model.model_fields:
        raise UserError(f"--set {assignment}: no section {names[0]!r} here; known: {', '.join(model.model_fields)}")
    for name in names[:-1]:
        child = tree.setdefault(name, {})
        if not isinstance(child, dict):
            raise UserError(f"--set {assignment}: {name} is a value, not a section")
        tree = child
    tree[names[-1]] = parse_yaml(text, f"--set {assignment}")


def _unknown(model: type[BaseModel], location: tuple[int | str, ...]) -> str:
    """What to say of a key that is not there: what it is called now, or what its section has."""
    for name in location[:-1]:
        annotation = model.model_fields[str(name)].annotation
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return "unknown key; known here: none"
        model = annotation
    now = model.renamed.get(str(location[-1])) if issubclass(model, Section) else None
    return f"is now {now}; rename it" if now else f"unknown key; known here: {', '.join(model.model_fields) or 'none'}"
