import os
from uuid import uuid4

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedding_platform.errors import PlatformError, UnsoundError
from embedding_platform.milvus.connection import close_directory, connect
from embedding_platform.milvus.index import (
    ann_search,
    await_searchable,
    ensure_index,
    keep_search,
    present_index,
    recall_at_k,
    tuned,
)
from embedding_platform.milvus.partitions import Partition
from embedding_platform.milvus.sync import read_rows, sync_partition
from embedding_platform.spaces import Index, usual_index

from .making import FLAT, HNSW, desired, make_row, new_collection, row_id, rows_for, vector

PHOTOS = "photos"
IVF = Index("IVF_FLAT", {"nlist": 4}, {"nprobe": 4})
SQ8 = Index("IVF_SQ8", {"nlist": 4}, {"nprobe": 4})


def filled(client, count=60, **changes):
    collection = new_collection(client, **changes)
    wanted = desired(range(count))
    sync_partition(client, Partition(collection, PHOTOS), wanted, rows_for(wanted))
    return collection, wanted


def stored_vectors(wanted):
    return np.stack([make_row(key, "1")["vector"] for key in wanted.index])


@pytest.mark.parametrize("index", [HNSW, IVF, SQ8, Index("AUTOINDEX", {}, {})])
def test_an_index_is_built_once_and_changed_without_touching_rows(client, index):
    collection, wanted = filled(client)
    ensure_index(client, collection, FLAT, "COSINE")
    assert not ensure_index(client, collection, FLAT, "COSINE")
    assert ensure_index(client, collection, index, "COSINE")
    assert not ensure_index(client, collection, index, "COSINE")
    names = client.list_indexes(collection)
    assert len(names) == 1
    assert client.describe_index(collection, names[0])["index_type"] == index.type
    assert len(read_rows(client, Partition(collection, PHOTOS))) == len(wanted)
    hits = ann_search(client, collection, None, stored_vectors(wanted)[:3], 1, index, "COSINE")
    assert [hit[0][0] for hit in hits] == list(wanted.index[:3])


