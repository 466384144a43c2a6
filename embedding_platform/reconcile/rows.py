"""The rows that a source should have in Milvus: its live segments and their vectors."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from embedding_platform import layout, records
from embedding_platform.increments import index_of
from embedding_platform.media.cutting import Cutting, code_version
from embedding_platform.milvus.schema import Maker, Row, make_rows, row_versions
from embedding_platform.reconcile.embeddings import rejected_contents
from embedding_platform.reconcile.files import items_table, listing_age
from embedding_platform.reconcile.segments import iterate_live_segments, rejected_items, segments_increment
from embedding_platform.spaces import Space
from embedding_platform.vectors import store as vector_store
from embedding_platform.vectors.sampled import Sample, least_distinct, sample_stored

ROWS_AT_ONCE = 1000
"""Rows that are Python objects at one time; what waits is kept in tables."""


@dataclass(frozen=True)
class LiveRows:
    """The rows that a source should have in Milvus.

    What the store holds is read when it is first asked for, and not again.
    """

    store: str
    space: Space
    source: str
    fingerprint: str
    cutting: Cutting

    @property
    def folder(self) -> str:
        """Where the source's vectors lie."""
        return layout.vectors_folder(self.store, self.space.key, self.fingerprint, self.source)

    @cached_property
    def versions(self) -> pd.Series:
        """Row version by segment id of all live segments that have a vector."""
        return row_versions(self._embedded, self._maker.root, self.fingerprint)

    @cached_property
    def missing(self) -> int:
        """Live segments that have neither a vector nor a recorded rejection."""
        rejected = [
            content for _, _, content, _ in rejected_contents(self.store, self.space, self.source, self.fingerprint)
        ]
        bare = self._live["content_hash"].filter(pc.invert(self._held))
        known = pc.is_in(bare, value_set=pa.array(rejected, pa.string()))
        return int(pc.sum(pc.invert(known)).as_py() or 0)

    @cached_property
    def multiplicity(self) -> pd.Series:
        """Number of rows by content hash."""
        counted = pc.value_counts(self._embedded["content_hash"])
        return pd.Series(counted.field("counts").to_numpy(), index=pd.Index(counted.field("values").to_pandas()))

    @cached_property
    def data_version(self) -> str:
        """A hash of all rows, equal for equal rows."""
        ordered = self._embedded["row_version"].combine_chunks().sort()
        return records.digest(self._maker.root, self.fingerprint, records.column_digest(pa.chunked_array([ordered])))

    def state(self) -> str:
        """A mark that changes whenever the source is listed anew, or the way in which its files are cut."""
        listed = listing_age(self.store, self.space.modality, self.source)
        return records.digest(listed, self.cut_version)

    @property
    def cut_version(self) -> str:
        """The version of the present way of cutting."""
        return code_version(self.space.modality, self.cutting)

    def uncut(self) -> int:
        """Items that the present cutter has neither cut nor rejected, whose segments are therefore unknown."""
        place = (self.store, self.space.modality, self.source, self.cutting)
        increment = segments_increment(*place)
        rejected = [path for path, *_ in rejected_items(*place)]
        return len(increment.new.append(increment.stale).difference(rejected))

    def rows(self, ids: pd.Index) -> Iterator[list[Row]]:
        """Complete rows for segment ids, a few at a time: memory holds one shard of vectors and one of segments."""
        wanted = self._embedded.filter(pc.is_in(self._embedded["segment_id"], value_set=pa.array(ids, pa.string())))
        for part in self.vectors(index_of(wanted["content_hash"].unique())):
            places = pd.Index(part.hashes)
            mine = wanted.filter(pc.is_in(wanted["content_hash"], value_set=pa.array(part.hashes, pa.string())))
            for table in self._segments(records.SEGMENTS.names, {"segment_id": mine["segment_id"].combine_chunks()}):
                for first in range(0, table.num_rows, ROWS_AT_ONCE):
                    segments = table.slice(first, ROWS_AT_ONCE)
                    order = places.get_indexer(segments["content_hash"].to_pylist())
                    yield make_rows(
                        segments,
                        self._maker,
                        part.vectors[order],
                        [part.run_ids[place] for place in order],
                        [part.embedded_at[place].isoformat() for place in order],
                    )

    def vectors(self, contents: pd.Index) -> Iterator[vector_store.VectorBatch]:
        """Stored vectors of content hashes, one shard at a time."""
        return vector_store.iterate(self.folder, self.space.model.dimension, contents, self.fingerprint)

    def stretch(self, most: int, after: str) -> tuple[pd.Index, str]:
        """Ids of at most so many rows, and where they end, for the next stretch to begin there; "" if they are all.

        `after` is where the last stretch ended, "" at first. Stretch after stretch meets every row, and then
        begins anew. They follow the order of the vectors in the store, so that little is read for them;
        a shard that is written meanwhile may come to lie before `after`, and waits for the next round.
        """
        if not most or len(self.versions) <= most:
            return self.versions.index[:most], ""
        content, _, segment = after.partition(" ")
        # One more: of the first, no row may be left.
        chosen = self._some_contents(most + 1, max(pc.index(self._stored, content).as_py(), 0))
        among = self._embedded.filter(pc.is_in(self._embedded["content_hash"], value_set=chosen))
        ordered = (
            among.append_column("place", pc.index_in(among["content_hash"], value_set=chosen))
            .sort_by([("place", "ascending"), ("segment_id", "ascending")])
            .select(["content_hash", "segment_id"])
        )
        met = pc.and_(pc.equal(ordered["content_hash"], content), pc.less_equal(ordered["segment_id"], segment))
        rows = ordered.filter(pc.invert(met)).slice(0, most)
        if not rows.num_rows:
            return self.stretch(most, "")
        last = rows.slice(rows.num_rows - 1).to_pylist()[0]
        return index_of(rows["segment_id"]), f"{last['content_hash']} {last['segment_id']}"

    def sample(self) -> Sample:
        """Some vectors of the source, chosen at random by their contents; the same as those that are judged."""
        shards = list(vector_store.shard_hashes(self.folder, self.fingerprint))
        stored = pa.chunked_array([chunk for _, hashes in shards for chunk in hashes.chunks], pa.string())
        rows = vector_store.Wanted(index_of(least_distinct(self._embedded["content_hash"]))).rows_in(stored)
        return sample_stored(self.folder, self.space.model.dimension, shards, rows)

    def segments_of(self, contents: Sequence[str]) -> list[records.Segment]:
        """A live segment of the source for each of some contents that it has, however many share one."""
        wanted = vector_store.Wanted(pd.Index(list(contents), dtype="str"))
        found: list[records.Segment] = []
        for table in self._segments(records.SEGMENTS.names, {"content_hash": wanted.hashes}):
            found += records.segments(table.take(wanted.rows_in(table["content_hash"])))
            wanted.take(table["content_hash"])
        return found

    @cached_property
    def _live(self) -> pa.Table:
        names = ["segment_id", "row_version", "content_hash"]
        empty = pa.schema([records.SEGMENTS.field(name) for name in names]).empty_table()
        return pa.concat_tables([empty, *self._segments(names)])

    @cached_property
    def _embedded(self) -> pa.Table:
        # A copy of a million rows is worth avoiding where none is left out.
        return self._live if pc.all(self._held).as_py() else self._live.filter(self._held)

    @cached_property
    def _held(self) -> pa.ChunkedArray:
        """Whether the store has a vector of each live segment."""
        return pc.is_in(self._live["content_hash"], value_set=self._stored)

    @cached_property
    def _stored(self) -> pa.Array:
        return pa.array(vector_store.stored_hashes(self.folder, self.fingerprint), pa.string())

    def _some_contents(self, most: int, place: int) -> pa.Array:
        """At most so many contents of live rows, in the order in which their vectors lie in the store from a place on.

        Looked for in stretches, because a set of all contents takes more memory than all else here.
        """
        begin = place % max(len(self._stored), 1)
        turned = (self._stored.slice(begin), self._stored.slice(0, begin))
        chosen, size = self._stored.slice(0, 0), 2 * most
        for stored in turned:
            first = 0
            while first < len(stored) and len(chosen) < most:
                stretch = stored.slice(first, size)
                live = self._embedded["content_hash"]
                met = live.filter(pc.is_in(live, value_set=stretch)).unique()
                chosen = pa.concat_arrays([chosen, stretch.filter(pc.is_in(stretch, value_set=met))])
                first, size = first + size, 2 * size
        return chosen.slice(0, most)

    @cached_property
    def _maker(self) -> Maker:
        listed = items_table(self.store, self.space.modality, self.source, ["path", "uri"]).slice(0, 1).to_pylist()
        root = listed[0]["uri"].removesuffix(listed[0]["path"]) if listed else ""
        return Maker(self.source, root, self.space.model.location, self.fingerprint)

    def _segments(self, columns: list[str], where: Mapping[str, pa.Array] | None = None) -> Iterator[pa.Table]:
        """Live segments that the space's model embeds, a shard at a time."""
        asked = {"role": pa.array(self.space.roles, pa.string()), **(where or {})}
        place = (self.store, self.space.modality, self.source, self.cutting)
        return iterate_live_segments(*place, columns, asked)
