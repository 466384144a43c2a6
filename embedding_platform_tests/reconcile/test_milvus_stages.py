"""Collection and publication of small sources, over a real Milvus Lite directory."""

import dataclasses

import numpy as np
import pytest

from embedding_platform import layout
from embedding_platform.errors import PlatformError
from embedding_platform.milvus.alias import alias_target
from embedding_platform.milvus.connection import close_directory, connect
from embedding_platform.milvus.query import get_rows
from embedding_platform.milvus.schema import alias_name, collection_name, partition_name
from embedding_platform.milvus.sync import read_rows
from embedding_platform.reconcile.collection import (
    CollectionReport,
    LiveRows,
    collection_increment,
    reconcile_collection,
)
from embedding_platform.reconcile.pending import pending_of_source
from embedding_platform.reconcile.publication import PublicationReport, publish
from embedding_platform.reconcile.segments import live_segments
from embedding_platform.records import segment_id
from embedding_platform.settings import QualitySettings
from embedding_platform.vectors import store as vector_store
from embedding_platform_tests.inference.small_encoder import SmallEncoder, vector_of
from embedding_platform_tests.reconcile.small_lake import FINGERPRINT, Lake


@pytest.fixture(scope="module")
def shared_client(tmp_path_factory):
    directory = str(tmp_path_factory.mktemp("milvus") / "lite")
    client = connect(directory)
    yield client
    client.close()
    close_directory(directory)


@pytest.fixture
def client(shared_client):
    """The client, and an empty Milvus after the test."""
    yield shared_client
    for name in shared_client.list_collections():
        if alias_target(shared_client, alias_name("text/small")) == name:
            shared_client.drop_alias(alias_name("text/small"))
        shared_client.drop_collection(name)


@pytest.fixture
def lake(tmp_path):
    lake = Lake(tmp_path)
    for number in range(5):
        lake.write(f"n{number}", number)
    lake.run()
    return lake


def collect(client, lake: Lake, source: str = "one") -> CollectionReport:
    return reconcile_collection(client, lake.store, lake.space, source, lake.fingerprint, lake.cutting)


def publish_to(client, lake: Lake, *sources: str, **quality: float) -> PublicationReport:
    return publish(
        client, lake.store, lake.space, lake.fingerprint, lake.cutting, sources or ("one",), QualitySettings(**quality)
    )


def ids_in(client, lake: Lake, source: str = "one") -> set[str]:
    collection = collection_name(lake.space.key, lake.fingerprint)
    return set(read_rows(client, collection, partition_name(source)).index)


def ids_of_all(client, name: str) -> set[str]:
    """Ids of all rows that readers find under the name of a collection or an alias."""
    return {row["id"] for row in client.query(name, filter='id != ""', output_fields=["id"], limit=1000)}


def id_of(name: str, source: str = "one") -> str:
    return segment_id(source, f"{name}.txt", "text", 0)


def test_a_sync_writes_exactly_what_was_added_edited_and_deleted(client, lake):
    first = collect(client, lake)
    assert (first.sync.counts["new"], first.rows, first.recall) == (5, 5, 1.0)
    assert ids_in(client, lake) == {id_of(f"n{number}") for number in range(5)}

    lake.write("n0", 10)
    lake.write("n5", 5)
    lake.path("n1").unlink()
    lake.run()
    second = collect(client, lake)
    assert second.sync.counts == {"new": 1, "stale": 1, "orphaned": 1, "unchanged": 3}
    assert (second.sync.upserted, second.sync.deleted, second.sync.repaired) == (2, 1, 0)
    assert second.data_version != first.data_version
    (edited,) = get_rows(client, second.collection, [id_of("n0")])
    assert edited["text"] == lake.path("n0").read_text()
    np.testing.assert_allclose(edited["vector"], vector_of(edited["text"]), atol=1e-6)

    third = collect(client, lake)
    assert (third.sync.batches, third.index_built, third.data_version) == (0, False, second.data_version)


def test_rows_that_somebody_dropped_come_back(client, lake):
    report = collect(client, lake)
    client.delete(report.collection, ids=[id_of("n2")], partition_name=partition_name("one"))
    restored = collect(client, lake)
    assert restored.sync.counts == {"new": 1, "stale": 0, "orphaned": 0, "unchanged": 4}
    assert ids_in(client, lake) == {id_of(f"n{number}") for number in range(5)}


def test_a_dropped_collection_is_made_anew_from_the_stored_vectors(client, lake):
    report = collect(client, lake)
    client.drop_collection(report.collection)
    calls = lake.encoder.embedded
    assert collect(client, lake).rows == 5
    assert lake.encoder.embedded == calls


def test_segments_of_equal_content_each_have_a_row(client, lake):
    for name in ("copy1", "copy2"):
        lake.write(name, 0)
    lake.run()
    report = collect(client, lake)
    assert (report.rows, report.recall, report.recall_queries) == (7, 1.0, 5)
    assert {id_of("n0"), id_of("copy1"), id_of("copy2")} <= ids_in(client, lake)


