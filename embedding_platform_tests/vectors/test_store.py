from datetime import UTC, datetime
from uuid import uuid4

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from embedding_platform import storage
from embedding_platform.errors import PlatformError
from embedding_platform.records import vectors_schema
from embedding_platform.vectors.store import append, compact, iterate, reuse, stored_hashes

DIMENSION = 3
FINGERPRINT = "f" * 64
KEYS = [f"k{number}" for number in range(12)]


def index(*hashes: str) -> pd.Index:
    return pd.Index(list(hashes), dtype=object)


def vector(key: str) -> np.ndarray:
    return np.array([len(key), sum(map(ord, key)), 0.1], dtype=np.float32)


def put(folder: str, *keys: str, run: str = "run") -> str:
    return append(folder, list(keys), np.stack([vector(key) for key in keys]), FINGERPRINT, run, "cpu")


def read(folder: str, wanted: pd.Index) -> dict[str, np.ndarray]:
    found: dict[str, np.ndarray] = {}
    for batch in iterate(folder, DIMENSION, wanted, FINGERPRINT):
        assert batch.vectors.dtype == np.float32
        for key, stored in zip(batch.hashes, batch.vectors, strict=True):
            assert key not in found, "a hash came twice"
            found[key] = stored
    return found


def assert_holds(folder: str, wanted: set[str]) -> None:
    found = read(folder, index(*sorted(wanted)))
    assert found.keys() == wanted
    for key, stored in found.items():
        np.testing.assert_array_equal(stored, vector(key))


@pytest.fixture(params=["local", "memory"])
def folder(request, tmp_path):
    return str(tmp_path / "space" / "own") if request.param == "local" else f"memory://{uuid4().hex}/space/own"


APPEND = st.tuples(st.just("append"), st.lists(st.sampled_from(KEYS), min_size=1, max_size=4))
COMPACT = st.tuples(st.just("compact"), st.just(()))


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.too_slow])
@given(deeds=st.lists(APPEND | COMPACT, max_size=8), wanted=st.sets(st.sampled_from(KEYS)), rows=st.integers(1, 40))
def test_whatever_was_appended_and_compacted_each_wanted_hash_comes_once(deeds, wanted, rows):
    folder = f"memory://{uuid4().hex}/own"
    held: set[str] = set()
    for deed, keys in deeds:
        if deed == "append":
            for part in range(5):
                put(folder, *keys, run=f"{part}")
            held |= set(keys)
        else:
            compact(folder, DIMENSION, FINGERPRINT, rows)
            assert set(stored_hashes(folder, FINGERPRINT)) == held
    assert set(stored_hashes(folder, FINGERPRINT)) == held
    assert_holds(folder, wanted & held)
    assert read(folder, index(*sorted(wanted))).keys() == wanted & held


def test_vectors_carry_their_provenance(folder):
    before = datetime.now(UTC)
    put(folder, "a", "b", run="first")
    (batch,) = iterate(folder, DIMENSION, index("b"), FINGERPRINT)
    assert (list(batch.hashes), batch.run_ids) == (["b"], ["first"])
    assert before <= batch.embedded_at[0] <= datetime.now(UTC)


@pytest.mark.parametrize(
    "read_it",
    [
        lambda folder: stored_hashes(folder, FINGERPRINT),
        lambda folder: list(iterate(folder, DIMENSION, index("a"), FINGERPRINT)),
        lambda folder: reuse(folder.rsplit("/", 1)[0], f"{folder}-2", DIMENSION, index("a"), FINGERPRINT),
    ],
)
def test_a_shard_of_another_model_is_refused(folder, read_it):
    put(folder, "a")
    other = append(folder, ["b"], vector("b")[None], "e" * 64, "run", "cpu")
    with pytest.raises(PlatformError) as refusal:
        read_it(folder)
    message = str(refusal.value)
    assert message.startswith(f"shard {folder}/{other} holds vectors of another model: ")
    assert f"stored={'e' * 64}, expected={FINGERPRINT}; remove this file and run again" in message


def test_only_the_vectors_that_are_wanted_are_read(folder, monkeypatch):
    for number in range(6):
        put(folder, f"k{number}")
    read_of = []
    monkeypatch.setattr(
        storage, "_read_rows", lambda *asked, read=storage._read_rows: read_of.append(1) or read(*asked)
    )
    assert set(read(folder, index("k1", "k4", "absent"))) == {"k1", "k4"}
    assert len(read_of) == 2


