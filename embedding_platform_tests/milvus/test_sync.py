import itertools
from dataclasses import replace

import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from embedding_platform import memory
from embedding_platform.errors import PlatformError, UnsoundError
from embedding_platform.milvus import sync
from embedding_platform.milvus.deployment import deployment_of
from embedding_platform.milvus.partitions import Partition, drop_partition
from embedding_platform.milvus.schema import partition_name
from embedding_platform.milvus.sync import compare_partition, read_rows, sync_partition

from .making import DIMENSION, HNSW, desired, make_row, new_collection, no_rows, row_id, rows_for, vector

PHOTOS = "photos"
SCANS = "scans"


class Recording:
    """A client that notes the calls and may bend the answers of `query`."""

    def __init__(self, client, bend=lambda rows: rows):
        self._client = client
        self._bend = bend
        self.calls: list[tuple[str, dict]] = []

    def __getattr__(self, name):
        call = getattr(self._client, name)

        def recorded(*args, **kwargs):
            self.calls.append((name, kwargs))
            answer = call(*args, **kwargs)
            return self._bend(list(answer)) if name == "query" else answer

        return recorded

    def count(self, name):
        return sum(called == name for called, _ in self.calls)


def held(client, collection, partition):
    return read_rows(client, Partition(collection, partition)).sort_index()


def run(client, collection, wanted, partition=PHOTOS, **options):
    return sync_partition(client, Partition(collection, partition), wanted, rows_for(wanted), **options)


def test_sync_adds_overwrites_removes_and_then_rests(client):
    collection = new_collection(client)
    first = desired(range(50))
    report = run(client, collection, first)
    assert report.counts == {"new": 50, "stale": 0, "orphaned": 0, "unchanged": 0}
    assert (report.upserted, report.deleted, report.repaired) == (50, 0, 0)

    second = pd.concat([desired(range(10, 40)), desired(range(40, 45), version="2"), desired(range(60, 63))])
    done = []
    report = run(client, collection, second, progress=done.append)
    assert report.counts == {"new": 3, "stale": 5, "orphaned": 15, "unchanged": 30}
    assert (report.upserted, report.deleted, report.repaired, report.batches) == (8, 15, 0, 2)
    assert done == [8, 23]
    pd.testing.assert_series_equal(held(client, collection, PHOTOS), second.sort_index(), check_names=False)

    recording = Recording(client)
    report = sync_partition(recording, Partition(collection, PHOTOS), second, no_rows)
    assert report.counts == {"new": 0, "stale": 0, "orphaned": 0, "unchanged": 38}
    assert report.batches == 0
    assert not {name for name, _ in recording.calls} & {"upsert", "insert", "delete", "create_partition"}


def test_rows_that_never_become_right_are_counted_and_named(client):
    collection, wanted = new_collection(client), desired(range(5), version="2")
    former = rows_for(desired(range(5), version="1"))
    with pytest.raises(UnsoundError, match="still differs after 2 repairs: 0 missing, 5 of another version") as raised:
        sync_partition(client, Partition(collection, PHOTOS), wanted, former)
    assert (raised.value.check, raised.value.numbers) == ("rows", {"new": 0, "stale": 5, "orphaned": 0})
    assert set(raised.value.worst) == set(wanted.index)


def test_rows_come_back_as_they_were_written(client):
    collection = new_collection(client)
    wanted = desired([1])
    run(client, collection, wanted)
    key = row_id(1)
    stored = client.get(collection, ids=[key], consistency_level="Strong")[0]
    written = make_row(key, "1")
    assert list(stored.pop("vector")) == pytest.approx(list(written.pop("vector")))
    assert stored == written


def test_deleting_in_one_partition_leaves_the_others(client):
    collection = new_collection(client)
    run(client, collection, desired(range(5)))
    scans = desired(range(5), of="scans")
    run(client, collection, scans, SCANS)
    recording = Recording(client)
    sync_partition(recording, Partition(collection, PHOTOS), desired([]), no_rows)
    assert held(client, collection, PHOTOS).empty
    assert len(held(client, collection, SCANS)) == 5
    deletes = [kwargs for name, kwargs in recording.calls if name == "delete"]
    assert deletes
    assert all(kwargs["ids"] and "filter" not in kwargs for kwargs in deletes)


def test_a_key_that_changes_partitions_ends_in_the_new_one(client):
    """Lite moves the row at the upsert; a server keeps both until the old partition is synced."""
    collection = new_collection(client)
    run(client, collection, desired(range(3)))
    run(client, collection, desired([2]), SCANS)
    run(client, collection, desired(range(2)))
    assert set(held(client, collection, PHOTOS).index) == {row_id(0), row_id(1)}
    assert set(held(client, collection, SCANS).index) == {row_id(2)}