def test_a_source_that_went_away_leaves_no_partition(client, lake):
    report = collect(client, lake)
    for number in range(5):
        lake.path(f"n{number}").unlink()
    lake.run()
    emptied = collect(client, lake)
    assert (emptied.rows, emptied.recall, emptied.sync.deleted) == (0, None, 5)
    assert not client.has_partition(report.collection, partition_name("one"))
    assert collect(client, lake).sync.batches == 0


def test_one_source_does_not_touch_the_rows_of_another(client, lake):
    for number in range(3):
        lake.write(f"n{number}", number, "two")
    lake.run("two")
    collect(client, lake, "one")
    collect(client, lake, "two")
    lake.path("n0", "two").unlink()
    lake.run("two")
    collect(client, lake, "two")
    assert ids_in(client, lake, "two") == {id_of("n1", "two"), id_of("n2", "two")}
    assert len(ids_in(client, lake, "one")) == 5


def test_a_content_without_a_sound_vector_has_no_row(client, tmp_path):
    spoil = lambda content, vector: vector * np.nan if content.startswith("2 ") else vector  # noqa: E731
    lake = Lake(tmp_path, encoder=SmallEncoder(spoil=spoil))
    for number in range(3):
        lake.write(f"n{number}", number)
    lake.run()
    assert collect(client, lake).rows == 2
    assert ids_in(client, lake) == {id_of("n0"), id_of("n1")}
    assert publish_to(client, lake).published


def test_segments_that_were_never_embedded_are_refused(client, lake):
    lake.write("late", 10)
    lake.files()
    lake.segments()
    with pytest.raises(PlatformError, match=r"1 segments of text/small, source one.*materialize text/small/embeddings"):
        collect(client, lake)


def test_items_that_were_never_cut_are_refused_rather_than_taken_for_deleted(client, lake):
    collect(client, lake)
    lake.cutting = dataclasses.replace(lake.cutting, max_tokens=12)
    with pytest.raises(PlatformError, match=r"5 items of source one.*materialize text/segments"):
        collect(client, lake)
    assert len(ids_in(client, lake)) == 5


def test_an_item_that_changed_before_it_was_cut_does_not_stop_the_others(client, lake):
    path = lake.write("restless", 10)
    lake.files()
    path.write_bytes(b"other words")
    assert len(lake.segments().rejected) == 1
    lake.embeddings()
    assert collect(client, lake).rows == 5
    assert publish_to(client, lake).published
    lake.run()
    assert collect(client, lake).rows == 6


def test_rows_follow_a_media_root_that_moved(client, lake):
    collect(client, lake)
    lake.media.rename(lake.root / "moved")
    lake.media_name = "moved"
    lake.run()
    report = collect(client, lake)
    assert report.sync.counts["stale"] == 5
    assert get_rows(client, report.collection, [id_of("n0")])[0]["uri"] == str(lake.path("n0"))


def test_the_alias_waits_for_a_source_without_vectors_and_then_moves(client, lake):
    collect(client, lake)
    lake.write("a", 10, "two")
    lake.files("two")
    lake.segments("two")
    waiting = publish_to(client, lake, "one", "two")
    assert (waiting.published, waiting.moved, waiting.waiting) == (
        False,
        False,
        {"two": "1 segments have no vector yet"},
    )
    assert alias_target(client, waiting.alias) is None

    lake.embeddings("two")
    assert publish_to(client, lake, "one", "two").waiting == {
        "two": "Milvus differs: 1 missing, 0 stale, 0 orphaned rows"
    }
    collect(client, lake, "two")
    moved = publish_to(client, lake, "one", "two")
    assert (moved.published, moved.moved, moved.previous) == (True, True, None)
    assert alias_target(client, moved.alias) == moved.collection
    again = publish_to(client, lake, "one", "two")
    assert (again.published, again.moved, again.previous) == (True, False, moved.collection)


def test_the_alias_waits_for_a_source_whose_items_are_not_cut(client, lake):
    collect(client, lake)
    lake.write("a", 10, "two")
    lake.files("two")
    assert publish_to(client, lake, "one", "two").waiting == {"two": "1 items are not cut yet"}


def test_a_new_model_is_published_when_its_collection_is_complete_and_the_old_one_stays(client, lake):
    collect(client, lake)
    old = publish_to(client, lake)
    lake.fingerprint = "e" * 64
    lake.embeddings()
    assert publish_to(client, lake).waiting == {"one": "Milvus differs: 5 missing, 0 stale, 0 orphaned rows"}
    assert alias_target(client, old.alias) == old.collection
    collect(client, lake)
    new = publish_to(client, lake)
    assert (new.moved, new.previous) == (True, old.collection)
    assert alias_target(client, new.alias) == new.collection != old.collection
    assert client.has_collection(old.collection)


