"""Any history of media, settings, tampering and crashes, then a run: the same as a rebuild from nothing."""

import gc
import itertools
import logging
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from embedding_platform import layout, storage
from embedding_platform.buckets import bucket_of, sources_of
from embedding_platform.media.cutting import code_version
from embedding_platform.milvus.alias import alias_target
from embedding_platform.milvus.connection import close_directory, connect
from embedding_platform.milvus.schema import FIELD_NAMES, alias_name, read_provenance
from embedding_platform.reconcile.drift import Drift
from embedding_platform.records import digest
from embedding_platform.settings import load_settings
from embedding_platform.spaces import Space
from embedding_platform.vectors import store as vector_store
from embedding_platform_tests.convergence import published as reading
from embedding_platform_tests.convergence.crash_points import IN_PROCESS, Crash, CrashPoint, armed, compacting_from
from embedding_platform_tests.convergence.published import Published, differences, published
from embedding_platform_tests.convergence.small_media import CONTENTS, SOURCES, STEMS, SUFFIXES, Items, Media
from embedding_platform_tests.convergence.small_platform import (
    CHUNK,
    IN_FLIGHT,
    LITTLE_AT_ONCE,
    Choice,
    Partitions,
    SmallPlatform,
    nobody,
    run_everything,
    run_source,
)

WRITES = (
    "insert",
    "upsert",
    "delete",
    "create_collection",
    "drop_collection",
    "alter_collection_properties",
    "create_partition",
    "drop_partition",
    "create_index",
    "drop_index",
    "create_alias",
    "alter_alias",
    "drop_alias",
)
"""What changes anything in Milvus."""


@dataclass
class Place:
    """Where histories happen: a Milvus of their own, another for rebuilds, folders, and a count of writes."""

    client: Any
    rebuilding: Any
    folder: Path
    writes: list[str]
    numbers: Iterator[int]
    figures: Counter[str]
    stored: list[str]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    import pymilvus
    from pymilvus.client import grpc_handler

    folder = tmp_path_factory.mktemp("histories")
    directories = [str(folder / name) for name in ("milvus", "rebuilt-milvus")]
    client, rebuilding = map(connect, directories)
    writes: list[str] = []

    def counting(name: str) -> Callable[..., Any]:
        original = getattr(pymilvus.MilvusClient, name)

        def counted(self: Any, *args: Any, **kwargs: Any) -> Any:
            if self is client:
                writes.append(name)
            return original(self, *args, **kwargs)

        return counted

    # Milvus Lite logs a stack for each call of pymilvus that it does not know.
    logging.getLogger("grpc._server").setLevel(logging.CRITICAL)
    with pytest.MonkeyPatch.context() as patch:
        for name in WRITES:
            patch.setattr(pymilvus.MilvusClient, name, counting(name))
        # After each build pymilvus waits half a second before it looks again.
        hurried = SimpleNamespace(time=grpc_handler.time.time, sleep=lambda seconds: None)
        patch.setattr(grpc_handler, "time", hurried)
        patch.setattr("embedding_platform.milvus.sync.BATCH_ROWS", 3)
        patch.setattr("embedding_platform.reconcile.segments.ITEMS_PER_CHUNK", 2)
        patch.setattr("embedding_platform.media.items.ITEMS_PER_CHUNK", 2)
        patch.setattr("embedding_platform.inference.stream.WAIT_BATCHES", 1)
        patch.setattr(storage, "compact_shards", compacting_from(4))
        stored: list[str] = []
        append = vector_store.append

        def appended(folder: str, hashes: list[str], *rest: Any) -> str:
            name = append(folder, hashes, *rest)
            stored.extend(hashes)
            return name

        patch.setattr(vector_store, "append", appended)
        yield Place(client, rebuilding, folder, writes, itertools.count(), Counter(), stored)
    for directory in directories:
        close_directory(directory)


