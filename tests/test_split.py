"""The split: whole episodes, or blocks with guards; a pure function of what is split, the shares and the seed."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from sightline.core.errors import UserError
from sightline.recording.split import PARTS, SplitParams, complete_split, split_blocks, split_episodes

episode_sets = st.sets(st.integers(0, 10**9), min_size=3, max_size=60)
seeds = st.integers(0, 2**40)
shares = st.tuples(st.floats(0.01, 0.98), st.floats(0.01, 0.98)).filter(lambda pair: sum(pair) < 1)
split_params = st.builds(
    lambda pair, guard: SplitParams(val=pair[0], test=pair[1], guard=guard), shares, st.integers(0, 9)
)


def seeded(params: SplitParams, seed: int) -> SplitParams:
    return params.model_copy(update={"seed": seed})


@given(episode_sets, split_params, seeds, st.randoms())
def test_order_and_repetition_do_not_matter(episodes, params, seed, random):
    shuffled = list(episodes) * 2
    random.shuffle(shuffled)
    assert split_episodes(np.array(shuffled), seeded(params, seed)) == split_episodes(
        sorted(episodes), seeded(params, seed)
    )


@given(episode_sets, split_params, seeds)
def test_each_episode_is_in_one_part_and_no_part_is_empty(episodes, params, seed):
    split = split_episodes(episodes, seeded(params, seed))
    assert set(split) == episodes
    assert set(split.values()) == set(PARTS)


@given(st.integers(20, 200), shares, seeds)
def test_parts_have_the_shares_asked_for(n, pair, seed):
    parts = list(split_episodes(range(n), SplitParams(val=pair[0], test=pair[1], seed=seed)).values())
    assert abs(parts.count("val") - n * pair[0]) < 2  # rounded, and one given up where train would be empty
    assert abs(parts.count("test") - n * pair[1]) < 2


@given(episode_sets, st.integers(10**9 + 1, 2 * 10**9), split_params, seeds)
def test_a_further_episode_moves_few_others(episodes, new, params, seed):
    before = split_episodes(episodes, seeded(params, seed))
    after = split_episodes(episodes | {new}, seeded(params, seed))
    assert len({e for e in episodes if (before[e] == "test") != (after[e] == "test")}) <= 1
    assert len({e for e in episodes if (before[e] == "val") != (after[e] == "val")}) <= 1


def test_the_seed_changes_the_split():
    splits = {tuple(split_episodes(range(30), SplitParams(seed=seed)).items()) for seed in range(5)}
    assert len(splits) == 5


def test_the_split_of_a_seed_stays_as_published():
    split = split_episodes(range(10), SplitParams(val=0.2, test=0.2))
    assert [e for e in split if split[e] == "val"] == [1, 5]
    assert [e for e in split if split[e] == "test"] == [4, 7]


@pytest.mark.parametrize("episodes", [[], [4], [4, 4, 7]])
def test_fewer_than_three_episodes_are_refused(episodes):
    with pytest.raises(UserError, match=rf"^{len(set(episodes))} episodes.*3 are needed"):
        split_episodes(episodes, SplitParams())


def test_a_part_without_a_share_gets_nothing():
    assert sorted(split_episodes([3, 8], SplitParams(test=0)).values()) == ["train", "val"]
    assert split_episodes([3], SplitParams(val=0, test=0)) == {3: "train"}
    assert split_blocks(6, SplitParams(val=0, guard=1)).tolist() == [
        "train",
        "train",
        "train",
        "guard",
        "guard",
        "test",
    ]


@given(episode_sets, split_params, seeds)
def test_a_source_that_names_train_alone_is_split_as_by_the_seed(episodes, params, seed):
    params = seeded(params, seed)
    assert complete_split(dict.fromkeys(episodes, "train"), params) == split_episodes(episodes, params)


def test_the_parts_of_a_source_stay_and_missing_ones_come_from_train():
    named = {e: "val" if e in (3, 5) else "train" for e in range(12)}
    split = complete_split(named, SplitParams(test=0.2))
    assert [e for e in split if split[e] == "val"] == [3, 5]
    assert list(split) == list(range(12))
    assert list(split.values()).count("test") == 2
    assert complete_split(dict(reversed(named.items())), SplitParams(test=0.2)) == split
    by_seed = [tuple(complete_split(named, SplitParams(test=0.2, seed=seed)).values()) for seed in range(5)]
    assert len(set(by_seed)) > 1
    whole = named | {9: "test"}
    assert complete_split(whole, SplitParams(val=0.4, test=0.4)) == whole
    assert complete_split(named, SplitParams(test=0)) == named


def test_a_source_with_too_few_train_episodes_is_refused():
    with pytest.raises(UserError, match=r"^1 train episodes of the column split \(4\) .* train, test; 2 are needed"):
        complete_split({4: "train", 5: "val"}, SplitParams())


@pytest.mark.parametrize(
    "wrong", [{"val": -0.1}, {"test": 1.0}, {"val": 0.5, "test": 0.5}, {"guard": -1}, {"train": 0.7}]
)
def test_impossible_shares_are_refused(wrong):
    with pytest.raises(ValidationError):
        SplitParams(**wrong)


@given(st.integers(0, 400), split_params)
def test_blocks_are_contiguous_with_guards_between(n, params):
    if n < 3 + 4 * params.guard:
        with pytest.raises(UserError, match=f"^{n} frames are too few"):
            split_blocks(n, params)
        return
    parts = split_blocks(n, params)
    assert len(parts) == n
    train, val, test = (np.flatnonzero(parts == part) for part in PARTS)
    for block in (train, val, test):
        assert (np.diff(block) == 1).all()
    assert val[0] - train[-1] == test[0] - val[-1] == 2 * params.guard + 1
    assert (parts == "guard").sum() == 4 * params.guard
    assert (train[0], test[-1]) == (0, n - 1)


@given(st.integers(120, 700), st.integers(2, 6), st.data())
def test_folds_test_every_frame_once_and_keep_their_distance(n, folds, data):
    guard = data.draw(st.integers(0, 4))
    tested = []
    for fold in range(folds):
        parts = split_blocks(n, SplitParams(folds=folds, fold=fold, guard=guard, val=0.1))
        train, val, test = (np.flatnonzero(parts == part) for part in PARTS)
        tested += test.tolist()
        assert (np.diff(test) == 1).all()
        assert (np.diff(val) == 1).all()
        for one, other in ((train, val), (train, test), (val, test)):
            assert np.abs(one[:, None] - other[None]).min() > guard
    assert tested == list(range(n))


def test_a_fold_holds_out_its_block_whole():
    parts = split_blocks(600, SplitParams(folds=5, fold=2))
    assert np.flatnonzero(parts == "test").tolist() == list(range(240, 360))
    assert (parts[230:240] == "guard").all()
    assert (parts[360:370] == "guard").all()
    assert (parts[[229, 370]] == "train").all()


def test_impossible_folds_are_refused():
    with pytest.raises(UserError, match="20 frames are too few for 5 folds"):
        split_blocks(20, SplitParams(folds=5))
    for wrong in ({"folds": 1}, {"folds": 3, "fold": 3}):
        with pytest.raises(ValidationError):
            SplitParams(**wrong)
