from uuid import uuid4

import pytest

from embedding_platform.errors import PlatformError
from embedding_platform.milvus.alias import point_alias
from embedding_platform.milvus.expressions import compare, none_of, one_of
from embedding_platform.milvus.index import ensure_index, flush_rows
from embedding_platform.milvus.partitions import Partition
from embedding_platform.milvus.query import get_rows, search_rows
from embedding_platform.milvus.schema import FIELD_NAMES, SCALAR_NAMES
from embedding_platform.milvus.sync import sync_partition

from .making import HNSW, desired, make_row, new_collection, row_id, rows_for, vector


@pytest.fixture
def alias(client):
    collection = new_collection(client)
    for source in ("photos", "product-photos"):
        wanted = desired(range(20), of=source)
        sync_partition(client, Partition(collection, source), wanted, rows_for(wanted, source))
    ensure_index(client, collection, HNSW, "COSINE")
    alias = f"a_{uuid4().hex}"
    point_alias(client, alias, collection)
    return alias


def search(client, alias, **options):
    vector = make_row(row_id(7), "1")["vector"]
    return search_rows(client, alias, vector, options.pop("limit", 5), HNSW, "COSINE", **options)


def test_hits_come_best_first_with_every_field(client, alias):
    hits = search(client, alias, limit=30)
    assert len(hits) == 30
    assert set(hits[0]) == {*SCALAR_NAMES, "score"}
    assert hits[0]["id"] == row_id(7)
    assert hits[0]["score"] == pytest.approx(1, abs=1e-4)
    assert hits[0]["attributes"] == {"width": 3, "nested": [None, {"é": 1.5}]}
    scores = [hit["score"] for hit in hits]
    assert scores == sorted(scores, reverse=True)


def test_hits_keep_to_the_sources(client, alias):
    assert {hit["source"] for hit in search(client, alias, limit=40, sources=["product-photos"])} == {"product-photos"}
    both = search(client, alias, limit=40, sources=["product-photos", "photos"])
    assert len(both) == 40
    assert search(client, alias, sources=[]) == []


def test_an_unknown_source_names_the_known_ones(client, alias):
    with pytest.raises(PlatformError, match=r"unknown source 'phots'.* photos, product-photos"):
        search(client, alias, sources=["phots"])


def test_an_unknown_alias_is_named(client):
    with pytest.raises(PlatformError, match="nosuch"):
        search(client, "nosuch")


def test_rows_come_in_the_order_of_their_ids(client, alias):
    keys = [row_id(9), row_id(999), row_id(3)]
    rows = get_rows(client, alias, keys)
    assert [row["id"] for row in rows] == [row_id(9), row_id(3)]
    assert set(rows[0]) == set(FIELD_NAMES)
    assert get_rows(client, alias, []) == []


def test_what_is_no_id_is_refused(client, alias):
    with pytest.raises(PlatformError, match="is no row id"):
        get_rows(client, alias, ["' or true or '"])


def test_a_condition_that_few_rows_meet_finds_them_through_the_index(client):
    collection = new_collection(client)
    wanted = desired(range(1500))
    sync_partition(client, Partition(collection, "photos"), wanted, rows_for(wanted, size=500))
    flush_rows(client, collection, len(wanted))
    ensure_index(client, collection, HNSW, "COSINE")
    rare = row_id(7)
    hits = search_rows(client, collection, -vector(0), 5, HNSW, "COSINE", condition=compare("path", "==", rare))
    assert [hit["id"] for hit in hits] == [rare]
    assert hits[0]["score"] == pytest.approx(float(-vector(0) @ make_row(rare, "1")["vector"]), abs=1e-5)
    assert set(hits[0]) == {*SCALAR_NAMES, "score"}
    some = [row_id(number) for number in range(0, 1500, 50)]
    few = search_rows(client, collection, vector(0), 100, HNSW, "COSINE", condition=one_of("path", some))
    nearest = sorted(some, key=lambda key: -float(vector(0) @ make_row(key, "1")["vector"]))
    assert [hit["id"] for hit in few] == nearest
    others = search_rows(client, collection, vector(0), 5, HNSW, "COSINE", ["photos"], none_of("path", [rare]))
    assert len(others) == 5
    assert search_rows(client, collection, vector(0), 5, HNSW, "COSINE", ["photos"], compare("start", ">", 1)) == []
