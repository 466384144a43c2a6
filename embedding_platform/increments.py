"""The difference between what should be and what is."""

from bisect import bisect_left
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from embedding_platform.records import ROWS_PER_PIECE


@dataclass(frozen=True)
class Increment:
    """Row ids by what has to happen to them: add, overwrite, remove, nothing."""

    new: pd.Index
    stale: pd.Index
    orphaned: pd.Index
    unchanged: pd.Index

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to do."""
        return not (len(self.new) or len(self.stale) or len(self.orphaned))

    def counts(self) -> dict[str, int]:
        """Numbers of new, stale, orphaned and unchanged rows, for people and metadata."""
        return {
            "new": len(self.new),
            "stale": len(self.stale),
            "orphaned": len(self.orphaned),
            "unchanged": len(self.unchanged),
        }


def diff(desired: pd.Series, actual: pd.Series) -> Increment:
    """Compare two maps from row id (the index) to version (the values), all of them strings.

    Desired ids are unique. An id that `actual` holds more than once is stale whatever its
    versions, because a store that answers twice for one key has to be written again. The
    parts of the increment are in the order of `desired`, orphaned ones in that of `actual`.

    Rows are compared in Arrow arrays, none of them as a Python object: a million of them take
    about a second where the series are of dtype "str".

    Raises:
        ValueError: if `desired` names an id twice.
    """
    ids, versions = _arrow(desired.index), _arrow(desired)
    numbers, every = _numbered(pa.chunked_array([ids, _arrow(actual.index)]))
    numbers, places = np.split(numbers, [len(ids)])
    repeated = np.flatnonzero(numbers != np.arange(len(ids)))
    if len(repeated):
        raise ValueError(f"desired rows name the id {ids[repeated[0]].as_py()!r} twice")

    # A desired id has its own row as number, any other id a higher one.
    shared = places < len(ids)
    answers = np.bincount(places[shared], minlength=len(ids))
    row_of = np.zeros(len(ids), dtype=np.int64)
    row_of[places[shared]] = np.flatnonzero(shared)
    once = np.flatnonzero(answers == 1)
    found = _arrow(actual).take(pa.array(row_of[once]))
    same = np.zeros(len(ids), dtype=bool)
    same[once] = pc.equal(versions.take(pa.array(once)), found).fill_null(False).to_numpy(zero_copy_only=False)
    others = np.unique(places[~shared])
    return Increment(
        new=_chosen(ids, answers == 0),
        stale=_chosen(ids, (answers > 0) & ~same),
        orphaned=index_of(every.take(pa.array(others))),
        unchanged=_chosen(ids, same),
    )


def diff_sorted(desired: pa.Table, actual: pa.Table) -> Increment:
    """What `diff` gives for two tables of id and version, of any names, both sorted by id.

    They are compared a piece at a time: what that takes does not grow with the tables.
    """
    parts: list[Increment] = []
    begin = 0
    for first in range(0, max(1, desired.num_rows), ROWS_PER_PIECE):
        behind = first + ROWS_PER_PIECE
        end = place_in(actual[0], desired[0][behind].as_py(), begin) if behind < desired.num_rows else actual.num_rows
        pieces = (desired.slice(first, ROWS_PER_PIECE), actual.slice(begin, end - begin))
        parts.append(diff(*(series_of(piece[0], piece[1]) for piece in pieces)))
        begin = end
    names = ("new", "stale", "orphaned", "unchanged")
    joined = {name: [getattr(part, name) for part in parts] for name in names}
    return Increment(**{name: first.append(others) for name, (first, *others) in joined.items()})


def place_in(ids: pa.ChunkedArray, value: str, first: int = 0) -> int:
    """How many of the sorted strings come before a value; the `first` of them are known to."""
    return bisect_left(ids, value, first, key=lambda scalar: scalar.as_py())


def presence(desired: pd.Index, actual: pd.Index) -> Increment:
    """Compare two sets of ids, each of which names an id once: one is there, or it is not, and none is stale."""
    ids, there = _arrow(desired), _arrow(actual)
    places = pc.index_in(there, value_set=ids).fill_null(-1).to_numpy(zero_copy_only=False)
    held = np.zeros(len(ids), dtype=bool)
    held[places[places >= 0]] = True
    return Increment(
        new=_chosen(ids, ~held), stale=_NO_IDS, orphaned=_chosen(there, places < 0), unchanged=_chosen(ids, held)
    )


def index_of(ids: pa.Array | pa.ChunkedArray) -> pd.Index:
    """Strings as an index of dtype "str", which holds them as Arrow does."""
    return pd.Index(ids.to_pandas(), dtype="str")


_NO_IDS = index_of(pa.array([], pa.large_string()))

NOTHING = Increment(new=_NO_IDS, stale=_NO_IDS, orphaned=_NO_IDS, unchanged=_NO_IDS)
"""The increment where nothing should be and nothing is."""


def series_of(ids: pa.Array | pa.ChunkedArray, versions: pa.Array | pa.ChunkedArray) -> pd.Series:
    """A map from row id to version as `diff` compares it, which holds them as Arrow does."""
    return pd.Series(versions.to_pandas().array, index=index_of(ids), dtype="str")


def _arrow(values: pd.Series | pd.Index) -> pa.Array:
    if values.empty:
        # Whatever its dtype is.
        return pa.array([], pa.large_string())
    strings = pa.array(values, pa.large_string())
    if isinstance(strings, pa.ChunkedArray):
        return strings.chunk(0) if strings.num_chunks == 1 else strings.combine_chunks()
    return strings


def _numbered(strings: pa.ChunkedArray) -> tuple[np.ndarray, pa.Array]:
    """A number for each string, equal for equal ones and counted up as they come first; and the strings by number."""
    chunks = strings.dictionary_encode().chunks
    if not chunks:
        return np.zeros(0, dtype=np.int64), pa.array([], strings.type)
    return np.concatenate([chunk.indices.to_numpy() for chunk in chunks]), chunks[-1].dictionary


def _chosen(ids: pa.Array, mask: np.ndarray) -> pd.Index:
    return index_of(ids.filter(pa.array(mask)))
