from collections import Counter

import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedding_platform.increments import diff, presence, series_of

IDS = st.text("abcdef", max_size=2)
VERSIONS = st.sampled_from(["1", "2", ""])


def series(rows: list[tuple[str, str]], dtype: str = "object") -> pd.Series:
    ids = pd.Index([key for key, _ in rows], dtype=dtype)
    return pd.Series([version for _, version in rows], index=ids, dtype=dtype)


@pytest.mark.parametrize("dtype", ["object", "str"])
@given(desired=st.dictionaries(IDS, VERSIONS), actual=st.lists(st.tuples(IDS, VERSIONS)))
def test_diff_agrees_with_plain_sets(dtype, desired, actual):
    increment = diff(series(list(desired.items()), dtype), series(actual, dtype))
    answers = Counter(key for key, _ in actual)
    version = dict(actual)
    assert set(increment.new) == desired.keys() - answers.keys()
    assert set(increment.orphaned) == answers.keys() - desired.keys()
    stale = {key for key in desired if answers[key] > 1 or (answers[key] == 1 and version[key] != desired[key])}
    assert set(increment.stale) == stale
    assert set(increment.unchanged) == desired.keys() & answers.keys() - stale
    assert sum(increment.counts().values()) == len(desired.keys() | answers.keys())
    assert increment.is_empty == (desired == version and len(actual) == len(desired))


@given(desired=st.dictionaries(IDS, VERSIONS), actual=st.dictionaries(IDS, VERSIONS))
def test_doing_an_increment_leaves_none(desired, actual):
    increment = diff(series(list(desired.items())), series(list(actual.items())))
    for key in [*increment.new, *increment.stale]:
        actual[key] = desired[key]
    for key in increment.orphaned:
        del actual[key]
    assert actual == desired


@given(desired=st.sets(IDS), actual=st.sets(IDS))
def test_presence_agrees_with_plain_sets(desired, actual):
    increment = presence(pd.Index(sorted(desired), dtype="object"), pd.Index(sorted(actual), dtype="str"))
    parts = (increment.new, increment.stale, increment.orphaned, increment.unchanged)
    assert [list(part) for part in parts] == [
        sorted(desired - actual),
        [],
        sorted(actual - desired),
        sorted(desired & actual),
    ]


@pytest.mark.parametrize("size", [3, 100_000])
def test_rows_in_arrow_are_compared_as_others_are(size):
    ids = pa.array([f"{number:032x}" for number in range(size)])
    versions = pa.array([f"{number:064x}" for number in range(size)])
    backwards = pa.array(range(size - 1, -1, -1))
    desired = series_of(ids, versions)
    actual = series_of(pa.chunked_array([ids.take(backwards)]), versions.take(backwards))
    assert (desired.dtype, desired.index.dtype) == ("str", "str")
    assert diff(desired, actual).counts() == {"new": 0, "stale": 0, "orphaned": 0, "unchanged": size}
    increment = diff(desired.iloc[1:], actual.iloc[1:])
    assert (list(increment.new), list(increment.orphaned)) == ([ids[size - 1].as_py()], [ids[0].as_py()])


def test_an_id_that_is_there_twice_is_stale_even_with_the_right_version():
    increment = diff(
        series([("a", "1"), ("b", "1")]), series([("a", "1"), ("a", "1"), ("b", "1"), ("c", "1"), ("c", "1")])
    )
    assert (list(increment.stale), list(increment.unchanged), list(increment.orphaned)) == (["a"], ["b"], ["c"])


def test_a_desired_id_named_twice_is_refused():
    with pytest.raises(ValueError, match="'a' twice"):
        diff(series([("a", "1"), ("b", "1"), ("a", "1")]), series([]))


@pytest.mark.parametrize("empty", [pd.Series(dtype=object), pd.Series({}, dtype=object), series([], "str")])
def test_nothing_against_nothing_and_something(empty):
    assert diff(empty, empty).is_empty
    assert list(diff(series([("a", "1")]), empty).new) == ["a"]
    assert list(diff(empty, series([("a", "1")])).orphaned) == ["a"]


def test_order_is_that_of_the_input():
    rows = [("c", "1"), ("a", "1"), ("b", "1")]
    assert list(diff(series(rows), series([])).new) == ["c", "a", "b"]
