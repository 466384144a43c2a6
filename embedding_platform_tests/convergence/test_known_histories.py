"""Histories that once did not converge, each as short as it can be."""

import dataclasses
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from embedding_platform import storage
from embedding_platform.milvus.connection import close_directory, connect
from embedding_platform.settings import load_settings
from embedding_platform_tests.convergence.crash_points import BY_NAME, Crash, armed, compacting_from
from embedding_platform_tests.convergence.published import Published, differences, published, stored_contents
from embedding_platform_tests.convergence.small_media import Media
from embedding_platform_tests.convergence.small_platform import (
    CHUNK,
    IN_FLIGHT,
    LITTLE_AT_ONCE,
    Partitions,
    SmallPlatform,
    run_everything,
)


@dataclass
class History:
    """A platform of texts alone, and one that is made from nothing over the same media."""

    folder: Path
    media: Media
    partitions: Partitions
    embedded: Counter[tuple[str, int, str]]

    def platform(self, name: str = "kept", **milvus: object) -> SmallPlatform:
        directory = str(self.folder / f"{name}-milvus")
        settings = load_settings(base=self.folder, store_root=name, milvus={"uri": directory, **milvus})
        return SmallPlatform(settings, client=connect(directory), kept=("text",), embedded=self.embedded)

    def run(self, **milvus: object) -> dict[str, Published]:
        """One run of everything, and what is published then."""
        platform = self.platform(**milvus)
        run_everything(platform, self.partitions)
        return published(platform)

    def rebuild(self) -> dict[str, Published]:
        platform = dataclasses.replace(self.platform("rebuilt"), embedded=Counter())
        run_everything(platform, Partitions())
        return published(platform)


@pytest.fixture
def history(tmp_path: Path) -> Iterator[History]:
    yield History(tmp_path, Media(tmp_path / "media"), Partitions(), Counter())
    for name in ("kept", "rebuilt"):
        close_directory(str(tmp_path / f"{name}-milvus"))


def test_files_of_one_size_and_mtime_that_change_places(history: History) -> None:
    folder = history.media.root / "one"
    folder.mkdir()
    for name, words in (("a.txt", "a first text"), ("b.txt", "other words!")):
        (folder / name).write_text(words, encoding="utf-8")
        os.utime(folder / name, (1_700_000_000, 1_700_000_000))
    history.run()
    (folder / "a.txt").rename(folder / "c.txt")
    (folder / "b.txt").rename(folder / "a.txt")
    (folder / "c.txt").rename(folder / "b.txt")
    assert differences(history.run(), history.rebuild()) == []


def test_one_run_that_lists_more_sources_than_partitions_may_be_named(history: History) -> None:
    history.media.write("one", "a", "txt", 1)
    history.run(named_partitions=1)
    history.media.write("two", "a", "txt", 2)
    assert differences(history.run(named_partitions=1), history.rebuild()) == []


def test_a_file_that_moves_to_a_source_whose_turn_is_later_is_not_embedded_again(
    history: History, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "compact_shards", compacting_from(2))
    for content in range(2):
        history.media.write("one", f"f{content}", "txt", 2 * content)
        history.run()
    path = history.media.root / "one" / "f0.txt"
    history.media.move(path, "two", "moved")
    history.media.write("one", "new", "txt", 4)
    history.run()
    assert set(history.embedded.values()) == {1}


@pytest.mark.parametrize("shard", [1, 8])
def test_a_crash_while_a_shard_is_written_costs_a_chunk_and_what_is_on_its_way(
    history: History, monkeypatch: pytest.MonkeyPatch, shard: int
) -> None:
    monkeypatch.setattr("embedding_platform.inference.stream.WAIT_BATCHES", 1)
    total = 30
    folder = history.media.root / "one"
    folder.mkdir()
    for number in range(total):
        (folder / f"{number}.txt").write_text(f"text number {number}", encoding="utf-8")
    plain = history.platform()
    platform = dataclasses.replace(
        plain, settings=load_settings(base=history.folder, store_root="kept", batch=LITTLE_AT_ONCE)
    )
    point = dataclasses.replace(BY_NAME["mid vector shard write"], concerns=lambda url, payload: "/vectors/" in url)
    with pytest.raises(Crash), armed([point], shard):
        run_everything(platform, history.partitions)
    stored = len(stored_contents(str(history.folder / "kept" / "vectors")))
    assert stored == (shard - 1) * CHUNK
    embedded = history.embedded.total()
    assert stored + CHUNK <= embedded <= stored + CHUNK + IN_FLIGHT < total
    assert differences(history.run(), history.rebuild()) == []
    assert history.embedded.total() == total + embedded - stored
