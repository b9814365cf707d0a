"""Typed parameters: what is read from where, and one-line refusals."""

import json
import math
from pathlib import Path
from typing import Any, ClassVar

import dvc.utils.serialize
import pytest
import yaml
from dvc.exceptions import DvcException
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import Field

from sightline.core.errors import UserError
from sightline.core.params import Entry, Section, load_params, parse_yaml


class Train(Section):
    lr: float = Field(default=1e-3, gt=0)
    epochs: int = 10
    flip: bool = True
    size: tuple[int, int] = (1, 2)


class Params(Section):
    seed: int = 0
    train: Train = Train()


@pytest.fixture
def params_file(tmp_path) -> Path:
    path = tmp_path / "p.yaml"
    path.write_text("seed: 3\ntrain: {lr: 3e-7, size: [4, 5]}\nunrelated: {a: 1}\n")
    return path


def test_scientific_notation_is_a_number_and_other_stages_keys_are_not_seen(params_file):
    params = load_params(Params, params_file)
    assert params == Params(seed=3, train=Train(lr=3e-7, size=(4, 5)))


def test_set_wins_over_the_file(params_file):
    params = load_params(Params, params_file, ["train.lr=5e-4", "train.flip=false", "seed=1"])
    assert (params.train.lr, params.train.flip, params.seed) == (5e-4, False, 1)


def test_params_yaml_of_the_working_directory_is_the_default(params_file, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["stages/normalize.py"])
    assert load_params(Params).seed == 0
    assert capsys.readouterr().err == "normalize: default parameters: no params.yaml here\n"
    params_file.rename("params.yaml")
    assert load_params(Params).seed == 3
    assert capsys.readouterr().err == "normalize: parameters from params.yaml\n"
    monkeypatch.setenv("RANK", "1")
    load_params(Params)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("train.lt=1", "train.lt: unknown key; known here: lr, epochs, flip, size"),
        ("train.lr=abc", "train.lr: .*number, got 'abc'"),
        ("train.lr='3e-7'", "train.lr: .*number, got '3e-7'"),
        ("train.lr=-1", "train.lr: .*greater than 0, got -1"),
        ("train.lr=.nan", "train.lr: .*greater than 0"),
        ("train.epochs=1.5", "train.epochs: .*integer"),
        ("train.epochs=true", "train.epochs: .*integer, got True"),
        ("train.size=[1]", "train.size.1: is missing"),
        ("train.size=[1,2", "not valid YAML"),
        ("trian.lr=1", "no section 'trian' here; known: seed, train"),
        ("train.lr.x=1", "lr is a value, not a section"),
        ("train.lr", "expected section.key=value"),
        ("train=3", "train: "),
    ],
)
def test_mistakes_are_one_line_that_names_the_key(params_file, assignment, message):
    with pytest.raises(UserError, match=message) as error:
        load_params(Params, params_file, [assignment])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- a", "expected sections"),
        ("a: [", "not valid YAML"),
        ("train: {lrr: 1}", "train.lrr: unknown key"),
        ("train: {lr: 1, lr: 2}", "not valid YAML: line 1: the key lr is there twice"),
        ("seed: !!int x", "not valid YAML"),
        ("seed: !!bool x", "not valid YAML"),
        ("seed: !!timestamp x", "not valid YAML"),
        ('seed: "\\Uffffffff"', "not valid YAML"),
        ("seed: " + 999 * "[", "not valid YAML"),
    ],
)
def test_a_bad_file_is_named(tmp_path, text, message):
    path = tmp_path / "p.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=message) as error:
        load_params(Params, path)
    assert str(path) in str(error.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"none.yaml: cannot be read"):
        load_params(Params, tmp_path / "none.yaml")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("5e-4", 5e-4), ("1e3", 1000.0), ("+.5", 0.5), (".inf", math.inf), ("012", 12), ("0o14", 12), ("0x1F", 31),
        ("yes", "yes"), ("no", "no"), ("on", "on"), ("off", "off"), ("1:30", "1:30"), ("2024-01-01", "2024-01-01"),
        ("TRUE", True), ("~", None), ("", None), ("[1e-3, null]", [1e-3, None]),
    ],
)  # fmt: skip
def test_yaml_is_read_by_the_rules_of_1_2(text, value):
    assert parse_yaml(f"a: {text}", "p.yaml") == {"a": value}