def test_rows_lost_and_rows_added_behind_our_back_are_mended(client):
    collection = new_collection(client)
    wanted = desired(range(20))
    run(client, collection, wanted)
    client.delete(collection, ids=[row_id(3), row_id(4)])
    foreign = [make_row(row_id(99), "1"), make_row(row_id(5), "other")]
    client.upsert(collection, foreign, partition_name=partition_name(PHOTOS))
    report = run(client, collection, wanted)
    assert report.counts == {"new": 2, "stale": 1, "orphaned": 1, "unchanged": 17}
    pd.testing.assert_series_equal(held(client, collection, PHOTOS), wanted.sort_index(), check_names=False)


def test_a_key_answered_twice_is_deleted_and_written_again(client):
    collection = new_collection(client)
    wanted = desired(range(6))
    run(client, collection, wanted)
    twice = row_id(2)

    def repeat_until_deleted(rows):
        if recording.count("delete"):
            return rows
        return rows + [row for row in rows if row["id"] == twice]

    recording = Recording(client, repeat_until_deleted)
    assert list(read_rows(recording, Partition(collection, PHOTOS)).index).count(twice) == 2
    report = sync_partition(recording, Partition(collection, PHOTOS), wanted, rows_for(wanted))
    assert report.counts["stale"] == 1
    assert (report.upserted, report.deleted) == (1, 1)
    names = [name for name, _ in recording.calls if name in ("delete", "upsert")]
    assert names == ["delete", "upsert"]


def test_what_only_the_read_back_shows_is_repaired(client):
    collection = new_collection(client)
    wanted = desired(range(10))
    given = []

    def forgetful(ids):
        given.append(len(ids))
        yield [make_row(key, wanted[key]) for key in ids[: 5 * len(given)]]

    report = sync_partition(client, Partition(collection, PHOTOS), wanted, forgetful)
    assert given == [10, 5]
    assert (report.counts["new"], report.upserted, report.repaired) == (10, 10, 5)


@pytest.mark.parametrize("field", ["version", "content_hash", "fingerprint"])
def test_a_row_that_came_with_another_value_than_was_written_is_repaired(client, field):
    collection = new_collection(client)
    run(client, collection, desired(range(20)))
    wanted = desired([*range(20), 30])
    bent = []

    def bend_once(rows):
        for row in rows:
            if row["id"] == row_id(30) and field in row and not bent:
                bent.append(row["id"])
                row[field] = "another"
        return rows

    recording = Recording(client, bend_once)
    report = sync_partition(recording, Partition(collection, PHOTOS), wanted, rows_for(wanted))
    assert (report.upserted, report.repaired) == (2, 1)


def test_rows_that_never_arrive_fail_with_counts_and_an_example(client):
    collection = new_collection(client)
    with pytest.raises(PlatformError, match=rf"4 missing.*{row_id(0)[:4]}"):
        sync_partition(client, Partition(collection, PHOTOS), desired(range(4)), lambda ids: iter([]))


@pytest.mark.parametrize(("page", "count"), [(100, 300), pytest.param(10, 400, id="lite-deep")])
def test_a_read_splits_ranges_that_overflow(client, monkeypatch, request, page, count):
    if page < 100 and "server" in request.node.nodeid.split("[")[1]:
        pytest.skip("each range costs a server 0.2 s")
    small = replace(deployment_of(client), page_rows=page)
    monkeypatch.setattr(sync, "deployment_of", lambda client: small)
    collection = new_collection(client)
    wanted = desired(range(count))
    run(client, collection, wanted)
    foreign = [{**make_row(row_id(0), "1"), "id": key} for key in ("zz-foreign", "!")]
    client.upsert(collection, foreign, partition_name=partition_name(PHOTOS))
    for expected in (0, count):
        read = read_rows(client, Partition(collection, PHOTOS), expected=expected)
        assert read.index.is_unique
        assert set(read.index) == {*wanted.index, "zz-foreign", "!"}


@pytest.mark.parametrize(("limit", "of"), [("BATCH_BYTES", sync), ("LEAST_BYTES", memory)])
def test_batches_stay_below_the_limits_of_messages_and_memory(lite, monkeypatch, limit, of):
    monkeypatch.setattr(memory, "available_bytes", lambda: 0)
    monkeypatch.setattr(of, limit, 20_000)
    collection = new_collection(lite)
    wanted = desired(range(30))

    def long_texts(ids):
        yield [make_row(key, wanted[key], text="é" * 4000) for key in ids]

    report = sync_partition(lite, Partition(collection, PHOTOS), wanted, long_texts)
    assert report.batches == 15


