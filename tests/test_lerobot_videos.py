"""Pictures of LeRobot videos belong to the rows of their times: a picture carries its number, and the row names it."""

import json
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pandas as pd
import pytest
from conftest import only_error_line
from data_sets import POINTER
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image

from sightline.core.errors import UserError
from sightline.importers.lerobot import import_lerobot
from sightline.importers.lerobot_faults import Fault
from sightline.importers.lerobot_video import Span, VideoClip, assign, picture_times
from sightline.importers.options import ImportOptions

FPS, BITS, KEY = 30, 8, "observation.images.top"
VIDEO = f"videos/{KEY}/chunk-000/file-000.mp4"
AS_IS = ImportOptions(size=0, processes=1)
CODECS = {
    "h264": ("libx264", {"g": "10", "crf": "18"}),
    "h264, key frames only": ("libx264", {"g": "1", "crf": "18"}),
    "h264, B-frames": ("libx264", {"g": "12", "crf": "18", "bf": "3"}),
    "h264, open groups": ("libx264", {"g": "6", "crf": "18", "bf": "2", "x264-params": "open-gop=1:scenecut=0"}),
    "h265, open groups": ("libx265", {"x265-params": "log-level=none:keyint=6:open-gop=1:bframes=3"}),
    "AV1": ("libsvtav1", {"g": "2", "crf": "30", "preset": "10", "svtav1-params": "lp=1"}),
}


