"""Values of params.yaml are changed in place: no other character moves."""

import difflib

import pytest
from conftest import default_params
from hypothesis import given, settings
from hypothesis import strategies as st

from sightline.core.errors import UserError
from sightline.core.params import parse_yaml
from sightline.core.params_text import with_values

TEXT = """\
# head

data:               # the recording
  root: data/demo   # where it is
  more: {a: [x, y], b: 1}
stages:   # lists
  # images: folders

  images:  # all of them
    - depth   # a sensor

    # not these: rgb/back
    - masks
  depth: []  # none
  bare:
seed: 5e-4
"""


def changed(values, text=TEXT) -> list[str]:
    """The lines that are removed (-) and added (+)."""
    new = with_values(text, values, "p.yaml")
    lines = difflib.unified_diff(text.splitlines(), new.splitlines(), n=0, lineterm="")
    return [line for line in lines if not line.startswith(("---", "+++", "@@"))]


@pytest.mark.parametrize(
    ("values", "lines"),
    [
        ({"data.root": "data/demo", "stages.images": ["depth", "masks"], "stages.depth": []}, []),
        ({"data.root": "data/a"}, ["-  root: data/demo   # where it is", "+  root: data/a      # where it is"]),
        ({"data.root": "data/somewhere"}, ["-  root: data/demo   # where it is",
                                           "+  root: data/somewhere  # where it is"]),
        ({"data.more.a": ["y"]}, ["-  more: {a: [x, y], b: 1}", "+  more: {a: [y], b: 1}"]),
        ({"stages.depth": ["depth"]}, ["-  depth: []  # none", "+  depth: [depth]  # none"]),
        ({"stages.bare": ["a", "b"]}, ["-  bare:", "+  bare: [a, b]"]),
        ({"stages.bare": "a: b"}, ["-  bare:", '+  bare: "a: b"']),
        ({"stages.images": ["depth", "rgb/front", "007"]}, ["-", "-    # not these: rgb/back", "-    - masks",
                                                            "+    - rgb/front", '+    - "007"']),
        ({"stages.images": []}, ["-  images:  # all of them", "-    - depth   # a sensor", "-",
                                 "-    # not these: rgb/back", "-    - masks", "+  images: []  # all of them"]),
    ],
)  # fmt: skip
def test_the_lines_of_the_values_alone_differ(values, lines):
    assert changed(values) == lines


def test_line_ends_stay_as_they_are():
    text = TEXT.replace("\n", "\r\n")
    new = with_values(text, {"stages.images": ["a", "b", "c"], "stages.depth": ["d"], "data.root": "x"}, "p.yaml")
    assert new.count("\n") == new.count("\r\n")
    assert parse_yaml(new, "")["stages"] == {"images": ["a", "b", "c"], "depth": ["d"], "bare": None}
    emptied = with_values(text, {"stages.images": []}, "p.yaml")
    assert emptied.count("\n") == emptied.count("\r\n")


@pytest.mark.parametrize(
    ("text", "name", "message"),
    [
        ("a: {b: 1}", "a.c", "p.yaml: has no key a.c; add `c: [x]` to it"),
        ("a: 1", "a.c", "p.yaml: has no key a.c; add `c: [x]` to it"),
        ("- a", "a.c", "p.yaml: has no key a.c; add `c: [x]` to it"),
        ("", "a.c", "p.yaml: has no key a.c; add `c: [x]` to it"),
        ("z: &z [y]\na: {c: *z}", "a.c", "p.yaml: cannot be changed without changing more of it .*set in it: a.c: [x]"),
        ("a: {c: [", "a.c", "p.yaml: not valid YAML"),
    ],
)
def test_what_cannot_be_changed_is_one_line(text, name, message):
    with pytest.raises(UserError, match=message.replace("[", r"\[")) as error:
        with_values(text, {name: ["x"]}, "p.yaml")
    assert "\n" not in str(error.value)


WORDS = st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc", "Zl", "Zp"]), min_size=1, max_size=8)
LISTS = st.lists(WORDS | st.sampled_from(["depth", "null", "1.5", "on", "- a", "a #b", "[", "*x", "'"]), max_size=4)


@settings(deadline=None, max_examples=60)
@given(WORDS, LISTS, LISTS)
def test_any_values_come_back_and_nothing_else_changes(root, images, depth):
    text, values = default_params(), {"data.root": root, "stages.images": images, "stages.depth": depth}
    tree = parse_yaml(text, "")
    tree["data"]["root"] = root
    tree["stages"] |= {"images": images, "depth": depth}
    new = with_values(text, values, "p.yaml")
    assert parse_yaml(new, "") == tree
    assert with_values(new, values, "p.yaml") == new
    before, after = (text[text.index("\n  on_error:") : text.index("\n  images:")] for text in (text, new))
    assert before == after