@pytest.mark.parametrize("index", [HNSW, IVF, FLAT], ids=lambda index: index.type)
def test_an_index_file_torn_by_a_kill_is_dropped_and_built_anew(tmp_path, caplog, index):
    directory = str(tmp_path / "milvus")
    collection, wanted = filled(connect(directory))
    ensure_index(connect(directory), collection, index, "COSINE")
    close_directory(directory)
    (file,) = tmp_path.rglob("*.idx")
    os.truncate(file, file.stat().st_size // 2)

    client = connect(directory)
    hits = ann_search(client, collection, None, stored_vectors(wanted)[:3], 1, index, "COSINE")
    assert [hit[0][0] for hit in hits] == list(wanted.index[:3])
    assert f"cannot read the index of collection {collection}" in caplog.text
    assert ensure_index(client, collection, index, "COSINE")
    assert not ensure_index(client, collection, index, "COSINE")
    assert len(read_rows(client, Partition(collection, PHOTOS))) == len(wanted)
    close_directory(directory)


def test_a_torn_index_is_found_where_nothing_else_was_asked_before(tmp_path):
    directory = str(tmp_path / "milvus")
    collection, _ = filled(connect(directory))
    ensure_index(connect(directory), collection, HNSW, "COSINE")
    close_directory(directory)
    for file in tmp_path.rglob("*.idx"):
        file.write_bytes(b"")
    assert ensure_index(connect(directory), collection, HNSW, "COSINE")
    close_directory(directory)


def test_another_index_of_the_vectors_leaves_that_of_the_words(lite):
    collection, _ = filled(lite, words=True)
    assert ensure_index(lite, collection, FLAT, "COSINE")
    assert ensure_index(lite, collection, HNSW, "COSINE")
    assert sorted(lite.list_indexes(collection)) == ["vector", "words"]
    assert not ensure_index(lite, collection, HNSW, "COSINE")


def test_other_build_parameters_mean_another_index(client):
    collection, _ = filled(client)
    assert ensure_index(client, collection, HNSW, "COSINE")
    assert ensure_index(client, collection, Index("HNSW", {"M": 8, "efConstruction": 100}, {"ef": 64}), "COSINE")
    assert not ensure_index(client, collection, Index("HNSW", {"M": 8, "efConstruction": 100}, {"ef": 9}), "COSINE")


def test_a_change_that_was_killed_halfway_is_finished(client):
    collection, _ = filled(client)
    ensure_index(client, collection, FLAT, "COSINE")
    client.release_collection(collection)
    client.drop_index(collection, client.list_indexes(collection)[0])
    assert ensure_index(client, collection, FLAT, "COSINE")
    assert len(read_rows(client, Partition(collection, PHOTOS))) == 60


@pytest.mark.parametrize(
    ("index", "message"),
    [
        (Index("NOSUCH", {}, {}), "unknown index type"),
        (Index("HNSW", {"M": 1, "efConstruction": 8}, {"ef": 64}), "M is 1, allowed are 2 to 2048"),
    ],
)
def test_an_index_that_milvus_does_not_have_never_reaches_it(client, index, message):
    collection, _ = filled(client, 3)
    before = client.list_indexes(collection)
    with pytest.raises(PlatformError, match=message):
        ensure_index(client, collection, index, "COSINE")
    assert client.list_indexes(collection) == before


@pytest.mark.parametrize("metric", ["COSINE", "IP", "L2"])
def test_scores_are_cosine_inner_product_or_squared_distance(client, metric):
    collection, wanted = filled(client, 40, metric=metric)
    ensure_index(client, collection, HNSW, metric)
    stored = stored_vectors(wanted)
    queries = np.stack([3 * vector(n) for n in (1001, 1002)])
    products = queries @ stored.T
    exact = {
        "IP": products,
        "COSINE": products / 3,
        "L2": ((queries[:, None] - stored[None]) ** 2).sum(-1),
    }[metric]
    best_first = np.sort(exact, axis=1) if metric == "L2" else -np.sort(-exact, axis=1)
    hits = ann_search(client, collection, Partition(collection, PHOTOS), queries, 100, HNSW, metric)
    scores = [[score for _, score in answer] for answer in hits]
    assert np.array(scores) == pytest.approx(best_first, abs=1e-4)
    assert recall_at_k(scores, best_first.tolist(), 10, metric) == 1.0


def test_search_keeps_to_the_partition(client):
    collection, wanted = filled(client, 10)
    scans = desired(range(5), of="scans")
    sync_partition(client, Partition(collection, "scans"), scans, rows_for(scans, "scans"))
    ensure_index(client, collection, HNSW, "COSINE")
    (hits,) = ann_search(
        client, collection, Partition(collection, "scans"), stored_vectors(wanted)[:1], 20, HNSW, "COSINE"
    )
    assert {key for key, _ in hits} == {row_id(n, "scans") for n in range(5)}


@pytest.mark.parametrize(
    ("found", "exact", "k", "metric", "recall"),
    [
        ([[0.9, 0.8]], [[0.9, 0.8]], 2, "COSINE", 1.0),
        ([[0.9, 0.7]], [[0.9, 0.8]], 2, "COSINE", 0.5),
        ([[0.9, 0.9]], [[0.9, 0.9, 0.9]], 2, "IP", 1.0),
        ([[0.1, 0.5]], [[0.1, 0.2]], 2, "L2", 0.5),
        ([[0.9]], [[0.9, 0.8]], 2, "COSINE", 0.5),
        ([[0.9]], [[0.9]], 10, "COSINE", 1.0),
        ([[0.8 - 5e-6]], [[0.8]], 1, "COSINE", 1.0),
        ([[-5.0]], [[-5.0]], 1, "IP", 1.0),
        ([[], [0.9]], [[], [0.9]], 1, "COSINE", 1.0),
        ([], [], 1, "COSINE", 1.0),
    ],
)
def test_recall(found, exact, k, metric, recall):
    assert recall_at_k(found, exact, k, metric) == recall


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=20), st.integers(1, 25), st.sampled_from(["COSINE", "IP", "L2"]))
def test_exact_search_has_recall_one(scores, k, metric):
    ranked = sorted(scores, reverse=metric != "L2")
    assert recall_at_k([ranked[:k]], [ranked], k, metric) == 1.0


