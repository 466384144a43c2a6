"""The rows that a source should have in Milvus: its live segments and their vectors."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from embedding_platform import layout, records, storage
from embedding_platform.media.cutting import Cutting, code_version
from embedding_platform.milvus.schema import Maker, Row, make_rows, row_versions
from embedding_platform.reconcile.embeddings import rejected_contents
from embedding_platform.reconcile.segments import live_segments, rejected_items, segments_increment
from embedding_platform.spaces import Space
from embedding_platform.vectors import store as vector_store

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
        bare = pc.invert(pc.is_in(self._live["content_hash"], value_set=self._stored))
        known = pc.is_in(self._live["content_hash"], value_set=pa.array(rejected, pa.string()))
        return int(pc.sum(pc.and_not(bare, known)).as_py() or 0)

    @cached_property
    def multiplicity(self) -> pd.Series:
        """Number of rows by content hash."""
        counted = pc.value_counts(self._embedded["content_hash"])
        return pd.Series(counted.field("counts").to_numpy(), index=pd.Index(counted.field("values").to_pandas()))

    @cached_property
    def data_version(self) -> str:
        """A hash of all rows, equal for equal rows."""
        ordered = self._embedded["row_version"].combine_chunks().sort()
        return records.digest(self._maker.root, self.fingerprint, records.digest_of(ordered))

    def uncut(self) -> int:
        """Items that the present cutter has neither cut nor rejected, whose segments are therefore unknown."""
        place = (self.store, self.space.modality, self.source, self.cutting)
        increment = segments_increment(*place)
        rejected = [path for path, *_ in rejected_items(*place)]
        return len(increment.new.append(increment.stale).difference(rejected))

    def rows(self, ids: pd.Index, shards: list[str] | None = None) -> Iterator[list[Row]]:
        """Complete rows for segment ids whose vectors lie in all or in some shards, a few at a time.

        Memory holds one shard of vectors, one of segments, and ROWS_AT_ONCE rows.
        """
        wanted = self._embedded.filter(pc.is_in(self._embedded["segment_id"], value_set=pa.array(ids, pa.string())))
        contents = pd.Index(wanted["content_hash"].unique().to_pandas(), dtype=object)
        for part in self.vectors(contents, shards):
            places = pd.Index(part.hashes)
            mine = wanted.filter(pc.is_in(wanted["content_hash"], value_set=pa.array(part.hashes, pa.string())))
            for table in self._whole(mine["row_version"]):
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

    def vectors(self, contents: pd.Index, shards: list[str] | None = None) -> Iterator[vector_store.VectorBatch]:
        """Stored vectors of content hashes in all or in some shards, one shard at a time."""
        return vector_store.iterate(self.folder, self.space.model.dimension, contents, names=shards)

    def some(self, most: int, turn: str) -> Iterator[list[Row]]:
        """About `most` complete rows, of other shards for another `turn`; all rows where there are fewer."""
        names = storage.table_names(self.folder)
        first = int(records.digest(turn)[:8], 16) % max(len(names), 1)
        counted = 0
        for name in [*names[first:], *names[:first]]:
            for rows in self.rows(self.versions.index, [name]):
                yield rows[: most - counted]
                counted += len(rows)
                if counted >= most:
                    return

    def sample(self, most: int) -> tuple[np.ndarray, list[str]]:
        """Vectors of the source, float32 [n, d], at most so many, and the path of one segment for each.

        Shards are named by their content, so that the first of them are as good a sample as any.
        """
        vectors: list[np.ndarray] = []
        contents: list[str] = []
        for part in self.vectors(self.multiplicity.index):
            room = most - len(contents)
            vectors.append(part.vectors[:room])
            contents += part.hashes[:room].tolist()
            if len(contents) >= most:
                break
        if not vectors:
            return np.empty((0, 0), np.float32), []
        table = self._table(["content_hash", "path", "role"])
        table = table.filter(pc.is_in(table["content_hash"], value_set=pa.array(contents, pa.string())))
        path_of = dict(zip(table["content_hash"].to_pylist(), table["path"].to_pylist(), strict=True))
        return np.concatenate(vectors), [path_of[content] for content in contents]

    @cached_property
    def _live(self) -> pa.Table:
        return self._table(["segment_id", "row_version", "content_hash", "role"])

    @cached_property
    def _embedded(self) -> pa.Table:
        return self._live.filter(pc.is_in(self._live["content_hash"], value_set=self._stored))

    @cached_property
    def _stored(self) -> pa.Array:
        return pa.array(vector_store.stored_hashes(self.folder), pa.string())

    @cached_property
    def _maker(self) -> Maker:
        url = layout.items_url(self.store, self.space.modality, self.source)
        items = storage.read_table(url, records.ITEMS).select(["path", "uri"]).slice(0, 1).to_pylist()
        root = items[0]["uri"].removesuffix(items[0]["path"]) if items else ""
        return Maker(self.source, root, self.space.model.location, self.fingerprint)

    def _table(self, columns: list[str]) -> pa.Table:
        table = live_segments(self.store, self.space.modality, self.source, self.cutting, columns)
        return table.filter(pc.is_in(table["role"], value_set=pa.array(self.space.roles)))

    def _whole(self, versions: pa.ChunkedArray) -> Iterator[pa.Table]:
        """The segments of these row versions with all their columns, one shard at a time, each once."""
        cut = code_version(self.space.modality, self.cutting)
        folder = layout.segments_folder(self.store, self.space.modality, self.source, cut)
        for name in storage.table_names(folder):
            if not len(versions):
                return
            (slim,) = storage.iterate_shards(folder, records.SEGMENTS, ["row_version"], names=[name])
            if not pc.any(pc.is_in(slim["row_version"], value_set=versions)).as_py():
                continue
            (table,) = storage.iterate_shards(folder, records.SEGMENTS, names=[name])
            found = table.filter(pc.is_in(table["row_version"], value_set=versions))
            uris = pc.binary_join_element_wise(pa.scalar(self._maker.root), found["path"], "")
            yield found.set_column(found.schema.get_field_index("uri"), "uri", uris)
            versions = versions.filter(pc.invert(pc.is_in(versions, value_set=found["row_version"])))
