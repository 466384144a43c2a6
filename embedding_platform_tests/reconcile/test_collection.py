"""Rows of small sources in a real Milvus Lite: exactly those that should be."""

import dataclasses
from uuid import uuid4

import numpy as np
import pytest

from embedding_platform import layout
from embedding_platform.errors import PlatformError, UnsoundError
from embedding_platform.milvus import index as indexing
from embedding_platform.milvus.connection import connect
from embedding_platform.milvus.index import present_index
from embedding_platform.milvus.query import get_rows
from embedding_platform.milvus.schema import partition_name
from embedding_platform.reconcile.collection import CollectionReport, holds_all, holds_source, reconcile_collection
from embedding_platform.reconcile.drift import Drift
from embedding_platform.reconcile.recall import Recall
from embedding_platform.reconcile.segments import live_segments
from embedding_platform.settings import MilvusSettings, QualitySettings
from embedding_platform.spaces import usual_index
from embedding_platform.vectors import store as vector_store
from embedding_platform_tests.inference.small_encoder import SmallEncoder, vector_of
from embedding_platform_tests.reconcile.small_lake import Lake, collect, id_of, ids_in, publish_to


def test_a_sync_writes_exactly_what_was_added_edited_and_deleted(client, lake):
    first = collect(client, lake)
    assert (first.sync.counts["new"], first.rows, first.recall) == (5, 5, Recall(1.0, 1.0, 5))
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


def test_a_large_load_is_flushed_and_nothing_else_is(client, lake, monkeypatch):
    flushed: list[str] = []
    monkeypatch.setattr(client, "flush", lambda name, timeout: flushed.append(name))
    monkeypatch.setattr(indexing, "FLUSHED_ROWS", 5)
    report = collect(client, lake)
    assert flushed == [report.collection]
    lake.write("n5", 5)
    lake.run()
    assert collect(client, lake).sync.upserted == 1
    assert flushed == [report.collection]


class Blind:
    """A client whose searches find nothing, as where a server has not taken up rows yet."""

    def __init__(self, client) -> None:
        self._client = client

    def __getattr__(self, name: str):
        return getattr(self._client, name)

    def search(self, collection: str, data: list, **keywords: object) -> list[list]:
        return [[] for _ in data]


def test_rows_that_no_search_finds_are_not_placed(client, lake):
    milvus = MilvusSettings(searchable_seconds=0.3)
    # The second run writes nothing, but does what the first did not end.
    for probed in (1, 5):
        with pytest.raises(UnsoundError, match=f"{probed} of {probed} rows just written to .* are not found by search"):
            reconcile_collection(Blind(client), lake.target, lake.live(), milvus, QualitySettings())
        assert not holds_all(lake.target, lake.live())
    assert ids_in(client, lake) == {id_of(f"n{number}") for number in range(5)}
    assert collect(client, lake).sync.batches == 0
    assert holds_all(lake.target, lake.live())


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
    assert (report.rows, report.recall) == (7, Recall(1.0, 1.0, 5))
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


def test_compaction_of_the_vectors_changes_nothing_in_milvus(client, lake, monkeypatch):
    collect(client, lake)
    folder = layout.vectors_folder(lake.store, lake.space.key, lake.fingerprint, "one")
    table = live_segments(lake.store, "text", "one", lake.cutting, ["content_hash", "text"])
    for content, text in zip(table["content_hash"].to_pylist(), table["text"].to_pylist(), strict=True):
        for _ in range(8):
            vector_store.append(folder, [content], vector_of(text)[None], lake.fingerprint, "run", "cpu")
    assert vector_store.compact(folder, lake.space.model.dimension, lake.fingerprint) >= 32
    report = collect(client, lake)
    assert (report.sync.batches, report.rows, report.recall) == (0, 5, Recall(1.0, 1.0, 5, measured=False))


def test_rows_that_others_dropped_altered_and_added_are_put_right_and_counted(client, lake):
    report = collect(client, lake)
    assert report.drift == Drift()
    partition = lake.target.partition("one").name
    (row,) = get_rows(client, report.collection, [id_of("n0")])
    client.delete(report.collection, ids=[id_of("n2")], partition_name=partition)
    client.upsert(
        report.collection,
        [
            {**row, "text": "altered under its version"},
            {**row, "id": id_of("n1"), "version": "another"},
            {**row, "id": "f" * 32},
        ],
        partition_name=partition,
    )
    lake.write("n3", 33)
    lake.write("late", 34)
    lake.run()
    mended = collect(client, lake)
    assert mended.drift == Drift(dropped=1, altered=2, added=1)
    assert mended.sync.counts == {"new": 2, "stale": 3, "orphaned": 1, "unchanged": 1}
    again = collect(client, lake)
    assert (again.drift, again.sync.batches) == (Drift(), 0)
    assert get_rows(client, report.collection, [id_of("n0")])[0]["text"] == lake.path("n0").read_text()


