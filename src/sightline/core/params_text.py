"""Change values in the text of ``params.yaml``, and nothing else of it: comments, order and layout stay.

A YAML library that writes the whole file anew moves comments and breaks long lines; here only the characters of a value
are replaced, and the result is read back.
"""

import copy
import json
import re
from typing import Any

import yaml

from sightline.core.errors import UserError
from sightline.core.params import parse_yaml

_Edit = tuple[int, int, str]  # what stands from here to there becomes this


def with_values(text: str, values: dict[str, Any], source: str) -> str:
    """``text`` with other values; only their lines differ. A changed list loses the lines of comments in it.

    Args:
        text: YAML.
        values: text, or a list of texts, by dotted name.
        source: for messages.

    Raises:
        UserError: not YAML, a name that is not there, or a value that stands elsewhere (an alias).
    """
    tree = parse_yaml(text, source)
    expected, edits = copy.deepcopy(tree), list[_Edit]()
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    for name, value in values.items():
        *sections, key = name.split(".")
        section, node = expected, root
        for part in sections:
            section, node = section.get(part) if isinstance(section, dict) else None, _child(node, part)[1]
        name_node, node = _child(node, key)
        if name_node is None or not isinstance(section, dict):
            raise UserError(f"{source}: has no key {name}; add `{key}: {_shown(value)}` to it")
        if section[key] != value:
            section[key] = value
            edits += _edits(text, name_node, node, value)
    for start, end, new in sorted(edits, reverse=True):
        text = text[:start] + new + text[end:]
    if not _is_read_as(text, expected):
        words = "; ".join(f"{name}: {_shown(value)}" for name, value in values.items())
        raise UserError(f"{source}: cannot be changed without changing more of it (an alias?); set in it: {words}")
    return text


def _is_read_as(text: str, value: Any) -> bool:
    try:
        return bool(parse_yaml(text, "") == value)
    except UserError:
        return False


def _child(node: yaml.Node | None, key: str) -> tuple[Any, Any]:
    """The nodes of a key and of its value, or None for both."""
    pairs = node.value if isinstance(node, yaml.MappingNode) else []
    return next(((name, value) for name, value in pairs if name.value == key), (None, None))


def _edits(text: str, name: yaml.Node, node: yaml.Node, value: Any) -> list[_Edit]:
    start, end = node.start_mark.index, node.end_mark.index
    if not isinstance(node, yaml.SequenceNode) or node.flow_style:
        new = _shown(value) if text[start - 1 : start] == " " else f" {_shown(value)}"  # after a bare `key:`
        spaces = re.match(r" *(?=#)", text[end:])
        if spaces:  # the comment stays in its column, where there is room
            room = spaces.end() + end - start - len(new)
            return [(start, end + spaces.end(), new.ljust(len(new) + max(2, room)))]
        return [(start, end, new)]
    # a list of lines: those of items that stay are the same
    lines = {item.value: text[item.start_mark.index : _line_end(text, item)] for item in node.value}
    newline = "\r\n" if "\r\n" in text else "\n"
    if value:
        items = [lines.get(item, _word(item)) for item in value]
        between = f"{newline}{' ' * node.start_mark.column}- "
        return [(start, _line_end(text, node.value[-1]), "- " + between.join(items))]
    colon = text.index(":", name.end_mark.index) + 1
    line_before = text[:start].rstrip(" ").removesuffix("\n").removesuffix("\r")
    return [(colon, colon, " []"), (len(line_before), _line_end(text, node.value[-1]), "")]


def _line_end(text: str, node: yaml.Node) -> int:
    rest = re.match(r"[^\r\n]*", text[node.end_mark.index :])
    return int(node.end_mark.index) + (rest.end() if rest else 0)


def _shown(value: Any) -> str:
    return f"[{', '.join(map(_word, value))}]" if isinstance(value, list) else _word(value)


def _word(value: str) -> str:
    """Text as YAML has it: bare where it is read as itself."""
    is_bare = _is_read_as(f"- [{value}]\n- {value}\n", [[value], value])
    return value if is_bare else json.dumps(value, ensure_ascii=False)
