"""What others did to our rows: told apart from what changed in the media by what we wrote ourselves.

Of each partition four things are kept. `verified` holds the rows that the last sync read back,
`intended` what a sync that has not ended yet may have written or deleted, `placed` what the
source was listed as when all of it was last there, and `audited` how far rows have been compared in
whole. They only explain, or say where to look next: what is to be done follows from Milvus itself.
"""

from dataclasses import dataclass, field
from uuid import uuid4

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from embedding_platform import layout, storage
from embedding_platform.errors import PlatformError
from embedding_platform.increments import Increment, series_of
from embedding_platform.milvus.partitions import Partition
from embedding_platform.milvus.sync import Comparison

ROWS = pa.schema([("id", pa.string()), ("version", pa.string())])
"""Rows by id; "" is the version of a row that is to be deleted."""

_DOUBT = b"doubt "
"""What stands in the place of a listing's state where a late run may have written over newer rows."""


MOST_NAMED = 20
"""Rows named of each kind of drift."""


@dataclass(frozen=True)
class Drift:
    """How many rows somebody else dropped from Milvus, altered, or added.

    `named` are the ids of some of them with what was done to each; they do not count when two are compared.
    """

    dropped: int = 0
    altered: int = 0
    added: int = 0
    named: tuple[tuple[str, str], ...] = field(default=(), compare=False)


@dataclass(frozen=True)
class WriteAhead:
    """What this platform knows to have written to one partition."""

    store: str
    partition: Partition

    @property
    def is_verified(self) -> bool:
        """Whether the partition was ever read back and found right."""
        return bool(storage.change_mark(self._verified))

    @property
    def is_under_way(self) -> bool:
        """Whether a sync began that has not ended: it failed, or was killed."""
        return bool(storage.change_mark(self._intended))

    def is_placed(self, state: str) -> bool:
        """Whether the partition has held all of the source since it was listed as `state`; see `LiveRows.state`."""
        return self.placed() == state.encode()

    def placed(self) -> bytes | None:
        """What the source was listed as when all of it was last there, or a doubt; None where it never was."""
        return storage.read_bytes(self._placed)

    def drift(self, found: Comparison) -> Drift:
        """Which of the differences are none of our doing.

        A row counts as dropped if it was verified and no unfinished sync meant to touch it; as altered
        if it has a version that was neither verified nor intended, stands there twice, or is
        not what its version says; as added if its key was neither verified nor intended.
        """
        increment = found.increment
        if increment.is_empty:
            return Drift()
        wrong = increment.new.append(increment.stale).append(increment.orphaned)
        verified, intended = _rows_of(self._verified, wrong), _rows_of(self._intended, wrong)
        ours = pd.concat([verified, intended])
        rows = {
            "dropped": increment.new.intersection(verified.index).difference(intended.index),
            "altered": found.altered.append(_foreign(found.actual, increment.stale, ours)),
            "added": increment.orphaned.difference(ours.index),
        }
        named = tuple((row_id, deed) for deed, ids in rows.items() for row_id in ids[:MOST_NAMED])
        return Drift(len(rows["dropped"]), len(rows["altered"]), len(rows["added"]), named)

    def intend(self, increment: Increment, desired: pd.Series) -> None:
        """Write down what is about to be written and deleted, on top of what was before."""
        before = storage.read_table(self._intended, ROWS)
        written = desired[desired.index.isin(increment.new.append(increment.stale))]
        deleted = pd.Series("", index=increment.orphaned, dtype="str")
        ahead = pa.concat_tables([before, _table(written), _table(deleted)])
        # Each once, however often a sync fails before it ends.
        storage.write_table(self._intended, ahead.group_by(ROWS.names).aggregate([]))

    def verify(self, desired: pd.Series) -> None:
        """Write down that Milvus was read back and holds exactly these rows."""
        storage.write_table(self._verified, _table(desired))
        storage.remove(self._intended)

    def place(self, state: str, met: bytes | None) -> None:
        """Write down that the partition holds all of the source as it is listed, where that is news.

        `met` is what `placed` gave before the rows were compared.

        Raises:
            PlatformError: if another run has cast doubt on the rows since.
        """
        now = self.placed()
        if now == state.encode():
            return
        if now is not None and now != met and now.startswith(_DOUBT):
            raise PlatformError(
                f"a run that was held up wrote to {self.partition} while this one did; "
                "run again: the next run puts its rows right"
            )
        storage.write_bytes(self._placed, state.encode())

    def doubt(self) -> None:
        """Take back what `place` said, and keep a run that is under way from saying it."""
        storage.write_bytes(self._placed, _DOUBT + uuid4().hex.encode())

    def forget(self) -> None:
        """Keep nothing of the rows of a partition that has none any more."""
        for url in (self._verified, self._intended):
            storage.remove(url)

    def audited(self) -> str:
        """Where the rows end that were last compared in whole; see `LiveRows.stretch`."""
        return (storage.read_bytes(self._audited) or b"").decode()

    def audit(self, until: str) -> None:
        """Write down how far rows have been compared in whole; "" stands for all, and needs no note."""
        if until:
            storage.write_bytes(self._audited, until.encode())
        else:
            storage.remove(self._audited)

    @property
    def _verified(self) -> str:
        return layout.verified_url(self.store, self.partition.collection, self.partition.source)

    @property
    def _placed(self) -> str:
        return layout.placed_url(self.store, self.partition.collection, self.partition.source)

    @property
    def _audited(self) -> str:
        return layout.audited_url(self.store, self.partition.collection, self.partition.source)

    @property
    def _intended(self) -> str:
        return layout.intended_url(self.store, self.partition.collection, self.partition.source)


def _rows_of(url: str, ids: pd.Index) -> pd.Series:
    """Those of the rows kept at `url` that have one of the ids; the others are not held in memory."""
    wanted = pa.array(ids, pa.string())
    parts = [part.filter(pc.is_in(part["id"], value_set=wanted)) for part in storage.iterate_table(url, ROWS)]
    table = pa.concat_tables([ROWS.empty_table(), *parts])
    return series_of(table["id"], table["version"])


def _foreign(actual: pd.Series, stale: pd.Index, ours: pd.Series) -> pd.Index:
    """The stale rows that have a version that we never gave them, or stand there twice."""
    met = actual[actual.index.isin(stale)]
    known = pd.MultiIndex.from_arrays([ours.index, ours.to_numpy()])
    foreign = ~pd.MultiIndex.from_arrays([met.index, met.to_numpy()]).isin(known)
    return met.index[foreign | met.index.duplicated()].unique()


def _table(rows: pd.Series) -> pa.Table:
    return pa.table({"id": pa.array(rows.index, pa.string()), "version": pa.array(rows, pa.string())}, schema=ROWS)