def numbered(number: int) -> np.ndarray:
    """A picture, uint8 [64, 128, 3], that shows a number in blocks of black and white."""
    blocks = np.array([235 if number >> bit & 1 else 20 for bit in range(BITS)], np.uint8)
    return np.broadcast_to(np.repeat(blocks, 128 // BITS)[None, :, None], (64, 128, 3))


def number_of(pixels: np.ndarray) -> int:
    blocks = pixels.reshape(64, BITS, -1)[16:48, :, 8:-8].mean(axis=(0, 2)) > 128
    return int((blocks << np.arange(BITS)).sum())


def write_video(path: Path, numbers: range, codec: str = "h264", first: int = 0) -> None:
    """A video at 30 frames per second; ``first``: when its first picture is shown, frames."""
    path.parent.mkdir(parents=True, exist_ok=True)
    name, options = CODECS[codec]
    with av.open(str(path), "w") as container:
        stream = container.add_stream(name, rate=FPS, options=options)
        stream.width, stream.height, stream.pix_fmt = 128, 64, "yuv420p"
        for i, number in enumerate(numbers):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(numbered(number)), format="rgb24")
            frame.pts, frame.time_base = first + i, Fraction(1, FPS)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def write_set(
    root: Path,
    lengths: list[int],
    starts: list[float],
    files: list[int] | None = None,
    version: str = "v3.0",
    times: list[np.ndarray] | None = None,
) -> Path:
    """A set without its videos, whose joint is the number of the row's picture; rows are shuffled."""
    numbers = np.arange(sum(lengths))
    episode = np.repeat(np.arange(len(lengths)), lengths)
    step = np.concatenate([np.arange(n) for n in lengths])
    time = np.concatenate(times) if times else step / FPS
    rows = pd.DataFrame({"timestamp": time.astype(np.float32), "frame_index": step, "episode_index": episode})
    rows["observation.state"] = rows["action"] = [[float(n)] for n in numbers]
    rows = rows.sample(frac=1, random_state=0)
    number = {"dtype": "float32", "shape": [1], "names": ["j"]}
    info = {"codebase_version": version, "fps": FPS, "total_episodes": len(lengths), "features": {
        "observation.state": number, "action": number, KEY: {"dtype": "video", "shape": [64, 128, 3]}}}  # fmt: skip
    (root / "meta/episodes/chunk-000").mkdir(parents=True)
    (root / "data/chunk-000").mkdir(parents=True)
    if version == "v3.0":
        place = "chunk-{chunk_index:03d}/file-{file_index:03d}"
        info |= {"data_path": f"data/{place}.parquet", "video_path": f"videos/{{video_key}}/{place}.mp4"}
        table = {"episode_index": range(len(lengths)), "length": lengths, "data/chunk_index": 0, "data/file_index": 0}
        table |= {f"videos/{KEY}/chunk_index": 0, f"videos/{KEY}/file_index": files or [0] * len(lengths)}
        table |= {f"videos/{KEY}/from_timestamp": starts}
        pd.DataFrame(table).iloc[::-1].to_parquet(root / "meta/episodes/chunk-000/file-000.parquet", index=False)
        rows.to_parquet(root / "data/chunk-000/file-000.parquet", index=False)
    else:
        info |= {"data_path": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet"}
        info |= {"video_path": "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4"}
        lines = [json.dumps({"episode_index": i, "length": n}) for i, n in enumerate(lengths)]
        (root / "meta/episodes.jsonl").write_text("\n".join(lines))
        for i in range(len(lengths)):
            rows[rows["episode_index"] == i].to_parquet(root / f"data/chunk-000/episode_{i:06d}.parquet", index=False)
    (root / "meta/info.json").write_text(json.dumps(info))
    return root


def starts_of(lengths: list[int], drift: float = 0.0) -> list[float]:
    """from_timestamp of episodes of one file; ``drift``: how much each episode is taken to be too long, frames."""
    return [(sum(lengths[:i]) + drift * i) / FPS for i in range(len(lengths))]


def offsets(recording: Path) -> dict[int, set[int]]:
    """Number of the picture minus the number that its row names, of each episode."""
    frames = pd.read_parquet(recording / "frames.parquet")
    answer: dict[int, set[int]] = {}
    for frame_id, episode, joints in zip(frames["frame_id"], frames["episode"], frames["joints"], strict=True):
        pixels = np.asarray(Image.open(recording / f"rgb/top/{frame_id:06d}.png"))
        answer.setdefault(episode, set()).add(number_of(pixels) - int(joints[0]))
    return answer


def sound(episodes: int) -> dict[int, set[int]]:
    return {episode: {0} for episode in range(episodes)}


def refused(source: Path, *words: str, options: ImportOptions = AS_IS, align: str = "time") -> str:
    target = source.parent / "refused"
    with pytest.raises(UserError) as error:
        import_lerobot(source, target, options, align)
    message = str(error.value)
    assert all(word in message for word in words), message
    assert not target.exists()
    return message


# Each row gets the picture of its time, whatever the codec


@pytest.mark.parametrize("codec", CODECS)
def test_pictures_of_each_codec_are_those_of_the_rows(codec, tmp_path):
    lengths = [7, 11, 1, 9, 14]
    source = write_set(tmp_path / "set", lengths, starts_of(lengths))
    write_video(source / VIDEO, range(sum(lengths)), codec)
    import_lerobot(source, tmp_path / "recording", AS_IS)
    assert offsets(tmp_path / "recording") == sound(5)


def test_a_picture_is_found_wherever_reading_begins(tmp_path):
    for codec in CODECS:
        path = tmp_path / f"{list(CODECS).index(codec)}.mp4"
        write_video(path, range(26), codec)
        for place in range(26):
            assert [number_of(p) for p in VideoClip(path, (place,))] == [place], codec
        assert [number_of(p) for p in VideoClip(path, (3, 4, 9, 25))] == [3, 4, 9, 25]


def test_episodes_of_several_files(tmp_path):
    lengths, files = [5, 6, 7, 8], [0, 0, 1, 1]
    source = write_set(tmp_path / "set", lengths, [0, 5 / FPS, 0, 7 / FPS], files)
    write_video(source / VIDEO, range(11))
    write_video(source / VIDEO.replace("file-000", "file-001"), range(11, 26), "h264, B-frames")
    import_lerobot(source, tmp_path / "recording", AS_IS)
    assert offsets(tmp_path / "recording") == sound(4)


@pytest.mark.parametrize("first", [1, 2, 5])
@pytest.mark.parametrize("codec", ["h264", "h264, B-frames"])
def test_a_first_picture_after_zero(first, codec, tmp_path):
    """B-frames without an edit list: the file is late as a whole, and from_timestamp counts from its first picture."""
    lengths = [6, 8, 9]
    source = write_set(tmp_path / "set", lengths, starts_of(lengths))
    write_video(source / VIDEO, range(sum(lengths)), codec, first)
    for name, options in {"all": AS_IS, "some": ImportOptions(size=0, processes=1, skip=[0, 2])}.items():
        import_lerobot(source, tmp_path / name, options)
        assert set.union(*offsets(tmp_path / name).values()) == {0}


def test_starts_that_count_from_zero_where_the_first_picture_does_not(tmp_path):
    lengths = [6, 8, 9]
    source = write_set(tmp_path / "set", lengths, [start + 2 / FPS for start in starts_of(lengths)])
    for more in (
        0,
        5,
    ):  # with more pictures at the end, counting from the first picture would have one for each row, too
        write_video(source / VIDEO, range(sum(lengths) + more), first=2)
        import_lerobot(source, tmp_path / f"recording{more}", AS_IS)
        assert offsets(tmp_path / f"recording{more}") == sound(3)


def test_a_late_file_whose_times_may_count_from_two_starts(tmp_path):
    source = write_set(tmp_path / "set", [4], [5 / FPS])
    write_video(source / VIDEO, range(12), first=2)
    refused(
        source,
        "times fit both from 0 and from its first picture, at 0.066 s (12 pictures for 4 rows); encode the video again",
    )


def test_pictures_between_episodes_that_no_row_has(tmp_path):
    """As where episodes are removed from the table, and their pictures are not: times tell, counting does not."""
    lengths = [6, 8, 9]
    source = write_set(tmp_path / "set", lengths, [0, 10 / FPS, 30 / FPS])
    numbers = [*range(6), *[200] * 4, *range(6, 14), *[200] * 12, *range(14, 23)]
    write_video(source / VIDEO, numbers)
    text = import_lerobot(source, tmp_path / "recording", AS_IS)
    assert offsets(tmp_path / "recording") == sound(3)
    assert "16 picture(s) of 1 video(s), such as videos/" in text
    refused(source, "39 pictures for 23 rows", "--align count needs as many", align="count")


def test_rows_that_are_not_a_period_apart(tmp_path):
    """Times of rows decide, too: here of a recording whose rows leave out two pictures."""
    times = [np.array([0, 1, 2, 4, 5]) / FPS, np.array([0, 2, 3]) / FPS]
    source = write_set(tmp_path / "set", [5, 3], [0, 6 / FPS], times=times)
    write_video(source / VIDEO, [0, 1, 2, 99, 3, 4, 5, 99, 6, 7])
    import_lerobot(source, tmp_path / "recording", AS_IS)
    assert offsets(tmp_path / "recording") == {0: {0}, 1: {0}}


# Starts that drift: the right picture, or an error


@pytest.mark.parametrize("drift", [0.018, -0.018])
def test_episodes_are_imported_as_far_as_their_times_fit(drift, tmp_path):
    lengths = [6] * 12
    source = write_set(tmp_path / "set", lengths, starts_of(lengths, drift))
    write_video(source / VIDEO, range(72))
    message = refused(source, "6 of 12 episodes cannot be imported", "--episodes 0-5", "--align count")
    lines = message.splitlines()
    assert len(lines) == 7
    assert lines[1].startswith(f"  episode 6: {source / VIDEO}: row ")
    assert "is 3.6 ms (0.11 frames) from the nearest picture, and a tenth of a frame is allowed" in lines[1]
    import_lerobot(source, tmp_path / "some", ImportOptions(size=0, processes=1, episodes="0-5"))
    assert offsets(tmp_path / "some") == sound(6)
    text = import_lerobot(source, tmp_path / "all", AS_IS, "count")
    assert offsets(tmp_path / "all") == sound(12)
    assert "pictures of videos are assigned to rows by counting, whatever their times (--align count)" in text


@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=9),
    drift=st.one_of(st.sampled_from([0.0, 1.0, -1.0, 2.0, 0.5, 0.25, 1 / 3]), st.floats(-2, 2)),
    shift=st.sampled_from([0, 0, 0, 1, 2, -1, 41]),
    first=st.integers(0, 3),
    chosen=st.integers(0, 8),
)
@example(lengths=[1, 8], drift=-1.908, shift=1, first=3, chosen=8)  # the second seems to be before the first
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_row_ever_gets_another_picture(lengths, drift, shift, first, chosen, monkeypatch):
    """Drifts of -2 to 2 frames for each episode, all starts shifted, a late first picture; all rows have a picture."""
    seconds = (np.arange(sum(lengths)) + first) / FPS
    monkeypatch.setattr("sightline.importers.lerobot_video.picture_times", lambda _: (np.arange(len(seconds)), seconds))
    starts = [start + shift / FPS for start in starts_of(lengths, drift)]
    ends = [np.unique([0.0, n - 1]) / FPS for n in lengths]
    spans = [Span(i, n, start, end) for i, (n, start, end) in enumerate(zip(lengths, starts, ends, strict=True))]
    if chosen < len(spans):  # the one whose rows are known
        spans[chosen] = spans[chosen]._replace(times_s=(np.arange(lengths[chosen]) / FPS).astype(np.float32))
    answers = assign(Path("video.mp4"), spans, FPS, count=False)
    for i, answer in answers.items():
        if not isinstance(answer, Fault):
            assert (answer[0], answer[-1]) == (sum(lengths[:i]), sum(lengths[: i + 1]) - 1), (spans, answers)
    if drift == 0 and shift == 0:
        assert not any(isinstance(answer, Fault) for answer in answers.values())


