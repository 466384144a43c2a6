"""What readers get: searches of the published collection against exact search, and how old what it lacks is."""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from embedding_platform import layout, storage
from embedding_platform.errors import PlatformError
from embedding_platform.milvus.alias import alias_target
from embedding_platform.milvus.index import tuned
from embedding_platform.milvus.partitions import Partition
from embedding_platform.reconcile.placed import unplaced
from embedding_platform.reconcile.recall import Recall, lowest, measure_recall
from embedding_platform.reconcile.rows import LiveRows
from embedding_platform.reconcile.target import Target
from embedding_platform.records import digest

if TYPE_CHECKING:
    from pymilvus import MilvusClient

MOST_SOURCES = 5
"""Sources that one probe searches; the next ones search others."""

MOST_ROWS = 100_000
"""Rows that one probe compares exactly: every vector of them is read. A larger source is measured by its runs alone."""


@dataclass(frozen=True)
class Probe:
    """What a probe of one space found.

    `published` is the collection that the alias names, "" without one. `recalls` are those of the
    sources that were searched, over `rows` rows; where none could be, `why_not` says why.
    `seconds_behind` maps the listed sources that the collection does not hold as they are to
    how long they have been so.
    """

    alias: str
    published: str
    recalls: dict[str, Recall]
    rows: int
    why_not: str
    seconds_since_listing: float | None
    seconds_behind: dict[str, float] = field(default_factory=dict)

    @property
    def recall(self) -> Recall | None:
        """The lowest of each figure of the sources that were searched."""
        return lowest(list(self.recalls.values())) if self.recalls else None


def probe(
    client: "MilvusClient",
    store: str,
    target: Target,
    sources: Sequence[str],
    live: Callable[[str], LiveRows],
    sample: int,
    turn: str,
) -> Probe:
    """Search the space's alias with stored vectors of some sources, others for another `turn`.

    Nothing is changed, but that it is noted which sources the collection does not hold as they are:
    only so can a later probe tell how long.

    Raises:
        PlatformError: if Milvus fails, or notes of former probes cannot be read.
    """
    published = alias_target(client, target.alias) or ""
    behind = unplaced(target, sources, live)
    listed = {source: _listed_at(store, target.space.modality, source) for source in sources}
    now = time.time()
    # A listing from the future is one from before the clock was set back.
    ages = {source: max(0.0, now - at) for source, at in listed.items()}
    held = sorted(set(sources).difference(behind))
    since = _behind_since(store, target, {source: listed[source] for source in behind}, now)
    rows, recalls = 0, {}
    if published == target.collection:
        for source, count in _some(store, target, held, turn):
            # By the name that readers search.
            partition = Partition(target.alias, source, target.layout)
            index = tuned(client, target.collection, target.space.index)
            recalls[source] = measure_recall(client, partition, live(source), index, sample)
            rows += count
    if not published:
        why_not = "nothing is published yet"
    elif published != target.collection:
        why_not = f"{target.collection} is being filled, and {published} is left as it is"
    else:
        why_not = "" if recalls else f"no source is held whole, or all have over {MOST_ROWS} rows"
    return Probe(
        alias=target.alias,
        published=published,
        recalls=recalls,
        rows=rows,
        why_not=why_not,
        seconds_since_listing=min(ages.values(), default=None),
        seconds_behind={source: max(0.0, now - since[source]) for source in sorted(behind)},
    )


def _some(store: str, target: Target, sources: Sequence[str], turn: str) -> list[tuple[str, int]]:
    """Some of the sources with their rows, as many as one probe searches, in an order that the turn decides."""
    chosen: list[tuple[str, int]] = []
    total = 0
    for source in sorted(sources, key=lambda name: digest(turn, name)):
        rows = storage.row_count(layout.verified_url(store, target.collection, source))
        if rows and total + rows <= MOST_ROWS:
            chosen.append((source, rows))
            total += rows
        if len(chosen) == MOST_SOURCES:
            break
    return chosen


def _behind_since(store: str, target: Target, listed: Mapping[str, float], now: float) -> dict[str, float]:
    """Since when each source has been behind, in seconds since 1970; `listed` tells when each was listed last.

    What a former probe noted stands until the collection has held the source again. Otherwise it is
    the last listing, if the collection held what was there before; and else now, since neither a new
    collection nor a new way of cutting leaves a time.
    """
    url = layout.behind_url(store, target.collection)
    kept = _noted(url)
    since = {}
    for source, listed_at in listed.items():
        placed_at = storage.modified_at(layout.placed_url(store, target.collection, source))
        found = listed_at if 0 < placed_at < listed_at else now
        since[source] = min(found, kept[source]) if kept.get(source, 0.0) > placed_at else found
    if since != kept:
        storage.write_bytes(url, json.dumps(since).encode())
    return since


def _noted(url: str) -> dict[str, float]:
    payload = storage.read_bytes(url)
    try:
        return {source: float(since) for source, since in json.loads(payload or b"{}").items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise PlatformError(
            f"cannot read {url}: {error}; remove this file: what is behind is counted from the next probe on"
        ) from error


def _listed_at(store: str, modality: str, source: str) -> float:
    """When the source's listing was last replaced, in seconds since 1970; 0 without one."""
    return max(
        storage.modified_at(layout.items_url(store, modality, source)),
        storage.modified_at(layout.rejected_items_url(store, modality, source)),
    )