class Truth:
    """Compares what each stage reports with the difference that the test itself finds before it runs."""

    def __init__(self, history: "History", platform: SmallPlatform, expected: dict[str, Published]) -> None:
        self.history, self.platform, self.expected = history, platform, expected
        self.items = by_source(history.media.items(), history.buckets)
        self.found: tuple[Any, ...] = ()
        self.waiting: dict[str, dict[str, str]] = {}
        self.synced: set[str] = set()

    def __call__(self, modality: str, source: str, stage: str, report: Any) -> None:
        look, compare = getattr(self, f"_before_{stage}"), getattr(self, f"_after_{stage}")
        (space,) = (space for space in self.platform.spaces if space.modality == modality)
        if report is None:
            self.found = look(space, source)
        else:
            compare(space, source, report, *self.found)

    def _before_files(self, space: Space, source: str) -> tuple[Any, ...]:
        table = _table(layout.items_url(self.platform.store, space.modality, source), ["path", "version"])
        return (dict(table),)

    def _after_files(self, space: Space, source: str, report: Any, before: dict[str, str]) -> None:
        wanted = self.items.get((space.modality, source), {})
        assert {item.path: item.version for item in report.items} == wanted
        assert report.increment.counts() == _counts(wanted, before)

    def _before_segments(self, space: Space, source: str) -> tuple[Any, ...]:
        version = code_version(space.modality, self.platform.cutting)
        folder = layout.segments_folder(self.platform.store, space.modality, source, version)
        rows = [row for path in reading.parquet_files(folder) for row in _table(path, ["path", "item_version"])]
        return (set(rows),)

    def _after_segments(self, space: Space, source: str, report: Any, before: set[tuple[str, str]]) -> None:
        wanted = self.items.get((space.modality, source), {})
        cut = {path: version for path, version in before if wanted.get(path) == version}
        others = {path: version for path, version in before if path not in cut}
        assert report.increment.counts() == _counts(wanted, others | cut)

    def _before_embeddings(self, space: Space, source: str) -> tuple[Any, ...]:
        fingerprint, store = self.platform.fingerprint(space), self.platform.store
        own = set(reading.stored_contents(layout.vectors_folder(store, space.key, fingerprint, source)))
        anywhere = set(reading.stored_contents(layout.space_folder(store, space.key, fingerprint)))
        return own, anywhere, Counter(self.history.embedded)

    def _after_embeddings(
        self, space: Space, source: str, report: Any, own: set[str], anywhere: set[str], before: Counter[Any]
    ) -> None:
        wanted = {row["content_hash"] for row in self._rows(space, source)}
        assert report.increment.counts() == _counts(dict.fromkeys(wanted), dict.fromkeys(own))
        assert (report.missing, report.rejected) == ([], [])
        assert report.embedded == len(wanted - anywhere)
        assert report.reused == len((wanted & anywhere) - own)
        made = Counter(self.history.embedded) - before
        assert made.total() == report.embedded, "the model embedded what was not asked for"
        assert set(made.values()) <= {1}, "the model embedded a content twice in one run"

    def _before_collection(self, space: Space, source: str) -> tuple[Any, ...]:
        rows = reading.read_source(self.platform, space, source)
        return ({row["id"]: row for row in rows},)

    def _after_collection(self, space: Space, source: str, report: Any, before: dict[str, Any]) -> None:
        wanted = {row["id"]: row for row in self._rows(space, source)}
        counts = _counts(wanted, before, reading.same)
        assert report.sync.counts == counts
        assert report.sync.upserted == counts["new"] + counts["stale"]
        assert report.sync.deleted == counts["orphaned"]
        assert (report.sync.repaired, report.rows) == (0, len(wanted))
        self.synced.add(report.collection)
        if report.collection not in self.history.tampered:
            assert report.drift == Drift(), "nobody else touched Milvus"

    def _before_published(self, space: Space, source: str) -> tuple[Any, ...]:
        return (alias_target(self.platform.milvus, alias_name(space.key)),)

    def _after_published(self, space: Space, source: str, report: Any, before: str | None) -> None:
        now = alias_target(self.platform.milvus, alias_name(space.key))
        assert (report.previous, report.moved) == (before, now != before)
        assert report.published == (now == report.collection)
        self.waiting[space.key] = report.waiting

    def _rows(self, space: Space, source: str) -> list[dict[str, Any]]:
        rows = self.expected[space.key].rows.values() if space.key in self.expected else []
        return [row for (row,) in rows if row["source"] == source]