def test_starts_that_are_not_numbers(tmp_path):
    source = write_set(tmp_path / "set", [4, 4], [0, float("inf")])
    write_video(source / VIDEO, range(8))
    refused(source, "from the nearest picture", "--skip 1")
    path = source / "meta/episodes/chunk-000/file-000.parquet"
    pd.read_parquet(path).assign(**{f"videos/{KEY}/from_timestamp": [None, 0.0]}).to_parquet(path)
    refused(source, "meta/episodes: an episode whose number, length, place or from_timestamp is not a number")
    spans = [Span(0, 4, 0.0, np.arange(4) / FPS), Span(1, 4, float("nan"), np.arange(4) / FPS)]
    answers = assign(source / VIDEO, spans, FPS, count=False)
    assert answers[0] == range(4)
    assert isinstance(answers[1], Fault)


def test_starts_that_drift_by_whole_frames(tmp_path):
    """Each time has a picture, one frame off more with each episode."""
    lengths = [6] * 5
    for drift in (1, -1):
        source = write_set(tmp_path / f"set{drift}", lengths, starts_of(lengths, drift))
        write_video(source / VIDEO, range(30))
        message = refused(source, "4 of 5 episodes cannot be imported; import the others with --episodes 0,")
        assert "begins at picture 7 by its time, but at picture 6 by counting" in message or drift < 0


