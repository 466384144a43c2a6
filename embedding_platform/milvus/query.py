"""Read rows: the nearest to a vector, or those of given ids."""

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from embedding_platform.buckets import folder_of
from embedding_platform.errors import PlatformError
from embedding_platform.milvus.connection import CALL_SECONDS, explaining
from embedding_platform.milvus.deployment import deployment_of
from embedding_platform.milvus.expressions import EVERYTHING, Expression, all_of, compare, none_of
from embedding_platform.milvus.index import VECTOR_FIELD, ensure_loaded, likeness, search_parameters, thorough, tuned
from embedding_platform.milvus.schema import (
    FIELD_NAMES,
    KEY_FIELD,
    SCALAR_NAMES,
    partition_name,
    read_provenance,
    source_filter,
)
from embedding_platform.spaces import Index, Metric

if TYPE_CHECKING:
    from pymilvus import MilvusClient

COMPARED_ROWS = 10_000
"""Rows that are compared with a query one by one at most."""

_IDS_PER_CALL = 1000
_SOURCES_NAMED = 20


def search_rows(
    client: "MilvusClient",
    alias: str,
    vector: np.ndarray,
    limit: int,
    index: Index,
    metric: Metric,
    sources: Sequence[str] | None = None,
    condition: Expression = EVERYTHING,
) -> list[dict[str, Any]]:
    """The `limit` rows nearest to `vector`, float32 [d], best first, in all or in some sources, that meet a condition.

    A hit holds every field but the vector, and `score` as Milvus gives it (see `ann_search`).

    Raises:
        PlatformError: an unknown source, no such collection, or Milvus fails.
    """
    if sources is not None and not sources:
        return []
    ensure_loaded(client, alias)
    place = restricted(client, alias, sources, condition)
    found = _through_index(client, alias, vector, limit, tuned(client, alias, index), metric, place)
    if place.condition and len(found) < limit and deployment_of(client).loses_filtered:
        return _one_by_one(client, alias, vector, limit, thorough(index), metric, place)
    return found


def _through_index(
    client: "MilvusClient", alias: str, vector: np.ndarray, limit: int, index: Index, metric: Metric, place: "Place"
) -> list[dict[str, Any]]:
    with explaining(f"search {alias}"):
        answers = client.search(
            alias,
            data=[vector],
            anns_field=VECTOR_FIELD,
            limit=limit,
            filter=place.condition,
            output_fields=list(SCALAR_NAMES),
            search_params=search_parameters(index, metric, limit),
            partition_names=place.partitions,
            consistency_level="Strong",
            timeout=CALL_SECONDS,
        )
    return [
        {"id": hit["id"], **{name: hit["entity"][name] for name in SCALAR_NAMES if name != "id"}}
        | {"score": float(hit["distance"])}
        for hit in answers[0]
    ]


def _one_by_one(
    client: "MilvusClient", alias: str, vector: np.ndarray, limit: int, index: Index, metric: Metric, place: "Place"
) -> list[dict[str, Any]]:
    """The nearest of the rows in a place by comparing them all; through the index where they are too many for that."""
    rows = rows_where(client, alias, place.condition, ("id", VECTOR_FIELD), COMPARED_ROWS, place.partitions)
    if len(rows) == COMPARED_ROWS:
        return _through_index(client, alias, vector, limit, index, metric, place)
    if not rows:
        return []
    scores = likeness(np.asarray([row[VECTOR_FIELD] for row in rows], np.float32), vector, metric)
    order = np.argsort(scores if metric == "L2" else -scores, kind="stable")[:limit]
    score_of = {rows[place]["id"]: float(scores[place]) for place in order}
    return [
        {name: row[name] for name in SCALAR_NAMES} | {"score": score_of[row["id"]]}
        for row in rows_of(client, alias, list(score_of))
    ]


def get_rows(client: "MilvusClient", collection: str, ids: Sequence[str]) -> list[dict[str, Any]]:
    """Whole rows, vector included, in the order of `ids`; ids that are not there are left out.

    Raises:
        PlatformError: an id that is not 32 hex digits, no such collection, or Milvus fails.
    """
    for row_id in ids:
        if not re.fullmatch(r"[0-9a-f]{32}", row_id):
            raise PlatformError(f"{row_id!r} is no row id; an id is 32 digits of 0-9 and a-f")
    return rows_of(client, collection, ids)