class History(RuleBasedStateMachine):
    """One history. What it did to the media is on disk; what it chose and embedded is here."""

    place: Place

    def __init__(self) -> None:
        super().__init__()
        self.folder = self.place.folder / f"history-{next(self.place.numbers)}"
        self.media = Media(self.folder / "media")
        self.choice = Choice()
        self.buckets: dict[str, int] = {}
        self.partitions = Partitions()
        self.embedded: Counter[tuple[str, int, str]] = Counter()
        self.rebuilt: dict[str, dict[str, Published]] = {}
        self.lost = 0
        self.repeated = 0
        self.tampered: set[str] = set()

    def teardown(self) -> None:
        try:
            self.run()
        finally:
            self._leave()

    def _leave(self) -> None:
        for client in (self.place.client, self.place.rebuilding):
            empty(client)
        shutil.rmtree(self.folder)

    @initialize(content=st.integers(0, CONTENTS - 1))
    def begin(self, content: int) -> None:
        for source in SOURCES[:2]:
            self.add_many(source, content)
        self.caption(SOURCES[0], [(STEMS[0], content), (STEMS[1], content)])

    @rule(source=st.sampled_from(SOURCES), stem=st.sampled_from(STEMS), suffix=st.sampled_from(SUFFIXES),
          content=st.integers(0, CONTENTS - 1))  # fmt: skip
    def add(self, source: str, stem: str, suffix: str, content: int) -> None:
        self.media.write(source, stem, suffix, content)

    @rule(source=st.sampled_from(SOURCES), stem=st.sampled_from(STEMS), content=st.integers(0, CONTENTS - 1))
    def add_pair(self, source: str, stem: str, content: int) -> None:
        self.media.write(source, stem, "png", content)
        self.media.write(source, stem, "txt", content)

    @rule(source=st.sampled_from(SOURCES), content=st.integers(0, CONTENTS - 1))
    def add_many(self, source: str, content: int) -> None:
        for number, stem in enumerate(STEMS):
            self.media.write(source, stem, SUFFIXES[(number + content) % 2], (number + content) % CONTENTS)

    @precondition(lambda self: self.media.files())
    @rule(number=st.integers(0, 50), content=st.integers(0, CONTENTS - 1))
    def change(self, number: int, content: int) -> None:
        path = self._file(number)
        source, *rest = path.relative_to(self.media.root).parts
        self.media.write(source, "/".join(rest).rsplit(".", 1)[0], path.suffix[1:], content)

    @precondition(lambda self: self.media.files())
    @rule(number=st.integers(0, 50))
    def touch(self, number: int) -> None:
        self.media.touch(self._file(number))

    @precondition(lambda self: self.media.files())
    @rule(number=st.integers(0, 50), source=st.sampled_from(SOURCES), stem=st.sampled_from(STEMS))
    def move(self, number: int, source: str, stem: str) -> None:
        self.media.move(self._file(number), source, stem)

    @precondition(lambda self: self.media.files())
    @rule(number=st.integers(0, 50))
    def delete(self, number: int) -> None:
        self._file(number).unlink()

    @precondition(lambda self: self.media.files())
    @rule(one=st.integers(0, 50), other=st.integers(0, 50))
    def swap(self, one: int, other: int) -> None:
        alike = [path for path in self.media.files() if path.suffix == self._file(one).suffix]
        self.media.swap(self._file(one), alike[other % len(alike)])

    @rule(source=st.sampled_from(SOURCES),
          lines=st.lists(st.tuples(st.sampled_from(STEMS), st.integers(0, CONTENTS - 1)), max_size=3))  # fmt: skip
    def caption(self, source: str, lines: list[tuple[str, int]]) -> None:
        self.media.caption(source, lines)

    @rule(source=st.sampled_from(SOURCES))
    def delete_source(self, source: str) -> None:
        self.media.remove_source(source)

    @rule(source=st.sampled_from(SOURCES))
    def restore_source(self, source: str) -> None:
        self.media.restore_source(source)

    @rule(seed=st.integers(0, 1))
    def choose_model(self, seed: int) -> None:
        self.choice = replace(self.choice, seed=seed)

    @rule(index=st.sampled_from(["FLAT", "HNSW", "IVF_FLAT"]))
    def choose_index(self, index: str) -> None:
        self.choice = replace(self.choice, index=index)

    @rule(most_named=st.sampled_from([1, 2, 512]))
    def choose_most_named(self, most_named: int) -> None:
        self.choice = replace(self.choice, most_named=most_named)

    @rule(overlap=st.sampled_from([0, 4]))
    def choose_overlap(self, overlap: int) -> None:
        self.choice = replace(self.choice, overlap=overlap)

    @rule(folder=st.sampled_from(SOURCES), count=st.sampled_from([1, 2, 3]))
    def choose_buckets(self, folder: str, count: int) -> None:
        self.buckets = {**self.buckets, folder: count}

    @rule(number=st.integers(0, 50), way=st.sampled_from(["delete", "alter", "stray", "move", "alter vector",
          "alter text", "stray partition"]))  # fmt: skip
    def tamper_with_a_row(self, number: int, way: str) -> None:
        self._tamper()
        rows = self._rows_in_milvus()
        if not rows:
            return
        name, partition, row = rows[number % len(rows)]
        client = self.place.client
        # Where a key places rows, no partition may be named.
        partition = "" if is_keyed(client, name) else partition
        if way == "delete":
            client.delete(name, ids=[row["id"]], partition_name=partition or None)
        elif way == "alter":
            client.upsert(
                name,
                [{**row, "version": "0" * len(row["version"]), "text": "altered"}],
                partition_name=partition or None,
            )
        elif way == "stray":
            client.upsert(name, [{**row, "id": digest("stray", row["id"])[:32]}], partition_name=partition or None)
        elif way == "move":
            others = [other for other in client.list_partitions(name) if other not in ("_default", partition)]
            if others and not is_keyed(client, name):
                client.upsert(name, [row], partition_name=others[number % len(others)])
        elif way == "alter vector":
            client.upsert(name, [{**row, "vector": list(reversed(row["vector"]))}], partition_name=partition or None)
        elif way == "alter text":
            client.upsert(name, [{**row, "text": "altered"}], partition_name=partition or None)
        elif way == "stray partition" and partition:
            client.upsert(name, [{**row, "id": digest("stray", row["id"])[:32]}], partition_name="_default")

    @rule(number=st.integers(0, 50), way=st.sampled_from(["partition", "index", "alias", "release", "collection"]))
    def tamper_with_a_collection(self, number: int, way: str) -> None:
        self._tamper()
        names = sorted(self.place.client.list_collections())
        if not names:
            return
        client, name = self.place.client, names[number % len(names)]
        if way == "partition":
            partitions = [partition for partition in client.list_partitions(name) if partition != "_default"]
            for partition in [] if is_keyed(client, name) else partitions[:1]:
                client.drop_partition(name, partition)
        elif way == "alias":
            drop_aliases(client, name)
        elif way == "collection":
            drop_aliases(client, name)
            client.drop_collection(name)
        else:
            client.release_collection(name)
            if way == "index":
                # Of any name but that of a field, Milvus Lite drops all.
                for _ in client.list_indexes(name)[:1]:
                    client.drop_index(name, "all")

    @rule()
    def drop_milvus(self) -> None:
        self._tamper()
        empty(self.place.client)

    @rule(modality=st.sampled_from(["text", "image", "image_text"]), number=st.integers(0, 50))
    def run_one_source(self, modality: str, number: int) -> None:
        platform = self._platform()
        sources = platform.sources()[modality]
        source = sources[number % len(sources)] if sources else ""
        if source:
            # One that awaits successors is in no rebuild.
            awaits = platform.awaits_successors(modality, source)
            witness = nobody if awaits else Truth(self, platform, self._rebuilt())
            run_source(platform, self.partitions, modality, source, witness)

    @rule(point=st.sampled_from(IN_PROCESS), passage=st.integers(1, 4))
    def crash_at(self, point: CrashPoint, passage: int) -> None:
        self._crash([point], passage)

    @rule(passage=st.integers(1, 150))
    def crash_anywhere(self, passage: int) -> None:
        self._crash(IN_PROCESS, passage)

    @rule(passages=st.lists(st.integers(1, 120), min_size=1, max_size=3))
    def crash_and_run(self, passages: list[int]) -> None:
        for passage in passages:
            self._crash(IN_PROCESS, passage)
        self.run()

    def _crash(self, points: Sequence[CrashPoint], passage: int) -> None:
        embedded, stored = self.embedded.total(), len(self.place.stored)
        try:
            with armed(points, passage) as struck:
                run_everything(self._platform(), self.partitions)
        except Crash:
            self.place.figures[f"crashed {struck[0]}"] += 1
        lost = self.embedded.total() - embedded - (len(self.place.stored) - stored)
        assert lost <= CHUNK + IN_FLIGHT
        self.lost += lost
        self.place.figures["contents embedded and lost in a crash, at most"] = max(
            lost, self.place.figures["contents embedded and lost in a crash, at most"]
        )
        # What the crash left open is closed by the garbage collector, as if the process were gone.
        gc.collect()

    @rule()
    def run(self) -> None:
        self.place.figures["runs compared with a rebuild"] += 1
        self.place.figures["rows compared"] += sum(len(space.rows) for space in self._rebuilt().values())
        expected = self._rebuilt()
        self._run_through(expected)
        assert differences(published(self._platform()), expected) == []
        repeated = self.embedded.total() - len(self.embedded)
        self.place.figures["contents embedded again after a crash"] += repeated - self.repeated
        self.repeated = repeated
        assert repeated <= self.lost
        self._run_with_nothing_to_do(expected)

    def _run_through(self, expected: dict[str, Published]) -> None:
        platform = self._platform()
        truth = Truth(self, platform, expected)
        run_everything(platform, self.partitions, truth)
        assert not any(truth.waiting.values()), truth.waiting
        self.tampered -= truth.synced

    def _run_with_nothing_to_do(self, expected: dict[str, Published]) -> None:
        before = reading.stored_files(self._platform().store), self.embedded.copy()
        self.place.writes.clear()
        platform = self._platform()
        run_everything(platform, self.partitions, Truth(self, platform, expected))
        assert self.place.writes == []
        assert (reading.stored_files(platform.store), self.embedded) == before

    def _tamper(self) -> None:
        """Note that no run has put any collection right yet; a former model's stays so until it is asked for."""
        self.tampered |= set(self.place.client.list_collections())

    def _platform(self) -> SmallPlatform:
        """As a new process opens it."""
        chosen = load_settings(base=self.folder, **SETTINGS, **self._chosen())
        return SmallPlatform(
            chosen,
            run_id=f"run-{next(self.place.numbers)}",
            client=self.place.client,
            choice=self.choice,
            embedded=self.embedded,
        )

    def _rebuilt(self) -> dict[str, Published]:
        state = f"{self.choice} {self.buckets} {self.media.state()}"
        if state not in self.rebuilt:
            empty(self.place.rebuilding)
            root = f"rebuilt-{len(self.rebuilt)}"
            chosen = load_settings(base=self.folder, **SETTINGS, store_root=root, **self._chosen())
            platform = SmallPlatform(chosen, client=self.place.rebuilding, choice=self.choice)
            run_everything(platform, Partitions())
            self.rebuilt[state] = published(platform)
        return self.rebuilt[state]

    def _chosen(self) -> dict[str, Any]:
        return {
            "milvus": {"named_partitions": self.choice.most_named},
            "listing": {"buckets": self.buckets},
        }

    def _file(self, number: int) -> Path:
        files = self.media.files()
        return files[number % len(files)]

    def _rows_in_milvus(self) -> list[tuple[str, str, dict[str, Any]]]:
        """Collection, partition and row of all rows, provenance included."""
        client, found = self.place.client, []
        for name in sorted(client.list_collections()):
            client.load_collection(name)
            for partition in sorted(client.list_partitions(name)):
                rows = client.query(
                    name, filter='id >= ""', output_fields=list(FIELD_NAMES), partition_names=[partition], limit=16_384
                )
                found += [(name, partition, dict(row)) for row in sorted(rows, key=lambda row: row["id"])]
        return found