def test_rows_that_are_stamped_by_another_clock(tmp_path):
    lengths = [8, 8]
    times = [np.arange(8) / FPS + 1.36, np.arange(8) / FPS]
    source = write_set(tmp_path / "set", lengths, [], version="v2.1", times=times)
    for i in range(2):
        write_video(source / f"videos/chunk-000/{KEY}/episode_{i:06d}.mp4", range(8 * i, 8 * i + 8))
    refused(source, "row 7 is 1360.0 ms (41 frames) from", "leave episode 0 out with --skip 0, or assign pictures by")
    import_lerobot(source, tmp_path / "recording", AS_IS, "count")
    assert offsets(tmp_path / "recording") == {0: {0}, 1: {0}}


# Episodes that cannot be imported


def test_all_episodes_that_cannot_be_imported_are_told_at_once(tmp_path):
    lengths = [4, 5, 6, 7, 8]
    source = write_set(tmp_path / "set", lengths, [], version="v2.1")
    for i, n in enumerate(lengths):
        write_video(
            source / f"videos/chunk-000/{KEY}/episode_{i:06d}.mp4", range(sum(lengths[:i]), sum(lengths[:i]) + n)
        )
    (source / "data/chunk-000/episode_000001.parquet").unlink()
    (source / f"videos/chunk-000/{KEY}/episode_000002.mp4").write_text(POINTER)
    write_video(source / f"videos/chunk-000/{KEY}/episode_000004.mp4", range(3))
    message = refused(source, f"{source}: 3 of 5 episodes cannot be imported; import the others with --episodes 0,3:")
    assert [line.split(":")[0] for line in message.splitlines()[1:]] == ["  episode 1", "  episode 2", "  episode 4"]
    assert "git lfs pull" in message
    assert "row 7 is 166.7 ms" in message
    import_lerobot(source, tmp_path / "some", ImportOptions(size=0, processes=1, episodes="0,3"))
    assert offsets(tmp_path / "some") == {0: {0}, 3: {0}}
    refused(source, "leave episode 4 out with --skip 4", options=ImportOptions(processes=1, skip=[1, 2]))