def rows_of(client: "MilvusClient", collection: str, ids: Sequence[str]) -> list[dict[str, Any]]:
    """The same of ids that Milvus gave, whoever wrote their rows.

    Raises:
        PlatformError: if there is no such collection, or Milvus fails.
    """
    ensure_loaded(client, collection)
    found: dict[str, dict[str, Any]] = {}
    for first in range(0, len(ids), _IDS_PER_CALL):
        with explaining(f"read rows of {collection}"):
            answer = client.get(
                collection,
                ids=list(ids[first : first + _IDS_PER_CALL]),
                output_fields=list(FIELD_NAMES),
                consistency_level="Strong",
                timeout=CALL_SECONDS,
            )
        found |= {row["id"]: dict(row) for row in answer}
    return [found[row_id] for row_id in ids if row_id in found]


def rows_where(
    client: "MilvusClient",
    collection: str,
    condition: Expression,
    fields: Sequence[str],
    most: int,
    partitions: list[str] | None = None,
) -> list[dict[str, Any]]:
    """At most so many rows that meet a condition, with these fields; the collection is loaded.

    Raises:
        PlatformError: if Milvus fails.
    """
    with explaining(f"read rows of {collection}"):
        return list(
            client.query(
                collection,
                filter=condition or compare("id", ">=", ""),
                output_fields=list(fields),
                partition_names=partitions,
                limit=most,
                consistency_level="Strong",
                timeout=CALL_SECONDS,
            )
        )


@dataclass(frozen=True)
class Place:
    """Where a search looks: in partitions, None for all, among rows that meet a condition."""

    partitions: list[str] | None
    condition: Expression


def restricted(
    client: "MilvusClient", alias: str, sources: Sequence[str] | None, condition: Expression = EVERYTHING
) -> Place:
    """Where the rows of these sources are, of all without them, that meet a condition.

    One that is not there is none that is unknown where another source of its folder is.

    Raises:
        PlatformError: an unknown source, no such collection, or Milvus fails.
    """
    if sources is None:
        return Place(None, condition)
    keyed = read_provenance(client, alias).layout == "keyed"
    with explaining(f"list the partitions of {alias}"):
        present = [] if keyed else client.list_partitions(alias, timeout=CALL_SECONDS)
    names = [partition_name(source) for source in sources]
    there = [name for name in names if name in present]
    for folder, own in itertools.groupby(sorted(sources, key=folder_of), key=folder_of):
        of_folder = list(own)
        if keyed:
            is_there = bool(_source_of(client, alias, source_filter(of_folder)))
        else:
            is_there = any(partition_name(source) in there for source in of_folder)
        if not is_there:
            known = _known_sources(client, alias, present)
            raise PlatformError(
                f"unknown source {(of_folder[0] if len(of_folder) == 1 else folder)!r} in {alias}; "
                + (f"choose among {', '.join(known)}" if known else "it holds no source yet")
            )
    return Place(None, all_of(source_filter(sources), condition)) if keyed else Place(there, condition)


def _known_sources(client: "MilvusClient", alias: str, partitions: Sequence[str]) -> list[str]:
    """Sources by name, one for each partition, or one after the other where a key places the rows."""
    known: list[str] = []
    for place in range(_SOURCES_NAMED):
        if partitions:
            found = _source_of(client, alias, EVERYTHING, partitions[place]) if place < len(partitions) else []
        else:
            found = _source_of(client, alias, none_of(KEY_FIELD, known) if known else EVERYTHING)
        known += found
    return sorted(set(known))


def _source_of(client: "MilvusClient", alias: str, condition: Expression, partition: str | None = None) -> list[str]:
    """The source of one row that meets the condition; nothing without such a row."""
    rows = rows_where(client, alias, condition, ("source",), 1, [partition] if partition else None)
    return [row["source"] for row in rows]
