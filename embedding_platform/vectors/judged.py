"""What judging the stored vectors showed, kept beside them shard by shard.

A shard is judged once: when a run first meets it, when its file is another than the one that
was judged, and when the way of judging changes. So a run's cost grows with what is new, and
what was stored behind our back is judged all the same.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from embedding_platform import storage
from embedding_platform.records import digest, vectors_schema
from embedding_platform.spaces import Space
from embedding_platform.vectors import judgement
from embedding_platform.vectors.sampled import Sample, least_distinct, sample_stored
from embedding_platform.vectors.store import Wanted, shard_hashes, vectors_of

_VERDICTS = pa.schema(
    [
        ("shard", pa.string()),
        ("mark", pa.string()),
        ("judge", pa.string()),
        ("norms", pa.list_(pa.float64())),
        ("faulty_rows", pa.list_(pa.int32())),
        ("faults", pa.list_(pa.string())),
    ]
)
"""One row per shard: which file was judged how, the norm of each row, and the rows that are unsound."""

ARRIVED = "arrived"
"""The name under which a sample of the contents is kept that are asked for by themselves."""


@dataclass(frozen=True)
class Judged:
    """What the stored vectors of live contents are like.

    `held` tells of each live content whether it has a vector, bool [n]; `norms` are the finite
    ones of the vectors, float64 [at most judged]; `faults` maps each fault to the hashes of the contents that
    have it. `sample` are some of the vectors, the same wherever they lie; `arrived` are some of those of contents
    that were asked for by themselves, None where none of them has one.
    """

    judged: int
    held: np.ndarray
    norms: np.ndarray
    faults: dict[str, list[str]]
    spread: judgement.Spread | None
    sample: Sample
    arrived: Sample | None = None


@dataclass(frozen=True)
class _Verdict:
    """The norm of each row of a shard, float64 [rows], its unsound rows, int [faulty], and their faults."""

    norms: np.ndarray
    rows: np.ndarray
    faults: list[str]


def judge_stored(
    folder: str, space: Space, live: pd.Index, fingerprint: str, arrivals: pa.Array | None = None
) -> Judged:
    """Judge the stored vectors of live contents; only shards that were not judged yet are read.

    `arrivals` are hashes of contents that are sampled by themselves too.

    Raises:
        PlatformError: if a shard is unreadable, or of another fingerprint or dimension.
    """
    url = storage.join(folder, "judged", "shards.parquet")
    judge = digest(judgement.VERSION, str(space.model.dimension), *map(repr, space.norm_band))
    marks = storage.shard_marks(folder)
    recorded = {(name, mark): verdict for name, mark, verdict in _read(url, judge)}
    verdicts: dict[str, _Verdict] = {}
    hashes: list[pa.ChunkedArray] = []
    try:
        for name, contents in shard_hashes(folder, fingerprint):
            verdict = recorded.get((name, marks.get(name, "")))
            if verdict is None or len(verdict.norms) != len(contents):
                verdict = _judge(folder, name, space, len(contents))
            verdicts[name] = verdict
            hashes.append(contents)
    except FileNotFoundError:
        if storage.shard_marks(folder) == marks:
            raise
        # Another run compacts the folder.
        return judge_stored(folder, space, live, fingerprint, arrivals)
    judged = {(name, marks[name]): verdict for name, verdict in verdicts.items() if name in marks}
    if judged.keys() != recorded.keys() or any(recorded[key] is not verdict for key, verdict in judged.items()):
        _write(url, judge, judged)
    return _summary(folder, space, live, arrivals, verdicts, hashes)


def _judge(folder: str, name: str, space: Space, count: int) -> _Verdict:
    dimension = space.model.dimension
    norms: list[np.ndarray] = []
    found: list[str | None] = []
    for piece in storage.iterate_table(storage.join(folder, name), vectors_schema(dimension), ["vector"]):
        vectors = vectors_of(piece, dimension)
        found += judgement.faults(vectors, space)
        norms.append(judgement.norms_of(vectors))
    if len(found) != count:
        raise FileNotFoundError(name)
    rows = np.flatnonzero([fault is not None for fault in found])
    return _Verdict(np.concatenate([np.zeros(0), *norms]), rows, [fault for fault in found if fault])


def _summary(
    folder: str,
    space: Space,
    live: pd.Index,
    arrivals: pa.Array | None,
    verdicts: dict[str, _Verdict],
    hashes: list[pa.ChunkedArray],
) -> Judged:
    wanted = Wanted(live)
    joined = pa.chunked_array([chunk for column in hashes for chunk in column.chunks], pa.string())
    rows = wanted.rows_in(joined)
    wanted.take(joined)
    norms = np.concatenate([np.zeros(0), *(verdict.norms for verdict in verdicts.values())])[rows]
    ends = np.cumsum([len(verdict.norms) for verdict in verdicts.values()])
    faults: dict[str, list[str]] = {}
    for verdict, end in zip(verdicts.values(), ends, strict=True):
        first = end - len(verdict.norms)
        own = rows[np.searchsorted(rows, first) : np.searchsorted(rows, end)] - first
        for place in np.flatnonzero(np.isin(verdict.rows, own)):
            content = joined[int(first + verdict.rows[place])].as_py()
            faults.setdefault(verdict.faults[place], []).append(content)
    shards = list(zip(verdicts, hashes, strict=True))
    sample = sample_stored(folder, space.model.dimension, shards, rows)
    arrived = None
    if arrivals is not None and len(arrivals):
        asked = rows[pc.is_in(joined, value_set=arrivals).to_numpy()[rows]]
        arrived = _of_arrivals(folder, space.model.dimension, shards, joined, asked, sample)
    spread = judgement.spread(sample.vectors)
    return Judged(len(rows), wanted.taken, norms[np.isfinite(norms)], faults, spread, sample, arrived)


def _of_arrivals(
    folder: str,
    dimension: int,
    shards: list[tuple[str, pa.ChunkedArray]],
    joined: pa.ChunkedArray,
    rows: np.ndarray,
    sample: Sample,
) -> Sample:
    """A sample of the vectors in `rows`; what a sample of all has of them is not read again."""
    hashes = joined.take(pa.array(rows))
    least = least_distinct(hashes)
    sampled = pa.array(sample.contents, pa.string())
    others = least.filter(pc.invert(pc.is_in(least, value_set=sampled)))
    read = sample_stored(folder, dimension, shards, rows[pc.is_in(hashes, value_set=others).to_numpy()], ARRIVED)
    both = sample.contents + read.contents
    places = pc.index_in(least, value_set=pa.array(both, pa.string())).drop_null().to_numpy()
    return Sample([both[place] for place in places], np.concatenate([sample.vectors, read.vectors])[places])


def _read(url: str, judge: str) -> Iterator[tuple[str, str, _Verdict]]:
    """Name and mark of each shard with its verdict, as this judge passed them."""
    table = storage.read_table(url, _VERDICTS)
    for place in range(table.num_rows):
        row = {name: table[name][place] for name in table.column_names}
        if row["judge"].as_py() == judge:
            norms, rows = (row[name].values.to_numpy(zero_copy_only=False) for name in ("norms", "faulty_rows"))
            yield row["shard"].as_py(), row["mark"].as_py(), _Verdict(norms, rows, row["faults"].as_py())


def _write(url: str, judge: str, judged: dict[tuple[str, str], _Verdict]) -> None:
    verdicts = judged.values()
    columns = [
        pa.array([name for name, _ in judged], pa.string()),
        pa.array([mark for _, mark in judged], pa.string()),
        pa.array([judge] * len(judged), pa.string()),
        pa.array([verdict.norms for verdict in verdicts], pa.list_(pa.float64())),
        pa.array([verdict.rows.astype(np.int32) for verdict in verdicts], pa.list_(pa.int32())),
        pa.array([verdict.faults for verdict in verdicts], pa.list_(pa.string())),
    ]
    storage.write_table(url, pa.table(columns, schema=_VERDICTS))
