"""What comes to a large source is compared by itself: a small spoilt increment is told, an honest one is not."""

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from embedding_platform import layout, storage
from embedding_platform.increments import index_of
from embedding_platform.reconcile import arrivals
from embedding_platform.reconcile.acceptance import accept_waiting
from embedding_platform.reconcile.distribution import FIGURES, Change, accept_distribution, compare_distribution
from embedding_platform.reconcile.history import FEWEST_ACCEPTED
from embedding_platform.vectors import sampled
from embedding_platform.vectors.judged import judge_stored
from embedding_platform.vectors.store import append, compact, stored_hashes
from embedding_platform_tests.inference.small_encoder import DIMENSION as SMALL_DIMENSION
from embedding_platform_tests.reconcile.small_lake import FINGERPRINT, Lake, space_of

DIMENSION = 64
TOPICS = 20
USUAL = 0.1


@dataclass
class World:
    """Vectors of a space: a direction common to all, topics around it, and things around a topic."""

    seed: int
    common_size: float = 1.0
    topic_count: int = TOPICS
    generator: np.random.Generator = field(init=False)

    def __post_init__(self) -> None:
        self.generator = np.random.default_rng(self.seed)
        self.common = self._drawn(1, self.common_size)
        self.topics = self._drawn(self.topic_count, 0.8)

    def things(self, count: int, topics: np.ndarray | None = None) -> np.ndarray:
        topics = self.topics if topics is None else topics
        return self._unit(self.common + topics[self.generator.integers(0, len(topics), count)] + self._drawn(count))

    def increment(self, kind: str, count: int) -> np.ndarray:
        if kind == "the same":
            return self.things(count)
        if kind == "one topic":
            return self.things(count, self.topics[:1])
        if kind == "a new topic":
            return self.things(count, self._drawn(1, 0.8))
        grey = np.repeat(self.things(1), count, axis=0)
        if kind == "grey":
            return self._unit(grey + self._drawn(count, 0.02))
        if kind == "mostly grey":
            return np.concatenate([grey[: count * 4 // 5], self.things(count - count * 4 // 5)])
        if kind == "noise":
            return self._unit(self._drawn(count))
        assert kind == "longer"
        return 1.5 * self.things(count)

    def _drawn(self, count: int, size: float = 0.8) -> np.ndarray:
        return self.generator.normal(0, size / np.sqrt(DIMENSION), (count, DIMENSION))

    def _unit(self, vectors: np.ndarray) -> np.ndarray:
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


HONEST = ("the same", "one topic", "a new topic")
SPOILT = {
    "grey": "increment_alikeness",
    "mostly grey": "increment_alikeness",
    "noise": "increment_cosine_change",
    "longer": "increment_norm_change",
}


def exceeded(seed: int, kind: str, count: int, *sizes: float) -> set[str]:
    world = World(seed, *sizes)
    accepted = world.things(sampled.MOST).astype(np.float32)
    came = world.increment(kind, count).astype(np.float32)
    nothing: dict[str, list[float]] = {name: [] for name in arrivals.FIGURES}
    figures, limits = arrivals.compare(came, accepted, nothing)
    return {name for name in figures if figures[name] > limits[name]}


@pytest.mark.parametrize("count", [12, 200])
@pytest.mark.parametrize("kind", HONEST)
def test_of_forty_honest_increments_at_most_one_is_told(kind: str, count: int) -> None:
    assert sum(bool(exceeded(seed, kind, count)) for seed in range(40)) <= 1


@pytest.mark.parametrize("sizes", [(0.0, TOPICS), (1.0, 5)], ids=["nothing in common", "few topics"])
def test_a_new_topic_is_not_told_where_little_is_known_of_what_topics_share(sizes: tuple[float, int]) -> None:
    assert sum(bool(exceeded(seed, "a new topic", 100, *sizes)) for seed in range(40)) <= 2


@pytest.mark.parametrize("count", [20, 200])
@pytest.mark.parametrize("kind", SPOILT)
def test_of_ten_spoilt_increments_all_are_told(kind: str, count: int) -> None:
    assert all(SPOILT[kind] in exceeded(seed, kind, count) for seed in range(10))


def test_fewer_than_can_tell_and_vectors_that_are_none_do_not_count() -> None:
    vectors = World(0).things(50).astype(np.float32)
    unsound = np.concatenate([vectors[:9], np.zeros((20, DIMENSION), np.float32), np.full((20, DIMENSION), np.nan)])
    nothing: dict[str, list[float]] = {name: [] for name in arrivals.FIGURES}
    for came, accepted in ((vectors[:9], vectors), (vectors, vectors[:9]), (unsound, vectors)):
        assert arrivals.compare(came, accepted, nothing) == ({}, {})


def test_what_was_accepted_widens_a_limit_and_never_narrows_it() -> None:
    world = World(0)
    accepted, came = world.things(500), world.increment("the same", 50)
    limits = [
        arrivals.compare(came, accepted, {name: [one] * count for name in arrivals.FIGURES})[1]
        for one, count in ((0.0, 0), (0.001, 9), (0.99, FEWEST_ACCEPTED - 1), (0.99, FEWEST_ACCEPTED))
    ]
    assert limits[0] == limits[1] == limits[2]
    assert set(limits[3].values()) == {0.99}


# What is noted of them


def noted(url: str) -> list[str]:
    return arrivals.noted(url).to_pylist()


def note(url: str, *contents: str) -> None:
    arrivals.note(url, index_of(pa.array(contents, pa.string())))


def test_what_came_is_noted_until_it_is_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = str(tmp_path / "arrived.parquet")
    assert noted(url) == []
    note(url)
    assert not Path(url).exists()
    note(url, "c", "a")
    note(url, "b", "a")
    assert noted(url) == ["a", "b", "c"]
    before = Path(url).stat().st_ino
    note(url, "c")
    arrivals.forget(url, ["x"])
    assert Path(url).stat().st_ino == before
    arrivals.forget(url, ["a", "b"])
    assert noted(url) == ["c"]
    arrivals.forget(url, ["c"])
    assert not Path(url).exists()
    monkeypatch.setattr(sampled, "MOST", 2)
    note(url, "d", "c", "e")
    note(url, "b")
    assert noted(url) == ["b", "c"], "of many, those that a sample has"


# In a large source


@dataclass
class Source:
    """A source whose vectors are stored as a run stores them, judged and compared."""

    store: str
    world: World
    dimension = DIMENSION

    @property
    def place(self) -> tuple[str, str, str, str]:
        return self.store, "text/small", FINGERPRINT, "letters"

    @property
    def folder(self) -> str:
        return layout.vectors_folder(*self.place)

    @property
    def arrived_url(self) -> str:
        return layout.arrived_url(*self.place)

    def add(self, vectors: np.ndarray) -> list[str]:
        contents = [self.world.generator.bytes(16).hex() for _ in vectors]
        note(self.arrived_url, *contents)
        for first in range(0, len(contents), 5000):
            part = slice(first, first + 5000)
            append(self.folder, contents[part], vectors[part].astype(np.float32), FINGERPRINT, "run", "cpu")
        return contents

    def look(self, but: tuple[str, ...] = (), accept: bool = True) -> Change:
        """What a run does after it has embedded all contents but some that are gone."""
        model = space_of("text").model
        space = space_of("text", model=type(model)(**{**vars(model), "dimension": DIMENSION}), norm_band=(0.5, 2.0))
        live = stored_hashes(self.folder, FINGERPRINT)
        live = live[~live.isin(but)]
        judged = judge_stored(self.folder, space, live, FINGERPRINT, arrivals.noted(self.arrived_url))
        version = str(hash(tuple(sorted(live))))
        change = compare_distribution(*self.place, judged, version, USUAL)
        if accept and not change.exceeded:
            accept_distribution(*self.place, judged, change, version)
        return change

    def history(self) -> dict:
        return json.loads(storage.read_bytes(layout.distribution_url(*self.place)) or b"{}")


@pytest.fixture
def large(tmp_path: Path) -> Source:
    source = Source(str(tmp_path), World(0))
    source.add(source.world.things(20_000))
    assert source.look().figures == {}
    assert noted(source.arrived_url) == [], "all of a first run are what later ones are compared with"
    return source


def test_a_small_spoilt_increment_of_a_large_source_is_told_and_an_honest_one_is_not(large: Source) -> None:
    for kind in HONEST:
        large.add(large.world.increment(kind, 100))
        change = large.look()
        assert (change.arrived, change.exceeded) == (100, [])
        assert noted(large.arrived_url) == []
    spoilt = large.add(large.world.increment("grey", 100))
    for _ in range(2):
        change = large.look()
        assert change.exceeded == ["increment_alikeness"]
        assert all(change.figures[name] < change.limits[name] for name in FIGURES), "all of them show nothing"
        assert {content for content, _ in change.outliers} <= set(spoilt)
    assert [set(arrivals.FIGURES) <= set(line) for line in large.history()["accepted"]] == [False, True, True, True]
    accept_waiting(*large.place)
    assert noted(large.arrived_url) == []
    assert not Path(sampled.kept_url(large.folder, "arrived")).exists()
    assert (large.look().arrived, large.look().exceeded) == (0, [])
    assert large.history()["accepted"][-1]["increment_alikeness"] > arrivals.MOST_ALIKE


def test_a_run_that_was_killed_before_its_checks_leaves_what_came_to_the_next(large: Source) -> None:
    grey = large.world.increment("grey", 90)
    large.add(grey[:50])
    large.add(grey[50:])
    change = large.look()
    assert (change.arrived, change.exceeded) == (90, ["increment_alikeness"])


def test_neither_shards_nor_their_compaction_change_the_figures(large: Source) -> None:
    for part in np.split(large.world.increment("grey", 100), 20):
        large.add(part)
    before = large.look(accept=False)
    assert compact(large.folder, DIMENSION, FINGERPRINT, fewest=4)
    after = large.look(accept=False)
    assert before.arrived == after.arrived == 100
    assert after.figures == pytest.approx(before.figures, abs=1e-6)


def test_a_run_with_nothing_new_reads_nothing_of_it_again(large: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    large.add(large.world.increment("grey", 100))
    assert large.look().exceeded
    rows: list[int] = []

    def read_rows(fs, path, schema, columns, chosen, read=storage._read_rows):
        rows.extend(chosen)
        return read(fs, path, schema, columns, chosen)

    monkeypatch.setattr(storage, "_read_rows", read_rows)
    assert large.look().exceeded
    assert rows == []


def test_a_few_at_a_time_are_compared_once_they_are_enough(large: Source) -> None:
    grey = large.world.increment("grey", 12)
    for part in np.split(grey, 3):
        change = large.look()
        assert (change.arrived, change.exceeded) == (0, [])
        large.add(part)
    assert large.look().exceeded == ["increment_alikeness"]


def test_spoilt_files_that_were_taken_away_are_told_when_they_come_back(large: Source) -> None:
    spoilt = tuple(large.add(large.world.increment("grey", 100)))
    assert large.look().exceeded
    assert large.look(but=spoilt).exceeded == []
    large.add(large.world.increment("the same", 50))
    assert large.look(but=spoilt).exceeded == []
    assert large.look().exceeded == ["increment_alikeness"], "their vectors are still there, and were never accepted"


def test_a_history_from_before_has_no_figures_of_increments(large: Source) -> None:
    for _ in range(FEWEST_ACCEPTED + 1):
        large.add(large.world.increment("the same", 20))
        assert large.look().exceeded == []
    url, kept = layout.distribution_url(*large.place), large.history()
    kept["accepted"] = [
        {name: value for name, value in line.items() if name not in arrivals.FIGURES} for line in kept["accepted"]
    ]
    storage.write_bytes(url, json.dumps(kept).encode())
    large.add(large.world.increment("grey", 100))
    assert large.look().exceeded == ["increment_alikeness"]
    kept = large.history()
    del kept["waiting"]["arrived"]
    storage.write_bytes(url, json.dumps(kept).encode())
    assert accept_waiting(*large.place)


# In a run


def test_a_run_that_dies_after_it_embedded_is_told_of_by_the_next(tmp_path: Path) -> None:
    lake = Lake(tmp_path)
    place = (lake.store, lake.space.key, FINGERPRINT, "one")
    for number in range(60):
        lake.write(f"n{number}", number)
    _, _, report = lake.run()
    change = compare_distribution(*place, report.judged, report.data_version, 1.0)
    accept_distribution(*place, report.judged, change, report.data_version)
    for number in range(60, 72):
        lake.write(f"n{number}", number)
    lake.encoder.spoil = lambda content, vector: np.eye(SMALL_DIMENSION, dtype=np.float32)[0]
    lake.run()
    _, _, report = lake.run()
    assert report.embedded == 0
    change = compare_distribution(*place, report.judged, report.data_version, 1.0)
    assert (change.arrived, change.exceeded) == (12, ["increment_alikeness"])
