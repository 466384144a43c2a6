import re
from dataclasses import replace

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedding_platform import records, storage
from embedding_platform.records import (
    ITEMS,
    REJECTED,
    SEGMENTS,
    Item,
    Segment,
    column_digest,
    digest,
    row_version,
    segment_id,
)

TEXT = st.text(st.characters(codec="utf-8"), max_size=12)
ATTRIBUTES = st.dictionaries(
    TEXT,
    st.recursive(
        st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False) | TEXT,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
        max_leaves=5,
    ),
    max_size=3,
)
MADE_ITEMS = st.lists(
    st.builds(
        Item,
        path=TEXT,
        uri=TEXT,
        size=st.integers(0, 2**62),
        modified=TEXT,
        media_type=TEXT,
        content_hash=TEXT,
        captions=st.lists(TEXT, max_size=3).map(tuple),
        captions_modified=TEXT,
        attributes=ATTRIBUTES,
    ),
    max_size=3,
)
MADE_SEGMENTS = st.lists(
    st.builds(
        Segment,
        segment_id=TEXT,
        path=TEXT,
        uri=TEXT,
        item_version=TEXT,
        role=st.sampled_from(["text", "image", "audio", "video"]),
        position=st.integers(0, 2**31 - 1),
        start=st.floats(0, allow_nan=False),
        end=st.floats(0, allow_nan=False),
        text=st.none() | TEXT,
        content_hash=TEXT,
        attributes=ATTRIBUTES,
    ),
    max_size=3,
)


@given(MADE_ITEMS)
def test_items_survive_their_table(items):
    table = records.items_table(items)
    assert table.schema == ITEMS
    assert records.items(table) == items
    assert table["version"].to_pylist() == [item.version for item in items]


@given(MADE_SEGMENTS)
def test_segments_survive_their_table(segments):
    table = records.segments_table(segments, "books")
    assert table.schema == SEGMENTS
    assert records.segments(table) == segments


SEGMENT = Segment("id", "a.txt", "/a.txt", "v", "text", 0, 0, 5.5, "words", "h", {"pages": [1]})


@pytest.mark.parametrize(
    "change",
    [
        {"segment_id": "ie"},
        {"path": "b.txt"},
        {"item_version": "w"},
        {"role": "image"},
        {"position": 1},
        {"start": 0.5},
        {"end": 5.25},
        {"text": "word"},
        {"content_hash": "i"},
        {"attributes": {"pages": [2]}},
    ],
)
def test_a_row_version_changes_with_whatever_a_row_says(change):
    assert row_version("books", replace(SEGMENT, **change)) != row_version("books", SEGMENT)


def test_a_row_version_is_the_same_wherever_the_media_lie_and_however_often_it_is_stored():
    version = row_version("books", SEGMENT)
    assert version == row_version("books", replace(SEGMENT, uri="s3://elsewhere/a.txt"))
    assert version != row_version("papers", SEGMENT)
    table = records.segments_table([SEGMENT], "books")
    assert table["row_version"].to_pylist() == [version]
    assert row_version("books", records.segments(table)[0]) == version


@given(st.lists(st.lists(TEXT, max_size=3), max_size=3), st.lists(st.lists(TEXT, max_size=3), max_size=3))
def test_only_equal_columns_have_equal_digests(left, right):
    columns = [[pa.chunked_array([column], pa.string()) for column in side] for side in (left, right)]
    assert (column_digest(*columns[0]) == column_digest(*columns[1])) == (left == right)


def test_a_column_has_one_digest_however_it_lies_in_memory():
    whole = pa.array(["x", "a", "", "bcd", "y"])
    parts = [pa.chunked_array([whole.slice(1, 3)]), pa.chunked_array([["a"], ["", "bcd"]]).cast(pa.large_string())]
    assert column_digest(parts[0]) == column_digest(parts[1]) == column_digest(pa.chunked_array([["a", "", "bcd"]]))


@pytest.mark.parametrize("rows", [1, 2, 100])
@pytest.mark.parametrize("type", [pa.string(), pa.large_string()])
def test_a_column_has_one_digest_in_pieces_of_any_size(monkeypatch, rows, type):
    column = pa.chunked_array([pa.array(["x", "a", "", "bcd"], type).slice(1), pa.array(["é", "y"], type)])
    monkeypatch.setattr(records, "ROWS_PER_PIECE", rows)
    assert column_digest(column) == "d4eaa14e4a5745baff244c392984751cdae4d88f0cd42daa3b8d3c05dacf131b"


def test_tables_survive_parquet():
    items = [Item("a", "/a", 1, "2", "text/plain", "h", ("x", "y"), "3", {"pages": [1, {"é": None}]})]
    storage.write_table("memory://records/items.parquet", records.items_table(items))
    assert records.items(storage.read_table("memory://records/items.parquet", ITEMS)) == items


def test_rejected_rows_are_path_uri_version_and_reason():
    row = ("a", "/a", "1", "is empty")
    (stored,) = records.rejected_table([row]).to_pylist()
    assert tuple(stored[name] for name in REJECTED.names) == row
    assert records.rejected_table([]).schema == REJECTED


@given(st.lists(TEXT, max_size=4), st.lists(TEXT, max_size=4))
def test_only_equal_parts_have_equal_digests(left, right):
    assert (digest(*left) == digest(*right)) == (left == right)


@pytest.mark.parametrize("other", [("a", "bc"), ("abc",), ("", "ab", "c"), ("ab", "c", ""), ("ab\0", "c")])
def test_the_same_letters_split_otherwise_have_another_digest(other):
    assert digest(*other) != digest("ab", "c")


def test_a_name_that_is_not_utf_8_has_a_digest():
    assert digest("\udcff") != digest("\udcfe")


def test_a_segment_id_is_decided_by_place_alone():
    place = ("photos", "a/b.png", "image", 0)
    assert re.fullmatch("[0-9a-f]{32}", segment_id(*place))
    assert segment_id(*place) == digest("photos", "a/b.png", "image", "0")[:32]
    others = [("photo", "sa/b.png", "image", 0), ("photos", "a/b.png", "text", 0), ("photos", "a/b.png", "image", 1)]
    assert len({segment_id(*place), *(segment_id(*other) for other in others)}) == 4


def test_a_version_changes_with_bytes_and_with_captions_and_with_nothing_else():
    item = Item("a.png", "/a.png", 1, "1", "image/png", "h", ("cat",))
    same = Item("b.png", "/b.png", 9, "2", "image/jpeg", "h", ("cat",), "7", {"width": 3})
    assert item.version == same.version
    for changes in ({"content_hash": "i"}, {"captions": ()}, {"captions": ("cat", "")}, {"captions": ("c", "at")}):
        assert Item(**{**vars(item), **changes}).version != item.version
