"""Typed parameters: what is read from where, and one-line refusals."""

from pathlib import Path

import pytest
from pydantic import Field

from sightline.core.errors import UserError
from sightline.core.params import PartOfSection, Section, load_params


class Train(Section):
    lr: float = Field(default=1e-3, gt=0)
    epochs: int = 10
    flip: bool = True
    size: tuple[int, int] = (1, 2)


class Half(PartOfSection):
    used: int = 0


class Params(Section):
    seed: int = 0
    train: Train = Train()
    data: Half = Half()


@pytest.fixture
def params_file(tmp_path) -> Path:
    path = tmp_path / "p.yaml"
    path.write_text("seed: 3\ntrain: {lr: 3e-7, size: [4, 5]}\ndata: {used: 1, other: 2}\nunrelated: {a: 1}\n")
    return path


def test_scientific_notation_is_a_number_and_other_stages_keys_are_not_seen(params_file):
    params = load_params(Params, params_file)
    assert params == Params(seed=3, train=Train(lr=3e-7, size=(4, 5)), data=Half(used=1))


def test_set_wins_over_the_file(params_file):
    params = load_params(Params, params_file, ["train.lr=5e-4", "train.flip=false", "seed=1", "data.used=9"])
    assert (params.train.lr, params.train.flip, params.seed, params.data.used) == (5e-4, False, 1, 9)


def test_params_yaml_of_the_working_directory_is_the_default(params_file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load_params(Params).seed == 0
    params_file.rename("params.yaml")
    assert load_params(Params).seed == 3


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
        ("trian.lr=1", "no section 'trian' here; known: seed, train, data"),
        ("train.lr.x=1", "lr is a value, not a section"),
        ("train.lr", "expected section.key=value"),
        ("train=3", "train: "),
        ("data.other=1", "data.other: unknown key; known here: used"),
    ],
)
def test_mistakes_are_one_line_that_names_the_key(params_file, assignment, message):
    with pytest.raises(UserError, match=message) as error:
        load_params(Params, params_file, [assignment])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [("- a", "expected sections"), ("a: [", "not valid YAML"), ("train: {lrr: 1}", "train.lrr: unknown key")],
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
