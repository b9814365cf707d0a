"""Which id an image has: never digits cut out of a word, and never the id of another image."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from sightline.core.errors import UserError
from sightline.recording.names import Naming, list_frames, list_images


def folder_of(folder: Path, names: list[str]) -> Path:
    folder.mkdir(exist_ok=True)
    for name in names:
        (folder / name).touch()
    return folder


def ids_of(folder: Path, **said) -> dict[str, int]:
    images = list_images(folder, naming=Naming(**said), text=True)
    assert list(images.paths) == sorted(images.paths) == list(images.names)
    return {path.name: i for i, path in images.paths.items()}


def refusal(folder: Path, **said) -> str:
    with pytest.raises(UserError) as raised:
        list_images(folder, naming=Naming(**said), text=True)
    assert "\n" not in str(raised.value)
    return str(raised.value)


WORDS = st.text("abcdefxyzé", min_size=1, max_size=5)
SEPARATORS = st.sampled_from(["_", "-", ".", " "])
HEADS = st.one_of(
    st.just(""), st.builds("{}{}".format, WORDS, SEPARATORS), st.builds("{}_{}{}".format, WORDS, WORDS, SEPARATORS),
    st.builds("{}2014{}".format, WORDS, SEPARATORS), WORDS,
)  # fmt: skip
TAILS = st.one_of(st.just(""), st.builds("{}{}".format, SEPARATORS, WORDS))
NUMBERS = st.lists(st.integers(0, 10**12), min_size=1, max_size=6, unique=True)


@settings(max_examples=80, deadline=None)
@given(head=HEADS, tail=TAILS, numbers=NUMBERS, width=st.integers(0, 12))
def test_a_number_that_stands_alone_is_the_id(tmp_path_factory, head, tail, numbers, width):
    names = {f"{head}{n:0{width}d}{tail}.png": n for n in numbers}
    assert ids_of(folder_of(tmp_path_factory.mktemp("n"), list(names))) == names


HEXADECIMAL = st.text("0123456789abcdef", min_size=4, max_size=10)
WORDS_WITH_DIGITS = st.builds("{}{}{}".format, st.text("abcdef", min_size=1, max_size=3), st.integers(0, 99), WORDS)
ODD = st.one_of(
    st.builds("{}_{}".format, st.integers(0, 10**9), HEXADECIMAL.filter(lambda tail: not tail.isdigit())),
    st.builds("{} ({})".format, st.integers(0, 10**6), st.integers(1, 9)),
    st.builds("{}_{}x".format, WORDS, st.integers(0, 999)),
    st.builds("{}_{}".format, WORDS, WORDS_WITH_DIGITS),
    st.builds("v{}.5e{}".format, st.integers(0, 9), st.integers(0, 9)),
    WORDS,
)


@settings(max_examples=120, deadline=None)
@given(odd=st.lists(ODD, min_size=1, max_size=4, unique=True), numbers=NUMBERS)
def test_a_name_without_such_a_number_is_refused_and_so_is_its_folder(tmp_path_factory, odd, numbers):
    names = [f"{name}.jpg" for name in odd] + [f"{n}.jpg" for n in numbers]
    assume(len(set(names)) == len(names))
    line = refusal(folder_of(tmp_path_factory.mktemp("n"), names))
    assert "--ids FILE" in line or "time" in line


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["COCO_val2014_000000000042.jpg", "COCO_val2014_000000000042 (1).jpg"], r"1 of 2 file names do not end"),
        (["1000268201_693b08cb0e.jpg", "1001773457_577c3a7d70.jpg"], "2 of 2 file names do not end"),
        (["left0001.png", "right0002.png"], "2 of 2 file names do not end"),
        (["a1b2.png", "a1b3.png"], "2 of 2 file names do not end"),
        (["2024-01-01_12.30.45.png", "2024-01-02_12.30.46.png"], "more than one number changes"),
        (["1305031102_160407.png", "1305031103_260407.png"], "more than one number changes"),
        (["01_5.png", "02_6.png"], "more than one number changes"),
        (["0001_rgb.png", "0002_depth.png"], "followed by different words"),
        (["42.png", "43 - Copy.png"], "followed by different words"),
        (["042.png", "42.png"], "same frame id 42 as 042.png"),
        ([f"{2**63}.png"], "beyond 64 bits"),
    ],
)
def test_names_that_do_not_say_their_id_are_refused_in_one_line(tmp_path, names, words):
    assert words in refusal(folder_of(tmp_path / "n", names))


# ---------------------------------------------------------------- time stamps


@settings(max_examples=60, deadline=None)
@given(
    times=st.lists(st.integers(10**18, 2 * 10**18), min_size=1, max_size=8, unique=True),
    digits=st.sampled_from([6, 9]),
    head=st.sampled_from(["", "depth_"]),
)
def test_time_stamps_number_the_images_in_the_order_of_time(tmp_path_factory, times, digits, head):
    times = sorted({t - t % 10 ** (9 - digits) for t in times})
    names = [f"{head}{t // 10**9}.{t % 10**9:09d}"[: len(head) + 11 + digits] + ".png" for t in times]
    images = list_images(folder_of(tmp_path_factory.mktemp("t"), names))
    assert [path.name for path in images.paths.values()] == names
    assert list(images.paths) == list(range(len(names)))
    assert list(images.time_ns.values()) == times


def test_the_fraction_is_asked_for_where_it_may_be_nanoseconds(tmp_path, capsys):
    folder = folder_of(tmp_path / "t", ["1305031102.5.png", "1305031102.45000.png", "1305031101.999.png"])
    assert "--time-format decimal" in refusal(folder)
    assert list(ids_of(folder, time_format="decimal")) == [
        "1305031101.999.png", "1305031102.45000.png", "1305031102.5.png"
    ]  # fmt: skip
    assert list(ids_of(folder, time_format="sec_nsec")) == [
        "1305031101.999.png", "1305031102.5.png", "1305031102.45000.png"
    ]  # fmt: skip
    assert "names are time stamps (seconds and nanoseconds): ids 0 to 2" in capsys.readouterr().err
    assert list_images(folder, naming=Naming(time_format="sec_nsec")).time_ns[1] == 1305031102 * 10**9 + 5


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (
            ["1305031102.160407.png", "left.png"],
            "1 of 2 file names are not time stamps <seconds>.<fraction> (left.png)",
        ),
        (["1305031102.160.png", "1305031103.160.png"], "are names like 1305031102.160.png times?"),
        (["seq-01.000042.png"], "are names like seq-01.000042.png times?"),
        (["1305031102.160407.png", "01305031102.160407.png"], "same time as"),
    ],
)
def test_times_that_are_not_told_are_refused(tmp_path, names, words):
    assert words in refusal(folder_of(tmp_path / "t", names))


def test_times_are_refused_where_there_are_none_and_in_a_recording(tmp_path):
    folder = folder_of(tmp_path / "n", ["1.png", "2.png"])
    assert "2 of 2 file names are not time stamps" in refusal(folder, time_format="decimal")
    folder = folder_of(tmp_path / "t", ["1305031102.160407.png", "1305031102.193841.png"])
    with pytest.raises(UserError, match=r"2 of 2 names are time stamps .*; a recording names images by frame id"):
        list_frames(folder)


# ---------------------------------------------------------------- files of ids

FLICKR = ["1000268201_693b08cb0e.jpg", "1001773457_577c3a7d70.jpg", "1002674143_1b742ab4b8.jpg"]


@pytest.mark.parametrize("seed", range(4))
def test_ids_of_a_file_whatever_its_form(tmp_path, seed):
    folder, rng = folder_of(tmp_path / "f", FLICKR), np.random.default_rng(seed)
    ids = dict(zip(FLICKR, rng.permutation(100)[:3].tolist(), strict=True))
    forms = {
        "ids.csv": "file_name,id\n" + "".join(f"{name},{i}\n" for name, i in {**ids, "other.jpg": 7}.items()),
        "columns.csv": "image_id,caption,image\n" + "".join(f'{i},"a, b",{name}\n' for name, i in ids.items()),
        "coco.json": json.dumps({"images": [{"file_name": f"val/{name}", "id": i} for name, i in ids.items()]}),
        "karpathy.json": json.dumps(
            {"images": [{"filename": name, "imgid": 900 + i, "cocoid": i, "split": "val"} for name, i in ids.items()]}
        ),
        "flickr.json": json.dumps({"images": [{"filename": name, "imgid": i} for name, i in ids.items()]}),
    }
    for name, content in forms.items():
        (tmp_path / name).write_text(content, encoding="utf-8")
        assert ids_of(folder, ids=tmp_path / name) == ids


def test_ids_that_are_text_become_places_in_their_order(tmp_path):
    folder = folder_of(tmp_path / "f", FLICKR)
    (tmp_path / "ids.csv").write_text(
        "file_name,id\n" + "".join(f"{n},{c}\n" for n, c in zip(FLICKR, "cab", strict=True))
    )
    images = list_images(folder, naming=Naming(tmp_path / "ids.csv"), text=True)
    assert {i: path.name for i, path in images.paths.items()} == dict(enumerate([FLICKR[1], FLICKR[2], FLICKR[0]]))
    assert images.names == {0: "a", 1: "b", 2: "c"}
    with pytest.raises(UserError, match=r"ids.csv: frame id 'c' of 1000268201_693b08cb0e.jpg is not a whole number"):
        list_images(folder, naming=Naming(tmp_path / "ids.csv"))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "ids.csv: cannot be read: No such file"),
        ("", "expected file_name and id for each image, found nothing"),
        ("file,label\na.jpg,1\n", "expected file_name and id for each image, found file, label"),
        (f"file_name,id\n{FLICKR[0]},1\n", "has no id for 2 of 3 images (1001773457_577c3a7d70.jpg, 1002674143"),
        ("file_name,id\n" + "".join(f"{n},1\n" for n in FLICKR), "have the same frame id 1"),
        (f"file_name,id\n{FLICKR[0]},1\n{FLICKR[0]},2\n", f"{FLICKR[0]} has two ids, 1 and 2"),
        (f"file_name,id\n{FLICKR[0]},\n", "an entry without file_name or id"),
    ],
)
def test_a_file_of_ids_that_does_not_serve_is_one_line(tmp_path, content, words):
    folder = folder_of(tmp_path / "f", FLICKR)
    if content is not None:
        (tmp_path / "ids.csv").write_text(content)
    assert words in refusal(folder, ids=tmp_path / "ids.csv")


@pytest.mark.parametrize("content", ["{", "[1]", '{"images": 3}', '{"photos": []}', b"\xff\xfe"])
def test_a_json_that_is_no_file_of_ids_is_one_line(tmp_path, content):
    folder, file = folder_of(tmp_path / "f", FLICKR), tmp_path / "ids.json"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert "ids.json: not a file of ids" in refusal(folder, ids=file)