@pytest.mark.parametrize("missing", ["none", "lfs"])
def test_a_set_that_is_partly_there(missing, tmp_path):
    lengths, files = [5, 6, 7, 8], [0, 0, 1, 1]
    source = write_set(tmp_path / "set", lengths, [0, 5 / FPS, 0, 7 / FPS], files)
    write_video(source / VIDEO, range(11))
    if missing == "lfs":
        (source / VIDEO.replace("file-000", "file-001")).write_text(POINTER)
    refused(source, "2 of 4 episodes cannot be imported", "--episodes 0-1", "episodes 2-3:", "file-001.mp4")
    text = import_lerobot(source, tmp_path / "some", ImportOptions(size=0, processes=1, episodes="present"))
    assert offsets(tmp_path / "some") == {0: {0}, 1: {0}}
    assert "2 of 4 episodes are not there: 1 of 3 files are missing (videos/observation.images.top/chunk-000/fi" in text
    (source / VIDEO).unlink()
    refused(source, "no episode of 4 has all its files", options=ImportOptions(processes=1, episodes="present"))


def test_a_video_without_times_and_one_that_is_cut(tmp_path):
    lengths = [20]
    source = write_set(tmp_path / "set", lengths, [0])
    write_video(source / VIDEO, range(20))
    whole = (source / VIDEO).read_bytes()
    for share in (0.3, 0.7, 0.95):
        (source / VIDEO).write_bytes(whole[: int(share * len(whole))])
        refused(source, VIDEO)


def test_times_are_read_again_where_a_file_has_changed(tmp_path):
    write_video(tmp_path / "a.mp4", range(5))
    assert len(picture_times(tmp_path / "a.mp4")[0]) == 5
    write_video(tmp_path / "a.mp4", range(9))
    assert len(picture_times(tmp_path / "a.mp4")[0]) == 9


def test_the_command_says_how_pictures_are_assigned(stage, tmp_path):
    source = write_set(tmp_path / "set", [6, 6], [0, 6.5 / FPS])
    write_video(source / VIDEO, range(12))
    line = only_error_line(stage("import_lerobot", source, "rec", "--processes", 1))
    assert "is 16.7 ms (0.5 frames) from the nearest picture" in line
    result = stage("import_lerobot", source, "rec", "--processes", 1, "--align", "count")
    assert result.returncode == 0, result.stderr
    assert "by counting" in result.stdout
    assert "30 fps: with fusion.stride: 3, the steps of a chunk are 10 Hz" in result.stdout