SETTINGS: dict[str, Any] = {
    "batch": LITTLE_AT_ONCE,
    "quality": {"max_rejected_share": 1.0},
}


def empty(client: Any) -> None:
    """Drop every alias and collection."""
    for name in client.list_collections():
        drop_aliases(client, name)
        client.drop_collection(name)


def by_source(items: Items, counts: Mapping[str, int]) -> Items:
    """The items of folders as those of the sources that their files are shared out to."""
    found: Items = {}
    for (modality, folder), files in items.items():
        for path, version in files.items():
            (source,) = (
                source
                for source in sources_of(folder, counts)
                if (bucket := bucket_of(source)) is None or bucket.has(path)
            )
            found.setdefault((modality, source), {})[path] = version
    return found


def is_keyed(client: Any, collection: str) -> bool:
    return read_provenance(client, collection).layout == "keyed"


def drop_aliases(client: Any, collection: str) -> None:
    for alias in client.list_aliases(collection)["aliases"]:
        client.drop_alias(alias)


def lines(figures: Counter[str]) -> str:
    return "\n".join(f"{count:6}  {what}" for what, count in sorted(figures.items()))


def _table(path: str, columns: list[str]) -> list[tuple[Any, ...]]:
    return reading.rows_of(path, columns)


def _counts(
    wanted: dict[str, Any], found: dict[str, Any], agree: Callable[[Any, Any], bool] = lambda left, right: left == right
) -> dict[str, int]:
    """The increment, by the plainest code there is."""
    shared = wanted.keys() & found.keys()
    unchanged = sum(agree(wanted[key], found[key]) for key in shared)
    return {
        "new": len(wanted.keys() - found.keys()),
        "stale": len(shared) - unchanged,
        "orphaned": len(found.keys() - wanted.keys()),
        "unchanged": unchanged,
    }


def run_histories(place: Place, examples: int, steps: int, seeded: bool = False) -> None:
    """The same histories each time, or those of the seed that the command line gives."""

    class InPlace(History):
        pass

    InPlace.place = place
    run_state_machine_as_test(
        InPlace,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            derandomize=not seeded,
            database=None,
            print_blob=True,
            suppress_health_check=list(HealthCheck),
            # To make a failing history shorter takes minutes.
            phases=[Phase.generate, *([Phase.shrink] if seeded else [])],
        ),
    )


@pytest.mark.proof
def test_whatever_happened_a_run_gives_what_a_rebuild_gives(place: Place, tell: Callable[[str], None]) -> None:
    run_histories(place, examples=12, steps=25)
    tell(lines(place.figures))
    assert place.figures["runs compared with a rebuild"] >= 10
    assert sum(count for what, count in place.figures.items() if what.startswith("crashed ")) >= 10


@pytest.mark.long
def test_many_more_histories(place: Place, request: pytest.FixtureRequest, tell: Callable[[str], None]) -> None:
    """Others with each seed: `pytest -m long --hypothesis-seed 7 ...`."""
    run_histories(place, examples=40, steps=50, seeded=request.config.getoption("hypothesis_seed") is not None)
    tell(lines(place.figures))
