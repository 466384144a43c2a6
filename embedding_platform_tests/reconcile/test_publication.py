"""When the alias moves, when it waits, and how it goes back."""

import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest
from pymilvus import MilvusClient

from embedding_platform.errors import PlatformError
from embedding_platform.milvus.alias import alias_target, publications
from embedding_platform.milvus.partitions import Removed
from embedding_platform.milvus.query import search_rows
from embedding_platform.milvus.schema import read_provenance
from embedding_platform.reconcile.publication import NOTHING, Gate, PublicationReport, publish, reinstate, roll_back
from embedding_platform.settings import QualitySettings
from embedding_platform_tests.inference.small_encoder import SmallEncoder, vector_of
from embedding_platform_tests.reconcile.small_lake import (
    FINGERPRINT,
    Lake,
    collect,
    id_of,
    ids_in,
    ids_of_all,
    publish_to,
)


@pytest.fixture
def two(client, lake) -> Lake:
    """The lake with a second source, both of them in Milvus."""
    lake.write("a", 10, "two")
    lake.run("two")
    collect(client, lake, "one")
    collect(client, lake, "two")
    return lake


def test_the_alias_waits_until_every_source_is_complete_and_then_moves(client, two):
    two.write("late", 11, "two")
    for stage in (two.files, two.segments, two.embeddings):
        stage("two")
        waiting = publish_to(client, two, "one", "two")
        assert waiting.waiting == {
            "two": f"not in {two.target.collection} as it is now; materialize text/small/collection for it"
        }
    assert (waiting.published, waiting.moved, alias_target(client, waiting.alias)) == (False, False, None)

    collect(client, two, "two")
    moved = publish_to(client, two, "one", "two")
    assert (moved.published, moved.moved, moved.previous) == (True, True, None)
    assert alias_target(client, moved.alias) == moved.collection
    assert moved.gate == Gate(rows=7, recall_at_10=1.0, recall_at_100=1.0, golden=None, overlap=None)
    again = publish_to(client, two, "one", "two")
    assert (again.published, again.moved, again.previous, again.gate) == (True, False, moved.collection, None)


def test_a_source_that_was_never_synced_is_told_without_reading_the_others(client, lake, monkeypatch):
    collect(client, lake)
    lake.write("a", 10, "two")
    monkeypatch.setattr("embedding_platform.reconcile.publication._look", None)
    assert publish_to(client, lake, "one", "two").waiting == {
        "two": f"not in {lake.target.collection} as it is now; materialize text/small/collection for it"
    }


def test_of_many_sources_that_are_due_each_is_counted_and_of_unsound_ones_the_rest_is_not_read(
    client, lake, monkeypatch
):
    monkeypatch.setattr("embedding_platform.reconcile.publication.MOST_UNSOUND", 1)
    sources = ["one", "two", "three"]
    for source in sources[1:]:
        lake.write("a", 10, source)
    collect(client, lake)
    waiting = publish_to(client, lake, *sources)
    assert (list(waiting.waiting), waiting.unread) == (["two", "three"], 0)
    for source in sources:
        lake.run(source)
        collect(client, lake, source)
        client.delete(lake.target.collection, ids=[id_of("a", source), id_of("n1", source)])
    waiting = publish_to(client, lake, *sources)
    assert (list(waiting.waiting), waiting.unread) == (["one"], 2)


def test_rows_that_somebody_dropped_before_the_alias_moved_keep_it_where_it_is(client, two):
    client.delete(two.target.collection, ids=[id_of("n1")], partition_name=two.target.partition("one").name)
    waiting = publish_to(client, two, "one", "two")
    assert waiting.waiting == {"one": "Milvus differs: 1 missing, 0 stale, 0 orphaned rows"}
    collect(client, two)
    assert publish_to(client, two, "one", "two").moved


def test_a_published_collection_that_is_behind_says_so(client, two):
    publish_to(client, two, "one", "two")
    two.write("late", 11, "two")
    two.files("two")
    behind = publish_to(client, two, "one", "two")
    assert (behind.published, list(behind.behind)) == (True, ["two"])
    two.run("two")
    collect(client, two, "two")
    assert publish_to(client, two, "one", "two").behind == {}


