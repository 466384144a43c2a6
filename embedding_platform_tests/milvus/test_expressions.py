"""Values stay values: what a filter finds is what Python finds with the same comparison."""

import json
import operator
from datetime import UTC, datetime

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from embedding_platform.errors import PlatformError
from embedding_platform.milvus.expressions import all_of, attribute, begins_with, compare, none_of, one_of
from embedding_platform.milvus.partitions import Partition
from embedding_platform.milvus.query import rows_where
from embedding_platform.milvus.sync import sync_partition

from .making import desired, make_row, new_collection

HOSTILE = (
    "plain.txt",
    'a"b.txt',
    '" or 1 == 1 or path == "',
    '"] or id >= "',
    "it's",
    "back\\slash",
    "ends in \\",
    '\\" or true',
    "line\nbreak",
    "carriage\rreturn",
    "tab\tstop",
    "bell\x07 and nothing\x01",
    "100%_sure",
    "100 percent sure",
    "{name}",
    "[brackets] (and) more",
    "Zoë",
    "Zoe\u0308",
    "图像/猫.png",
    "🐝/\U0010ffff",
    "2024/may/1.txt",
    "2024/may",
    "2024/mayor.txt",
    "$meta",
    " ",
)
COMPARISONS = {
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
SIZES = (-7, 0, 1, 640, 2**40, 0.5, -1.5e-7, 1e300)

usual = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
names = st.one_of(
    st.sampled_from(HOSTILE),
    st.text(max_size=12),
    st.lists(st.sampled_from(['"', "\\", "'", "\n", " or ", "1 == 1", "]", ")", "a", "é"]), max_size=6).map("".join),
)


@pytest.fixture(scope="module")
def collections():
    """The collection of each client, made when it is first asked for."""
    return {}


@pytest.fixture
def found(client, collections):
    """A function from an expression to the paths of the rows that meet it."""
    if id(client) not in collections:
        collection = collections[id(client)] = new_collection(client)
        wanted = desired(range(len(HOSTILE)))
        made = {
            key: make_row(key, "1")
            | {
                "path": path,
                "attributes": {"name": path, "size": SIZES[place % len(SIZES)], "even": place % 2 == 0},
                "embedded_at": MOMENTS[place % len(MOMENTS)].isoformat(),
            }
            for place, (key, path) in enumerate(zip(wanted.index, HOSTILE, strict=True))
        }
        sync_partition(client, Partition(collection, "photos"), wanted, lambda ids: [[made[key] for key in ids]])
    collection = collections[id(client)]
    return lambda condition: {row["path"] for row in rows_where(client, collection, condition, ("path",), 1000)}


MOMENTS = [
    datetime(2026, 5, 31, 23, 59, 59, tzinfo=UTC),
    datetime(2026, 5, 31, 23, 59, 59, 1, tzinfo=UTC),
    datetime(2026, 5, 31, 23, 59, 59, 500_000, tzinfo=UTC),
    datetime(2026, 6, 1, tzinfo=UTC),
    datetime(2027, 1, 1, 0, 0, 0, 999_999, tzinfo=UTC),
]


@usual
@given(value=names)
def test_a_name_finds_the_rows_of_that_name_alone(found, value):
    same = {path for path in HOSTILE if path == value}
    assert found(compare("path", "==", value)) == same
    assert found(one_of("path", [value])) == same
    assert found(none_of("path", [value])) == set(HOSTILE) - same
    assert found(compare(attribute("name"), "==", value)) == same


@usual
@given(values=st.lists(names, max_size=5), prefix=names)
def test_conditions_join_as_they_should(found, values, prefix):
    among = {path for path in HOSTILE if path in values}
    begun = {path for path in HOSTILE if path.startswith(prefix)}
    assert found(begins_with("path", prefix)) == begun
    if values:
        assert found(all_of(one_of("path", values), begins_with("path", prefix))) == among & begun
        assert found(all_of(none_of("path", values), begins_with("path", prefix))) == begun - among


@usual
@given(how=st.sampled_from(sorted(COMPARISONS)), size=st.one_of(st.sampled_from(SIZES), st.integers(-(2**40), 2**40)))
def test_numbers_compare_as_numbers(found, how, size):
    expected = {path for place, path in enumerate(HOSTILE) if COMPARISONS[how](SIZES[place % len(SIZES)], size)}
    assert found(compare(attribute("size"), how, size)) == expected


def test_truth_is_compared_with_truth(found):
    assert found(compare(attribute("even"), "==", True)) == set(HOSTILE[::2])
    assert found(compare(attribute("even"), "==", False)) == set(HOSTILE[1::2])


def test_what_has_no_such_attribute_is_not_found(found):
    assert found(compare(attribute("nosuch"), "==", 1)) == set()
    assert found(compare(attribute("size"), "==", "640")) == set()


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("how", ["<", ">="])
def test_times_order_as_their_texts_do(found, how, moment):
    expected = {path for place, path in enumerate(HOSTILE) if COMPARISONS[how](MOMENTS[place % len(MOMENTS)], moment)}
    assert found(compare("embedded_at", how, moment.isoformat())) == expected


@given(one=st.datetimes(), other=st.datetimes())
def test_any_two_times_order_as_their_texts_do(one, other):
    texts = [moment.replace(tzinfo=UTC).isoformat() for moment in (one, other)]
    assert (texts[0] < texts[1]) == (one < other)


@pytest.mark.parametrize("name", ["", "a.b", 'a"]', "a[0]", "a b", "1st", "é", "name\n", '" or true or attributes["a'])
def test_what_is_no_attributes_name_is_refused(name):
    with pytest.raises(PlatformError, match="is the name of no attribute"):
        attribute(name)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 2**63, None, b"x", ["a"], {"a": 1}, 1j])
def test_what_is_no_value_is_refused(value):
    with pytest.raises(PlatformError, match="no value that Milvus compares with"):
        compare("path", "==", value)


def test_half_a_character_is_refused():
    with pytest.raises(PlatformError, match="half a character"):
        one_of("path", [json.loads('"\\ud800"')])
