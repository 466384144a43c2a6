"""The vector index of a collection: build it as asked, search through it, measure its recall."""

import json
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from embedding_platform.errors import PlatformError, UnsoundError
from embedding_platform.milvus.connection import BUILD_SECONDS, CALL_SECONDS, explaining
from embedding_platform.milvus.deployment import deployment_of
from embedding_platform.spaces import INDEX_TYPES, Index, Metric, index_fault, usual_index

if TYPE_CHECKING:
    from pymilvus import MilvusClient

    from embedding_platform.milvus.partitions import Partition

VECTOR_FIELD = "vector"

INDEX_PROPERTY = "embedding_platform.index"

SEARCH_PROPERTY = "embedding_platform.search"

THOROUGH_EF = 1024
"""Candidates that HNSW looks at where a row must not be missed: ten times what its users choose."""

PROBE_HITS = 10

FLUSHED_ROWS = 1000
"""Rows that are worth a file of their own in Milvus Lite."""

_QUERIES_PER_CALL = 256


def ensure_index(
    client: "MilvusClient",
    collection: str,
    index: Index,
    metric: Metric,
    timeout_seconds: float = BUILD_SECONDS,
) -> bool:
    """Make the collection's index be `index`, loaded and ready; True if it was built now.

    An index of other type, parameters or metric is dropped and built anew from the rows that
    are there; until it is ready, searches of this collection fail.

    Raises:
        PlatformError: an unknown type or parameter, another index than asked was built, or
            it is not ready in time.
    """
    if fault := index_fault(index):
        raise PlatformError(fault)
    deadline = time.monotonic() + timeout_seconds
    wanted = _Built(index.type, dict(index.build), metric)
    found = _built(client, collection)
    if _serves(client, found, wanted):
        if ensure_loaded(client, collection, timeout_seconds):
            _await_ready(client, collection, deadline, found)
            return False
        found = None
    with explaining(f"build the index of collection {collection}"):
        if found is not None:
            client.release_collection(collection, timeout=CALL_SECONDS)
            _drop_indexes(client, collection)
        client.alter_collection_properties(
            collection, {INDEX_PROPERTY: json.dumps(wanted.build, sort_keys=True)}, timeout=CALL_SECONDS
        )
        parameters = client.prepare_index_params()
        parameters.add_index(
            VECTOR_FIELD,
            index_type=index.type,
            metric_type=metric,
            params=dict(index.build),
            index_name=VECTOR_FIELD,
        )
    with explaining(f"build the index of collection {collection}", lambda: _built(client, collection) == wanted):
        client.create_index(collection, parameters, timeout=timeout_seconds)
    found = _built(client, collection)
    if not _serves(client, found, wanted):
        raise UnsoundError(
            f"Milvus built another index on {collection}: stored={found}, expected={wanted}; "
            "choose an index type that this Milvus has",
            check="index",
        )
    ensure_loaded(client, collection, max(deadline - time.monotonic(), 1.0))
    _await_ready(client, collection, deadline, found)
    return True


def ensure_loaded(client: "MilvusClient", collection: str, timeout_seconds: float = BUILD_SECONDS) -> bool:
    """Load the collection where it is not: a restart leaves it on disk, and then no query works.

    An index that a killed process left torn is dropped, with a warning, and `ensure_index` builds it
    again; False if that was so.

    Raises:
        PlatformError: if Milvus cannot load it.
    """
    from pymilvus.client.types import LoadState

    with explaining(f"load collection {collection}"):
        if client.get_load_state(collection, timeout=CALL_SECONDS)["state"] == LoadState.Loaded:
            return True
    try:
        with explaining(f"load collection {collection}"):
            client.load_collection(collection, timeout=timeout_seconds)
        return True
    except PlatformError:
        if not deployment_of(client).tears_indexes or _built(client, collection) is None:
            raise
        logging.getLogger(__name__).warning(
            "Milvus cannot read the index of collection %s, and a killed process may have left half of it: "
            "it is dropped, and searches are exact and slow until the next run builds it",
            collection,
        )
        _drop_indexes(client, collection)
        with explaining(f"load collection {collection}"):
            client.load_collection(collection, timeout=timeout_seconds)
        return False


def flush_rows(client: "MilvusClient", collection: str, written: int) -> None:
    """Let rows be searched by the index that wait in a buffer, if so many were just written that it pays.

    Milvus Lite compares a query with each row of its buffer, which holds up to 128 MB: with
    20,000 passages in it a search takes ten times as long.
    """
    if written >= FLUSHED_ROWS and deployment_of(client).buffers_rows:
        with explaining(f"flush collection {collection}"):
            client.flush(collection, timeout=BUILD_SECONDS)