def test_going_back_to_a_former_model_waits_for_every_source(client, two):
    former = two.fingerprint
    publish_to(client, two, "one", "two")
    migrate(client, two, "e" * 64, "one", "two")
    two.write("late", 11, "two")
    two.run("two")
    collect(client, two, "two")
    two.fingerprint = former
    assert list(publish_to(client, two, "one", "two").waiting) == ["two"]
    for source in ("one", "two"):
        two.embeddings(source)
        collect(client, two, source)
    assert publish_to(client, two, "one", "two").moved


def test_golden_vectors_that_differ_keep_the_alias_where_it_is(client, lake):
    collect(client, lake)

    def golden() -> float:
        raise PlatformError("other vectors")

    with pytest.raises(PlatformError, match="other vectors"):
        publish(client, lake.target, ["one"], lake.live, QualitySettings(), lambda: ["one"], golden=golden)
    assert alias_target(client, lake.target.alias) is None
    moved = publish(client, lake.target, ["one"], lake.live, QualitySettings(), lambda: ["one"], golden=lambda: 0.9999)
    assert moved.gate.golden == 0.9999
    assert publish(client, lake.target, ["one"], lake.live, QualitySettings(), lambda: ["one"], golden=golden).published


def migrate(client, lake: Lake, fingerprint: str, *sources: str) -> PublicationReport:
    lake.fingerprint = fingerprint
    for source in sources or ("one",):
        lake.embeddings(source)
        collect(client, lake, source)
    return publish_to(client, lake, *sources)


def test_overlap_tells_how_alike_the_answers_of_two_models_are(client, tmp_path):
    lake = Lake(tmp_path)
    for number in range(30):
        lake.write(f"n{number}", number)
    lake.run()
    collect(client, lake)
    publish_to(client, lake)
    same = migrate(client, lake, "e" * 64)
    assert same.gate.overlap == 1.0
    lake.encoder = SmallEncoder(spoil=lambda content, vector: np.roll(vector**3, 1))
    other = migrate(client, lake, "d" * 64)
    assert 0.0 < other.gate.overlap < 0.9


def test_a_rollback_moves_back_at_once_and_stays_until_it_is_taken_back(client, lake):
    collect(client, lake)
    first = publish_to(client, lake)
    second = migrate(client, lake, "e" * 64)
    assert roll_back(client, "text/small") == (second.collection, first.collection)
    assert alias_target(client, first.alias) == first.collection
    collect(client, lake)
    assert publish_to(client, lake).waiting == {
        "every source": "it was rolled back from; `embedding-platform publish text/small` takes that back"
    }
    assert alias_target(client, first.alias) == first.collection
    with pytest.raises(PlatformError, match="has no collection left that was published before"):
        roll_back(client, "text/small")
    reinstate(client, lake.target)
    assert publish_to(client, lake).moved
    assert roll_back(client, "text/small") == (second.collection, first.collection)


def test_a_third_model_may_be_published_after_a_rollback(client, lake):
    collect(client, lake)
    first = publish_to(client, lake)
    second = migrate(client, lake, "e" * 64)
    roll_back(client, "text/small")
    third = migrate(client, lake, "d" * 64)
    assert (third.moved, third.previous) == (True, first.collection)
    assert roll_back(client, "text/small") == (third.collection, first.collection)
    assert second.collection != third.collection


def test_there_is_nothing_to_roll_back_before_a_publication(client, lake):
    with pytest.raises(PlatformError, match="text/small is not published"):
        roll_back(client, "text/small")
    with pytest.raises(PlatformError, match="there is no collection text_small_ffff"):
        reinstate(client, lake.target)


def read_through_migrations(client, own, lake: Lake) -> None:
    """Let `own`, another client, search without a pause while the model is migrated and rolled back."""
    published = publish_to(client, lake, "one", "two")
    answers, errors, done = [], [], threading.Event()

    def read() -> None:
        query = vector_of("amber birch")
        while not done.is_set():
            try:
                answers.append(len(search_rows(own, published.alias, query, 3, lake.index, "COSINE")))
            except Exception as error:  # noqa: BLE001 - whatever it is, a reader met it
                errors.append(error)

    def go_on_reading() -> None:
        before = len(answers)
        while len(answers) < before + 5 and not errors:
            time.sleep(0.01)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for fingerprint in ("e", "d", "c"):
            assert migrate(client, lake, fingerprint * 64, "one", "two").moved
            go_on_reading()
        roll_back(client, "text/small")
        go_on_reading()
    finally:
        done.set()
        reader.join()
    assert errors == []
    assert set(answers) == {3}


