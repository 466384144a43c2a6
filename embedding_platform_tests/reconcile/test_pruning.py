"""What nothing protects goes, and nothing else."""

import os
from pathlib import Path

import pytest

from embedding_platform import layout
from embedding_platform.milvus.alias import alias_target
from embedding_platform.reconcile.pruning import prunable, prune
from embedding_platform.reconcile.publication import roll_back
from embedding_platform_tests.reconcile.small_lake import Lake, collect, ids_in, publish_to

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
    things = prunable(client, migrated.store, [migrated.target], retained)
    assert names(migrated, things) == [(kind, one) for kind in ("collection", "vectors", "notes") for one in gone]
    prune(client, things)
    assert prunable(client, migrated.store, [migrated.target], retained) == []
    kept = {f"text_small_{one[:12]}_named2" for one in FINGERPRINTS if one[0] not in gone}
    assert set(client.list_collections()) == kept
    assert len(layout.space_folders(migrated.store)) == 4 - len(gone)
    assert alias_target(client, migrated.target.alias) == migrated.target.collection
    assert len(ids_in(client, migrated)) == 5


def test_what_was_rolled_back_to_is_kept_and_what_is_asked_for_too(client, migrated):
    roll_back(client, "text/small")
    things = prunable(client, migrated.store, [migrated.target], retained=0)
    assert names(migrated, things) == [(kind, one) for kind in ("collection", "vectors", "notes") for one in "cd"]


def test_an_alias_of_somebody_else_protects_a_collection(client, migrated):
    former = f"text_small_{FINGERPRINTS[0][:12]}_named2"
    client.create_alias(former, "for_the_archive")
    things = prunable(client, migrated.store, [migrated.target], retained=0)
    assert {one for _, one in names(migrated, things)} == {"d", "e"}


def test_collections_that_are_not_ours_are_left_alone(client, lake):
    client.create_collection("foreign", dimension=4)
    collect(client, lake)
    assert prunable(client, lake.store, [lake.target], retained=0) == []


def test_vectors_outlive_a_milvus_that_lost_the_collection(client, migrated):
    client.drop_alias(migrated.target.alias)
    client.drop_collection(migrated.target.collection)
    things = prunable(client, migrated.store, [migrated.target], retained=3)
    assert names(migrated, things) == []


def test_files_that_killed_runs_left_half_go_once_they_are_a_day_old(client, lake):
    collect(client, lake)
    half = Path(lake.store, "files", "text", ".writing-abc")
    half.write_bytes(b"half")
    assert prunable(client, lake.store, [lake.target], retained=0) == []
    os.utime(half, (0, 0))
    (found,) = prunable(client, lake.store, [lake.target], retained=0)
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
    prune(client, [thing for thing in prunable(client, lake.store, [lake.target], 1) if thing.kind == "vectors"])
    assert [storage.read_bytes(url) for url in (rejects, pin, history)] == [None] * 3
