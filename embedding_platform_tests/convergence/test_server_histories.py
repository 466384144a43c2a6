"""Short histories drawn at random, in which a Milvus server stands where other tests have Milvus Lite."""

import dataclasses
import random
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from embedding_platform.milvus.alias import publications
from embedding_platform.milvus.connection import close_directory, connect
from embedding_platform.settings import load_settings
from embedding_platform_tests.convergence.crash_points import IN_PROCESS, Crash, armed
from embedding_platform_tests.convergence.published import Published, differences, published
from embedding_platform_tests.convergence.small_media import CONTENTS, SOURCES, STEMS, Media
from embedding_platform_tests.convergence.small_platform import (
    LITTLE_AT_ONCE,
    Choice,
    Partitions,
    SmallPlatform,
    run_everything,
)
from embedding_platform_tests.convergence.test_state_machine import WRITES
from embedding_platform_tests.faults.indexing import Disturbed

STEPS = 8

PLAIN = {"search_words": False}
"""Milvus 2.3 has no functions on fields."""


@pytest.fixture
def server(milvus_server) -> Iterator[Any]:
    """A client of the server, and no collection of texts on it before and after the test."""
    client = connect(milvus_server.uri, milvus_server.token)
    yield client
    for publication in publications(client, "text/small"):
        for alias in client.list_aliases(publication.collection, timeout=60)["aliases"]:
            client.drop_alias(alias, timeout=60)
        client.drop_collection(publication.collection, timeout=60)


class History:
    """A platform of texts over two sources, and what may befall it."""

    def __init__(self, folder: Path, client: Any, seed: int) -> None:
        self.folder, self.client, self.random = folder, client, random.Random(seed)
        self.media = Media(folder / "media")
        self.partitions, self.choice, self.writes = Partitions(), Choice(), []
        self.figures: Counter[str] = Counter()
        for source in SOURCES[:2]:
            for number, stem in enumerate(STEMS):
                self.media.write(source, stem, "txt", number)

    def platform(self) -> SmallPlatform:
        def note(method: str) -> None:
            if method in WRITES:
                self.writes.append(method)

        settings = load_settings(base=self.folder, store_root="store", batch=LITTLE_AT_ONCE, milvus=PLAIN)
        return SmallPlatform(settings, client=Disturbed(self.client, note), kept=("text",), choice=self.choice)

    def rebuild(self) -> dict[str, Published]:
        """What a Milvus Lite of its own holds, made from nothing."""
        folder = self.folder / f"rebuilt-{self.figures.total()}"
        settings = load_settings(base=self.folder, store_root=str(folder / "store"), milvus=PLAIN)
        platform = SmallPlatform(settings, client=connect(str(folder / "milvus")), kept=("text",), choice=self.choice)
        run_everything(platform, Partitions())
        found = published(platform)
        close_directory(str(folder / "milvus"))
        return found

    def befall(self) -> None:
        """One thing or two that happen to media, settings, rows, or a run."""
        deeds: list[Callable[[], None]] = [self.edit, self.move, self.choose, self.tamper, self.crash]
        for deed in self.random.sample(deeds, 2):
            self.figures[deed.__name__] += 1
            deed()

    def edit(self) -> None:
        self.media.write(self.random.choice(SOURCES), self.random.choice(STEMS), "txt", self.random.randrange(CONTENTS))

    def move(self) -> None:
        path = self.random.choice(self.media.files())
        if self.random.random() < 0.5:
            path.unlink()
        else:
            self.media.move(path, self.random.choice(SOURCES), self.random.choice(STEMS))

    def choose(self) -> None:
        change = self.random.choice(
            [{"seed": 1}, {"seed": 0}, {"index": "HNSW"}, {"index": "IVF_FLAT"}, {"overlap": 4}]
        )
        self.choice = dataclasses.replace(self.choice, **change)

    def tamper(self) -> None:
        """Drop, alter or add a row of the published collection."""
        rows = self.client.query("text_small", filter='id >= ""', output_fields=["*"], limit=1000, timeout=60)
        name = self.client.describe_alias("text_small", timeout=60)["collection_name"]
        row = dict(self.random.choice(sorted(rows, key=lambda row: row["id"])))
        partition = next(
            partition
            for partition in self.client.list_partitions(name, timeout=60)
            if self.client.query(name, ids=[row["id"]], partition_names=[partition], timeout=60)
        )
        way = self.random.choice(["delete", "alter", "add"])
        if way == "delete":
            self.client.delete(name, ids=[row["id"]], partition_name=partition, timeout=60)
        else:
            other = {"text": "altered"} if way == "alter" else {"id": row["id"][::-1]}
            self.client.upsert(name, [{**row, **other}], partition_name=partition, timeout=60)

    def crash(self) -> None:
        """Let a run that has something to do end in a place where no code expects it."""
        self.edit()
        try:
            with armed(IN_PROCESS, self.random.randint(1, 15)):
                run_everything(self.platform(), self.partitions)
        except Crash:
            self.figures["crashed"] += 1

    def run(self) -> None:
        """Run to the end, after which a further run writes nothing, and compare with a rebuild."""
        run_everything(self.platform(), self.partitions)
        found = published(self.platform())
        self.writes.clear()
        run_everything(self.platform(), self.partitions)
        assert self.writes == []
        # A server tells of an index what Milvus Lite, in which the rebuild lies, does not.
        expected = {
            space: dataclasses.replace(
                one, index=(*one.index[:2], found[space].index[2]) if space in found else one.index
            )
            for space, one in self.rebuild().items()
        }
        assert differences(found, expected) == []
        self.figures["rows compared"] += sum(len(one.rows) for one in expected.values())


@pytest.mark.long
@pytest.mark.server
@pytest.mark.parametrize("seed", [1, 2])
def test_whatever_happened_a_server_holds_what_a_rebuild_gives(
    tmp_path: Path, server: Any, seed: int, monkeypatch: pytest.MonkeyPatch, tell: Callable[[str], None]
) -> None:
    monkeypatch.setattr("embedding_platform.milvus.sync.BATCH_ROWS", 3)
    history = History(tmp_path, server, seed)
    history.run()
    for _ in range(STEPS):
        history.befall()
        history.run()
    tell(str(dict(history.figures)))
    assert history.figures["crashed"] >= 1
    assert history.figures["rows compared"] > 50