def test_readers_meet_no_gap_while_a_model_is_migrated_and_rolled_back(client, two):
    read_through_migrations(client, MilvusClient(uri=client._config.uri), two)


@pytest.fixture
def server_clients(milvus_server) -> Iterator[list[MilvusClient]]:
    """Two clients of a server, and nothing of ours on it after the test."""
    clients = [MilvusClient(milvus_server.uri, token=milvus_server.token) for _ in range(2)]
    yield clients
    for publication in publications(clients[0], "text/small"):
        for alias in clients[0].list_aliases(publication.collection)["aliases"]:
            clients[0].drop_alias(alias)
        clients[0].drop_collection(publication.collection)
    for one in clients:
        one.close()


@pytest.mark.long
@pytest.mark.server
def test_readers_of_a_server_meet_no_gap_either(server_clients, lake):
    client, own = server_clients
    lake.write("a", 10, "two")
    lake.run("two")
    for source in ("one", "two"):
        collect(client, lake, source)
    read_through_migrations(client, own, lake)


def test_sources_move_to_a_partition_key_and_back_as_a_migration(client, two):
    first = publish_to(client, two, "one", "two")
    ids = ids_of_all(client, first.alias)
    for layout in ("keyed", "named"):
        two.layout = layout
        for source in ("one", "two"):
            collect(client, two, source)
        moved = publish_to(client, two, "one", "two")
        assert (moved.moved, moved.collection) == (True, two.target.collection)
        assert ids_of_all(client, first.alias) == ids
        assert read_provenance(client, first.alias).layout == layout
    assert two.encoder.embedded == 6


def test_a_new_model_is_published_when_its_collection_is_complete_and_the_old_one_stays(client, lake):
    collect(client, lake)
    old = publish_to(client, lake)
    lake.fingerprint = "e" * 64
    lake.embeddings()
    assert publish_to(client, lake).waiting == {
        "every source": f"there is no collection {lake.target.collection} yet; materialize text/small/collection first"
    }
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
    assert publish_to(client, lake, "one").removed == NOTHING
    assert ids_of_all(client, first.collection) > {id_of("a", "two")}

    lake.fingerprint = FINGERPRINT
    lake.embeddings()
    collect(client, lake)
    back = publish_to(client, lake, "one")
    assert (back.moved, back.collection, back.removed) == (True, first.collection, Removed(1, 0))
    assert ids_of_all(client, back.alias) == {id_of(f"n{number}") for number in range(5)}


def test_a_published_collection_is_rid_of_sources_that_are_gone(client, lake):
    lake.write("a", 10, "two")
    lake.run("two")
    for source in ("one", "two"):
        collect(client, lake, source)
    published = publish_to(client, lake, "one", "two")
    assert published.removed == NOTHING
    again = publish_to(client, lake, "one")
    assert (again.moved, again.removed) == (False, Removed(1, 0))
    assert ids_of_all(client, published.alias) == {id_of(f"n{number}") for number in range(5)}
    assert publish_to(client, lake, "one").removed == NOTHING


def test_nothing_is_dropped_from_a_collection_that_is_not_ready(client, lake):
    lake.write("a", 10, "two")
    lake.run("two")
    for source in ("one", "two"):
        collect(client, lake, source)
    lake.write("late", 11)
    lake.files()
    waiting = publish_to(client, lake, "one")
    assert (waiting.published, waiting.removed) == (False, NOTHING)
    assert ids_in(client, lake, "two") == {id_of("a", "two")}


def test_a_floor_of_recall_that_is_not_reached_stops_the_alias(client, lake, monkeypatch):
    collect(client, lake)
    monkeypatch.setattr("embedding_platform.reconcile.recall.recall_at_k", lambda *_: 0.5)
    waiting = publish_to(client, lake, min_recall=0.9, min_recall_at_100=0, recall_sample=3)
    assert waiting.waiting == {"one": "recall@10 is 0.500, below quality.min_recall 0.9"}


def test_nothing_is_published_before_there_is_a_collection(client, tmp_path):
    report = publish_to(client, Lake(tmp_path))
    assert (report.published, report.moved) == (False, False)
    assert alias_target(client, report.alias) is None