def ann_search(
    client: "MilvusClient",
    collection: str,
    partition: "Partition | None",
    queries: np.ndarray,
    k: int,
    index: Index,
    metric: Metric,
) -> list[list[tuple[str, float]]]:
    """The `k` nearest rows of each query, best first, as (id, score).

    `queries` is float32 [q, d]; without `partition` all rows are searched. Scores are as Milvus gives
    them: cosine or inner product (higher is better), or the squared L2 distance (lower).
    """
    ensure_loaded(client, collection)
    hits: list[list[tuple[str, float]]] = []
    for first in range(0, len(queries), _QUERIES_PER_CALL):
        with explaining(f"search collection {collection}"):
            answers = client.search(
                collection,
                data=list(queries[first : first + _QUERIES_PER_CALL]),
                anns_field=VECTOR_FIELD,
                limit=k,
                output_fields=["id"],
                search_params=search_parameters(index, metric, k),
                filter=partition.where() if partition else "",
                partition_names=partition.names if partition else None,
                consistency_level="Strong",
                timeout=CALL_SECONDS,
            )
        hits += [[(str(hit["id"]), float(hit["distance"])) for hit in answer] for answer in answers]
    return hits


def await_searchable(
    client: "MilvusClient",
    partition: "Partition",
    rows: Sequence[Mapping[str, Any]],
    index: Index,
    metric: Metric,
    timeout_seconds: float,
) -> None:
    """Search the partition with the vectors of rows just written, until each of them is found.

    A row counts as found where its place is taken by rows that are as near.

    Raises:
        PlatformError: if a row is not found in time.
    """
    deadline = time.monotonic() + timeout_seconds
    waiting = list(rows)
    while waiting:
        vectors = np.stack([np.asarray(row[VECTOR_FIELD], np.float32) for row in waiting])
        answers = ann_search(client, partition.collection, partition, vectors, PROBE_HITS, thorough(index), metric)
        missed = [(row, hits) for row, hits in zip(waiting, answers, strict=True) if not _is_among(row, hits, metric)]
        waiting = [row for row, _ in missed]
        if waiting and time.monotonic() >= deadline:
            raise UnsoundError(
                f"{len(waiting)} of {len(rows)} rows just written to {partition} are not found by search after "
                f"{timeout_seconds:g} s, such as {waiting[0]['id']}; {_way_out(missed[0][1], index, metric)}",
                check="index",
                numbers={"probed": len(rows), "not_found": len(waiting)},
                worst=[str(row["id"]) for row in waiting],
            )
        if waiting:
            time.sleep(0.2)


def _way_out(hits: Sequence[tuple[str, float]], index: Index, metric: Metric) -> str:
    """What to do where a search finds `hits` instead of a row.

    In a graph each of many copies has other copies as its nearest, and a search that comes among them stays there.
    """
    if _are_as_near(hits, hits[0][1] if hits else 0.0, metric) and not index.type.startswith(("FLAT", "IVF")):
        return (
            f"copies of one vector, such as that of row {hits[0][0]}, are found instead, and {index.type} does not get "
            "past so many; choose IVF_FLAT or FLAT for the space in `indexes`, or take the copies away, then run again"
        )
    return "see the load of Milvus, or raise milvus.searchable_seconds, then run again"


def _is_among(row: Mapping[str, Any], hits: Sequence[tuple[str, float]], metric: Metric) -> bool:
    if any(found == row["id"] for found, _ in hits):
        return True
    square = float(np.square(np.asarray(row[VECTOR_FIELD], np.float64)).sum())
    own = {"COSINE": 1.0, "IP": square, "L2": 0.0}[metric]
    # Rows that are as near may stand in its place, but only where they fill all places.
    return _are_as_near(hits, own, metric)


def _are_as_near(hits: Sequence[tuple[str, float]], score: float, metric: Metric) -> bool:
    """Whether so many were found as were asked for, the last of them with that score too."""
    return len(hits) == PROBE_HITS and recall_at_k([[hits[-1][1]]], [[score]], 1, metric) == 1.0


def search_parameters(index: Index, metric: Metric, k: int) -> dict[str, Any]:
    """Search parameters for the `k` nearest; HNSW looks at `k` candidates at least."""
    parameters = dict(index.search)
    if "ef" in parameters:
        parameters["ef"] = max(parameters["ef"], k)
    return {"metric_type": metric, "params": parameters}


def likeness(rows: np.ndarray, vector: np.ndarray, metric: Metric) -> np.ndarray:
    """What Milvus says of each row, float32 [n, d], and a vector, float32 [d]: float32 [n]; see `ann_search`."""
    if metric == "L2":
        return np.asarray(np.square(rows - vector).sum(axis=1))
    products = rows @ vector
    return products if metric == "IP" else products / (np.linalg.norm(rows, axis=1) * np.linalg.norm(vector))


def present_index(client: "MilvusClient", collection: str) -> Index:
    """The index that a collection has, with what search parameters were kept for it, else the usual ones."""
    found = _built(client, collection)
    index = usual_index(found.type, found.build, {}) if found else usual_index("FLAT", {}, {})
    return tuned(client, collection, index)


def thorough(index: Index) -> Index:
    """The same index, searched with so much effort that hardly a row is missed."""
    effort = {"ef": THOROUGH_EF, "nprobe": index.build.get("nlist", 1)}
    return replace(index, search={name: max(value, effort[name]) for name, value in index.search.items()})