def test_dropping_a_partition_leaves_the_others_and_may_be_repeated(client):
    collection = new_collection(client)
    run(client, collection, desired(range(5)))
    scans = desired(range(5), of="scans")
    run(client, collection, scans, SCANS)
    drop_partition(client, Partition(collection, "photos"))
    drop_partition(client, Partition(collection, "photos"))
    drop_partition(client, Partition(collection, "never seen"))
    assert held(client, collection, PHOTOS).empty
    assert len(held(client, collection, SCANS)) == 5
    run(client, collection, desired(range(2)))
    assert len(held(client, collection, PHOTOS)) == 2


def test_an_error_of_milvus_is_one_line_with_the_mend(client):
    collection = new_collection(client)
    wanted = desired([1])

    def wrong(ids):
        yield [{**make_row(key, "1"), "vector": vector(1, DIMENSION + 1)} for key in ids]

    with pytest.raises(PlatformError) as failure:
        sync_partition(client, Partition(collection, PHOTOS), wanted, wrong)
    assert "\n" not in str(failure.value)
    assert "run again" in str(failure.value)


def test_sync_works_with_the_index_built_first(client):
    collection = new_collection(client, HNSW)
    report = run(client, collection, desired(range(1200)))
    assert report.upserted == 1200
    assert report.batches == 2


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.dictionaries(st.integers(0, 12), st.sampled_from(["1", "2", "3"]), max_size=12), min_size=1, max_size=4)
)
def test_any_sequence_of_desired_sets_converges(lite, sequence):
    collection = new_collection(lite)
    for versions in sequence:
        wanted = pd.Series(
            list(versions.values()), index=pd.Index([row_id(n) for n in versions], dtype="str"), dtype="str"
        )
        sync_partition(lite, Partition(collection, PHOTOS), wanted, rows_for(wanted))
        pd.testing.assert_series_equal(held(lite, collection, PHOTOS), wanted.sort_index(), check_names=False)
        assert sync_partition(lite, Partition(collection, PHOTOS), wanted, no_rows).batches == 0
    lite.drop_collection(collection)


@pytest.mark.parametrize(
    "change",
    [
        {"text": "altered"},
        {"vector": vector(77)},
        {"content_hash": "0" * 64},
        {"fingerprint": "0" * 64},
        {"attributes": {"width": 4}},
        {"end": 2.0},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_row_altered_under_its_version_is_found_in_the_sample_and_put_right(lite, change):
    collection, wanted = new_collection(lite), desired(range(8))
    run(lite, collection, wanted)
    partition, spoilt = Partition(collection, PHOTOS), wanted.index[3]
    lite.upsert(collection, [{**make_row(spoilt, "1"), **change}], partition_name=partition.name)
    assert compare_partition(lite, partition, wanted).increment.is_empty
    found = compare_partition(lite, partition, wanted, rows_for(wanted)(wanted.index))
    assert list(found.altered) == list(found.increment.stale) == [spoilt]
    assert found.increment.counts() == {"new": 0, "stale": 1, "orphaned": 0, "unchanged": 7}
    report = sync_partition(lite, partition, wanted, rows_for(wanted), found=found)
    assert (report.upserted, report.deleted) == (1, 0)
    assert compare_partition(lite, partition, wanted, rows_for(wanted)(wanted.index)).increment.is_empty


@pytest.mark.parametrize("change", [{"run_id": "other"}, {"embedded_at": "2027"}, {"model": "/moved"}])
def test_another_maker_of_the_same_vector_is_no_alteration(lite, change):
    collection, wanted = new_collection(lite), desired(range(3))
    run(lite, collection, wanted)
    partition = Partition(collection, PHOTOS)
    lite.upsert(collection, [{**make_row(wanted.index[0], "1"), **change}], partition_name=partition.name)
    assert compare_partition(lite, partition, wanted, rows_for(wanted)(wanted.index)).increment.is_empty


def test_ranges_of_ids_hold_every_id_once():
    for count in (1, 2, 7, 256):
        ranges = sync._ranges(count)
        assert len(ranges) == count
        assert (ranges[0][0], ranges[-1][1]) == (0, 16**8)
        assert all(before[1] == after[0] for before, after in itertools.pairwise(ranges))