def test_values_are_stored_bit_for_bit(folder):
    values = np.array([[1 / 3, np.nextafter(np.float32(1), np.float32(2)), -0.0]], dtype=np.float32)
    append(folder, ["a"], np.asfortranarray(values), FINGERPRINT, "run", "cpu")
    (batch,) = iterate(folder, DIMENSION, index("a"), FINGERPRINT)
    assert batch.vectors.tobytes() == values.tobytes()


def test_an_absent_folder_holds_nothing(folder):
    assert list(stored_hashes(folder, FINGERPRINT)) == list(iterate(folder, DIMENSION, index("a"), FINGERPRINT)) == []
    assert compact(folder, DIMENSION, FINGERPRINT) == 0


@pytest.mark.parametrize(("shards", "does"), [(31, False), (32, True)])
def test_compaction_waits_until_there_is_something_to_gain(folder, shards, does):
    for number in range(shards):
        put(folder, f"k{number}")
    assert bool(compact(folder, DIMENSION, FINGERPRINT)) == does
    assert len(storage.table_names(folder)) == (1 if does else shards)
    assert_holds(folder, {f"k{number}" for number in range(shards)})


def test_compaction_fills_shards_and_drops_repeats_alone(folder):
    for number in range(40):
        put(folder, f"k{number}", "again")
    assert compact(folder, DIMENSION, FINGERPRINT, rows_per_shard=10) == 40
    kept = {"again", *(f"k{number}" for number in range(40))}
    hashes = [
        key
        for table in storage.iterate_shards(folder, vectors_schema(1), ["content_hash"])
        for key in table["content_hash"].to_pylist()
    ]
    assert sorted(hashes) == sorted(kept)
    assert_holds(folder, kept)


def test_full_shards_are_left_alone_by_later_compactions(folder):
    keys = [f"k{number}" for number in range(40)]
    full = {put(folder, key, f"other-{key}") for key in keys}
    small = {put(folder, f"small-{key}") for key in keys[:31]}
    live = {*keys, *(f"other-{key}" for key in keys), *(f"small-{key}" for key in keys[:31])}
    assert compact(folder, DIMENSION, FINGERPRINT, rows_per_shard=2) == 0
    small.add(put(folder, "small"))
    live.add("small")
    assert compact(folder, DIMENSION, FINGERPRINT, rows_per_shard=2) == 32
    assert full < set(storage.table_names(folder))
    assert not small & set(storage.table_names(folder))
    assert_holds(folder, live)


def test_a_compaction_killed_before_it_deletes_does_no_harm(folder, monkeypatch):
    keys = [f"k{number}" for number in range(33)]
    for key in keys:
        put(folder, key)

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(storage, "remove_shards", die)
        with pytest.raises(KeyboardInterrupt):
            compact(folder, DIMENSION, FINGERPRINT)
    assert len(storage.table_names(folder)) == 34
    assert len(stored_hashes(folder, FINGERPRINT)) == 33
    assert_holds(folder, set(keys))
    compact(folder, DIMENSION, FINGERPRINT)
    assert len(storage.table_names(folder)) == 1
    assert_holds(folder, set(keys))


def test_reuse_copies_from_other_sources_with_the_provenance(folder):
    space = folder.rsplit("/", 1)[0]
    put(storage.join(space, "other"), "a", "b", run="old")
    put(storage.join(space, "third"), "b", "c", run="older")
    put(folder, "d")
    found = reuse(space, folder, DIMENSION, index("a", "b", "c", "x"), FINGERPRINT)
    assert list(found) == ["a", "b", "c"]
    assert_holds(folder, {"a", "b", "c", "d"})
    (batch,) = (batch for batch in iterate(folder, DIMENSION, index("a"), FINGERPRINT) if "a" in batch.hashes)
    assert batch.run_ids == ["old"]


def test_reuse_never_copies_from_the_source_itself(folder):
    put(folder, "a")
    before = storage.table_names(folder)
    assert list(reuse(folder.rsplit("/", 1)[0], folder, DIMENSION, index("a"), FINGERPRINT)) == []
    assert storage.table_names(folder) == before


def test_reuse_finds_a_content_that_another_source_holds_twice(folder):
    other = storage.join(folder.rsplit("/", 1)[0], "other")
    put(other, "a", run="1")
    put(other, "a", run="2")
    assert list(reuse(folder.rsplit("/", 1)[0], folder, DIMENSION, index("a"), FINGERPRINT)) == ["a"]
    assert_holds(folder, {"a"})
    assert len(storage.table_names(folder)) == 1