def tuned(client: "MilvusClient", collection: str, index: Index) -> Index:
    """The index with the search parameters that `keep_search` stored for it; as it is without any.

    What was stored counts as long as settings name the index that it was found for.
    """
    with explaining(f"describe collection {collection}"):
        properties = client.describe_collection(collection, timeout=CALL_SECONDS).get("properties", {})
    kept = json.loads(properties.get(SEARCH_PROPERTY) or "{}")
    if kept.get("of") != _plain(index):
        return index
    return replace(index, search=kept["search"])


def keep_search(client: "MilvusClient", collection: str, index: Index, search: Mapping[str, int]) -> None:
    """Make `search` the collection's default parameters for `index`."""
    kept = json.dumps({"of": _plain(index), "search": dict(search)}, sort_keys=True)
    with explaining(f"store search parameters with collection {collection}"):
        client.alter_collection_properties(collection, {SEARCH_PROPERTY: kept}, timeout=CALL_SECONDS)


def _plain(index: Index) -> dict[str, Any]:
    return {"type": index.type, "build": dict(index.build), "search": dict(index.search)}


def recall_at_k(
    found_scores: Sequence[Sequence[float]],
    exact_scores: Sequence[Sequence[float]],
    k: int,
    metric: Metric,
    tolerance: float = 1e-5,
) -> float:
    """Mean share of the true `k` nearest that were found, in [0, 1], by scores rather than ids.

    Both are best first per query. A found row counts if it is as good as the k-th exact one
    within `tolerance` (relative above 1), so that equal vectors may stand for each other
    (ann-benchmarks, "recall with ties"). Fewer than `k` exact rows make the share of those;
    queries without any are left out, and none at all gives 1.
    """
    sign = -1.0 if metric == "L2" else 1.0
    shares = []
    for found, exact in zip(found_scores, exact_scores, strict=True):
        nearest = [sign * score for score in exact[:k]]
        if not nearest:
            continue
        worst = min(nearest)
        bar = worst - tolerance * max(1.0, abs(worst))
        hits = sum(sign * score >= bar for score in found[: len(nearest)])
        shares.append(hits / len(nearest))
    return float(np.mean(shares)) if shares else 1.0


@dataclass(frozen=True)
class _Built:
    """An index as Milvus describes it; `state` ("Finished", "InProgress", "Failed") says how far."""

    type: str
    build: dict[str, int]
    metric: str
    state: str = field(default="", compare=False)
    pending: int = field(default=0, compare=False)
    failure: str = field(default="", compare=False)


def _built(client: "MilvusClient", collection: str) -> _Built | None:
    with explaining(f"describe the index of collection {collection}"):
        names = client.list_indexes(collection, field_name=VECTOR_FIELD, timeout=CALL_SECONDS)
        if not names:
            return None
        described = client.describe_index(collection, names[0], timeout=CALL_SECONDS)
        # Where build parameters are not described, our own note has to do.
        if not deployment_of(client).describes_index:
            properties = client.describe_collection(collection, timeout=CALL_SECONDS)["properties"]
            build = json.loads(properties.get(INDEX_PROPERTY, "{}"))
        else:
            known = {name for kind in INDEX_TYPES.values() for name in kind.build}
            build = {name: int(value) for name, value in described.items() if name in known}
    return _Built(
        described["index_type"],
        build,
        described["metric_type"],
        described["state"],
        described.get("pending_index_rows", 0),
        described.get("index_state_fail_reason", ""),
    )


def _drop_indexes(client: "MilvusClient", collection: str) -> None:
    for name in client.list_indexes(collection, field_name=VECTOR_FIELD, timeout=CALL_SECONDS):
        with explaining(
            f"drop index {name} of collection {collection}",
            lambda: not client.list_indexes(collection, field_name=VECTOR_FIELD, timeout=CALL_SECONDS),
        ):
            known = name if deployment_of(client).names_indexes else f"{VECTOR_FIELD}_idx"
            client.drop_index(collection, known, timeout=CALL_SECONDS)


def _serves(client: "MilvusClient", found: _Built | None, wanted: _Built) -> bool:
    """Whether this is the index asked for, or what the deployment builds in its place."""
    if found is None or found == wanted:
        return found is not None
    return deployment_of(client).chooses_index and found.type == "AUTOINDEX" and found.metric == wanted.metric


def _await_ready(client: "MilvusClient", collection: str, deadline: float, found: _Built | None) -> None:
    while found is None or found.state != "Finished" or found.pending:
        if found is not None and found.state == "Failed":
            raise UnsoundError(
                f"Milvus failed to build the index of {collection}: {found.failure or 'it gives no reason'}; "
                "see the log of Milvus, then run again",
                check="index",
            )
        if time.monotonic() >= deadline:
            raise UnsoundError(
                f"the index of {collection} is not ready in time; wait for Milvus to finish, then run again",
                check="index",
                numbers={"pending_rows": found.pending if found else 0},
            )
        time.sleep(0.2)
        found = _built(client, collection)
