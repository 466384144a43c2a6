import dataclasses
import os

import numpy as np
import pandas as pd
import pytest

from embedding_platform import storage
from embedding_platform.errors import PlatformError
from embedding_platform.spaces import Index, Model, Space
from embedding_platform.vectors import judged as judged_module
from embedding_platform.vectors import judgement
from embedding_platform.vectors.judged import judge_stored
from embedding_platform.vectors.store import append, compact, stored_hashes

DIMENSION = 4
FINGERPRINT = "f" * 64
SPACE = Space(
    "text", "small", Model("small", "small", DIMENSION, ("text",), "none", "drawn"), index=Index("FLAT", {}, {})
)


@pytest.fixture
def folder(tmp_path):
    return str(tmp_path / "space" / "own")


@pytest.fixture
def read(monkeypatch):
    """The shards that were judged, in order."""
    names: list[str] = []

    def judge(folder, name, *others, judge=judged_module._judge):
        names.append(name)
        return judge(folder, name, *others)

    monkeypatch.setattr(judged_module, "_judge", judge)
    return names


def index(*hashes: str) -> pd.Index:
    return pd.Index(list(hashes), dtype="str")


def put(folder: str, vectors: dict[str, list[float]]) -> str:
    return append(folder, list(vectors), np.array([*vectors.values()], np.float32), FINGERPRINT, "run", "cpu")


def unit(place: int) -> list[float]:
    return [float(place == number) for number in range(DIMENSION)]


def test_what_is_stored_of_live_contents_is_judged_once_each(folder):
    put(folder, {"a": unit(0), "dead": [0, 0, 0, 0], "b": unit(1)})
    put(folder, {"b": unit(1), "zero": [0, 0, 0, 0], "long": [2, 0, 0, 0], "hot": [float("nan"), 0, 0, 0]})
    for _ in range(2):
        judged = judge_stored(folder, SPACE, index("a", "b", "zero", "long", "hot", "missing"), FINGERPRINT)
        assert judged.faults == {"zero": ["zero"], "norm": ["long"], "finite": ["hot"]}
        assert judged.held.tolist() == [True] * 5 + [False]
        assert judged.judged == 5
        assert sorted(judged.norms) == [0, 1, 1, 2]
        assert judged.spread is not None
        assert np.isfinite([judged.spread.low, judged.spread.high]).all()


def test_a_shard_is_judged_once_until_its_file_or_the_judge_changes(folder, read, monkeypatch):
    first = put(folder, {"a": unit(0)})
    second = put(folder, {"b": unit(1)})
    live = index("a", "b", "c")
    judge_stored(folder, SPACE, live, FINGERPRINT)
    assert sorted(read) == sorted([first, second])
    before = os.stat(storage.join(folder, "judged", "shards.parquet")).st_mtime_ns
    judge_stored(folder, SPACE, live, FINGERPRINT)
    assert len(read) == 2
    assert os.stat(storage.join(folder, "judged", "shards.parquet")).st_mtime_ns == before

    third = put(folder, {"c": unit(2)})
    judge_stored(folder, SPACE, live, FINGERPRINT)
    assert read[2:] == [third]

    # Other bytes under the old name.
    spoilt = put(f"{folder}-2", {"a": [0, 0, 0, 0]})
    os.replace(storage.join(f"{folder}-2", spoilt), storage.join(folder, first))
    assert judge_stored(folder, SPACE, live, FINGERPRINT).faults == {"zero": ["a"]}
    assert read[3:] == [first]

    wide = dataclasses.replace(SPACE, norm_band=(0.0, 2.0))
    judge_stored(folder, wide, live, FINGERPRINT)
    monkeypatch.setattr(judgement, "VERSION", "another")
    judge_stored(folder, wide, live, FINGERPRINT)
    assert sorted(read[4:]) == sorted([first, second, third] * 2)


def test_verdicts_follow_a_compaction(folder, read):
    names = [put(folder, {f"k{number}": unit(number % DIMENSION), f"dead{number}": unit(0)}) for number in range(32)]
    live = index(*(f"k{number}" for number in range(32)))
    before = judge_stored(folder, SPACE, live, FINGERPRINT)
    assert compact(folder, DIMENSION, FINGERPRINT) == len(names)
    after = judge_stored(folder, SPACE, live, FINGERPRINT)
    assert read[32:] == storage.table_names(folder)
    assert (after.judged, after.faults, after.held.all()) == (before.judged, {}, True)
    table = storage.read_table(storage.join(folder, "judged", "shards.parquet"), judged_module._VERDICTS)
    assert table["shard"].to_pylist() == storage.table_names(folder)


def test_a_compaction_that_comes_between_is_followed(folder, monkeypatch):
    for number in range(32):
        put(folder, {f"k{number}": unit(number % DIMENSION)})
    live = stored_hashes(folder, FINGERPRINT)

    def judge(*asked, judge=judged_module._judge):
        compact(folder, DIMENSION, FINGERPRINT)
        return judge(*asked)

    monkeypatch.setattr(judged_module, "_judge", judge)
    judged = judge_stored(folder, SPACE, live, FINGERPRINT)
    assert (judged.judged, judged.held.all(), len(judged.norms)) == (32, True, 32)


def test_directions_are_compared_over_several_shards(folder):
    for shard in range(20):
        put(folder, {f"{shard}-{number}": unit(shard % 2) for number in range(4)})
    judged = judge_stored(folder, SPACE, stored_hashes(folder, FINGERPRINT), FINGERPRINT)
    assert judged.spread is not None
    assert (len(judged.sample.contents), judged.spread.low, judged.spread.high) == (80, 0.0, 1.0)
    assert judge_stored(folder, SPACE, index(), FINGERPRINT).spread is None


def test_a_shard_of_another_dimension_is_refused(folder):
    append(folder, ["a"], np.ones((1, DIMENSION + 1), np.float32), FINGERPRINT, "run", "cpu")
    with pytest.raises(PlatformError, match="remove this file and run again"):
        judge_stored(folder, SPACE, index("a"), FINGERPRINT)


def test_an_empty_folder_has_nothing_to_judge(folder):
    judged = judge_stored(folder, SPACE, index("a"), FINGERPRINT)
    assert (judged.judged, judged.held.tolist(), len(judged.norms), judged.faults, judged.spread) == (
        0,
        [False],
        0,
        {},
        None,
    )
    assert not os.path.exists(folder)
