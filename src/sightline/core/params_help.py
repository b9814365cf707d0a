"""Parameters in words, for the help of a command and for the documentation: name, default, meaning, unit and range."""

import json
import textwrap
from collections.abc import Iterator
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt, MultipleOf
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from sightline.core.params import Entry, Section

TYPES = {int: "whole number", float: "number", bool: "true or false", str: "text"}


def help_text(params: type[Section]) -> str:
    """Every parameter of a command: ``name = default``, and below it the meaning and the range."""
    lines = []
    for name, field in leaves(params.model_fields, entry=""):
        lines.append(f"  {name} = {shown(field.default)}")
        words = f"{field.description or ''} ({range_of(field)})"
        lines += textwrap.wrap(words.replace("`", "").strip(), 100, initial_indent=" " * 6, subsequent_indent=" " * 6)
    return "\n".join(lines)


def leaves(fields: dict[str, FieldInfo], prefix: str = "", entry: str = "<name>.") -> Iterator[tuple[str, FieldInfo]]:
    """Dotted names of all parameters, and their fields; ``entry`` stands for the name of an `Entry`."""
    for name, field in fields.items():
        model = model_of(field)
        if model:
            inner = f"{prefix}{name}.{entry}" if issubclass(model, Entry) else f"{prefix}{name}."
            yield from leaves(values_first(model.model_fields), inner, entry)
        else:
            yield prefix + name, field


def model_of(field: FieldInfo) -> type[BaseModel] | None:
    """The class of a section; None for a value."""
    kind = field.annotation
    return kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None


def values_first(fields: dict[str, FieldInfo]) -> dict[str, FieldInfo]:
    """The fields in their order, but sections behind the values."""
    return dict(sorted(fields.items(), key=lambda item: model_of(item[1]) is not None))


def range_of(field: FieldInfo) -> str:
    """The type of a parameter, and its limits."""
    return ", ".join(filter(None, [_kind(field.annotation), *map(_limit, field.metadata)]))


def _kind(annotation: Any) -> str:
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in inner)
    if origin is Annotated:
        return ", ".join(filter(None, [_kind(inner[0]), *map(_limit, inner[1:])]))
    if origin in (Union, UnionType):
        return " or ".join("null" if part is type(None) else _kind(part) for part in inner)
    if origin is tuple:
        return "list of " + _kind(inner[0]) if inner[-1] is Ellipsis else f"[{'; '.join(map(_kind, inner))}]"
    if origin is dict:
        return f"{{{_kind(inner[0])}: {_kind(inner[1])}}}"
    return TYPES[annotation]


def _limit(item: Any) -> str:
    if isinstance(item, FieldInfo):
        return ", ".join(filter(None, map(_limit, item.metadata)))
    signs = {Ge: "≥ {0.ge}", Gt: "> {0.gt}", Le: "≤ {0.le}", Lt: "< {0.lt}", MultipleOf: "multiple of {0.multiple_of}"}
    return signs[type(item)].format(item) if type(item) in signs else ""


def shown(value: Any) -> str:
    """A value as YAML has it."""
    if isinstance(value, tuple):
        return f"[{', '.join(map(shown, value))}]"
    return json.dumps(value) if value is None or isinstance(value, bool) else str(value)