def both_readers(text: str) -> None:
    """What DVC reads, we read as DVC does; but we leave dates text."""
    try:
        theirs = dvc.utils.serialize.parse_yaml(text, "p.yaml")
    except (DvcException, ValueError):  # the latter for `0x_`, which ruamel.yaml takes for a number without digits
        return
    if not contains_date(theirs):
        assert repr(parse_yaml(text, "p.yaml")) == repr(theirs), text  # 1, 1.0 and True differ


def contains_date(value: Any) -> bool:
    if isinstance(value, (dict, list)):
        return any(map(contains_date, value.values() if isinstance(value, dict) else value))
    return hasattr(value, "year")


@settings(deadline=None)
@given(st.text("0123456789abeEfFinosuxlrtTNy_+-.:~", max_size=8))
@example("-._1")
@example("0x_")
@example("+_1")
@example("1e1_0")
def test_plain_words_are_what_dvc_takes_them_for(word):
    both_readers(f"a: {word}\nb: [{word}, {word}]\nc: {{d: {word}}}\ne:\n- {word}\n- f: {word}\n")


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(codec="ascii"), max_size=9)
NAMES = st.from_regex(r"[a-z_]{1,6}", fullmatch=True)
INNER = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3))


@settings(deadline=None, max_examples=50)
@given(st.dictionaries(NAMES, INNER, min_size=1, max_size=4))
def test_trees_are_what_dvc_reads_however_they_are_written(tree):
    for text in (json.dumps(tree), yaml.safe_dump(tree), dvc.utils.serialize.dumps_yaml(tree)):
        both_readers(text)


class Net(Entry):
    size: int = 3
    kind: str = "a"


class Lists(Section):
    renamed: ClassVar[dict[str, str]] = {"colour": "lists.shade"}
    shade: int = 0


class Named(Section):
    renamed: ClassVar[dict[str, str]] = {"net": "nets.<name>"}
    nets: Net = Net()
    lists: Lists = Lists()


def test_one_of_several_entries_is_read_by_its_name(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["stages/x.py"])
    path = tmp_path / "p.yaml"
    path.write_text("nets: {small: {size: 1}, wrong: {siz: 2}, bare: 7}\n")
    small = load_params(Named, path, ["nets.kind=b"], "small").nets
    assert (small.size, small.kind, small.key("size")) == (1, "b", "nets.small.size")
    assert "--name" not in capsys.readouterr().err
    assert load_params(Named, path, ["nets.small.kind=b"], "small").nets.kind == "b"
    assert load_params(Named, path).nets.size == 3
    assert "x: nets at their defaults; --name takes those of one of small, wrong, bare" in capsys.readouterr().err
    for entry, assignments, message in (
        ("wrong", [], f"{path}: nets.wrong.siz: unknown key; known here: size, kind"),
        ("none", [], f"{path}: nets.none: is missing; there are: small, wrong, bare"),
        ("bare", [], f"{path}: nets.bare: is missing; there are: small, wrong, bare"),
        ("small", ["nets.size=x"], f"{path}: nets.small.size: Input should be a valid integer, got 'x'"),
        (None, ["nets.small.size=2"], f"{path}: nets.small: unknown key; known here: size, kind"),
    ):
        with pytest.raises(UserError) as error:
            load_params(Named, path, assignments, entry)
        assert str(error.value) == message


@pytest.mark.parametrize(
    ("text", "assignments", "message"),
    [
        ("net: {size: 1}", [], "p.yaml: net: is now nets.<name>; rename it"),
        ("", ["net.size=1"], "--set net.size=1: net is now nets.<name>"),
        ("lists: {colour: 1}", [], "p.yaml: lists.colour: is now lists.shade; rename it"),
        ("", ["lists.colour=1"], "p.yaml: lists.colour: is now lists.shade; rename it"),
    ],
)
def test_the_name_of_an_older_version_is_refused_with_the_new_one(tmp_path, monkeypatch, text, assignments, message):
    monkeypatch.chdir(tmp_path)
    Path("p.yaml").write_text(text)
    with pytest.raises(UserError) as error:
        load_params(Named, Path("p.yaml"), assignments)
    assert str(error.value) == message
