"""Which sources a collection holds: what is told of all of them, and how little is looked at for it."""

from dataclasses import replace

import pytest

from embedding_platform import layout
from embedding_platform.media.cutting import Cutting
from embedding_platform.reconcile import placed
from embedding_platform.reconcile.collection import holds_all
from embedding_platform.reconcile.placed import unplaced
from embedding_platform_tests.reconcile.small_lake import Lake, collect

SOURCES = ("one", "two", "three/\u00e9")


@pytest.fixture
def looked_at(monkeypatch) -> list[str]:
    """The sources whose notes were read, in order."""
    names: list[str] = []

    def held(target, live):
        names.append(live.source)
        return holds_all(target, live)

    monkeypatch.setattr(placed, "holds_all", held)
    return names


@pytest.fixture
def three(client, lake) -> Lake:
    """A lake of three sources that its collection holds."""
    for source in SOURCES[1:]:
        lake.write("a", 10, source)
        lake.run(source)
    for source in SOURCES:
        collect(client, lake, source)
    return lake


def due(lake: Lake) -> list[str]:
    found = unplaced(lake.target, SOURCES, lake.live)
    assert found == [source for source in SOURCES if not holds_all(lake.target, lake.live(source))]
    return found


def test_a_source_is_looked_at_once_until_it_is_listed_or_placed_anew(client, three, looked_at):
    assert due(three) == []
    assert looked_at == [*SOURCES]
    written = three.stored_files()
    assert due(three) == []
    assert looked_at == [*SOURCES]
    assert three.stored_files() == written
    three.write("late", 11, "two")
    three.files("two")
    for _ in range(2):
        assert due(three) == ["two"]
    assert looked_at == [*SOURCES, "two"]
    three.run("two")
    collect(client, three, "two")
    assert due(three) == []
    assert looked_at == [*SOURCES, "two", "two"]


def test_another_way_of_cutting_and_another_collection_are_looked_at_anew(client, three):
    assert due(three) == []
    three.cutting = Cutting(tokenizer_file=None, max_tokens=32, overlap_tokens=0)
    assert due(three) == [*SOURCES]
    three.cutting = replace(three.cutting, max_tokens=16)
    assert due(three) == []
    three.fingerprint = "e" * 64
    assert due(three) == [*SOURCES]


def test_a_source_that_is_gone_is_kept_no_more(client, three):
    assert due(three) == []
    assert unplaced(three.target, ["two"], three.live) == []
    kept = placed.storage.read_table(layout.found_placed_url(three.store, three.target.collection), placed._FOUND)
    assert kept["source"].to_pylist() == ["two"]
    assert unplaced(three.target, [], three.live) == []


def test_a_note_that_is_gone_is_missed(three):
    assert due(three) == []
    placed.storage.remove(layout.placed_url(three.store, three.target.collection, "one"))
    assert due(three) == ["one"]
