"""A sample of stored vectors: the least hashes, wherever they lie, and no more read than is new."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from embedding_platform import storage
from embedding_platform.vectors import sampled
from embedding_platform.vectors.sampled import Sample, least_distinct, sample_stored
from embedding_platform.vectors.store import append, compact, shard_hashes

DIMENSION = 4
FINGERPRINT = "f" * 64


@pytest.fixture
def folder(tmp_path: Path) -> str:
    return str(tmp_path / "space" / "own")


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampled, "MOST", 6)
    monkeypatch.setattr(storage, "ROWS_PER_GROUP", 8)


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of the rows whose vectors were read, in order."""
    rows: list[int] = []

    def read_rows(fs, path, schema, columns, chosen, read=storage._read_rows):
        rows.extend(chosen)
        return read(fs, path, schema, columns, chosen)

    monkeypatch.setattr(storage, "_read_rows", read_rows)
    return rows


def put(folder: str, *contents: str) -> str:
    vectors = np.array([vector_of(content) for content in contents], np.float32)
    return append(folder, list(contents), vectors, FINGERPRINT, "run", "cpu")


def vector_of(content: str) -> list[float]:
    return [float(int(content, 16)), 1.0, 2.0, 3.0]


def sample(folder: str, but: int = 0) -> Sample:
    """A sample of all rows, or of all but the first ones."""
    shards = list(shard_hashes(folder, FINGERPRINT))
    rows = np.arange(but, sum(len(hashes) for _, hashes in shards))
    found = sample_stored(folder, DIMENSION, shards, rows)
    assert found.vectors.dtype == np.float32
    assert found.vectors.tolist() == [vector_of(content) for content in found.contents]
    return found


def test_the_least_hashes_are_sampled_wherever_they_lie(folder: str) -> None:
    put(folder, "0f", "01", "0a")
    put(folder, "03", "0e", "0b")
    assert sample(folder).contents == ["01", "03", "0a", "0b", "0e", "0f"], "there are no more"
    put(folder, *(f"{number:02x}" for number in range(32, 2, -1)))
    assert compact(folder, DIMENSION, FINGERPRINT, fewest=2)
    assert sample(folder).contents == ["01", "03", "04", "05", "06", "07"]


def test_only_what_is_new_is_read_again_while_shards_stay_as_they_are(folder: str, read: list[int]) -> None:
    put(folder, "10", "20", "30", "40", "50")
    put(folder, "60", "70", "80", "90")
    for _ in range(2):
        assert sample(folder).contents == ["10", "20", "30", "40", "50", "60"]
    assert len(read) == 6, "nothing is new"
    put(folder, "15", "95")
    assert sample(folder).contents == ["10", "15", "20", "30", "40", "50"]
    assert read[6:] == [0]
    assert compact(folder, DIMENSION, FINGERPRINT, fewest=2)
    assert sample(folder).contents == ["10", "15", "20", "30", "40", "50"]
    assert len(read) == 7 + 6, "in another shard they are others until they were read"


def test_of_a_file_that_was_written_over_nothing_is_kept(folder: str, tmp_path: Path) -> None:
    name = put(folder, *(f"{number:02x}" for number in range(9)))
    sample(folder)
    other = put(str(tmp_path / "other"), *(f"{number:02x}" for number in range(10, 20)))
    Path(folder, name).write_bytes((tmp_path / "other" / other).read_bytes())
    assert sample(folder).contents == ["0a", "0b", "0c", "0d", "0e", "0f"]


def test_a_small_source_is_kept_once(folder: str) -> None:
    put(folder, *(f"{number:02x}" for number in range(8)))
    sample(folder)
    assert not Path(folder, "judged").exists()
    name = put(folder, "09")
    sample(folder)
    assert Path(folder, "judged", "sample.parquet").exists()
    storage.remove_shards(folder, [name])
    sample(folder)
    assert not Path(folder, "judged", "sample.parquet").exists()


def test_what_is_not_live_is_not_sampled(folder: str) -> None:
    put(folder, *(f"{number:02x}" for number in range(12)))
    assert sample(folder, but=9).contents == ["09", "0a", "0b"]
    assert sample(folder, but=12).contents == []


def test_the_least_hashes_are_found_among_many_copies() -> None:
    hashes = pa.chunked_array([["b"] * 50, ["a", "c", "a", "b"], [f"{number:02d}" for number in range(4)]])
    assert least_distinct(hashes).to_pylist() == ["00", "01", "02", "03", "a", "b"]
    assert least_distinct(hashes.slice(0, 51)).to_pylist() == ["a", "b"]
    assert least_distinct(hashes.slice(0, 0)).to_pylist() == []