def test_tuned_parameters_are_used_while_they_belong_to_the_index(client):
    collection, _ = filled(client, 10)
    assert tuned(client, collection, HNSW) == HNSW
    keep_search(client, collection, HNSW, {"ef": 12})
    assert tuned(client, collection, HNSW).search == {"ef": 12}
    alias = f"a_{uuid4().hex}"
    client.create_alias(collection, alias)
    assert tuned(client, alias, HNSW).search == {"ef": 12}
    chosen = usual_index("HNSW", {}, {"ef": 300})
    assert tuned(client, collection, chosen) == chosen
    ensure_index(client, collection, HNSW, "COSINE")
    assert present_index(client, collection).search == {"ef": 12}


def test_rows_just_written_are_found_by_search(client):
    collection, wanted = filled(client, 40)
    ensure_index(client, collection, HNSW, "COSINE")
    rows = [make_row(key, "1") for key in wanted.index[:5]]
    await_searchable(client, Partition(collection, "photos"), rows, HNSW, "COSINE", timeout_seconds=120)


def test_a_row_among_many_as_near_counts_as_found(client):
    collection = new_collection(client)
    wanted = desired(range(40))
    same = make_row(wanted.index[0], "1")["vector"]

    def rows(ids):
        yield [{**make_row(key, "1"), "vector": same} for key in ids]

    sync_partition(client, Partition(collection, "photos"), wanted, rows)
    ensure_index(client, collection, HNSW, "COSINE")
    probes = [{**make_row(key, "1"), "vector": same} for key in wanted.index]
    await_searchable(client, Partition(collection, "photos"), probes, HNSW, "COSINE", timeout_seconds=120)


def test_a_row_that_no_search_finds_fails_at_the_deadline(client):
    collection, _ = filled(client, 40)
    ensure_index(client, collection, HNSW, "COSINE")
    missing = make_row("f" * 32, "1")
    said = r"1 of 1 rows just written.*not found by search after 0.3 s.*f{32}"
    with pytest.raises(UnsoundError, match=said) as raised:
        await_searchable(client, Partition(collection, "photos"), [missing], HNSW, "COSINE", timeout_seconds=0.3)
    assert (raised.value.check, raised.value.worst) == ("index", ("f" * 32,))
    assert raised.value.numbers == {"probed": 1, "not_found": 1}


@pytest.mark.parametrize("index", [HNSW, IVF], ids=lambda index: index.type)
def test_a_row_that_copies_of_another_hide_is_told_with_the_way_out(client, index):
    collection = new_collection(client)
    wanted = desired(range(2000))
    one, other = wanted.index[0], wanted.index[1]
    same = make_row(other, "1")["vector"]

    def rows(ids):
        yield [make_row(key, "1") if key == one else {**make_row(key, "1"), "vector": same} for key in ids]

    partition = Partition(collection, PHOTOS)
    sync_partition(client, partition, wanted, rows)
    client.flush(collection)
    ensure_index(client, collection, index, "COSINE")
    probe = [make_row(one, "1")]
    if index == IVF:
        await_searchable(client, partition, probe, index, "COSINE", timeout_seconds=120)
        return
    said = rf"such as {one}; copies of one vector, such as that of row .{{32}}, are found instead, and HNSW .*IVF_FLAT"
    with pytest.raises(UnsoundError, match=said):
        await_searchable(client, partition, probe, index, "COSINE", timeout_seconds=5)
