"""Rounds over the sources of a modality, beside a caller who does not wait for ever."""

import os
import shutil
import threading
from pathlib import Path

import pytest
from pymilvus import DataType

from embedding_platform.platform import Platform
from embedding_platform.reconcile.files import listed_sources, reconcile_files
from embedding_platform.sights import Sight
from embedding_platform.watching import Watch
from embedding_platform_tests.conftest import open_platform
from embedding_platform_tests.running_platform import PATIENCE_SECONDS, wait_until


@pytest.fixture
def sources(platform: Platform) -> list[str]:
    names = ["a", "b", "c"]
    for name in names:
        folder = Path(platform.settings.media_url) / name
        folder.mkdir()
        (folder / "note.txt").write_text(f"A note of {name}.")
    return names


def test_a_round_sees_every_source_that_is_there_or_known(platform: Platform, sources: list[str]) -> None:
    seen = Watch("text").look(platform, {"gone"}, 60)
    assert not seen.is_under_way
    assert set(seen.looks) == {*sources, "gone"}
    assert seen.looks["a"].sight.holds
    assert not seen.looks["gone"].sight.holds
    assert not any(look.is_left for look in seen.looks.values()), "nothing was ever listed"


def test_a_round_that_takes_long_goes_on_between_calls_and_is_followed_by_another(
    platform: Platform, sources: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    answers, sight = threading.Event(), Platform.sight

    def slow(self: Platform, modality: str, source: str) -> Sight:
        if source == "b":
            answers.wait(PATIENCE_SECONDS)
        return sight(self, modality, source)

    monkeypatch.setattr(Platform, "sight", slow)
    watch = Watch("text")
    first = watch.look(platform, set(), 0.1)
    wait_until(lambda: watch.look(platform, set(), 0.1).at == "b", "it looks at b")
    assert first.is_under_way
    assert (first.at, set(first.looks)) == ("b", {"a"})
    assert watch.look(platform, set(), 0.1) is first
    answers.set()
    assert watch.look(platform, set(), 60) is first
    assert set(first.looks) == set(sources)
    assert watch.look(platform, set(), 60) is not first


def test_a_source_whose_name_cannot_be_read_is_a_problem_of_its_own(platform: Platform, sources: list[str]) -> None:
    (Path(platform.settings.media_url) / os.fsdecode(b"caf\xe9")).mkdir()
    seen = Watch("text").look(platform, set(), 60)
    assert (seen.error, set(seen.looks)) == ("", set(sources))
    assert "is not UTF-8; rename the folder" in seen.problems["caf\ufffd"]


def test_a_root_that_is_away_is_the_error_of_the_round(platform: Platform) -> None:
    Path(platform.settings.media_url).rmdir()
    seen = Watch("text").look(platform, {"letters"}, 60)
    assert "media_root" in seen.error
    assert seen.looks == {}


def test_a_round_counts_the_listings_no_more_often_the_more_sources_have_vanished(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted: list[str] = []

    def counting(store: str, modality: str) -> list[str]:
        counted.append(modality)
        return listed_sources(store, modality)

    monkeypatch.setattr("embedding_platform.platform.listed_sources", counting)
    monkeypatch.setattr("embedding_platform.watching.listed_sources", counting)
    times = []
    for known in ({"a"}, {"a", "b", "c", "d"}):
        counted.clear()
        seen = Watch("text").look(platform, known, 60)
        assert set(seen.looks) == known
        times.append(len(counted))
    assert times[0] == times[1]


def test_a_source_that_vanished_is_left_until_it_is_unlisted_and_out_of_milvus(
    platform: Platform, sources: list[str]
) -> None:
    def left() -> bool:
        return Watch("text").look(platform, {"b"}, 60).looks["b"].is_left

    reconcile_files(platform.store, platform.settings.media_url, "text", "b")
    shutil.rmtree(Path(platform.settings.media_url) / "b")
    assert left()
    reconcile_files(platform.store, platform.settings.media_url, "text", "b")
    assert not left()
    schema = platform.milvus.create_schema()
    schema.add_field("id", DataType.INT64, is_primary=True)
    schema.add_field("vector", DataType.FLOAT_VECTOR, dim=2)
    target = platform.target(platform.space("text/minilm"))
    platform.milvus.create_collection(target.collection, schema=schema)
    platform.milvus.create_partition(target.collection, target.partition("b").name)
    assert left()


def test_a_source_that_cannot_be_read_is_a_problem_of_its_own(platform: Platform, sources: list[str]) -> None:
    reconcile_files(platform.store, platform.settings.media_url, "text", "b")
    guarded = open_platform(platform.settings.base, listing={"large_source": 1})
    (Path(platform.settings.media_url) / "b" / "note.txt").unlink()
    seen = Watch("text").look(guarded, set(), 60)
    assert set(seen.looks) == {"a", "c"}
    assert set(seen.problems) == {"b"}
    assert "listing.allow_emptied" in seen.problems["b"]
