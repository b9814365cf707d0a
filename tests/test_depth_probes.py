"""What codes tell, and how sure that is."""

import numpy as np
import pytest

from sightline.depth.probes import Bootstrap, Frames, Told, judge, report
from sightline.training.probing import linear_probe, r_squared


def frames(rng, episodes, code, **columns):
    count = len(code)
    return Frames(code, columns, np.arange(count) * episodes // count)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def three(rng, noise=0.1):
    """Codes of 20 numbers; ``a`` is linear in them but for noise, ``still`` does not move."""
    weights, parts = rng.normal(size=(20, 2)), []
    for episodes in (6, 3, 10):
        code = rng.normal(size=(episodes * 20, 20))
        a = code @ weights + noise * rng.normal(size=(len(code), 2))
        parts.append(frames(rng, episodes, code, a=a, still=np.ones((len(code), 1)), b=code[:, :1] ** 2))
    return parts


def test_a_linear_map_is_found_as_the_probe_of_one_column_finds_it(rng):
    fit, choose, held_out = three(rng)
    judged = judge(fit, choose, held_out)
    assert set(judged) == {"a", "b"}
    pairs = [(part.code, part.columns["a"]) for part in (fit, choose, held_out)]
    expected = linear_probe(*pairs)
    assert Bootstrap(10).r2(judged["a"]["linear"])["r2"] == pytest.approx(expected["r2"], abs=1e-9)
    assert (judged["a"]["alpha"], judged["a"]["targets"]) == (expected["alpha"], 2)
    assert Bootstrap(10).r2(judged["b"]["linear"])["r2"] < 0.2


def test_neighbours_tell_what_is_alike_where_codes_are(rng):
    centres = rng.normal(size=(4, 8))
    kinds = [rng.integers(0, 4, size) for size in (60, 10, 40)]
    parts = [
        frames(rng, 5, centres[kind] + 0.01 * rng.normal(size=(len(kind), 8)), kind=kind[:, None]) for kind in kinds
    ]
    judged = judge(*parts)
    assert Bootstrap(5).r2(judged["kind"]["neighbours"])["r2"] > 0.99


def test_the_sums_of_episodes_give_r2_of_any_draw_of_them(rng):
    episode, y = np.repeat(np.arange(5), 4), rng.normal(size=(20, 3))
    predicted = y + 0.3 * rng.normal(size=y.shape)
    told = Told.of(predicted, y, episode)
    drawn = np.concatenate([np.flatnonzero(episode == k) for k in (0, 0, 3, 4, 4)])
    assert told.r2(np.array([[2, 0, 0, 1, 2]]))[0] == pytest.approx(r_squared(predicted[drawn], y[drawn]))
    constant = Told.of(np.zeros((20, 1)), np.ones((20, 1)), episode)
    assert constant.r2(np.ones((1, 5)))[0] == 0


def test_intervals_are_over_episodes_and_narrower_for_differences(rng):
    episode = np.repeat(np.arange(30), 10)
    hard = np.repeat(rng.uniform(0.1, 2, 30), 10)[:, None]
    y, noise = rng.normal(size=(300, 1)), rng.normal(size=(300, 1))
    one, other = (Told.of(y + scale * hard * noise, y, episode) for scale in (0.5, 0.55))
    bootstrap = Bootstrap(30)
    r2, gain = bootstrap.r2(one), bootstrap.gain(one, other)
    low, high = r2["r2_interval"]
    assert low < r2["r2"] < high
    assert gain["r2_gain"] == pytest.approx(r2["r2"] - bootstrap.r2(other)["r2"])
    assert 0 < gain["r2_gain_interval"][0] < gain["r2_gain_interval"][1]
    assert np.diff(gain["r2_gain_interval"])[0] < high - low
    assert Bootstrap(1).r2(Told.of(y, y, np.zeros(300)))["r2_interval"] is None


def test_the_report_has_the_gain_over_the_best_linear_code_and_parts_apart(rng):
    fit, choose, held_out = three(rng)
    good, bad = judge(fit, choose, held_out), {}
    for name in ("autoencoder", "dct", "scene"):
        bad[name] = good
    half = [Frames(part.code[:, :10], part.columns, part.episode) for part in (fit, choose, held_out)]
    found = report({**bad, "pca": judge(*half)}, ("patches", "scene"), 10)
    assert set(found["probe"]["a"]) == {"autoencoder", "dct", "pca"}
    assert set(found["parts"]["a"]) == {"scene"}
    assert found["gain"]["a"]["autoencoder"] == {"over": "dct", "r2_gain": 0, "r2_gain_interval": [0, 0]}
    assert found["probe"]["a"]["pca"]["r2"] < found["probe"]["a"]["dct"]["r2"]
