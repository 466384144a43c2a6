"""What nothing protects goes, and nothing else."""

import os
from pathlib import Path

import pytest

from embedding_platform import layout
from embedding_platform.errors import PlatformError
from embedding_platform.milvus.alias import alias_target
from embedding_platform.reconcile.pruning import prunable, prune
from embedding_platform.reconcile.publication import roll_back
from embedding_platform.vectors import store as vector_store
from embedding_platform_tests.reconcile.small_lake import Lake, collect, id_of, ids_in, publish_to

FINGERPRINTS = ["c" * 64, "d" * 64, "e" * 64, "f" * 64]


@pytest.fixture
def migrated(client, lake) -> Lake:
    """A lake whose model changed three times, each published; the last is the present one."""
    for fingerprint in FINGERPRINTS:
        lake.fingerprint = fingerprint
        lake.embeddings()
        collect(client, lake)
        assert publish_to(client, lake).moved
    return lake


def names(lake: Lake, things) -> list[tuple[str, str]]:
    """Kind and first digit of the fingerprint of things that may go."""
    return [(thing.kind, thing.name.replace("text_small_", "").rsplit("/", 1)[-1][0]) for thing in things]


@pytest.mark.parametrize(("retained", "gone"), [(0, "cde"), (1, "cd"), (2, "c"), (3, "")])
def test_former_collections_go_but_for_those_retained(client, migrated, retained, gone):
    things = prunable(client, migrated.store, [migrated.target], retained, migrated.cutting)
    assert names(migrated, things) == [(kind, one) for kind in ("collection", "vectors", "notes") for one in gone]
    prune(client, things)
    assert prunable(client, migrated.store, [migrated.target], retained, migrated.cutting) == []
    kept = {f"text_small_{one[:12]}_named2" for one in FINGERPRINTS if one[0] not in gone}
    assert set(client.list_collections()) == kept
    assert len(layout.space_folders(migrated.store)) == 4 - len(gone)
    assert alias_target(client, migrated.target.alias) == migrated.target.collection
    assert len(ids_in(client, migrated)) == 5


def test_what_was_rolled_back_to_is_kept_and_what_is_asked_for_too(client, migrated):
    roll_back(client, "text/small")
    things = prunable(client, migrated.store, [migrated.target], 0, migrated.cutting)
    assert names(migrated, things) == [(kind, one) for kind in ("collection", "vectors", "notes") for one in "cd"]


def test_an_alias_of_somebody_else_protects_a_collection(client, migrated):
    former = f"text_small_{FINGERPRINTS[0][:12]}_named2"
    client.create_alias(former, "for_the_archive")
    things = prunable(client, migrated.store, [migrated.target], 0, migrated.cutting)
    assert {one for _, one in names(migrated, things)} == {"d", "e"}


def test_collections_that_are_not_ours_are_left_alone(client, lake):
    client.create_collection("foreign", dimension=4)
    collect(client, lake)
    assert prunable(client, lake.store, [lake.target], 0, lake.cutting) == []


def test_vectors_outlive_a_milvus_that_lost_the_collection(client, migrated):
    client.drop_alias(migrated.target.alias)
    client.drop_collection(migrated.target.collection)
    things = prunable(client, migrated.store, [migrated.target], 3, migrated.cutting)
    assert names(migrated, things) == []


def gone(client, lake: Lake) -> list:
    """What of vectors of contents may go, all other things being in order."""
    things = prunable(client, lake.store, [lake.target], 0, lake.cutting)
    assert {thing.kind for thing in things} <= {"contents"}
    return things


@pytest.fixture
def two(client, lake: Lake) -> Lake:
    """Two sources, in Milvus; "b" of the second has the content of "n0" of the first."""
    lake.write("a", 10, "two")
    lake.write("b", 0, "two")
    lake.run("two")
    for source in ("one", "two"):
        collect(client, lake, source)
    return lake


def test_vectors_of_contents_that_no_file_of_any_source_holds_may_go(client, two):
    assert gone(client, two) == []
    for name in ("n0", "n1"):
        two.path(name).unlink()
    two.write("n2", 22)
    two.run()
    collect(client, two)
    calls = two.encoder.embedded
    (found,) = gone(client, two)
    # "n0" lives on in the other source.
    assert (found.kind, found.size) == ("contents", 4 * two.space.model.dimension * 2)
    assert "2 vectors of contents that no file holds any more" in found.reason
    prune(client, [found])
    assert gone(client, two) == []
    kept = vector_store.stored_hashes(two.live().folder, two.fingerprint)
    assert len(kept) == 4
    assert set(two.live().multiplicity.index) < set(kept)
    # Nothing that lives has to be made again, and what went is made again when it comes back.
    two.run()
    assert collect(client, two).sync.batches == 0
    two.write("n0", 0)
    two.run()
    assert two.encoder.embedded == calls
    two.write("n1", 1)
    two.run()
    assert two.encoder.embedded == calls + 1
    collect(client, two)
    assert ids_in(client, two) == {id_of(f"n{number}") for number in range(5)}


def test_vectors_of_a_source_that_is_gone_may_go(client, two):
    for name in ("a", "b"):
        two.path(name, "two").unlink()
    two.run("two")
    collect(client, two, "two")
    (found,) = gone(client, two)
    prune(client, [found])
    assert gone(client, two) == []
    # What the other source holds too may come back from here.
    kept = vector_store.stored_hashes(two.live("two").folder, two.fingerprint)
    assert len(kept) == 1
    assert set(kept) < set(two.live().multiplicity.index)
    assert collect(client, two).sync.batches == 0


def test_no_vector_goes_while_an_item_is_not_cut_and_its_contents_unknown(client, two):
    two.path("n1").unlink()
    two.run()
    (found,) = gone(client, two)
    two.write("late", 1, "two")
    two.files("two")
    assert gone(client, two) == []
    with pytest.raises(PlatformError, match="not cut yet; look again at what to prune"):
        prune(client, [found])
    two.run("two")
    # A file came meanwhile that has the content, in another source.
    prune(client, [found])
    calls = two.encoder.embedded
    two.run()
    two.run("two")
    assert two.encoder.embedded == calls
    assert len(vector_store.stored_hashes(two.live().folder, two.fingerprint)) == 5


def test_files_that_killed_runs_left_half_go_once_they_are_a_day_old(client, lake):
    collect(client, lake)
    half = Path(lake.store, "files", "text", ".writing-abc")
    half.write_bytes(b"half")
    assert prunable(client, lake.store, [lake.target], 0, lake.cutting) == []
    os.utime(half, (0, 0))
    (found,) = prunable(client, lake.store, [lake.target], 0, lake.cutting)
    assert (found.kind, found.size, found.places) == ("leftovers", 4, (str(half),))
    prune(client, [found])
    assert not half.exists()


def test_pruned_vectors_take_their_rejections_pin_and_history_with_them(client, lake):
    lake.fingerprint = "a" * 64
    lake.embeddings()
    rejects = layout.rejected_vectors_url(lake.store, lake.space.key, lake.fingerprint, "one")
    pin = layout.pin_url(lake.store, lake.fingerprint)
    from embedding_platform import storage

    history = layout.distribution_url(lake.store, lake.space.key, lake.fingerprint, "one")
    for url in (rejects, pin, history):
        storage.write_bytes(url, b"{}")
    lake.fingerprint = "b" * 64
    prune(
        client,
        [thing for thing in prunable(client, lake.store, [lake.target], 1, lake.cutting) if thing.kind == "vectors"],
    )
    assert [storage.read_bytes(url) for url in (rejects, pin, history)] == [None] * 3