def test_a_rollback_finds_no_rows_of_a_source_that_was_deleted_meanwhile(client, lake):
    lake.write("a", 10, "two")
    lake.run("two")
    for source in ("one", "two"):
        collect(client, lake, source)
    first = publish_to(client, lake, "one", "two")

    lake.fingerprint = "e" * 64
    for source in ("one", "two"):
        lake.embeddings(source)
        collect(client, lake, source)
    assert publish_to(client, lake, "one", "two").moved
    lake.path("a", "two").unlink()
    lake.run("two")
    collect(client, lake, "two")
    assert publish_to(client, lake, "one").dropped == 0
    assert ids_of_all(client, first.collection) > {id_of("a", "two")}

    lake.fingerprint = FINGERPRINT
    lake.embeddings()
    collect(client, lake)
    back = publish_to(client, lake, "one")
    assert (back.moved, back.collection, back.dropped) == (True, first.collection, 1)
    assert ids_of_all(client, back.alias) == {id_of(f"n{number}") for number in range(5)}


def test_a_published_collection_is_rid_of_sources_that_are_gone(client, lake):
    lake.write("a", 10, "two")
    lake.run("two")
    for source in ("one", "two"):
        collect(client, lake, source)
    published = publish_to(client, lake, "one", "two")
    assert published.dropped == 0
    again = publish_to(client, lake, "one")
    assert (again.moved, again.dropped) == (False, 1)
    assert ids_of_all(client, published.alias) == {id_of(f"n{number}") for number in range(5)}
    assert publish_to(client, lake, "one").dropped == 0


def test_nothing_is_dropped_from_a_collection_that_is_not_ready(client, lake):
    lake.write("a", 10, "two")
    lake.run("two")
    for source in ("one", "two"):
        collect(client, lake, source)
    lake.write("late", 11)
    lake.files()
    waiting = publish_to(client, lake, "one")
    assert (waiting.published, waiting.dropped) == (False, 0)
    assert ids_in(client, lake, "two") == {id_of("a", "two")}


def test_a_floor_of_recall_that_is_not_reached_stops_the_alias(client, lake, monkeypatch):
    collect(client, lake)
    monkeypatch.setattr("embedding_platform.reconcile.collection.recall_at_k", lambda *_: 0.5)
    waiting = publish_to(client, lake, min_recall=0.9)
    assert waiting.waiting == {"one": "recall@10 is 0.500, below quality.min_recall 0.9"}


def test_nothing_is_published_before_there_is_a_collection(client, tmp_path):
    report = publish(
        client, str(tmp_path), Lake(tmp_path).space, "a" * 64, Lake(tmp_path).cutting, [], QualitySettings()
    )
    assert (report.published, report.moved) == (False, False)
    assert alias_target(client, report.alias) is None


def test_what_is_pending_is_told_for_each_asset_and_done_by_the_next_run(client, lake):
    collect(client, lake)

    def pending() -> dict[str, dict[str, int]]:
        seen = {item.path: f"{item.size}-{item.modified}-" for item in lake.files().items}
        spaces = [(lake.space, lake.fingerprint)]
        found = pending_of_source(client, lake.store, "text", "one", seen, spaces, lake.cutting)
        return {one.asset: one.increment.counts() for one in found}

    assert all(count["new"] + count["stale"] + count["orphaned"] == 0 for count in pending().values())
    lake.write("late", 10)
    assert pending()["text/segments"]["new"] == 1
    lake.segments()
    assert pending()["text/small/embeddings"]["new"] == 1
    lake.embeddings()
    assert pending()["text/small/collection"] == {"new": 1, "stale": 0, "orphaned": 0, "unchanged": 5}
    before = lake.stored_files()
    pending()
    assert lake.stored_files() == before


def test_a_collection_that_is_not_there_is_all_new(client, lake):
    live = LiveRows(lake.store, lake.space, "one", lake.fingerprint, lake.cutting)
    assert collection_increment(client, live).counts()["new"] == 5
    assert client.list_collections() == []


def test_a_sample_names_the_path_of_each_vector(lake):
    live = LiveRows(lake.store, lake.space, "one", lake.fingerprint, lake.cutting)
    vectors, paths = live.sample(3)
    assert len(paths) == len(set(paths)) == 3
    for vector, path in zip(vectors, paths, strict=True):
        np.testing.assert_array_equal(vector, vector_of((lake.media / "one" / path).read_text()))


def test_compaction_of_the_vectors_changes_nothing_in_milvus(client, lake, monkeypatch):
    collect(client, lake)
    folder = layout.vectors_folder(lake.store, lake.space.key, lake.fingerprint, "one")
    table = live_segments(lake.store, "text", "one", lake.cutting, ["content_hash", "text"])
    for content, text in zip(table["content_hash"].to_pylist(), table["text"].to_pylist(), strict=True):
        for _ in range(8):
            vector_store.append(folder, [content], vector_of(text)[None], lake.fingerprint, "run", "cpu")
    assert (
        vector_store.compact(
            folder, lake.space.model.dimension, lambda: vector_store.stored_hashes(folder, lake.fingerprint)
        )
        >= 32
    )
    report = collect(client, lake)
    assert (report.sync.batches, report.rows, report.recall) == (0, 5, 1.0)
