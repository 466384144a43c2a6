import itertools
from collections import Counter

import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedding_platform import increments
from embedding_platform.increments import diff, diff_sorted, place_in, presence, series_of

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


@settings(deadline=None)
@given(
    desired=st.dictionaries(IDS, VERSIONS),
    actual=st.dictionaries(IDS, VERSIONS),
    cuts=st.lists(st.integers(0, 50)),
    rows=st.integers(1, 5),
)
def test_sorted_tables_have_the_same_increment_piece_by_piece(desired, actual, cuts, rows):
    def table(versions: dict[str, str]) -> pa.Table:
        whole = pa.table([sorted(versions), [versions[key] for key in sorted(versions)]], names=["id", "version"])
        whole = whole.cast(pa.schema([("id", pa.string()), ("version", pa.string())]))
        ends = sorted({0, *(cut for cut in cuts if cut < whole.num_rows), whole.num_rows})
        return pa.concat_tables([whole.slice(0, 0), *(whole.slice(a, b - a) for a, b in itertools.pairwise(ends))])

    tables = [table(versions) for versions in (desired, actual)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(increments, "ROWS_PER_PIECE", rows)
        found = diff_sorted(*tables)
    whole = diff(*(series_of(one["id"], one["version"]) for one in tables))
    for part in ("new", "stale", "orphaned", "unchanged"):
        assert list(getattr(found, part)) == list(getattr(whole, part))


@given(st.sets(st.text(max_size=2)), st.text(max_size=2))
def test_a_string_has_its_place_among_sorted_ones(ids, value):
    column = pa.chunked_array([pa.array(ids, pa.string()).sort()]) if ids else pa.chunked_array([], pa.string())
    assert place_in(column, value) == sum(one < value for one in ids)
