"""Rows of a source, in a partition of their own or by a partition key: the same deeds on both."""

import pytest

from embedding_platform.milvus.index import ann_search, ensure_index
from embedding_platform.milvus.partitions import (
    Partition,
    Removed,
    drop_other_partitions,
    drop_partition,
    has_partition,
    plan_layout,
)
from embedding_platform.milvus.query import search_rows
from embedding_platform.milvus.schema import Layout, partition_name
from embedding_platform.milvus.sync import read_rows, sync_partition

from .making import HNSW, desired, make_row, new_collection, no_rows, provenance, row_id, rows_for, vector

SOURCES = ("photos", 'odd "quotes" é', "it's")


@pytest.fixture(params=["named", "keyed"])
def layout(request) -> Layout:
    if request.param == "named" and request.node.get_closest_marker("server"):
        pytest.skip("a server's named partitions are tested by test_sync")
    return request.param


@pytest.fixture
def collection(client, layout) -> str:
    """A collection that holds ten rows of each source."""
    name = new_collection(client, layout=layout)
    for source in SOURCES:
        wanted = desired(range(10), of=source)
        report = sync_partition(client, Partition(name, source, layout), wanted, rows_for(wanted, source))
        assert report.upserted == 10
    return name


def held(client, collection, layout) -> dict[str, int]:
    return {source: len(read_rows(client, Partition(collection, source, layout))) for source in SOURCES}


def test_each_source_has_its_rows_and_no_others(client, collection, layout):
    for source in SOURCES:
        wanted = desired(range(10), of=source)
        partition = Partition(collection, source, layout)
        assert set(read_rows(client, partition).index) == set(wanted.index)
        assert sync_partition(client, partition, wanted, no_rows).batches == 0


def test_a_sync_touches_its_own_source_alone(client, collection, layout):
    first, *others = SOURCES
    wanted = desired(range(3, 12), of=first)
    report = sync_partition(client, Partition(collection, first, layout), wanted, rows_for(wanted, first))
    assert report.counts == {"new": 2, "stale": 0, "orphaned": 3, "unchanged": 7}
    assert held(client, collection, layout) == {first: 9} | dict.fromkeys(others, 10)


def test_a_search_keeps_to_the_sources_asked_for(client, collection, layout):
    ensure_index(client, collection, HNSW, "COSINE")
    for source in SOURCES:
        own = {row_id(number, source) for number in range(10)}
        partition = Partition(collection, source, layout)
        (hits,) = ann_search(client, collection, partition, vector(3)[None], 20, HNSW, "COSINE")
        assert {key for key, _ in hits} == own
        rows = search_rows(client, collection, vector(3), 20, HNSW, "COSINE", [source])
        assert {row["id"] for row in rows} == own
    rows = search_rows(client, collection, vector(3), 30, HNSW, "COSINE", SOURCES[:2])
    assert {row["source"] for row in rows} == set(SOURCES[:2])


def test_a_source_is_dropped_with_its_rows_and_no_others(client, collection, layout):
    first, *others = SOURCES
    partition = Partition(collection, first, layout)
    assert has_partition(client, partition)
    drop_partition(client, partition)
    drop_partition(client, partition)
    assert not has_partition(client, partition)
    assert held(client, collection, layout) == {first: 0} | dict.fromkeys(others, 10)


def test_what_no_source_accounts_for_goes(client, collection, layout):
    stray = make_row(row_id(1, "stray"), "1", source="stray")
    client.upsert(collection, [stray])
    removed = drop_other_partitions(client, collection, layout, lambda: SOURCES[:2])
    assert removed == (Removed(1, 1) if layout == "named" else Removed(0, 11))
    assert held(client, collection, layout) == dict.fromkeys(SOURCES[:2], 10) | {SOURCES[2]: 0}
    assert client.get(collection, ids=[stray["id"]]) == []
    assert drop_other_partitions(client, collection, layout, lambda: SOURCES[:2]) == Removed(0, 0)


def test_a_source_that_comes_meanwhile_keeps_its_rows(client, collection, layout):
    """Whoever asks who is known makes another source known, whose rows are there by then."""
    asked = []

    def known():
        asked.append(None)
        return SOURCES if len(asked) > (layout == "keyed") else SOURCES[:2]

    assert drop_other_partitions(client, collection, layout, known) == Removed(0, 0)
    assert held(client, collection, layout) == dict.fromkeys(SOURCES, 10)


def test_a_key_stored_twice_in_a_collection_with_a_partition_key_is_mended(client):
    name = new_collection(client, layout="keyed")
    wanted, partition = desired(range(5)), Partition(name, "photos", "keyed")
    sync_partition(client, partition, wanted, rows_for(wanted))
    client.insert(name, [make_row(wanted.index[0], "1")])
    sync_partition(client, partition, wanted, rows_for(wanted))
    assert sorted(read_rows(client, partition).index) == sorted(wanted.index)


@pytest.mark.parametrize(
    ("sources", "present", "planned"),
    [(4, None, "named"), (5, None, "keyed"), (4, "keyed", "keyed"), (3, "keyed", "keyed"), (2, "keyed", "named")],
)
def test_a_key_takes_over_beyond_the_limit_and_stays_until_half_of_it(client, sources, present, planned):
    made_by = provenance(layout=present or "named")
    if present:
        new_collection(client, layout=present, fingerprint=made_by.fingerprint)
    assert plan_layout(client, made_by.space, made_by.fingerprint, sources, most_named=4) == planned


def test_partition_names_go_by_layout():
    assert Partition("c", "photos").names == [partition_name("photos")]
    assert Partition("c", "photos").where("x > 1") == "x > 1"
    assert Partition("c", "photos", "keyed").names is None
    assert Partition("c", 'a "b"', "keyed").where("x > 1") == 'source in ["a \\"b\\""] and x > 1'
