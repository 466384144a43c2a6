"""How a source's vectors may change before it is told, and what is kept of what was accepted."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from embedding_platform import layout, storage
from embedding_platform.errors import PlatformError
from embedding_platform.reconcile.acceptance import accept_waiting
from embedding_platform.reconcile.distribution import Change, accept_distribution, compare_distribution
from embedding_platform.reconcile.history import (
    DEVIATIONS,
    FEWEST_ACCEPTED,
    LEAST_LIMIT,
    MOST_ACCEPTED,
    TO_STANDARD_DEVIATION,
    limit_of,
)
from embedding_platform.vectors import sampled
from embedding_platform.vectors.judged import Judged, judge_stored
from embedding_platform.vectors.judgement import distribution, spread
from embedding_platform.vectors.sampled import Sample
from embedding_platform.vectors.store import append, compact, stored_hashes
from embedding_platform_tests.reconcile.small_lake import space_of

PLACE = ("text/small", "f" * 64, "letters")
DIMENSION = 32
USUAL = 0.1


def drawn(seed: int, towards: int = 0, count: int = 1000, scatter: float = 0.3) -> Judged:
    """Vectors around one axis."""
    vectors = np.random.default_rng(seed).normal(0, scatter / np.sqrt(DIMENSION), (count, DIMENSION))
    vectors[:, towards] += 1.0
    vectors = vectors.astype(np.float32)
    norms = np.linalg.norm(vectors, axis=1)
    contents = [f"{towards}-{number}" for number in range(count)]
    return Judged(count, np.ones(count, bool), norms, {}, None, Sample(contents, vectors))


def mixed(*parts: Judged) -> Judged:
    contents = [content for part in parts for content in part.sample.contents]
    return with_vectors(parts[0], np.concatenate([part.sample.vectors for part in parts]), contents)


def with_vectors(judged: Judged, vectors: np.ndarray, contents: list[str] | None = None) -> Judged:
    return replace(judged, sample=Sample(contents or judged.sample.contents, vectors))


def look(store: Path, judged: Judged, version: str, accept: bool = True, source: str = "letters") -> Change:
    """One run: compare, and accept what is within its limits."""
    place = (str(store), *PLACE[:2], source)
    change = compare_distribution(*place, judged, version, USUAL)
    if accept and not change.exceeded:
        accept_distribution(*place, judged, change, version)
    return change


def kept(store: Path) -> dict:
    return json.loads(storage.read_bytes(layout.distribution_url(str(store), *PLACE)) or b"{}")


def test_the_first_has_nothing_to_be_compared_with_and_is_accepted(tmp_path: Path) -> None:
    first = look(tmp_path, drawn(0), "a")
    assert (first.figures, first.limits, first.exceeded, first.accepted) == ({}, {}, [], 0)
    assert look(tmp_path, drawn(1), "b").figures


def test_more_of_the_same_is_within_the_limits_and_another_centre_is_not(tmp_path: Path) -> None:
    look(tmp_path, drawn(0), "a")
    same = look(tmp_path, drawn(1), "b")
    assert same.exceeded == []
    assert same.outliers == []
    other = look(tmp_path, mixed(drawn(2, count=500), drawn(3, towards=1, count=500)), "c")
    assert "shift" in other.exceeded
    assert len(other.outliers) == 10
    assert all(content.startswith("1-") for content, _ in other.outliers), "those that turned up are named"
    assert [cosine for _, cosine in other.outliers] == sorted(cosine for _, cosine in other.outliers)


def test_vectors_that_all_became_alike_change_the_spread(tmp_path: Path) -> None:
    look(tmp_path, drawn(0, scatter=1.0), "a")
    assert "spread_change" in look(tmp_path, drawn(1, scatter=0.01), "b").exceeded


@pytest.mark.parametrize("changes", [0, FEWEST_ACCEPTED], ids=["without a history", "with one"])
def test_pairs_that_come_nearer_and_are_yet_no_collapse_change_the_spread(tmp_path: Path, changes: int) -> None:
    def distance(judged: Judged) -> float:
        found = spread(judged.sample.vectors)
        assert found is not None
        return 1.0 - found.median

    for number in range(changes + 1):
        look(tmp_path, drawn(number, scatter=0.8), str(number))
    near = drawn(99, scatter=0.23)
    assert (distance(drawn(0, scatter=0.8)), distance(near)) == pytest.approx((0.4, 0.05), abs=0.02)
    assert "spread_change" in look(tmp_path, near, "near").exceeded


def test_longer_vectors_of_the_same_directions_change_the_norm_alone(tmp_path: Path) -> None:
    judged = drawn(0)
    look(tmp_path, judged, "a")
    longer = with_vectors(judged, judged.sample.vectors * 1.5)
    assert look(tmp_path, longer, "b").exceeded == ["norm_change"]
    uneven = judged.sample.vectors * np.linspace(0.1, 3.4, len(judged.sample.vectors))[:, None]
    assert look(tmp_path / "few", with_vectors(judged, uneven[::80]), "a").exceeded == []
    few = look(tmp_path / "few", with_vectors(judged, uneven[40::80]), "b")
    assert few.limits["norm_change"] > USUAL, "of few and uneven norms the mean is chance"
    assert look(tmp_path / "even", judged, "a").exceeded == look(tmp_path / "even", drawn(1), "b").exceeded == []


def test_few_vectors_are_not_taken_for_a_change(tmp_path: Path) -> None:
    look(tmp_path, drawn(0, count=10, scatter=3.0), "a")
    shifted = look(tmp_path, drawn(1, count=12, scatter=3.0), "b")
    assert shifted.figures["shift"] > USUAL, "for so few that is chance"
    assert shifted.exceeded == []


def test_fewer_than_can_tell_are_neither_compared_nor_kept(tmp_path: Path) -> None:
    assert look(tmp_path, drawn(0, count=9), "a").figures == {}
    assert kept(tmp_path) == {}
    look(tmp_path, drawn(0), "b")
    assert look(tmp_path, drawn(0, towards=5, count=9), "c").exceeded == []
    assert len(kept(tmp_path)["accepted"]) == 1


def test_a_run_without_changes_writes_nothing(tmp_path: Path) -> None:
    look(tmp_path, drawn(0), "a")
    url = Path(layout.distribution_url(str(tmp_path), *PLACE))
    before = url.stat()
    again = look(tmp_path, drawn(0), "a")
    assert not again.is_new
    assert (url.stat().st_ino, url.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    look(tmp_path, drawn(0, towards=1), "b")
    warned = url.stat()
    look(tmp_path, drawn(0, towards=1), "b")
    assert (url.stat().st_ino, url.stat().st_mtime_ns) == (warned.st_ino, warned.st_mtime_ns)


def test_a_run_that_was_killed_before_it_accepted_is_made_up_for_by_the_next(tmp_path: Path) -> None:
    look(tmp_path, drawn(0), "a")
    look(tmp_path, drawn(1), "b", accept=False)
    assert [line["data_version"] for line in kept(tmp_path)["accepted"]] == ["a"]
    assert look(tmp_path, drawn(1), "b").is_new
    assert [line["data_version"] for line in kept(tmp_path)["accepted"]] == ["a", "b"]


def test_a_change_is_told_until_it_is_accepted_and_then_no_more(tmp_path: Path) -> None:
    look(tmp_path, drawn(0), "a")
    for _ in range(2):
        assert look(tmp_path, drawn(1, towards=1), "b").exceeded
    assert accept_waiting(str(tmp_path), *PLACE)
    assert look(tmp_path, drawn(1, towards=1), "b").exceeded == []
    assert look(tmp_path, drawn(2), "c").exceeded, "and what was before is a change now"
    assert kept(tmp_path)["waiting"]["data_version"] == "c"


@pytest.mark.parametrize(("seed", "version"), [(2, "c"), (0, "a")], ids=["others like them", "the same"])
def test_a_change_that_goes_back_by_itself_is_told_no_more(tmp_path: Path, seed: int, version: str) -> None:
    look(tmp_path, drawn(0), "a")
    assert look(tmp_path, drawn(1, towards=1), "b").exceeded
    assert look(tmp_path, drawn(seed), version).exceeded == []
    with pytest.raises(PlatformError, match="no change of text/small, source letters, waits"):
        accept_waiting(str(tmp_path), *PLACE)


def test_a_steady_source_is_held_to_its_own_history_and_a_lively_one_is_let(tmp_path: Path) -> None:
    for number in range(FEWEST_ACCEPTED + 1):
        look(tmp_path / "steady", drawn(number, count=2000), str(number))
        look(tmp_path / "lively", mixed(drawn(0, count=1000), drawn(1, towards=1, count=40 * number + 1)), str(number))
    little = mixed(drawn(0, count=1900), drawn(1, towards=1, count=100))
    steady = look(tmp_path / "steady", little, "little")
    assert steady.figures["shift"] < USUAL
    assert steady.exceeded, "below what the settings allow, and yet unheard of here"
    lively = look(tmp_path / "lively", mixed(drawn(0, count=1000), drawn(1, towards=1, count=240)), "next")
    assert lively.accepted == FEWEST_ACCEPTED
    assert lively.exceeded == []


def others(store: Path, count: int, changes: int = 0) -> None:
    """Other sources of the space, of one kind and each of another thing, with some accepted changes."""
    for number in range(count):
        for change in range(changes + 1):
            parts = (drawn(100 * number + change, count=2000), drawn(number, towards=number + 1, count=200))
            look(store, mixed(*parts), f"{change}", source=f"other {number}")


@pytest.mark.parametrize(
    ("new", "exceeded"),
    [
        (mixed(drawn(0), drawn(1, towards=20, count=100)), []),
        (drawn(0, scatter=0.001), ["shift", "spread_change"]),
        (drawn(0, towards=20), ["shift"]),
        (drawn(0, scatter=3.0), ["shift", "spread_change", "norm_change"]),
        (with_vectors(drawn(0), 3 * drawn(0).sample.vectors), ["norm_change"]),
    ],
    ids=["alike", "all the same", "elsewhere", "noise", "longer"],
)
def test_a_new_source_is_held_against_the_others_of_its_space(tmp_path: Path, new: Judged, exceeded: list[str]) -> None:
    others(tmp_path, FEWEST_ACCEPTED)
    change = look(tmp_path, new, "a")
    assert (change.others, change.exceeded) == (FEWEST_ACCEPTED, exceeded)
    assert bool(kept(tmp_path).get("accepted")) == (not exceeded)
    if exceeded:
        assert look(tmp_path, new, "a").exceeded == exceeded
        accept_waiting(str(tmp_path), *PLACE)
    again = look(tmp_path, new, "a")
    assert (again.others, again.exceeded, again.accepted) == (0, [], 0), "from now on it is compared with itself"


def test_beside_few_others_nothing_can_be_told_of_a_new_source(tmp_path: Path) -> None:
    others(tmp_path, FEWEST_ACCEPTED - 1)
    assert look(tmp_path, drawn(0, towards=20), "a").figures == {}


def test_of_a_source_without_a_history_its_space_tells_what_is_usual(tmp_path: Path) -> None:
    little = mixed(drawn(2, count=2000), drawn(3, towards=9, count=100))
    for folder, changes in (("steady", 1), ("first", 0)):
        others(tmp_path / folder, FEWEST_ACCEPTED, changes)
        look(tmp_path / folder, drawn(1, count=2000), "a")
    steady, first = (look(tmp_path / folder, little, "b") for folder in ("steady", "first"))
    assert (steady.accepted, first.accepted) == (FEWEST_ACCEPTED, 0)
    assert steady.figures["shift"] == first.figures["shift"] < first.limits["shift"] == USUAL
    assert steady.exceeded
    assert not first.exceeded


def test_the_limit_is_the_median_and_some_robust_deviations_more() -> None:
    history = [0.02, 0.03, 0.04, 0.05, 0.9]
    assert limit_of(history, 0.0, USUAL) == pytest.approx(0.04 + DEVIATIONS * TO_STANDARD_DEVIATION * 0.01)
    assert limit_of(history[:4], 0.0, USUAL) == USUAL
    assert limit_of([0.0] * 9, 0.0, USUAL) == LEAST_LIMIT
    assert limit_of(history, 0.5, USUAL) == limit_of([], 0.5, USUAL) == 0.5


def test_the_history_stays_small(tmp_path: Path) -> None:
    for number in range(MOST_ACCEPTED + 9):
        look(tmp_path, drawn(number), str(number))
    lines = kept(tmp_path)["accepted"]
    assert len(lines) == MOST_ACCEPTED + 1
    assert lines[-1]["data_version"] == str(MOST_ACCEPTED + 8)
    assert len(storage.read_bytes(layout.distribution_url(str(tmp_path), *PLACE)) or b"") < 20_000


def test_joining_shards_is_no_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampled, "MOST", 60)
    space, fingerprint = space_of("text"), PLACE[1]
    folder = layout.vectors_folder(str(tmp_path), *PLACE)
    generator = np.random.default_rng(0)
    for shard in range(40):
        # A folder of media about one thing after the other, as a listing has them.
        vectors = generator.normal(0, 0.1, (20, space.model.dimension)).astype(np.float32)
        vectors[:, shard // 10] += 1.0
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        append(folder, [generator.bytes(16).hex() for _ in vectors], vectors, fingerprint, "run", "cpu")
    looks = []
    for _ in range(2):
        live = stored_hashes(folder, fingerprint)
        judged = judge_stored(folder, space, live, fingerprint)
        looks.append((judged.sample.contents, look(tmp_path, judged, "same")))
        compact(folder, space.model.dimension, fingerprint, fewest=4)
    assert len(storage.table_names(folder)) == 1
    (contents, _), (contents_after, after) = looks
    assert len(contents) == 60
    assert contents == contents_after
    assert max(after.figures.values()) < 1e-6


@pytest.mark.parametrize("payload", [b"", b"{", b"[]", b'{"accepted": []}', b"\xff"])
def test_a_torn_history_is_a_clear_failure(tmp_path: Path, payload: bytes) -> None:
    storage.write_bytes(layout.distribution_url(str(tmp_path), *PLACE), payload)
    with pytest.raises(PlatformError, match=r"letters\.json.*remove this file and run again"):
        look(tmp_path, drawn(0), "a")


def test_the_spread_is_the_circular_variance() -> None:
    alike, opposite = np.array([[3.0, 4.0]] * 5), np.array([[1.0, 0.0], [-2.0, 0.0]])
    assert distribution(alike).spread == pytest.approx(0.0)
    assert distribution(alike).mean_norm == 5.0
    assert distribution(opposite).spread == 1.0
    unsound = np.array([[0.0, 0.0], [np.nan, 1.0], [1.0, 0.0]])
    assert (distribution(unsound).count, distribution(unsound).spread) == (1, 0.0)
    assert distribution(np.zeros((0, 3))).count == 0