def test_a_vector_altered_under_its_version_is_put_right(client, lake):
    report = collect(client, lake)
    (row,) = get_rows(client, report.collection, [id_of("n0")])
    altered = {**row, "vector": np.roll(row["vector"], 1)}
    client.upsert(report.collection, [altered], partition_name=lake.target.partition("one").name)
    assert collect(client, lake, audit_rows=0).drift == Drift()
    assert collect(client, lake).drift == Drift(altered=1)
    (mended,) = get_rows(client, report.collection, [id_of("n0")])
    np.testing.assert_array_equal(np.float32(mended["vector"]), np.float32(row["vector"]))


@pytest.mark.parametrize("field", ["text", "vector"])
def test_whatever_row_is_altered_under_its_version_is_found_within_a_round_of_audits(client, lake, field):
    report = collect(client, lake)
    for number in range(5):
        (row,) = get_rows(client, report.collection, [id_of(f"n{number}")])
        other = {"text": "altered", "vector": np.roll(row["vector"], 1)}[field]
        client.upsert(report.collection, [{**row, field: other}], partition_name=lake.target.partition("one").name)
        # Two rows of five each time.
        assert sum(collect(client, lake, audit_rows=2).drift.altered for _ in range(3)) == 1


def test_a_milvus_that_lost_everything_counts_what_it_lost(client, lake):
    report = collect(client, lake)
    client.drop_collection(report.collection)
    assert collect(client, lake).drift == Drift(dropped=5)


def test_rows_carry_run_fingerprint_and_content_hash(client, lake):
    report = collect(client, lake)
    table = live_segments(lake.store, "text", "one", lake.cutting, ["segment_id", "content_hash"])
    rows = get_rows(client, report.collection, table["segment_id"].to_pylist())
    assert [row["content_hash"] for row in rows] == table["content_hash"].to_pylist()
    assert {(row["run_id"], row["fingerprint"]) for row in rows} == {("run", lake.fingerprint)}


def test_an_index_of_other_parameters_is_built_without_touching_rows(client, lake):
    lake.index = usual_index("HNSW", {"M": 8}, {})
    collect(client, lake)
    for index in (usual_index("HNSW", {"M": 32}, {}), usual_index("IVF_FLAT", {"nlist": 2}, {"nprobe": 2})):
        lake.index = index
        report = collect(client, lake)
        assert (report.sync.batches, report.index_built, report.recall.measured) == (0, True, True)
        assert present_index(client, report.collection).build == index.build
        assert not collect(client, lake).index_built


def test_a_run_without_changes_writes_nothing_anywhere(client, lake):
    collect(client, lake)
    before = lake.stored_files()
    report = collect(client, lake)
    assert (report.sync.batches, report.index_built, report.recall.measured) == (0, False, False)
    assert lake.stored_files() == before


@pytest.mark.parametrize("layout", ["named", "keyed"])
def test_a_collection_of_either_layout_follows_its_media(client, lake, layout):
    lake.layout = layout
    assert collect(client, lake).sync.upserted == 5
    lake.path("n1").unlink()
    lake.write("n2", 22)
    lake.run()
    assert collect(client, lake).sync.counts == {"new": 0, "stale": 1, "orphaned": 1, "unchanged": 3}
    for name in ("n0", "n2", "n3", "n4"):
        lake.path(name).unlink()
    lake.run()
    assert collect(client, lake).rows == 0
    assert not holds_source(client, lake.target, "one")


@pytest.mark.server
@pytest.mark.parametrize("layout", ["named", "keyed"])
def test_many_new_rows_go_to_a_server_through_files_and_few_by_upserts(milvus_server, lake, layout):
    client = connect(milvus_server.uri, milvus_server.token)
    lake.fingerprint, lake.layout = f"{uuid4().hex}{uuid4().hex}", layout
    lake.embeddings()
    milvus = MilvusSettings(import_root=f"{milvus_server.storage}/{uuid4().hex}", import_rows=5)

    def sync() -> CollectionReport:
        return reconcile_collection(client, lake.target, lake.live(), milvus, QualitySettings())

    first = sync()
    assert (first.imported, first.sync.upserted, first.sync.repaired, first.rows) == (5, 0, 0, 5)
    assert first.sync.counts == {"new": 5, "stale": 0, "orphaned": 0, "unchanged": 0}
    lake.write("late", 10)
    lake.run()
    second = sync()
    assert (second.imported, second.sync.upserted, second.rows, second.drift) == (0, 1, 6, Drift())
    again = sync()
    assert (again.imported, again.sync.batches, again.drift) == (0, 0, Drift())
    client.drop_collection(lake.target.collection)
    client.close()
