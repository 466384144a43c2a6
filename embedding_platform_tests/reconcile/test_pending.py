"""What is to be done, told without doing it."""

from embedding_platform.reconcile.collection import collection_increment
from embedding_platform.reconcile.pending import pending_of_source
from embedding_platform_tests.reconcile.small_lake import collect


def test_what_is_pending_is_told_for_each_asset_and_done_by_the_next_run(client, lake):
    collect(client, lake)

    def pending() -> dict[str, dict[str, int]]:
        seen = {item.path: f"{item.size}-{item.modified}-" for item in lake.files().items}
        found = pending_of_source(client, lake.store, "text", "one", seen, [lake.target], lake.cutting)
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
    assert collection_increment(client, lake.target, lake.live()).counts()["new"] == 5
    assert client.list_collections() == []
